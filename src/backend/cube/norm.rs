//! Launches of norms.

use burn::backend::{DType, cubecl::dtype_to_storage_type};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use burn_flashinfer_kernels::norm::{self, Add, Norm, Scaling};

use super::tensor::{fresh, in_rows, launched, quantized, rounded_like, rows_of};
use crate::extension::{NormedSum, Rounding, Rows};
use crate::types::RmsNormStyle;

pub(super) fn rms_norm(
    x: CubeTensor,
    weight: CubeTensor,
    rounding: Rounding<CubeBackend>,
    epsilon: f32,
    style: RmsNormStyle,
) -> Rows<CubeBackend> {
    normalised(x, scaling(weight, style), rounding, epsilon)
}

pub(super) fn fused_add_rms_norm(
    x: CubeTensor,
    residual: CubeTensor,
    weight: CubeTensor,
    rounding: Rounding<CubeBackend>,
    epsilon: f32,
    style: RmsNormStyle,
) -> NormedSum<CubeBackend> {
    let (x, residual) = (in_rows(x), into_contiguous(residual));
    let y = match rounding.format {
        None => fresh(&x),
        Some(_) => Some(rounded_like(&x, x.meta.shape().clone(), &rounding)),
    };
    let sum = fresh(&residual);
    let (normed, summed) =
        (y.clone().unwrap_or_else(|| x.clone()), sum.clone().unwrap_or_else(|| residual.clone()));
    if x.meta.num_elements() > 0 {
        let (client, dtype) = (x.client.clone(), dtype_to_storage_type(x.dtype));
        let norm = Norm {
            x: x.binding(),
            add: Some(Add { residual: residual.binding(), sum: sum.map(CubeTensor::binding) }),
            scaling: scaling(weight, style).0,
            y: y.map(CubeTensor::binding),
            quantized: quantized(rounding),
            epsilon,
        };
        launched(norm::launch(&client, norm, dtype, dtype));
    }
    NormedSum { normed: rows_of(normed), sum: summed }
}

pub(super) fn layer_norm_rows(
    x: CubeTensor,
    gamma: CubeTensor,
    beta: CubeTensor,
    rounding: Rounding<CubeBackend>,
    epsilon: f32,
) -> Rows<CubeBackend> {
    let weight_dtype = gamma.dtype;
    let (gamma, beta) = (into_contiguous(gamma).binding(), into_contiguous(beta).binding());
    normalised(x, (Scaling::Layer { gamma, beta }, weight_dtype), rounding, epsilon)
}

/// The weight of a root mean square norm, and its type.
fn scaling(weight: CubeTensor, style: RmsNormStyle) -> (Scaling, DType) {
    let dtype = weight.dtype;
    let weight = into_contiguous(weight).binding();
    match style {
        RmsNormStyle::Plain => (Scaling::Rms(weight), dtype),
        RmsNormStyle::Gemma => (Scaling::GemmaRms(weight), dtype),
    }
}

/// The norms of rows, in a tensor of their own.
fn normalised(
    x: CubeTensor,
    (scaling, weight_dtype): (Scaling, DType),
    rounding: Rounding<CubeBackend>,
    epsilon: f32,
) -> Rows<CubeBackend> {
    let y = rounded_like(&x, x.meta.shape().clone(), &rounding);
    if y.meta.num_elements() > 0 {
        let client = x.client.clone();
        let dtypes = [x.dtype, weight_dtype].map(dtype_to_storage_type);
        let norm = Norm {
            x: in_rows(x).binding(),
            add: None,
            scaling,
            y: Some(y.clone().binding()),
            quantized: quantized(rounding),
            epsilon,
        };
        launched(norm::launch(&client, norm, dtypes[0], dtypes[1]));
    }
    rows_of(y)
}
