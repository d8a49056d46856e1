//! Convolutions of oneDNN with what follows them in one pass over memory: `src/fused.cc` says why they need C++.
#![allow(unsafe_code, reason = "C++ is called")]

use std::{
    ffi::{c_char, c_int, c_void},
    ptr::null,
};

use tch::{TchError, Tensor};

use crate::foreign::{Raw, raw, taken};

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
}

/// How a square kernel moves over an image.
#[derive(Clone, Copy, Debug)]
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
    // SAFETY: the C++ side keeps to what `taken` asks for.
    unsafe { taken(|out| anneal_fused_pack(out, raw(weight), window.stride, window.padding)) }
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
    let (x, weight, bias, add) = (raw(x), raw(weight), raw(bias), add.map_or(null(), raw));
    // SAFETY: the C++ side keeps to what `taken` asks for, and checks shapes and types.
    unsafe { taken(|out| anneal_fused_convolution(out, x, weight, bias, stride, padding, add, relu.into())) }
}
