//! What a run leaves behind, as PyTorch sees it.

#![allow(clippy::expect_used, reason = "all of this is test code")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod process;

use std::process::Command;

use anneal_api::termination::RunResult;
use process::Run;

const CONFIG: &str = "
model: {inputSize: 32}
dataset: {uri: 'synthetic://?images=100&size=32'}
hyperparameters: {epochs: 2, batchSize: 16, threads: 1}
";

/// Loads each file as untrusted input, with the reference's keys and no others but ours, and takes one more step with
/// the optimiser's state.
const SCRIPT: &str = r"
import sys, torch
for path in sys.argv[1:3]:
    saved = torch.load(path, weights_only=True)
    reference = {'epoch', 'model_state_dict', 'optimizer_state_dict', 'val_acc', 'history'}
    assert set(saved) == reference | {'anneal'}, saved.keys()
    assert set(saved['history']) == {'train_loss', 'train_acc', 'val_loss', 'val_acc'}, saved['history']
    assert len(saved['history']['val_acc']) == saved['epoch'], saved['epoch']
    state = saved['model_state_dict']
    assert len(state) == 93 and list(state)[0] == 'conv1.weight' and list(state)[-1] == 'fc.bias', list(state)
    learned = [v for k, v in state.items() if 'running' not in k and 'num_batches' not in k]
    assert sum(v.numel() for v in learned) == 2_783_362
    parameters = [torch.nn.Parameter(v) for v in learned]
    optimizer = torch.optim.Adam(parameters)
    optimizer.load_state_dict(saved['optimizer_state_dict'])
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
published = torch.load(sys.argv[3], weights_only=True, mmap=True)
assert published['model_state_dict']['fc.weight'].shape == (2, 256)
";

#[test]
fn pytorch_reads_what_a_run_leaves_behind_and_goes_on_with_its_optimiser() {
    let python = std::env::var("ANNEAL_PARITY_PYTHON")
        .expect("ANNEAL_PARITY_PYTHON names a Python with PyTorch; `make unit` sets it, or use $(tests/parity/setup)");
    let run = Run::new(CONFIG);
    let result: RunResult = run.train().succeeds();
    let files = ["checkpoints/best_model.pth", "checkpoints/last_checkpoint.pth", &result.checkpoint]
        .map(|file| run.path("out").join(file));
    let output = Command::new(python).arg("-c").arg(SCRIPT).args(files).output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
