//! Norms of rows: a row is widened, where it must be, and added to, once and stays in the processor's cache.

use burn::tensor::DType;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::float::{Float, with_wide};
use super::output::by_rows;
use super::scratch::with_scratch;
use super::simd::{self, dot, per_instruction_set};
use super::view::{self, Rows, dims, with_rows};
use crate::types::RmsNormStyle;

/// Elements below which waking other threads costs more than it saves.
const PARALLEL: usize = 1 << 16;

/// Root-mean-square norm of the rows of `x` `[rows, width]`.
pub(super) fn rms_norm<E: Float, Y: Float>(x: FlexTensor, factors: &[f32], epsilon: f32) -> FlexTensor {
    normalised::<E, Y>(x, |wide, row| {
        let scale = 1.0 / (squares(wide) / wide.len() as f32 + epsilon).sqrt();
        scaled(wide, scale, factors, row);
    })
}

/// Norm of the rows after subtracting their means.
pub(super) fn layer_norm<E: Float, Y: Float>(
    x: FlexTensor,
    gamma: &[f32],
    beta: &[f32],
    epsilon: f32,
) -> FlexTensor {
    normalised::<E, Y>(x, |wide, row| {
        let width = wide.len() as f32;
        let mean = sum(wide) / width;
        let [distance, squares] = moments(wide, mean);
        // The rounding error of the mean: beside a small deviation it is not small.
        let rest = distance / width;
        let variance = (squares / width - rest * rest).max(0.0);
        let scale = 1.0 / (variance + epsilon).sqrt();
        standardised(wide, [mean, rest], scale, gamma, beta, row);
    })
}

/// Root-mean-square norm of the rows of `x + residual`, and the sums: in place, where a tensor has no other owner.
pub(super) fn fused_add_rms_norm<E: Float>(
    x: FlexTensor,
    residual: FlexTensor,
    factors: &[f32],
    epsilon: f32,
) -> (FlexTensor, FlexTensor) {
    let [rows, width] = dims(&x);
    let (mut x, mut residual) = (view::dense(x), view::dense(residual));
    let ys = &mut x.storage_mut::<E>()[..rows * width];
    let sums = &mut residual.storage_mut::<E>()[..rows * width];
    let one = |(y, sum): (&mut [E], &mut [E])| {
        with_scratch(width, |wide| {
            added(y, sum, wide);
            let scale = 1.0 / (squares(wide) / width as f32 + epsilon).sqrt();
            scaled(wide, scale, factors, y);
        });
    };
    if rows * width < PARALLEL {
        ys.chunks_exact_mut(width).zip(sums.chunks_exact_mut(width)).for_each(one);
    } else {
        ys.par_chunks_exact_mut(width).zip(sums.par_chunks_exact_mut(width)).for_each(one);
    }
    (x, residual)
}

/// The same with f32 norms, for callers that round in another way.
pub(super) fn fused_add_rms_norm_wide<E: Float>(
    x: FlexTensor,
    residual: FlexTensor,
    factors: &[f32],
    epsilon: f32,
) -> (FlexTensor, FlexTensor) {
    let [rows, width] = dims(&x);
    let (x, mut residual) = (view::dense(x), view::dense(residual));
    let sums = &mut residual.storage_mut::<E>()[..rows * width];
    let mut normed = vec![0.0_f32; rows * width];
    let one = |((wide, x), sum): ((&mut [f32], &[E]), &mut [E])| {
        added(x, sum, wide);
        let scale = 1.0 / (squares(wide) / width as f32 + epsilon).sqrt();
        wide.iter_mut().zip(factors).for_each(|(x, factor)| *x = *x * scale * factor);
    };
    let rows_of_x = x.storage::<E>()[..rows * width].par_chunks_exact(width);
    normed.par_chunks_exact_mut(width).zip(rows_of_x).zip(sums.par_chunks_exact_mut(width)).for_each(one);
    (view::tensor(normed, [rows, width], DType::F32), residual)
}

/// The factors of the columns.
pub(super) fn factors(mut weight: Vec<f32>, style: RmsNormStyle) -> Vec<f32> {
    if style == RmsNormStyle::Gemma {
        weight.iter_mut().for_each(|factor| *factor += 1.0);
    }
    weight
}

/// The rows of `x`, each of which `norm` makes of its widened elements.
fn normalised<E: Float, Y: Float>(x: FlexTensor, norm: impl Fn(&[f32], &mut [Y]) + Sync) -> FlexTensor {
    let x = with_rows(x);
    let [rows, width] = dims(&x);
    let source: Rows<'_, E, 1> = Rows::of(&x);
    by_rows([rows, width], PARALLEL, |row, y| {
        with_wide(source.row([row]), |wide| norm(wide, y));
    })
}

per_instruction_set! {
    /// `Σ x²`.
    fn squares(x: &[f32]) -> f32 {
        dot(x, x)
    }
}

per_instruction_set! {
    /// `Σ (x - mean)` and `Σ (x - mean)²`.
    fn moments(x: &[f32], mean: f32) -> [f32; 2] {
        const LANES: usize = 32;
        let (mut distances, mut squares) = ([0.0_f32; LANES], [0.0_f32; LANES]);
        let (blocks, rest) = x.as_chunks::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                let distance = block[lane] - mean;
                distances[lane] += distance;
                squares[lane] += distance * distance;
            }
        }
        for ((x, distances), squares) in rest.iter().zip(&mut distances).zip(&mut squares) {
            let distance = x - mean;
            *distances += distance;
            *squares += distance * distance;
        }
        [simd::sum(distances), simd::sum(squares)]
    }
}

per_instruction_set! {
    /// `y = (x - mean - rest) · scale · gamma + beta`.
    fn standardised<E: Float>(
        x: &[f32],
        [mean, rest]: [f32; 2],
        scale: f32,
        gamma: &[f32],
        beta: &[f32],
        y: &mut [E],
    ) {
        for (((y, x), gamma), beta) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
            *y = E::narrow((x - mean - rest) * scale * gamma + beta);
        }
    }
}

per_instruction_set! {
    /// `y = x · scale · factors`.
    fn scaled<E: Float>(x: &[f32], scale: f32, factors: &[f32], y: &mut [E]) {
        for ((y, x), factor) in y.iter_mut().zip(x).zip(factors) {
            *y = E::narrow(x * scale * factor);
        }
    }
}

per_instruction_set! {
    /// `wide = x + residual`, in f32, and rounded in `residual`.
    fn added<E: Float>(x: &[E], residual: &mut [E], wide: &mut [f32]) {
        for ((wide, x), residual) in wide.iter_mut().zip(x).zip(residual) {
            *wide = x.widen() + residual.widen();
            *residual = E::narrow(*wide);
        }
    }
}

per_instruction_set! {
    /// `Σ x`, in partial sums side by side, as [`dot`] has them.
    fn sum(x: &[f32]) -> f32 {
        const LANES: usize = 32;
        let mut sums = [0.0_f32; LANES];
        let (blocks, rest) = x.as_chunks::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                sums[lane] += block[lane];
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum += x;
        }
        simd::sum(sums)
    }
}
