//! Plain multiplications for any alignment, on any device whose units run in planes.

use cubecl::{ir::ElemType, prelude::*};

use super::epilogue::{EpilogueArgs, Steps, store_at};

/// Planes of a cube, which share only the cache that holds `x`.
pub(super) const PLANES: u32 = 4;
/// Least number of loads of weights that a lane has in flight, where a row is long enough.
const IN_FLIGHT: usize = 4;

/// A plane reads one row of the weight and multiplies it with up to `most_rows` rows of `x`: lane `l` of `L` takes the
/// vectors `l, l + L, ..` of both; of a gated product it reads both rows of the output. Sums are f32, of the same products
/// in the same order whatever the other rows of `x` are.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn dot<F: Float, Y: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<F, N>>,
    y: &mut [Vector<Y, Const<1>>],
    epilogue: &EpilogueArgs<F>,
    vectors: usize,
    #[comptime] most_rows: usize,
    #[comptime] lanes: usize,
    #[comptime] steps: Steps,
    #[define(F, Y)] _dtypes: [ElemType; 2],
) {
    let (rows, outputs) = (x.shape(0), epilogue.d_out);
    let lane = UNIT_POS_X as usize;
    let blocks = outputs.div_ceil(comptime!(PLANES as usize));
    let output = CUBE_POS % blocks * comptime!(PLANES as usize) + UNIT_POS_Y as usize;
    let first_row = CUBE_POS / blocks * most_rows;
    if output >= outputs || first_row >= rows {
        terminate!();
    }
    let halves = comptime!(steps.halves());
    let mut sums = Array::<f32>::new(comptime!(halves * most_rows));
    #[unroll]
    for half in 0..halves {
        let row = half * outputs + output;
        row_sums::<F, N>(
            x,
            weight,
            &mut sums,
            row,
            first_row,
            vectors,
            comptime!(half * most_rows),
            most_rows,
            lanes,
        );
    }
    #[unroll]
    for r in 0..most_rows {
        if lane == 0 && first_row + r < rows {
            let up = Vector::new(sums[comptime!((halves - 1) * most_rows + r)]);
            let sum = epilogue.finish::<Const<1>>(Vector::new(sums[r]), up, output, steps);
            store_at::<Y, Const<1>>(y, (first_row + r) * outputs + output, sum, steps);
        }
    }
}

/// The products of row `row` of the weight with `most_rows` rows of `x`, to `sums` from `to` on.
#[cube]
fn row_sums<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<F, N>>,
    to: &mut Array<f32>,
    row: usize,
    first_row: usize,
    vectors: usize,
    #[comptime] first: usize,
    #[comptime] most_rows: usize,
    #[comptime] lanes: usize,
) {
    let last_row = x.shape(0) - 1;
    let at = row * weight.stride(0) / N::value();
    let stride = x.stride(0) / N::value();
    let mut sums = Array::<Vector<f32, N>>::new(most_rows);
    #[unroll]
    for r in 0..most_rows {
        sums[r] = Vector::new(0.0f32);
    }
    let mut i = UNIT_POS_X as usize;
    while i + comptime!((IN_FLIGHT - 1) * lanes) < vectors {
        let mut read = Array::<Vector<F, N>>::new(IN_FLIGHT);
        #[unroll]
        for f in 0..IN_FLIGHT {
            read[f] = weight[at + i + comptime!(f * lanes)];
        }
        #[unroll]
        for f in 0..IN_FLIGHT {
            let w = Vector::<f32, N>::cast_from(read[f]);
            #[unroll]
            for r in 0..most_rows {
                let row = min(first_row + r, last_row);
                sums[r] += w * Vector::<f32, N>::cast_from(x[row * stride + i + comptime!(f * lanes)]);
            }
        }
        i += comptime!(IN_FLIGHT * lanes);
    }
    while i < vectors {
        let w = Vector::<f32, N>::cast_from(weight[at + i]);
        #[unroll]
        for r in 0..most_rows {
            sums[r] += w * Vector::<f32, N>::cast_from(x[min(first_row + r, last_row) * stride + i]);
        }
        i += lanes;
    }
    #[unroll]
    for r in 0..most_rows {
        let mut sum = sums[r].vector_sum();
        #[unroll]
        for step in 0..comptime!(lanes.trailing_zeros()) {
            sum += plane_shuffle_xor(sum, comptime!(1u32 << step));
        }
        to[comptime!(first + r)] = sum;
    }
}
