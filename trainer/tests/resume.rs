//! A run that is interrupted at any moment ends as one that is not, bit for bit.

#![allow(clippy::expect_used, reason = "all of this is test code")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod process;

use std::{
    env,
    fs::{self, OpenOptions},
    io::Write as _,
    mem,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anneal_api::{
    Sha256,
    failure::FailureClass,
    termination::{RunResult, TerminationMessage},
};
use anneal_model::{Checkpoint, StateDict, sha256_file};
use anneal_pth::{TensorData, Value};
use anneal_trainer::{
    ema::TRAINED,
    rng::{Draws, Purpose},
};
use process::{Run, Training};

/// Nine steps of three epochs with a checkpoint every second step: as short as a training can be, with every kind of moment in it.
fn config(optimizer: &str) -> String {
    format!(
        "
model: {{inputSize: 32}}
dataset: {{uri: 'synthetic://?images=60&size=32'}}
hyperparameters: {{epochs: 3, batchSize: 16, threads: 2, optimizer: {optimizer}, learningRate: 0.001, weightDecay: 0.01, schedule: Cosine, emaDecay: 0.9, maxGradientNorm: 1, classWeights: Balanced,
  microBatchSize: 7, trainSizes: [32, 40], augmentation: {{cropArea: 0.5, mixup: 0.4, cutmix: 1}}}}
checkpoints: {{intervalSteps: 2}}
"
    )
}

/// Everything that a run leaves: weights, optimiser, history, and the published model.
struct Ending {
    last: Checkpoint,
    published: Checkpoint,
    sha256: Sha256,
}

fn ending(run: &Run) -> Ending {
    let result = run.result();
    let load = |path: &str| Checkpoint::load(run.path("out").join(path)).expect("a checkpoint");
    Ending { last: load("checkpoints/last_checkpoint.pth"), published: load(&result.checkpoint), sha256: result.sha256 }
}

impl Ending {
    /// What differs between two endings: nothing where they are the same bit for bit.
    fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = differences("last", &self.last, &other.last);
        found.extend(differences("published", &self.published, &other.published));
        if self.sha256 != other.sha256 {
            found.push(format!("digests {} and {}", self.sha256, other.sha256));
        }
        found
    }
}

fn differences(what: &str, one: &Checkpoint, other: &Checkpoint) -> Vec<String> {
    let tensors = one.state.0.iter().zip(&other.state.0).filter(|(one, other)| one != other);
    let mut found: Vec<String> = tensors.map(|((name, _), _)| format!("{what}: tensor {name}")).collect();
    for ((name, one), (_, other)) in one.extra.iter().zip(&other.extra) {
        compare(&format!("{what}: {name}"), one, other, &mut found);
    }
    if (one.state.0.len(), one.extra.len()) != (other.state.0.len(), other.extra.len()) {
        found.push(format!("{what}: counts of tensors or entries"));
    }
    // Only there to explain the rest: the path of a run and the time it took do not belong to its ending.
    if !found.is_empty() {
        found.push(format!("{what}: {:?} and {:?}", one.info, other.info));
    }
    found
}

/// Walks down to the values that differ.
fn compare(path: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    match (one, other) {
        (Value::Dict(one), Value::Dict(other)) if one.entries.len() == other.entries.len() => {
            for ((key, one), (_, other)) in one.entries.iter().zip(&other.entries) {
                compare(&format!("{path} {key:?}"), one, other, found);
            }
        }
        (Value::Tensor(one), Value::Tensor(other)) if one.shape() == other.shape() && one != other => {
            let floats = |tensor: &TensorData| -> Vec<f32> {
                tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            };
            let pairs: Vec<_> = floats(one).into_iter().zip(floats(other)).enumerate().collect();
            let differing: Vec<_> = pairs.iter().filter(|(_, (one, other))| one.to_bits() != other.to_bits()).collect();
            let (count, first) = (differing.len(), &differing[..differing.len().min(4)]);
            found.push(format!("{path}: {one:?} in {count} places: {first:?}"));
        }
        (one, other) if one != other => found.push(format!("{path}: {one:?} and {other:?}")),
        _ => {}
    }
}

/// Interrupts runs at random moments until this many interruptions have hit, and compares every ending.
fn interrupt(optimizer: &str, interruptions: u32, seed: u64) {
    let config = config(optimizer);
    let whole = Run::new(&config);
    let begun = Instant::now();
    whole.train().succeeds();
    let (mut length, expected) = (begun.elapsed(), ending(&whole));
    let mut draws = Draws::new(seed, Purpose::Order, 0, 0);
    let (mut hits, mut runs, mut lost) = (0, 0, 0);
    while hits < interruptions {
        let run = Run::new(&config);
        runs += 1;
        let mut is_whole = true;
        let result = loop {
            let mut attempt = run.train().spawn();
            let (begun, moment) = (Instant::now(), length.mul_f64(draws.between(0.0, 1.2)));
            while attempt.is_running() && begun.elapsed() < moment {
                thread::sleep(Duration::from_millis(10));
            }
            if hits >= interruptions || !attempt.is_running() {
                if is_whole {
                    // A machine that was busy may have become quick, and then most moments would come too late.
                    length = begun.elapsed();
                }
                break attempt.succeeds();
            }
            (hits, is_whole) = (hits + 1, false);
            if draws.below(3) == 0 {
                terminated(attempt);
            } else {
                attempt.kill();
            }
        };
        let differences = ending(&run).differences(&expected);
        assert!(
            differences.is_empty(),
            "{optimizer}, seed {seed}: run {runs} ended otherwise after {hits} interruptions:\n{}",
            differences.join("\n")
        );
        assert_eq!(result.exact, Some(true));
        lost += result.steps_lost.expect("a count");
        println!("{optimizer}: {hits} of {interruptions} interruptions, {runs} runs alike, {lost} steps done twice");
    }
}

/// Ends by SIGTERM, in time; a process that has just finished is as good.
fn terminated(attempt: Training<'_>) {
    let asked = Instant::now();
    attempt.terminate();
    let code = attempt.code();
    // Before its handler is there, the signal's own effect ends the process.
    assert!(matches!(code, Some(143 | 0) | None), "{code:?}");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}

/// Interruptions for each optimiser: a few in every test run, many in a soak.
fn interruptions() -> u32 {
    env::var("ANNEAL_INTERRUPTIONS").map_or(4, |count| count.parse().expect("ANNEAL_INTERRUPTIONS is a count"))
}

fn seed() -> u64 {
    env::var("ANNEAL_SEED").map_or(0, |seed| seed.parse().expect("ANNEAL_SEED is a number"))
}

#[test]
fn an_interrupted_run_with_adam_ends_as_one_that_was_not() {
    interrupt("Adam", interruptions(), seed());
}

#[test]
fn an_interrupted_run_with_adamw_ends_as_one_that_was_not() {
    interrupt("AdamW", interruptions(), seed() + 1);
}

#[test]
fn an_interrupted_run_with_sgd_ends_as_one_that_was_not() {
    interrupt("SGD", interruptions(), seed() + 2);
}

#[test]
fn sigterm_keeps_every_step_that_was_done() {
    let run = Run::new(
        &config("Adam").replace("epochs: 3", "epochs: 10000").replace("intervalSteps: 2", "intervalSteps: 5000"),
    );
    let mut child = run.train().spawn();
    child.wait_for_line("\"epoch\":1,");
    child.terminate();
    let failure = child.fails_as(FailureClass::Interrupted, "goes on from the newest checkpoint");
    assert!(failure.step >= Some(3), "{failure:?}");
    assert_eq!((failure.checkpoint_step, failure.resumed_from_step), (failure.step, None));

    let mut child = run.train().spawn();
    child.wait_for_line("going on from a checkpoint");
    child.wait_for_line("epoch done");
    child.terminate();
    let second = child.fails_as(FailureClass::Interrupted, "SIGTERM");
    assert_eq!(second.resumed_from_step, failure.checkpoint_step);
    assert!(second.step > failure.step);
}

#[test]
fn sigterm_does_not_wait_for_the_end_of_a_step_of_many_passes() {
    let run = Run::new(
        "
model: {inputSize: 64}
dataset: {uri: 'synthetic://?images=400&size=64'}
hyperparameters: {epochs: 1, batchSize: 160, microBatchSize: 2, threads: 2, seed: 1}
checkpoints: {intervalSteps: 1}
",
    );
    let whole = Run::new(&fs::read_to_string(run.path("run.yaml")).expect("a configuration"));
    let mut child = run.train().spawn();
    // The first step's: 80 passes of the second go on beside and after it.
    child.wait_for_line("checkpoint written");
    let asked = Instant::now();
    child.terminate();
    let failure = child.fails_as(FailureClass::Interrupted, "in epoch 1 after step 1");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!((failure.step, failure.checkpoint_step), (Some(1), Some(1)));

    // What the passes of a step that was dropped did to the running statistics is dropped as well.
    run.train().succeeds();
    whole.train().succeeds();
    let differences = ending(&run).differences(&ending(&whole));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn a_second_process_leaves_a_runs_folder_alone() {
    let run = Run::new(&config("Adam").replace("epochs: 3", "epochs: 10000"));
    let mut first = run.train().spawn();
    first.wait_for_line("\"epoch\":1,");
    run.train().fails_as(FailureClass::AppError, "another process trains in");
    first.wait_for_line("epoch done");
    first.kill();
    let mut third = run.train().spawn();
    third.wait_for_line("going on from a checkpoint");
    third.kill();
}

#[test]
fn another_processor_or_program_goes_on_and_says_that_the_numbers_are_not_the_same() {
    let base = Run::new("");
    let other = base.path("trainer");
    fs::copy(env!("CARGO_BIN_EXE_anneal-trainer"), &other).expect("a copy");
    // What stands behind the end of an executable does nothing.
    OpenOptions::new().append(true).open(&other).and_then(|mut file| file.write_all(b"another")).expect("a file");
    let own = Path::new(env!("CARGO_BIN_EXE_anneal-trainer"));
    for (program, name, value) in [
        (own, "ATEN_CPU_CAPABILITY", "default"),
        (own, "ONEDNN_DEFAULT_FPMATH_MODE", "BF16"),
        (other.as_path(), "LANG", "C"),
    ] {
        let run = Run::new(&config("SGD"));
        let mut child = run.train().spawn();
        child.wait_for_line("checkpoint written");
        child.terminate();
        child.fails_as(FailureClass::Interrupted, "SIGTERM");
        let mut second = run.train().program(program).env(name, value).spawn();
        second.wait_for_line("computed on another machine");
        let result: RunResult = second.succeeds();
        assert_eq!(result.exact, Some(false));
        assert!(result.resumed_from_step.is_some());
    }
}

/// Changes the newest checkpoint of a run, as if it had been written so.
fn rewrite(run: &Run, change: impl FnOnce(&mut Checkpoint)) {
    let last = run.path("out/checkpoints/last_checkpoint.pth");
    let before = sha256_file(&last).expect("a checkpoint");
    let mut checkpoint = Checkpoint::load(&last).expect("a checkpoint");
    change(&mut checkpoint);
    let after = checkpoint.save(&last).expect("a file");
    let manifest = run.path("out/checkpoints/manifest.json");
    let text = fs::read_to_string(&manifest).expect("a manifest");
    let text = text.replace(before.sha256.as_str(), after.sha256.as_str());
    let bytes = |bytes: u64| format!("\"bytes\": {bytes}");
    fs::write(&manifest, text.replace(&bytes(before.bytes), &bytes(after.bytes))).expect("a file");
}

/// A run that was interrupted after its first epoch.
fn interrupted(config: &str) -> Run {
    let run = Run::new(config);
    let mut child = run.train().spawn();
    child.wait_for_line("\"epoch\":1,");
    child.terminate();
    child.fails_as(FailureClass::Interrupted, "SIGTERM");
    run
}

#[test]
fn a_position_that_counts_other_photos_begins_its_epoch_anew() {
    let run = interrupted(&config("SGD"));
    // As if an epoch had had fewer steps than it has now.
    rewrite(&run, |checkpoint| {
        checkpoint.info.as_mut().and_then(|info| info.position.as_mut()).expect("a position").step = 1;
    });
    let mut second = run.train().spawn();
    second.wait_for_line("the epoch begins anew");
    assert_eq!(second.succeeds().exact, Some(false));
}

#[test]
fn a_checkpoint_of_an_earlier_version_with_the_average_beside_its_weights_is_gone_on_from() {
    let run = interrupted(&config("Adam"));
    rewrite(&run, |checkpoint| {
        let (_, trained) = checkpoint.extra.pop_if(|(key, _)| key == TRAINED).expect("the weights that are trained");
        let trained = StateDict::from_value(trained).expect("weights");
        let average = mem::replace(&mut checkpoint.state, trained).into_value();
        checkpoint.extra.push(("ema_state_dict".to_owned(), average));
    });
    let result = run.train().succeeds();
    assert!(result.resumed_from_step.is_some());
    let whole = Run::new(&config("Adam"));
    assert_eq!((whole.train().succeeds().sha256, Some(true)), (result.sha256, result.exact));
}

#[test]
fn a_torn_checkpoint_is_passed_over_for_the_one_before() {
    let run = Run::new(&config("Adam"));
    let whole = run.train().succeeds();
    fs::remove_file(run.path("out/result.json")).expect("a result");
    let last = run.path("out/checkpoints/last_checkpoint.pth");
    let content = fs::read(&last).expect("a checkpoint");
    fs::write(&last, &content[..content.len() / 2]).expect("a file");
    let mut again = run.train().spawn();
    again.wait_for_line("is passed over");
    again.wait_for_line("\"step\":8");
    let result = again.succeeds();
    assert_eq!((result.sha256, result.resumed_from_step, result.steps_lost), (whole.sha256, Some(8), Some(1)));
}

#[test]
fn without_the_best_checkpoint_the_newest_average_is_published_and_no_exact_ending_is_promised() {
    let run = Run::new(&config("Adam"));
    run.train().succeeds();
    fs::remove_file(run.path("out/result.json")).expect("a result");
    fs::write(run.path("out/checkpoints/best_model.pth"), "torn").expect("a file");
    let mut again = run.train().spawn();
    again.wait_for_line("the newest epoch is published");
    let result = again.succeeds();
    assert_eq!(result.exact, Some(false));
    let Ending { last, published, .. } = ending(&run);
    assert_eq!(published.state, last.state, "the newest average");
}

#[test]
fn an_attempt_after_the_end_gives_the_same_result_at_once() {
    let run = Run::new(&config("Adam"));
    let first = run.train().succeeds();
    fs::remove_file(run.path("message")).expect("a message");
    let mut again = run.train().spawn();
    again.wait_for_line("this run is done already");
    assert_eq!(again.succeeds(), first);

    // A published model that is damaged is published again.
    fs::write(run.path("out").join(&first.checkpoint), "damaged").expect("a file");
    assert_eq!(run.train().succeeds().sha256, first.sha256);
}

#[test]
fn a_full_volume_leaves_the_last_good_checkpoint_and_says_so() {
    assert!(
        Path::new("/proc/self/status").exists() && is_root(),
        "this test mounts a small file system and needs root, as the cluster of the other tests does; run it as root"
    );
    // Room for two checkpoints of Adam with an average (43 MiB each) and the one that is being written, not for a fourth.
    let run = Run::new(&config("Adam"));
    fs::create_dir_all(run.path("out")).expect("a folder");
    let train = |log: &str| {
        format!(
            "'{}' train --config '{}' --output '{}' --termination-log '{}' 2>'{}'",
            env!("CARGO_BIN_EXE_anneal-trainer"),
            run.path("run.yaml").display(),
            run.path("out").display(),
            run.path(log).display(),
            run.path("log").display(),
        )
    };
    let out = run.path("out").display().to_string();
    let script = format!(
        "mount -t tmpfs -o size=140m tmpfs '{out}' || exit 1
        {}; echo first $?
        ls '{out}/checkpoints'
        mount -o remount,size=500m '{out}' || exit 1
        {}; echo second $?",
        train("first"),
        train("second"),
    );
    let done = process::command("unshare").args(["--mount", "sh", "-c", &script]).output().expect("unshare");
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("first 81") && said.contains("second 0"), "{said}");
    assert!(!said.contains(".tmp") && !said.contains("next_"), "room was not given back: {said}");
    let message = |name: &str| {
        TerminationMessage::parse(&fs::read_to_string(run.path(name)).expect("a message")).expect("one of ours")
    };
    let (TerminationMessage::Failure(failure), TerminationMessage::Result(result)) =
        (message("first"), message("second"))
    else {
        panic!("{said}")
    };
    assert_eq!(failure.class, FailureClass::DiskFull);
    let kept = failure.checkpoint_step.expect("a checkpoint");
    assert!(failure.message.contains(&format!("the checkpoint of step {kept} is intact")), "{}", failure.message);
    assert_eq!((result.resumed_from_step, result.exact), (Some(kept), Some(true)));
    let whole = Run::new(&config("Adam"));
    assert_eq!(whole.train().succeeds().sha256, result.sha256);
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}
