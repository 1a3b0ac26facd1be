//! The instructions that round, where MODE has them round otherwise than to the nearest even. The
//! transcendental ones and the divisions' last step round to nearest always.

use super::mode::Directed;
use crate::decode::Instruction;
use crate::decode::Op::*;
use crate::float::f16_to_f32;
use crate::wave::Wave;

impl Wave {
    /// Executes the instruction if it is one that rounds and MODE has it do so in an unusual way.
    #[inline]
    pub(super) fn directed(&mut self, i: &Instruction) -> bool {
        self.is_directed()
            && (self.directed32().is_some_and(|r| self.directed_single(i, r))
                || self.directed16().is_some_and(|r| self.directed_half(i, r))
                || self.directed64().is_some_and(|r| self.directed_double(i, r)))
    }

    fn directed_single(&mut self, i: &Instruction, r: Directed) -> bool {
        let k = f32::from_bits(i.immediate as u32);
        match i.op {
            v_add_f32 => self.binary32(i, |a, b| r.sum32(a, b)),
            v_sub_f32 => self.binary32(i, |a, b| r.sum32(a, -b)),
            v_subrev_f32 => self.binary32(i, |a, b| r.sum32(b, -a)),
            v_mul_f32 => self.binary32(i, |a, b| r.product32(a, b)),
            v_mul_legacy_f32 => {
                self.binary32(i, |a, b| if a == 0.0 || b == 0.0 { 0.0 } else { r.product32(a, b) });
            }
            v_fma_f32 => self.ternary32(i, |a, b, c| r.fused32(a, b, c)),
            v_fmac_f32 => self.accumulate32(i, |a, b, c| r.fused32(a, b, c)),
            v_fmamk_f32 => self.binary32(i, |a, b| r.fused32(a, k, b)),
            v_fmaak_f32 => self.binary32(i, |a, b| r.fused32(a, b, k)),
            v_pk_fma_f32 => self.pairs32(i, |a, b, c| r.fused32(a, b, c)),
            v_pk_add_f32 => self.pairs32(i, |a, b, _| r.sum32(a, b)),
            v_pk_mul_f32 => self.pairs32(i, |a, b, _| r.product32(a, b)),
            v_ldexp_f32 => self.scaled32(i, |a, exponent| r.scale(a, exponent)),
            v_cvt_f32_i32 => self.singles(i, |a| r.scale((a as i32).into(), 0) as f32),
            v_cvt_f32_u32 => self.singles(i, |a| r.scale(a.into(), 0) as f32),
            v_cvt_f32_f64 => {
                let values = self.float64(i, 0).map(|a| r.scale(a, 0) as f32);
                self.finish32(i, values);
            }
            _ => return false,
        }
        true
    }

    fn directed_half(&mut self, i: &Instruction, r: Directed) -> bool {
        let k = f16_to_f32(i.immediate as u16);
        let unfused = |a: f32, b: f32, c: f32| r.sum32(r.product32(a, b), c);
        match i.op {
            v_add_f16 => self.binary16(i, |a, b| r.sum32(a, b)),
            v_sub_f16 => self.binary16(i, |a, b| r.sum32(a, -b)),
            v_subrev_f16 => self.binary16(i, |a, b| r.sum32(b, -a)),
            v_mul_f16 => self.binary16(i, |a, b| r.product32(a, b)),
            v_fma_f16 | v_fma_legacy_f16 => self.ternary16(i, |a, b, c| r.fused32(a, b, c)),
            v_mad_f16 | v_mad_legacy_f16 => self.ternary16(i, unfused),
            v_mac_f16 => self.accumulate16(i, unfused),
            v_madmk_f16 => self.binary16(i, |a, b| unfused(a, k, b)),
            v_madak_f16 => self.binary16(i, |a, b| unfused(a, b, k)),
            v_pk_fma_f16 => self.pairs16(i, |a, b, c| r.fused32(a, b, c)),
            v_pk_add_f16 => self.pairs16(i, |a, b, _| r.sum32(a, b)),
            v_pk_mul_f16 => self.pairs16(i, |a, b, _| r.product32(a, b)),
            v_ldexp_f16 => self.scaled16(i, |a, exponent| r.scale(a, exponent)),
            v_cvt_f16_f32 => {
                let values = self.float32(i, 0).map(|a| r.scale(a.into(), 0) as f32);
                self.finish16(i, values);
            }
            v_cvt_f16_u16 => {
                let values = self.source16(i, 0).map(|a| r.scale(a.into(), 0) as f32);
                self.finish16(i, values);
            }
            v_cvt_f16_i16 => {
                let values = self.source16(i, 0).map(|a| r.scale((a as i16).into(), 0) as f32);
                self.finish16(i, values);
            }
            _ => return false,
        }
        true
    }

    fn directed_double(&mut self, i: &Instruction, r: Directed) -> bool {
        match i.op {
            v_add_f64 => self.binary64(i, |a, b| r.sum(a, b)),
            v_mul_f64 => self.binary64(i, |a, b| r.product(a, b)),
            v_fma_f64 => self.ternary64(i, |a, b, c| r.fused(a, b, c)),
            v_fmac_f64 => self.accumulate64(i, |a, b, c| r.fused(a, b, c)),
            v_ldexp_f64 => self.scaled64(i, |a, exponent| r.scale(a, exponent)),
            _ => return false,
        }
        true
    }
}
