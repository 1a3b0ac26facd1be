//! From the words of a code object to decoded instructions, once per code object.

mod detail;
mod encoding;
mod matrix;

use crate::profile::Class;

pub use detail::{
    AtomicOp, Compare, D16, Detail, Direction, Formatted, Number, Relation, ScalarTransfer, Space, Transfer,
};
pub use matrix::{Element, Matrix};

macro_rules! opcodes {
    ($($format:ident { $($code:literal $name:ident,)* })*) => {
        /// Every mnemonic of gfx942, spelt as the assembler spells it.
        #[allow(non_camel_case_types)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Op { $($($name,)*)* }

        /// The encodings of the GFX9 family.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Format { $($format,)* }

        impl Op {
            /// All of them, with the encoding each has and its number there.
            pub const ALL: &[(Format, u32, Self)] = &[$($((Format::$format, $code, Self::$name),)*)*];

            /// The mnemonic.
            pub fn name(self) -> &'static str {
                match self { $($(Self::$name => stringify!($name),)*)* }
            }

            fn find(format: Format, code: u32) -> Option<Self> {
                match (format, code) {
                    $($((Format::$format, $code) => Some(Self::$name),)*)*
                    _ => None,
                }
            }
        }
    };
}

include!("opcodes.rs");

/// Where a source comes from or a result goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    None,
    /// Index into the scalar file, VCC, M0, TTMP and EXEC included.
    Scalar(u8),
    Vector(u8),
    Accumulator(u8),
    /// Inline integer.
    Integer(i8),
    /// Inline float, by its code 240..=248: the value depends on the type of the operand.
    Float(u8),
    Literal(u32),
    SharedBase,
    SharedLimit,
    PrivateBase,
    PrivateLimit,
    Vccz,
    Execz,
    Scc,
}

impl Operand {
    /// The vector register `count` after this one.
    pub fn after(self, count: u8) -> Self {
        match self {
            Self::Vector(register) => Self::Vector(register.wrapping_add(count)),
            Self::Accumulator(register) => Self::Accumulator(register.wrapping_add(count)),
            other => other,
        }
    }
}

/// Data-parallel primitives: which lane a lane reads its first source from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dpp {
    pub control: u16,
    pub bound_control: bool,
    pub bank_mask: u8,
    pub row_mask: u8,
}

/// Sub-dword addressing: which bytes of a source are read and of the destination written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sdwa {
    pub destination: u8,
    pub unused: u8,
    pub source: [u8; 2],
    pub extend: [bool; 2],
}

/// How the lanes of a VOP1, VOP2 or VOPC instruction are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Select {
    Whole,
    Dpp(Dpp),
    Sdwa(Sdwa),
}

/// One instruction, with every field that its encoding may have.
#[derive(Debug, Clone, Copy)]
pub struct Instruction {
    pub op: Op,
    pub format: Format,
    /// How the profile counts it.
    pub class: Class,
    /// Length in dwords.
    pub length: u8,
    pub destination: Operand,
    /// Scalar destination of a compare or a carry; also the carry destination of VOP2.
    pub scalar_destination: u8,
    pub source: [Operand; 3],
    /// SIMM16 sign-extended, a memory offset, or the K of `fmamk` and `fmaak`.
    pub immediate: i32,
    /// One bit per source.
    pub negate: u8,
    pub absolute: u8,
    pub negate_high: u8,
    pub op_sel: u8,
    pub op_sel_high: u8,
    pub clamp: bool,
    pub output_modifier: u8,
    /// MFMA broadcast: CBSZ, ABID, BLGP.
    pub broadcast: [u8; 3],
    /// Memory: SC0 asks an atomic to return; for DS, GDS.
    pub sc0: bool,
    pub lds: bool,
    pub indexed: bool,
    /// MTBUF: the data format, and above its four bits the number format.
    pub element: u8,
    pub offset_enable: bool,
    pub select: Select,
    pub detail: Detail,
}

/// A decoded text section. A word that begins no instruction decodes to `None`.
pub struct Program {
    pub base: u64,
    pub instructions: Vec<Option<Instruction>>,
}

impl Program {
    /// Decodes from every word: a branch may go anywhere, and data may lie between functions.
    pub fn new(base: u64, words: &[u32]) -> Self {
        let instructions = (0..words.len()).map(|start| Instruction::decode(&words[start..])).collect();
        Self { base, instructions }
    }
}
