//! The stored type of keys and values.

use std::fmt;

use cubecl::client::Client;
use cubecl::ir::{ElemType, UIntKind};

use crate::code8::Code8;
use crate::device::Machine;
use crate::fp8::Fp8;

/// The stored type of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// Numbers.
    Number(ElemType),
    /// Codes of 8 bits. A number is `code · scale`.
    Code(Code8),
}

impl From<ElemType> for Element {
    fn from(dtype: ElemType) -> Self {
        Self::Number(dtype)
    }
}

impl From<Fp8> for Element {
    fn from(format: Fp8) -> Self {
        Self::Code(format.into())
    }
}

impl From<Code8> for Element {
    fn from(format: Code8) -> Self {
        Self::Code(format)
    }
}

impl Element {
    /// The type of a tensor that holds them.
    pub fn storage(self) -> ElemType {
        match self {
            Self::Number(dtype) => dtype,
            Self::Code(_) => ElemType::UInt(UIntKind::U8),
        }
    }

    /// Bytes.
    pub fn size(self) -> usize {
        self.storage().size()
    }

    /// True for codes.
    pub(crate) fn is_code(self) -> bool {
        matches!(self, Self::Code(_))
    }

    /// A power of two near the largest code; 1 of numbers.
    pub(crate) fn power(self) -> f32 {
        match self {
            Self::Number(_) => 1.0,
            Self::Code(format) => format.max().log2().floor().exp2(),
        }
    }

    /// The machine whose instructions turn codes into numbers; the portable one if there are none.
    pub(crate) fn machine(self, client: &Client) -> Machine {
        match self {
            Self::Number(_) => Machine::Portable,
            Self::Code(format) => format.decoder(client),
        }
    }
}

/// The type of the numbers, or the format of the codes.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(dtype) => dtype.fmt(f),
            Self::Code(format) => write!(f, "codes of {format:?}"),
        }
    }
}
