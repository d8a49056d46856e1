//! Max pooling of what relu leaves, which remembers little for the gradient: `src/pool.cc` says how.
#![allow(unsafe_code, reason = "C++ is called")]

use std::ffi::{c_char, c_void};

use tch::{TchError, Tensor};

use crate::{
    foreign::{Raw, raw, taken},
    fused::Window,
};

unsafe extern "C" {
    fn anneal_pool(out: *mut *mut c_void, x: Raw, kernel: i64, stride: i64, padding: i64) -> *mut c_char;
}

/// `max_pool2d(relu(x))` with a square kernel; gradient and result are libtorch's to the bit.
pub(crate) fn relu_max_pool(x: &Tensor, kernel: i64, window: Window) -> Result<Tensor, TchError> {
    // SAFETY: the C++ side keeps to what `taken` asks for, and checks shapes and types.
    unsafe { taken(|out| anneal_pool(out, raw(x), kernel, window.stride, window.padding)) }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    /// Numbers of which many are alike, so that it matters which of equals is taken.
    fn numbers(shape: [i64; 4], kind: Kind) -> Tensor {
        tch::manual_seed(7);
        let [n, channels, height, width] = shape;
        let numbers = Tensor::randint(9, [n, height, width, channels], (Kind::Float, Device::Cpu)) - 5.0;
        (numbers / 3.0).to_kind(kind).permute([0, 3, 1, 2])
    }

    /// A result and the gradient of its sum, weighted.
    fn both(x: &Tensor, pool: impl Fn(&Tensor) -> Tensor) -> (Tensor, Tensor) {
        let x = x.detach_copy().set_requires_grad(true);
        let result = pool(&x);
        tch::manual_seed(8);
        let weights = Tensor::randn(result.size(), (Kind::Float, Device::Cpu)).to_kind(result.kind());
        (&result * weights).sum(result.kind()).backward();
        (result.detach(), x.grad())
    }

    #[test]
    fn result_and_gradient_are_libtorchs_to_the_bit() {
        for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
            for (kernel, stride, padding) in [(3, 2, 1), (2, 2, 0), (5, 1, 2), (2, 3, 0)] {
                for shape in [[3, 64, 32, 32], [2, 5, 7, 10], [1, 1, 5, 5], [2, 33, 13, 6]] {
                    let x = numbers(shape, kind);
                    let (ours, gradient) =
                        both(&x, |x| relu_max_pool(x, kernel, Window { stride, padding }).expect("a result"));
                    let (theirs, their_gradient) =
                        both(&x, |x| x.relu().max_pool2d([kernel; 2], [stride; 2], [padding; 2], [1, 1], false));
                    let case = format!("{kind:?} {shape:?} {kernel} {stride} {padding}");
                    assert_eq!(ours, theirs, "{case}");
                    assert_eq!(gradient, their_gradient, "{case}");
                }
            }
        }
    }

    #[test]
    fn whatever_is_no_number_stays_none() {
        let x = Tensor::from_slice(&[1.0_f32, f32::NAN, 2.0, -f32::NAN]).view([1, 1, 2, 2]);
        let pooled = relu_max_pool(&x, 2, Window { stride: 2, padding: 0 }).expect("a result");
        assert!(pooled.double_value(&[0, 0, 0, 0]).is_nan());
    }

    #[test]
    fn images_below_the_window_are_refused() {
        let x = Tensor::ones([1, 1, 1, 1], (Kind::Float, Device::Cpu));
        let error = relu_max_pool(&x, 2, Window { stride: 2, padding: 0 }).expect_err("a refusal").to_string();
        assert!(error.contains("too small"), "{error}");
    }
}
