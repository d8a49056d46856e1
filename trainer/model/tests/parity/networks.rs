//! Logits, gradients and running statistics are PyTorch's.

use anneal_api::{hyperparameters::Precision, model::Architecture};
use anneal_model::{Checkpoint, Classifier, Mode, Network, StateDict, dropout_mask, tensor_to_data};
use anneal_pth::{Dict, Value};
use tch::Tensor;

use crate::{Exchange, distance, floats};

const STEP: Mode = Mode::Train { seed: 3, step: 11 };

/// Numbers that are the same everywhere, far enough from each other that no maximum is a matter of rounding; channels
/// innermost, as images are.
fn noise(count: i64, side: i64, seed: u64) -> Tensor {
    let mut state = seed;
    let numbers: Vec<f32> = (0..count * side * side * 3)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f32::from(u16::try_from(state >> 48).expect("16 bits")) / 16_384.0 - 2.0
        })
        .collect();
    Tensor::from_slice(&numbers).reshape([count, side, side, 3]).permute([0, 3, 1, 2])
}

fn tensor(tensor: &Tensor) -> Value {
    Value::Tensor(tensor_to_data(tensor).expect("numbers"))
}

fn field<'a>(answer: &'a Dict, key: &str) -> &'a Value {
    answer.get(key).unwrap_or_else(|| panic!("the other side gave no {key}"))
}

fn a_step_is_pytorchs(architecture: Architecture, side: i64, classes: usize) {
    // As the other side: another number of threads adds up in another order.
    tch::set_num_threads(1);
    let network = Network::new(architecture, classes, 5).expect("a network");
    let images = noise(4, side, 1);
    // Running statistics that are not those of a new network.
    for step in 0..2 {
        let logits = network.forward(&noise(4, side, 2 + step), Mode::Train { seed: 1, step });
        assert_eq!(logits.expect("logits").size(), [4, i64::try_from(classes).expect("few")]);
    }
    let target = Tensor::from_slice(&[0_i64, 1, 1, 0]);
    let mask = dropout_mask(3, 11, &[4, 256]).expect("a mask");
    let name = match architecture {
        Architecture::Improved => "improved",
        Architecture::Simple => "simple",
    };
    let checkpoint = Checkpoint {
        info: None,
        state: network.state().expect("a state"),
        extra: vec![
            ("architecture".to_owned(), name.into()),
            ("classes".to_owned(), i64::try_from(classes).expect("few").into()),
            ("images".to_owned(), tensor(&images)),
            ("target".to_owned(), tensor(&target)),
            ("mask".to_owned(), tensor(&mask)),
        ],
    };
    let exchange = Exchange::new();
    checkpoint.save(exchange.path("in.pth")).expect("space on the disk");
    exchange.ask("network");
    let answer = exchange.answer();
    let answer = answer.as_dict().expect("a dict");
    let theirs = |key: &str| field(answer, key).as_tensor().expect("a tensor");

    assert_eq!(field(answer, "parameters").as_int(), i64::try_from(network.parameter_count()).ok());
    let evaluation = network.forward(&images, Mode::Eval).expect("logits");
    assert!(distance(&tensor_to_data(&evaluation).expect("numbers"), theirs("evaluation")) < 1e-4);

    let training = network.forward(&images, STEP).expect("logits");
    assert!(distance(&tensor_to_data(&training).expect("numbers"), theirs("training")) < 1e-4);
    training.cross_entropy_for_logits(&target).backward();
    let gradients = field(answer, "gradients").as_dict().expect("gradients");
    for (name, parameter) in network.named_parameters() {
        let (ours, theirs) = (tensor_to_data(&parameter.grad()).expect("a gradient"), gradients.get(&name));
        let theirs = theirs.and_then(Value::as_tensor).unwrap_or_else(|| panic!("no gradient of {name}"));
        let largest = floats(theirs).iter().fold(0.0_f32, |max, g| max.max(g.abs()));
        let error = distance(&ours, theirs);
        assert!(error < 1e-4 * largest.max(1.0), "{name}: {error} of {largest}");
    }

    let state = StateDict::from_value(field(answer, "state").clone()).expect("a state dict");
    for ((name, ours), (their_name, theirs)) in network.state().expect("a state").0.iter().zip(&state.0) {
        assert_eq!(name, their_name);
        if name.ends_with("num_batches_tracked") {
            assert_eq!(ours, theirs, "{name}");
        } else {
            assert!(distance(ours, theirs) < 1e-4, "{name}");
        }
    }

    let mut half = Network::new(architecture, classes, 0).expect("a network").with_precision(Precision::BFloat16);
    half.load(&Checkpoint::load(exchange.path("in.pth")).expect("our own file").state).expect("its state");
    let logits = tensor_to_data(&half.forward(&images, Mode::Eval).expect("logits")).expect("numbers");
    let scale = floats(theirs("bfloat16")).iter().fold(1.0_f32, |max, x| max.max(x.abs()));
    // Both round to 8 bits in some fifteen layers.
    let error = distance(&logits, theirs("bfloat16"));
    assert!(error < 0.05 * scale, "bfloat16: {error} of {scale}");

    let training = half.forward(&images, STEP).expect("logits");
    let loss = training.cross_entropy_for_logits(&target);
    loss.backward();
    let error = distance(&tensor_to_data(&loss).expect("a number"), theirs("bfloat16_loss"));
    assert!(error < 0.05, "bfloat16: a loss {error} apart");
    // A number of its own may be far off after so many roundings; what counts is where they lead together.
    let gradients = field(answer, "bfloat16_gradients").as_dict().expect("gradients");
    let (mut apart, mut whole) = (0.0, 0.0);
    for (name, parameter) in half.named_parameters() {
        let theirs = gradients.get(&name).and_then(Value::as_tensor).unwrap_or_else(|| panic!("no gradient of {name}"));
        let ours = floats(&tensor_to_data(&parameter.grad()).expect("a gradient"));
        for (ours, theirs) in ours.into_iter().zip(floats(theirs)) {
            apart += f64::from(ours - theirs).powi(2);
            whole += f64::from(theirs).powi(2);
        }
    }
    let share = (apart / whole).sqrt();
    assert!(share < 0.1, "bfloat16: gradients {share} apart, of their length");

    for (precision, key, tolerance) in
        [(Precision::Float32, "evaluation", 1e-4), (Precision::BFloat16, "bfloat16", 0.05 * scale)]
    {
        let checkpoint = Checkpoint::load(exchange.path("in.pth")).expect("our own file");
        let classifier = Classifier::with_precision(checkpoint, precision).expect("a classifier");
        let logits = tensor_to_data(&classifier.logits(&images).expect("logits")).expect("numbers");
        let error = distance(&logits, theirs(key));
        assert!(error < tolerance, "served in {precision:?}: {error} of {tolerance}");
    }
}

#[test]
fn a_step_of_improved_is_pytorchs() {
    a_step_is_pytorchs(Architecture::Improved, 64, 2);
}

#[test]
fn a_step_of_improved_is_pytorchs_at_an_odd_size_and_with_many_classes() {
    a_step_is_pytorchs(Architecture::Improved, 75, 37);
}

#[test]
fn a_step_of_simple_is_pytorchs() {
    a_step_is_pytorchs(Architecture::Simple, 224, 2);
}
