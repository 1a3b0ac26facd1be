//! Launches of products of segments.

use burn::backend::{cubecl::dtype_to_storage_type, ops::FloatTensorOps};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use burn_flashinfer_kernels::segment_gemm::{self, SegmentGemm};

use super::tensor::{empty_like, in_rows, index, launched};
use crate::types::WeightLayout;

pub(super) fn segment_gemm(
    x: CubeTensor,
    weights: CubeTensor,
    work_items: CubeTensor,
    tile_rows: usize,
    layout: WeightLayout,
) -> CubeTensor {
    let (mut weights, mut by_input) = (weights, layout == WeightLayout::RowMajor);
    let strides = weights.meta.strides();
    if strides[2] != 1 && strides[1] == 1 {
        // A transposed view is the other layout.
        weights = CubeBackend::float_swap_dims(weights, 1, 2);
        by_input = !by_input;
    }
    let d_out = weights.meta.shape()[if by_input { 2 } else { 1 }];
    let y = empty_like(&x, [x.meta.shape()[0], d_out].into(), x.dtype);
    let (client, dtype) = (x.client.clone(), dtype_to_storage_type(x.dtype));
    let gemm = SegmentGemm {
        x: in_rows(x).binding(),
        weights: in_rows(weights).binding(),
        y: y.clone().binding(),
        work_items: index(work_items),
        tile_rows,
        by_input,
        epilogue: Default::default(),
    };
    // SAFETY: `SegmentGemm` makes the work items from a checked `Indptr`, and compares their end and the matrices with
    // the tensors when it runs.
    launched(unsafe { segment_gemm::launch(&client, gemm, dtype) });
    y
}
