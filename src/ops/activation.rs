//! Gated activations.

use burn::{backend::Dispatch, tensor::Tensor};

use crate::check::{Floats, shape};
use crate::error::Result;
use crate::extension::{Activation, FlashInferBackend};

/// Multiplies the second half of the last axis with the first one through SiLU: `a / (1 + exp(-a)) * b`, where `a` is
/// `x[…, ..width]` and `b` is `x[…, width..]`.
///
/// `x`: `[…, 2 * width]`; the result is `[…, width]`, computed in f32 and rounded once.
///
/// # Errors
///
/// If the last axis of `x` is odd, its type or device is not one of this crate's, or it requires a gradient.
pub fn silu_and_mul<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>> {
    act_and_mul("silu_and_mul", x, Activation::Silu)
}

/// [`silu_and_mul`] with GELU: `a/2 * (1 + erf(a / sqrt(2))) * b`.
///
/// # Errors
///
/// As [`silu_and_mul`].
pub fn gelu_and_mul<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>> {
    act_and_mul("gelu_and_mul", x, Activation::Gelu)
}

/// [`silu_and_mul`] with GELU by `tanh`: `a/2 * (1 + tanh(sqrt(2/π) * (a + 0.044715 a³))) * b`.
///
/// # Errors
///
/// As [`silu_and_mul`].
pub fn gelu_tanh_and_mul<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>> {
    act_and_mul("gelu_tanh_and_mul", x, Activation::GeluTanh)
}

fn act_and_mul<const D: usize>(op: &'static str, x: Tensor<D>, activation: Activation) -> Result<Tensor<D>> {
    Floats::first(op, "x", &x)?;
    let mut dims = x.dims();
    let width = dims[D - 1];
    if !width.is_multiple_of(2) {
        return Err(shape(op, "x", &dims, "an even last axis"));
    }
    let x = x.reshape([dims[..D - 1].iter().product(), width]);
    let y: Tensor<2> = Tensor::from_dispatch(Dispatch::act_and_mul(x.into_dispatch(), activation));
    dims[D - 1] = width / 2;
    Ok(y.reshape(dims))
}
