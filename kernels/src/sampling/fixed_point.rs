//! Floats as integers: probabilities in fixed point to be added, and radix keys to be compared.
//!
//! A probability mass is a sum of probabilities in fixed point.

use cubecl::prelude::*;

/// Tokens of a row whose masses, of at most 2 times 2^40 each, certainly add up to less than 2^64.
pub const MAX_VOCAB: usize = 1 << 22;
/// The radix key of 0.
pub(crate) const ZERO_KEY: u32 = 0x8000_0000;
/// The radix key of infinity.
const INFINITY_KEY: u32 = 0xff80_0000;

/// A probability in fixed point, as a multiple of 2^-40: rounded down, but at least 1 if it is positive; 0
/// for NaN. Above 2 it counts as 2, so that the sum of a row of 2^21 still fits.
#[cube]
pub(crate) fn fixed_point(p: f32) -> u64 {
    fixed_point_where(p > 0.0f32, p)
}

/// A positive probability in [`fixed_point`] if it counts, else 0.
#[cube]
pub(crate) fn fixed_point_where(counts: bool, p: f32) -> u64 {
    // All of it before the conversion: comparing 64-bit integers takes several instructions.
    let scaled = max(min(p, 2.0f32) * 1_099_511_627_776.0f32, 1.0f32);
    u64::cast_from(select(counts, scaled, 0.0f32))
}

/// The top-p threshold in fixed point: a token counts if those that are more likely have less mass.
///
/// Probabilities are rounded, so that they may add up to more than 1: from 1 on there is no limit, nor with NaN.
#[cube]
pub(crate) fn top_p_mass(top_p: f32) -> u64 {
    select(top_p < 1.0f32, max(fixed_point(top_p), 1u64), u64::MAX)
}

/// An integer for each float, in the same order: 0 for NaN, [`ZERO_KEY`] for both zeros.
#[cube]
pub(crate) fn radix_key(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let key = select(bits >= ZERO_KEY, !bits, bits | ZERO_KEY);
    let key = select(x == 0.0f32, ZERO_KEY, key);
    select(x.is_nan(), 0u32, key)
}

/// The float with a key; NaN if there is none, as for a key beyond infinity.
#[cube]
pub(crate) fn from_radix_key(key: u32) -> f32 {
    f32::reinterpret(select(key >= ZERO_KEY, key - ZERO_KEY, !key))
}

/// The probability with a key in fixed point; keys are from [`ZERO_KEY`] on, or beyond infinity.
#[cube]
pub(crate) fn fixed_point_of_key(key: u32) -> u64 {
    fixed_point(f32::reinterpret(min(key, INFINITY_KEY) - ZERO_KEY))
}
