//! `y_i = x_i · w[i]` for segments of rows, each with a matrix of its own: grouped layers, LoRA adapters.
//!
//! Who computes what is a list that the caller makes once for a batch, a *work* being up to [`SegmentGemm::tile_rows`] rows
//! of one segment. One launch computes all of them: on matrix units where there are some ([`Tiled`]), and by plain
//! multiplications where rows are few, or not aligned, or the device is another.

mod blueprint;
mod fetch;
mod launch;
mod plain;
mod tiled;

pub use blueprint::{Blueprint, Plain, Problem, Tiled};
pub use launch::{SegmentGemm, launch};

/// Numbers of a work: its first row, the end of its rows, and the matrix that they are multiplied with.
pub const WORK_WORDS: usize = 3;
/// Rows of a work up to which each matrix is read once, without a matrix unit.
pub const FEW_ROWS: usize = 4;
