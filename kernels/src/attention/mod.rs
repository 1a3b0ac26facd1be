//! Attention of any query over single, ragged and paged keys.

mod batch;
mod blueprint;
mod launch;
mod plan;
mod portable;
mod specialized;
mod tiled;

pub use blueprint::{Alignment, Blueprint, Choice, HeadDims, Mixed, Problem};
pub use launch::{Attention, Batch, launch};
pub use plan::{Limits, Plan, Planned, Span, Split, WORDS};
pub use portable::Portable;
pub use tiled::{Tiled, Unit};
