//! The float formats of gfx942 and the roundings into them.

/// A binary float format of at most 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    exponent: u32,
    mantissa: u32,
    /// FNUZ: no infinity, no negative zero, and one NaN, which is where negative zero would be.
    fnuz: bool,
}

pub const F64: Format = Format { exponent: 11, mantissa: 52, fnuz: false };
pub const F32: Format = Format { exponent: 8, mantissa: 23, fnuz: false };
pub const F16: Format = Format { exponent: 5, mantissa: 10, fnuz: false };
pub const BF16: Format = Format { exponent: 8, mantissa: 7, fnuz: false };
/// The floats of 11 and 10 bits in packed buffer formats, which have no sign.
pub const F11: Format = Format { exponent: 5, mantissa: 6, fnuz: false };
pub const F10: Format = Format { exponent: 5, mantissa: 5, fnuz: false };
/// E4M3 FNUZ.
pub const FP8: Format = Format { exponent: 4, mantissa: 3, fnuz: true };
/// E5M2 FNUZ.
pub const BF8: Format = Format { exponent: 5, mantissa: 2, fnuz: true };

/// How a value between two representable ones is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    NearestEven,
    Up,
    Down,
    TowardZero,
    /// Adds these bits below the last kept one, then cuts: the top bits decide.
    Stochastic(u32),
}

impl Rounding {
    /// As a field of MODE says it.
    pub fn of_mode(field: u32) -> Self {
        match field & 3 {
            0 => Self::NearestEven,
            1 => Self::Up,
            2 => Self::Down,
            _ => Self::TowardZero,
        }
    }
}

/// A finite value, `significand * 2^exponent`, whose lowest bit may stand for everything below it.
#[derive(Debug, Clone, Copy)]
struct Exact {
    negative: bool,
    significand: u128,
    exponent: i32,
}

impl Exact {
    fn of(value: f64) -> Self {
        let bits = value.to_bits();
        let field = (bits >> 52 & 0x7ff) as i32;
        let fraction = u128::from(bits & ((1 << 52) - 1));
        let hidden = if field == 0 { 0 } else { 1 << 52 };
        Self {
            negative: value.is_sign_negative(),
            significand: fraction | hidden,
            exponent: field.max(1) - 1075,
        }
    }

    fn times(self, other: Self) -> Self {
        Self {
            negative: self.negative != other.negative,
            significand: self.significand * other.significand,
            exponent: self.exponent + other.exponent,
        }
    }

    /// The sum of two values of at most 106 bits that are not zero.
    fn plus(self, other: Self) -> Self {
        let top = |x: &Self| x.exponent - x.significand.leading_zeros() as i32;
        let (large, small) = if top(&self) >= top(&other) { (self, other) } else { (other, self) };
        // The larger one as far up as leaves room for a carry and a sign.
        let room = large.significand.leading_zeros() - 2;
        let (exponent, base) = (large.exponent - room as i32, (large.significand << room) as i128);
        let down = exponent - small.exponent;
        let addend = match down {
            ..=0 => small.significand << -down,
            1..=127 => {
                let lost = small.significand & ((1 << down) - 1) != 0;
                small.significand >> down | u128::from(lost)
            }
            _ => 1,
        } as i128;
        let sum = if large.negative == small.negative { base + addend } else { base - addend };
        Self { negative: large.negative != (sum < 0), significand: sum.unsigned_abs(), exponent }
    }
}

impl Format {
    const fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - if self.fnuz { 0 } else { 1 }
    }

    const fn sign(self) -> u64 {
        1 << (self.exponent + self.mantissa)
    }

    /// Bits of the largest finite value, without sign.
    const fn largest(self) -> u64 {
        if self.fnuz { self.sign() - 1 } else { (((1 << self.exponent) - 1) << self.mantissa) - 1 }
    }

    const fn nan(self) -> u64 {
        if self.fnuz { self.sign() } else { self.sign() - (1 << (self.mantissa - 1)) }
    }

    /// The value as `f64`, which holds every value of every format of at most 32 bits.
    pub fn decode(self, bits: u32) -> f64 {
        let exponent = (bits >> self.mantissa) & ((1 << self.exponent) - 1);
        let mantissa = bits & ((1 << self.mantissa) - 1);
        let sign = self.sign() as u32;
        let magnitude = if self.fnuz && bits & (sign | (sign - 1)) == sign {
            f64::NAN
        } else if !self.fnuz && exponent == (1 << self.exponent) - 1 {
            if mantissa == 0 { f64::INFINITY } else { f64::NAN }
        } else if exponent == 0 {
            f64::from(mantissa) * power_of_two(1 - self.bias() - self.mantissa as i32)
        } else {
            f64::from(mantissa | 1 << self.mantissa)
                * power_of_two(exponent as i32 - self.bias() - self.mantissa as i32)
        };
        if bits & sign != 0 { -magnitude } else { magnitude }
    }

    /// The rounded value of a format of at most 32 bits; beyond the largest one infinity, or for FNUZ NaN,
    /// or with `saturate` the largest.
    pub fn encode(self, value: f64, rounding: Rounding, saturate: bool) -> u32 {
        self.scale(value, 0, rounding, saturate) as u32
    }

    /// `value * 2^exponent`, rounded once.
    pub fn scale(self, value: f64, exponent: i32, rounding: Rounding, saturate: bool) -> u64 {
        if value == 0.0 || !value.is_finite() {
            return self.special(value, saturate);
        }
        let exact = Exact::of(value);
        let exponent = exact.exponent + exponent.clamp(-10_000, 10_000);
        self.round(Exact { exponent, ..exact }, rounding, saturate)
    }

    /// `a * b + c`, rounded once.
    pub fn fused(self, a: f64, b: f64, c: f64, rounding: Rounding, saturate: bool) -> u64 {
        let product = a * b;
        if !(a.is_finite() && b.is_finite() && c.is_finite()) {
            return self.special(if a.is_finite() && b.is_finite() { c } else { product + c }, saturate);
        }
        if a == 0.0 || b == 0.0 {
            // Zeros of both signs add up to +0, unless rounding is downward.
            let opposite = c == 0.0 && product.is_sign_negative() != c.is_sign_negative();
            let zero = if rounding == Rounding::Down { -0.0 } else { 0.0 };
            return self.scale(if opposite { zero } else { c }, 0, rounding, saturate);
        }
        let product = Exact::of(a).times(Exact::of(b));
        let sum = if c == 0.0 { product } else { product.plus(Exact::of(c)) };
        if sum.significand == 0 {
            return self.special(if rounding == Rounding::Down { -0.0 } else { 0.0 }, saturate);
        }
        self.round(sum, rounding, saturate)
    }

    /// Zero, infinity and NaN.
    fn special(self, value: f64, saturate: bool) -> u64 {
        let sign = if value.is_sign_negative() { self.sign() } else { 0 };
        if value.is_nan() {
            return if self.fnuz { self.nan() } else { sign | self.nan() };
        }
        match (value == 0.0, self.fnuz, saturate) {
            (true, false, _) => sign,
            (true, true, _) => 0,
            (false, false, _) => sign | (self.largest() + 1),
            (false, true, false) => self.nan(),
            (false, true, true) => sign | self.largest(),
        }
    }

    fn round(self, exact: Exact, rounding: Rounding, saturate: bool) -> u64 {
        let Exact { negative, significand, exponent } = exact;
        let sign = if negative { self.sign() } else { 0 };
        // The significand with its highest bit at the top, below which go the bits that are kept.
        let zeros = significand.leading_zeros();
        let (significand, exponent) = (significand << zeros, exponent - zeros as i32 + 127);
        let biased = exponent + self.bias();
        // Bits that fall off: more for a denormal result, whose exponent field stays 0.
        let dropped = 127 - self.mantissa as i32 + if biased < 1 { 1 - biased } else { 0 };
        let (kept, rest, half) = match dropped {
            ..=127 => (significand >> dropped, significand & ((1 << dropped) - 1), 1 << (dropped - 1)),
            128 => (0, significand, 1 << 127),
            // Less than half: how much less does not matter.
            _ => (0, 1, 1 << 127),
        };
        let up = match rounding {
            Rounding::NearestEven => rest > half || (rest == half && kept & 1 == 1),
            Rounding::Up => rest != 0 && !negative,
            Rounding::Down => rest != 0 && negative,
            Rounding::TowardZero => false,
            Rounding::Stochastic(random) => {
                let top = significand.checked_shr(dropped as u32 - 32).unwrap_or(0) & 0xffff_ffff;
                top + u128::from(random) >> 32 != 0
            }
        };
        // The hidden bit and a carry out of the mantissa both add to the exponent field.
        let hidden = if biased < 1 { 0 } else { (biased - 1) as u64 };
        let magnitude = (u128::from(hidden) << self.mantissa) + kept + u128::from(up);
        if magnitude > u128::from(self.largest()) {
            let stays = match rounding {
                Rounding::TowardZero => true,
                Rounding::Up => negative,
                Rounding::Down => !negative,
                _ => false,
            };
            return match (saturate || stays && !self.fnuz, self.fnuz) {
                (true, _) => sign | self.largest(),
                (false, true) => self.nan(),
                (false, false) => sign | (self.largest() + 1),
            };
        }
        if magnitude == 0 && self.fnuz { 0 } else { sign | magnitude as u64 }
    }
}

#[inline]
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// f16 to f32, exactly; branch-free so that lane loops vectorise.
#[inline]
pub fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // Moves the exponent bias, and normalises denormals on the way.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits((254 - 15) << 23)).to_bits();
    let scaled = if magnitude >= 0x7c00 << 13 { magnitude | 0x7f80_0000 } else { scaled };
    f32::from_bits(scaled | u32::from(bits & 0x8000) << 16)
}

/// f32 to f16, to nearest even; branch-free so that lane loops vectorise.
#[inline]
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
#[inline]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// `a + b` rounded to odd: a later rounding to fewer bits is then as if it were the only one.
#[inline]
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
#[inline]
pub fn fma_f32(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_feature = "fma") {
        return a.mul_add(b, c);
    }
    add_to_odd(f64::from(a) * f64::from(b), f64::from(c)) as f32
}

/// `a * b + c` of f16 values with one rounding to f16.
#[inline]
pub fn fma_f16(a: f32, b: f32, c: f32) -> u16 {
    let bits = add_to_odd(f64::from(a) * f64::from(b), f64::from(c)).to_bits();
    // To f32 rounded to odd again: what is cut off sets the last bit.
    let cut = bits & 0x1fff_ffff;
    let single = (f64::from_bits(bits ^ cut) as f32).to_bits() | u32::from(cut != 0);
    f32_to_f16(f32::from_bits(single))
}

#[cfg(test)]
mod tests;
