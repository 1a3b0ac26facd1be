//! Rotary position embedding, and the other operations between the projections and attention: the norm of
//! each head, the rounding to fp8, the write to pages.

mod blueprint;
mod head;
mod kernel;
mod launch;

pub use blueprint::Style;
pub use launch::{HeadNorm, Rope, To, launch};
