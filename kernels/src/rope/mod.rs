//! Rotary position embedding, and what stands beside it between the projections and attention: the norm of each head, the
//! rounding to 8 bits, the write to pages.

mod head;
mod kernel;
mod launch;

pub use launch::{HeadNorm, Rope, To, launch};

/// How the elements of a head are paired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Style {
    /// Element `i` with `i + rotary_dim / 2`.
    Halves,
    /// Element `2i` with `2i + 1`.
    Interleaved,
}
