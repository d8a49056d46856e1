//! What a run leaves behind, as PyTorch sees it.

#![allow(clippy::expect_used, reason = "all of this is test code")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod process;

use std::{fmt::Debug, process::Command};

use anneal_api::{
    hyperparameters::{Hyperparameters, Optimizer as Kind, Schedule},
    termination::RunResult,
};
use anneal_trainer::{
    optim::Optimizer,
    rng::{Draws, Purpose},
    schedule,
};
use process::Run;
use tch::Tensor;

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

fn python() -> String {
    std::env::var("ANNEAL_PARITY_PYTHON")
        .expect("ANNEAL_PARITY_PYTHON names a Python with PyTorch; `make unit` sets it, or use $(tests/parity/setup)")
}

/// What a Python script prints as JSON, given numbers as JSON.
fn numbers(script: &str, given: &impl serde::Serialize) -> Vec<Vec<f64>> {
    let given = serde_json::to_string(given).expect("JSON");
    let output = Command::new(python()).args(["-c", script, &given]).output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("numbers")
}

fn assert_close(ours: &[f64], theirs: &[f64], tolerance: f64, what: impl Debug) {
    assert_eq!(ours.len(), theirs.len());
    for (at, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert!((ours - theirs).abs() <= tolerance, "{what:?} at {at}: {ours}, not {theirs}");
    }
}

/// Learning rates of 60 steps in 6 epochs, as the schedulers set them.
const RATES: &str = r"
import json, torch
from torch.optim import lr_scheduler as s
def rates(make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, out = make(optimizer), []
    for _ in range(60):
        out.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        if len(out) < 60:
            scheduler.step()
    return out
warm = lambda o: s.LambdaLR(o, lambda step: (step + 1) / 6)
print(json.dumps([
    rates(lambda o: s.ConstantLR(o, factor=1.0)),
    rates(lambda o: s.SequentialLR(o, [warm(o), s.CosineAnnealingLR(o, T_max=54)], milestones=[6])),
    rates(lambda o: s.StepLR(o, step_size=20, gamma=0.1)),
    rates(lambda o: s.OneCycleLR(o, max_lr=0.1, total_steps=60, pct_start=0.3, cycle_momentum=False)),
]))
";

#[test]
fn learning_rates_are_those_of_pytorchs_schedulers() {
    let theirs = numbers(RATES, &());
    let schedules = [Schedule::Constant, Schedule::Cosine, Schedule::Step, Schedule::OneCycle];
    for (schedule, theirs) in schedules.into_iter().zip(&theirs) {
        let ours: Vec<f64> = (0..60).map(|step| schedule::learning_rate(schedule, 0.1, step, 60, 20)).collect();
        assert_close(&ours, theirs, 1e-9, schedule);
    }
}

/// Fifty steps with the given gradients, clipped, for each optimiser.
const STEPS: &str = r"
import json, sys, torch
given = json.loads(sys.argv[1])
out = []
for make in (
    lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.05),
    lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.05),
    lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.05),
):
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = make([parameter])
    for gradient in given:
        parameter.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        optimizer.step()
    out.append(parameter.tolist())
print(json.dumps(out))
";

#[test]
fn fifty_steps_of_each_optimiser_are_pytorchs() {
    let mut draws = Draws::new(0, Purpose::Order, 0, 0);
    #[expect(clippy::cast_possible_truncation, reason = "gradients are float32")]
    let gradients: Vec<Vec<f32>> = (0..50).map(|_| (0..4).map(|_| draws.between(-1.0, 1.0) as f32).collect()).collect();
    let theirs = numbers(STEPS, &gradients);
    for (optimizer, theirs) in [Kind::Adam, Kind::AdamW, Kind::Sgd].into_iter().zip(theirs) {
        let spec = Hyperparameters {
            optimizer,
            weight_decay: 0.05,
            max_gradient_norm: Some(1.0),
            ..Hyperparameters::default()
        };
        let parameter = Tensor::from_slice(&[1.0_f32; 4]);
        let mut ours = Optimizer::new(vec![parameter.shallow_clone()], &spec).expect("an optimiser");
        for gradient in &gradients {
            ours.apply(&[Tensor::from_slice(gradient)], 0.01).expect("a step");
        }
        let ours: Vec<f64> = Vec::try_from(parameter.to_kind(tch::Kind::Double)).expect("numbers");
        assert_close(&ours, &theirs, 1e-6, optimizer);
    }
}

/// An average over five states of two parameters.
const AVERAGE: &str = r"
import json, sys, torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
given = json.loads(sys.argv[1])
model = torch.nn.Linear(1, 1)
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
for weight in given:
    with torch.no_grad():
        model.weight.fill_(weight)
    average.update_parameters(model)
print(json.dumps([[average.module.weight.item()]]))
";

#[test]
fn the_average_of_the_weights_is_pytorchs() {
    let weights = [0.5_f64, -0.25, 1.0, 2.0, -1.5];
    let theirs = numbers(AVERAGE, &weights);
    let network = anneal_model::Network::new(anneal_api::model::Architecture::Improved, 2, 0).expect("a network");
    let mut ema = anneal_trainer::ema::Ema::new(&network, 0.9).expect("an average");
    for weight in weights {
        tch::no_grad(|| {
            for (_, mut parameter) in network.named_parameters() {
                let _ = parameter.fill_(weight);
            }
        });
        ema.follow(&network).expect("a step");
    }
    for (name, parameter) in ema.network().named_parameters() {
        assert_close(&[parameter.max().double_value(&[])], &theirs[0], 1e-6, &name);
        assert_close(&[parameter.min().double_value(&[])], &theirs[0], 1e-6, &name);
    }
}

#[test]
fn pytorch_reads_what_a_run_leaves_behind_and_goes_on_with_its_optimiser() {
    let run = Run::new(CONFIG);
    let result: RunResult = run.train().succeeds();
    let files = ["checkpoints/best_model.pth", "checkpoints/last_checkpoint.pth", &result.checkpoint]
        .map(|file| run.path("out").join(file));
    let output = Command::new(python()).arg("-c").arg(SCRIPT).args(files).output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
