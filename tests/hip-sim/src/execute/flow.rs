//! Branches, forks, barriers and the end of the program.

use super::mode::FORKS;
use super::{Group, Outcome, unsupported};
use crate::decode::Instruction;
use crate::decode::Op::*;
use crate::wave::{EXEC, Wave};

impl Wave {
    pub(super) fn sopp(&mut self, i: &Instruction) -> Outcome {
        let taken = match i.op {
            s_branch => true,
            s_cbranch_scc0 => !self.scc,
            s_cbranch_scc1 => self.scc,
            s_cbranch_vccz => self.vcc() == 0,
            s_cbranch_vccnz => self.vcc() != 0,
            s_cbranch_execz => self.exec() == 0,
            s_cbranch_execnz => self.exec() != 0,
            // Caches, priorities and waits have no effect on a machine that finishes each instruction.
            s_nop
            | s_waitcnt
            | s_sleep
            | s_setprio
            | s_wakeup
            | s_icache_inv
            | s_ttracedata
            | s_incperflevel
            | s_decperflevel
            | s_cbranch_cdbgsys
            | s_cbranch_cdbguser
            | s_cbranch_cdbgsys_or_user
            | s_cbranch_cdbgsys_and_user => false,
            s_setkill if i.immediate & 1 == 0 => false,
            s_endpgm | s_endpgm_saved | s_setkill => {
                self.ended = true;
                false
            }
            s_barrier => {
                self.at_barrier = true;
                false
            }
            s_set_gpr_idx_off => {
                self.indexing = false;
                false
            }
            s_set_gpr_idx_mode => {
                let indexing = self.indexing;
                self.index_registers(None, Some(i.immediate as u32));
                self.indexing = indexing;
                false
            }
            s_sethalt if i.immediate & 1 == 0 => false,
            s_sethalt => return Err(unsupported("halting for a debugger")),
            s_trap => return Err(unsupported("the program trapped")),
            s_sendmsg | s_sendmsghalt => return Err(unsupported("messages to the host")),
            _ => return Err(unsupported("graphics")),
        };
        if taken {
            self.pc = self.pc.wrapping_add_signed(i.immediate as isize);
        }
        Ok(())
    }

    /// The index of the word at an address of the program.
    pub(super) fn word(&self, group: &Group, address: u64) -> usize {
        (address.wrapping_sub(group.program.base) / 4) as usize
    }

    /// Lanes of `mask` go on at `target`, the others here; if there are some of both, the smaller part goes
    /// first and the other one is put on the stack of forks, in SGPRs from 0 on.
    pub(super) fn fork(&mut self, group: &Group, mask: u64, target: usize) {
        let (pass, fail) = (mask & self.exec(), !mask & self.exec());
        if fail == 0 {
            self.pc = target;
        } else if pass != 0 {
            let fail_first = fail.count_ones() < pass.count_ones();
            let (first, second) = if fail_first { (fail, pass) } else { (pass, fail) };
            let waits = if fail_first { target } else { self.pc };
            let slot = 4 * (self.mode >> FORKS) as usize;
            self.set_scalar64(slot, second);
            self.set_scalar64(slot + 2, group.program.base + 4 * waits as u64);
            self.set_scalar64(EXEC, first);
            self.mode = self.mode.wrapping_add(1 << FORKS);
            if !fail_first {
                self.pc = target;
            }
        }
    }

    /// Goes on behind a fork of which both paths are done, or takes the one that waits.
    pub(super) fn join(&mut self, group: &Group, forks: u32) {
        if self.mode >> FORKS == forks {
            return;
        }
        self.mode = self.mode.wrapping_sub(1 << FORKS);
        let slot = 4 * (self.mode >> FORKS) as usize;
        self.set_scalar64(EXEC, self.scalar64(slot));
        self.pc = self.word(group, self.scalar64(slot + 2));
    }
}
