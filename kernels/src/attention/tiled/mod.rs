//! Attention on matrix cores.

mod blueprint;
mod combine;
mod fetch;
mod kernel;
mod launch;
mod merge;
mod softmax;
mod store;

pub use blueprint::{Tiled, Unit};
pub(super) use launch::launch;
