//! The work items of segments of rows.

pub use crate::gemm::WORK_WORDS;

/// Rows of a work item up to which each matrix is read once, without a matrix unit.
pub const FEW_ROWS: usize = 4;
