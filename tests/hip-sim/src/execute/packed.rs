//! VOP3P: two values per register, dot products, mixed precision and accumulator moves.

use super::half::fused;
use super::integer::{mad_signed, mad_unsigned};
use super::mode::{INPUT_32, OUTPUT_16_64, OUTPUT_32};
use super::single::{maximum, minimum};
use super::vector::flushed32;
use super::{Outcome, unsupported};
use crate::decode::Op::*;
use crate::decode::{Detail, Format, Instruction, Operand};
use crate::float::{f16_to_f32, fma_f32};
use crate::wave::{LANES, Lanes, Wave, float16};

impl Wave {
    pub(super) fn packed(&mut self, i: &Instruction) -> Outcome {
        if let Detail::Matrix(matrix) = i.detail {
            return self.matrix(i, matrix);
        }
        if self.directed(i) {
            return Ok(());
        }
        match i.op {
            v_accvgpr_read_b32 | v_accvgpr_write_b32 => {
                let values = self.operand32(i.source[0]);
                self.write32(i, &values);
            }
            v_pk_mov_b32 => {
                let [a, b] = [0, 1].map(|n| self.pair32(i, n, 0, i.op_sel));
                self.write_pair(i, &a, &b);
            }
            v_pk_fma_f32 => self.pairs32(i, fma_f32),
            v_pk_mul_f32 => self.pairs32(i, |a, b, _| a * b),
            v_pk_add_f32 => self.pairs32(i, |a, b, _| a + b),
            v_fma_mix_f32 => {
                let values = self.mixed(i);
                self.finish32(i, values);
            }
            v_fma_mixlo_f16 | v_fma_mixhi_f16 => {
                let mut values = self.mixed(i);
                if let Some(directed) = self.directed16() {
                    values = values.map(|value| directed.scale(value.into(), 0) as f32);
                }
                self.modified(i, OUTPUT_16_64, &mut values);
                let (values, old) = (self.halves_of(&values), self.operand32(i.destination));
                let high = i.op == v_fma_mixhi_f16;
                let merged = std::array::from_fn(|lane| match high {
                    true => old[lane] & 0xffff | values[lane] << 16,
                    false => old[lane] & 0xffff_0000 | values[lane],
                });
                self.write32(i, &merged);
            }
            _ if self.packed_float(i) || self.packed_integer(i) || self.dot(i) => {}
            _ => return Err(unsupported("VOP3P")),
        }
        Ok(())
    }

    /// Source `n` of a pair of f16 or 16-bit integers, as it stands.
    fn halves(&self, i: &Instruction, n: usize) -> Lanes {
        match i.source[n] {
            Operand::Float(code) => [float16(code); LANES],
            operand => self.operand32(operand),
        }
    }

    fn packed_float(&mut self, i: &Instruction) -> bool {
        let ieee = self.ieee();
        match i.op {
            v_pk_fma_f16 => self.pairs16(i, fused),
            v_pk_add_f16 => self.pairs16(i, |a, b, _| a + b),
            v_pk_mul_f16 => self.pairs16(i, |a, b, _| a * b),
            v_pk_min_f16 => self.pairs16(i, |a, b, _| minimum(ieee, a, b)),
            v_pk_max_f16 => self.pairs16(i, |a, b, _| maximum(ieee, a, b)),
            _ => return false,
        }
        true
    }

    pub(super) fn pairs16(&mut self, i: &Instruction, f: impl Fn(f32, f32, f32) -> f32) {
        let sources = [0, 1, 2].map(|n| self.halves(i, n));
        let input = self.half_input();
        let result = |select: u8, negate: u8| -> Lanes {
            let [a, b, c] = std::array::from_fn(|n| {
                let shift = 16 * u32::from(select >> n & 1);
                let flip = u32::from(negate >> n & 1) << 15;
                sources[n].map(|bits| input(bits >> shift ^ flip))
            });
            let mut values: [f32; LANES] = std::array::from_fn(|lane| f(a[lane], b[lane], c[lane]));
            self.modified(i, OUTPUT_16_64, &mut values);
            self.halves_of(&values)
        };
        let low = result(i.op_sel, i.negate);
        let high = result(i.op_sel_high, i.negate_high);
        self.write32(i, &std::array::from_fn(|lane| low[lane] | high[lane] << 16));
    }

    fn packed_integer(&mut self, i: &Instruction) -> bool {
        let clamp = i.clamp;
        let signed = |f: fn(i16, i16) -> i16| move |a: u16, b: u16, _: u16| f(a as i16, b as i16) as u16;
        match i.op {
            v_pk_add_i16 if clamp => self.pairs(i, signed(i16::saturating_add)),
            v_pk_sub_i16 if clamp => self.pairs(i, signed(i16::saturating_sub)),
            v_pk_add_u16 if clamp => self.pairs(i, |a, b, _| a.saturating_add(b)),
            v_pk_sub_u16 if clamp => self.pairs(i, |a, b, _| a.saturating_sub(b)),
            v_pk_mad_u16 if clamp => self.pairs(i, mad_unsigned),
            v_pk_mad_i16 if clamp => self.pairs(i, mad_signed),
            v_pk_mad_i16 | v_pk_mad_u16 => {
                self.pairs(i, |a, b, c| a.wrapping_mul(b).wrapping_add(c));
            }
            v_pk_mul_lo_u16 => self.pairs(i, |a, b, _| a.wrapping_mul(b)),
            v_pk_add_i16 | v_pk_add_u16 => self.pairs(i, |a, b, _| a.wrapping_add(b)),
            v_pk_sub_i16 | v_pk_sub_u16 => self.pairs(i, |a, b, _| a.wrapping_sub(b)),
            v_pk_lshlrev_b16 => self.pairs(i, |a, b, _| b << (a & 15)),
            v_pk_lshrrev_b16 => self.pairs(i, |a, b, _| b >> (a & 15)),
            v_pk_ashrrev_i16 => self.pairs(i, |a, b, _| (b as i16 >> (a & 15)) as u16),
            v_pk_max_i16 => self.pairs(i, signed(|a, b| a.max(b))),
            v_pk_min_i16 => self.pairs(i, signed(|a, b| a.min(b))),
            v_pk_max_u16 => self.pairs(i, |a, b, _| a.max(b)),
            v_pk_min_u16 => self.pairs(i, |a, b, _| a.min(b)),
            _ => return false,
        }
        true
    }

    fn pairs(&mut self, i: &Instruction, f: impl Fn(u16, u16, u16) -> u16) {
        let sources = [0, 1, 2].map(|n| self.operand32(i.source[n]));
        let half = |lane: usize, select: u8| {
            let [a, b, c] =
                [0, 1, 2].map(|n: usize| (sources[n][lane] >> (16 * u32::from(select >> n & 1))) as u16);
            u32::from(f(a, b, c))
        };
        self.write32(i, &std::array::from_fn(|lane| half(lane, i.op_sel) | half(lane, i.op_sel_high) << 16));
    }

    /// One of the two registers of source `n`, with its sign changed by `negate`.
    fn pair32(&self, i: &Instruction, n: usize, negate: u8, select: u8) -> Lanes {
        let high = usize::from(select >> n & 1);
        let values = match (self.register(i.source[n]), i.source[n]) {
            (Some(register), _) => *self.lanes(register + high),
            (_, Operand::Scalar(index)) => [self.scalars[(usize::from(index) + high) & 127]; LANES],
            // A constant is the same for both.
            (_, operand) => self.operand32(operand),
        };
        let flip = u32::from(negate >> n & 1) << 31;
        values.map(|bits| bits ^ flip)
    }

    pub(super) fn pairs32(&mut self, i: &Instruction, f: impl Fn(f32, f32, f32) -> f32) {
        let (flush_input, flush_output) = (!self.keeps(INPUT_32), !self.keeps(OUTPUT_32));
        let result = |select, negate| -> Lanes {
            let [a, b, c] = [0, 1, 2].map(|n| {
                let bits = self.pair32(i, n, negate, select);
                if flush_input { bits.map(flushed32) } else { bits }.map(f32::from_bits)
            });
            let mut values: [f32; LANES] = std::array::from_fn(|lane| f(a[lane], b[lane], c[lane]));
            self.modified(i, OUTPUT_32, &mut values);
            let bits = values.map(f32::to_bits);
            if flush_output { bits.map(flushed32) } else { bits }
        };
        let low = result(i.op_sel, i.negate);
        let high = result(i.op_sel_high, i.negate_high);
        self.write_pair(i, &low, &high);
    }

    fn write_pair(&mut self, i: &Instruction, low: &Lanes, high: &Lanes) {
        self.write64(i, &std::array::from_fn(|lane| u64::from(low[lane]) | u64::from(high[lane]) << 32));
    }

    /// `a * b + c` of sources that are each f32 or either half of a register; for these, the high
    /// negations mean absolute values.
    fn mixed(&self, i: &Instruction) -> [f32; LANES] {
        let source = |n: usize| -> [f32; LANES] {
            let values = if i.op_sel_high >> n & 1 == 1 {
                let shift = 16 * u32::from(i.op_sel >> n & 1);
                let input = self.half_input();
                self.halves(i, n).map(|bits| input(bits >> shift))
            } else {
                let bits = self.operand32(i.source[n]);
                if self.keeps(INPUT_32) { bits } else { bits.map(flushed32) }.map(f32::from_bits)
            };
            let absolute = i.negate_high >> n & 1 == 1;
            let negate = i.negate >> n & 1 == 1;
            values.map(|value| {
                let value = if absolute { value.abs() } else { value };
                if negate { -value } else { value }
            })
        };
        let ([a, b, c], fused) = ([0, 1, 2].map(source), self.fused32());
        std::array::from_fn(|lane| fused(a[lane], b[lane], c[lane]))
    }

    /// Dot products; the VOP2 forms accumulate into their destination.
    pub(super) fn dot(&mut self, i: &Instruction) -> bool {
        let accumulator = if i.format == Format::Vop2 { i.destination } else { i.source[2] };
        let (a, b) = (self.source32(i, 0), self.source32(i, 1));
        let c = self.operand32(accumulator);
        let integers = |wave: &mut Self, width: u32, signed: bool| {
            let element = |value: u32, index: u32| {
                let top = value << (32 - width * (index + 1));
                if signed { i64::from(top as i32 >> (32 - width)) } else { i64::from(top >> (32 - width)) }
            };
            let values = std::array::from_fn(|lane| {
                let start = if signed { i64::from(c[lane] as i32) } else { i64::from(c[lane]) };
                let product = |index| element(a[lane], index) * element(b[lane], index);
                let sum = start + (0..32 / width).map(product).sum::<i64>();
                match (i.clamp, signed) {
                    (false, _) => sum as u32,
                    (true, true) => sum.clamp(i32::MIN.into(), i32::MAX.into()) as u32,
                    (true, false) => sum.min(u32::MAX.into()) as u32,
                }
            });
            wave.write32(i, &values);
        };
        match i.op {
            v_dot2_f32_f16 | v_dot2c_f32_f16 => {
                let values = std::array::from_fn(|lane| {
                    let half = |bits: u32| f64::from(f16_to_f32(bits as u16));
                    let low = half(a[lane]) * half(b[lane]);
                    let high = half(a[lane] >> 16) * half(b[lane] >> 16);
                    (low + high + f64::from(f32::from_bits(c[lane]))) as f32
                });
                self.finish32(i, values);
            }
            v_dot2_i32_i16 | v_dot2c_i32_i16 => integers(self, 16, true),
            v_dot2_u32_u16 => integers(self, 16, false),
            v_dot4_i32_i8 | v_dot4c_i32_i8 => integers(self, 8, true),
            v_dot4_u32_u8 => integers(self, 8, false),
            v_dot8_i32_i4 | v_dot8c_i32_i4 => integers(self, 4, true),
            v_dot8_u32_u4 => integers(self, 4, false),
            v_pk_fmac_f16 => {
                let [a, b] = [i.source[0], i.source[1]];
                let fma = Instruction { source: [a, b, i.destination], op_sel_high: 7, ..*i };
                match self.directed16() {
                    Some(directed) => self.pairs16(&fma, |a, b, c| directed.fused32(a, b, c)),
                    None => self.pairs16(&fma, fused),
                }
            }
            _ => return false,
        }
        true
    }
}
