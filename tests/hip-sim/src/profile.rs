//! What a launch did, counted.

use crate::decode::{Detail, Direction, Format, Op};

/// Instructions executed, by what executes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Scalar,
    ScalarMemory,
    Branch,
    Vector,
    Matrix,
    Lds,
    GlobalLoad,
    GlobalStore,
    GlobalAtomic,
    Scratch,
    Other,
}

pub const CLASSES: usize = Class::Other as usize + 1;

impl Class {
    pub(crate) fn of(op: Op, format: Format, detail: &Detail) -> Self {
        match format {
            Format::Sop1 | Format::Sop2 | Format::Sopk | Format::Sopc => Self::Scalar,
            Format::Smem => Self::ScalarMemory,
            Format::Sopp if op.name().contains("branch") => Self::Branch,
            Format::Sopp => Self::Other,
            Format::Vop3p if matches!(detail, Detail::Matrix(_)) => Self::Matrix,
            Format::Vop1 | Format::Vop2 | Format::Vopc | Format::Vop3 | Format::Vop3p => Self::Vector,
            Format::Ds => Self::Lds,
            Format::Scratch => Self::Scratch,
            Format::Flat | Format::Global | Format::Mubuf | Format::Mtbuf => match detail {
                Detail::Transfer(transfer) => match transfer.direction {
                    Direction::Load => Self::GlobalLoad,
                    Direction::Store => Self::GlobalStore,
                    Direction::Atomic(_) => Self::GlobalAtomic,
                },
                _ => Self::Other,
            },
        }
    }
}

/// Counts of a launch, over all waves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    pub instructions: [u64; CLASSES],
    pub waves: u64,
    pub barriers: u64,
    /// Bytes the lanes asked of global memory.
    pub global_bytes: u64,
    /// 64-byte segments those touched, each instruction for itself; counted when `Checks::profile` asks.
    pub global_segments: u64,
    /// Of the bytes, those of instructions whose lanes touched no more segments than the bytes fill, or one more.
    pub coalesced_bytes: u64,
    /// LDS accesses, and the passes beyond the first that the banks made of them; counted when
    /// `Checks::profile` asks.
    pub lds_accesses: u64,
    pub lds_conflicts: u64,
}

impl Profile {
    pub fn count(&self, class: Class) -> u64 {
        self.instructions[class as usize]
    }

    pub fn total(&self) -> u64 {
        self.instructions.iter().sum()
    }

    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        for (sum, count) in self.instructions.iter_mut().zip(other.instructions) {
            *sum += count;
        }
        self.waves += other.waves;
        self.barriers += other.barriers;
        self.global_bytes += other.global_bytes;
        self.global_segments += other.global_segments;
        self.coalesced_bytes += other.coalesced_bytes;
        self.lds_accesses += other.lds_accesses;
        self.lds_conflicts += other.lds_conflicts;
        self
    }
}
