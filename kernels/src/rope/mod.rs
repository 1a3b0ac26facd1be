//! Rotary position embedding, and the other operations between the projections and attention: the norm of
//! each head, the rounding to fp8, the write to pages.

mod head;
mod kernel;
mod launch;

pub use launch::{HeadNorm, Rope, To, launch};

/// The pairing of a head's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Style {
    /// Element `i` with `i + rotary_dim / 2`.
    Halves,
    /// Element `2i` with `2i + 1`.
    Interleaved,
}
