//! A run is recorded at a real MLflow server, through a network that is worse than any real one.

#![allow(clippy::expect_used, reason = "all of this is test code")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod process;

use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use process::{
    Run, command, prints,
    tools::{Server, free_port, slow, tool, tools, unreliable},
    trainer,
};

/// Connections that fail before the first one is let through, and how many of the others keep their answer.
const REFUSED: usize = 3;
const LOSE_EVERY: usize = 5;

const SCRIPT: &str = r"
import json, sys, mlflow, numpy
from PIL import Image
uri, picture, expected = sys.argv[1:4]
mlflow.set_tracking_uri(uri)
client = mlflow.MlflowClient()
experiment = client.get_experiment_by_name('pets')
runs = client.search_runs([experiment.experiment_id])
assert len(runs) == 1, runs
run = runs[0]
assert run.info.status == 'FINISHED' and run.info.run_name == 'cats', run.info
assert run.data.params['epochs'] == '3' and run.data.params['model.inputSize'] == '32', run.data.params
assert run.data.tags['dataset.digest'].startswith('sha256:'), run.data.tags
for key in ['train_loss', 'train_acc', 'val_loss', 'val_acc', 'learning_rate']:
    points = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
    assert [step for step, _ in points] == [1, 2, 3], (key, points)
assert 0 <= run.data.metrics['test_accuracy'] <= 1
names = lambda path: {f.path for f in client.list_artifacts(run.info.run_id, path)}
for name in ['training_curves.png', 'confusion_matrix.png', 'roc_curve.png', 'report.html', 'metrics.json']:
    assert 'reports/' + name in names('reports'), names('reports')
assert names('weights') == {'weights/best_model.pth'}
version = client.get_model_version_by_alias('pets-model', 'champion')
assert version.run_id == run.info.run_id and version.version in (1, '1'), version
import onnxruntime
model = mlflow.onnx.load_model('models:/pets-model@champion')
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
pixels = numpy.asarray(Image.open(picture).convert('RGB'), numpy.float32) / 255
image = ((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None].astype(numpy.float32)
probabilities = session.run(['probabilities'], {'input': image})[0][0]
ours = json.loads(expected)['probabilities']
assert abs(probabilities - [ours['cat'], ours['dog']]).max() < 1e-4, (probabilities, ours)
loaded = mlflow.pyfunc.load_model('models:/pets-model@champion').predict(image)
assert abs(loaded['probabilities'] - probabilities).max() < 1e-5
";

/// A server that keeps everything in a folder.
fn mlflow(dir: &Path, port: u16) -> Server {
    let mut command = Command::new(tools().join("venv/bin/mlflow"));
    command.args(["server", "--host", "127.0.0.1", "--port", &port.to_string(), "--workers", "1", "--serve-artifacts"]);
    command.args(["--backend-store-uri", &format!("sqlite:///{}", dir.join("mlflow.db").display())]);
    command.args(["--artifacts-destination", text(&dir.join("artifacts"))]).current_dir(dir);
    // Otherwise it starts seven more processes, for what these tests have no use for.
    command.env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false");
    Server::start(command, port)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// What `sync` says, and whether it succeeded.
fn sync(run: &Path) -> (bool, String) {
    let done = trainer(["sync", text(run)]).output().expect("the trainer");
    let said = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8(said).expect("text"))
}

#[test]
fn mlflow_has_every_record_once_though_it_was_down_and_answers_were_lost() {
    let dir = tempfile::tempdir().expect("a folder");
    let (real, path) = (free_port(), |name: &str| dir.path().join(name).display().to_string());
    let port = unreliable(real, REFUSED, LOSE_EVERY);
    let run = Run::new(&format!(
        "name: cats
model: {{inputSize: 32}}
dataset: {{uri: 'synthetic://?images=60&size=32'}}
hyperparameters: {{epochs: 3, batchSize: 16, threads: 1}}
tracking: {{mlflow: {{uri: 'http://127.0.0.1:{port}', experiment: pets, registeredModel: pets-model, alias: champion}}}}
"
    ));
    // The server is not there yet: training neither waits nor fails.
    let mut child = run.train().spawn();
    child.wait_for_line("does not take the records");
    let _server = mlflow(dir.path(), real);
    let result = child.succeeds();

    // What is left is sent later; a command that meets a lost answer says so, and is given again.
    let out = run.path("out").display().to_string();
    let mut tries = 0;
    while !trainer(["sync", &out]).output().expect("the trainer").status.success() {
        tries += 1;
        assert!(tries < 20, "sync does not come to an end");
    }
    assert_eq!(prints(&["sync", &out]), "0 records sent\n");
    assert!(!run.path("out/tracking/refused.jsonl").exists());

    let picture = path("cat.png");
    let drawn = trainer(["synthesize", "--stdout", "--class", "cat", "--size", "32", "--seed", "3"]).output();
    fs::write(&picture, drawn.expect("a picture").stdout).expect("a file");
    let model = run.path("out").join(&result.checkpoint).display().to_string();
    let expected = prints(&["predict", "--json", "--checkpoint", &model, &picture]);
    tool("python", &["-c", SCRIPT, &format!("http://127.0.0.1:{real}"), &picture, &expected], dir.path());
}

const FINAL: &str = r"
import json, sys, mlflow
uri, split, report = sys.argv[1:4]
mlflow.set_tracking_uri(uri)
client = mlflow.MlflowClient()
run, = client.search_runs([client.get_experiment_by_name(split).experiment_id])
report = json.load(open(report))
best, last = report['bestEpoch'], report['epochs']
# It ended early, and the epoch that is published was not its last one.
assert report['split'] == split and best < last < 50, report
history = lambda key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
names = ['accuracy', 'precision', 'recall', 'f1'] + ['loss'] * (split == 'test')
for name in names:
    (step, value), = history(f'{split}_{name}')
    assert step == best and abs(value - report[name]) < 1e-9, (name, step, value, report)
everything = {f'{split}_{name}' for name in names} | {'train_loss', 'train_acc', 'val_loss', 'val_acc'}
found = {key for key in run.data.metrics if key.startswith(('train_', 'val_', 'test_'))}
assert found == everything, found ^ everything
for key in ['val_loss', 'data_wait_share']:
    assert [step for step, _ in history(key)] == list(range(1, last + 1)), (key, history(key))
assert all(0 <= share <= 1 for _, share in history('data_wait_share'))
";

#[test]
fn final_metrics_are_named_after_their_split_and_belong_to_the_epoch_that_is_published() {
    let dir = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let _server = mlflow(dir.path(), port);
    let (uri, set) = (format!("http://127.0.0.1:{port}"), dir.path().join("set"));
    prints(&["synthesize", "--output", text(&set), "--images", "60", "--size", "32"]);
    for split in ["test", "val"] {
        if split == "val" {
            fs::rename(set.join("test"), dir.path().join("kept")).expect("a folder");
        }
        // Where no step changes a weight, only the running statistics move, and those settle.
        let run = Run::new(&format!(
            "model: {{inputSize: 32}}
dataset: {{uri: 'file://{}'}}
hyperparameters: {{epochs: 50, earlyStoppingEpochs: 2, learningRate: 1.0e-9, optimizer: SGD, batchSize: 16, threads: 1}}
tracking: {{mlflow: {{uri: '{uri}', experiment: {split}}}}}
",
            set.display()
        ));
        run.train().succeeds();
        let (done, said) = sync(&run.path("out"));
        assert!(done, "{said}");
        tool("python", &["-c", FINAL, &uri, split, text(&run.path("out/reports/metrics.json"))], dir.path());
    }
}

const ARTIFACTS: &str = r"
import sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
client = mlflow.MlflowClient()
run, = client.search_runs([client.get_experiment_by_name('Default').experiment_id])
names = lambda path: {f.path for f in client.list_artifacts(run.info.run_id, path)}
assert 'reports/report.html' in names('reports') and 'model/MLmodel' in names('model'), names('')
assert names('weights') == {'weights/best_model.pth'}
assert run.info.status == 'FINISHED', run.info
";

#[test]
fn records_are_sent_from_wherever_the_volume_is_mounted_and_none_is_given_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let run = Run::new(&format!(
        "model: {{inputSize: 32}}
dataset: {{uri: 'synthetic://?images=60&size=32'}}
hyperparameters: {{epochs: 1, batchSize: 16, threads: 1}}
tracking: {{mlflow: {{uri: 'http://127.0.0.1:{port}', experiment: Default}}}}
"
    ));
    run.train().in_a_job("").succeeds();
    fs::rename(run.path("claim"), run.path("elsewhere")).expect("another place");
    let output = run.path("elsewhere/runs/cats-1");
    let _server = mlflow(dir.path(), port);

    // A file that is missing now may be there later.
    let (report, kept) = (output.join("reports/report.html"), run.path("report.html"));
    fs::rename(&report, &kept).expect("a file");
    let (done, said) = sync(&output);
    assert!(!done && said.contains("report.html"), "{said}");
    fs::rename(&kept, &report).expect("a file");
    let (done, said) = sync(&output);
    assert!(done && said.contains("records sent"), "{said}");
    tool("python", &["-c", ARTIFACTS, &format!("http://127.0.0.1:{port}")], dir.path());

    // What the server refuses for good is no success.
    let events = output.join("tracking/events.jsonl");
    let sent = fs::read_to_string(&events).expect("records");
    fs::write(&events, sent + "{\"event\": \"tags\", \"tags\": [[\"../name\", \"a name that is a path\"]]}\n")
        .expect("a record");
    let (done, said) = sync(&output);
    assert!(!done && said.contains("refused.jsonl") && said.contains("0 records were sent"), "{said}");
    assert_eq!(prints(&["sync", text(&output)]), "0 records sent\n");
}

#[test]
fn training_does_not_wait_for_a_server_that_is_slow() {
    let dir = tempfile::tempdir().expect("a folder");
    let real = free_port();
    let _server = mlflow(dir.path(), real);
    // A server that takes longer for an answer than the whole run does for its epochs.
    let (port, answered) = slow(real, Duration::from_mins(1));
    let run = Run::new(&format!(
        "model: {{inputSize: 32}}
dataset: {{uri: 'synthetic://?images=60&size=32'}}
hyperparameters: {{epochs: 3, batchSize: 16, threads: 1}}
tracking: {{mlflow: {{uri: 'http://127.0.0.1:{port}', experiment: Default}}}}
"
    ));
    let mut child = run.train().args(["--progress-address", "127.0.0.1:0"]).spawn();
    let address = child.address();
    child.wait_for_line("\"epoch\":3,");
    // Each epoch is a record of its own, after three about the run.
    let answers = answered.load(Ordering::SeqCst);
    assert!(answers < 4, "{answers} answers came before the last epoch");
    // When all is done it waits for the server for a while, and is not stalled.
    let result = run.path("out/result.json");
    child.moves_while(&address, "it waits for the server", 20, |_| result.exists());
    child.succeeds();
    let uri = format!("http://127.0.0.1:{real}");
    let sent = prints(&["sync", text(&run.path("out")), "--uri", &uri]);
    assert!(sent.ends_with("records sent\n"), "{sent}");
    tool("python", &["-c", ARTIFACTS, &uri], dir.path());
}

const DIED: &str = r"
import sys, mlflow
uri, commit = sys.argv[1:3]
mlflow.set_tracking_uri(uri)
client = mlflow.MlflowClient()
run, = client.search_runs([client.get_experiment_by_name('Default').experiment_id])
# It was interrupted, and goes on some day.
assert run.info.status == 'RUNNING', run.info
history = lambda key: client.get_metric_history(run.info.run_id, key)
steps = [point.step for point in history('train_loss')]
assert steps == list(range(1, len(steps) + 1)) and len(steps) > 2, steps
for key, least, most in [
    ('system/cpu_utilization_percentage', 1, 400),
    ('system/system_memory_usage_megabytes', 50, 8000),
    ('system/network_receive_megabytes', 0, 1e9),
    ('system/network_transmit_megabytes', 0, 1e9),
]:
    points = history(key)
    assert points and all(least <= point.value <= most for point in points), (key, points)
    assert [point.step for point in points] == list(range(len(points))), (key, points)
assert run.data.tags['mlflow.source.git.commit'] == commit, run.data.tags
assert run.data.tags['anneal.image'] == 'registry/trainer:1' and run.data.tags['anneal.attempt'] == '2', run.data.tags
";

#[test]
fn a_server_that_dies_during_a_run_has_all_of_it_later_with_the_systems_metrics_and_the_commit() {
    let dir = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let server = mlflow(dir.path(), port);
    let run = Run::new(&format!(
        "model: {{inputSize: 32}}
dataset: {{uri: 'synthetic://?images=600&size=32'}}
hyperparameters: {{epochs: 9000, batchSize: 16, threads: 1}}
tracking: {{mlflow: {{uri: 'http://127.0.0.1:{port}', experiment: Default}}}}
"
    ));
    // A further worktree of a repository whose branches are packed is the hardest place to find a commit in.
    let (repository, checkout) = (run.path("repository"), run.path("checkout"));
    fs::create_dir(&repository).expect("a folder");
    let git = |args: &[&str]| {
        let identity = ["-c", "user.name=Someone", "-c", "user.email=someone@example.org"];
        let done = command("git").args(identity).args(args).current_dir(&repository).output().expect("git");
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).expect("text").trim().to_owned()
    };
    git(&["init", "--quiet"]);
    git(&["commit", "--quiet", "--allow-empty", "--message", "Begin"]);
    git(&["worktree", "add", "--quiet", "-b", "some/work", text(&checkout)]);
    git(&["pack-refs", "--all"]);
    let commit = git(&["rev-parse", "some/work"]);

    let job = [("ANNEAL_IMAGE", "registry/trainer:1"), ("ANNEAL_ATTEMPT", "2")];
    let mut child = run.train().current_dir(&checkout).envs(job).spawn();
    let events = run.path("out/tracking/events.jsonl");
    let until = Instant::now() + Duration::from_mins(2);
    while !fs::read_to_string(&events).is_ok_and(|events| events.contains("system/cpu")) {
        assert!(Instant::now() < until && child.is_running(), "no metric of the system is recorded");
        thread::sleep(Duration::from_millis(100));
    }
    drop(server);
    child.wait_for_line("does not take the records");
    let _server = mlflow(dir.path(), port);
    child.wait_for_line("takes records again");
    child.terminate();
    assert_eq!(child.code(), Some(143));
    let (done, said) = sync(&run.path("out"));
    assert!(done, "{said}");
    tool("python", &["-c", DIED, &format!("http://127.0.0.1:{port}"), &commit], dir.path());
}
