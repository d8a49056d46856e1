//! ONNX: the networks as graphs of its operators, with the weights inside.
//!
//! Input `input` is float32 [N, 3, height, width], normalised as the metadata `preprocessing` says. Outputs are `logits`
//! and `probabilities`, float32 [N, classes] in the order of the metadata `classes`.

use anneal_api::model::Architecture;
use anneal_model::{Contract, StateDict};
use serde_json::json;

use super::protobuf::Message;

/// Version of the file format, and of the operators; onnxruntime has read both since 1.14.
const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;
/// Epsilon of `torch.nn.BatchNorm2d`.
const EPSILON: f32 = 1e-5;
const FLOAT: i64 = 1;

/// The whole file.
///
/// # Errors
/// When a tensor is missing; the state of a network has all of them.
pub(super) fn model(contract: &Contract, state: &StateDict) -> Result<Vec<u8>, String> {
    let mut graph = Graph { state, nodes: Vec::new(), initializers: Vec::new() };
    let logits = match contract.model.architecture {
        Architecture::Improved => graph.improved()?,
        Architecture::Simple => graph.simple()?,
    };
    graph.node("Identity", &[&logits], "logits", &[]);
    graph.node("Softmax", &["logits"], "probabilities", &[int("axis", 1)]);

    let side = i64::from(contract.preprocessing.size);
    let classes = i64::try_from(contract.classes.len()).unwrap_or(i64::MAX);
    let batch = || Message::default().bytes(2, "N");
    let fixed = |n: i64| Message::default().int(1, n);
    let body = Message::default()
        .messages(1, &graph.nodes)
        .bytes(2, "anneal")
        .messages(5, &graph.initializers)
        .message(11, &value("input", &[batch(), fixed(3), fixed(side), fixed(side)]))
        .message(12, &value("logits", &[batch(), fixed(classes)]))
        .message(12, &value("probabilities", &[batch(), fixed(classes)]));
    let metadata = |key: &str, value: String| Message::default().bytes(1, key).bytes(2, value);
    let file = Message::default()
        .int(1, IR_VERSION)
        .bytes(2, "anneal")
        .bytes(3, env!("CARGO_PKG_VERSION"))
        .message(7, &body)
        .message(8, &Message::default().bytes(1, "").int(2, OPSET))
        .message(14, &metadata("classes", json!(contract.classes).to_string()))
        .message(14, &metadata("preprocessing", json!(contract.preprocessing).to_string()));
    Ok(file.into_bytes())
}

struct Graph<'a> {
    state: &'a StateDict,
    nodes: Vec<Message>,
    initializers: Vec<Message>,
}

impl Graph<'_> {
    fn improved(&mut self) -> Result<String, String> {
        let mut x = self.conv_norm("input", "conv1", "bn1", 2, 3)?;
        x = self.relu(&x);
        x = self.add(
            "MaxPool",
            &[&x],
            &[ints("kernel_shape", &[3, 3]), ints("strides", &[2, 2]), ints("pads", &[1; 4])],
        );
        for (layer, first_stride) in [(1, 1), (2, 2), (3, 2)] {
            for (block, stride) in [(0, first_stride), (1, 1)] {
                let name = |part: &str| format!("layer{layer}.{block}.{part}");
                let mut y = self.conv_norm(&x, &name("conv1"), &name("bn1"), stride, 1)?;
                y = self.relu(&y);
                y = self.conv_norm(&y, &name("conv2"), &name("bn2"), 1, 1)?;
                let shortcut = if self.state.get(&name("shortcut.0.weight")).is_some() {
                    self.conv_norm(&x, &name("shortcut.0"), &name("shortcut.1"), stride, 0)?
                } else {
                    x
                };
                let sum = self.add("Add", &[&y, &shortcut], &[]);
                x = self.relu(&sum);
            }
        }
        x = self.add("GlobalAveragePool", &[&x], &[]);
        x = self.add("Flatten", &[&x], &[int("axis", 1)]);
        self.linear(&x, "fc")
    }

    fn simple(&mut self) -> Result<String, String> {
        let mut x = "input".to_owned();
        for layer in 1..=3 {
            x = self.conv_norm(&x, &format!("conv{layer}"), &format!("bn{layer}"), 1, 1)?;
            x = self.relu(&x);
            x = self.add("MaxPool", &[&x], &[ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])]);
        }
        x = self.add("Flatten", &[&x], &[int("axis", 1)]);
        x = self.linear(&x, "fc1")?;
        x = self.relu(&x);
        // Dropout does nothing in use.
        self.linear(&x, "fc2")
    }

    fn conv_norm(&mut self, x: &str, conv: &str, norm: &str, stride: i64, padding: i64) -> Result<String, String> {
        let weight = self.weight(&format!("{conv}.weight"))?;
        let kernel = self.state.get(&weight).and_then(|tensor| tensor.shape().last().copied());
        let kernel = kernel.and_then(|n| i64::try_from(n).ok()).unwrap_or(1);
        let bias = format!("{conv}.bias");
        let mut inputs = vec![x.to_owned(), weight];
        if self.state.get(&bias).is_some() {
            inputs.push(self.weight(&bias)?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let attributes =
            [ints("kernel_shape", &[kernel; 2]), ints("strides", &[stride; 2]), ints("pads", &[padding; 4])];
        let convolved = self.add("Conv", &inputs, &attributes);
        let mut inputs = vec![convolved];
        for part in ["weight", "bias", "running_mean", "running_var"] {
            inputs.push(self.weight(&format!("{norm}.{part}"))?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        Ok(self.add("BatchNormalization", &inputs, &[float("epsilon", EPSILON)]))
    }

    fn relu(&mut self, x: &str) -> String {
        self.add("Relu", &[x], &[])
    }

    fn linear(&mut self, x: &str, name: &str) -> Result<String, String> {
        let (weight, bias) = (self.weight(&format!("{name}.weight"))?, self.weight(&format!("{name}.bias"))?);
        Ok(self.add("Gemm", &[x, &weight, &bias], &[int("transB", 1)]))
    }

    /// Takes a weight over under its name.
    fn weight(&mut self, name: &str) -> Result<String, String> {
        let tensor = self.state.get(name).ok_or_else(|| format!("the network has no {name}"))?;
        let dims = tensor.shape().iter().map(|&n| i64::try_from(n).unwrap_or(i64::MAX));
        let message = dims.fold(Message::default(), |message, n| message.int(1, n));
        self.initializers.push(message.int(2, FLOAT).bytes(8, name).bytes(9, tensor.data()));
        Ok(name.to_owned())
    }

    /// Adds a node with an output of its own, whose name is returned.
    fn add(&mut self, operator: &str, inputs: &[&str], attributes: &[Message]) -> String {
        let output = format!("{}_{}", operator.to_lowercase(), self.nodes.len());
        self.node(operator, inputs, &output, attributes);
        output
    }

    fn node(&mut self, operator: &str, inputs: &[&str], output: &str, attributes: &[Message]) {
        let node = inputs.iter().fold(Message::default(), |node, input| node.bytes(1, input));
        self.nodes.push(node.bytes(2, output).bytes(3, output).bytes(4, operator).messages(5, attributes));
    }
}

fn value(name: &str, dimensions: &[Message]) -> Message {
    let shape = Message::default().messages(1, dimensions);
    let tensor = Message::default().int(1, FLOAT).message(2, &shape);
    Message::default().bytes(1, name).message(2, &Message::default().message(1, &tensor))
}

fn int(name: &str, value: i64) -> Message {
    Message::default().bytes(1, name).int(3, value).int(20, 2)
}

fn float(name: &str, value: f32) -> Message {
    Message::default().bytes(1, name).float(2, value).int(20, 1)
}

fn ints(name: &str, values: &[i64]) -> Message {
    values.iter().fold(Message::default().bytes(1, name), |message, value| message.int(8, *value)).int(20, 7)
}
