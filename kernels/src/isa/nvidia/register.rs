//! Register classes of PTX.

/// A register class of PTX.
#[derive(Clone, Copy, PartialEq)]
pub(in crate::isa) enum Register {
    F32,
    B32,
    B64,
    /// A pointer to global memory.
    Global,
}

impl Register {
    /// The letter of the class in attributes.
    pub(in crate::isa) fn letter(self) -> char {
        match self {
            Self::Global => 'g',
            _ => self.constraint(),
        }
    }

    /// The letter of the class in constraints of inline assembly.
    pub(in crate::isa) fn constraint(self) -> char {
        match self {
            Self::F32 => 'f',
            Self::B32 => 'r',
            Self::B64 | Self::Global => 'l',
        }
    }

    #[cfg(feature = "compilers")]
    pub(in crate::isa) fn of_letter(letter: &str) -> Self {
        match letter {
            "f" => Self::F32,
            "l" => Self::B64,
            "g" => Self::Global,
            _ => Self::B32,
        }
    }
}
