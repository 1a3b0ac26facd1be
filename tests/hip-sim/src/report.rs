//! Why a launch stopped.

use std::fmt;

use crate::memory::AccessError;

/// What a program did that the simulator does not run or that a check forbids.
#[derive(Debug, Clone, PartialEq)]
pub enum Cause {
    /// No instruction of gfx942 begins with these words.
    UnknownEncoding([u32; 2]),
    /// The instruction is decoded but not modelled, for the reason given.
    Unsupported(&'static str),
    /// The program counter left the code.
    NoCode,
    Memory {
        address: u64,
        bytes: u32,
        write: bool,
        error: AccessError,
    },
    /// Memory that was never written, in a [`crate::memory::Memory`] that watches writes.
    MemoryUnwritten {
        address: u64,
    },
    Misaligned {
        address: u64,
        bytes: u32,
    },
    LdsOutOfBounds {
        address: u32,
        bytes: u32,
        size: u32,
    },
    LdsUnwritten {
        address: u32,
    },
    /// Another wave touched the byte since the last barrier, and one of the two wrote.
    LdsRace {
        address: u32,
        other_wave: u32,
        wrote: bool,
    },
    ScratchOutOfBounds {
        address: u64,
        bytes: u32,
        size: u32,
    },
    /// The lane reads a value of a lane that EXEC has turned off.
    InactiveLane {
        lane: u32,
    },
    /// Some waves wait at a barrier that others ended without reaching.
    BarrierMissed {
        waiting: u32,
        ended: u32,
    },
    /// Waves wait at different barriers: the other program counter.
    BarrierDiverged {
        other_pc: u64,
    },
    /// More instructions than [`crate::dispatch::Checks::instruction_limit`].
    InstructionLimit,
    /// The launch itself is wrong.
    Launch(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownEncoding([a, b]) => write!(f, "unknown instruction {a:#010x} {b:#010x}"),
            Self::Unsupported(why) => write!(f, "not modelled: {why}"),
            Self::NoCode => write!(f, "the program counter left the code"),
            Self::Memory { address, bytes, write, error } => {
                let verb = if *write { "write" } else { "read" };
                write!(f, "{verb} of {bytes} bytes at {address:#x}: {error}")
            }
            Self::MemoryUnwritten { address } => write!(f, "read of memory never written at {address:#x}"),
            Self::Misaligned { address, bytes } => {
                write!(f, "misaligned access of {bytes} bytes at {address:#x}")
            }
            Self::LdsOutOfBounds { address, bytes, size } => {
                write!(f, "access of {bytes} bytes at LDS address {address:#x}, beyond its {size} bytes")
            }
            Self::LdsUnwritten { address } => write!(f, "read of LDS never written at {address:#x}"),
            Self::LdsRace { address, other_wave, wrote } => {
                let verb = if *wrote { "wrote" } else { "read" };
                write!(f, "race: wave {other_wave} {verb} LDS address {address:#x} since the last barrier")
            }
            Self::ScratchOutOfBounds { address, bytes, size } => {
                write!(f, "access of {bytes} bytes at scratch address {address:#x}, beyond its {size} bytes")
            }
            Self::InactiveLane { lane } => write!(f, "read of lane {lane}, which is off"),
            Self::BarrierMissed { waiting, ended } => {
                write!(f, "{waiting} waves wait at a barrier that {ended} ended waves never reached")
            }
            Self::BarrierDiverged { other_pc } => {
                write!(f, "another wave waits at a different barrier, at {other_pc:#x}")
            }
            Self::InstructionLimit => write!(f, "the limit of instructions was reached"),
            Self::Launch(why) => write!(f, "{why}"),
        }
    }
}

/// A cause with the lane it was found in.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    pub lane: Option<u32>,
    pub cause: Cause,
}

impl Cause {
    pub fn in_lane(self, lane: usize) -> Violation {
        Violation { lane: Some(lane as u32), cause: self }
    }
}

impl From<Cause> for Violation {
    fn from(cause: Cause) -> Self {
        Self { lane: None, cause }
    }
}

/// Where a launch stopped, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    pub kernel: String,
    pub mnemonic: String,
    /// Device address of the instruction.
    pub pc: u64,
    /// The same from the start of the code section, as a disassembler counts.
    pub offset: u64,
    pub workgroup: [u32; 3],
    pub wave: u32,
    pub lane: Option<u32>,
    pub cause: Cause,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, mnemonic, pc, offset, workgroup: [x, y, z], wave, lane, cause } = self;
        write!(
            f,
            "{kernel}: {mnemonic} at {pc:#x} (code+{offset:#x}), workgroup ({x}, {y}, {z}), wave {wave}"
        )?;
        if let Some(lane) = lane {
            write!(f, ", lane {lane}")?;
        }
        write!(f, ": {cause}")
    }
}

impl std::error::Error for Fault {}
