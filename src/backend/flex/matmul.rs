//! Matrix products with weights read as they are stored.

use burn::backend::{Flex, ops::FloatTensorOps};
use burn::tensor::DType;
use burn_flex::FlexTensor;
use multiversion::multiversion;
use rayon::prelude::*;

use super::float::{Float, dot, widen_row};
use super::view::{self, Rows, dims, with_rows};

/// Rows of `x` up to which the product is bound by reading the weights, and done by reading each just once.
const FEW_ROWS: usize = 8;
/// Multiplications below which waking other threads costs more than it saves: an estimate, not measured yet.
const PARALLEL_WORK: usize = 1 << 17;
/// Output columns that one thread takes at a time.
const COLUMNS: usize = 64;

/// `x · weightᵀ` for `x` `[rows, in]` and `weight` `[out, in]`.
pub(super) fn matmul_nt<E: Float>(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
    let [rows, _] = dims(&x);
    if rows == 0 {
        let [columns, _] = dims(&weight);
        return view::tensor::<E, 2>(Vec::new(), [0, columns], x.dtype());
    }
    if rows <= FEW_ROWS { few_rows::<E>(x, weight) } else { many_rows::<E>(x, weight) }
}

fn few_rows<E: Float>(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
    let dtype = x.dtype();
    let (x, weight) = (with_rows(x), with_rows(weight));
    let ([rows, depth], [columns, _]) = (dims(&x), dims(&weight));
    let source: Rows<'_, E, 1> = Rows::of(&x);
    let weight: Rows<'_, E, 1> = Rows::of(&weight);
    let mut wide = vec![0.0; rows * depth];
    for (row, wide) in wide.chunks_exact_mut(depth).enumerate() {
        widen_row(source.row([row]), wide);
    }
    // Column by column, so that a thread owns consecutive elements; turned round at the end.
    let mut by_column = vec![E::narrow(0.0); columns * rows];
    let block = |(block, out): (usize, &mut [E])| product(&wide, &weight, block * COLUMNS, out, rows, depth);
    if rows * depth * columns < PARALLEL_WORK {
        by_column.chunks_mut(COLUMNS * rows).enumerate().for_each(block);
    } else {
        by_column.par_chunks_mut(COLUMNS * rows).enumerate().for_each(block);
    }
    let output = if rows == 1 {
        by_column
    } else {
        (0..rows).flat_map(|row| by_column.iter().skip(row).step_by(rows).copied()).collect()
    };
    view::tensor(output, [rows, columns], dtype)
}

/// `out[column - first, row] = x[row] · weight[column]`.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
fn product<E: Float>(
    x: &[f32],
    weight: &Rows<'_, E, 1>,
    first: usize,
    out: &mut [E],
    rows: usize,
    depth: usize,
) {
    for (column, out) in out.chunks_exact_mut(rows).enumerate() {
        let weight = weight.row([first + column]);
        for (out, x) in out.iter_mut().zip(x.chunks_exact(depth)) {
            *out = E::narrow(dot(weight, x));
        }
    }
}

/// Burn's matrix product, which is bound by arithmetic and good at it in f32.
fn many_rows<E: Float>(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
    let dtype = x.dtype();
    let product = Flex::float_matmul(to_f32::<E>(x), Flex::float_swap_dims(to_f32::<E>(weight), 0, 1));
    from_f32::<E>(product, dtype)
}

fn to_f32<E: Float>(tensor: FlexTensor) -> FlexTensor {
    if tensor.dtype() == DType::F32 {
        return tensor;
    }
    let tensor = with_rows(tensor);
    let [rows, width] = dims(&tensor);
    let source: Rows<'_, E, 1> = Rows::of(&tensor);
    let mut wide = vec![0.0; rows * width];
    wide.par_chunks_mut(width)
        .enumerate()
        .with_min_len(64)
        .for_each(|(row, wide)| widen(source.row([row]), wide));
    view::tensor(wide, [rows, width], DType::F32)
}

fn from_f32<E: Float>(tensor: FlexTensor, dtype: DType) -> FlexTensor {
    if dtype == DType::F32 {
        return tensor;
    }
    let shape: [usize; 2] = dims(&tensor);
    let narrow = tensor.storage::<f32>().iter().map(|&value| E::narrow(value)).collect();
    view::tensor::<E, 2>(narrow, shape, dtype)
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
fn widen<E: Float>(from: &[E], to: &mut [f32]) {
    widen_row(from, to);
}
