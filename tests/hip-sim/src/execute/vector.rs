//! How vector instructions read their sources and write their results.

use super::mode::{INPUT_16_64, INPUT_32, OUTPUT_16_64, OUTPUT_32};
use crate::decode::{Dpp, Format, Instruction, Op, Operand, Sdwa, Select};
use crate::float::{f16_to_f32, f32_to_f16};
use crate::wave::{LANES, Lanes, REGISTERS, Wave, WideLanes, float16, float64};

impl Wave {
    /// A register, with the index cut to the file so that no check remains.
    #[inline]
    pub(super) fn lanes(&self, register: usize) -> &Lanes {
        &self.vectors[register & (REGISTERS - 1)]
    }

    #[inline]
    pub(super) fn lanes_mut(&mut self, register: usize) -> &mut Lanes {
        &mut self.vectors[register & (REGISTERS - 1)]
    }

    /// A 32-bit operand per lane, as it stands.
    #[inline]
    pub(super) fn operand32(&self, operand: Operand) -> Lanes {
        match self.register(operand) {
            Some(register) => *self.lanes(register),
            None => [self.uniform32(operand); LANES],
        }
    }

    /// Source `n` of 32 bits, after DPP or SDWA.
    #[inline]
    pub(super) fn source32(&self, i: &Instruction, n: usize) -> Lanes {
        let values = self.operand32(i.source[n]);
        match i.select {
            Select::Whole => values,
            Select::Dpp(dpp) if n == 0 => self.permuted(dpp, &values),
            Select::Sdwa(sdwa) if n < 2 => {
                let (select, extend) = (sdwa.source[n], sdwa.extend[n]);
                values.map(|value| selected(value, select, extend))
            }
            _ => values,
        }
    }

    /// Source `n` of 16 bits, in the low half.
    #[inline]
    pub(super) fn source16(&self, i: &Instruction, n: usize) -> Lanes {
        let values = match i.source[n] {
            Operand::Float(code) => [float16(code); LANES],
            _ => self.source32(i, n),
        };
        let shift = if i.op_sel >> n & 1 == 1 { 16 } else { 0 };
        values.map(|value| value >> shift & 0xffff)
    }

    /// Source `n` of 64 bits; a literal is an integer unless `float`, when it is the high half.
    #[inline]
    pub(super) fn source64(&self, i: &Instruction, n: usize, float: bool) -> WideLanes {
        let operand = i.source[n];
        if let Some(register) = self.register(operand) {
            let (mut low, mut high) = (*self.lanes(register), *self.lanes(register + 1));
            if n == 0
                && let Select::Dpp(dpp) = i.select
            {
                (low, high) = (self.permuted(dpp, &low), self.permuted(dpp, &high));
            }
            return std::array::from_fn(|lane| u64::from(low[lane]) | u64::from(high[lane]) << 32);
        }
        [match operand {
            Operand::Literal(value) if float => u64::from(value) << 32,
            Operand::Float(code) => float64(code),
            _ => self.uniform64(operand),
        }; LANES]
    }

    /// Source `n` as f32, with its modifiers.
    #[inline]
    pub(super) fn float32(&self, i: &Instruction, n: usize) -> [f32; LANES] {
        let (clear, flip) = sign_change(i, n, 31);
        let flush = !self.keeps(INPUT_32);
        self.source32(i, n).map(|bits| {
            let bits = bits & clear ^ flip;
            f32::from_bits(if flush { flushed32(bits) } else { bits })
        })
    }

    /// Source `n` as f16 in f32, with its modifiers.
    #[inline]
    pub(super) fn float16(&self, i: &Instruction, n: usize) -> [f32; LANES] {
        let (clear, flip) = sign_change(i, n, 15);
        let flush = !self.keeps(INPUT_16_64);
        self.source16(i, n).map(|bits| {
            let bits = (bits & clear ^ flip) as u16;
            f16_to_f32(if flush { flushed16(bits) } else { bits })
        })
    }

    /// Source `n` as f64, with its modifiers.
    #[inline]
    pub(super) fn float64(&self, i: &Instruction, n: usize) -> [f64; LANES] {
        let clear = if i.absolute >> n & 1 == 1 { !(1 << 63) } else { u64::MAX };
        let flip = u64::from(i.negate >> n & 1) << 63;
        let flush = !self.keeps(INPUT_16_64);
        self.source64(i, n, true).map(|bits| {
            let bits = bits & clear ^ flip;
            f64::from_bits(if flush { flushed64(bits) } else { bits })
        })
    }

    /// Writes f32 results: output modifier, clamp and denormals.
    #[inline]
    pub(super) fn finish32(&mut self, i: &Instruction, mut values: [f32; LANES]) {
        self.modified(i, OUTPUT_32, &mut values);
        let mut bits = values.map(f32::to_bits);
        if !self.keeps(OUTPUT_32) {
            bits = bits.map(flushed32);
        }
        self.write32(i, &bits);
    }

    /// Rounds to f16 and writes.
    #[inline]
    pub(super) fn finish16(&mut self, i: &Instruction, mut values: [f32; LANES]) {
        self.modified(i, OUTPUT_16_64, &mut values);
        let bits = self.halves_of(&values);
        self.write16(i, &bits);
    }

    /// f16 results of f32 values.
    #[inline]
    pub(super) fn halves_of(&self, values: &[f32; LANES]) -> Lanes {
        let (flush, saturate) = (!self.keeps(OUTPUT_16_64), self.saturates());
        values.map(|value| {
            let value = if saturate && value.is_finite() { value.clamp(-65504.0, 65504.0) } else { value };
            let bits = f32_to_f16(value);
            u32::from(if flush { flushed16(bits) } else { bits })
        })
    }

    /// Writes f64 results.
    #[inline]
    pub(super) fn finish64(&mut self, i: &Instruction, mut values: [f64; LANES]) {
        self.modified(i, OUTPUT_16_64, &mut values);
        let mut bits = values.map(f64::to_bits);
        if !self.keeps(OUTPUT_16_64) {
            bits = bits.map(flushed64);
        }
        self.write64(i, &bits);
    }

    /// Writes 16-bit results: the instructions that exist only as VOP3 keep the other half of the
    /// register, the others clear the high half.
    #[inline]
    pub(super) fn write16(&mut self, i: &Instruction, values: &Lanes) {
        if i.format != Format::Vop3 || is_legacy(i.op) {
            return self.write32(i, values);
        }
        let old = self.operand32(i.destination);
        let high = i.op_sel & 8 != 0;
        let merged = std::array::from_fn(|lane| {
            let value = values[lane] & 0xffff;
            if high { old[lane] & 0xffff | value << 16 } else { old[lane] & 0xffff_0000 | value }
        });
        self.write32(i, &merged);
    }

    /// Writes where EXEC and DPP allow, and what SDWA selects.
    #[inline]
    pub(super) fn write32(&mut self, i: &Instruction, values: &Lanes) {
        let mask = self.write_mask(i);
        let Some(register) = self.register(i.destination) else { return };
        match i.select {
            Select::Sdwa(sdwa) if sdwa.destination != 6 => {
                let old = *self.lanes(register);
                let merged: Lanes = std::array::from_fn(|lane| merged(old[lane], values[lane], sdwa));
                blend(self.lanes_mut(register), &merged, mask);
            }
            _ => blend(self.lanes_mut(register), values, mask),
        }
    }

    #[inline]
    pub(super) fn write64(&mut self, i: &Instruction, values: &WideLanes) {
        let mask = self.write_mask(i);
        let Some(register) = self.register(i.destination) else { return };
        blend(self.lanes_mut(register), &values.map(|value| value as u32), mask);
        blend(self.lanes_mut(register + 1), &values.map(|value| (value >> 32) as u32), mask);
    }

    /// The lanes an instruction writes.
    #[inline]
    pub(super) fn write_mask(&self, i: &Instruction) -> u64 {
        let Select::Dpp(dpp) = i.select else { return self.exec() };
        let exec = self.exec();
        (0..LANES)
            .filter(|&lane| {
                dpp.row_mask >> (lane / 16) & 1 == 1
                    && dpp.bank_mask >> (lane % 16 / 4) & 1 == 1
                    && (dpp.bound_control || dpp.source(lane).is_some_and(|from| exec >> from & 1 == 1))
            })
            .fold(0, |mask, lane| mask | 1 << lane)
            & exec
    }

    /// Values moved between lanes; a lane without a source, or whose source is off, reads 0.
    fn permuted(&self, dpp: Dpp, values: &Lanes) -> Lanes {
        let exec = self.exec();
        std::array::from_fn(|lane| match dpp.source(lane) {
            Some(from) if exec >> from & 1 == 1 => values[from],
            _ => 0,
        })
    }
}

impl Dpp {
    /// The lane that `lane` reads.
    fn source(self, lane: usize) -> Option<usize> {
        let (row, column) = (lane & !15, lane & 15);
        let amount = usize::from(self.control & 15);
        match self.control {
            0x000..=0x0ff => Some(lane & !3 | usize::from(self.control >> (2 * (lane & 3)) & 3)),
            0x101..=0x10f => (column + amount < 16).then_some(lane + amount),
            0x111..=0x11f => (column >= amount).then(|| lane - amount),
            0x121..=0x12f => Some(row | (column + 16 - amount) & 15),
            0x130 => (lane < 63).then_some(lane + 1),
            0x134 => Some((lane + 1) & 63),
            0x138 => lane.checked_sub(1),
            0x13c => Some((lane + 63) & 63),
            0x140 => Some(row | 15 - column),
            0x141 => Some(lane & !7 | 7 - (lane & 7)),
            0x142 => row.checked_sub(1),
            0x143 => (lane >= 32).then_some(31),
            0x150..=0x15f => Some(row | amount),
            _ => None,
        }
    }
}

/// The 16-bit VOP3 instructions of before GFX9, which clear the high half.
fn is_legacy(op: Op) -> bool {
    use Op::*;
    matches!(
        op,
        v_mad_legacy_f16 | v_mad_legacy_u16 | v_mad_legacy_i16 | v_fma_legacy_f16 | v_div_fixup_legacy_f16
    )
}

/// Copies the lanes of `mask`.
#[inline]
pub(super) fn blend(target: &mut Lanes, values: &Lanes, mask: u64) {
    if mask == u64::MAX {
        *target = *values;
    } else {
        for lane in 0..LANES {
            if mask >> lane & 1 == 1 {
                target[lane] = values[lane];
            }
        }
    }
}

/// What to keep and what to flip of a source whose sign is bit `sign`.
#[inline]
fn sign_change(i: &Instruction, n: usize, sign: u32) -> (u32, u32) {
    let clear = if i.absolute >> n & 1 == 1 { !(1 << sign) } else { u32::MAX };
    (clear, u32::from(i.negate >> n & 1) << sign)
}

/// Zero instead of a denormal.
#[inline]
pub(super) fn flushed32(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

#[inline]
pub(super) fn flushed16(bits: u16) -> u16 {
    if bits & 0x7c00 == 0 { bits & 0x8000 } else { bits }
}

#[inline]
fn flushed64(bits: u64) -> u64 {
    if bits & 0x7ff0_0000_0000_0000 == 0 { bits & 1 << 63 } else { bits }
}

/// SDWA source: a byte, a word or all.
fn selected(value: u32, select: u8, extend: bool) -> u32 {
    match (select, extend) {
        (0..=3, false) => value >> (8 * select) & 0xff,
        (0..=3, true) => (value >> (8 * select)) as i8 as u32,
        (4 | 5, false) => value >> (16 * (select - 4)) & 0xffff,
        (4 | 5, true) => (value >> (16 * (select - 4))) as i16 as u32,
        _ => value,
    }
}

/// SDWA destination: the selected part of the result, and zeros, sign or the old value around it.
fn merged(old: u32, value: u32, sdwa: Sdwa) -> u32 {
    let (shift, width) = match sdwa.destination {
        select @ 0..=3 => (8 * u32::from(select), 8),
        select => (16 * (u32::from(select) - 4), 16),
    };
    let mask = (u32::MAX >> (32 - width)) << shift;
    let part = value << shift & mask;
    match sdwa.unused {
        0 => part,
        1 => ((part << (32 - width - shift)) as i32 >> (32 - width - shift)) as u32,
        _ => old & !mask | part,
    }
}
