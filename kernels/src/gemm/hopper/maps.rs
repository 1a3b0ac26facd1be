//! The TMA descriptors of both factors.

use cubecl::prelude::*;

use super::tiles::ROWS;
use crate::isa::nvidia::{MAP_BYTES, map_matrix, publish_map, shared_address};
use crate::staging::Vec16;

/// Vectors of 16 bytes in a descriptor.
pub(in super::super) const MAP_VECS: usize = MAP_BYTES / 16;

/// Makes the descriptors of `x` and of `weight`, a warp for each.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn make_maps(
    x: &Tensor<Vec16>,
    weight: &Tensor<Vec16>,
    maps: &mut [Vec16],
    d_in: usize,
    box_rows: u32,
) {
    let shared = Shared::<[Vec16]>::new_aligned_slice(comptime!(2 * MAP_VECS), MAP_BYTES);
    let map = shared_address::<Vec16>(&shared) + UNIT_POS_Y * comptime!(MAP_BYTES as u32);
    if UNIT_POS_X == 0 {
        if UNIT_POS_Y == 0 {
            map_matrix::<Vec16>(map, x, comptime!(ROWS as u32).runtime(), x.shape(0), d_in);
        } else {
            map_matrix::<Vec16>(map, weight, box_rows, weight.shape(0), d_in);
        }
    }
    let at = UNIT_POS_Y as usize * MAP_VECS;
    publish_map::<Vec16>(map, &mut maps[at..at + MAP_VECS]);
}
