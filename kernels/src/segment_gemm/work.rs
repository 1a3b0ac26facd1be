//! The work items of segments of rows.

/// Words of a work item: its first row, the end of its rows, and the index of its matrix.
pub const WORK_WORDS: usize = 3;
/// Rows of a work item up to which each matrix is read once, without a matrix unit.
pub const FEW_ROWS: usize = 4;
