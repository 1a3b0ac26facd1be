//! Weights of logits, `exp((x - max) / temperature)`, for every temperature that f32 represents.
//!
//! The maximum is subtracted first: dividing first rounds differences away, and overflows. A temperature is
//! two powers of 2, which are exact, and one factor, so that neither a difference nor a reciprocal leaves the
//! range of f32. At temperature 0 the largest logits have all the weight; at infinity all logits above `-inf`
//! have the same.

use cubecl::prelude::*;

use crate::math::LOG2_E;

/// Bits after the point of a [weight in fixed point](Temperature::fixed_weight).
pub(crate) const WEIGHT_BITS: u32 = 40;

/// A temperature, as the factors on a difference of logits.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Temperature {
    /// A power of 2, on logits: differences of large ones stay finite.
    on_logits: f32,
    /// A power of 2, on differences: tiny ones become normal.
    on_differences: f32,
    /// The reciprocal of the temperature that remains.
    inverse: f32,
    /// False for a temperature below 0 and for NaN.
    pub is_valid: bool,
}

#[cube]
impl Temperature {
    pub(crate) fn new(t: f32) -> Temperature {
        // From 1 on 2^-4, below 2^-64 2^100.
        let on_logits = select(t >= 1.0f32, 0.0625f32, 1.0f32);
        let is_tiny = t < comptime!((-64.0_f32).exp2());
        let on_differences = select(is_tiny, comptime!(100.0_f32.exp2()), 1.0f32);
        // `abs` for -0.0.
        let inverse = 1.0f32 / (t.abs() * on_logits * on_differences);
        Temperature { on_logits, on_differences, inverse, is_valid: t >= 0.0f32 }
    }

    /// `exp((x - max) / temperature)`, in floats: 1 for the maximum, 0 for `-inf`, and all 0 while that is the maximum.
    pub(crate) fn weights<N: Size>(&self, x: Vector<f32, N>, max: f32) -> Vector<f32, N> {
        // While every logit is -inf, subtract 0 instead: (-inf) - (-inf) would be NaN.
        let max = Vector::new(select(max == f32::NEG_INFINITY, 0.0f32, max));
        let on_logits = Vector::new(self.on_logits);
        let difference = (x * on_logits - max * on_logits) * Vector::new(self.on_differences);
        let power = (difference * Vector::new(self.inverse)).exp();
        // At infinite temperature -inf times 0 is NaN.
        let is_none = difference.equal(&Vector::new(f32::NEG_INFINITY));
        let power = select_many(is_none, Vector::new(0.0f32), power);
        select_many(x.equal(&max), Vector::new(1.0f32), power)
    }

    /// [`Self::weights`] of one.
    pub(crate) fn weight(&self, x: f32, max: f32) -> f32 {
        self.weights::<Const<1>>(Vector::new(x), max).extract(0usize)
    }

    /// The weight as a multiple of `2^-bits`, rounded down: to the same bits on every device. `max` is at least `x`.
    ///
    /// Every sum of a product is one fused operation, so that each device that rounds as IEEE 754 has it
    /// returns the same bits: what a compiler fuses of its own accord differs from one to the next.
    pub(crate) fn fixed_weight(&self, x: f32, max: f32, #[comptime] bits: u32) -> u64 {
        let difference = fma(x, self.on_logits, -(max * self.on_logits)) * self.on_differences;
        let factor = self.inverse * LOG2_E;
        // Nothing for NaN: -inf at infinite temperature.
        let counts = difference * factor > comptime!(-(bits as f32) - 1.0);
        let power = select(counts, exp2(difference, factor), 0.0f32);
        let weight = select(x == max, 1.0f32, power);
        u64::cast_from(weight * comptime!((bits as f32).exp2()))
    }
}

/// `2^(x · factor)` for products from -126 to 0, to 2 units in the last place.
#[cube]
fn exp2(x: f32, factor: f32) -> f32 {
    /// Added to a small number, leaves its nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let rounded = fma(x, factor, ROUND);
    let fraction = fma(x, factor, -(rounded - ROUND));
    let p = fma(1.535_336_2e-4_f32, fraction, 1.339_887_5e-3_f32);
    let p = fma(p, fraction, 9.618_437e-3_f32);
    let p = fma(p, fraction, 5.550_332_5e-2_f32);
    let p = fma(p, fraction, 2.402_264_8e-1_f32);
    let p = fma(p, fraction, 6.931_472e-1_f32);
    let p = fma(p, fraction, 1.0f32);
    let power = (u32::reinterpret(rounded) << 23u32) + 0x3f80_0000u32;
    p * f32::reinterpret(power)
}
