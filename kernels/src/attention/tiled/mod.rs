//! Attention on matrix cores.

mod blueprint;
mod combine;
mod kernel;
mod launch;

pub use blueprint::{Tiled, Unit};
pub(super) use launch::launch;
