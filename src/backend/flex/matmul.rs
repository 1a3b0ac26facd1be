//! Matrix products with weights read as they are stored, accumulated in f32 and rounded once.
//!
//! A product of few rows is bound by reading the weights: each is read once and widened in registers. A
//! product of many rows is bound by arithmetic: `x` is transposed once and a panel of weights is widened
//! once. Both stay in the processor's cache during the product.

use std::array::from_fn;

use multiversion::target::match_target;
use rayon::prelude::*;

use super::float::{Float, widen_row};
use super::scratch::{cut, with_scratch};
use super::simd::{self, per_instruction_set};
use super::view::Rows;

/// Rows of `x` up to which the product is bound by reading the weights.
const FEW_ROWS: usize = 8;
/// Multiplications below which waking other threads costs more than it saves.
const PARALLEL: usize = 1 << 18;
/// Multiplications that a thread takes at least.
const GRAIN: usize = 1 << 16;
/// Columns of the output that share a panel of widened weights.
const COLUMNS: usize = 96;
/// Columns at a time: their sums fill the registers of AVX2.
const TOGETHER: usize = 6;
/// Rows and columns that are transposed at a time: a line of the cache.
const TRANSPOSED: usize = 16;
/// Elements of a row of a panel.
const DEPTH: usize = 512;

/// `output = x · weightᵀ` for as many rows of `weight` as `output` has columns.
pub(super) fn rows_nt<E: Float, Y: Float>(
    x: Rows<'_, E, 1>,
    weight: Rows<'_, E, 1>,
    [rows, depth]: [usize; 2],
    output: &mut [Y],
) {
    if !output.is_empty() && depth > 0 {
        let product = Product { x, weight, rows, depth };
        if rows <= FEW_ROWS { product.few(output) } else { product.many(output) }
    }
}

/// [`rows_nt`] in one order of sums for any number of rows.
pub(super) fn many_rows_nt<E: Float, Y: Float>(
    x: Rows<'_, E, 1>,
    weight: Rows<'_, E, 1>,
    [rows, depth]: [usize; 2],
    output: &mut [Y],
) {
    if !output.is_empty() && depth > 0 {
        Product { x, weight, rows, depth }.many(output);
    }
}

struct Product<'a, E> {
    x: Rows<'a, E, 1>,
    weight: Rows<'a, E, 1>,
    rows: usize,
    depth: usize,
}

/// Runs `work` on pieces of `data` and their places, in parallel if there is enough to do.
fn pieces<T: Send>(data: &mut [T], piece: usize, parallel: bool, work: impl Fn(usize, &mut [T]) + Sync) {
    if parallel {
        data.par_chunks_mut(piece).enumerate().for_each(|(at, data)| work(at, data));
    } else {
        data.chunks_mut(piece).enumerate().for_each(|(at, data)| work(at, data));
    }
}

impl<E: Float> Product<'_, E> {
    fn few<Y: Float>(&self, output: &mut [Y]) {
        let (rows, depth) = (self.rows, self.depth);
        let columns = output.len() / rows;
        let parallel = rows * depth * columns >= PARALLEL;
        // A multiple of the columns that are worked on at once.
        let piece = if parallel { (GRAIN / (rows * depth)).max(1).next_multiple_of(8) } else { columns };
        with_scratch(rows * depth, |wide| {
            for (row, wide) in wide.chunks_exact_mut(depth).enumerate() {
                widen_row(self.x.row([row]), wide);
            }
            let wide: &[f32] = wide;
            if rows == 1 {
                pieces(output, piece, parallel, |at, output| few(self, wide, at * piece, output));
                return;
            }
            // In the order of columns, so that a thread owns contiguous memory; transposed at the end.
            let mut by_column = vec![Y::narrow(0.0); output.len()];
            pieces(&mut by_column, piece * rows, parallel, |at, output| few(self, wide, at * piece, output));
            for (row, output) in output.chunks_exact_mut(columns).enumerate() {
                for (output, column) in output.iter_mut().zip(by_column.chunks_exact(rows)) {
                    *output = column[row];
                }
            }
        });
    }

    fn many<Y: Float>(&self, output: &mut [Y]) {
        let (rows, depth) = (self.rows, self.depth);
        let columns = output.len() / rows;
        let parallel = rows * depth * columns >= PARALLEL;
        let lanes = lanes();
        let padded = rows.next_multiple_of(lanes);
        with_scratch(padded * depth, |transposed| {
            // `[blocks of rows, depth, lanes]`
            let block = |at: usize, block: &mut [f32]| {
                block.fill(0.0);
                // A part that stays in the cache at a time, since a row is spread over all of it.
                for (part, block) in block.chunks_mut(TRANSPOSED * lanes).enumerate() {
                    for lane in 0..lanes.min(rows - at * lanes) {
                        let row = &self.x.row([at * lanes + lane])[part * TRANSPOSED..];
                        for (into, from) in block.iter_mut().skip(lane).step_by(lanes).zip(row) {
                            *into = from.widen();
                        }
                    }
                }
            };
            pieces(transposed, depth * lanes, parallel, block);
            let transposed: &[f32] = transposed;
            let mut by_column = vec![0.0; padded * columns];
            pieces(&mut by_column, COLUMNS * padded, parallel, |at, sums| {
                with_scratch(COLUMNS * DEPTH, |panel| many(self, transposed, at * COLUMNS, panel, sums));
            });
            let by_column: &[f32] = &by_column;
            pieces(output, TRANSPOSED * columns, parallel, |at, output| {
                by_row(by_column, padded, at * TRANSPOSED, columns, output);
            });
        });
    }
}

/// Rounds the rows from `first` on of sums that are stored column by column.
///
/// Rows and columns are often multiples of 4 KiB apart, and would evict each other from the cache. So a whole line of each
/// is read once and written once.
fn by_row<Y: Float>(by_column: &[f32], padded: usize, first: usize, columns: usize, output: &mut [Y]) {
    for column in (0..columns).step_by(TRANSPOSED) {
        let width = (columns - column).min(TRANSPOSED);
        let mut tile = [[0.0; TRANSPOSED]; TRANSPOSED];
        for (tile, sums) in tile.iter_mut().zip(by_column[column * padded..].chunks_exact(padded)).take(width)
        {
            for (tile, sum) in tile.iter_mut().zip(&sums[first..]) {
                *tile = *sum;
            }
        }
        for (row, output) in output.chunks_exact_mut(columns).enumerate() {
            for (into, tile) in output[column..][..width].iter_mut().zip(&tile) {
                *into = Y::narrow(tile[row]);
            }
        }
    }
}

per_instruction_set! {
    /// Rows that lie side by side in the transposed `x`, as [`many`] is compiled for this processor.
    fn lanes() -> usize {
        match_target! {
            "x86_64+avx512f" => 32,
            "x86_64+avx2+fma" => 16,
            _ => 8,
        }
    }
}

per_instruction_set! {
    /// `sums[column - first, row] += x[row] · weight[column]` for as many columns as there are sums.
    fn many<E: Float>(
        product: &Product<'_, E>,
        transposed: &[f32],
        first: usize,
        panel: &mut [f32],
        sums: &mut [f32],
    ) {
        match_target! {
            "x86_64+avx512f" => many_body::<E, true, 16, 32>(product, transposed, first, panel, sums),
            "x86_64+avx2+fma" => many_body::<E, true, 8, 16>(product, transposed, first, panel, sums),
            "aarch64+neon" => many_body::<E, true, 4, 8>(product, transposed, first, panel, sums),
            _ => many_body::<E, false, 4, 8>(product, transposed, first, panel, sums),
        }
    }
}

#[inline(always)]
fn many_body<E: Float, const FMA: bool, const WIDTH: usize, const LANES: usize>(
    product: &Product<'_, E>,
    transposed: &[f32],
    first: usize,
    mut panel: &mut [f32],
    sums: &mut [f32],
) {
    let depth = product.depth;
    let padded = product.rows.next_multiple_of(LANES);
    let columns = sums.len() / padded;
    let panel = cut(&mut panel, COLUMNS * DEPTH);
    for from in (0..depth).step_by(DEPTH) {
        let width = (depth - from).min(DEPTH);
        for (column, panel) in panel.chunks_exact_mut(DEPTH).enumerate().take(columns) {
            widen_row(&product.weight.row([first + column])[from..from + width], panel);
        }
        for (block, x) in transposed.chunks_exact(depth * LANES).enumerate() {
            let x = x[from * LANES..][..width * LANES].as_chunks::<WIDTH>().0.as_chunks::<2>().0;
            for column in (0..columns).step_by(TOGETHER) {
                // The padding of the last few columns repeats the last one.
                let columns_of: [usize; TOGETHER] = from_fn(|i| (column + i).min(columns - 1));
                let weights = from_fn(|i| &panel[columns_of[i] * DEPTH..][..width]);
                let parts = simd::outer::<FMA, WIDTH, TOGETHER>(x, weights, [[[0.0; WIDTH]; 2]; TOGETHER]);
                for (i, part) in parts.iter().enumerate().take(columns - column) {
                    let sums = &mut sums[(column + i) * padded + block * LANES..][..LANES];
                    for (sum, part) in sums.iter_mut().zip(part.as_flattened()) {
                        *sum += part;
                    }
                }
            }
        }
    }
}

per_instruction_set! {
    /// `output[column - first, row] = x[row] · weight[column]` for as many columns as there is output.
    fn few<E: Float, Y: Float>(product: &Product<'_, E>, x: &[f32], first: usize, output: &mut [Y]) {
        match_target! {
            "x86_64+avx512f" => few_body::<E, Y, true, 16>(product, x, first, output),
            "x86_64+avx2+fma" => few_body::<E, Y, true, 8>(product, x, first, output),
            "aarch64+neon" => few_body::<E, Y, true, 8>(product, x, first, output),
            _ => few_body::<E, Y, false, 4>(product, x, first, output),
        }
    }
}

#[inline(always)]
fn few_body<E: Float, Y: Float, const FMA: bool, const LANES: usize>(
    product: &Product<'_, E>,
    x: &[f32],
    first: usize,
    output: &mut [Y],
) {
    let rows = product.rows;
    let mut row = 0;
    while row < rows {
        let x = &x[row * product.depth..];
        row += match rows - row {
            1 => few_rows::<E, Y, FMA, LANES, 1, 8>(product, x, first, row, output),
            2 | 3 => few_rows::<E, Y, FMA, LANES, 2, 4>(product, x, first, row, output),
            _ => few_rows::<E, Y, FMA, LANES, 4, 2>(product, x, first, row, output),
        };
    }
}

/// The products of the first `ROWS` rows of `x`, which are the rows `row..` of the output.
#[inline(always)]
fn few_rows<
    E: Float,
    Y: Float,
    const FMA: bool,
    const LANES: usize,
    const ROWS: usize,
    const COLUMNS: usize,
>(
    product: &Product<'_, E>,
    x: &[f32],
    first: usize,
    row: usize,
    output: &mut [Y],
) -> usize {
    let mut x_rows = [x; ROWS];
    for (row, x_row) in x_rows.iter_mut().enumerate() {
        *x_row = &x[row * product.depth..][..product.depth];
    }
    let columns = output.len() / product.rows;
    let whole = columns - columns % COLUMNS;
    for column in (0..whole).step_by(COLUMNS) {
        let mut weights = [product.weight.row([first + column]); COLUMNS];
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = product.weight.row([first + column + i]);
        }
        let dots = simd::dots::<E, FMA, LANES, ROWS, COLUMNS>(x_rows, weights);
        for (i, dots) in dots.iter().enumerate() {
            for (j, dot) in dots.iter().enumerate() {
                output[(column + j) * product.rows + row + i] = Y::narrow(*dot);
            }
        }
    }
    for column in whole..columns {
        let weight = [product.weight.row([first + column])];
        let dots = simd::dots::<E, FMA, LANES, ROWS, 1>(x_rows, weight);
        for (i, [dot]) in dots.into_iter().enumerate() {
            output[column * product.rows + row + i] = Y::narrow(dot);
        }
    }
    ROWS
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, bf16, f16};

    use super::super::view;
    use super::*;

    fn check<E: Float>(rows: usize, depth: usize, columns: usize) {
        let mut state = 1u32;
        let mut values = |len: usize| -> Vec<E> {
            (0..len)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    E::narrow((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
                })
                .collect()
        };
        let (x, weight) = (values(rows * depth), values(columns * depth));
        let mut product = vec![E::narrow(0.0); rows * columns];
        let x_rows = view::tensor(x.clone(), [rows, depth], E::dtype());
        let weight_rows = view::tensor(weight.clone(), [columns, depth], E::dtype());
        rows_nt::<E, E>(Rows::of(&x_rows), Rows::of(&weight_rows), [rows, depth], &mut product);
        let epsilon = match E::dtype() {
            DType::F32 => 1e-6,
            DType::F16 => 4.9e-4,
            _ => 3.9e-3,
        };
        for (at, got) in product.iter().enumerate() {
            let (x, weight) = (&x[at / columns * depth..][..depth], &weight[at % columns * depth..][..depth]);
            let terms = x.iter().zip(weight).map(|(x, w)| f64::from(x.widen()) * f64::from(w.widen()));
            let (want, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            let error = f64::abs(f64::from(got.widen()) - want);
            assert!(
                error <= epsilon * want.abs() + 1e-7 * size + 1e-5,
                "{rows} x {depth} x {columns}: {got} for {want}"
            );
        }
    }

    #[test]
    fn products_of_odd_sizes_agree_with_f64() {
        for rows in [1, 2, 3, 5, 8, 9, 17, 33, 70] {
            for (depth, columns) in [(1, 1), (7, 5), (16, 64), (59, 67), (256, 130), (1030, 9)] {
                check::<f32>(rows, depth, columns);
                check::<f16>(rows, depth, columns);
                check::<bf16>(rows, depth, columns);
            }
        }
        check::<bf16>(1, 512, 2048);
        check::<bf16>(4, 512, 1024);
    }
}
