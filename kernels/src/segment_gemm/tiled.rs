//! A cube owns the rows of a work item and some columns, and walks over the inputs. Work items of one matrix
//! are adjacent in the list, and the columns of a work item run side by side. So a matrix is read from memory
//! once for all its work items.
//!
//! On `mma.sync` three stages are in flight while one is multiplied; elsewhere one, in registers.

use cubecl::{ir::ElemType, prelude::*};

use super::work::WORK_WORDS;
use crate::gemm::{EpilogueArgs, Place, Steps, gemm_tile};
use crate::mma::{GemmMma, GemmTileShape};
use crate::staging::Vec16;

/// `x`: `[rows, d_in]`, `weights`: `[matrices, d_in, d_out]` or `[matrices, d_out, d_in]`, in vec16s but with
/// strides in elements; `y`: `[rows, d_out]`.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn segment_gemm<U: GemmMma, E: Float>(
    x: &Tensor<Vec16>,
    weights: &Tensor<Vec16>,
    y: &mut [Vector<E, U::Run>],
    work_items: &[i32],
    epilogue: &EpilogueArgs<E>,
    count: usize,
    d_in: usize,
    #[comptime] tiles: GemmTileShape,
    #[comptime] steps: Steps,
    #[define(E)] _dtype: ElemType,
) {
    let columns = comptime!(tiles.columns::<U>() / steps.halves());
    let d_out = epilogue.d_out;
    let blocks = d_out.div_ceil(columns);
    let index = CUBE_POS / blocks;
    if index >= count {
        terminate!();
    }
    let work = index * WORK_WORDS;
    let place = Place {
        first_row: usize::cast_from(work_items[work]),
        end_row: usize::cast_from(work_items[work + 1]),
        first_column: CUBE_POS % blocks * columns,
        matrix: usize::cast_from(work_items[work + 2]) * weights.stride(0),
        d_in,
        d_out,
    };
    // An empty work item fills up a list that was made on the device.
    if place.first_row >= place.end_row {
        terminate!();
    }
    gemm_tile::<U, E, E>(x, weights, y, epilogue, &place, tiles, steps);
}
