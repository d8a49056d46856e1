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
    fn anneal_norm_pool(
        out: *mut *mut c_void,
        x: Raw,
        weight: Raw,
        bias: Raw,
        running_mean: Raw,
        running_var: Raw,
        momentum: f64,
        eps: f64,
        kernel: i64,
        stride: i64,
        padding: i64,
    ) -> *mut c_char;
}

/// A `BatchNorm` that normalises by the batch.
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a Tensor,
    pub(crate) bias: &'a Tensor,
    pub(crate) running_mean: &'a Tensor,
    pub(crate) running_var: &'a Tensor,
    pub(crate) momentum: f64,
    pub(crate) eps: f64,
}

/// `max_pool2d(relu(x))` with a square kernel; gradient and result are libtorch's to the bit.
pub(crate) fn relu_max_pool(x: &Tensor, kernel: i64, window: Window) -> Result<Tensor, TchError> {
    // SAFETY: the C++ side keeps to what `taken` asks for, and checks shapes and types.
    unsafe { taken(|out| anneal_pool(out, raw(x), kernel, window.stride, window.padding)) }
}

/// `max_pool2d(relu(batch_norm(x)))` with a square kernel, which moves the running statistics.
pub(crate) fn norm_relu_max_pool(x: &Tensor, norm: &Norm<'_>, kernel: i64, window: Window) -> Result<Tensor, TchError> {
    let Norm { weight, bias, running_mean, running_var, momentum, eps } = *norm;
    let Window { stride, padding } = window;
    let (x, weight, bias, mean, var) = (raw(x), raw(weight), raw(bias), raw(running_mean), raw(running_var));
    // SAFETY: the C++ side keeps to what `taken` asks for, and checks shapes and types.
    unsafe { taken(|out| anneal_norm_pool(out, x, weight, bias, mean, var, momentum, eps, kernel, stride, padding)) }
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

    /// How far two tensors are from each other, as a share of the other's length.
    fn apart(ours: &Tensor, theirs: &Tensor) -> f64 {
        let length = |tensor: &Tensor| tensor.square().sum(Kind::Double).sqrt().double_value(&[]);
        let (ours, theirs) = (ours.to_kind(Kind::Double), theirs.to_kind(Kind::Double));
        length(&(ours - &theirs)) / length(&theirs)
    }

    /// What a `BatchNorm` of these weights and biases, new otherwise, and a pooling leave: the result, the gradients by images,
    /// weights and biases, and the running statistics.
    fn with_norm(x: &Tensor, channels: &[Tensor; 2], pool: impl Fn(&Tensor, &Norm<'_>) -> Tensor) -> [Tensor; 6] {
        let [weight, bias] = channels.each_ref().map(|numbers| numbers.detach_copy().set_requires_grad(true));
        let (running_mean, running_var) = (bias.detach().zeros_like(), weight.detach().ones_like());
        let norm = Norm {
            weight: &weight,
            bias: &bias,
            running_mean: &running_mean,
            running_var: &running_var,
            momentum: 0.1,
            eps: 1e-5,
        };
        let (result, gradient) = both(x, |x| pool(x, &norm));
        [result, gradient, weight.grad(), bias.grad(), running_mean, running_var]
    }

    fn libtorchs(x: &Tensor, norm: &Norm<'_>) -> Tensor {
        let Norm { weight, bias, running_mean, running_var, momentum, eps } = *norm;
        x.batch_norm(Some(weight), Some(bias), Some(running_mean), Some(running_var), true, momentum, eps, false)
    }

    #[test]
    fn with_a_norm_before_it_result_gradients_and_statistics_are_libtorchs() {
        let windows = [(3, Window { stride: 2, padding: 1 }), (2, Window { stride: 2, padding: 0 })];
        for (kind, of_channels, tolerance) in
            [(Kind::Float, Kind::Float, 1e-5), (Kind::Double, Kind::Double, 1e-12), (Kind::BFloat16, Kind::Float, 2e-2)]
        {
            for ((kernel, window), shape) in
                windows.into_iter().flat_map(|w| [[3, 64, 32, 32], [2, 5, 7, 10], [4, 33, 13, 6]].map(|s| (w, s)))
            {
                let x = numbers(shape, kind);
                let channels =
                    [1.0, 0.1].map(|mean| Tensor::randn([shape[1]], (of_channels, Device::Cpu)) * 0.2 + mean);
                let ours =
                    with_norm(&x, &channels, |x, norm| norm_relu_max_pool(x, norm, kernel, window).expect("a result"));
                let theirs = with_norm(&x, &channels, |x, norm| {
                    relu_max_pool(&libtorchs(x, norm), kernel, window).expect("a result")
                });
                for (index, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                    assert_eq!((ours.size(), ours.kind()), (theirs.size(), theirs.kind()));
                    let apart = apart(ours, theirs);
                    assert!(apart < tolerance, "{kind:?} {shape:?} {kernel} {window:?} {index}: {apart} apart");
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
