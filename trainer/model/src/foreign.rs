//! Calls of the C++ files beside this one, which take and make tensors as tch has them: pointers to `at::Tensor`.
#![allow(unsafe_code, reason = "C++ is called")]

use std::{
    ffi::{CStr, c_char, c_void},
    ptr::null_mut,
};

use tch::{TchError, Tensor};

/// A tensor that is only looked at, alive during the call.
pub(crate) type Raw = *const c_void;

unsafe extern "C" {
    fn free(memory: *mut c_void);
}

/// A tensor for a call.
pub(crate) fn raw(tensor: &Tensor) -> Raw {
    tensor.as_ptr().cast()
}

/// The tensor that the C++ side made, or what it says.
///
/// # Safety
/// `call` gives either a message from malloc, which nobody else has, or null and a new `at::Tensor` where it was told to.
pub(crate) unsafe fn taken(call: impl FnOnce(*mut *mut c_void) -> *mut c_char) -> Result<Tensor, TchError> {
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
