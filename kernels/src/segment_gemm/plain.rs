//! Plain multiplications, on every device. A unit has some columns, or a part of the depth of one column. It
//! takes as many rows at a time as the blueprint has. The kernel is bound by the read of the matrix, once for
//! so many rows. An empty work item has none.

use cubecl::{ir::ElemType, prelude::*};

use super::blueprint::Plain;
use super::work::WORK_WORDS;
use crate::math::{narrow, narrow_one, widen};

/// Least number of loads of the matrix that a unit has in flight, where there are so many.
const IN_FLIGHT: usize = 4;

/// The sum of `sum` over the units with the same columns, in the first of them.
#[cube]
fn over_parts<N: Size>(
    sum: Vector<f32, N>,
    shared: &mut [Vector<f32, N>],
    across: usize,
    part: usize,
    #[comptime] plain: Plain,
) -> Vector<f32, N> {
    let mut sum = sum;
    if comptime!(plain.parts > 1) {
        let spot = part * plain.across + across;
        shared[spot] = sum;
        #[unroll]
        for step in 0..comptime!(plain.parts.ilog2() as usize) {
            let half = comptime!(plain.parts >> (step + 1));
            sync_cube();
            if part < half {
                sum += shared[spot + comptime!(half * plain.across)];
                shared[spot] = sum;
            }
        }
        // The next sums take the same place.
        sync_cube();
    }
    sum
}

/// `weights`: `[matrices, d_in, d_out]`. A unit has a vector of outputs; the lanes of a plane have the same
/// inputs and neighbouring outputs.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn by_input<F: Float, Y: Float, N: Size>(
    x: &Tensor<F>,
    weights: &Tensor<Vector<F, N>>,
    y: &mut [Vector<Y, N>],
    work_items: &[i32],
    count: usize,
    d_in: usize,
    vectors: usize,
    #[comptime] plain: Plain,
    #[define(F, Y)] _dtypes: [ElemType; 2],
) {
    let blocks = vectors.div_ceil(plain.across);
    let index = CUBE_POS / blocks;
    if index >= count {
        terminate!();
    }
    let (across, part) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let column = CUBE_POS % blocks * plain.across + across;
    let work = index * WORK_WORDS;
    let end = usize::cast_from(work_items[work + 1]);
    let matrix = usize::cast_from(work_items[work + 2]) * weights.stride(0) / N::value();
    let at = matrix + min(column, vectors - 1);
    let stride = weights.stride(1) / N::value();
    let mut shared = Shared::<[Vector<f32, N>]>::new_slice(comptime!(plain.across * plain.parts));
    let mut row = usize::cast_from(work_items[work]);
    while row < end {
        let mut sums = Array::<Vector<f32, N>>::new(plain.rows);
        #[unroll]
        for r in 0..plain.rows {
            sums[r] = Vector::new(0.0f32);
        }
        let mut k = part;
        while k + comptime!((IN_FLIGHT - 1) * plain.parts) < d_in {
            let mut read = Array::<Vector<F, N>>::new(IN_FLIGHT);
            #[unroll]
            for f in 0..IN_FLIGHT {
                read[f] = weights[at + (k + comptime!(f * plain.parts)) * stride];
            }
            #[unroll]
            for f in 0..IN_FLIGHT {
                let w = widen::<F, N>(read[f]);
                #[unroll]
                for r in 0..plain.rows {
                    let input = min(row + r, end - 1) * x.stride(0) + k + comptime!(f * plain.parts);
                    sums[r] += w * Vector::new(widen_one::<F>(x[input]));
                }
            }
            k += comptime!(IN_FLIGHT * plain.parts);
        }
        while k < d_in {
            let w = widen::<F, N>(weights[at + k * stride]);
            #[unroll]
            for r in 0..plain.rows {
                sums[r] += w * Vector::new(widen_one::<F>(x[min(row + r, end - 1) * x.stride(0) + k]));
            }
            k += plain.parts;
        }
        #[unroll]
        for r in 0..plain.rows {
            let sum = over_parts::<N>(sums[r], &mut shared, across, part, plain);
            if part == 0 && column < vectors && row + r < end {
                y[(row + r) * vectors + column] = narrow::<Y, N>(sum);
            }
        }
        row += plain.rows;
    }
}

/// `weights`: `[matrices, d_out, d_in]`. A unit has one output, and every vector of inputs of its part.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn by_output<F: Float, Y: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weights: &Tensor<Vector<F, N>>,
    y: &mut [Y],
    work_items: &[i32],
    count: usize,
    vectors: usize,
    d_out: usize,
    #[comptime] plain: Plain,
    #[define(F, Y)] _dtypes: [ElemType; 2],
) {
    let blocks = d_out.div_ceil(plain.across);
    let index = CUBE_POS / blocks;
    if index >= count {
        terminate!();
    }
    // A CPU has one part, and its units are numbered along x as well.
    let unit = UNIT_POS as usize;
    let (across, part) = (unit / plain.parts, unit % plain.parts);
    let column = CUBE_POS % blocks * plain.across + across;
    let work = index * WORK_WORDS;
    let end = usize::cast_from(work_items[work + 1]);
    let matrix = usize::cast_from(work_items[work + 2]) * weights.stride(0);
    let at = (matrix + min(column, d_out - 1) * weights.stride(1)) / N::value();
    let mut shared = Shared::<[Vector<f32, Const<1>>]>::new_slice(comptime!(plain.across * plain.parts));
    let mut row = usize::cast_from(work_items[work]);
    while row < end {
        let mut sums = Array::<Vector<f32, N>>::new(plain.rows);
        #[unroll]
        for r in 0..plain.rows {
            sums[r] = Vector::new(0.0f32);
        }
        let mut i = part;
        while i < vectors {
            let w = widen::<F, N>(weights[at + i]);
            #[unroll]
            for r in 0..plain.rows {
                let input = min(row + r, end - 1) * x.stride(0) / N::value() + i;
                sums[r] += w * widen::<F, N>(x[input]);
            }
            i += plain.parts;
        }
        #[unroll]
        for r in 0..plain.rows {
            let own = Vector::<f32, Const<1>>::new(sums[r].vector_sum());
            let sum = over_parts::<Const<1>>(own, &mut shared, across, part, plain);
            if part == 0 && column < d_out && row + r < end {
                y[(row + r) * d_out + column] = narrow_one::<Y>(sum.extract(0usize));
            }
        }
        row += plain.rows;
    }
}

#[cube]
fn widen_one<F: Float>(x: F) -> f32 {
    widen::<F, Const<1>>(Vector::new(x)).extract(0usize)
}
