//! What each instruction does to a wave.

mod atomic;
mod buffer;
mod compare;
mod convert;
mod directed;
mod divide;
mod double;
mod ds;
mod flow;
mod format;
mod global;
mod half;
mod integer;
mod lane;
mod lds;
mod matrix;
mod media;
mod mode;
mod packed;
mod scalar;
mod scalar_memory;
mod single;
#[cfg(test)]
mod tests;
mod vector;

pub use lds::Lds;

use self::mode::VSKIP;
use crate::decode::{Format, Instruction, Operand, Program};
use crate::dispatch::Checks;
use crate::memory::Memory;
use crate::profile::Profile;
use crate::report::{Cause, Violation};
use crate::wave::{M0, Wave};

/// What an instruction leaves: nothing, or the reason to stop the launch.
pub type Outcome = Result<(), Violation>;

/// What the waves of a workgroup share.
pub struct Group<'a> {
    pub memory: &'a Memory,
    pub program: &'a Program,
    pub checks: Checks,
    pub lds: Lds,
    pub profile: Profile,
}

impl Wave {
    /// Executes the instruction; `pc` is already past it.
    #[inline]
    pub fn execute(&mut self, group: &mut Group, i: &Instruction) -> Outcome {
        if self.indexing || self.mode & VSKIP != 0 {
            return self.execute_specially(group, i);
        }
        self.execute_plainly(group, i)
    }

    #[inline]
    fn execute_plainly(&mut self, group: &mut Group, i: &Instruction) -> Outcome {
        match i.format {
            Format::Sop1 => self.sop1(group, i),
            Format::Sop2 => self.sop2(group, i),
            Format::Sopk => self.sopk(group, i),
            Format::Sopc => self.sopc(i),
            Format::Sopp => self.sopp(i),
            Format::Smem => self.smem(group, i),
            Format::Vop1 | Format::Vop2 | Format::Vop3 => self.vector(i),
            Format::Vopc => self.compare(i),
            Format::Vop3p => self.packed(i),
            Format::Ds => self.ds(group, i),
            Format::Flat | Format::Global | Format::Scratch => self.flat(group, i),
            Format::Mubuf | Format::Mtbuf => self.buffer(group, i),
        }
    }

    /// Executes it with VGPRs indexed by M0, or skips it because it is a vector instruction.
    fn execute_specially(&mut self, group: &mut Group, i: &Instruction) -> Outcome {
        match i.format {
            Format::Sop1 | Format::Sop2 | Format::Sopk | Format::Sopc | Format::Sopp | Format::Smem => {
                self.execute_plainly(group, i)
            }
            _ if self.mode & VSKIP != 0 => Ok(()),
            Format::Vop1 | Format::Vop2 | Format::Vop3 => self.vector(&self.indexed(i)),
            Format::Vopc => self.compare(&self.indexed(i)),
            _ => self.execute_plainly(group, i),
        }
    }

    /// The instruction with its VGPRs moved by M0, as `s_set_gpr_idx_on` asks.
    fn indexed(&self, i: &Instruction) -> Instruction {
        let m0 = self.scalars[M0];
        let moved = |operand: Operand, bit: u32| match operand {
            Operand::Vector(register) if m0 >> bit & 1 == 1 => {
                Operand::Vector(register.wrapping_add(m0 as u8))
            }
            operand => operand,
        };
        let source = std::array::from_fn(|n| moved(i.source[n], 12 + n as u32));
        Instruction { source, destination: moved(i.destination, 15), ..*i }
    }

    /// VOP1, VOP2 and VOP3, by the type they work on.
    fn vector(&mut self, i: &Instruction) -> Outcome {
        if self.directed(i)
            || self.single(i)
            || self.integer(i)
            || self.half(i)
            || self.double(i)
            || self.convert(i)
        {
            return Ok(());
        }
        if self.lane(i) || self.divide(i) || self.dot(i) || self.media(i) {
            return Ok(());
        }
        Err(unsupported("no such vector instruction"))
    }
}

fn unsupported(why: &'static str) -> Violation {
    Cause::Unsupported(why).into()
}
