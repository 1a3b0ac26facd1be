//! Attention on matrix cores.

mod auto;
mod blueprint;
mod combine;
mod fetch;
mod kernel;
mod launch;
mod merge;
pub(super) mod softmax;
mod store;

pub use blueprint::{Tiled, Unit};
pub(super) use kernel::TiledParams;
pub(super) use launch::launch;
pub(super) use store::store_rows;
