//! A linear layer on weights in the order of checkpoints.

use burn::{
    backend::Dispatch,
    tensor::{Float, Tensor},
};

use crate::check::{Floats, shape};
use crate::dispatch::IntoBackend;
use crate::error::Result;
use crate::extension::FlashInferBackend;
use crate::memory;

/// `x · weightᵀ`: a linear layer without bias.
///
/// `x`: `[…, in]`, `weight`: `[out, in]`, as PyTorch and Hugging Face store it; the result is `[…, out]`.
/// Products are accumulated in f32 and rounded once; f32 factors are not rounded to TF32. Weights are read as they are, in
/// f16 and bf16 too. CubeCL's CPU uses Burn's matrix product.
///
/// # Errors
///
/// If shapes, types or devices do not fit together, or a tensor requires a gradient.
pub fn matmul_nt<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Result<Tensor<D>> {
    const OP: &str = "matmul_nt";
    let floats = Floats::first(OP, "x", &x)?;
    floats.like("weight", &weight)?;
    let mut dims = x.dims();
    let [out_dim, in_dim] = weight.dims();
    if dims.last() != Some(&in_dim) {
        return Err(shape(OP, "x", &dims, format!("[…, {in_dim}], as `weight` {:?}", weight.dims())));
    }
    if in_dim == 0 || out_dim == 0 {
        return Err(shape(OP, "weight", &weight.dims(), "no empty axis"));
    }
    let rows = dims[..D - 1].iter().product::<usize>();
    memory::on_device(OP, "x", [1, memory::bytes([rows, out_dim, x.dtype().size()])], &x.device())?;
    let x = x.reshape([rows, in_dim]);
    let y = Dispatch::matmul_nt(x.into_backend(), weight.into_backend());
    dims[D - 1] = out_dim;
    Ok(floats.origin.tensor::<2, Float>(y).reshape(dims))
}
