//! What a run leaves behind, as PyTorch sees it.

#![allow(clippy::expect_used, reason = "all of this is test code")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod process;

use std::{fmt::Debug, fs::File, io::BufReader, path::Path, process::Command};

use anneal_api::{
    checkpoint::Preprocessing,
    hyperparameters::{Hyperparameters, Optimizer as Kind, Schedule},
    model::Architecture,
    termination::RunResult,
};
use anneal_model::{Checkpoint, Mode, Network, data_to_tensor, tensor_to_data};
use anneal_pth::{Dict, Limits, Value};
use anneal_trainer::{
    augment::{self, Change, Colour, Crop, Motion},
    loss::Loss,
    mixing::Mix,
    optim::Optimizer,
    rng::{Draws, Purpose},
    schedule,
};
use process::Run;
use serde_json::json;
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

/// PyTorch's optimisers of the names, for a script.
const OPTIMIZERS: &str = r"
import json, sys, torch
from torch.nn.utils import clip_grad_norm_
optimizers = {
    'Adam': lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.05),
    'AdamW': lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.05),
    'SGD': lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.05),
    'plain SGD': lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.05),
}
def steps(parameters, optimizer, gradients):
    for step in gradients:
        for parameter, gradient in zip(parameters, step):
            parameter.grad = torch.tensor(gradient).reshape(parameter.shape)
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
def flat(parameters):
    return [number for parameter in parameters for number in parameter.flatten().tolist()]
";

/// Shapes of several parameters, as a network has them.
const SHAPES: [&[i64]; 4] = [&[4], &[3, 5], &[2, 3, 1, 2], &[1]];

/// The optimisers by the names of [`OPTIMIZERS`].
fn optimizers() -> [(&'static str, Hyperparameters); 4] {
    let spec = |optimizer, momentum| Hyperparameters {
        optimizer,
        momentum,
        weight_decay: 0.05,
        max_gradient_norm: Some(1.0),
        ..Hyperparameters::default()
    };
    [
        ("Adam", spec(Kind::Adam, 0.9)),
        ("AdamW", spec(Kind::AdamW, 0.9)),
        ("SGD", spec(Kind::Sgd, 0.9)),
        ("plain SGD", spec(Kind::Sgd, 0.0)),
    ]
}

/// Parameters that are all one.
fn ones() -> Vec<Tensor> {
    SHAPES.iter().map(|shape| Tensor::ones(*shape, (tch::Kind::Float, tch::Device::Cpu))).collect()
}

/// Gradients of some steps for each parameter.
#[expect(clippy::cast_possible_truncation, reason = "gradients are float32")]
fn gradients(steps: usize) -> Vec<Vec<Vec<f32>>> {
    let mut draws = Draws::new(0, Purpose::Order, 0, 0);
    let mut tensor = |shape: &[i64]| -> Vec<f32> {
        (0..shape.iter().product::<i64>()).map(|_| draws.between(-1.0, 1.0) as f32).collect()
    };
    (0..steps).map(|_| SHAPES.iter().map(|shape| tensor(shape)).collect()).collect()
}

fn steps(optimizer: &mut Optimizer, gradients: &[Vec<Vec<f32>>]) {
    for step in gradients {
        let shaped = step.iter().zip(SHAPES).map(|(numbers, shape)| Tensor::from_slice(numbers).reshape(shape));
        optimizer.apply(&shaped.collect::<Vec<_>>(), 0.01).expect("a step");
    }
}

fn flat(parameters: &[Tensor]) -> Vec<f64> {
    let one = |tensor: &Tensor| Vec::<f64>::try_from(tensor.flatten(0, -1).to_kind(tch::Kind::Double));
    parameters.iter().flat_map(|tensor| one(tensor).expect("numbers")).collect()
}

/// Fifty steps with the given gradients for each optimiser.
const STEPS: &str = r"
out = []
for make in optimizers.values():
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in given['shapes']]
    steps(parameters, make(parameters), given['gradients'])
    out.append(flat(parameters))
print(json.dumps(out))
";

#[test]
fn fifty_steps_of_each_optimiser_are_pytorchs() {
    let gradients = gradients(50);
    let script = format!("{OPTIMIZERS}given = json.loads(sys.argv[1])\n{STEPS}");
    let theirs = numbers(&script, &json!({"shapes": SHAPES, "gradients": gradients}));
    for ((name, spec), theirs) in optimizers().into_iter().zip(theirs) {
        let parameters = ones();
        let mut ours =
            Optimizer::new(parameters.iter().map(Tensor::shallow_clone).collect(), &spec).expect("an optimiser");
        steps(&mut ours, &gradients);
        assert_close(&flat(&parameters), &theirs, 1e-6, name);
    }
}

/// Five steps that PyTorch begins and saves, and five that it goes on with from what was saved here; of both the end.
const EXCHANGE: &str = r#"
first, second = given['gradients'][:5], given['gradients'][5:]
out = []
for name, make in optimizers.items():
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in given['shapes']]
    optimizer = make(parameters)
    steps(parameters, optimizer, first)
    saved = {'parameters': [p.detach().clone() for p in parameters], 'optimizer': optimizer.state_dict()}
    torch.save(saved, f'{given["folder"]}/{name} of theirs.pth')
    ours = torch.load(f'{given["folder"]}/{name} of ours.pth', weights_only=True)
    parameters = [torch.nn.Parameter(tensor) for tensor in ours['parameters']]
    optimizer = make(parameters)
    optimizer.load_state_dict(ours['optimizer'])
    steps(parameters, optimizer, second)
    out.append(flat(parameters))
print(json.dumps(out))
"#;

#[test]
fn either_side_goes_on_with_the_others_optimiser() {
    let dir = tempfile::tempdir().expect("a folder");
    let gradients = gradients(10);
    let (first, second) = gradients.split_at(5);
    let ends: Vec<_> = optimizers()
        .into_iter()
        .map(|(name, spec)| {
            let parameters = ones();
            let own = parameters.iter().map(Tensor::shallow_clone).collect();
            let mut optimizer = Optimizer::new(own, &spec).expect("an optimiser");
            steps(&mut optimizer, first);
            let tensors = parameters.iter().map(|tensor| Value::Tensor(tensor_to_data(tensor).expect("numbers")));
            let saved = Dict::plain([
                ("parameters", Value::List(tensors.collect())),
                ("optimizer", optimizer.state().expect("a state")),
            ]);
            let mut file = File::create(dir.path().join(format!("{name} of ours.pth"))).expect("a file");
            anneal_pth::write(&mut file, &Value::Dict(saved)).expect("space on the disk");
            steps(&mut optimizer, second);
            flat(&parameters)
        })
        .collect();
    let script = format!("{OPTIMIZERS}given = json.loads(sys.argv[1])\n{EXCHANGE}");
    let theirs = numbers(&script, &json!({"shapes": SHAPES, "gradients": gradients, "folder": dir.path()}));
    for (((name, spec), ours), theirs) in optimizers().into_iter().zip(ends).zip(theirs) {
        assert_close(&ours, &theirs, 1e-6, (name, "PyTorch goes on"));
        let file = File::open(dir.path().join(format!("{name} of theirs.pth"))).expect("their file");
        let saved = anneal_pth::read(BufReader::new(file), &Limits::default()).expect("a value");
        let saved = saved.as_dict().expect("a dict");
        let tensors = saved.get("parameters").and_then(Value::as_items).expect("parameters");
        let tensors =
            tensors.iter().map(|value| data_to_tensor(value.as_tensor().expect("a tensor")).expect("numbers"));
        let parameters: Vec<_> = tensors.collect();
        let own = parameters.iter().map(Tensor::shallow_clone).collect();
        let mut optimizer = Optimizer::new(own, &spec).expect("an optimiser");
        optimizer.load(saved.get("optimizer").expect("a state")).expect("a state that fits");
        steps(&mut optimizer, second);
        assert_close(&flat(&parameters), &ours, 1e-6, (name, "we go on"));
    }
}

/// An average over five states of a parameter and of a running statistic.
const AVERAGE: &str = r"
import json, sys, torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
given = json.loads(sys.argv[1])
model = torch.nn.BatchNorm1d(1)
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
for weight in given:
    with torch.no_grad():
        for tensor in (model.weight, model.running_mean):
            tensor.fill_(weight)
    average.update_parameters(model)
print(json.dumps([[tensor.item()] for tensor in (average.module.weight, average.module.running_mean)]))
";

#[test]
fn the_average_of_the_weights_is_pytorchs() {
    let weights = [0.5_f64, -0.25, 1.0, 2.0, -1.5];
    let theirs = numbers(AVERAGE, &weights);
    let network = Network::new(Architecture::Improved, 2, 0).expect("a network");
    let mut ema = anneal_trainer::ema::Ema::new(&network, 0.9).expect("an average");
    for weight in weights {
        tch::no_grad(|| {
            for (_, mut tensor) in network.named_parameters().into_iter().chain(network.named_buffers()) {
                let _ = tensor.fill_(weight);
            }
        });
        ema.follow(&network).expect("a step");
    }
    let floats = |tensors: Vec<(String, Tensor)>| tensors.into_iter().filter(|(_, one)| one.kind() == tch::Kind::Float);
    let parameters = floats(ema.network().named_parameters()).map(|named| (named, &theirs[0]));
    let buffers = floats(ema.network().named_buffers()).map(|named| (named, &theirs[1]));
    for ((name, tensor), theirs) in parameters.chain(buffers) {
        assert_close(&[tensor.max().double_value(&[])], theirs, 1e-6, &name);
        assert_close(&[tensor.min().double_value(&[])], theirs, 1e-6, &name);
    }
}

/// What torchvision makes of a photo, given as JSON with the changes: for each the pixels.
const CHANGES: &str = r#"
import json, sys, torch
from torchvision.transforms import InterpolationMode, functional as F
given = json.loads(sys.argv[1])
size = given["size"]
photo = torch.tensor(given["photo"], dtype=torch.float32).reshape(size, size, 3).permute(2, 0, 1) / 255
out = []
for change in given["changes"]:
    x = F.hflip(photo) if change["flip"] else photo
    if change["motion"]:
        degrees, scale, shift = change["motion"]
        x = F.affine(x, degrees, [round(share * size) for share in shift], scale, [0.0], InterpolationMode.BILINEAR)
    to = change["to"]
    if change["box"]:
        top, left, height, width = change["box"]
        x = F.resized_crop(x, top, left, height, width, [to, to], InterpolationMode.BILINEAR, antialias=False)
    elif to != size:
        x = F.resize(x, [to, to], InterpolationMode.BILINEAR, antialias=False)
    for name, factor in change["colours"]:
        x = getattr(F, "adjust_" + name)(x, factor)
    out.append(x.permute(1, 2, 0).flatten().tolist())
print(json.dumps(out))
"#;

/// Side of the photo that is changed.
const SIDE: usize = 16;

/// A change, and what torchvision is told of it.
fn changes() -> Vec<(Change, usize, serde_json::Value)> {
    let motion = |degrees, scale, shift| Motion { degrees, scale, shift };
    let part = |[top, left, height, width]: [u8; 4]| {
        let side = f64::from(u8::try_from(SIDE).expect("a small number"));
        let share = |pixels: u8| f64::from(pixels) / side;
        let centre = |begin: u8, length: u8| share(begin) + share(length) / 2.0 - 0.5;
        let crop =
            Crop { width: share(width), height: share(height), right: centre(left, width), down: centre(top, height) };
        (crop, json!([top, left, height, width]))
    };
    let named = |colour: &Colour| match colour {
        Colour::Brightness(factor) => json!(["brightness", factor]),
        Colour::Contrast(factor) => json!(["contrast", factor]),
        Colour::Saturation(factor) => json!(["saturation", factor]),
        Colour::Hue(shift) => json!(["hue", shift]),
    };
    let told = |change: Change, to: usize, area: serde_json::Value| {
        let motion =
            change.motion.map(|motion| json!([motion.degrees, motion.scale, [motion.shift.0, motion.shift.1]]));
        let colours: Vec<_> = change.colours.iter().map(named).collect();
        let words = json!({"flip": change.flip, "motion": motion, "box": area, "to": to, "colours": colours});
        (change, to, words)
    };
    let (part_of_it, area) = part([3, 5, 8, 10]);
    let (rim, rim_area) = part([0, 0, 9, 7]);
    let coloured = |colours: Vec<Colour>| told(Change { colours, ..augment::none() }, SIDE, json!(null));
    vec![
        told(Change { flip: true, ..augment::none() }, SIDE, json!(null)),
        told(Change { motion: Some(motion(20.0, 1.0, (0.0, 0.0))), ..augment::none() }, SIDE, json!(null)),
        told(Change { motion: Some(motion(-35.0, 0.8, (0.125, -0.25))), ..augment::none() }, SIDE, json!(null)),
        told(
            Change { flip: true, motion: Some(motion(10.0, 1.2, (0.0, 0.125))), ..augment::none() },
            SIDE,
            json!(null),
        ),
        told(Change { crop: Some(part_of_it), ..augment::none() }, SIDE, area.clone()),
        told(Change { flip: true, crop: Some(part_of_it), ..augment::none() }, 12, area),
        told(Change { crop: Some(rim), ..augment::none() }, 24, rim_area),
        told(augment::none(), 10, json!(null)),
        told(augment::none(), 20, json!(null)),
        coloured(vec![Colour::Brightness(1.3), Colour::Contrast(0.6)]),
        coloured(vec![Colour::Saturation(1.7), Colour::Hue(0.2), Colour::Brightness(0.7)]),
        coloured(vec![Colour::Hue(-0.45)]),
    ]
}

#[test]
fn photos_are_changed_as_torchvision_changes_them() {
    let mut draws = Draws::new(0, Purpose::Picture, 0, 0);
    let photo: Vec<u8> = (0..SIDE * SIDE * 3).map(|_| u8::try_from(draws.below(256)).expect("a byte")).collect();
    let changes = changes();
    let words: Vec<_> = changes.iter().map(|(_, _, words)| words).collect();
    let theirs = numbers(CHANGES, &json!({"size": SIDE, "photo": photo, "changes": words}));
    let plain = Preprocessing { mean: [0.0; 3], std: [1.0; 3], ..Preprocessing::imagenet(16) };
    for ((change, to, words), theirs) in changes.iter().zip(theirs) {
        let mut ours = vec![0.0; to * to * 3];
        augment::apply(change, &photo, (SIDE, *to), &plain, &mut ours);
        let ours: Vec<f64> = ours.into_iter().map(f64::from).collect();
        assert_close(&ours, &theirs, 2e-5, words);
    }
}

/// Mixed batches and their targets as soft labels.
const MIXES: &str = r#"
import json, sys, torch
given = json.loads(sys.argv[1])
x = torch.arange(given["count"] * 3 * given["side"] ** 2, dtype=torch.float32).reshape(-1, 3, given["side"], given["side"])
rolled = x.roll(1, 0)
own = given["own"]
blended = rolled.mul(1.0 - own).add(x.mul(own))
top, bottom, left, right = given["box"]
pasted = x.clone()
pasted[..., top:bottom, left:right] = rolled[..., top:bottom, left:right]
logits = torch.tensor(given["logits"], dtype=torch.float64)
labels = torch.nn.functional.one_hot(torch.tensor(given["labels"]), 3).double()
soft = labels.roll(1, 0).mul(1.0 - own).add(labels.mul(own))
weights = torch.tensor(given["weights"], dtype=torch.float64)
losses = [torch.nn.functional.cross_entropy(logits, soft, weight, label_smoothing=0.1) for weight in (None, weights)]
print(json.dumps([blended.flatten().tolist(), pasted.flatten().tolist(), *([loss.item()] for loss in losses)]))
"#;

#[test]
fn a_batch_is_mixed_and_its_loss_taken_as_with_soft_labels() {
    let (count, side, own) = (3, 4, 0.3);
    let (rows, columns) = ((1, 3), (0, 2));
    let logits = [[0.5_f32, -1.0, 2.0], [1.5, 0.25, -0.5], [0.0, 1.0, 0.5]];
    let labels = [0_i64, 2, 1];
    let given = json!({
        "count": count, "side": side, "own": own, "labels": labels, "logits": logits,
        "box": [rows.0, rows.1, columns.0, columns.1], "weights": WEIGHTS,
    });
    let theirs = numbers(MIXES, &given);
    let images =
        Tensor::arange(count * 3 * side * side, (tch::Kind::Float, tch::Device::Cpu)).view([count, 3, side, side]);
    let flat =
        |images: Tensor| Vec::<f64>::try_from(images.flatten(0, -1).to_kind(tch::Kind::Double)).expect("numbers");
    let blend = Mix::Blend { own };
    assert_close(&flat(blend.images(&images).expect("images")), &theirs[0], 1e-4, "mixup");
    let paste = Mix::Paste { rows, columns, own };
    assert_close(&flat(paste.images(&images).expect("images")), &theirs[1], 0.0, "cutmix");
    let (logits, labels) = (Tensor::from_slice2(&logits), Tensor::from_slice(&labels));
    for (weights, theirs) in [None, Some(&WEIGHTS[..])].into_iter().zip(&theirs[2..]) {
        let loss = Loss::new(weights, 0.1).expect("a loss");
        let value = loss.part(&logits, &labels, Some(blend), loss.divisor(&labels).expect("a divisor"));
        assert_close(&[value.expect("a loss").double_value(&[])], theirs, 1e-6, weights);
    }
}

/// Weights of three classes.
const WEIGHTS: [f32; 3] = [0.5, 2.0, 1.25];

/// The loss of a whole batch, and its gradients by the logits.
const LOSSES: &str = r#"
import json, sys, torch
given = json.loads(sys.argv[1])
out = []
for weights in (None, torch.tensor(given["weights"], dtype=torch.float64)):
    logits = torch.tensor(given["logits"], dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(given["labels"]), weights, label_smoothing=0.1)
    loss.backward()
    out.append([loss.item(), *logits.grad.flatten().tolist()])
print(json.dumps(out))
"#;

#[test]
fn the_loss_of_a_batch_in_parts_is_pytorchs_of_the_whole_with_class_weights_too() {
    let logits = [[0.5_f32, -1.0, 2.0], [1.5, 0.25, -0.5], [0.0, 1.0, 0.5], [-0.25, 0.75, 1.0], [2.0, -2.0, 0.0]];
    let labels = [0_i64, 2, 1, 1, 0];
    let theirs = numbers(LOSSES, &json!({"logits": logits, "labels": labels, "weights": WEIGHTS}));
    let labels = Tensor::from_slice(&labels);
    for (weights, theirs) in [None, Some(&WEIGHTS[..])].into_iter().zip(&theirs) {
        let loss = Loss::new(weights, 0.1).expect("a loss");
        let whole = loss.divisor(&labels).expect("a divisor");
        for part in [5, 2, 1] {
            let logits = Tensor::from_slice2(&logits).set_requires_grad(true);
            let mut ours = vec![0.0];
            for begin in (0..5).step_by(part) {
                let length = i64::try_from(part).expect("small").min(5 - begin);
                let (logits, labels) = (logits.narrow(0, begin, length), labels.narrow(0, begin, length));
                let value = loss.part(&logits, &labels, None, whole).expect("a loss");
                value.backward();
                ours[0] += value.double_value(&[]);
            }
            ours.extend(
                Vec::<f64>::try_from(logits.grad().flatten(0, -1).to_kind(tch::Kind::Double)).expect("numbers"),
            );
            assert_close(&ours, theirs, 1e-6, (weights, part));
        }
    }
}

/// What remains of float64's sixteen digits after some steps, in which each rounding is passed on.
const FLOAT64: f64 = 1e-9;

#[test]
fn some_steps_of_training_in_float64_are_pytorchs_from_end_to_end() {
    tch::set_num_threads(1);
    let (steps, count, side, micro, classes) = (6, 8, 32, 3, 3);
    let network = Network::new(Architecture::Improved, classes, 5).expect("a network");
    let state = network.state().expect("a state");
    let mut draws = Draws::new(1, Purpose::Picture, 0, 0);
    #[expect(clippy::cast_possible_truncation, reason = "images are float32")]
    let mut images = || -> Tensor {
        let numbers: Vec<f32> = (0..count * side * side * 3).map(|_| draws.between(-2.0, 2.0) as f32).collect();
        Tensor::from_slice(&numbers).reshape([count, side, side, 3]).permute([0, 3, 1, 2])
    };
    let labels = Tensor::from_slice(&[0_i64, 1, 2, 1, 0, 0, 2, 1]);
    let batches: Vec<(Tensor, Tensor)> = (0..steps).map(|_| (images(), labels.shallow_clone())).collect();

    let value = |tensor: &Tensor| Value::Tensor(tensor_to_data(tensor).expect("numbers"));
    let given = batches.iter().map(|(images, labels)| Value::List(vec![value(images), value(labels)])).collect();
    let dir = tempfile::tempdir().expect("a folder");
    let extra = [
        ("classes", i64::try_from(classes).expect("few").into()),
        ("micro", micro.into()),
        ("weights", value(&Tensor::from_slice(&WEIGHTS))),
        ("batches", Value::List(given)),
    ];
    let extra = extra.map(|(name, value)| (name.to_owned(), value)).into();
    Checkpoint { info: None, state, extra }.save(dir.path().join("in.pth")).expect("space on the disk");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/reference.py");
    // Python finds its own libtorch; ours has fewer libraries.
    let asked =
        Command::new(python()).arg(script).arg("training").arg(dir.path()).env_remove("LD_LIBRARY_PATH").output();
    let asked = asked.expect("Python runs");
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));

    for (_, mut tensor) in network.named_parameters().into_iter().chain(network.named_buffers()) {
        if tensor.kind() == tch::Kind::Float {
            tch::no_grad(|| tensor.set_data(&tensor.to_kind(tch::Kind::Double)));
        }
    }
    let parameters = network.trainable_parameters().into_iter().map(|(_, tensor)| tensor).collect();
    let spec = Hyperparameters {
        optimizer: Kind::AdamW,
        weight_decay: 0.05,
        max_gradient_norm: Some(1.0),
        ..Hyperparameters::default()
    };
    let mut optimizer = Optimizer::new(parameters, &spec).expect("an optimiser");
    let loss = Loss::new(Some(&WEIGHTS), 0.1).expect("a loss");
    let mut losses = Vec::new();
    for (step, (images, labels)) in (0..).zip(&batches) {
        let whole = loss.divisor(labels).expect("a divisor");
        let (mut gradients, mut sum) = (Vec::new(), 0.0);
        for begin in (0..count).step_by(usize::try_from(micro).expect("small")) {
            let part = |of: &Tensor| of.narrow(0, begin, micro.min(count - begin));
            let mode = Mode::Train { seed: 0, step };
            let logits = network.forward(&part(images).to_kind(tch::Kind::Double), mode).expect("logits");
            let value = loss.part(&logits, &part(labels), None, whole).expect("a loss");
            sum += value.double_value(&[]);
            optimizer.gradients(&value, &mut gradients).expect("gradients");
        }
        losses.push(sum);
        let rate = schedule::learning_rate(Schedule::OneCycle, 0.01, step, steps, 1);
        optimizer.apply(&gradients, rate).expect("a step");
    }

    let file = File::open(dir.path().join("out.pth")).expect("their answer");
    let theirs = anneal_pth::read(BufReader::new(file), &Limits::default()).expect("a value");
    let theirs = theirs.as_dict().expect("a dict");
    let numbers = theirs.get("losses").and_then(Value::as_items).expect("losses").iter().map(Value::as_float);
    assert_close(&losses, &numbers.collect::<Option<Vec<_>>>().expect("numbers"), FLOAT64, "loss");
    let state = theirs.get("state").and_then(Value::as_dict).expect("a state");
    for (name, ours) in network.named_parameters().into_iter().chain(network.named_buffers()) {
        let theirs = state.get(&name).and_then(Value::as_tensor).expect("their tensor");
        let theirs = data_to_tensor(theirs).expect("numbers");
        assert_eq!((ours.kind(), ours.size()), (theirs.kind(), theirs.size()), "{name}");
        assert_close(&flat(&[ours.contiguous()]), &flat(&[theirs]), FLOAT64, name);
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
