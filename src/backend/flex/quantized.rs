//! Matrix products with weights of 8 and 4 bits: each row is widened once.

use burn::tensor::{Bytes, DType};
use burn_flex::{Flex, FlexTensor, Layout};
use rayon::prelude::*;

use super::float::{Float, widen_row};
use super::pages::Codes;
use super::simd;
use super::view::{self, Rows, dense, dims, with_rows};
use crate::extension::ScaledRows;
use crate::types::{Fp8, WeightFormat, WeightScales, int4};

/// `x · weightᵀ` for `x` `[rows, in]`, accumulated in f32.
pub(super) fn matmul_nt<E: Float>(
    x: FlexTensor,
    codes: FlexTensor,
    scales: FlexTensor,
    format: WeightFormat,
) -> FlexTensor {
    let dtype = x.dtype();
    let (x, codes, scales) = (with_rows(x), with_rows(codes), dense(scales));
    let ([rows, inputs], [outputs, _]) = (dims(&x), dims(&codes));
    let x: Rows<'_, E, 1> = Rows::of(&x);
    let codes: Rows<'_, u8, 1> = Rows::of(&codes);
    let weight = Weight { scales: scales.storage::<f32>(), format, dims: [outputs, inputs] };
    let mut wide = vec![0.0; rows * inputs];
    for (row, wide) in wide.chunks_exact_mut(inputs).enumerate() {
        widen_row(x.row([row]), wide);
    }
    // In the order of outputs, so that a thread owns contiguous memory; transposed at the end.
    let mut by_output = vec![0.0; rows * outputs];
    if rows > 0 {
        by_output.par_chunks_exact_mut(rows).enumerate().for_each_init(
            || vec![0.0; inputs],
            |numbers, (output, sums)| {
                weight.row(output, codes.row([output]), numbers);
                for (sum, x) in sums.iter_mut().zip(wide.chunks_exact(inputs)) {
                    *sum = simd::dot(x, numbers);
                }
            },
        );
    }
    let places = (0..rows).flat_map(|row| (0..outputs).map(move |output| output * rows + row));
    view::tensor(places.map(|at| E::narrow(by_output[at])).collect(), [rows, outputs], dtype)
}

/// Rows of `x` rounded to codes, each with a scale of its own.
pub(super) fn quantize_rows<E: Float>(x: FlexTensor, format: Fp8) -> ScaledRows<Flex> {
    let x = with_rows(x);
    let [rows, width] = dims(&x);
    let x: Rows<'_, E, 1> = Rows::of(&x);
    let (mut codes, mut scales) = (vec![0_u8; rows * width], vec![1.0_f32; rows]);
    codes.par_chunks_exact_mut(width).zip(&mut scales).enumerate().for_each_init(
        || vec![0.0; width],
        |wide, (row, (codes, scale))| {
            widen_row(x.row([row]), wide);
            // A NaN makes all of its row NaN.
            let larger =
                |most: f32, x: &f32| if x.is_nan() || most.is_nan() { f32::NAN } else { most.max(x.abs()) };
            let least = wide.iter().fold(0.0, larger) / format.max();
            *scale = if least < f32::MIN_POSITIVE { 1.0 } else { least };
            Codes { format: format.into(), scales: vec![*scale] }.encode(wide, codes, 0);
        },
    );
    let codes =
        FlexTensor::new(Bytes::from_elems(codes), Layout::contiguous([rows, width].into()), DType::U8);
    ScaledRows { codes, scales: view::tensor(scales, [rows], DType::F32) }
}

/// A weight `[out, in]` of codes as f32.
pub(super) fn numbers(codes: FlexTensor, scales: FlexTensor, format: WeightFormat) -> FlexTensor {
    let (codes, scales) = (with_rows(codes), dense(scales));
    let [outputs, bytes] = dims(&codes);
    let inputs = match format {
        WeightFormat::E4m3(_) => bytes,
        WeightFormat::Int4 { .. } => 2 * bytes,
    };
    let weight = Weight { scales: scales.storage::<f32>(), format, dims: [outputs, inputs] };
    let codes: Rows<'_, u8, 1> = Rows::of(&codes);
    let mut numbers = vec![0.0; outputs * inputs];
    numbers.par_chunks_exact_mut(inputs).enumerate().for_each(|(output, numbers)| {
        weight.row(output, codes.row([output]), numbers);
    });
    view::tensor(numbers, [outputs, inputs], DType::F32)
}

/// Rows `[rows, in]` of e4m3 codes, times `scales` `[1]` or `[rows]`, as f32: their scales are those of a weight.
pub(super) fn rows(codes: FlexTensor, scales: FlexTensor) -> FlexTensor {
    let [count] = dims(&scales);
    let scales_of = if count == 1 { WeightScales::PerTensor } else { WeightScales::PerChannel };
    numbers(codes, scales, WeightFormat::E4m3(scales_of))
}

struct Weight<'a> {
    scales: &'a [f32],
    format: WeightFormat,
    dims: [usize; 2],
}

impl Weight<'_> {
    /// The numbers of an output.
    fn row(&self, output: usize, codes: &[u8], numbers: &mut [f32]) {
        let scale = |input| self.scales[self.format.scale_at(self.dims, output, input)];
        if let WeightFormat::E4m3(_) = self.format {
            for (input, (number, &code)) in numbers.iter_mut().zip(codes).enumerate() {
                *number = Fp8::E4m3.decode(code) * scale(input);
            }
            return;
        }
        for (word, codes) in codes.chunks_exact(4).enumerate() {
            let first = int4::first_input(word);
            let codes = u32::from_le_bytes([codes[0], codes[1], codes[2], codes[3]]);
            let (scale, zero) = int4::parts(scale(first));
            for (i, number) in numbers[first..first + 8].iter_mut().enumerate() {
                *number = ((codes >> int4::shift(i) & 15) as f32 - zero) * scale;
            }
        }
    }
}
