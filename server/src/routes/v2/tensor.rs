//! The protocol's tensors: from JSON or binary data to inputs of the engine.

use image::RgbImage;
use serde::{
    Deserialize,
    de::{Deserializer, Error as _, SeqAccess, Visitor},
};

use crate::input::Input;

/// Most images of one request.
const MAX_ROWS: usize = 64;

/// The request is not one of the protocol, or does not fit the model.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Invalid(String);

/// What is asked for.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: Option<String>,
    pub(super) inputs: Vec<Input>,
    pub(super) outputs: Vec<Wanted>,
}

/// An output that the client wants, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: Output,
    pub(super) binary: bool,
}

/// What the model gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    Probabilities,
    Logits,
}

impl Output {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Probabilities => "probabilities",
            Self::Logits => "logits",
        }
    }
}

#[derive(Deserialize)]
struct Head {
    id: Option<String>,
    inputs: Vec<Given>,
    #[serde(default)]
    outputs: Vec<OutputHead>,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Deserialize)]
struct Given {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    #[serde(default)]
    parameters: Parameters,
    data: Option<Numbers>,
}

#[derive(Deserialize)]
struct OutputHead {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Default, Deserialize)]
struct Parameters {
    #[serde(rename = "binary_data_size")]
    bytes: Option<usize>,
    #[serde(rename = "binary_data")]
    binary: Option<bool>,
    #[serde(rename = "binary_data_output")]
    all_binary: Option<bool>,
}

/// Numbers in arrays of any depth, row by row. A tree of JSON values would take twenty times the memory of its text.
struct Numbers(Vec<f32>);

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Flat(Vec<f32>);
        /// One element of an array: a number or an array.
        struct Element<'a>(&'a mut Vec<f32>);

        impl<'de> Visitor<'de> for Flat {
            type Value = Numbers;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array of numbers")
            }

            fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<Numbers, A::Error> {
                while elements.next_element_seed(Element(&mut self.0))?.is_some() {}
                Ok(Numbers(self.0))
            }
        }

        impl<'de> serde::de::DeserializeSeed<'de> for Element<'_> {
            type Value = ();

            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
                deserializer.deserialize_any(self)
            }
        }

        #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "the tensor is of float32")]
        impl<'de> Visitor<'de> for Element<'_> {
            type Value = ();

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number or an array of numbers")
            }

            fn visit_f64<E>(self, number: f64) -> Result<(), E> {
                self.0.push(number as f32);
                Ok(())
            }

            fn visit_i64<E>(self, number: i64) -> Result<(), E> {
                self.0.push(number as f32);
                Ok(())
            }

            fn visit_u64<E>(self, number: u64) -> Result<(), E> {
                self.0.push(number as f32);
                Ok(())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
                while elements.next_element_seed(Element(self.0))?.is_some() {}
                Ok(())
            }
        }

        let numbers = deserializer.deserialize_seq(Flat(Vec::new()))?;
        if numbers.0.iter().all(|number| number.is_finite()) {
            Ok(numbers)
        } else {
            Err(D::Error::custom("a number is beyond float32"))
        }
    }
}

/// Reads a request: `head` bytes of JSON and the binary data behind it, or JSON alone.
pub(super) fn read(content: &[u8], head: Option<usize>, size: i32) -> Result<Request, Invalid> {
    let (json, binary) = content
        .split_at_checked(head.unwrap_or(content.len()))
        .ok_or_else(|| invalid("Inference-Header-Content-Length is longer than the body"))?;
    let Head { id, inputs, outputs, parameters } = serde_json::from_slice(json)
        .map_err(|error| Invalid(format!("The request is not one of the protocol: {error}")))?;
    let [given] = <[Given; 1]>::try_from(inputs).map_err(|inputs| {
        Invalid(format!("The request has {} inputs; send either \"image\" (UINT8) or \"input\" (FP32)", inputs.len()))
    })?;
    let outputs = wanted(&outputs, parameters.all_binary.unwrap_or(false))?;
    Ok(Request { id, inputs: rows(given, binary, size)?, outputs })
}

fn wanted(outputs: &[OutputHead], binary: bool) -> Result<Vec<Wanted>, Invalid> {
    let all = [Output::Probabilities, Output::Logits];
    if outputs.is_empty() {
        return Ok(all.map(|name| Wanted { name, binary }).to_vec());
    }
    let find = |output: &OutputHead| {
        let name = all.into_iter().find(|known| known.word() == output.name).ok_or_else(|| {
            Invalid(format!("There is no output {:?}; there are \"probabilities\" and \"logits\"", output.name))
        })?;
        Ok(Wanted { name, binary: output.parameters.binary.unwrap_or(binary) })
    };
    let mut found: Vec<Wanted> = Vec::with_capacity(all.len());
    for output in outputs {
        let output = find(output)?;
        // Each one that is named takes memory of its own in the answer.
        if found.iter().any(|other| other.name == output.name) {
            return Err(Invalid(format!("The output {:?} is named twice", output.name.word())));
        }
        found.push(output);
    }
    Ok(found)
}

/// The images of a tensor.
fn rows(given: Given, binary: &[u8], input_size: i32) -> Result<Vec<Input>, Invalid> {
    let side = usize::try_from(input_size).unwrap_or_default();
    let (images, shape) = match (given.name.as_str(), given.datatype.as_str()) {
        ("image", "UINT8") => (true, [side, side, 3]),
        ("input", "FP32") => (false, [3, side, side]),
        (name, datatype) => {
            return Err(Invalid(format!(
                "There is no input {name:?} of {datatype}; send \"image\" in UINT8 [N, {side}, {side}, 3], or \"input\" in FP32 [N, 3, {side}, {side}]"
            )));
        }
    };
    let count = match given.shape.as_slice() {
        [count, rest @ ..] if *rest == shape && (1..=MAX_ROWS).contains(count) => *count,
        other => {
            return Err(Invalid(format!(
                "The shape is {other:?}; it must be [N, {}, {}, {}] with N from 1 to {MAX_ROWS}",
                shape[0], shape[1], shape[2]
            )));
        }
    };
    let each = shape.iter().product::<usize>();
    match (given.parameters.bytes, given.data, images) {
        (Some(bytes), None, true) => {
            let bytes = exactly(binary, bytes, count * each)?;
            bytes.chunks_exact(each).map(|pixels| picture(side, pixels.to_vec())).collect()
        }
        (Some(bytes), None, false) => {
            let bytes = exactly(binary, bytes, count * each * 4)?;
            let number = |bytes: &[u8]| bytes.try_into().map_or(f32::NAN, f32::from_le_bytes);
            let row = |row: &[u8]| {
                let values: Vec<f32> = row.chunks_exact(4).map(number).collect();
                let finite = values.iter().all(|value| value.is_finite());
                if finite {
                    Ok(Input::Values(values))
                } else {
                    Err(invalid("The data has a number that is NaN or infinite"))
                }
            };
            bytes.chunks_exact(each * 4).map(row).collect()
        }
        (None, Some(Numbers(numbers)), _) if numbers.len() != count * each => {
            Err(Invalid(format!("The data has {} numbers and the shape {}", numbers.len(), count * each)))
        }
        (None, Some(Numbers(numbers)), true) => numbers
            .chunks_exact(each)
            .map(|row| picture(side, row.iter().map(|n| pixel(*n)).collect::<Result<_, _>>()?))
            .collect(),
        (None, Some(Numbers(numbers)), false) => {
            Ok(numbers.chunks_exact(each).map(|row| Input::Values(row.to_vec())).collect())
        }
        (Some(_), Some(_), _) | (None, None, _) => {
            Err(invalid("The input must have either \"data\" or the parameter \"binary_data_size\""))
        }
    }
}

fn exactly(binary: &[u8], said: usize, needed: usize) -> Result<&[u8], Invalid> {
    if said == needed && binary.len() == needed {
        return Ok(binary);
    }
    Err(Invalid(format!(
        "The shape needs {needed} bytes; binary_data_size says {said}, and {} follow the JSON",
        binary.len()
    )))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
fn pixel(number: f32) -> Result<u8, Invalid> {
    if (0.0..=255.0).contains(&number) && number.fract() == 0.0 {
        return Ok(number as u8);
    }
    Err(Invalid(format!("{number} is no UINT8")))
}

fn picture(side: usize, pixels: Vec<u8>) -> Result<Input, Invalid> {
    let side = u32::try_from(side).unwrap_or_default();
    RgbImage::from_raw(side, side, pixels).map(Input::Pixels).ok_or_else(|| invalid("The image has not all its pixels"))
}

pub(super) fn invalid(detail: &str) -> Invalid {
    Invalid(detail.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn request(text: &Value) -> Result<Request, String> {
        read(text.to_string().as_bytes(), None, 2).map_err(|problem| problem.to_string())
    }

    #[test]
    fn data_may_be_nested_or_flat() {
        let nested = json!([[[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]]);
        let flat = json!([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        for data in [nested, flat] {
            let request = request(
                &json!({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": data}]}),
            );
            let inputs = request.expect("a request").inputs;
            let [Input::Pixels(image)] = inputs.as_slice() else { panic!("{inputs:?}") };
            assert_eq!(image.as_raw(), &(1..=12).collect::<Vec<u8>>());
        }
    }

    #[test]
    fn binary_data_follows_the_json() {
        let json = json!({"id": "7", "parameters": {"binary_data_output": true}, "outputs": [{"name": "logits"}],
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 3, 2, 2], "parameters": {"binary_data_size": 96}}]});
        let mut content = json.to_string().into_bytes();
        let head = content.len();
        content.extend((0..24_u8).flat_map(|n| f32::from(n).to_le_bytes()));
        let Ok(request) = read(&content, Some(head), 2) else { panic!("refused") };
        assert_eq!(request.outputs, [Wanted { name: Output::Logits, binary: true }]);
        let [Input::Values(first), Input::Values(second)] = request.inputs.as_slice() else { panic!("not two") };
        assert_eq!((first[0], first[11], second[0]), (0.0, 11.0, 12.0));
        assert!(read(&content[..content.len() - 1], Some(head), 2).is_err());
        let mut broken = content.clone();
        broken[head..head + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(read(&broken, Some(head), 2).is_err_and(|problem| problem.to_string().contains("NaN")));
        assert!(read(&content, Some(content.len() + 1), 2).is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let one = |input: Value| json!({ "inputs": [input] });
        for (wrong, expected) in [
            (json!({}), "missing field"),
            (json!({"inputs": []}), "0 inputs"),
            (one(json!({"name": "image", "datatype": "FP16", "shape": [1, 2, 2, 3], "data": []})), "no input"),
            (one(json!({"name": "image", "datatype": "UINT8", "shape": [1, 3, 2, 2], "data": []})), "shape"),
            (one(json!({"name": "image", "datatype": "UINT8", "shape": [65, 2, 2, 3], "data": []})), "1 to 64"),
            (one(json!({"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [1]})), "1 numbers"),
            (one(json!({"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3]})), "binary_data_size"),
            (
                one(json!({"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": vec![256; 12]})),
                "no UINT8",
            ),
            (one(json!({"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": ["x"]})), "a number"),
            (json!({"id": [1, 2], "inputs": []}), "a string"),
            (
                json!({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": vec![1; 12]}],
                    "outputs": [{"name": "logits"}, {"name": "logits"}]}),
                "named twice",
            ),
        ] {
            let error = request(&wrong).err().unwrap_or_default();
            assert!(error.contains(expected), "{wrong} gave {error:?}");
        }
    }
}
