//! Any bytes as a request of the Open Inference Protocol: JSON, and binary tensors behind it. The first two bytes say how long the
//! JSON is.
#![no_main]

#[allow(dead_code, reason = "the server uses the rest")]
#[path = "../../../server/src/input.rs"]
mod input;
#[allow(dead_code, reason = "the server uses the rest")]
#[path = "../../../server/src/routes/v2/tensor.rs"]
mod tensor;

use input::Input;
use libfuzzer_sys::fuzz_target;
use tensor::{Request, read};

/// Side of the model's input.
const SIDE: i32 = 2;
/// Most images of one request.
const MAX_ROWS: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let Some((head, content)) = bytes.split_first_chunk() else { return };
    let head = Some(usize::from(u16::from_le_bytes(*head))).filter(|head| *head > 0);
    let Ok(Request { inputs, outputs, .. }) = read(content, head, SIDE) else { return };
    assert!((1..=MAX_ROWS).contains(&inputs.len()) && (1..=2).contains(&outputs.len()));
    for input in inputs {
        match input {
            Input::Pixels(image) => assert_eq!(image.dimensions(), (2, 2)),
            Input::Values(values) => assert!(values.len() == 12 && values.iter().all(|value| value.is_finite())),
            Input::File(_) => unreachable!("tensors are no files"),
        }
    }
});
