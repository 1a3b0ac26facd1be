//! Products of segments of rows with matrices of their own, accumulated in f32 and rounded once.
//!
//! Matrices whose rows are outputs are those of a linear layer. Where rows are inputs, a block of columns is
//! widened once, panel by panel. Each panel is multiplied with all rows while it is in the processor's cache.

use burn_flex::FlexTensor;
use multiversion::target::match_target;
use rayon::prelude::*;

use super::float::{Float, widen_row};
use super::matmul;
use super::scratch::with_scratch;
use super::simd::{mul_add, per_instruction_set};
use super::view::{self, Rows, dims, with_rows};
use crate::types::WeightLayout;

/// Columns of a block.
const COLUMNS: usize = 32;
/// Inputs of a piece.
const DEPTH: usize = 256;
/// Multiplications below which waking other threads costs more than it saves.
const PARALLEL: usize = 1 << 18;

/// `x[r] · weights[i]` for the rows `r` and the matrix `i` of each work item
/// `[first row, end of the rows, matrix]`.
pub(super) fn segment_gemm<E: Float>(
    x: FlexTensor,
    weights: FlexTensor,
    work_items: FlexTensor,
    layout: WeightLayout,
) -> FlexTensor {
    let dtype = x.dtype();
    let (x, weights, work_items) = (with_rows(x), with_rows(weights), view::indices(work_items));
    let ([rows, depth], [_, a, b]) = (dims(&x), dims(&weights));
    let columns = if layout == WeightLayout::RowMajor { b } else { a };
    let (x, weights): (Rows<'_, E, 1>, Rows<'_, E, 2>) = (Rows::of(&x), Rows::of(&weights));
    let mut output = vec![E::narrow(0.0); rows * columns];

    let mut work_items: Vec<[usize; 3]> = work_items
        .storage::<i32>()
        .as_chunks()
        .0
        .iter()
        .map(|work: &[i32; 3]| work.map(|word| word as usize))
        .collect();
    work_items.sort_unstable();
    let mut rest = output.as_mut_slice();
    let mut tasks = Vec::with_capacity(work_items.len());
    for [first, end, matrix] in work_items {
        let (own, after) = std::mem::take(&mut rest).split_at_mut((end - first) * columns);
        rest = after;
        tasks.push((x.skip(first), weights.matrix(matrix), end - first, own));
    }
    let multiply = |(x, weight, rows, output): (Rows<'_, E, 1>, Rows<'_, E, 1>, usize, &mut [E])| match layout
    {
        WeightLayout::RowMajor => by_input(&x, &weight, [rows, depth, columns], output),
        WeightLayout::ColumnMajor => matmul::rows_nt::<E, E>(x, weight, [rows, depth], output),
    };
    if rows * depth * columns < PARALLEL {
        tasks.into_iter().for_each(multiply);
    } else {
        tasks.into_par_iter().for_each(multiply);
    }
    view::tensor(output, [rows, columns], dtype)
}

/// `output = x · weight` for `weight` `[depth, columns]`.
fn by_input<E: Float>(
    x: &Rows<'_, E, 1>,
    weight: &Rows<'_, E, 1>,
    [rows, depth, columns]: [usize; 3],
    output: &mut [E],
) {
    with_scratch(rows * depth, |wide| {
        for (row, wide) in wide.chunks_exact_mut(depth).enumerate() {
            widen_row(x.row([row]), wide);
        }
        let wide: &[f32] = wide;
        // `[blocks of columns, rows, columns of a block]`, so that a thread owns contiguous memory.
        let mut sums = vec![0.0; columns.div_ceil(COLUMNS) * rows * COLUMNS];
        let block = |(at, sums): (usize, &mut [f32])| {
            with_scratch(DEPTH * COLUMNS, |piece| block(weight, wide, depth, at * COLUMNS, piece, sums));
        };
        if rows * depth * columns < PARALLEL {
            sums.chunks_exact_mut(rows * COLUMNS).enumerate().for_each(block);
        } else {
            sums.par_chunks_exact_mut(rows * COLUMNS).enumerate().for_each(block);
        }
        for (row, output) in output.chunks_exact_mut(columns).enumerate() {
            for (output, sums) in output.chunks_mut(COLUMNS).zip(sums.chunks_exact(rows * COLUMNS)) {
                for (output, sum) in output.iter_mut().zip(&sums[row * COLUMNS..]) {
                    *output = E::narrow(*sum);
                }
            }
        }
    });
}

per_instruction_set! {
    /// `sums[row] += x[row] · weight[.., first..]`, [`COLUMNS`] of them.
    fn block<E: Float>(
        weight: &Rows<'_, E, 1>,
        x: &[f32],
        depth: usize,
        first: usize,
        piece: &mut [f32],
        sums: &mut [f32],
    ) {
        match_target! {
            "x86_64+avx512f" => block_body::<E, true, 4>(weight, x, depth, first, piece, sums),
            "x86_64+avx2+fma" => block_body::<E, true, 2>(weight, x, depth, first, piece, sums),
            "aarch64+neon" => block_body::<E, true, 2>(weight, x, depth, first, piece, sums),
            _ => block_body::<E, false, 1>(weight, x, depth, first, piece, sums),
        }
    }
}

#[inline(always)]
fn block_body<E: Float, const FMA: bool, const ROWS: usize>(
    weight: &Rows<'_, E, 1>,
    x: &[f32],
    depth: usize,
    first: usize,
    piece: &mut [f32],
    sums: &mut [f32],
) {
    let width = (weight.width() - first).min(COLUMNS);
    let piece = piece.as_chunks_mut::<COLUMNS>().0;
    let sums = sums.as_chunks_mut::<COLUMNS>().0;
    for from in (0..depth).step_by(DEPTH) {
        let len = (depth - from).min(DEPTH);
        for (k, wide) in piece.iter_mut().enumerate().take(len) {
            widen_row(&weight.row([from + k])[first..first + width], wide);
        }
        // The lanes beyond the last column are undefined and are not stored.
        let piece = &piece[..len];
        let x_of = |row: usize| &x[row * depth + from..][..len];
        let (blocks, rest) = sums.as_chunks_mut::<ROWS>();
        for (at, sums) in blocks.iter_mut().enumerate() {
            add::<FMA, ROWS>(std::array::from_fn(|i| x_of(at * ROWS + i)), piece, sums);
        }
        for (at, sum) in rest.iter_mut().enumerate() {
            add::<FMA, 1>([x_of(blocks.len() * ROWS + at)], piece, std::array::from_mut(sum));
        }
    }
}

/// `sums[row] += Σ_k x[row][k] · piece[k]`.
#[inline(always)]
fn add<const FMA: bool, const ROWS: usize>(
    x: [&[f32]; ROWS],
    piece: &[[f32; COLUMNS]],
    sums: &mut [[f32; COLUMNS]; ROWS],
) {
    let mut own = *sums;
    for (k, piece) in piece.iter().enumerate() {
        for row in 0..ROWS {
            let factor = x[row][k];
            for lane in 0..COLUMNS {
                own[row][lane] = mul_add::<FMA>(factor, piece[lane], own[row][lane]);
            }
        }
    }
    *sums = own;
}
