//! Skip-softmax: a tile of keys whose weights are all negligible is left out, without exponentials and second product.
//!
//! A row's largest logit only rises from tile to tile. So a weight that is negligible beside the largest so far is so in
//! the end, and what is left out needs no correction: row_max and alpha stay as they are.

use cubecl::prelude::*;

use super::lane_rows::row_of;
use super::softmax::{Softmax, row_max_of};
use crate::mma::{Fragment, Mma};
use crate::request::TileRows;

/// True if a score of this lane is not negligible beside the largest of its row before this tile.
///
/// Without a key so far that is -inf, and every score counts. A row that has not seen any and sees none here is a NaN,
/// which `min` ignores. Rows beyond the last have no say: their queries are zeros.
#[cube]
pub(in super::super) fn lane_counts<M: Mma>(
    s: &Fragment<M>,
    softmax: &Softmax,
    rows: &TileRows,
    first_row: usize,
    distance: f32,
) -> bool {
    let mut least = f32::INFINITY.runtime();
    #[unroll]
    for r in 0..s.lane_rows() {
        let highest = softmax.bias.shifted(row_max_of::<M>(s, r), r);
        let below = softmax.row_max[r] - highest;
        least = select(rows.has(first_row + row_of::<M>(r)), min(least, below), least);
    }
    least * softmax.scale_log2 <= distance
}

/// True unless the tile is negligible in every row of the plane, for all lanes of the plane alike. Without a distance it
/// is known when the kernel is compiled.
#[cube]
pub(super) fn plane_counts<M: Mma>(
    s: &Fragment<M>,
    softmax: &Softmax,
    rows: &TileRows,
    first_row: usize,
) -> bool {
    #[comptime]
    match &softmax.negligible {
        ComptimeOption::Some(distance) => {
            let counts = lane_counts::<M>(s, softmax, rows, first_row, *distance);
            // A lane alone has no votes to count, and CubeCL's CPU none to give.
            if comptime!(M::PLANE > 1) { plane_any(counts) } else { counts }
        }
        ComptimeOption::None => true.runtime(),
    }
}
