//! Gated activations.

use burn::{
    backend::Dispatch,
    tensor::{Int, Tensor},
};

use super::quantization::{Quantization, Rounded, check_quantization, rounding};
use crate::check::{Floats, shape};
use crate::dispatch::IntoBackend;
use crate::error::Result;
use crate::extension::FlashInferBackend;
use crate::types::Activation;

/// Multiplies the second half of the last axis with the first one through SiLU: `a / (1 + exp(-a)) * b`, where `a` is
/// `x[…, ..width]` and `b` is `x[…, width..]`.
///
/// `x`: `[…, 2 * width]`; the result is `[…, width]`, computed in f32 and rounded once.
///
/// # Errors
///
/// If the last axis of `x` is odd, its type or device is not one of this crate's, or it requires a gradient.
pub fn silu_and_mul<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>> {
    const OP: &str = "silu_and_mul";
    act_and_mul(OP, x, Activation::Silu, None)?.numbers(OP)
}

/// [`silu_and_mul`] in 8 bits: divided by the scale of `quantization`, and rounded once.
///
/// # Errors
///
/// As [`silu_and_mul`], and if the scale is on another device.
pub fn silu_and_mul_quant<const D: usize>(
    x: Tensor<D>,
    quantization: &Quantization,
) -> Result<Tensor<D, Int>> {
    const OP: &str = "silu_and_mul_quant";
    act_and_mul(OP, x, Activation::Silu, Some(quantization))?.codes(OP)
}

/// [`silu_and_mul`] with GELU: `a/2 * (1 + erf(a / sqrt(2))) * b`.
///
/// # Errors
///
/// As [`silu_and_mul`].
pub fn gelu_and_mul<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>> {
    const OP: &str = "gelu_and_mul";
    act_and_mul(OP, x, Activation::Gelu, None)?.numbers(OP)
}

/// [`gelu_and_mul`] in 8 bits: divided by the scale of `quantization`, and rounded once.
///
/// # Errors
///
/// As [`silu_and_mul`], and if the scale is on another device.
pub fn gelu_and_mul_quant<const D: usize>(
    x: Tensor<D>,
    quantization: &Quantization,
) -> Result<Tensor<D, Int>> {
    const OP: &str = "gelu_and_mul_quant";
    act_and_mul(OP, x, Activation::Gelu, Some(quantization))?.codes(OP)
}

/// [`silu_and_mul`] with GELU by `tanh`: `a/2 * (1 + tanh(sqrt(2/π) * (a + 0.044715 a³))) * b`.
///
/// # Errors
///
/// As [`silu_and_mul`].
pub fn gelu_tanh_and_mul<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>> {
    const OP: &str = "gelu_tanh_and_mul";
    act_and_mul(OP, x, Activation::GeluTanh, None)?.numbers(OP)
}

/// [`gelu_tanh_and_mul`] in 8 bits: divided by the scale of `quantization`, and rounded once.
///
/// # Errors
///
/// As [`silu_and_mul`], and if the scale is on another device.
pub fn gelu_tanh_and_mul_quant<const D: usize>(
    x: Tensor<D>,
    quantization: &Quantization,
) -> Result<Tensor<D, Int>> {
    const OP: &str = "gelu_tanh_and_mul_quant";
    act_and_mul(OP, x, Activation::GeluTanh, Some(quantization))?.codes(OP)
}

fn act_and_mul<const D: usize>(
    op: &'static str,
    x: Tensor<D>,
    activation: Activation,
    quantization: Option<&Quantization>,
) -> Result<Rounded<D>> {
    let origin = Floats::first(op, "x", &x)?.origin;
    if let Some(quantization) = quantization {
        check_quantization(op, quantization, &x.device())?;
    }
    let mut dims = x.dims();
    let width = dims[D - 1];
    if !width.is_multiple_of(2) {
        return Err(shape(op, "x", &dims, "an even last axis"));
    }
    let x = x.reshape([dims[..D - 1].iter().product(), width]);
    let rows = Dispatch::act_and_mul(x.into_backend(), rounding(quantization), activation);
    dims[D - 1] = width / 2;
    Ok(Rounded { rows, dims, origin })
}
