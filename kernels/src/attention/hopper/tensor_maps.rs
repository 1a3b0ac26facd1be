//! The TMA descriptors of keys and values, one for each producer plane.

use cubecl::prelude::*;

use super::roles::{PAIR, PRODUCERS};
use crate::isa::nvidia::{MAP_BYTES, map_rows, publish_map, shared_address};
use crate::mma::TileShape;
use crate::staging::Vec16;

/// Vectors of 16 bytes in a TMA descriptor.
pub(in super::super) const MAP_VECS: usize = MAP_BYTES / 16;

/// The descriptors of one cube if they are `prepared`, else room for those of each cube.
#[derive(CubeType, CubeLaunch)]
pub(in super::super) struct TensorMaps {
    pub maps: Box<[Vec16]>,
    /// Rows of a TMA box, 0 for none: a divisor of a page and of a cube's part of the keys of a tile.
    pub box_rows: usize,
    pub prepared: u32,
}

#[cube]
impl TensorMaps {
    /// The descriptor at `map`.
    pub fn of(&self, map: usize) -> &[Vec16] {
        &self.maps[map..map + MAP_VECS]
    }
}

/// Makes the TMA descriptors of keys and values in one cube, for all cubes of
/// [`warp_specialized`](super::kernel::warp_specialized). A persistent cube makes its own instead, which
/// takes it 2.3 us once.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn make_maps(
    k: &Tensor<Vec16>,
    v: &Tensor<Vec16>,
    maps: &mut [Vec16],
    box_rows: usize,
    #[comptime] tiles: TileShape,
) {
    let shared = Shared::<[Vec16]>::new_aligned_slice(comptime!(PRODUCERS * MAP_VECS), MAP_BYTES);
    make_map(k, v, maps, map_at(0usize), shared_address::<Vec16>(&shared), box_rows as u32, tiles);
}

/// Publishes the descriptor with which a plane copies keys or values, to its place in `maps`, [`map_at`].
#[cube]
pub(super) fn make_map(
    k: &Tensor<Vec16>,
    v: &Tensor<Vec16>,
    maps: &mut [Vec16],
    at: usize,
    shared: u32,
    box_rows: u32,
    #[comptime] tiles: TileShape,
) {
    let shared = shared + UNIT_POS_Y * comptime!(MAP_BYTES as u32);
    if UNIT_POS_X == 0 {
        if (UNIT_POS_Y as usize) < PAIR {
            map_rows::<Vec16>(shared, k, box_rows, tiles.dims.qk);
        } else {
            map_rows::<Vec16>(shared, v, box_rows, tiles.dims.vo);
        }
    }
    publish_map::<Vec16>(shared, &mut maps[at..at + MAP_VECS]);
}

/// Index of the plane's descriptor among those of all cubes, one for each producer plane.
#[cube]
pub(super) fn map_at(cube: usize) -> usize {
    (cube * PRODUCERS + UNIT_POS_Y as usize) * MAP_VECS
}
