//! f32 arithmetic.

use super::mode::INPUT_32;
use super::vector::flushed32;
use crate::decode::Instruction;
use crate::decode::Op::*;
use crate::float::fma_f32;
use crate::wave::{LANES, Wave};

impl Wave {
    pub(super) fn unary32(&mut self, i: &Instruction, f: impl Fn(f32) -> f32) {
        let a = self.float32(i, 0);
        self.finish32(i, a.map(f));
    }

    #[inline]
    pub(super) fn binary32(&mut self, i: &Instruction, f: impl Fn(f32, f32) -> f32) {
        let (a, b) = (self.float32(i, 0), self.float32(i, 1));
        self.finish32(i, std::array::from_fn(|lane| f(a[lane], b[lane])));
    }

    #[inline]
    pub(super) fn ternary32(&mut self, i: &Instruction, f: impl Fn(f32, f32, f32) -> f32) {
        let (a, b, c) = (self.float32(i, 0), self.float32(i, 1), self.float32(i, 2));
        self.finish32(i, std::array::from_fn(|lane| f(a[lane], b[lane], c[lane])));
    }

    /// A function of two sources and the old destination.
    #[inline]
    pub(super) fn accumulate32(&mut self, i: &Instruction, f: impl Fn(f32, f32, f32) -> f32) {
        let (a, b) = (self.float32(i, 0), self.float32(i, 1));
        let mut c = self.operand32(i.destination);
        if !self.keeps(INPUT_32) {
            c = c.map(flushed32);
        }
        self.finish32(i, std::array::from_fn(|lane| f(a[lane], b[lane], f32::from_bits(c[lane]))));
    }

    pub(super) fn scaled32(&mut self, i: &Instruction, f: impl Fn(f64, i32) -> f64) {
        let (a, exponent) = (self.float32(i, 0), self.source32(i, 1));
        self.finish32(i, std::array::from_fn(|lane| f(a[lane].into(), exponent[lane] as i32) as f32));
    }

    pub(super) fn single(&mut self, i: &Instruction) -> bool {
        let ieee = self.ieee();
        let k = f32::from_bits(i.immediate as u32);
        match i.op {
            v_add_f32 => self.binary32(i, |a, b| a + b),
            v_sub_f32 => self.binary32(i, |a, b| a - b),
            v_subrev_f32 => self.binary32(i, |a, b| b - a),
            v_mul_f32 => self.binary32(i, |a, b| a * b),
            v_mul_legacy_f32 => self.binary32(i, |a, b| if a == 0.0 || b == 0.0 { 0.0 } else { a * b }),
            v_min_f32 => self.binary32(i, |a, b| minimum(ieee, a, b)),
            v_max_f32 => self.binary32(i, |a, b| maximum(ieee, a, b)),
            v_fma_f32 => self.ternary32(i, fma_f32),
            v_fmac_f32 => self.accumulate32(i, fma_f32),
            v_fmamk_f32 => self.binary32(i, |a, b| fma_f32(a, k, b)),
            v_fmaak_f32 => self.binary32(i, |a, b| fma_f32(a, b, k)),
            v_min3_f32 => self.ternary32(i, |a, b, c| minimum(ieee, minimum(ieee, a, b), c)),
            v_max3_f32 => self.ternary32(i, |a, b, c| maximum(ieee, maximum(ieee, a, b), c)),
            v_med3_f32 => self.ternary32(i, |a, b, c| median(ieee, a, b, c)),
            v_trunc_f32 => self.unary32(i, f32::trunc),
            v_ceil_f32 => self.unary32(i, f32::ceil),
            v_floor_f32 => self.unary32(i, f32::floor),
            v_rndne_f32 => self.unary32(i, f32::round_ties_even),
            v_fract_f32 => self.unary32(i, |a| (a - a.floor()).min(1.0 - f32::EPSILON / 2.0)),
            v_frexp_mant_f32 => self.unary32(i, |a| frexp(a.into()).0 as f32),
            // The transcendental unit neither reads nor makes denormals.
            v_exp_f32 | v_exp_legacy_f32 => self.unary32(i, |a| flushed(f64::from(flushed(a)).exp2() as f32)),
            v_log_f32 | v_log_legacy_f32 => self.unary32(i, |a| f64::from(flushed(a)).log2() as f32),
            v_rcp_f32 | v_rcp_iflag_f32 => self.unary32(i, |a| flushed(1.0 / flushed(a))),
            v_rsq_f32 => self.unary32(i, |a| (1.0 / f64::from(flushed(a)).sqrt()) as f32),
            v_sqrt_f32 => self.unary32(i, |a| flushed(a).sqrt()),
            v_sin_f32 => self.unary32(i, |a| turns(a.into(), f64::sin, 0.0) as f32),
            v_cos_f32 => self.unary32(i, |a| turns(a.into(), f64::cos, 1.0) as f32),
            v_ldexp_f32 => self.scaled32(i, ldexp),
            v_cubeid_f32 => self.ternary32(i, |x, y, z| cube(x, y, z).face),
            v_cubesc_f32 => self.ternary32(i, |x, y, z| cube(x, y, z).s),
            v_cubetc_f32 => self.ternary32(i, |x, y, z| cube(x, y, z).t),
            v_cubema_f32 => self.ternary32(i, |x, y, z| cube(x, y, z).major * 2.0),
            v_frexp_exp_i32_f32 => {
                let exponents = self.float32(i, 0).map(|a| frexp(a.into()).1 as u32);
                self.write32(i, &exponents);
            }
            v_cndmask_b32 => {
                // Modifiers change signs as for f32, but nothing is rounded or flushed.
                let (a, b) = (self.raw32(i, 0), self.raw32(i, 1));
                let mask = self.uniform64(i.source[2]);
                let chosen =
                    std::array::from_fn(|lane| if mask >> lane & 1 == 1 { b[lane] } else { a[lane] });
                self.write32(i, &chosen);
            }
            _ => return false,
        }
        true
    }

    /// Source `n` with its signs changed and nothing else.
    fn raw32(&self, i: &Instruction, n: usize) -> [u32; LANES] {
        let clear = if i.absolute >> n & 1 == 1 { 0x7fff_ffff } else { u32::MAX };
        let flip = u32::from(i.negate >> n & 1) << 31;
        self.source32(i, n).map(|bits| bits & clear ^ flip)
    }
}

fn flushed(value: f32) -> f32 {
    f32::from_bits(flushed32(value.to_bits()))
}

/// minNum of IEEE 754-2008, with -0 below +0; in IEEE mode a signalling NaN wins, quieted.
#[inline]
pub(super) fn minimum(ieee: bool, a: f32, b: f32) -> f32 {
    if ieee && (signals(a) || signals(b)) {
        return quieted(if signals(a) { a } else { b });
    }
    if a.is_nan() || b < a || (b == a && b.is_sign_negative()) { b } else { a }
}

/// maxNum of IEEE 754-2008, with -0 below +0; in IEEE mode a signalling NaN wins, quieted.
#[inline]
pub(super) fn maximum(ieee: bool, a: f32, b: f32) -> f32 {
    if ieee && (signals(a) || signals(b)) {
        return quieted(if signals(a) { a } else { b });
    }
    if a.is_nan() || b > a || (b == a && b.is_sign_positive()) { b } else { a }
}

#[inline]
fn signals(value: f32) -> bool {
    value.is_nan() && value.to_bits() & 0x40_0000 == 0
}

#[inline]
fn quieted(nan: f32) -> f32 {
    f32::from_bits(nan.to_bits() | 0x40_0000)
}

pub(super) fn median(ieee: bool, a: f32, b: f32, c: f32) -> f32 {
    if a.is_nan() || b.is_nan() || c.is_nan() {
        return minimum(ieee, minimum(ieee, a, b), c);
    }
    maximum(false, minimum(false, a, b), minimum(false, maximum(false, a, b), c))
}

/// Where a direction meets a cube: the face, the place on it, and the coordinate along its axis.
struct Cube {
    face: f32,
    s: f32,
    t: f32,
    major: f32,
}

fn cube(x: f32, y: f32, z: f32) -> Cube {
    if z.abs() >= x.abs() && z.abs() >= y.abs() {
        let back = z < 0.0;
        Cube { face: if back { 5.0 } else { 4.0 }, s: if back { -x } else { x }, t: -y, major: z }
    } else if y.abs() >= x.abs() {
        let below = y < 0.0;
        Cube { face: if below { 3.0 } else { 2.0 }, s: x, t: if below { -z } else { z }, major: y }
    } else {
        let left = x < 0.0;
        Cube { face: if left { 1.0 } else { 0.0 }, s: if left { z } else { -z }, t: -y, major: x }
    }
}

/// Mantissa in 0.5..1 and exponent; for 0, infinity and NaN the value itself and 0.
pub(super) fn frexp(value: f64) -> (f64, i32) {
    if value == 0.0 || !value.is_finite() {
        return (value, 0);
    }
    let (value, bias) =
        if value.abs() < f64::MIN_POSITIVE { (value * 2f64.powi(64), 64) } else { (value, 0) };
    let exponent = ((value.to_bits() >> 52) & 0x7ff) as i32 - 1022;
    let mantissa = f64::from_bits(value.to_bits() & !(0x7ff << 52) | 1022 << 52);
    (mantissa, exponent - bias)
}

/// `value * 2^exponent`, rounded once.
pub(super) fn ldexp(value: f64, exponent: i32) -> f64 {
    let exponent = exponent.clamp(-2200, 2200);
    if exponent >= -1000 {
        let (half, rest) = (exponent / 3, exponent - 2 * (exponent / 3));
        return value * 2f64.powi(half) * 2f64.powi(half) * 2f64.powi(rest);
    }
    // Only the last step may round: bring the value to just above the denormals first.
    let (mantissa, own) = frexp(value);
    let total = own.saturating_add(exponent);
    if total >= -1000 {
        mantissa * 2f64.powi(total)
    } else {
        mantissa * 2f64.powi(-900) * 2f64.powi((total + 900).max(-1000))
    }
}

/// A function of an angle in turns; beyond 256 turns the unit gives up.
pub(super) fn turns(angle: f64, f: fn(f64) -> f64, beyond: f64) -> f64 {
    if angle.is_nan() || angle.is_infinite() {
        return f64::NAN;
    }
    if angle.abs() > 256.0 {
        return beyond;
    }
    f((angle - angle.round_ties_even()) * std::f64::consts::TAU)
}
