//! Normalisation.

use burn::{backend::Dispatch, tensor::Tensor};

use crate::check::{Floats, shape};
use crate::error::{Error, Result};
use crate::extension::FlashInferBackend;

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
    let floats = Floats::first(OP, "x", &x)?;
    floats.like("weight", &weight)?;
    if !(epsilon >= 0.0 && epsilon.is_finite()) {
        return Err(Error::Value {
            op: OP,
            argument: "epsilon",
            got: epsilon.to_string(),
            expected: "a finite number, at least 0".into(),
        });
    }
    let dims = x.dims();
    let width = dims[D - 1];
    if width == 0 {
        return Err(shape(OP, "x", &dims, "a last axis that is not empty"));
    }
    if weight.dims() != [width] {
        return Err(shape(OP, "weight", &weight.dims(), format!("[{width}], as the last axis of `x`")));
    }
    let rows = dims[..D - 1].iter().product::<usize>();
    let x = x.reshape([rows, width]);
    let y: Tensor<2> =
        Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), weight.into_dispatch(), epsilon));
    Ok(y.reshape(dims))
}
