//! Numbers as integers: probabilities to be added, and keys to be compared.

use cubecl::prelude::*;

/// The key of 0.
pub(crate) const ZERO: u32 = 0x8000_0000;
/// The key of infinity.
const INFINITY: u32 = 0xff80_0000;

/// A probability as a multiple of 2^-40, rounded down, but at least 1 if it is positive; 0 for NaN. Above 2 it counts as
/// 2, so that the sum of a row of 2^21 still fits.
#[cube]
pub(crate) fn mass(p: f32) -> u64 {
    mass_where(p > 0.0f32, p)
}

/// The [`mass`] of a positive probability that counts, and 0 of what does not.
#[cube]
pub(crate) fn mass_where(counts: bool, p: f32) -> u64 {
    // All of it before the conversion: comparing 64-bit integers takes several instructions.
    let scaled = max(min(p, 2.0f32) * 1_099_511_627_776.0f32, 1.0f32);
    u64::cast_from(select(counts, scaled, 0.0f32))
}

/// What the tokens that are more likely must have less of, for a token to be among the `top_p`.
///
/// Masses are rounded, so that they may add up to more than 1: from 1 on there is no limit, nor with NaN.
#[cube]
pub(crate) fn limit_of(top_p: f32) -> u64 {
    select(top_p < 1.0f32, max(mass(top_p), 1u64), u64::MAX)
}

/// An integer for each number, in the same order: 0 for NaN, [`ZERO`] for both zeros.
#[cube]
pub(crate) fn key_of(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let key = select(bits >= ZERO, !bits, bits | ZERO);
    let key = select(x == 0.0f32, ZERO, key);
    select(x.is_nan(), 0u32, key)
}

/// The number with a key; NaN if there is none, as for a key beyond infinity.
#[cube]
pub(crate) fn number_of(key: u32) -> f32 {
    f32::reinterpret(select(key >= ZERO, key - ZERO, !key))
}

/// The mass of the probability with a key from [`ZERO`] on, or beyond infinity.
#[cube]
pub(crate) fn mass_of_key(key: u32) -> u64 {
    mass(f32::reinterpret(min(key, INFINITY) - ZERO))
}
