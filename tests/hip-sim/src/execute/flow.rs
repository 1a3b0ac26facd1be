//! SOPP: branches, barriers and the end of the program.

use super::{Outcome, unsupported};
use crate::decode::Instruction;
use crate::decode::Op::*;
use crate::wave::Wave;

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
            s_endpgm | s_endpgm_saved => {
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
            s_sethalt if i.immediate == 0 => false,
            s_trap => return Err(unsupported("the program trapped")),
            _ => return Err(unsupported("SOPP")),
        };
        if taken {
            self.pc = self.pc.wrapping_add_signed(i.immediate as isize);
        }
        Ok(())
    }
}
