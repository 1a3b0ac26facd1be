//! Attention of any query over single, ragged and paged keys.

mod batch;
mod blueprint;
mod kernel;
mod launch;

pub use blueprint::{Blueprint, Choice, HeadDims};
pub use launch::{Attention, Batch, launch};
