//! The places of an instruction's operands in shared memory, and the way there.

use cubecl::prelude::*;

use super::codes::numbers;
use super::fragment::{Accumulator, Fragment, FragmentLayout};
use super::tile_shape::TileShape;
use crate::request::TileRows;
use crate::staging::{Ring, Staging, Vec16};

/// The share of a lane in the copies of a stage.
pub(crate) trait CopyShape: FragmentLayout {
    /// The keys of a plane at a time are a multiple of this.
    const KEYS: usize;
    /// Keys and values are copied by the same lanes.
    const SAME_COPIES: bool;
    /// A lane's copies of values are a multiple of this.
    const VALUE_COPIES: usize;
    /// Copies to shared memory are asynchronous, into a stage that no plane reads; else there is one stage.
    const ASYNC: bool;

    /// Vec16s of keys that a lane copies.
    fn key_copies(tiles: TileShape) -> usize {
        tiles.copies(tiles.k_vecs(), Self::PLANE, 1)
    }
    /// Vec16s of values that a lane copies.
    fn value_copies(tiles: TileShape) -> usize {
        tiles.copies(tiles.v_vecs(), Self::PLANE, Self::VALUE_COPIES)
    }
    /// True if every copy of keys is within the tile.
    fn even_keys(tiles: TileShape) -> bool {
        tiles.even(tiles.k_vecs(), Self::PLANE, 1)
    }
    /// True if every copy of values is within the tile.
    fn even_values(tiles: TileShape) -> bool {
        tiles.even(tiles.v_vecs(), Self::PLANE, Self::VALUE_COPIES)
    }
    /// Vec16s of shared memory for stages and queries.
    fn shared_vecs(tiles: TileShape) -> usize;
    /// Vec16s of a lane in flight to shared memory; at least 1.
    fn staged_vecs(tiles: TileShape) -> usize;
}

/// Vec16s of shared memory of a cube: its stages, or at the end the results that its planes merge.
pub(crate) fn shared_vecs<L: CopyShape>(tiles: TileShape) -> usize {
    let words = (tiles.kv_planes - 1) * tiles.q_planes * plane_words::<L>(tiles);
    L::shared_vecs(tiles).max(words.div_ceil(4))
}

/// Words of the softmax state of a plane: output, and row_max and row_sum of each row.
pub(crate) fn plane_words<L: FragmentLayout>(tiles: TileShape) -> usize {
    let sums = tiles.dims.vo.div_ceil(L::COLUMNS) * L::ACC;
    tiles.q_tiles * (sums + 2 * L::LANE_ROWS) * L::PLANE
}

/// The layout of operands in shared memory: a tile that begins at vec16 `first` has rows of `vecs`.
#[cube]
pub(crate) trait Operands: CopyShape {
    /// The way of keys and values to shared memory.
    type Staging: Staging;

    /// Place of vec16 `vec` of query `row`.
    fn query_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize;
    /// Place of vec16 `vec` of key `row`.
    fn key_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize;
    /// Place of vec16 `vec` of value `row`, unless values are transposed.
    fn value_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize;

    /// The key, and its vec16, of the unit's `i`-th copy.
    fn key_copy(#[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize);
    /// The value, and its vec16, of the unit's `i`-th copy.
    fn value_copy(#[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize);
    /// Stores the keys and values that have arrived in registers to the stage.
    fn store_stage(ring: &mut Ring, #[comptime] tiles: TileShape);

    /// Begins to copy the queries of the cube.
    fn fetch_queries(from: &Tensor<Vec16>, rows: &TileRows, ring: &mut Ring, #[comptime] tiles: TileShape);
    /// The queries of the plane, in registers if they stay there.
    fn load_queries(
        from: &Tensor<Vec16>,
        rows: &TileRows,
        ring: &mut Ring,
        #[comptime] tiles: TileShape,
    ) -> Queries;
}

/// The queries of a plane.
#[derive(CubeType)]
pub(crate) struct Queries {
    /// In registers, if they stay there.
    pub vecs: Array<Vec16>,
    /// The factor of the products of each row that a lane has, if queries are codes.
    pub scales: ComptimeOption<Array<f32>>,
}

#[cube]
impl Queries {
    /// Multiplies products by the scales of queries and keys, those that there are.
    pub fn scale<M: Accumulator>(&self, s: &mut Fragment<M>, k_scale: &ComptimeOption<f32>) {
        #[comptime]
        match &self.scales {
            ComptimeOption::Some(scales) => s.mul_rows(scales),
            ComptimeOption::None => s.scale(k_scale),
        }
    }

    /// Multiplies the scales of the queries, if they have any, by that of the keys.
    pub fn with_keys(&mut self, k_scale: &ComptimeOption<f32>, #[comptime] rows: usize) {
        #[comptime]
        match &mut self.scales {
            ComptimeOption::Some(scales) => multiply(scales, k_scale, rows),
            ComptimeOption::None => {}
        }
    }
}

/// Multiplies `count` scales by a factor, if there is one.
#[cube]
fn multiply(scales: &mut Array<f32>, factor: &ComptimeOption<f32>, #[comptime] count: usize) {
    #[comptime]
    match factor {
        ComptimeOption::Some(factor) =>
        {
            #[unroll]
            for r in 0..count {
                scales[r] *= *factor;
            }
        }
        ComptimeOption::None => {}
    }
}

/// Waits for the copies of the current stage, of which the first `left` keys are valid, and for every plane.
#[cube]
pub(crate) fn wait_stage<M: Operands>(ring: &mut Ring, left: usize, #[comptime] tiles: TileShape) {
    if comptime!(M::ASYNC) {
        M::Staging::wait(comptime!(tiles.stages - 2));
    } else {
        clear_absent_values::<M>(ring, left, tiles);
        // Every plane has read the last tile.
        sync_cube();
        M::store_stage(ring, tiles);
        sync_cube();
    }
}

/// Writes zeros for the values of keys from `left` on, which are in registers after the keys. Their
/// probabilities are 0, but 0 times NaN is NaN. Missing keys need no zeros, since their scores are masked.
#[cube]
fn clear_absent_values<M: Operands>(ring: &mut Ring, left: usize, #[comptime] tiles: TileShape) {
    let copies = comptime!(M::key_copies(tiles));
    if left < tiles.cube_keys() {
        #[unroll]
        for i in 0..comptime!(M::value_copies(tiles)) {
            let (row, _) = M::value_copy(i, tiles);
            let slot = comptime!(copies + i);
            ring.staged[slot] = select(row < left, ring.staged[slot], Vec16::new(0u32));
        }
    }
}

/// Stores the keys that have arrived in registers.
#[cube]
pub(super) fn store_keys<M: Operands>(ring: &mut Ring, #[comptime] tiles: TileShape) {
    let (vecs, parts) = comptime!((tiles.key_row(), tiles.parts()));
    let even = comptime!(M::even_keys(tiles));
    #[unroll]
    for i in 0..comptime!(M::key_copies(tiles)) {
        let (row, vec) = M::key_copy(i, tiles);
        if comptime!(even) || row < tiles.cube_keys() {
            #[unroll]
            for part in 0..parts {
                let to = M::key_at(ring.stage, row, vec * parts + part, vecs);
                ring.shared[to] = numbers(ring.staged[i], part, tiles);
            }
        }
    }
}

/// Row and vec16 of the unit's `i`-th copy, in rows of `vecs`: neighbouring units copy neighbouring vec16s.
#[cube]
pub(super) fn copy_of<L: FragmentLayout>(
    #[comptime] i: usize,
    #[comptime] vecs: usize,
    #[comptime] tiles: TileShape,
) -> (usize, usize) {
    let at = UNIT_POS as usize + comptime!(i * tiles.planes() * L::PLANE);
    (at / vecs, at % vecs)
}

/// Number of the plane among those with the same rows.
#[cube]
pub(super) fn plane_of_keys(#[comptime] tiles: TileShape) -> usize {
    UNIT_POS_Y as usize / tiles.q_planes
}

/// First key of the plane in a stage.
#[cube]
pub(crate) fn first_key(#[comptime] tiles: TileShape) -> usize {
    plane_of_keys(tiles) * tiles.keys
}

/// First row of the plane in its cube, in tiles of `rows`.
#[cube]
pub(crate) fn first_row(#[comptime] tiles: TileShape, #[comptime] rows: usize) -> usize {
    UNIT_POS_Y as usize % tiles.q_planes * comptime!(tiles.q_tiles * rows)
}
