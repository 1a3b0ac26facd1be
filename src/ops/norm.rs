//! Normalisation.

use burn::{
    backend::Dispatch,
    tensor::{DType, Tensor},
};

use crate::check::{Floats, shape};
use crate::error::{Error, Result};
use crate::extension::{FlashInferBackend, RmsNormStyle};

/// Root-mean-square normalisation of the last axis: `x / sqrt(mean(x²) + epsilon) * weight`.
///
/// `x`: `[…, width]`, `weight`: `[width]`, of the same type. Computed in f32 and rounded once.
///
/// # Errors
///
/// If shapes, types or devices do not fit together, `epsilon` is negative or not finite, or a tensor requires a
/// gradient.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f32) -> Result<Tensor<D>> {
    rms("rms_norm", x, weight, epsilon, RmsNormStyle::Plain)
}

/// [`rms_norm`] as Gemma has it: `x / sqrt(mean(x²) + epsilon) * (1 + weight)`.
///
/// # Errors
///
/// As [`rms_norm`].
pub fn gemma_rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f32) -> Result<Tensor<D>> {
    rms("gemma_rms_norm", x, weight, epsilon, RmsNormStyle::Gemma)
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
    fused_add_rms("fused_add_rms_norm", x, residual, weight, epsilon, RmsNormStyle::Plain)
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
    fused_add_rms("gemma_fused_add_rms_norm", x, residual, weight, epsilon, RmsNormStyle::Gemma)
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
    let floats = Floats::first(OP, "x", &x)?;
    if gamma.dtype() == DType::F32 {
        floats.f32("gamma", &gamma)?;
        floats.f32("beta", &beta)?;
    } else {
        floats.like("gamma", &gamma)?;
        floats.like("beta", &beta)?;
    }
    let [rows, width] = rows(OP, &x, &[("gamma", &gamma), ("beta", &beta)], epsilon)?;
    let dims = x.dims();
    let y: Tensor<2> = Tensor::from_dispatch(Dispatch::layer_norm_rows(
        x.reshape([rows, width]).into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        epsilon,
    ));
    Ok(y.reshape(dims))
}

fn rms<const D: usize>(
    op: &'static str,
    x: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f32,
    style: RmsNormStyle,
) -> Result<Tensor<D>> {
    Floats::first(op, "x", &x)?.like("weight", &weight)?;
    let [rows, width] = rows(op, &x, &[("weight", &weight)], epsilon)?;
    let dims = x.dims();
    let x = x.reshape([rows, width]).into_dispatch();
    let y: Tensor<2> = Tensor::from_dispatch(Dispatch::rms_norm(x, weight.into_dispatch(), epsilon, style));
    Ok(y.reshape(dims))
}

fn fused_add_rms<const D: usize>(
    op: &'static str,
    x: Tensor<D>,
    residual: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f32,
    style: RmsNormStyle,
) -> Result<(Tensor<D>, Tensor<D>)> {
    let floats = Floats::first(op, "x", &x)?;
    floats.like("residual", &residual)?;
    floats.like("weight", &weight)?;
    let [rows, width] = rows(op, &x, &[("weight", &weight)], epsilon)?;
    let dims = x.dims();
    if residual.dims() != dims {
        return Err(shape(op, "residual", &residual.dims(), format!("{dims:?}, as `x`")));
    }
    let (y, sum) = Dispatch::fused_add_rms_norm(
        x.reshape([rows, width]).into_dispatch(),
        residual.reshape([rows, width]).into_dispatch(),
        weight.into_dispatch(),
        epsilon,
        style,
    );
    let [y, sum] = [y, sum].map(|rows| Tensor::<2>::from_dispatch(rows).reshape(dims));
    Ok((y, sum))
}

/// `x` as rows, if each of `columns` has one element for each of their columns and `epsilon` is one.
fn rows<const D: usize>(
    op: &'static str,
    x: &Tensor<D>,
    columns: &[(&'static str, &Tensor<1>)],
    epsilon: f32,
) -> Result<[usize; 2]> {
    if !(epsilon >= 0.0 && epsilon.is_finite()) {
        return Err(Error::Value {
            op,
            argument: "epsilon",
            got: epsilon.to_string(),
            expected: "a finite number, at least 0".into(),
        });
    }
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
