//! The steps of a division: scale, iterate (elsewhere), unscale, fix up.

use super::single::ldexp;
use crate::decode::Instruction;
use crate::decode::Op::*;
use crate::wave::{LANES, Wave};

/// What the steps need to know of a format.
struct Limits {
    minimum: f64,
    /// Exponents of numerator and denominator this far apart overflow the quotient's estimate.
    apart: i32,
    scale: i32,
    /// Biased exponent up to which a numerator loses bits in the residual.
    tiny: i32,
    bias: i32,
}

const SINGLE: Limits =
    Limits { minimum: f32::MIN_POSITIVE as f64, apart: 96, scale: 64, tiny: 23, bias: 127 };
const DOUBLE: Limits = Limits { minimum: f64::MIN_POSITIVE, apart: 768, scale: 128, tiny: 53, bias: 1023 };

impl Limits {
    fn denormal(&self, value: f64) -> bool {
        value != 0.0 && value.abs() < self.minimum
    }

    /// The exponent field as the format would hold it.
    fn exponent(&self, value: f64) -> i32 {
        if value == 0.0 || self.denormal(value) {
            return 0;
        }
        if !value.is_finite() {
            return 2 * self.bias + 1;
        }
        ((value.to_bits() >> 52) & 0x7ff) as i32 - 1023 + self.bias
    }

    /// `value`, which is the numerator or the denominator, scaled so that the division neither overflows
    /// nor loses bits, and whether the quotient has to be scaled back.
    fn scaled(&self, value: f64, denominator: f64, numerator: f64) -> (f64, bool) {
        let of_denominator = value.to_bits() == denominator.to_bits();
        let of_numerator = value.to_bits() == numerator.to_bits();
        let up = || ldexp(value, self.scale);
        let down = || ldexp(value, -self.scale);
        let (reciprocal, quotient) = (1.0 / denominator, numerator / denominator);
        if numerator == 0.0 || denominator == 0.0 {
            (f64::NAN, false)
        } else if self.exponent(numerator) - self.exponent(denominator) >= self.apart {
            (if of_denominator { up() } else { value }, true)
        } else if self.denormal(denominator) {
            (up(), false)
        } else if self.denormal(reciprocal) && self.denormal(quotient) {
            (if of_denominator { down() } else { value }, true)
        } else if self.denormal(reciprocal) {
            (down(), false)
        } else if self.denormal(quotient) {
            (if of_numerator { up() } else { value }, true)
        } else if self.exponent(numerator) <= self.tiny {
            (up(), false)
        } else {
            (value, false)
        }
    }

    /// Undoes the scaling of the quotient: its estimate says which way it went.
    fn unscale(&self, estimate: f64) -> i32 {
        if self.exponent(estimate) > self.bias { self.scale } else { -self.scale }
    }

    /// The quotient of the special values, and the sign of the others.
    fn fixed(&self, quotient: f64, denominator: f64, numerator: f64) -> f64 {
        let negative = denominator.is_sign_negative() != numerator.is_sign_negative();
        let signed = |value: f64| if negative { -value } else { value };
        if numerator.is_nan() {
            numerator
        } else if denominator.is_nan() {
            denominator
        } else if (denominator == 0.0 && numerator == 0.0)
            || (denominator.is_infinite() && numerator.is_infinite())
        {
            -f64::NAN.abs()
        } else if denominator == 0.0 || numerator.is_infinite() {
            signed(f64::INFINITY)
        } else if denominator.is_infinite() || numerator == 0.0 {
            signed(0.0)
        } else if quotient.is_nan() {
            // The iteration overflowed, and so does the quotient.
            signed(f64::INFINITY)
        } else if self.exponent(numerator) - self.exponent(denominator) < -self.bias - self.tiny {
            signed(0.0)
        } else {
            signed(quotient.abs())
        }
    }
}

impl Wave {
    pub(super) fn divide(&mut self, i: &Instruction) -> bool {
        match i.op {
            v_div_scale_f32 => {
                let [a, b, c] = [0, 1, 2].map(|n| self.float32(i, n).map(f64::from));
                let (values, mask) = scale(&SINGLE, &a, &b, &c);
                let exec = self.write_mask(i);
                self.write32(i, &values.map(|value| (value as f32).to_bits()));
                self.set_scalar64(i.scalar_destination.into(), mask & exec);
            }
            v_div_scale_f64 => {
                let [a, b, c] = [0, 1, 2].map(|n| self.float64(i, n));
                let (values, mask) = scale(&DOUBLE, &a, &b, &c);
                let exec = self.write_mask(i);
                self.write64(i, &values.map(f64::to_bits));
                self.set_scalar64(i.scalar_destination.into(), mask & exec);
            }
            v_div_fmas_f32 => {
                let [a, b, c] = [0, 1, 2].map(|n| self.float32(i, n));
                let (vcc, fused) = (self.vcc(), self.fused32());
                let values = std::array::from_fn(|lane| {
                    let sum = fused(a[lane], b[lane], c[lane]);
                    if vcc >> lane & 1 == 0 {
                        return sum;
                    }
                    ldexp(sum.into(), SINGLE.unscale(c[lane].into())) as f32
                });
                self.finish32(i, values);
            }
            v_div_fmas_f64 => {
                let [a, b, c] = [0, 1, 2].map(|n| self.float64(i, n));
                let (vcc, directed) = (self.vcc(), self.directed64());
                let values = std::array::from_fn(|lane| {
                    let [a, b, c] = [a[lane], b[lane], c[lane]];
                    let sum = directed.map_or_else(|| a.mul_add(b, c), |directed| directed.fused(a, b, c));
                    if vcc >> lane & 1 == 0 { sum } else { ldexp(sum, DOUBLE.unscale(c)) }
                });
                self.finish64(i, values);
            }
            v_div_fixup_f32 => {
                let [a, b, c] = [0, 1, 2].map(|n| self.float32(i, n).map(f64::from));
                let values = std::array::from_fn(|lane| SINGLE.fixed(a[lane], b[lane], c[lane]) as f32);
                self.finish32(i, values);
            }
            v_div_fixup_f16 | v_div_fixup_legacy_f16 => {
                let [a, b, c] = [0, 1, 2].map(|n| self.float16(i, n).map(f64::from));
                let values = std::array::from_fn(|lane| SINGLE.fixed(a[lane], b[lane], c[lane]) as f32);
                self.finish16(i, values);
            }
            v_div_fixup_f64 => {
                let [a, b, c] = [0, 1, 2].map(|n| self.float64(i, n));
                let values = std::array::from_fn(|lane| DOUBLE.fixed(a[lane], b[lane], c[lane]));
                self.finish64(i, values);
            }
            _ => return false,
        }
        true
    }
}

fn scale(
    limits: &Limits,
    value: &[f64; LANES],
    denominator: &[f64; LANES],
    numerator: &[f64; LANES],
) -> ([f64; LANES], u64) {
    let mut mask = 0;
    let values = std::array::from_fn(|lane| {
        let (scaled, back) = limits.scaled(value[lane], denominator[lane], numerator[lane]);
        mask |= u64::from(back) << lane;
        scaled
    });
    (values, mask)
}
