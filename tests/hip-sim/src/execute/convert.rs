//! `v_cvt_*`.

use crate::decode::Op::*;
use crate::decode::{Instruction, Select};
use crate::float::{BF8, F16, FP8, Format, Rounding};
use crate::wave::{Lanes, Wave};

impl Wave {
    /// Integer results from f32.
    fn integers32(&mut self, i: &Instruction, f: impl Fn(f32) -> u32) {
        let values = self.float32(i, 0).map(f);
        self.write32(i, &values);
    }

    fn integers64(&mut self, i: &Instruction, f: impl Fn(f64) -> u32) {
        let values = self.float64(i, 0).map(f);
        self.write32(i, &values);
    }

    /// f32 results from integers.
    pub(super) fn singles(&mut self, i: &Instruction, f: impl Fn(u32) -> f32) {
        let values = self.source32(i, 0).map(f);
        self.finish32(i, values);
    }

    fn doubles(&mut self, i: &Instruction, f: impl Fn(u32) -> f64) {
        let values = self.source32(i, 0).map(f);
        self.finish64(i, values);
    }

    /// Two 16-bit results from two sources.
    fn pack(&mut self, i: &Instruction, f: impl Fn(f32) -> u32) {
        let (a, b) = (self.float32(i, 0), self.float32(i, 1));
        let values = std::array::from_fn(|lane| f(a[lane]) & 0xffff | f(b[lane]) << 16);
        self.write32(i, &values);
    }

    fn pack16(&mut self, i: &Instruction, f: impl Fn(f32) -> u32) {
        let (a, b) = (self.float16(i, 0), self.float16(i, 1));
        let values = std::array::from_fn(|lane| f(a[lane]) & 0xffff | f(b[lane]) << 16);
        self.write32(i, &values);
    }

    pub(super) fn convert(&mut self, i: &Instruction) -> bool {
        match i.op {
            v_cvt_i32_f64 => self.integers64(i, |a| a as i32 as u32),
            v_cvt_u32_f64 => self.integers64(i, |a| a as u32),
            v_cvt_f64_i32 => self.doubles(i, |a| f64::from(a as i32)),
            v_cvt_f64_u32 => self.doubles(i, f64::from),
            v_cvt_f32_i32 => self.singles(i, |a| a as i32 as f32),
            v_cvt_f32_u32 => self.singles(i, |a| a as f32),
            v_cvt_u32_f32 => self.integers32(i, |a| a as u32),
            v_cvt_i32_f32 => self.integers32(i, |a| a as i32 as u32),
            v_cvt_rpi_i32_f32 => self.integers32(i, |a| (f64::from(a) + 0.5).floor() as i32 as u32),
            v_cvt_flr_i32_f32 => self.integers32(i, |a| a.floor() as i32 as u32),
            v_cvt_f16_f32 => {
                let values = self.float32(i, 0);
                self.finish16(i, values);
            }
            v_cvt_f32_f16 => {
                let values = self.float16(i, 0);
                self.finish32(i, values);
            }
            v_cvt_f32_f64 => {
                let values = self.float64(i, 0).map(|a| a as f32);
                self.finish32(i, values);
            }
            v_cvt_f64_f32 => {
                let values = self.float32(i, 0).map(f64::from);
                self.finish64(i, values);
            }
            v_cvt_f32_ubyte0 => self.singles(i, |a| (a & 0xff) as f32),
            v_cvt_f32_ubyte1 => self.singles(i, |a| (a >> 8 & 0xff) as f32),
            v_cvt_f32_ubyte2 => self.singles(i, |a| (a >> 16 & 0xff) as f32),
            v_cvt_f32_ubyte3 => self.singles(i, |a| (a >> 24) as f32),
            v_cvt_off_f32_i4 => self.singles(i, |a| (((a << 28) as i32 >> 28) as f32) / 16.0),
            v_cvt_f16_u16 => {
                let values = self.source16(i, 0).map(|a| a as f32);
                self.finish16(i, values);
            }
            v_cvt_f16_i16 => {
                let values = self.source16(i, 0).map(|a| f32::from(a as i16));
                self.finish16(i, values);
            }
            v_cvt_u16_f16 => {
                let values = self.float16(i, 0).map(|a| u32::from(a as u16));
                self.write16(i, &values);
            }
            v_cvt_i16_f16 => {
                let values = self.float16(i, 0).map(|a| a as i16 as u32 & 0xffff);
                self.write16(i, &values);
            }
            v_cvt_norm_i16_f16 => {
                let values = self.float16(i, 0).map(|a| norm_signed(a) & 0xffff);
                self.write16(i, &values);
            }
            v_cvt_norm_u16_f16 => {
                let values = self.float16(i, 0).map(norm_unsigned);
                self.write16(i, &values);
            }
            v_cvt_pkrtz_f16_f32 => {
                self.pack(i, |a| F16.encode(a.into(), Rounding::TowardZero, false));
            }
            v_cvt_pknorm_i16_f32 => self.pack(i, norm_signed),
            v_cvt_pknorm_u16_f32 => self.pack(i, norm_unsigned),
            v_cvt_pknorm_i16_f16 => self.pack16(i, norm_signed),
            v_cvt_pknorm_u16_f16 => self.pack16(i, norm_unsigned),
            v_cvt_pk_u16_u32 | v_cvt_pk_i16_i32 => {
                let (a, b) = (self.source32(i, 0), self.source32(i, 1));
                let signed = i.op == v_cvt_pk_i16_i32;
                let narrow = |a: u32| {
                    if signed { (a as i32).clamp(-0x8000, 0x7fff) as u32 & 0xffff } else { a.min(0xffff) }
                };
                let values = std::array::from_fn(|lane| narrow(a[lane]) | narrow(b[lane]) << 16);
                self.write32(i, &values);
            }
            v_cvt_f32_fp8 => self.widen(i, FP8),
            v_cvt_f32_bf8 => self.widen(i, BF8),
            v_cvt_pk_f32_fp8 => self.widen_pair(i, FP8),
            v_cvt_pk_f32_bf8 => self.widen_pair(i, BF8),
            v_cvt_pk_fp8_f32 => self.narrow_pair(i, FP8),
            v_cvt_pk_bf8_f32 => self.narrow_pair(i, BF8),
            v_cvt_sr_fp8_f32 => self.narrow_stochastic(i, FP8),
            v_cvt_sr_bf8_f32 => self.narrow_stochastic(i, BF8),
            _ => return false,
        }
        true
    }

    /// SDWA has chosen the byte already; without it op_sel does, its two bits swapped.
    fn widen(&mut self, i: &Instruction, format: Format) {
        let byte = match i.select {
            Select::Sdwa(_) => 0,
            _ => (i.op_sel & 1) << 1 | i.op_sel >> 1 & 1,
        };
        let values = self.source32(i, 0).map(|a| format.decode(a >> (8 * byte) & 0xff) as f32);
        self.finish32(i, values);
    }

    fn widen_pair(&mut self, i: &Instruction, format: Format) {
        let shift = if i.op_sel & 1 == 1 { 16 } else { 0 };
        let decode = |a: u32| u64::from((format.decode(a & 0xff) as f32).to_bits());
        let values = self.source32(i, 0).map(|a| decode(a >> shift) | decode(a >> shift >> 8) << 32);
        self.write64(i, &values);
    }

    /// Two values into one half of the destination; the other half stays.
    fn narrow_pair(&mut self, i: &Instruction, format: Format) {
        let saturate = self.saturates();
        let (a, b) = (self.float32(i, 0), self.float32(i, 1));
        let encode = |a: f32| format.encode(a.into(), Rounding::NearestEven, saturate);
        let pairs: Lanes = std::array::from_fn(|lane| encode(a[lane]) | encode(b[lane]) << 8);
        self.write16(i, &pairs);
    }

    /// One value into one byte of the destination, rounded by the random bits of the second source.
    fn narrow_stochastic(&mut self, i: &Instruction, format: Format) {
        let saturate = self.saturates();
        let (a, random) = (self.float32(i, 0), self.source32(i, 1));
        let old = self.operand32(i.destination);
        let shift = 8 * (i.op_sel >> 2 & 3);
        let values = std::array::from_fn(|lane| {
            let byte = format.encode(a[lane].into(), Rounding::Stochastic(random[lane]), saturate);
            old[lane] & !(0xff << shift) | byte << shift
        });
        self.write32(i, &values);
    }
}

fn norm_signed(value: f32) -> u32 {
    (value.clamp(-1.0, 1.0) * 32767.0).round_ties_even() as i32 as u32
}

fn norm_unsigned(value: f32) -> u32 {
    (value.clamp(0.0, 1.0) * 65535.0).round_ties_even() as u32
}
