//! The trainer as its users meet it: a process with arguments, files, signals and an exit code.

#![allow(clippy::expect_used, reason = "all of this is test code")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod process;

use std::{collections::BTreeSet, fs, io::Read, os::unix::fs::symlink, path::Path};

use anneal_api::{
    failure::FailureClass,
    termination::{RunResult, TerminationMessage},
};
use anneal_model::{Checkpoint, sha256_file};
use anneal_pth::{DType, Dict, TensorData, Value};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use process::{Run, import, prints, trainer};

/// Three epochs of 32-pixel pictures: seconds, and enough to tell cats from dogs.
const SMALL: &str = "
model: {inputSize: 32}
dataset: {uri: 'synthetic://?images=600&size=32'}
hyperparameters: {epochs: 3, batchSize: 16, threads: 1}
";

fn info_of(path: &Path) -> anneal_api::checkpoint::CheckpointInfo {
    Checkpoint::load(path).expect("a checkpoint").info.expect("a description")
}

#[test]
fn a_run_learns_the_synthetic_set_and_publishes_what_it_learned() {
    let run = Run::new(SMALL);
    let result: RunResult = run.train().succeeds();
    assert!(result.metrics.accuracy >= 0.9, "{:?}", result.metrics);
    assert_eq!(result.classes, ["cat", "dog"]);
    assert_eq!((result.epochs, result.dataset.images, result.dataset.skipped), (3, 600, 0));
    assert_eq!(result.checkpoint, format!("models/{}.pth", result.sha256));

    let published = run.path("out").join(&result.checkpoint);
    assert_eq!(sha256_file(&published).expect("the model").sha256, result.sha256);
    let info = info_of(&published);
    assert_eq!((info.metrics, info.classes), (Some(result.metrics), result.classes));
    for report in [
        "metrics.json",
        "classification_report.txt",
        "training_history.json",
        "report.html",
        "training_curves.png",
        "confusion_matrix.png",
        "roc_curve.png",
        "calibration.png",
        "worst_mistakes.png",
    ] {
        let content = fs::read(run.path("out/reports").join(report)).expect(report);
        assert!(!content.is_empty(), "{report} is empty");
        assert!(!report.contains(".png") || image::load_from_memory(&content).is_ok(), "{report} is no picture");
    }
    let history = fs::read(run.path("out/reports/training_history.json")).expect("a report");
    let history: serde_json::Value = serde_json::from_slice(&history).expect("JSON");
    let series = |name: &str| -> Vec<f64> { serde_json::from_value(history[name].clone()).expect("numbers") };
    assert_eq!(result.best, series("val_acc").into_iter().reduce(f64::max), "{history}");
    assert_eq!(result.loss, series("train_loss").last().copied(), "{history}");
    let metrics = fs::read(run.path("out/reports/metrics.json")).expect("a report");
    let metrics: serde_json::Value = serde_json::from_slice(&metrics).expect("JSON");
    assert!(metrics["dataWaitShare"].as_f64().is_some_and(|share| (0.0..1.0).contains(&share)), "{metrics}");
    let page = fs::read_to_string(run.path("out/reports/report.html")).expect("a page");
    assert!(page.contains("the network waited for photos"), "{page}");
    assert_eq!(page.matches("<img ").count(), page.matches("src=\"data:image/png;base64,").count());
    let profile = info_of(&published).validation.expect("a profile of the validation split");
    assert_eq!((profile.images, profile.class_shares.len(), profile.confidence_histogram.len()), (60, 2, 10));

    // The published file is all that the other commands need.
    let picture = run.path("dog.png");
    let draw = ["synthesize", "--stdout", "--class", "dog", "--size", "32", "--seed", "9"];
    let drawn = trainer(draw).output().expect("a picture").stdout;
    let in_a_log = prints(&[&draw[..], &["--base64"]].concat());
    assert_eq!(BASE64_STANDARD.decode(in_a_log.trim_end()).as_ref(), Ok(&drawn));
    fs::write(&picture, drawn).expect("a file");
    let predicted = prints(&["predict", "--json", "--checkpoint", text(&published), text(&picture)]);
    assert!(predicted.contains(r#""prediction":"dog""#), "{predicted}");
    let data = "synthetic://?images=200&size=32&seed=4";
    let evaluated = prints(&["evaluate", "--json", "--checkpoint", text(&published), "--data", data]);
    let evaluated: serde_json::Value = serde_json::from_str(&evaluated).expect("JSON");
    assert!(evaluated["accuracy"].as_f64().is_some_and(|accuracy| accuracy >= 0.9), "{evaluated}");
    let inspected = prints(&["inspect", text(&published)]);
    assert!(inspected.contains("fc.weight") && inspected.contains("[2, 256]"), "{inspected}");
}

#[test]
fn with_flip_a_photo_and_its_mirror_image_are_answered_together() {
    let run = Run::new(&SMALL.replace("images=600", "images=60").replace("epochs: 3", "epochs: 1"));
    let model = run.path("out").join(run.train().succeeds().checkpoint);
    // What the network says about each photo and about its mirror image.
    for class in ["cat", "dog"] {
        for folder in ["as-drawn", "mirrored"] {
            fs::create_dir_all(run.path(folder).join(class)).expect("a folder");
        }
        for seed in 0..6 {
            let draw = ["synthesize", "--stdout", "--class", class, "--size", "32", "--seed", &seed.to_string()];
            let drawn = image::load_from_memory(&trainer(draw).output().expect("a picture").stdout).expect("a picture");
            let name = format!("{class}/{seed}.png");
            drawn.save(run.path("as-drawn").join(&name)).expect("a file");
            drawn.fliph().save(run.path("mirrored").join(&name)).expect("a file");
        }
    }
    let evaluated = |folder: &str, flip: &[&str]| -> serde_json::Value {
        let data = run.path(folder);
        let args = ["evaluate", "--json", "--checkpoint", text(&model), "--data", text(&data)];
        serde_json::from_str(&prints(&[&args, flip].concat())).expect("JSON")
    };
    let predicted = |folder: &str| -> Vec<f64> {
        let (cats, dogs) = (run.path(folder).join("cat"), run.path(folder).join("dog"));
        let lines = prints(&["predict", "--json", "--checkpoint", text(&model), text(&cats), text(&dogs)]);
        let own = |line: &str| {
            let said: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let class = if said["file"].as_str().expect("a path").contains("/cat/") { "cat" } else { "dog" };
            said["probabilities"][class].as_f64().expect("a probability")
        };
        lines.lines().map(own).collect()
    };
    let pairs: Vec<_> = predicted("as-drawn").into_iter().zip(predicted("mirrored")).collect();
    assert_eq!(pairs.len(), 12);
    let mean = |of: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(|pair| -of(pair).ln()).sum::<f64>() / 12.0;
    let loss = |value: &serde_json::Value| value["loss"].as_f64().expect("a loss");
    let (single, together) = (evaluated("as-drawn", &[]), evaluated("as-drawn", &["--flip"]));
    assert_eq!((single["flip"].as_bool(), together["flip"].as_bool()), (Some(false), Some(true)));
    assert!((loss(&single) - mean(&|pair| pair.0)).abs() < 1e-4, "{single} {pairs:?}");
    assert!((loss(&together) - mean(&|pair| f64::midpoint(pair.0, pair.1))).abs() < 1e-4, "{together} {pairs:?}");
    assert!((loss(&single) - loss(&together)).abs() > 1e-3, "nothing is to be seen here: {pairs:?}");
    let mirrored = evaluated("mirrored", &["--flip"]);
    assert!((loss(&mirrored) - loss(&together)).abs() < 1e-6, "{mirrored} {together}");
}

#[test]
fn a_job_is_told_by_its_environment_where_to_write_and_from_where_to_go_on() {
    let run = Run::new(&SMALL.replace("images=600", "images=60").replace("epochs: 3", "epochs: 1"));
    let first = run.train().in_a_job("").succeeds();
    assert!(run.path("claim").join(&first.checkpoint).exists());
    fs::rename(run.path("claim/runs/cats-1"), run.path("earlier")).expect("a directory");
    let mut second = run.train().in_a_job(text(&run.path("earlier/checkpoints"))).spawn();
    second.wait_for_line("going on from a checkpoint");
    assert_eq!(second.succeeds().epochs, 1);
}

#[test]
fn progress_is_answered_while_training_goes_on() {
    let run = Run::new(&SMALL.replace("epochs: 3", "epochs: 10000"));
    let mut child = run.train().args(["--progress-address", "127.0.0.1:0"]).spawn();
    let address = child.address();
    child.wait_for_line("\"epoch\":1,");
    let progress: anneal_api::progress::Progress =
        serde_json::from_str(&process::get(&address, "/progress")).expect("a progress");
    assert_eq!((progress.epoch >= 1, progress.epochs), (true, 10_000));
    assert!(progress.best.is_some() && progress.images_per_second.is_some());
    assert!(progress.data_wait_share.is_some_and(|share| (0.0..=1.0).contains(&share)), "{progress:?}");
    assert!(process::get(&address, "/metrics").contains("\nanneal_training_epochs 10000\n"));
    child.terminate();
    child.fails_as(FailureClass::Interrupted, "SIGTERM");
}

#[test]
fn a_run_moves_for_whoever_watches_it_while_photos_are_decoded_and_validated() {
    let long = SMALL.replace("images=600&size=32", "images=6000&size=128").replace("inputSize: 32", "inputSize: 128");
    let decoding = Run::new(&long);
    let mut child = decoding.train().args(["--progress-address", "127.0.0.1:0"]).spawn();
    let address = child.address();
    child.moves_while(&address, "photos are decoded", 2, |progress| progress.steps == 0);
    child.kill();
    let settings = SMALL.replace("epochs: 3", "epochs: 300").replace("batchSize: 16", "batchSize: 512");
    let validating = Run::new(&settings.replace("images=600", "images=8000"));
    let mut child = validating.train().args(["--progress-address", "127.0.0.1:0"]).spawn();
    let address = child.address();
    child.moves_while(&address, "it validates", 2, |at| at.step > 0 && at.step == at.steps / 300);
    child.kill();
}

#[test]
fn a_run_moves_for_whoever_watches_it_while_its_reports_are_drawn_and_written() {
    let run = Run::new(&SMALL.replace("images=600", "images=60").replace("epochs: 3", "epochs: 1"));
    let mut child = run.train().args(["--progress-address", "127.0.0.1:0"]).spawn();
    let address = child.address();
    // Before the first picture it moves four times: with the epoch, its checkpoint, and one batch of each of the two splits.
    child.moves_while(&address, "reports are written", 8, |progress| progress.epoch == progress.epochs);
    child.succeeds();
}

#[test]
fn links_in_a_dataset_are_followed_but_never_in_circles() {
    let run = Run::new("");
    let set = run.path("set");
    prints(&["synthesize", "--output", text(&set), "--images", "60", "--size", "32"]);
    let (cats, dogs) = (set.join("train/cat"), run.path("elsewhere"));
    fs::rename(set.join("train/dog"), &dogs).expect("a class");
    for (link, to) in [
        (set.join("train/dog"), dogs.as_path()),
        (cats.join("up"), Path::new("..")),
        (cats.join("round"), Path::new("round")),
        (set.join("notes.txt"), Path::new("nowhere.txt")),
        (cats.join("lost.png"), Path::new("nowhere.png")),
    ] {
        symlink(to, link).expect("a link");
    }
    let config = SMALL.replace("synthetic://?images=600&size=32", &format!("file://{}", text(&set)));
    let run = Run::new(&config.replace("epochs: 3", "epochs: 1"));
    let mut child = run.train().spawn();
    child.wait_for_line("leads back");
    let result = child.succeeds();
    assert_eq!((result.dataset.images, result.dataset.skipped), (60, 1));
    let skipped = fs::read_to_string(run.path("out/reports/skipped.txt")).expect("a list");
    assert!(skipped.starts_with("train/cat/lost.png: "), "{skipped}");
}

#[test]
fn a_run_that_is_stopped_while_it_loads_promises_no_checkpoint() {
    let run = Run::new(&SMALL.replace("images=600&size=32", "images=20000&size=64"));
    let mut child = run.train().args(["--progress-address", "127.0.0.1:0"]).spawn();
    child.wait_for_line("progress is answered");
    child.terminate();
    child.fails_as(FailureClass::Interrupted, "the next attempt loads it again");
}

#[test]
fn a_photo_to_classify_is_no_dataset() {
    let run = Run::new(&SMALL.replace("images=600", "images=60").replace("epochs: 3", "epochs: 1"));
    let model = run.path("out").join(run.train().succeeds().checkpoint);
    let predict = |path: &Path| {
        let done = trainer(["predict", "--checkpoint", text(&model), text(path)]).output().expect("the trainer");
        (done.status.code(), String::from_utf8(done.stderr).expect("text"))
    };
    fs::create_dir(run.path("empty")).expect("a folder");
    for (path, words) in [("nope.png", "nope.png"), ("empty", "holds no photo")] {
        let (code, said) = predict(&run.path(path));
        assert_eq!(code, Some(FailureClass::DataMissing.exit_code()), "{said}");
        assert!(said.contains(words) && said.contains("name photos") && !said.contains("dataset"), "{said}");
    }

    // Whoever reads the answers may have seen enough.
    let set = run.path("set");
    prints(&["synthesize", "--output", text(&set), "--images", "600", "--size", "32"]);
    let command = format!(
        "set -o pipefail; '{}' predict --json --checkpoint '{}' '{}' | head -n 1",
        env!("CARGO_BIN_EXE_anneal-trainer"),
        text(&model),
        text(&set)
    );
    let done = process::command("bash").args(["-c", &command]).output().expect("a shell");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.is_empty(), "{}: {said}", done.status);
}

/// The exit code of a command that fails, and what it says, which is no tale of its own insides.
fn refused(args: &[&str]) -> (Option<i32>, String) {
    let done = trainer(args).output().expect("the trainer");
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8(said).expect("text");
    assert!(!done.status.success() && !said.contains("panicked") && !said.contains("backtrace"), "{args:?}: {said}");
    (done.status.code(), said)
}

#[test]
fn every_command_says_what_to_do_about_a_checkpoint_that_it_cannot_use() {
    let run = Run::new(&SMALL.replace("images=600", "images=60").replace("epochs: 3", "epochs: 1"));
    let whole = fs::read(run.path("out").join(run.train().succeeds().checkpoint)).expect("a checkpoint");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 0xff;
    fs::create_dir(run.path("folder")).expect("a folder");
    fs::write(run.path("cut.pth"), &whole[..whole.len() / 2]).expect("a file");
    fs::write(run.path("damaged.pth"), damaged).expect("a file");
    fs::write(run.path("text.pth"), "no checkpoint").expect("a file");
    fs::write(run.path("empty.pth"), "").expect("a file");
    for (name, class, words) in [
        ("nowhere.pth", FailureClass::ModelNotFound, "check its path"),
        ("folder", FailureClass::LoadFailed, "is a folder; name a checkpoint in it"),
        ("cut.pth", FailureClass::LoadFailed, "copy it again"),
        ("damaged.pth", FailureClass::LoadFailed, "copy the file again"),
        ("text.pth", FailureClass::LoadFailed, "is no .pth file"),
        ("empty.pth", FailureClass::LoadFailed, "is no .pth file"),
    ] {
        let path = run.path(name);
        for args in [
            &["inspect", text(&path)][..],
            &["predict", "--checkpoint", text(&path), "photo.png"],
            &["evaluate", "--checkpoint", text(&path), "--data", "synthetic://"],
            &["export", "--checkpoint", text(&path), "--format", "onnx"],
        ] {
            let (code, said) = refused(args);
            assert_eq!(code, Some(class.exit_code()), "{args:?}: {said}");
            assert!(said.contains(words), "{args:?} says {said}");
        }
    }
}

#[test]
fn every_command_says_what_to_do_about_photos_and_files_that_it_cannot_use() {
    let run = Run::new(&SMALL.replace("images=600", "images=60").replace("epochs: 3", "epochs: 1"));
    let model = run.path("out").join(run.train().succeeds().checkpoint);
    let path = |name: &str| text(&run.path(name)).to_owned();
    for folder in ["folder", "photos", "three/cat", "three/dog", "three/lion"] {
        fs::create_dir_all(run.path(folder)).expect("a folder");
    }
    // The head of a bitmap of 20,000 pixels by 20,000.
    let mut huge = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
    huge.extend([20_000_u32.to_le_bytes(); 2].concat());
    huge.extend([&b"\x01\0\x18\0\0\0\0\0"[..], &[0; 20]].concat());
    let whole = trainer(["synthesize", "--stdout", "--size", "32"]).output().expect("a picture").stdout;
    let half = &whole[..whole.len() / 2];
    for (name, content) in [
        ("photos/empty.png", &b""[..]),
        ("photos/tiff.jpg", b"II*\0\x08\0\0\0"),
        ("cut.png", half),
        ("huge.bmp", &huge),
        ("file", b"text"),
        ("three/cat/1.png", &whole),
        ("three/dog/1.png", &whole),
        ("three/lion/1.png", &whole),
    ] {
        fs::write(run.path(name), content).expect("a file");
    }
    let formats = "known format; send JPEG, PNG, WebP, GIF or BMP";
    let predict = |name: &str| vec!["predict".to_owned(), "--checkpoint".to_owned(), path("model.pth"), path(name)];
    let evaluate = |data: &str| {
        let data = if data.is_empty() { String::new() } else { path(data) };
        ["evaluate", "--checkpoint", &path("model.pth"), "--data", &data].map(str::to_owned).to_vec()
    };
    let export = |to: &str| {
        ["export", "--checkpoint", &path("model.pth"), "--format", "onnx", "--output", &path(to)]
            .map(str::to_owned)
            .to_vec()
    };
    let with =
        |args: &[&str], name: &str| args.iter().map(|arg| (*arg).to_owned()).chain([path(name)]).collect::<Vec<_>>();
    fs::copy(model, run.path("model.pth")).expect("a checkpoint");
    let (corrupt, missing) = (FailureClass::DataCorrupt.exit_code(), FailureClass::DataMissing.exit_code());
    let (config, other) = (FailureClass::BadConfig.exit_code(), FailureClass::AppError.exit_code());
    for (args, code, words) in [
        (predict("photos/empty.png"), corrupt, formats),
        (predict("photos/tiff.jpg"), corrupt, formats),
        (predict("cut.png"), corrupt, "check that the file is complete"),
        (predict("huge.bmp"), corrupt, "make it smaller"),
        (predict("photos"), corrupt, "none of 2 photos"),
        (evaluate("nowhere"), missing, "check its path"),
        (evaluate("folder"), missing, "expected is a folder for each class"),
        (evaluate("file"), corrupt, "make it a plain tar"),
        (evaluate("three"), corrupt, "name the folders of photos after the checkpoint's classes"),
        (evaluate("three/cat"), corrupt, "has photos, but no folders"),
        (evaluate(""), 2, "a value is required for '--data <URI>'"),
        (export("nowhere/model.onnx"), other, "make the folder that it lies in first"),
        (export("folder"), other, "name a file"),
        (with(&["train", "--config"], "nowhere.yaml"), config, "name a YAML file"),
        (with(&["train", "--config"], "file"), config, "fields, such as `dataset"),
        (with(&["import", "--to"], "imported"), missing, "pipe a tar into this command"),
        (with(&["synthesize", "--output"], "file"), other, "a file is where a folder has to be"),
    ] {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let (found, said) = refused(&args);
        assert_eq!(found, Some(code), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?} says {said}");
        assert!(words == "none of 2 photos" || said.matches(words).count() == 1, "{args:?} says {said}");
    }

    // What can be used among them is used.
    let said = prints(&["predict", "--json", "--checkpoint", &path("model.pth"), &path("photos"), &path("three/cat")]);
    assert_eq!((said.matches("\"error\"").count(), said.matches("\"prediction\"").count()), (2, 1), "{said}");
    // A link stays one: whoever names /dev/stdout does not want a file in its place.
    symlink("real.onnx", run.path("link.onnx")).expect("a link");
    fs::write(run.path("real.onnx"), "").expect("a file");
    prints(&["export", "--checkpoint", &path("model.pth"), "--format", "onnx", "--output", &path("link.onnx")]);
    assert!(run.path("link.onnx").is_symlink() && fs::metadata(run.path("real.onnx")).expect("a file").len() > 0);
}

#[test]
fn a_run_with_another_schedule_is_refused_by_what_was_changed() {
    let run = Run::new(&SMALL.replace("images=600", "images=60").replace("epochs: 3", "epochs: 1"));
    run.train().succeeds();
    let other = SMALL.replace("images=600", "images=60").replace("epochs: 3", "epochs: 2, schedule: Cosine");
    fs::write(run.path("run.yaml"), other).expect("a configuration");
    let failure = run.train().fails_as(FailureClass::BadConfig, "hyperparameters.schedule");
    assert!(!failure.message.contains("epochs is"), "{failure:?}");
}

#[test]
fn pictures_of_a_short_run_are_drawn_without_a_word() {
    let run = Run::new(&SMALL.replace("images=600", "images=60").replace("epochs: 3", "epochs: 1"));
    let mut child = run.train().spawn();
    let said = child.reads_to_the_end();
    assert!(!said.contains("WARN"), "{said}");
}

#[test]
fn inspect_tells_of_whatever_a_pth_file_holds() {
    let run = Run::new("");
    let ones = |shape: &[usize]| {
        let count: usize = shape.iter().product();
        let data = 1.0_f32.to_le_bytes().repeat(count);
        Value::Tensor(TensorData::new(DType::F32, shape.to_vec(), data).expect("a tensor"))
    };
    let weights = || Value::Dict(Dict::ordered([("fc.weight", ones(&[2, 3])), ("fc.bias", ones(&[2]))]));
    let newer = Value::Str(r#"{"format": 2, "network": "improved"}"#.to_owned());
    for (value, words) in [
        (
            Value::Dict(Dict::plain([("state_dict", weights()), ("epoch", Value::Int(7))])),
            ["epoch: 7", "2 tensors, 8 numbers"],
        ),
        (Value::Dict(Dict::plain([("epoch", Value::Int(3))])), ["epoch: 3", "0 tensors"]),
        (Value::List(vec![Value::Int(5), ones(&[4])]), ["0: 5", "1  float32"]),
        (
            Value::Dict(Dict::plain([("model_state_dict", weights()), ("anneal", newer)])),
            ["\"format\": 2", "fc.weight"],
        ),
    ] {
        let path = run.path("any.pth");
        anneal_pth::write(&mut fs::File::create(&path).expect("a file"), &value).expect("a file");
        let said = prints(&["inspect", text(&path)]);
        assert!(words.iter().all(|words| said.contains(words)), "{words:?} are not in {said}");
    }
    // What cannot be served says so by its format.
    let said = trainer(["export", "--format", "onnx", "--checkpoint", text(&run.path("any.pth"))]).output();
    let said = String::from_utf8(said.expect("the trainer").stderr).expect("text");
    assert!(said.contains("its format is 2, this version reads 1"), "{said}");
}

#[test]
fn a_photo_that_the_volume_does_not_give_now_may_be_there_for_the_next_attempt() {
    let run = Run::new("");
    let set = run.path("set");
    prints(&["synthesize", "--output", text(&set), "--images", "60", "--size", "32"]);
    // Reading its first page is an input/output error.
    symlink("/proc/self/mem", set.join("train/cat/away.png")).expect("a link");
    let config = SMALL.replace("synthetic://?images=600&size=32", &format!("file://{}", text(&set)));
    Run::new(&config).train().fails_as(FailureClass::AppError, "away.png");
}

#[test]
fn a_tar_that_lies_about_lengths_or_is_none_is_named() {
    let run = Run::new("");
    let path = run.path("set.tar");
    let tar = |bytes: u64| {
        let mut tar = tar::Builder::new(Vec::new());
        for name in ["cat/1.jpg", "cat/2.jpg", "cat/3.jpg", "dog/1.jpg", "dog/2.jpg", "dog/3.jpg"] {
            let mut header = tar::Header::new_gnu();
            header.set_path(name).expect("a name");
            header.set_size(if name == "dog/3.jpg" { bytes } else { 4 });
            header.set_cksum();
            tar.append(&header, &b"text"[..]).expect("an entry");
        }
        tar.into_inner().expect("a tar")
    };
    let config = SMALL.replace("synthetic://?images=600&size=32", &format!("file://{}", text(&path)));
    let whole = tar(4);
    for (content, words) in [
        (tar(4 << 40), "the file ends before dog/3.jpg does"),
        (whole[..whole.len() - 1536].to_vec(), "the file ends before dog/3.jpg does"),
        (whole[..700].to_vec(), "copy it again"),
        (b"\x1f\x8b\x08 and so on".to_vec(), "compressed by gzip"),
        (b"PK\x03\x04 and so on".to_vec(), "is a zip"),
        (vec![b'x'; 4096], "is no tar"),
    ] {
        fs::write(&path, content).expect("a file");
        Run::new(&config).train().fails_as(FailureClass::DataCorrupt, words);
    }
}

#[test]
fn every_failure_has_its_class_exit_code_and_words() {
    let pictures = Run::new("");
    prints(&["synthesize", "--output", text(&pictures.path("set")), "--images", "60", "--size", "32"]);
    let set = pictures.path("set");
    let one_class = pictures.path("one");
    fs::create_dir_all(&one_class).expect("a folder");
    fs::rename(set.join("val/cat"), one_class.join("cat")).expect("a class");
    fs::rename(set.join("val/dog"), pictures.path("dogs")).expect("a class");
    let damaged = pictures.path("damaged");
    for class in ["cat", "dog"] {
        fs::create_dir_all(damaged.join(class)).expect("a folder");
        (0..9).for_each(|i| fs::write(damaged.join(class).join(format!("{i}.jpg")), "no photo").expect("a file"));
    }

    let with_data =
        |path: &Path| SMALL.replace("synthetic://?images=600&size=32", &format!("file://{}", path.display()));
    for (config, class, words) in [
        (with_data(&pictures.path("nowhere")), FailureClass::DataMissing, "does not exist"),
        (with_data(&one_class), FailureClass::DataCorrupt, "one class only"),
        (with_data(&damaged), FailureClass::DataCorrupt, "more than 5 %"),
        (
            SMALL.replace("epochs", "epoch"),
            FailureClass::BadConfig,
            "unknown field `hyperparameters.epoch`, expected one of `augmentation`, `batchSize`, `classWeights`",
        ),
        (SMALL.replace("epochs: 3", "epochs: 0"), FailureClass::BadConfig, "must be between 1 and 10000"),
        (
            SMALL.replace("epochs: 3", "epochs: 3, learningRate: 100, weightDecay: 1, optimizer: SGD"),
            FailureClass::Diverged,
            "lower hyperparameters.learningRate",
        ),
    ] {
        let failure = Run::new(&config).train().fails_as(class, words);
        assert_eq!(failure.step.is_some(), class == FailureClass::Diverged, "{failure:?}");
    }
}

#[test]
fn a_run_that_diverges_names_step_and_learning_rate() {
    let run = Run::new(&SMALL.replace("epochs: 3", "epochs: 3, learningRate: 100, weightDecay: 1, optimizer: SGD"));
    let failure = run.train().fails_as(FailureClass::Diverged, "with a learning rate of 100");
    let step = failure.step.expect("a step");
    assert!(failure.message.contains(&format!("at step {}", step + 1)), "{failure:?}");
}

/// Whether all floating-point numbers of a checkpoint are numbers: those of the weights and of whatever else it holds.
fn is_finite(path: &Path) -> bool {
    fn all_in(value: &Value) -> bool {
        match value {
            Value::Tensor(tensor) if tensor.dtype() == DType::F32 => {
                let numbers = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                numbers.into_iter().all(f32::is_finite)
            }
            Value::Dict(dict) => dict.entries.iter().all(|(_, value)| all_in(value)),
            _ => true,
        }
    }
    let Checkpoint { state, extra, .. } = Checkpoint::load(path).expect("a checkpoint");
    all_in(&state.into_value()) && extra.iter().all(|(_, value)| all_in(value))
}

#[test]
fn a_run_that_diverges_leaves_only_checkpoints_that_can_be_gone_on_from() {
    let sgd = "optimizer: SGD, weightDecay: 1";
    for more in [sgd, &format!("{sgd}, maxGradientNorm: 1"), "optimizer: Adam, emaDecay: 0.9"] {
        let settings = format!("epochs: 3, learningRate: 100, {more}");
        let run = Run::new(&(SMALL.replace("epochs: 3", &settings) + "checkpoints: {intervalSteps: 1}\n"));
        let mut child = run.train().spawn();
        child.wait_for_line("checkpoint written");
        let end = child.code();
        assert!(end == Some(FailureClass::Diverged.exit_code()) || end == Some(0), "{more:?}: {end:?}");
        let files =
            fs::read_dir(run.path("out/checkpoints")).expect("a folder").map(|file| file.expect("a file").path());
        let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == "pth")).collect();
        assert!(!files.is_empty());
        for path in files {
            assert!(is_finite(&path), "{more:?}: {path:?} holds numbers that are none");
        }
    }
}

#[test]
fn the_best_checkpoint_answers_as_the_published_model_does_where_weights_are_averaged() {
    let run = Run::new(&SMALL.replace("epochs: 3", "epochs: 2, emaDecay: 0.99"));
    let published = run.path("out").join(run.train().succeeds().checkpoint);
    let data = "synthetic://?images=60&size=32&seed=4";
    let evaluated = |path: &Path| prints(&["evaluate", "--json", "--checkpoint", text(path), "--data", data]);
    assert_eq!(evaluated(&run.path("out/checkpoints/best_model.pth")), evaluated(&published));
}

#[test]
fn what_is_published_is_measured_as_it_will_be_served_whatever_it_was_trained_in() {
    // With a test split of its own, so that both measure the same photos.
    let dir = tempfile::tempdir().expect("a folder");
    prints(&["synthesize", "--output", text(dir.path()), "--images", "200", "--size", "32"]);
    let data = &format!("file://{}", text(dir.path()));
    let config = SMALL.replace("synthetic://?images=600&size=32", data);
    let run = Run::new(&config.replace("epochs: 3", "epochs: 1, precision: bfloat16"));
    let published = run.path("out").join(run.train().succeeds().checkpoint);
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
    let evaluated = json(&prints(&["evaluate", "--json", "--checkpoint", text(&published), "--data", data]));
    let measured = json(&fs::read_to_string(run.path("out/reports/metrics.json")).expect("a report"));
    let loss = |of: &serde_json::Value| of["loss"].as_f64().expect("a loss");
    // bfloat16 rounds at the third digit.
    assert!((loss(&measured) - loss(&evaluated)).abs() < 1e-7, "{measured} {evaluated}");
}

#[test]
fn a_run_that_gets_no_better_ends_early_with_its_best_epoch() {
    let config = SMALL.replace("images=600", "images=60");
    // Where no step changes a weight, only the running statistics move, and those settle.
    let settings = "epochs: 50, earlyStoppingEpochs: 2, learningRate: 1.0e-9, optimizer: SGD";
    let run = Run::new(&config.replace("epochs: 3", settings));
    let mut child = run.train().spawn();
    child.wait_for_line("training ends early");
    let result = child.succeeds();
    assert!((3..50).contains(&result.epochs), "{result:?}");
}

#[test]
fn memory_that_runs_out_is_a_failure_of_its_own() {
    // A batch whose activations alone take gigabytes, in an address space that has none to give.
    let config = SMALL.replace("images=600&size=32", "images=1200&size=128").replace("inputSize: 32", "inputSize: 128");
    let run = Run::new(&config.replace("batchSize: 16", "batchSize: 1024"));
    let trainer = format!(
        "ulimit -v 3000000; exec '{}' train --config '{}' --output '{}' --termination-log '{}'",
        env!("CARGO_BIN_EXE_anneal-trainer"),
        run.path("run.yaml").display(),
        run.path("out").display(),
        run.path("message").display()
    );
    let done = process::command("bash").args(["-c", &trainer]).output().expect("a shell");
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(FailureClass::OutOfMemory.exit_code()), "{said}");
    let TerminationMessage::Failure(failure) = run.message() else { panic!("{said}") };
    assert_eq!((failure.class, failure.step), (FailureClass::OutOfMemory, Some(0)), "{failure:?}");
}

#[test]
fn a_run_begins_with_anothers_weights_and_keeps_what_is_frozen() {
    let base = Run::new(&SMALL.replace("images=600", "images=60").replace("epochs: 3", "epochs: 1"));
    let published = base.train().succeeds();
    let model = base.path("out").join(&published.checkpoint);
    let weights = |path: &Path| Checkpoint::load(path).expect("a checkpoint").state;
    let config = |init: &str| {
        let config = SMALL.replace("images=600", "images=60").replace("epochs: 3", "epochs: 2");
        format!("{config}initFrom: {{checkpoint: '{}', {init}}}\n", text(&model))
    };

    let run = Run::new(&config(&format!("sha256: {}, freeze: [conv1, bn1, layer1, layer2.0]", published.sha256)));
    let mut child = run.train().spawn();
    let line = child.wait_for_line("weights of another run");
    assert!(line.contains("\"new\":\"\"") && line.contains("\"kept\":93"), "{line}");
    child.wait_for_line("checkpoint written");
    child.terminate();
    child.code();
    let result = run.train().succeeds();
    let (before, after) = (weights(&model), weights(&run.path("out").join(&result.checkpoint)));
    let frozen = |name: &str| ["conv1.", "bn1.", "layer1.", "layer2.0."].iter().any(|prefix| name.starts_with(prefix));
    for ((name, before), (_, after)) in before.0.iter().zip(&after.0) {
        assert_eq!(before == after, frozen(name), "{name}");
    }
    // What is frozen has no state in the optimiser either, and the run that was interrupted is as good as one that was not.
    let last = Checkpoint::load(run.path("out/checkpoints/last_checkpoint.pth")).expect("a checkpoint");
    let slots = last.get("optimizer_state_dict").and_then(|state| state.as_dict()?.get("state")?.as_dict());
    let trained =
        after.0.iter().filter(|(name, _)| !frozen(name) && !name.contains("running") && !name.contains("num_b"));
    assert_eq!(slots.map(|slots| slots.entries.len()), Some(trained.count()));
    let whole = Run::new(&config(&format!("sha256: {}, freeze: [conv1, bn1, layer1, layer2.0]", published.sha256)));
    assert_eq!(whole.train().succeeds().sha256, result.sha256);

    // Other classes: another last layer.
    let set = base.path("set");
    prints(&["synthesize", "--output", text(&set), "--images", "60", "--size", "32"]);
    for split in ["train", "val", "test"] {
        fs::rename(set.join(split).join("cat"), set.join(split).join("lion")).expect("a folder");
    }
    let other = config("").replace("synthetic://?images=60&size=32", &format!("file://{}", text(&set)));
    let mut child = Run::new(&other);
    let mut training = child.train().spawn();
    let line = training.wait_for_line("weights of another run");
    assert!(line.contains("fc.weight, fc.bias") && line.contains("\"kept\":91"), "{line}");
    assert_eq!(training.succeeds().classes, ["dog", "lion"]);
    child = Run::new(&config("freeze: [layer9]"));
    child.train().fails_as(FailureClass::BadConfig, "there are conv1, bn1, layer1, layer2, layer3, fc");
    let wrong = config(&format!("sha256: '{}'", "0".repeat(64)));
    Run::new(&wrong).train().fails_as(FailureClass::DigestMismatch, "correct initFrom.sha256");
    let nowhere = config("").replace(text(&model), "/nowhere.pth");
    Run::new(&nowhere).train().fails_as(FailureClass::ModelNotFound, "/nowhere.pth");
}

#[test]
fn photos_in_a_folder_and_in_a_tar_are_the_same_dataset() {
    let run = Run::new("");
    let set = run.path("set");
    prints(&["synthesize", "--output", text(&set), "--images", "60", "--size", "32"]);
    fs::write(set.join("train/cat/broken.png"), "no photo").expect("a file");
    fs::write(set.join("train/stray.png"), "of no class").expect("a file");
    let first = fs::read_dir(set.join("train/dog")).expect("a folder").next().expect("a photo").expect("a photo");
    fs::copy(first.path(), set.join("val/dog/again.png")).expect("a copy");
    let mut tar = tar::Builder::new(fs::File::create(run.path("set.tar")).expect("a file"));
    tar.append_dir_all("photos", &set).expect("a tar");
    tar.finish().expect("a tar");

    let digests = [set, run.path("set.tar")].map(|path| {
        let config = SMALL
            .replace("synthetic://?images=600&size=32", &format!("file://{}", path.display()))
            .replace("epochs: 3", "epochs: 1");
        let run = Run::new(&config);
        let result = run.train().succeeds();
        assert_eq!((result.dataset.images, result.dataset.skipped), (61, 2));
        let listed = |name| fs::read_to_string(run.path("out/reports").join(name)).expect(name);
        assert!(listed("skipped.txt").starts_with("train/cat/broken.png: "), "{}", listed("skipped.txt"));
        assert!(listed("skipped.txt").contains("train/stray.png: it lies beside"), "{}", listed("skipped.txt"));
        assert!(listed("duplicates.txt").starts_with("val/dog/again.png (val) is the same photo as train/dog/"));
        result.dataset.digest
    });
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn an_imported_tar_stays_in_its_folder() {
    let run = Run::new("");
    let target = run.path("claim");
    let good = import(&target, &[("cat/a.jpg", "a"), ("./dog/b.jpg", "b")]);
    assert_eq!(good, Ok("2 files, 2 bytes".to_owned()));
    assert_eq!(fs::read(target.join("dog/b.jpg")).expect("a file"), b"b");
    // A file is there whole or not at all, whoever reads it meanwhile, and a link is replaced, not written through.
    symlink(run.path("run.yaml"), target.join("cat/link.jpg")).expect("a link");
    let held = fs::File::open(target.join("cat/a.jpg")).expect("a file");
    assert!(import(&target, &[("cat/a.jpg", "another"), ("cat/link.jpg", "new")]).is_ok());
    let mut content = String::new();
    (&held).read_to_string(&mut content).expect("a file");
    assert_eq!((content.as_str(), fs::read(target.join("cat/a.jpg")).expect("a file")), ("a", b"another".to_vec()));
    assert_eq!(fs::read(run.path("run.yaml")).expect("a file"), b"");
    let names: BTreeSet<_> =
        fs::read_dir(target.join("cat")).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names, BTreeSet::from(["a.jpg".into(), "link.jpg".into()]));
    for name in ["../outside.jpg", "cat/../../outside.jpg", "/outside.jpg"] {
        let refusal = import(&target, &[(name, "x")]).expect_err(name);
        assert!(refusal.contains("make the tar of plain files with relative names"), "{refusal}");
    }
    assert!(!run.path("outside.jpg").exists());

    // A link that lies in the folder already is no way out either.
    symlink(run.path(""), target.join("link")).expect("a link");
    assert!(import(&target, &[("link/outside.jpg", "x")]).is_err());
    assert!(!run.path("outside.jpg").exists());
}

#[test]
fn the_result_of_another_program_is_not_what_is_left_behind() {
    let run = Run::new(&SMALL.replace("epochs: 3", "epochs: 0"));
    fs::write(run.path("message"), "x".repeat(9000)).expect("a file");
    run.train().fails_as(FailureClass::BadConfig, "epochs");
    let mut message = String::new();
    fs::File::open(run.path("message")).expect("a message").read_to_string(&mut message).expect("text");
    assert!(matches!(TerminationMessage::parse(&message), Ok(TerminationMessage::Failure(_))), "{message}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
