//! The TMA descriptors of both factors.

use cubecl::prelude::*;

use super::tiles::{CUBE_MAP_VECS, MAP_VECS, ROWS, WarpgroupTiles};
use crate::isa::nvidia::{MAP_BYTES, map_matrix, publish_map};
use crate::staging::Vec16;

/// Publishes the cube's descriptor of `x`, or of `weight`, to its place in `maps`. The first two warps call, the first one
/// for `x`. `shared` is the address of room for both. Descriptors of all cubes, made by a launch of their own, took 1 us
/// more: the time between two launches.
#[cube]
pub(super) fn make_map(
    x: &Tensor<Vec16>,
    weight: &Tensor<Vec16>,
    maps: &mut [Vec16],
    shared: u32,
    d_in: usize,
    #[comptime] tiles: WarpgroupTiles,
) {
    let map = shared + UNIT_POS_Y * comptime!(MAP_BYTES as u32);
    if UNIT_POS_X == 0 {
        if UNIT_POS_Y == 0 {
            map_matrix::<Vec16>(map, x, comptime!(ROWS as u32).runtime(), x.shape(0), d_in);
        } else {
            let rows = comptime!(tiles.columns() as u32).runtime();
            map_matrix::<Vec16>(map, weight, rows, weight.shape(0), d_in);
        }
    }
    let at = CUBE_POS * CUBE_MAP_VECS + UNIT_POS_Y as usize * MAP_VECS;
    publish_map::<Vec16>(map, &mut maps[at..at + MAP_VECS]);
}
