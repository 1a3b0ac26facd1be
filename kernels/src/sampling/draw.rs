//! Random numbers that are a function of the draw.

use cubecl::prelude::*;

/// Words that describe a draw: both halves of the seed, the stream, both halves of the offset, and the row to
/// draw from.
pub const DRAW_WORDS: usize = 6;

/// The parameters of one draw, of which its random numbers are a function.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Draw {
    seed_low: u32,
    seed_high: u32,
    stream: u32,
    offset_low: u32,
    offset_high: u32,
    /// The row of the token.
    pub row: usize,
}

/// Draw `at` of `[draws, DRAW_WORDS]`.
#[cube]
pub(crate) fn draw_of(words: &[i32], at: usize) -> Draw {
    let first = at * DRAW_WORDS;
    Draw {
        seed_low: u32::reinterpret(words[first]),
        seed_high: u32::reinterpret(words[first + 1]),
        stream: u32::reinterpret(words[first + 2]),
        offset_low: u32::reinterpret(words[first + 3]),
        offset_high: u32::reinterpret(words[first + 4]),
        row: usize::cast_from(words[first + 5]),
    }
}

/// The first two random words of a block.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Words {
    pub a: u32,
    pub b: u32,
}

/// Block `block` of the random words of a draw: Philox 4x32 with 10 rounds, keyed by the seed; the counter is block,
/// stream and offset.
#[cube]
pub(crate) fn philox(block: u32, draw: &Draw) -> Words {
    let mut a = block;
    let mut b = draw.stream;
    let mut c = draw.offset_low;
    let mut d = draw.offset_high;
    let mut low = draw.seed_low;
    let mut high = draw.seed_high;
    #[unroll]
    for _ in 0..10 {
        let (first_high, first_low) = (a.mul_hi(0xd251_1f53u32), a * 0xd251_1f53u32);
        let (second_high, second_low) = (c.mul_hi(0xcd9e_8d57u32), c * 0xcd9e_8d57u32);
        a = second_high ^ b ^ low;
        b = second_low;
        c = first_high ^ d ^ high;
        d = first_low;
        low += 0x9e37_79b9u32;
        high += 0xbb67_ae85u32;
    }
    Words { a, b }
}

/// A number below `total`, all of them as likely, from 64 random bits.
#[cube]
pub(crate) fn below(total: u64, words: &Words) -> u64 {
    high_half(total, (u64::cast_from(words.a) << 32u64) + u64::cast_from(words.b))
}

/// The upper half of a product.
#[cube]
pub(crate) fn high_half(a: u64, b: u64) -> u64 {
    let mask = 0xffff_ffffu64;
    let (a_high, a_low) = (a >> 32u64, a & mask);
    let (b_high, b_low) = (b >> 32u64, b & mask);
    let middle = a_high * b_low + ((a_low * b_low) >> 32u64);
    let carried = a_low * b_high + (middle & mask);
    a_high * b_high + (middle >> 32u64) + (carried >> 32u64)
}
