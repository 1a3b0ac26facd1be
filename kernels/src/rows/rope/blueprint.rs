//! The comptime settings of the RoPE kernel.

use crate::code8::Code;
use crate::rows::row_group::RowGroup;

/// The pairing of a head's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Style {
    /// Element `i` with `i + rotary_dim / 2`.
    Halves,
    /// Element `2i` with `2i + 1`.
    Interleaved,
}

/// The comptime settings of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Blueprint {
    pub style: Style,
    pub row_group: RowGroup,
    pub q_code: Option<Code>,
    pub k_code: Option<Code>,
    pub v_code: Option<Code>,
}
