//! Attention of any query over single, ragged and paged keys.

mod batch;
mod blueprint;
mod launch;
mod portable;
mod tiled;

pub use blueprint::{Alignment, Blueprint, Choice, HeadDims, Problem};
pub use launch::{Attention, Batch, launch};
pub use portable::Portable;
pub use tiled::{Tiled, Unit};
