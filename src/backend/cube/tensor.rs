//! Tensors as the kernels take and fill them.

use std::fmt::Debug;

use burn::backend::DType;
use burn::tensor::Shape;
use burn_cubecl::{CubeBackend, cubecl::prelude::TensorBinding, kernel::into_contiguous, tensor::CubeTensor};
use burn_flashinfer_kernels::{self as kernels, Quantized};

use crate::extension::{MaybeFloats, Rounding, Rows};
use crate::types::KvLayout;

/// A tensor for the result of an operation on `input`, unless it may be written to `input` itself.
pub(super) fn fresh(input: &CubeTensor) -> Option<CubeTensor> {
    // CubeCL's CPU runtime fails to read an empty tensor that was uploaded.
    let in_place = input.meta.num_elements() > 0
        && input.is_contiguous()
        && input.can_mut()
        && input.is_nonoverlapping();
    (!in_place).then(|| empty_like(input, input.meta.shape().clone(), input.dtype))
}

/// Ends a launch that the caller has checked already.
///
/// A refusal here is a bug of this crate, not bad input: `ops` checks shapes, and blueprints are chosen to fit.
pub(super) fn launched(result: kernels::Result<()>) {
    if let Err(refusal) = result {
        refused(&refusal)
    }
}

#[cold]
#[allow(clippy::panic, reason = "see `launched`")]
pub(super) fn refused(refusal: &impl Debug) -> ! {
    panic!("a checked problem was refused: {refusal:?}")
}

/// The tensor with the elements of its last axis side by side.
pub(super) fn in_rows(tensor: CubeTensor) -> CubeTensor {
    let last = tensor.meta.num_dims() - 1;
    let dense = tensor.meta.shape()[last] <= 1 || tensor.meta.strides()[last] == 1;
    if dense && !tensor.meta.is_tiled() { tensor } else { into_contiguous(tensor) }
}

/// The tensor to write in place: itself if it has no other owner, a copy if it has.
pub(super) fn owned(pool: CubeTensor) -> CubeTensor {
    let pool = in_rows(pool);
    if pool.can_mut() && pool.is_nonoverlapping() { pool } else { into_contiguous(pool).copy() }
}

/// A float tensor as the kernels read it, if there is one: contiguous.
pub(super) fn dense(floats: MaybeFloats<CubeBackend>) -> Option<TensorBinding> {
    floats.into_option().map(|floats| into_contiguous(floats).binding())
}

/// An index tensor as the kernels read it: `i32`, contiguous.
pub(super) fn index(tensor: CubeTensor) -> TensorBinding {
    let tensor =
        if tensor.dtype == DType::I32 { tensor } else { burn_cubecl::kernel::cast(tensor, DType::I32) };
    into_contiguous(tensor).binding()
}

pub(super) fn empty_like(tensor: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    let bytes = shape.num_elements() * dtype.size();
    let handle = tensor.client.empty(bytes);
    CubeTensor::new_contiguous(tensor.client.clone(), tensor.device.clone(), shape, handle, dtype)
}

/// A tensor for rows of floats like those of `tensor`, or of fp8.
pub(super) fn rounded_like(
    tensor: &CubeTensor,
    shape: Shape,
    rounding: &Rounding<CubeBackend>,
) -> CubeTensor {
    empty_like(tensor, shape, rounding.format.map_or(tensor.dtype, |_| DType::U8))
}

/// Floats or fp8 rows, by the type of the tensor.
pub(super) fn rows_of(tensor: CubeTensor) -> Rows<CubeBackend> {
    if tensor.dtype == DType::U8 { Rows::Codes(tensor) } else { Rows::Floats(tensor) }
}

/// Rounding as the kernels take it.
pub(super) fn quantized(rounding: Rounding<CubeBackend>) -> Option<Quantized> {
    match (rounding.scale, rounding.format) {
        (MaybeFloats::Some(scale), Some(format)) => {
            Some(Quantized { format: format.into(), scale: into_contiguous(scale).binding() })
        }
        _ => None,
    }
}

pub(super) fn layout_of(layout: KvLayout) -> kernels::KvLayout {
    match layout {
        KvLayout::Nhd => kernels::KvLayout::Nhd,
        KvLayout::Hnd => kernels::KvLayout::Hnd,
    }
}
