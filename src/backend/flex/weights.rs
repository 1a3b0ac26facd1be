//! Unnormalised probabilities of logits, `exp((x - max) / temperature)`, the same as in the kernels of the
//! other devices: see `kernels/src/sampling/weights.rs`.

use std::f32::consts::LOG2_E;

use super::simd;

/// A temperature, as the factors on a difference of logits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Temperature {
    /// A power of 2, on logits: differences of large ones stay finite.
    on_logits: f32,
    /// A power of 2, on differences: tiny ones become normal numbers.
    on_differences: f32,
    /// The reciprocal of the temperature that remains.
    inverse: f32,
    /// False for a temperature below 0 and for NaN.
    pub is_valid: bool,
}

impl Temperature {
    pub(super) fn new(t: f32) -> Self {
        let on_logits = if t >= 1.0 { 0.0625 } else { 1.0 };
        let on_differences = if t < (-64.0_f32).exp2() { 100.0_f32.exp2() } else { 1.0 };
        // `abs` for -0.0.
        let inverse = 1.0 / (t.abs() * on_logits * on_differences);
        Self { on_logits, on_differences, inverse, is_valid: t >= 0.0 }
    }

    #[inline(always)]
    fn difference(&self, x: f32, max: f32) -> f32 {
        (x * self.on_logits - max * self.on_logits) * self.on_differences
    }

    /// `exp((x - max) / temperature)`, in floats: 1 for the maximum, 0 for `-inf`, and all 0 while that is the maximum.
    #[inline(always)]
    pub(super) fn weight<const FMA: bool>(&self, x: f32, max: f32) -> f32 {
        // While every logit is -inf, subtract 0 instead: (-inf) - (-inf) would be NaN.
        let max = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let difference = self.difference(x, max);
        let power = simd::exp::<FMA>(difference * self.inverse);
        // At infinite temperature -inf times 0 is NaN.
        let power = if difference == f32::NEG_INFINITY { 0.0 } else { power };
        if x == max { 1.0 } else { power }
    }

    /// The weight as a multiple of `2^-bits`, rounded down, to the same bits on every device. `max` is at least `x`.
    ///
    /// A whole number, in f64: processors without AVX-512 convert no vectors to integers of 64 bits.
    /// `mul_add` is a library call where the processor has no fused operation: slow there, but the same.
    #[inline(always)]
    pub(super) fn mass(&self, x: f32, max: f32, bits: i32) -> f64 {
        let difference = self.difference(x, max);
        let factor = self.inverse * LOG2_E;
        // Nothing for NaN: -inf at infinite temperature.
        let power = if difference * factor > -(bits as f32) - 1.0 { exp2(difference, factor) } else { 0.0 };
        let weight = if x == max { 1.0 } else { power };
        (f64::from(weight) * f64::from(bits).exp2()).floor()
    }
}

/// `2^(x · factor)` for products from -126 to 0, to 2 units in the last place.
#[inline(always)]
fn exp2(x: f32, factor: f32) -> f32 {
    /// Added to a small number, leaves its nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let rounded = x.mul_add(factor, ROUND);
    let fraction = x.mul_add(factor, -(rounded - ROUND));
    let mut p = 1.535_336_2e-4_f32;
    for coefficient in [1.339_887_5e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0] {
        p = p.mul_add(fraction, coefficient);
    }
    p * f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against f64, over temperatures and logits of all magnitudes.
    #[test]
    fn weights_are_those_of_f64() {
        let mut state = 0x9e37_79b9_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        for _ in 0..1_000_000 {
            let t = f32::from_bits((random() % 0x7f80_0000) | ((random() << 24) & 0x7f00_0000));
            let max = f32::from_bits((random() << 8) ^ random());
            if !max.is_finite() || !t.is_finite() {
                continue;
            }
            // A few temperatures below, or neighbours where those are further apart.
            let x = (f64::from(max) - f64::from(t) * f64::from(random() % 4096) / 128.0) as f32;
            if !x.is_finite() {
                continue;
            }
            let want = if x == max { 1.0 } else { ((f64::from(x) - f64::from(max)) / f64::from(t)).exp() };
            let temperature = Temperature::new(t);
            let got = temperature.mass(x, max, 40) / 40.0_f64.exp2();
            let bound = 1e-5 * want + 2.0_f64.powi(-40);
            assert!((got - want).abs() < bound, "{x:e} below {max:e} at {t:e}: {got:e}, expected {want:e}");
            let got = f64::from(temperature.weight::<false>(x, max));
            assert!((got - want).abs() < 3e-5 * want + 1e-37, "{x:e} below {max:e} at {t:e}: {got:e}");
        }
    }

    #[test]
    fn ends_of_the_range() {
        let (inf, least) = (f32::INFINITY, f32::from_bits(1));
        for (x, max, t, want) in [
            (1.0, 2.0, 0.0, 0.0),
            (1.0, 2.0, -0.0, 0.0),
            (2.0, 2.0, -0.0, 1.0),
            (1.0, 2.0, inf, 1.0),
            (-inf, 2.0, inf, 0.0),
            (2.0, inf, inf, 0.0),
            (inf, inf, inf, 1.0),
            (inf, inf, 1.0, 1.0),
            (least, 2.0 * least, least, (-1.0_f64).exp()),
            (-f32::MAX, f32::MAX, f32::MAX, (-2.0_f64).exp()),
            (-f32::MAX, f32::MAX, 1.0, 0.0),
        ] {
            let temperature = Temperature::new(t);
            assert!(temperature.is_valid);
            let got =
                [temperature.mass(x, max, 40) / 40.0_f64.exp2(), temperature.weight::<false>(x, max).into()];
            assert!(got.iter().all(|got| (got - want).abs() < 1e-6), "{x:e} below {max:e} at {t:e}: {got:?}");
        }
        assert!([-1.0, -least, -inf, f32::NAN].iter().all(|&t| !Temperature::new(t).is_valid));
    }
}
