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
        if self.indexing && matches!(i.format, Format::Vop1 | Format::Vop2 | Format::Vopc | Format::Vop3) {
            let i = self.indexed(i);
            return if i.format == Format::Vopc { self.compare(&i) } else { self.vector(&i) };
        }
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
