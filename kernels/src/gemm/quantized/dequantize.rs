//! Codes as numbers, once for many rows.

use cubecl::{ir::ElemType, prelude::*};

use crate::fp8::{self, Fp8};
use crate::math::narrow;
use crate::mma::{BLOCK, Scales, WeightFormat};

/// `weight[o, i] = code · scale`, rounded once. A unit has `N` neighbours of e4m3. `codes`: `[d_out, d_in]`, `weight` the same,
/// contiguous; `vectors` are those of a row.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn dequantize_e4m3<E: Float, N: Size>(
    codes: &Tensor<Vector<u8, N>>,
    scales: &[f32],
    weight: &mut [Vector<E, N>],
    vectors: usize,
    total: usize,
    #[comptime] of: Scales,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let (output, vec) = (ABSOLUTE_POS / vectors, ABSOLUTE_POS % vectors);
    let floats =
        fp8::floats::<N>(Vector::cast_from(codes[output * (codes.stride(0) / N::value()) + vec]), Fp8::E4m3);
    let scale = match of {
        Scales::PerTensor => scales[0],
        Scales::PerChannel => scales[output],
        Scales::Block128 => {
            let columns = (vectors * N::value()).div_ceil(BLOCK);
            scales[output / BLOCK * columns + vec * N::value() / BLOCK]
        }
    };
    weight[ABSOLUTE_POS] = narrow::<E, N>(floats * Vector::new(scale));
}

/// `weight[o, i] = (code - zero) · scale`, rounded once. A unit has a word of int4, eight neighbours, in `8 / N` vectors.
/// `codes`: `[d_out, words]`, `weight`: `[d_out, d_in]`, contiguous.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn dequantize_int4<E: Float, N: Size>(
    codes: &Tensor<u32>,
    scales: &Tensor<u32>,
    weight: &mut [Vector<E, N>],
    words: usize,
    total: usize,
    #[comptime] format: WeightFormat,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let (output, at) = (ABSOLUTE_POS / words, ABSOLUTE_POS % words);
    // Word `4 t + j` of a block has the inputs from `32 j + 8 t` on.
    let (block, within) = (at / 16, at % 16);
    let first = block * BLOCK + within % 4 * 32 + within / 4 * 8;
    // Strides count bytes.
    let word = codes[output * (codes.stride(0) / 4) + at];
    let group = comptime!(format.group().unwrap_or(BLOCK));
    let scale = scales[first / group * scales.stride(0) + output];
    let zero = (scale & 0x7fu32) as i32;
    let scale = f32::reinterpret(scale & 0xffff_ff00u32);
    let width = N::value();
    #[unroll]
    for v in 0..comptime!(8 / width) {
        let mut floats = Vector::<f32, N>::empty();
        #[unroll]
        for e in 0..width {
            let i = comptime!(v * width + e);
            let code = (word >> comptime!((4 * (i / 2) + 16 * (i % 2)) as u32)) & 15u32;
            floats.insert(e, f32::cast_from(code as i32 - zero) * scale);
        }
        weight[(output * words * 8 + first) / width + v] = narrow::<E, N>(floats);
    }
}
