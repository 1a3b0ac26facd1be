//! Attention with plain arithmetic, on every device.

mod blueprint;
mod kernel;
mod launch;

pub use blueprint::Portable;
pub(super) use launch::launch;
