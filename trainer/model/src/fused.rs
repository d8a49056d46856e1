//! Convolutions of oneDNN with what follows them in one pass over memory: `src/fused.cc` says why they need C++.
#![allow(unsafe_code, reason = "C++ is called")]

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr::{null, null_mut},
};

use tch::{TchError, Tensor};

type Raw = *const c_void;

unsafe extern "C" {
    fn anneal_fused_available() -> c_int;
    fn anneal_fused_pack(out: *mut *mut c_void, weight: Raw, stride: i64, padding: i64) -> *mut c_char;
    fn anneal_fused_convolution(
        out: *mut *mut c_void,
        x: Raw,
        weight: Raw,
        bias: Raw,
        stride: i64,
        padding: i64,
        add: Raw,
        relu: c_int,
    ) -> *mut c_char;
    fn free(memory: *mut c_void);
}

/// Sizes of a convolution with a square kernel.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) stride: i64,
    pub(crate) padding: i64,
}

/// Whether this libtorch has them; builds for some processors do not.
pub(crate) fn available() -> bool {
    // SAFETY: it takes nothing and lets no exception out.
    unsafe { anneal_fused_available() != 0 }
}

/// A weight in the order that the processor computes with, for [`convolution`] only.
pub(crate) fn pack(weight: &Tensor, window: Window) -> Result<Tensor, TchError> {
    // SAFETY: tch's pointers are those of at::Tensor, alive during the call.
    taken(|out| unsafe { anneal_fused_pack(out, weight.as_ptr().cast(), window.stride, window.padding) })
}

/// `conv2d`; then the sum with `add`, into whose memory it is written; then, if so wished, `relu`.
pub(crate) fn convolution(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    window: Window,
    add: Option<&Tensor>,
    relu: bool,
) -> Result<Tensor, TchError> {
    let Window { stride, padding } = window;
    let add = add.map_or(null(), |add| add.as_ptr().cast());
    let (x, weight, bias) = (x.as_ptr().cast(), weight.as_ptr().cast(), bias.as_ptr().cast());
    // SAFETY: tch's pointers are those of at::Tensor, alive during the call; the C++ side checks shapes and types.
    taken(|out| unsafe { anneal_fused_convolution(out, x, weight, bias, stride, padding, add, relu.into()) })
}

/// The tensor that the C++ side made, or what it says.
fn taken(call: impl FnOnce(*mut *mut c_void) -> *mut c_char) -> Result<Tensor, TchError> {
    let mut out = null_mut();
    let message = call(&raw mut out);
    if message.is_null() {
        // SAFETY: without a message there is a new at::Tensor, which from now on is tch's to delete.
        return Ok(unsafe { Tensor::from_ptr(out.cast()) });
    }
    // SAFETY: a message is a C string from malloc, and nobody else has it.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    unsafe { free(message.cast()) };
    Err(TchError::Torch(text))
}
