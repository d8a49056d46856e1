//! Files go both ways between anneal-pth and `torch.save`/`torch.load`.

use std::{fs, io::BufReader};

use anneal_model::{Checkpoint, Network};
use anneal_pth::{DType, Dict, Limits, ReadError, TensorData, Value, read as read_pth};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use crate::{Exchange, read};

/// A value as the other side's `describe` puts it.
fn describe(value: &Value) -> Json {
    match value {
        Value::None => Json::Null,
        Value::Bool(value) => json!(value),
        Value::Int(value) => json!(value),
        Value::Float(value) => json!({"float": hex(*value)}),
        Value::Str(text) => json!(text),
        Value::Tuple(items) => json!({"tuple": items.iter().map(describe).collect::<Vec<_>>()}),
        Value::List(items) => json!({"list": items.iter().map(describe).collect::<Vec<_>>()}),
        Value::Dict(dict) => {
            let entries: Vec<_> =
                dict.entries.iter().map(|(key, value)| json!([describe(key), describe(value)])).collect();
            json!({value.type_name(): entries})
        }
        Value::Tensor(tensor) => {
            let digest = anneal_api::Sha256::from_bytes(Sha256::digest(tensor.data()).into());
            json!({"tensor": tensor.dtype().to_string(), "shape": tensor.shape(), "sha256": digest})
        }
    }
}

/// `float.hex` of Python.
fn hex(value: f64) -> String {
    let bits = value.to_bits();
    let (sign, exponent, fraction) =
        (if bits >> 63 == 1 { "-" } else { "" }, bits >> 52 & 0x7ff, bits & ((1 << 52) - 1));
    match (exponent, fraction) {
        (0, 0) => format!("{sign}0x0.0p+0"),
        (0x7ff, 0) => format!("{sign}inf"),
        _ => format!("{sign}0x1.{fraction:013x}p{:+}", i64::try_from(exponent).expect("11 bits") - 1023),
    }
}

#[test]
fn pytorch_loads_what_we_write() {
    let tensor = |dtype: DType, shape: &[usize]| {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let data = (0..bytes)
            .map(|i| if dtype == DType::Bool { i % 2 } else { i % 61 })
            .map(|i| u8::try_from(i).expect("small"));
        Value::Tensor(TensorData::new(dtype, shape.to_vec(), data.collect()).expect("its bytes"))
    };
    let network = Network::new(anneal_api::model::Architecture::Improved, 3, 0).expect("a network");
    let state = network.state().expect("a state").into_value();
    let value = Value::Dict(Dict::plain([
        ("dtypes", Value::Dict(Dict::plain(DType::ALL.map(|dtype| (dtype.to_string(), tensor(dtype, &[2, 3])))))),
        (
            "shapes",
            Value::List([&[][..], &[0, 3], &[1, 1, 1], &[7, 1, 5]].map(|shape| tensor(DType::F32, shape)).into()),
        ),
        ("model_state_dict", state),
        ("tuple", Value::Tuple(vec![1_i64.into(), "two".into(), Value::None])),
        ("ints", vec![0_i64, 255, 256, 65_536, -1, i64::from(i32::MIN), i64::MAX, i64::MIN].into()),
        ("floats", vec![0.0, -0.0, 1e-300, f64::INFINITY].into()),
        (
            "empty",
            Value::List(vec![Value::List(Vec::new()), Value::Tuple(Vec::new()), Dict::default().into(), "".into()]),
        ),
        ("text", "Katze 猫 \u{1f408}".into()),
        (
            "keys",
            Dict { ordered: false, entries: vec![(0_i64.into(), true.into()), (Value::Bool(false), 2.5.into())] }
                .into(),
        ),
    ]));
    let exchange = Exchange::new();
    exchange.give(&value);
    exchange.ask("load");
    let seen: Vec<Json> =
        serde_json::from_slice(&fs::read(exchange.path("out.json")).expect("an answer")).expect("JSON");
    for (seen, how) in seen.iter().zip(["read", "mapped"]) {
        let Json::Object(seen) = seen else { panic!("{how}: no dict") };
        for (seen, entry) in
            seen["dict"].as_array().expect("entries").iter().zip(&value.as_dict().expect("a dict").entries)
        {
            if entry.0.as_str() == Some("keys") {
                // In Python False and 0 are one key.
                continue;
            }
            assert_eq!(*seen, json!([describe(&entry.0), describe(&entry.1)]), "{how}");
        }
    }
}

#[test]
fn we_read_what_pytorch_saves() {
    let exchange = Exchange::new();
    exchange.ask("save");
    let expected: serde_json::Map<String, Json> =
        serde_json::from_slice(&fs::read(exchange.path("values.json")).expect("an answer")).expect("JSON");
    assert!(expected.len() >= 9);
    for (name, expected) in expected {
        let value = read(&exchange.path(&format!("{name}.pth")));
        assert_eq!(describe(&value), expected, "{name}.pth");
    }
    for name in ["state_dict", "plain", "nested", "bfloat16"] {
        let checkpoint = Checkpoint::load(exchange.path(&format!("{name}.pth"))).expect("a checkpoint");
        let network = checkpoint.network().unwrap_or_else(|error| panic!("{name}.pth: {error}"));
        assert_eq!(network.parameter_count(), 2_783_362);
        assert_eq!(checkpoint.contract().expect("a contract").classes, ["cat", "dog"]);
    }
    let refusal = |name: &str| {
        let file = fs::File::open(exchange.path(name)).expect("a file");
        read_pth(std::io::BufReader::new(file), &Limits::default()).expect_err("a refusal")
    };
    assert!(matches!(refusal("refused-legacy.pth"), ReadError::Legacy));
    assert!(matches!(refusal("refused-script.pth"), ReadError::TorchScript));
    let module = refusal("refused-module.pth").to_string();
    assert!(module.contains("Improved") && module.contains("state_dict()"), "{module}");
}

#[test]
fn more_tensors_than_16_bits_can_count_go_both_ways() {
    // From here on the directory of the archive is in zip64.
    let tensor = |number: u16| {
        let data = f32::from(number).to_le_bytes().to_vec();
        (number.to_string(), Value::Tensor(TensorData::new(DType::F32, vec![1], data).expect("its bytes")))
    };
    let given = Value::Dict(Dict::plain((0..u16::MAX).map(tensor)));
    let exchange = Exchange::new();
    exchange.give(&given);
    exchange.ask("many");
    let file = fs::File::open(exchange.path("out.pth")).expect("a file of the other side");
    let limits = Limits { max_entries: 100_000, max_pickle_bytes: 64 << 20, max_values: 1 << 22, ..Limits::default() };
    assert!(read_pth(BufReader::new(file), &limits).expect("a file of PyTorch") == given);
}
