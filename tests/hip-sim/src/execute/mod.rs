//! What each instruction does to a wave.

mod atomic;
mod buffer;
mod compare;
mod convert;
mod divide;
mod double;
mod flow;
mod global;
mod half;
mod integer;
mod lane;
mod lds;
mod matrix;
mod packed;
mod scalar;
mod scalar_memory;
mod single;
mod vector;

pub use lds::Lds;

use crate::decode::{Format, Instruction, Program};
use crate::dispatch::Checks;
use crate::memory::Memory;
use crate::profile::Profile;
use crate::report::{Cause, Violation};
use crate::wave::Wave;

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
        match i.format {
            Format::Sop1 => self.sop1(group, i),
            Format::Sop2 => self.sop2(i),
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

    /// VOP1, VOP2 and VOP3, by the type they work on.
    fn vector(&mut self, i: &Instruction) -> Outcome {
        if self.single(i) || self.integer(i) || self.half(i) || self.double(i) || self.convert(i) {
            return Ok(());
        }
        if self.lane(i) || self.divide(i) || self.dot(i) {
            return Ok(());
        }
        Err(unsupported("no such vector instruction"))
    }
}

fn unsupported(why: &'static str) -> Violation {
    Cause::Unsupported(why).into()
}
