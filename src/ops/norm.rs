//! Normalisation.

use burn::{
    backend::Dispatch,
    tensor::{DType, Int, Tensor},
};

use crate::check::{self, Floats, shape};
use crate::error::Result;
use crate::extension::{FlashInferBackend, NormedSum, RmsNormStyle, Rows};
use crate::fp8::{Quantization, check_quantization, coded, numbers, rounding};

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
    let dims = x.dims();
    numbers(OP, rms(OP, x, weight, epsilon, RmsNormStyle::Plain, None)?, dims)
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
    let dims = x.dims();
    coded(OP, rms(OP, x, weight, epsilon, RmsNormStyle::Plain, Some(quantization))?, dims)
}

/// [`rms_norm`] as Gemma has it: `x / sqrt(mean(x²) + epsilon) * (1 + weight)`.
///
/// # Errors
///
/// As [`rms_norm`].
pub fn gemma_rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f32) -> Result<Tensor<D>> {
    const OP: &str = "gemma_rms_norm";
    let dims = x.dims();
    numbers(OP, rms(OP, x, weight, epsilon, RmsNormStyle::Gemma, None)?, dims)
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
    let dims = x.dims();
    coded(OP, rms(OP, x, weight, epsilon, RmsNormStyle::Gemma, Some(quantization))?, dims)
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
    let dims = x.dims();
    let (normed, sum) = fused_add_rms(OP, x, residual, weight, epsilon, RmsNormStyle::Plain, None)?;
    Ok((numbers(OP, normed, dims)?, sum))
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
    let (dims, style) = (x.dims(), RmsNormStyle::Plain);
    let (normed, sum) = fused_add_rms(OP, x, residual, weight, epsilon, style, Some(quantization))?;
    Ok((coded(OP, normed, dims)?, sum))
}

/// [`fused_add_rms_norm`] as Gemma has it: multiplied by `1 + weight`.
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
    let dims = x.dims();
    let (normed, sum) = fused_add_rms(OP, x, residual, weight, epsilon, RmsNormStyle::Gemma, None)?;
    Ok((numbers(OP, normed, dims)?, sum))
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
    let (dims, style) = (x.dims(), RmsNormStyle::Gemma);
    let (normed, sum) = fused_add_rms(OP, x, residual, weight, epsilon, style, Some(quantization))?;
    Ok((coded(OP, normed, dims)?, sum))
}

/// Normalisation of the last axis to mean 0 and variance 1:
/// `(x - mean(x)) / sqrt(mean((x - mean(x))²) + epsilon) * gamma + beta`.
///
/// `x`: `[…, width]`; `gamma`, `beta`: `[width]`, both of the type of `x` or both f32. Computed in f32 and rounded once.
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
    let dims = x.dims();
    numbers(OP, layer(OP, x, gamma, beta, epsilon, None)?, dims)
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
    let dims = x.dims();
    coded(OP, layer(OP, x, gamma, beta, epsilon, Some(quantization))?, dims)
}

fn layer<const D: usize>(
    op: &'static str,
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f32,
    quantization: Option<&Quantization>,
) -> Result<Rows<Dispatch>> {
    let floats = Floats::first(op, "x", &x)?;
    if gamma.dtype() == DType::F32 {
        floats.f32("gamma", &gamma)?;
        floats.f32("beta", &beta)?;
    } else {
        floats.like("gamma", &gamma)?;
        floats.like("beta", &beta)?;
    }
    let shape = rows(op, &x, &[("gamma", &gamma), ("beta", &beta)], epsilon, quantization)?;
    Ok(Dispatch::layer_norm_rows(
        x.reshape(shape).into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        rounding(quantization),
        epsilon,
    ))
}

fn rms<const D: usize>(
    op: &'static str,
    x: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f32,
    style: RmsNormStyle,
    quantization: Option<&Quantization>,
) -> Result<Rows<Dispatch>> {
    Floats::first(op, "x", &x)?.like("weight", &weight)?;
    let shape = rows(op, &x, &[("weight", &weight)], epsilon, quantization)?;
    let x = x.reshape(shape).into_dispatch();
    Ok(Dispatch::rms_norm(x, weight.into_dispatch(), rounding(quantization), epsilon, style))
}

fn fused_add_rms<const D: usize>(
    op: &'static str,
    x: Tensor<D>,
    residual: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f32,
    style: RmsNormStyle,
    quantization: Option<&Quantization>,
) -> Result<(Rows<Dispatch>, Tensor<D>)> {
    let floats = Floats::first(op, "x", &x)?;
    floats.like("residual", &residual)?;
    floats.like("weight", &weight)?;
    let rows = rows(op, &x, &[("weight", &weight)], epsilon, quantization)?;
    let dims = x.dims();
    if residual.dims() != dims {
        return Err(shape(op, "residual", &residual.dims(), format!("{dims:?}, as `x`")));
    }
    let NormedSum { normed, sum } = Dispatch::fused_add_rms_norm(
        x.reshape(rows).into_dispatch(),
        residual.reshape(rows).into_dispatch(),
        weight.into_dispatch(),
        rounding(quantization),
        epsilon,
        style,
    );
    Ok((normed, Tensor::<2>::from_dispatch(sum).reshape(dims)))
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
