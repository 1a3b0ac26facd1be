//! Rotary position embedding, and the other operations between the projections and attention: the norm of
//! each head, the rounding to fp8, the write to pages.

mod head;
mod kernel;
mod launch;

pub use launch::{HeadNorm, Rope, To, launch};

use crate::fp8::Code;
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
struct Blueprint {
    style: Style,
    row_group: RowGroup,
    q_code: Option<Code>,
    k_code: Option<Code>,
    v_code: Option<Code>,
}
