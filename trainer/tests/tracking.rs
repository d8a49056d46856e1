//! A run is recorded at a real MLflow server, through a network that is worse than any real one.

#![allow(clippy::expect_used, reason = "all of this is test code")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod process;

use std::{fs, process::Command};

use process::{
    Run, prints,
    tools::{Server, free_port, tool, tools, unreliable},
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
    let mut command = Command::new(tools().join("venv/bin/mlflow"));
    command.args(["server", "--host", "127.0.0.1", "--port", &real.to_string(), "--workers", "1", "--serve-artifacts"]);
    command.args(["--backend-store-uri", &format!("sqlite:///{}", path("mlflow.db"))]);
    command.args(["--artifacts-destination", &path("artifacts")]).current_dir(dir.path());
    // Otherwise it starts seven more processes, for what this test has no use for.
    command.env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false");
    let _server = Server::start(command, real);
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
