//! Plain multiplications for any alignment, on any device whose units run in planes.

use cubecl::{ir::ElemType, prelude::*};

use crate::math::narrow_one;

/// Planes of a cube, which share only the cache that holds `x`.
pub(super) const PLANES: u32 = 4;
/// Least number of loads of weights that a lane has in flight, where a row is long enough.
const IN_FLIGHT: usize = 4;

/// A plane reads one row of the weight and multiplies it with up to `most_rows` rows of `x`: lane `l` of `L` takes the
/// vectors `l, l + L, ..` of both. Sums are f32, of the same products in the same order whatever the other
/// rows of `x` are.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn dot<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<F, N>>,
    y: &mut [F],
    vectors: usize,
    #[comptime] most_rows: usize,
    #[comptime] lanes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let (rows, outputs) = (x.shape(0), weight.shape(0));
    let lane = UNIT_POS_X as usize;
    let blocks = outputs.div_ceil(comptime!(PLANES as usize));
    let output = CUBE_POS % blocks * comptime!(PLANES as usize) + UNIT_POS_Y as usize;
    let first_row = CUBE_POS / blocks * most_rows;
    if output >= outputs || first_row >= rows {
        terminate!();
    }
    let at = output * weight.stride(0) / N::value();
    let stride = x.stride(0) / N::value();
    let mut sums = Array::<Vector<f32, N>>::new(most_rows);
    #[unroll]
    for r in 0..most_rows {
        sums[r] = Vector::new(0.0f32);
    }
    let mut i = lane;
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
                let row = min(first_row + r, rows - 1);
                sums[r] += w * Vector::<f32, N>::cast_from(x[row * stride + i + comptime!(f * lanes)]);
            }
        }
        i += comptime!(IN_FLIGHT * lanes);
    }
    while i < vectors {
        let w = Vector::<f32, N>::cast_from(weight[at + i]);
        #[unroll]
        for r in 0..most_rows {
            sums[r] += w * Vector::<f32, N>::cast_from(x[min(first_row + r, rows - 1) * stride + i]);
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
        if lane == 0 && first_row + r < rows {
            y[(first_row + r) * outputs + output] = narrow_one::<F>(sum);
        }
    }
}
