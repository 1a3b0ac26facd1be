//! SOP1, SOP2, SOPK and SOPC.

use super::mode::VSKIP;
use super::{Group, Outcome, unsupported};
use crate::decode::Op::*;
use crate::decode::{Instruction, Operand};
use crate::wave::{EXEC, M0, PRIVATE_APERTURE, SHARED_APERTURE, Wave};

/// The hardware register that programs write.
const MODE: u32 = 1;

impl Wave {
    fn target(i: &Instruction) -> usize {
        if let Operand::Scalar(index) = i.destination { index.into() } else { 0 }
    }

    /// Writes a result and sets SCC if it is not zero.
    fn logical32(&mut self, i: &Instruction, value: u32) {
        self.scalars[Self::target(i)] = value;
        self.scc = value != 0;
    }

    fn logical64(&mut self, i: &Instruction, value: u64) {
        self.set_scalar64(Self::target(i), value);
        self.scc = value != 0;
    }

    fn set32(&mut self, i: &Instruction, value: u32) {
        self.scalars[Self::target(i)] = value;
    }

    fn set32_scc(&mut self, i: &Instruction, (value, scc): (u32, bool)) {
        self.scalars[Self::target(i)] = value;
        self.scc = scc;
    }

    pub(super) fn sop2(&mut self, group: &Group, i: &Instruction) -> Outcome {
        let (a, b) = (self.uniform32(i.source[0]), self.uniform32(i.source[1]));
        let wide = |wave: &Self| (wave.uniform64(i.source[0]), wave.uniform64(i.source[1]));
        let signed = (a as i32, b as i32);
        let carry = u32::from(self.scc);
        let shift = b & 31;
        match i.op {
            s_add_u32 => self.set32_scc(i, a.overflowing_add(b)),
            s_sub_u32 => self.set32_scc(i, a.overflowing_sub(b)),
            s_add_i32 => {
                let (value, overflow) = signed.0.overflowing_add(signed.1);
                self.set32_scc(i, (value as u32, overflow));
            }
            s_sub_i32 => {
                let (value, overflow) = signed.0.overflowing_sub(signed.1);
                self.set32_scc(i, (value as u32, overflow));
            }
            s_addc_u32 => {
                let sum = u64::from(a) + u64::from(b) + u64::from(carry);
                self.set32_scc(i, (sum as u32, sum >> 32 != 0));
            }
            s_subb_u32 => {
                let borrow = u64::from(b) + u64::from(carry) > u64::from(a);
                self.set32_scc(i, (a.wrapping_sub(b).wrapping_sub(carry), borrow));
            }
            s_min_i32 => self.set32_scc(i, (signed.0.min(signed.1) as u32, signed.0 < signed.1)),
            s_max_i32 => self.set32_scc(i, (signed.0.max(signed.1) as u32, signed.0 > signed.1)),
            s_min_u32 => self.set32_scc(i, (a.min(b), a < b)),
            s_max_u32 => self.set32_scc(i, (a.max(b), a > b)),
            s_cselect_b32 => self.set32(i, if self.scc { a } else { b }),
            s_cselect_b64 => {
                let (a, b) = wide(self);
                self.set_scalar64(Self::target(i), if self.scc { a } else { b });
            }
            s_and_b32 => self.logical32(i, a & b),
            s_or_b32 => self.logical32(i, a | b),
            s_xor_b32 => self.logical32(i, a ^ b),
            s_andn2_b32 => self.logical32(i, a & !b),
            s_orn2_b32 => self.logical32(i, a | !b),
            s_nand_b32 => self.logical32(i, !(a & b)),
            s_nor_b32 => self.logical32(i, !(a | b)),
            s_xnor_b32 => self.logical32(i, !(a ^ b)),
            s_and_b64 | s_or_b64 | s_xor_b64 | s_andn2_b64 | s_orn2_b64 | s_nand_b64 | s_nor_b64
            | s_xnor_b64 => {
                let (a, b) = wide(self);
                let value = match i.op {
                    s_and_b64 => a & b,
                    s_or_b64 => a | b,
                    s_xor_b64 => a ^ b,
                    s_andn2_b64 => a & !b,
                    s_orn2_b64 => a | !b,
                    s_nand_b64 => !(a & b),
                    s_nor_b64 => !(a | b),
                    _ => !(a ^ b),
                };
                self.logical64(i, value);
            }
            s_lshl_b32 => self.logical32(i, a << shift),
            s_lshr_b32 => self.logical32(i, a >> shift),
            s_ashr_i32 => self.logical32(i, (signed.0 >> shift) as u32),
            s_lshl_b64 => self.logical64(i, self.uniform64(i.source[0]) << (b & 63)),
            s_lshr_b64 => self.logical64(i, self.uniform64(i.source[0]) >> (b & 63)),
            s_ashr_i64 => self.logical64(i, (self.uniform64(i.source[0]) as i64 >> (b & 63)) as u64),
            s_bfm_b32 => self.set32(i, ((1u32 << (a & 31)) - 1) << shift),
            s_bfm_b64 => self.set_scalar64(Self::target(i), ((1u64 << (a & 63)) - 1) << (b & 63)),
            s_mul_i32 => self.set32(i, a.wrapping_mul(b)),
            s_mul_hi_u32 => self.set32(i, (u64::from(a) * u64::from(b) >> 32) as u32),
            s_mul_hi_i32 => self.set32(i, (i64::from(signed.0) * i64::from(signed.1) >> 32) as u32),
            s_bfe_u32 | s_bfe_i32 => {
                let (offset, width) = (b & 31, (b >> 16 & 127).min(32));
                let value = field(a.into(), offset, width.min(32 - offset), i.op == s_bfe_i32);
                self.logical32(i, value as u32);
            }
            s_bfe_u64 | s_bfe_i64 => {
                let (offset, width) = (b & 63, (b >> 16 & 127).min(64));
                let source = self.uniform64(i.source[0]);
                self.logical64(i, field(source, offset, width.min(64 - offset), i.op == s_bfe_i64));
            }
            s_cbranch_g_fork => {
                let target = self.word(group, self.uniform64(i.source[1]));
                self.fork(group, self.uniform64(i.source[0]), target);
            }
            s_absdiff_i32 => self.logical32(i, signed.0.wrapping_sub(signed.1).unsigned_abs()),
            s_lshl1_add_u32 | s_lshl2_add_u32 | s_lshl3_add_u32 | s_lshl4_add_u32 => {
                let shift = 1 + i.op as u32 - s_lshl1_add_u32 as u32;
                let sum = (u64::from(a) << shift) + u64::from(b);
                self.set32_scc(i, (sum as u32, sum >> 32 != 0));
            }
            s_pack_ll_b32_b16 => self.set32(i, a & 0xffff | b << 16),
            s_pack_lh_b32_b16 => self.set32(i, a & 0xffff | b & 0xffff_0000),
            s_pack_hh_b32_b16 => self.set32(i, a >> 16 | b & 0xffff_0000),
            _ => return Err(unsupported("SOP2")),
        }
        Ok(())
    }

    fn save_exec(&mut self, target: usize, exec: u64) {
        self.set_scalar64(target, self.exec());
        self.set_scalar64(EXEC, exec);
        self.scc = exec != 0;
    }

    pub(super) fn sop1(&mut self, group: &Group, i: &Instruction) -> Outcome {
        let a = self.uniform32(i.source[0]);
        let target = Self::target(i);
        let wide = self.uniform64(i.source[0]);
        let exec = self.exec();
        match i.op {
            s_mov_b32 => self.set32(i, a),
            s_mov_b64 => self.set_scalar64(target, wide),
            s_cmov_b32 if self.scc => self.set32(i, a),
            s_cmov_b64 if self.scc => self.set_scalar64(target, wide),
            s_cmov_b32 | s_cmov_b64 => {}
            s_not_b32 => self.logical32(i, !a),
            s_not_b64 => self.logical64(i, !wide),
            s_brev_b32 => self.set32(i, a.reverse_bits()),
            s_brev_b64 => self.set_scalar64(target, wide.reverse_bits()),
            s_wqm_b32 => self.logical32(i, quads(a.into(), 0xf) as u32),
            s_wqm_b64 => self.logical64(i, quads(wide, 0xf)),
            s_quadmask_b32 => self.logical32(i, quad_mask(a.into()) as u32),
            s_quadmask_b64 => self.logical64(i, quad_mask(wide)),
            s_bcnt0_i32_b32 => self.logical32(i, a.count_zeros()),
            s_bcnt0_i32_b64 => self.logical32(i, wide.count_zeros()),
            s_bcnt1_i32_b32 => self.logical32(i, a.count_ones()),
            s_bcnt1_i32_b64 => self.logical32(i, wide.count_ones()),
            s_ff0_i32_b32 => self.set32(i, position(!a == 0, a.trailing_ones())),
            s_ff0_i32_b64 => self.set32(i, position(!wide == 0, wide.trailing_ones())),
            s_ff1_i32_b32 => self.set32(i, position(a == 0, a.trailing_zeros())),
            s_ff1_i32_b64 => self.set32(i, position(wide == 0, wide.trailing_zeros())),
            s_flbit_i32_b32 => self.set32(i, position(a == 0, a.leading_zeros())),
            s_flbit_i32_b64 => self.set32(i, position(wide == 0, wide.leading_zeros())),
            s_flbit_i32 => {
                let folded = a ^ ((a as i32) >> 31) as u32;
                self.set32(i, position(folded == 0, folded.leading_zeros()));
            }
            s_flbit_i32_i64 => {
                let folded = wide ^ ((wide as i64) >> 63) as u64;
                self.set32(i, position(folded == 0, folded.leading_zeros()));
            }
            s_sext_i32_i8 => self.set32(i, a as i8 as u32),
            s_sext_i32_i16 => self.set32(i, a as i16 as u32),
            s_bitset0_b32 => self.scalars[target] &= !(1 << (a & 31)),
            s_bitset1_b32 => self.scalars[target] |= 1 << (a & 31),
            s_bitset0_b64 => self.set_scalar64(target, self.scalar64(target) & !(1 << (a & 63))),
            s_bitset1_b64 => self.set_scalar64(target, self.scalar64(target) | 1 << (a & 63)),
            s_getpc_b64 => self.set_scalar64(target, group.program.base + 4 * self.pc as u64),
            s_setpc_b64 => self.pc = self.word(group, wide),
            s_swappc_b64 => {
                self.set_scalar64(target, group.program.base + 4 * self.pc as u64);
                self.pc = self.word(group, wide);
            }
            s_and_saveexec_b64 => self.save_exec(target, wide & exec),
            s_or_saveexec_b64 => self.save_exec(target, wide | exec),
            s_xor_saveexec_b64 => self.save_exec(target, wide ^ exec),
            s_andn2_saveexec_b64 => self.save_exec(target, wide & !exec),
            s_orn2_saveexec_b64 => self.save_exec(target, wide | !exec),
            s_nand_saveexec_b64 => self.save_exec(target, !(wide & exec)),
            s_nor_saveexec_b64 => self.save_exec(target, !(wide | exec)),
            s_xnor_saveexec_b64 => self.save_exec(target, !(wide ^ exec)),
            s_andn1_saveexec_b64 => self.save_exec(target, !wide & exec),
            s_orn1_saveexec_b64 => self.save_exec(target, !wide | exec),
            s_andn1_wrexec_b64 | s_andn2_wrexec_b64 => {
                let value = if i.op == s_andn1_wrexec_b64 { !wide & exec } else { wide & !exec };
                self.set_scalar64(EXEC, value);
                self.logical64(i, value);
            }
            s_set_gpr_idx_idx => self.index_registers(Some(a & 0xff), None),
            s_movrels_b32 | s_movrels_b64 | s_movreld_b32 | s_movreld_b64 => {
                let Operand::Scalar(source) = i.source[0] else { return Err(unsupported("s_movrel")) };
                let offset = self.scalars[M0] as usize;
                let reads = matches!(i.op, s_movrels_b32 | s_movrels_b64);
                let (from, to) = (usize::from(source), target);
                let (from, to) = if reads { (from + offset, to) } else { (from, to + offset) };
                let value = self.scalar64(from & 127);
                if matches!(i.op, s_movrels_b64 | s_movreld_b64) {
                    self.set_scalar64(to & 127, value);
                } else {
                    self.scalars[to & 127] = value as u32;
                }
            }
            s_cbranch_join => self.join(group, a),
            s_abs_i32 => self.logical32(i, (a as i32).unsigned_abs()),
            s_bitreplicate_b64_b32 => {
                let value = (0..32).fold(0, |sum, bit| sum | u64::from(a >> bit & 1) * 3 << (2 * bit));
                self.set_scalar64(target, value);
            }
            _ => return Err(unsupported("SOP1")),
        }
        Ok(())
    }

    pub(super) fn sopk(&mut self, group: &Group, i: &Instruction) -> Outcome {
        let target = Self::target(i);
        let a = self.scalars[target];
        let (k, unsigned) = (i.immediate, i.immediate as u32 & 0xffff);
        let (register, offset, width) = (unsigned & 63, unsigned >> 6 & 31, (unsigned >> 11) + 1);
        let mask = (u32::MAX >> (32 - width)) << offset;
        match i.op {
            s_movk_i32 => self.scalars[target] = k as u32,
            s_cmovk_i32 if self.scc => self.scalars[target] = k as u32,
            s_cmovk_i32 => {}
            s_cmpk_eq_i32 => self.scc = a as i32 == k,
            s_cmpk_lg_i32 => self.scc = a as i32 != k,
            s_cmpk_gt_i32 => self.scc = a as i32 > k,
            s_cmpk_ge_i32 => self.scc = a as i32 >= k,
            s_cmpk_lt_i32 => self.scc = (a as i32) < k,
            s_cmpk_le_i32 => self.scc = a as i32 <= k,
            s_cmpk_eq_u32 => self.scc = a == unsigned,
            s_cmpk_lg_u32 => self.scc = a != unsigned,
            s_cmpk_gt_u32 => self.scc = a > unsigned,
            s_cmpk_ge_u32 => self.scc = a >= unsigned,
            s_cmpk_lt_u32 => self.scc = a < unsigned,
            s_cmpk_le_u32 => self.scc = a <= unsigned,
            s_addk_i32 => {
                let (value, overflow) = (a as i32).overflowing_add(k);
                self.set32_scc(i, (value as u32, overflow));
            }
            s_mulk_i32 => self.scalars[target] = a.wrapping_mul(k as u32),
            s_getreg_b32 => {
                let Some(value) = self.hardware_register(group, register) else {
                    return Err(unsupported("this hardware register"));
                };
                self.scalars[target] = (value & mask) >> offset;
            }
            s_setreg_b32 | s_setreg_imm32_b32 => {
                if register != MODE {
                    return Err(unsupported("this hardware register"));
                }
                let value = self.uniform32(i.source[0]);
                self.mode = self.mode & !mask | value << offset & mask;
            }
            s_cbranch_i_fork => {
                self.fork(group, self.scalar64(target), self.pc.wrapping_add_signed(k as isize))
            }
            s_call_b64 => {
                self.set_scalar64(target, group.program.base + 4 * self.pc as u64);
                self.pc = self.pc.wrapping_add_signed(k as isize);
            }
            _ => return Err(unsupported("SOPK")),
        }
        Ok(())
    }

    /// Turns on the indexing of VGPRs by M0: the index in its low byte, which operands in its top bits.
    pub(super) fn index_registers(&mut self, index: Option<u32>, operands: Option<u32>) {
        let m0 = &mut self.scalars[M0];
        if let Some(index) = index {
            *m0 = *m0 & !0xff | index;
        }
        if let Some(operands) = operands {
            *m0 = *m0 & !0xf000 | (operands & 15) << 12;
            self.indexing = true;
        }
    }

    /// Registers of the hardware, if a program may ask for them.
    fn hardware_register(&self, group: &Group, register: u32) -> Option<u32> {
        Some(match register {
            MODE => self.mode | u32::from(self.indexing) << 27,
            // STATUS: a valid wave.
            2 => {
                let (execz, vccz) = (self.exec() == 0, self.vcc() == 0);
                u32::from(self.scc) | u32::from(execz) << 9 | u32::from(vccz) << 10 | 1 << 16
            }
            // LDS_ALLOC: in units of 64 words.
            6 => group.lds.size().div_ceil(256) << 12,
            // SH_MEM_BASES: the highest 16 bits of the apertures.
            15 => PRIVATE_APERTURE >> 16 | SHARED_APERTURE >> 16 << 16,
            // HW_ID, XCC_ID: all run in one place. IB_STS: nothing is under way. TBA, TMA: no trap handler.
            4 | 7 | 16..=20 => 0,
            _ => return None,
        })
    }

    pub(super) fn sopc(&mut self, i: &Instruction) -> Outcome {
        let (a, b) = (self.uniform32(i.source[0]), self.uniform32(i.source[1]));
        let wide = |wave: &Self, source: usize| wave.uniform64(i.source[source]);
        self.scc = match i.op {
            s_setvskip => {
                let skip = a >> (b & 31) & 1 == 1;
                self.mode = if skip { self.mode | VSKIP } else { self.mode & !VSKIP };
                return Ok(());
            }
            s_set_gpr_idx_on => {
                self.index_registers(Some(a & 0xff), Some(i.immediate as u32));
                return Ok(());
            }
            s_cmp_eq_i32 | s_cmp_eq_u32 => a == b,
            s_cmp_lg_i32 | s_cmp_lg_u32 => a != b,
            s_cmp_gt_i32 => a as i32 > b as i32,
            s_cmp_ge_i32 => a as i32 >= b as i32,
            s_cmp_lt_i32 => (a as i32) < b as i32,
            s_cmp_le_i32 => a as i32 <= b as i32,
            s_cmp_gt_u32 => a > b,
            s_cmp_ge_u32 => a >= b,
            s_cmp_lt_u32 => a < b,
            s_cmp_le_u32 => a <= b,
            s_bitcmp0_b32 => a >> (b & 31) & 1 == 0,
            s_bitcmp1_b32 => a >> (b & 31) & 1 == 1,
            s_bitcmp0_b64 => wide(self, 0) >> (b & 63) & 1 == 0,
            s_bitcmp1_b64 => wide(self, 0) >> (b & 63) & 1 == 1,
            s_cmp_eq_u64 => wide(self, 0) == wide(self, 1),
            s_cmp_lg_u64 => wide(self, 0) != wide(self, 1),
            _ => return Err(unsupported("SOPC")),
        };
        Ok(())
    }
}

/// Bits `offset..offset + width`, extended by their sign or by zeros.
fn field(value: u64, offset: u32, width: u32, signed: bool) -> u64 {
    if width == 0 {
        return 0;
    }
    let top = value >> offset << (64 - width);
    if signed { (top as i64 >> (64 - width)) as u64 } else { top >> (64 - width) }
}

/// A bit position, or -1.
fn position(none: bool, value: u32) -> u32 {
    if none { u32::MAX } else { value }
}

/// One bit for every group of four bits that is not zero.
fn quad_mask(value: u64) -> u64 {
    (0..16).fold(0, |mask, quad| mask | u64::from(value >> (4 * quad) & 15 != 0) << quad)
}

/// Every group of four bits that is not zero becomes `full`.
fn quads(value: u64, full: u64) -> u64 {
    (0..16)
        .map(|quad| 4 * quad)
        .filter(|shift| value >> shift & 15 != 0)
        .fold(0, |sum, shift| sum | full << shift)
}
