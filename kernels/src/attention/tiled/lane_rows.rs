//! The rows of a lane.

use cubecl::prelude::*;

use crate::mma::Mma;

/// Row `r` of the lane, within the rows of its plane.
#[cube]
pub(in super::super) fn row_of<M: Mma>(#[comptime] r: usize) -> usize {
    M::row(comptime!(r % M::LANE_ROWS)) + comptime!(r / M::LANE_ROWS * M::ROWS)
}
