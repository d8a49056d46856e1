//! What is exported, as the programs that it is for see it.

#![allow(clippy::expect_used, reason = "all of this is test code")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod process;

use std::{fs, path::Path};

use anneal_api::model::Architecture;
use anneal_model::{Checkpoint, Mode, Network};
use process::{prints, tools::tool, trainer};
use tch::{Kind, Tensor};

const SCRIPT: &str = r"
import json, sys, numpy, onnx, onnxruntime
path, side = sys.argv[1], int(sys.argv[2])
onnx.checker.check_model(path, full_check=True)
session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
image = numpy.fromfile(sys.argv[3], numpy.float32).reshape(-1, 3, side, side)
logits, probabilities = session.run(['logits', 'probabilities'], {'input': image})
expected = numpy.fromfile(sys.argv[4], numpy.float32).reshape(logits.shape)
difference = abs(logits - expected).max()
assert difference < 1e-4, difference
exact = numpy.exp(logits) / numpy.exp(logits).sum(1, keepdims=True)
assert abs(probabilities - exact).max() < 1e-5
about = session.get_modelmeta().custom_metadata_map
assert json.loads(about['classes']) == ['cat', 'dog'], about
assert json.loads(about['preprocessing'])['resize'] == 'bilinear', about
";

/// A checkpoint of a network whose statistics are not those that it begins with, an input and its logits.
fn made(architecture: Architecture, side: i64, dir: &Path) {
    let network = Network::new(architecture, 2, 7).expect("a network");
    let images = Tensor::f_rand([3, 3, side, side], (Kind::Float, tch::Device::Cpu)).expect("images");
    tch::no_grad(|| {
        for step in 0..2 {
            let _ = network.forward(&images, Mode::Train { seed: 0, step }).expect("logits");
        }
    });
    let logits = tch::no_grad(|| network.forward(&images, Mode::Eval)).expect("logits");
    for (name, tensor) in [("input", &images), ("logits", &logits)] {
        let values = Vec::<f32>::try_from(&tensor.reshape([-1])).expect("numbers");
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        fs::write(dir.join(name), bytes).expect("a file");
    }
    let state = network.state().expect("a state");
    Checkpoint { info: None, state, extra: Vec::new() }.save(dir.join("model.pth")).expect("a checkpoint");
}

#[test]
fn onnxruntime_gives_the_logits_of_both_networks() {
    // A checkpoint without a description has the reference's input size.
    for architecture in [Architecture::Improved, Architecture::Simple] {
        let dir = tempfile::tempdir().expect("a folder");
        made(architecture, 224, dir.path());
        let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
        prints(&["export", "--checkpoint", &path("model.pth"), "--format", "onnx"]);
        tool("python", &["-c", SCRIPT, &path("model.onnx"), "224", &path("input"), &path("logits")], dir.path());
        prints(&["export", "--checkpoint", &path("model.pth"), "--format", "safetensors"]);
        let kept = fs::read(path("model.safetensors")).expect("a file");
        let kept = safetensors::SafeTensors::deserialize(&kept).expect("safetensors");
        assert!(kept.names().contains(&"conv1.weight"));
        let answered = |model: &str| prints(&["predict", "--json", "--checkpoint", &path(model), &path("dog.png")]);
        let drawn = trainer(["synthesize", "--stdout", "--class", "dog"]).output().expect("a picture").stdout;
        fs::write(path("dog.png"), drawn).expect("a file");
        assert_eq!(answered("model.safetensors"), answered("model.pth"));
    }
}
