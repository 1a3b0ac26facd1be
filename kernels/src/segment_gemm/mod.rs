//! `y_i = x_i · w[i]` for segments of rows, each with a matrix of its own: grouped layers, LoRA adapters.
//!
//! The caller makes a list of *work items* once for a batch: up to [`SegmentGemm::tile_rows`] rows of one
//! segment each. One launch computes all of them: on matrix units where there are some ([`Tiled`]), and by
//! plain multiplications where rows are few or not aligned, or the device has none.

mod blueprint;
mod launch;
mod plain;
mod tiled;
mod work;

pub use crate::gemm::{Tiled, WarpSpecialized};
pub use blueprint::{Blueprint, Plain, Problem};
pub use launch::{SegmentGemm, launch};
pub use work::{FEW_ROWS, WORK_WORDS};
