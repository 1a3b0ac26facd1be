//! f16 arithmetic. Sums, products and quotients are computed in f32: its 24 bits are enough that
//! rounding twice is rounding once.

use super::single::{frexp, ldexp, maximum, median, minimum, turns};
use crate::decode::Instruction;
use crate::decode::Op::*;
use crate::float::{f16_to_f32, f32_to_f16, fma_f16};
use crate::wave::Wave;

impl Wave {
    fn unary16(&mut self, i: &Instruction, f: impl Fn(f32) -> f32) {
        let a = self.float16(i, 0);
        self.finish16(i, a.map(f));
    }

    fn binary16(&mut self, i: &Instruction, f: impl Fn(f32, f32) -> f32) {
        let (a, b) = (self.float16(i, 0), self.float16(i, 1));
        self.finish16(i, std::array::from_fn(|lane| f(a[lane], b[lane])));
    }

    fn ternary16(&mut self, i: &Instruction, f: impl Fn(f32, f32, f32) -> f32) {
        let (a, b, c) = (self.float16(i, 0), self.float16(i, 1), self.float16(i, 2));
        self.finish16(i, std::array::from_fn(|lane| f(a[lane], b[lane], c[lane])));
    }

    pub(super) fn half(&mut self, i: &Instruction) -> bool {
        let k = f16_to_f32(i.immediate as u16);
        match i.op {
            v_add_f16 => self.binary16(i, |a, b| a + b),
            v_sub_f16 => self.binary16(i, |a, b| a - b),
            v_subrev_f16 => self.binary16(i, |a, b| b - a),
            v_mul_f16 => self.binary16(i, |a, b| a * b),
            v_min_f16 => self.binary16(i, minimum),
            v_max_f16 => self.binary16(i, maximum),
            v_fma_f16 | v_fma_legacy_f16 => self.ternary16(i, fused),
            v_mad_f16 | v_mad_legacy_f16 => self.ternary16(i, unfused),
            v_mac_f16 => {
                let c = self.operand32(i.destination).map(|bits| f16_to_f32(bits as u16));
                let (a, b) = (self.float16(i, 0), self.float16(i, 1));
                self.finish16(i, std::array::from_fn(|lane| unfused(a[lane], b[lane], c[lane])));
            }
            v_madmk_f16 => self.binary16(i, |a, b| unfused(a, k, b)),
            v_madak_f16 => self.binary16(i, |a, b| unfused(a, b, k)),
            v_min3_f16 => self.ternary16(i, |a, b, c| minimum(minimum(a, b), c)),
            v_max3_f16 => self.ternary16(i, |a, b, c| maximum(maximum(a, b), c)),
            v_med3_f16 => self.ternary16(i, median),
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
            v_exp_f16 => self.unary16(i, f32::exp2),
            v_log_f16 => self.unary16(i, f32::log2),
            v_rcp_f16 => self.unary16(i, |a| 1.0 / a),
            v_rsq_f16 => self.unary16(i, |a| (1.0 / f64::from(a).sqrt()) as f32),
            v_sqrt_f16 => self.unary16(i, f32::sqrt),
            v_sin_f16 => self.unary16(i, |a| turns(a.into(), f64::sin, 0.0) as f32),
            v_cos_f16 => self.unary16(i, |a| turns(a.into(), f64::cos, 1.0) as f32),
            v_ldexp_f16 => {
                let (a, exponent) = (self.float16(i, 0), self.source16(i, 1));
                // In f32 the result may be a denormal of f16 only; f32 holds it exactly.
                let scaled = std::array::from_fn(|lane| {
                    ldexp(a[lane].into(), (exponent[lane] as i16).clamp(-60, 60).into()) as f32
                });
                self.finish16(i, scaled);
            }
            v_pack_b32_f16 => {
                let (a, b) = (self.float16(i, 0), self.float16(i, 1));
                let packed = std::array::from_fn(|lane| {
                    u32::from(f32_to_f16(a[lane])) | u32::from(f32_to_f16(b[lane])) << 16
                });
                self.write32(i, &packed);
            }
            _ => return false,
        }
        true
    }
}

/// `a * b + c` rounded to f16 once.
pub(super) fn fused(a: f32, b: f32, c: f32) -> f32 {
    f16_to_f32(fma_f16(a, b, c))
}

/// `a * b + c` rounded after each step.
fn unfused(a: f32, b: f32, c: f32) -> f32 {
    f16_to_f32(f32_to_f16(a * b)) + c
}
