//! f16 arithmetic. Sums, products and quotients are computed in f32: its 24 bits are enough that
//! rounding twice is rounding once.

use super::mode::INPUT_16_64;
use super::single::{frexp, ldexp, maximum, median, minimum, turns};
use super::vector::flushed16;
use crate::decode::Instruction;
use crate::decode::Op::*;
use crate::float::{f16_to_f32, f32_to_f16, fma_f16};
use crate::wave::Wave;

impl Wave {
    pub(super) fn unary16(&mut self, i: &Instruction, f: impl Fn(f32) -> f32) {
        let a = self.float16(i, 0);
        self.finish16(i, a.map(f));
    }

    pub(super) fn binary16(&mut self, i: &Instruction, f: impl Fn(f32, f32) -> f32) {
        let (a, b) = (self.float16(i, 0), self.float16(i, 1));
        self.finish16(i, std::array::from_fn(|lane| f(a[lane], b[lane])));
    }

    pub(super) fn ternary16(&mut self, i: &Instruction, f: impl Fn(f32, f32, f32) -> f32) {
        let (a, b, c) = (self.float16(i, 0), self.float16(i, 1), self.float16(i, 2));
        self.finish16(i, std::array::from_fn(|lane| f(a[lane], b[lane], c[lane])));
    }

    /// A function of two sources and the old destination.
    pub(super) fn accumulate16(&mut self, i: &Instruction, f: impl Fn(f32, f32, f32) -> f32) {
        let (a, b) = (self.float16(i, 0), self.float16(i, 1));
        let c = self.operand32(i.destination).map(self.half_input());
        self.finish16(i, std::array::from_fn(|lane| f(a[lane], b[lane], c[lane])));
    }

    pub(super) fn scaled16(&mut self, i: &Instruction, f: impl Fn(f64, i32) -> f64) {
        let (a, exponent) = (self.float16(i, 0), self.source16(i, 1));
        let scaled = |lane: usize| f(a[lane].into(), (exponent[lane] as i16).into()) as f32;
        self.finish16(i, std::array::from_fn(scaled));
    }

    /// The f16 in the low half of a source as MODE has it read.
    #[inline]
    pub(super) fn half_input(&self) -> impl Fn(u32) -> f32 + use<> {
        let flush = !self.keeps(INPUT_16_64);
        move |bits| f16_to_f32(if flush { flushed16(bits as u16) } else { bits as u16 })
    }

    pub(super) fn half(&mut self, i: &Instruction) -> bool {
        let ieee = self.ieee();
        let k = f16_to_f32(i.immediate as u16);
        match i.op {
            v_add_f16 => self.binary16(i, |a, b| a + b),
            v_sub_f16 => self.binary16(i, |a, b| a - b),
            v_subrev_f16 => self.binary16(i, |a, b| b - a),
            v_mul_f16 => self.binary16(i, |a, b| a * b),
            v_min_f16 => self.binary16(i, |a, b| minimum(ieee, a, b)),
            v_max_f16 => self.binary16(i, |a, b| maximum(ieee, a, b)),
            v_fma_f16 | v_fma_legacy_f16 => self.ternary16(i, fused),
            v_mad_f16 | v_mad_legacy_f16 => self.ternary16(i, unfused),
            v_mac_f16 => self.accumulate16(i, unfused),
            v_madmk_f16 => self.binary16(i, |a, b| unfused(a, k, b)),
            v_madak_f16 => self.binary16(i, |a, b| unfused(a, b, k)),
            v_min3_f16 => self.ternary16(i, |a, b, c| minimum(ieee, minimum(ieee, a, b), c)),
            v_max3_f16 => self.ternary16(i, |a, b, c| maximum(ieee, maximum(ieee, a, b), c)),
            v_med3_f16 => self.ternary16(i, |a, b, c| median(ieee, a, b, c)),
            v_trunc_f16 => self.unary16(i, f32::trunc),
            v_ceil_f16 => self.unary16(i, f32::ceil),
            v_floor_f16 => self.unary16(i, f32::floor),
            v_rndne_f16 => self.unary16(i, f32::round_ties_even),
            v_fract_f16 => self.unary16(i, |a| (a - a.floor()).min(f16_to_f32(0x3bff))),
            v_frexp_mant_f16 => self.unary16(i, |a| frexp(a.into()).0 as f32),
            v_frexp_exp_i16_f16 => {
                let exponents = self.float16(i, 0).map(|a| frexp(a.into()).1 as u32 & 0xffff);
                self.write16(i, &exponents);
            }
            // What overflows f16 must not become an infinity of f32.
            v_exp_f16 => self.unary16(i, |a| if a.is_finite() { a.min(64.0) } else { a }.exp2()),
            v_log_f16 => self.unary16(i, f32::log2),
            v_rcp_f16 => self.unary16(i, |a| 1.0 / a),
            v_rsq_f16 => self.unary16(i, |a| (1.0 / f64::from(a).sqrt()) as f32),
            v_sqrt_f16 => self.unary16(i, f32::sqrt),
            v_sin_f16 => self.unary16(i, |a| turns(a.into(), f64::sin, 0.0) as f32),
            v_cos_f16 => self.unary16(i, |a| turns(a.into(), f64::cos, 1.0) as f32),
            // Beyond 60 all is lost or too large in any case, and f32 holds the scaled value exactly.
            v_ldexp_f16 => self.scaled16(i, |a, exponent| ldexp(a, exponent.clamp(-60, 60))),
            v_pack_b32_f16 => {
                let [low, high] = [0, 1].map(|n| self.halves_of(&self.float16(i, n)));
                self.write32(i, &std::array::from_fn(|lane| low[lane] | high[lane] << 16));
            }
            _ => return false,
        }
        true
    }
}

/// `a * b + c` rounded to f16 once.
#[inline]
pub(super) fn fused(a: f32, b: f32, c: f32) -> f32 {
    f16_to_f32(fma_f16(a, b, c))
}

/// `a * b + c` rounded after each step.
fn unfused(a: f32, b: f32, c: f32) -> f32 {
    f16_to_f32(f32_to_f16(a * b)) + c
}
