//! Normalisation.

use burn::{
    backend::Dispatch,
    tensor::{DType, Float, Int, Tensor},
};

use super::quantization::{Quantization, Rounded, check_quantization, rounding};
use crate::check::{self, Floats, shape};
use crate::dispatch::IntoBackend;
use crate::error::Result;
use crate::extension::{FlashInferBackend, NormedSum};
use crate::types::RmsNormStyle;

/// Root-mean-square normalisation of the last axis: `x / sqrt(mean(x²) + epsilon) * weight`.
///
/// `x`: `[…, width]`, `weight`: `[width]`, of the same type. Computed in f32 and rounded once.
///
/// # Errors
///
/// If shapes, types or devices do not fit together, `epsilon` is negative or not finite, or a tensor requires a
/// gradient.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f32) -> Result<Tensor<D>> {
    const OP: &str = "rms_norm";
    rms(OP, x, weight, epsilon, RmsNormStyle::Plain, None)?.numbers(OP)
}

/// [`rms_norm`] in 8 bits: divided by the scale of `quantization`, and rounded once.
///
/// ```
/// use burn::tensor::{DType, Device, Distribution, Tensor};
/// use burn_flashinfer::{Fp8, Quantization, rms_norm_quant};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let x = Tensor::<2>::random([3, 64], Distribution::Default, &device);
/// let scale = Tensor::<1>::from_floats([0.01], &device);
/// let quantization = Quantization::new(Fp8::e4m3_of(&device), scale)?;
/// let codes = rms_norm_quant(x, Tensor::ones([64], &device), 1e-5, &quantization)?;
/// assert_eq!((codes.dims(), codes.dtype()), ([3, 64], DType::U8));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// As [`rms_norm`], and if the scale is on another device.
pub fn rms_norm_quant<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f32,
    quantization: &Quantization,
) -> Result<Tensor<D, Int>> {
    const OP: &str = "rms_norm_quant";
    rms(OP, x, weight, epsilon, RmsNormStyle::Plain, Some(quantization))?.codes(OP)
}

/// [`rms_norm`] in Gemma's form: `x / sqrt(mean(x²) + epsilon) * (1 + weight)`.
///
/// # Errors
///
/// As [`rms_norm`].
pub fn gemma_rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f32) -> Result<Tensor<D>> {
    const OP: &str = "gemma_rms_norm";
    rms(OP, x, weight, epsilon, RmsNormStyle::Gemma, None)?.numbers(OP)
}

/// [`gemma_rms_norm`] in 8 bits.
///
/// # Errors
///
/// As [`rms_norm_quant`].
pub fn gemma_rms_norm_quant<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f32,
    quantization: &Quantization,
) -> Result<Tensor<D, Int>> {
    const OP: &str = "gemma_rms_norm_quant";
    rms(OP, x, weight, epsilon, RmsNormStyle::Gemma, Some(quantization))?.codes(OP)
}

/// Adds `x` to the residual stream and normalises the sum: with `t = x + residual`, returns
///
/// `t / sqrt(mean(t²) + epsilon) * weight` and `t`.
///
/// `x`, `residual`: `[…, width]`, `weight`: `[width]`, all of the same type. `t` is f32 in both results, which are
/// rounded once. They take the memory of `x` and of `residual` where these have no other owner: to save it, do not keep
/// clones of them.
///
/// # Errors
///
/// As [`rms_norm`].
pub fn fused_add_rms_norm<const D: usize>(
    x: Tensor<D>,
    residual: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f32,
) -> Result<(Tensor<D>, Tensor<D>)> {
    const OP: &str = "fused_add_rms_norm";
    let (normed, sum) = fused_add_rms(OP, x, residual, weight, epsilon, RmsNormStyle::Plain, None)?;
    Ok((normed.numbers(OP)?, sum))
}

/// [`fused_add_rms_norm`], whose norms are in 8 bits; the sums are not.
///
/// # Errors
///
/// As [`rms_norm_quant`].
pub fn fused_add_rms_norm_quant<const D: usize>(
    x: Tensor<D>,
    residual: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f32,
    quantization: &Quantization,
) -> Result<(Tensor<D, Int>, Tensor<D>)> {
    const OP: &str = "fused_add_rms_norm_quant";
    let style = RmsNormStyle::Plain;
    let (normed, sum) = fused_add_rms(OP, x, residual, weight, epsilon, style, Some(quantization))?;
    Ok((normed.codes(OP)?, sum))
}

/// [`fused_add_rms_norm`] in Gemma's form: multiplied by `1 + weight`.
///
/// # Errors
///
/// As [`rms_norm`].
pub fn gemma_fused_add_rms_norm<const D: usize>(
    x: Tensor<D>,
    residual: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f32,
) -> Result<(Tensor<D>, Tensor<D>)> {
    const OP: &str = "gemma_fused_add_rms_norm";
    let (normed, sum) = fused_add_rms(OP, x, residual, weight, epsilon, RmsNormStyle::Gemma, None)?;
    Ok((normed.numbers(OP)?, sum))
}

/// [`gemma_fused_add_rms_norm`], whose norms are in 8 bits; the sums are not.
///
/// # Errors
///
/// As [`rms_norm_quant`].
pub fn gemma_fused_add_rms_norm_quant<const D: usize>(
    x: Tensor<D>,
    residual: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f32,
    quantization: &Quantization,
) -> Result<(Tensor<D, Int>, Tensor<D>)> {
    const OP: &str = "gemma_fused_add_rms_norm_quant";
    let style = RmsNormStyle::Gemma;
    let (normed, sum) = fused_add_rms(OP, x, residual, weight, epsilon, style, Some(quantization))?;
    Ok((normed.codes(OP)?, sum))
}

/// Normalisation of the last axis to mean 0 and variance 1:
/// `(x - mean(x)) / sqrt(mean((x - mean(x))²) + epsilon) * gamma + beta`.
///
/// `x`: `[…, width]`; `gamma`, `beta`: `[width]`, both of the type of `x` or both f32. Computed in f32 and
/// rounded once.
///
/// # Errors
///
/// As [`rms_norm`].
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f32,
) -> Result<Tensor<D>> {
    const OP: &str = "layer_norm";
    layer(OP, x, gamma, beta, epsilon, None)?.numbers(OP)
}

/// [`layer_norm`] in 8 bits.
///
/// # Errors
///
/// As [`rms_norm_quant`].
pub fn layer_norm_quant<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f32,
    quantization: &Quantization,
) -> Result<Tensor<D, Int>> {
    const OP: &str = "layer_norm_quant";
    layer(OP, x, gamma, beta, epsilon, Some(quantization))?.codes(OP)
}

fn layer<const D: usize>(
    op: &'static str,
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f32,
    quantization: Option<&Quantization>,
) -> Result<Rounded<D>> {
    let floats = Floats::first(op, "x", &x)?;
    if gamma.dtype() == DType::F32 {
        floats.f32("gamma", &gamma)?;
        floats.f32("beta", &beta)?;
    } else {
        floats.like("gamma", &gamma)?;
        floats.like("beta", &beta)?;
    }
    let shape = rows(op, &x, &[("gamma", &gamma), ("beta", &beta)], epsilon, quantization)?;
    let dims = x.dims();
    let [x, gamma, beta] = [x.reshape(shape).into_backend(), gamma.into_backend(), beta.into_backend()];
    let rows = Dispatch::layer_norm_rows(x, gamma, beta, rounding(quantization), epsilon);
    Ok(Rounded { rows, dims, origin: floats.origin })
}

fn rms<const D: usize>(
    op: &'static str,
    x: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f32,
    style: RmsNormStyle,
    quantization: Option<&Quantization>,
) -> Result<Rounded<D>> {
    let floats = Floats::first(op, "x", &x)?;
    floats.like("weight", &weight)?;
    let shape = rows(op, &x, &[("weight", &weight)], epsilon, quantization)?;
    let dims = x.dims();
    let x = x.reshape(shape).into_backend();
    let rows = Dispatch::rms_norm(x, weight.into_backend(), rounding(quantization), epsilon, style);
    Ok(Rounded { rows, dims, origin: floats.origin })
}

fn fused_add_rms<const D: usize>(
    op: &'static str,
    x: Tensor<D>,
    residual: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f32,
    style: RmsNormStyle,
    quantization: Option<&Quantization>,
) -> Result<(Rounded<D>, Tensor<D>)> {
    let floats = Floats::first(op, "x", &x)?;
    floats.like("residual", &residual)?;
    floats.like("weight", &weight)?;
    let rows = rows(op, &x, &[("weight", &weight)], epsilon, quantization)?;
    let dims = x.dims();
    if residual.dims() != dims {
        return Err(shape(op, "residual", &residual.dims(), format!("{dims:?}, as `x`")));
    }
    let NormedSum { normed, sum } = Dispatch::fused_add_rms_norm(
        x.reshape(rows).into_backend(),
        residual.reshape(rows).into_backend(),
        weight.into_backend(),
        rounding(quantization),
        epsilon,
        style,
    );
    let origin = floats.origin;
    let sum = origin.tensor::<2, Float>(sum).reshape(dims);
    Ok((Rounded { rows: normed, dims, origin }, sum))
}

/// `x` as rows, if each of `columns` has one element for each of their columns and `epsilon` is one.
fn rows<const D: usize>(
    op: &'static str,
    x: &Tensor<D>,
    columns: &[(&'static str, &Tensor<1>)],
    epsilon: f32,
    quantization: Option<&Quantization>,
) -> Result<[usize; 2]> {
    if let Some(quantization) = quantization {
        check_quantization(op, quantization, &x.device())?;
    }
    check::epsilon(op, "epsilon", epsilon)?;
    let dims = x.dims();
    let width = dims[D - 1];
    if width == 0 {
        return Err(shape(op, "x", &dims, "a last axis that is not empty"));
    }
    for (argument, column) in columns {
        if column.dims() != [width] {
            return Err(shape(op, argument, &column.dims(), format!("[{width}], as the last axis of `x`")));
        }
    }
    Ok([dims[..D - 1].iter().product(), width])
}
