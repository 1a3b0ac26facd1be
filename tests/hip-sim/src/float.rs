//! The small float formats of gfx942 and the roundings into them.

/// A binary float format of at most 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Small {
    exponent: u32,
    mantissa: u32,
    /// FNUZ: no infinity, no negative zero, and one NaN, which is where negative zero would be.
    fnuz: bool,
}

pub const F16: Small = Small { exponent: 5, mantissa: 10, fnuz: false };
pub const BF16: Small = Small { exponent: 8, mantissa: 7, fnuz: false };
/// E4M3 FNUZ.
pub const FP8: Small = Small { exponent: 4, mantissa: 3, fnuz: true };
/// E5M2 FNUZ.
pub const BF8: Small = Small { exponent: 5, mantissa: 2, fnuz: true };

/// How a value between two representable ones is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    NearestEven,
    TowardZero,
    /// Adds these bits below the last kept one, then cuts: the top bits decide.
    Stochastic(u32),
}

impl Small {
    const fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - if self.fnuz { 0 } else { 1 }
    }

    const fn sign(self) -> u32 {
        1 << (self.exponent + self.mantissa)
    }

    /// Bits of the largest finite value, without sign.
    const fn largest(self) -> u32 {
        if self.fnuz { self.sign() - 1 } else { (((1 << self.exponent) - 1) << self.mantissa) - 1 }
    }

    const fn nan(self) -> u32 {
        if self.fnuz { self.sign() } else { self.sign() - (1 << (self.mantissa - 1)) }
    }

    /// The value as `f64`, which holds every value of every small format.
    pub fn decode(self, bits: u32) -> f64 {
        let exponent = (bits >> self.mantissa) & ((1 << self.exponent) - 1);
        let mantissa = bits & ((1 << self.mantissa) - 1);
        let negative = bits & self.sign() != 0;
        let magnitude = if self.fnuz && bits & (2 * self.sign() - 1) == self.sign() {
            f64::NAN
        } else if !self.fnuz && exponent == (1 << self.exponent) - 1 {
            if mantissa == 0 { f64::INFINITY } else { f64::NAN }
        } else if exponent == 0 {
            f64::from(mantissa) * power_of_two(1 - self.bias() - self.mantissa as i32)
        } else {
            f64::from(mantissa | 1 << self.mantissa)
                * power_of_two(exponent as i32 - self.bias() - self.mantissa as i32)
        };
        if negative { -magnitude } else { magnitude }
    }

    /// The nearest value; beyond the largest one infinity, or for FNUZ NaN, or with `saturate` the largest.
    pub fn encode(self, value: f64, rounding: Rounding, saturate: bool) -> u32 {
        let bits = value.to_bits();
        let sign = if value.is_sign_negative() { self.sign() } else { 0 };
        if value.is_nan() {
            return if self.fnuz { self.nan() } else { sign | self.nan() };
        }
        let overflow = match (saturate, self.fnuz) {
            (true, _) => sign | self.largest(),
            (false, true) => self.nan(),
            (false, false) => sign | (self.largest() + 1),
        };
        if value.is_infinite() {
            return if self.fnuz || !saturate { overflow } else { sign | (self.largest() + 1) };
        }
        if value == 0.0 {
            return if self.fnuz { 0 } else { sign };
        }
        // Denormals of f64 are far below every small format: their exponent just shifts all out.
        let exponent = ((bits >> 52) & 0x7ff) as i32 - 1023;
        let significand = (bits & ((1 << 52) - 1)) | 1 << 52;
        let biased = exponent + self.bias();
        // Bits that fall off: more for a denormal result, whose exponent field stays 0.
        let dropped = 52 - self.mantissa as i32 + if biased < 1 { 1 - biased } else { 0 };
        let kept = if dropped > 63 { 0 } else { significand >> dropped };
        let rest = if dropped > 63 { 0 } else { significand & ((1 << dropped) - 1) };
        let up = match rounding {
            _ if dropped > 63 => false,
            Rounding::NearestEven => {
                let half = 1u64 << (dropped - 1);
                rest > half || (rest == half && kept & 1 == 1)
            }
            Rounding::TowardZero => false,
            Rounding::Stochastic(random) => {
                let random = if dropped >= 32 {
                    u64::from(random) << (dropped - 32)
                } else {
                    u64::from(random) >> (32 - dropped)
                };
                rest + random >= 1 << dropped
            }
        };
        // The hidden bit and a carry out of the mantissa both add to the exponent field.
        let magnitude = if biased < 1 {
            kept + u64::from(up)
        } else {
            (((biased - 1) as u64) << self.mantissa) + kept + u64::from(up)
        };
        if magnitude > u64::from(self.largest()) {
            return if rounding == Rounding::TowardZero && !self.fnuz {
                sign | self.largest()
            } else {
                overflow
            };
        }
        if magnitude == 0 && self.fnuz { 0 } else { sign | magnitude as u32 }
    }
}

fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// f16 to f32, exactly; branch-free so that lane loops vectorise.
pub fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // Moves the exponent bias, and normalises denormals on the way.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits((254 - 15) << 23)).to_bits();
    let scaled = if magnitude >= 0x7c00 << 13 { magnitude | 0x7f80_0000 } else { scaled };
    f32::from_bits(scaled | u32::from(bits & 0x8000) << 16)
}

/// f32 to f16, to nearest even; branch-free so that lane loops vectorise.
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let normal = magnitude.wrapping_add(0xc800_0fff).wrapping_add((magnitude >> 13) & 1) >> 13;
    // Adding 0.5 aligns a denormal's bits with the last ones of the sum, rounded by the addition.
    let denormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let rounded = if magnitude < 0x3880_0000 { denormal } else { normal };
    let special = if magnitude > 0x7f80_0000 { 0x7e00 | (magnitude >> 13) & 0x3ff } else { 0x7c00 };
    (if magnitude >= 0x4780_0000 { special } else { rounded } | (bits >> 16) & 0x8000) as u16
}

/// bf16 to f32, exactly.
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// `a + b` rounded to odd: a later rounding to fewer bits is then as if it were the only one.
pub fn add_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let part = sum - a;
    let error = (a - (sum - part)) + (b - part);
    let bits = sum.to_bits();
    let inexact = error != 0.0 && !error.is_nan();
    let toward_zero = (error > 0.0) != (sum > 0.0);
    // The neighbour toward the error is odd if the sum is even.
    let odd = if toward_zero { bits.wrapping_sub(1) } else { bits.wrapping_add(1) };
    f64::from_bits(if inexact && bits & 1 == 0 { odd } else { bits })
}

/// `a * b + c` with one rounding, without the library call that `mul_add` is on a CPU without FMA.
pub fn fma_f32(a: f32, b: f32, c: f32) -> f32 {
    add_to_odd(f64::from(a) * f64::from(b), f64::from(c)) as f32
}

/// `a * b + c` of f16 values with one rounding to f16.
pub fn fma_f16(a: f32, b: f32, c: f32) -> u16 {
    let bits = add_to_odd(f64::from(a) * f64::from(b), f64::from(c)).to_bits();
    // To f32 rounded to odd again: what is cut off sets the last bit.
    let cut = bits & 0x1fff_ffff;
    let single = (f64::from_bits(bits ^ cut) as f32).to_bits() | u32::from(cut != 0);
    f32_to_f16(f32::from_bits(single))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_survives_a_round_trip() {
        for bits in 0..=u16::MAX {
            let value = f16_to_f32(bits);
            let general = F16.decode(bits.into());
            assert!(f64::from(value) == general || value.is_nan() && general.is_nan(), "{bits:#x}");
            if !value.is_nan() {
                assert_eq!(f32_to_f16(value), bits);
                assert_eq!(F16.encode(value.into(), Rounding::NearestEven, false), bits.into());
            }
        }
    }

    #[test]
    fn f16_rounding_agrees_with_the_general_one() {
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                if !value.is_nan() {
                    let general = F16.encode(value.into(), Rounding::NearestEven, false);
                    assert_eq!(u32::from(f32_to_f16(value)), general, "{value:e}");
                }
            }
        }
    }

    #[test]
    fn every_fp8_survives_a_round_trip() {
        for format in [FP8, BF8, BF16] {
            for bits in 0..2 * format.sign() {
                let value = format.decode(bits);
                if !value.is_nan() {
                    assert_eq!(format.encode(value, Rounding::NearestEven, false), bits);
                }
            }
        }
        assert_eq!(FP8.decode(0x7f), 240.0);
        assert_eq!(BF8.decode(0x7f), 57344.0);
        assert_eq!(FP8.decode(0x40), 1.0);
        assert!(FP8.decode(0x80).is_nan());
        assert_eq!(FP8.encode(1000.0, Rounding::NearestEven, false), 0x80);
        assert_eq!(FP8.encode(-1000.0, Rounding::NearestEven, true), 0xff);
    }

    #[test]
    fn fused_multiply_add_rounds_once() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            f32::from_bits((state >> 32) as u32)
        };
        for _ in 0..1_000_000 {
            let (a, b, c) = (next(), next(), next());
            let close = -a * b * (1.0 + f32::EPSILON);
            for c in [c, close] {
                let (ours, theirs) = (fma_f32(a, b, c), a.mul_add(b, c));
                assert!(
                    ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(),
                    "{a:e} {b:e} {c:e}"
                );
            }
        }
    }
}
