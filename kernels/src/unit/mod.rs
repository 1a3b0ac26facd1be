//! Machines that multiply matrices, with the places of the elements known.
//!
//! A *plane* multiplies small tiles: `S = Q Kᵀ`, `O += P V`. Which lane holds which element is part of a unit's
//! interface ([`Layout`]): so the softmax between the two products works on the registers that the first one left, and
//! the weights go into the second one without leaving them.
//!
//! Everything in shared memory and on its way there is counted in 16-byte [`Quad`]s.

mod mfma;
mod mma_sync;
mod product;
mod scalar;

use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

pub(crate) use mfma::{Mfma16, Mfma32};
pub(crate) use mma_sync::{MmaSync, weights_operand};
pub(crate) use product::{ProductTiles, ProductUnit, product_quads, w_copy, x_copy};
pub(crate) use scalar::{Scalar1, Scalar32, Scalar64};

use crate::attention::{HeadDims, TileRows};
use crate::math::Math;

/// 16 bytes, whatever is in them.
pub(crate) type Quad = Vector<u32, Const<4>>;

/// What a cube works on at a time, and by whom. Comptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tiles {
    pub dims: HeadDims,
    /// Tiles of [`Layout::ROWS`] rows that a plane owns.
    pub row_tiles: usize,
    /// Keys that a plane takes at a time.
    pub keys: usize,
    /// Planes with different rows.
    pub row_planes: usize,
    /// Planes with the same rows and different keys.
    pub key_planes: usize,
    /// Tiles of keys and values that shared memory holds.
    pub stages: usize,
    /// Whether the queries stay in registers.
    pub resident: bool,
    /// Cubes that share what they copy.
    pub cluster: usize,
    /// Whether keys go to the registers of the one plane that needs them, and not through shared memory.
    pub direct_keys: bool,
    /// Type of queries, keys and values.
    pub dtype: ElemType,
}

impl Tiles {
    /// Elements in a quad.
    pub fn per_quad(&self) -> usize {
        16 / self.dtype.size()
    }

    /// bf16, or else f16.
    pub fn bf16(&self) -> bool {
        self.dtype == ElemType::Float(FloatKind::BF16)
    }

    pub fn planes(&self) -> usize {
        self.row_planes * self.key_planes
    }

    /// Keys of a cube at a time.
    pub fn cube_keys(&self) -> usize {
        self.keys * self.key_planes
    }

    /// Rows of a cube.
    pub fn rows(&self, unit_rows: usize) -> usize {
        self.row_planes * self.row_tiles * unit_rows
    }

    /// Quads of a key.
    pub fn qk_quads(&self) -> usize {
        self.dims.qk / self.per_quad()
    }

    /// Quads of a value.
    pub fn vo_quads(&self) -> usize {
        self.dims.vo / self.per_quad()
    }

    /// Quads of the keys of a stage; the values follow.
    pub fn key_quads(&self) -> usize {
        if self.direct_keys { 0 } else { self.cube_keys() * self.qk_quads() }
    }

    /// Quads of a stage.
    pub fn stage_quads(&self) -> usize {
        self.key_quads() + self.cube_keys() * self.vo_quads()
    }

    /// Quads that a lane copies of rows of `quads`, `together` at a time.
    pub fn copies(&self, quads: usize, plane: usize, together: usize) -> usize {
        (self.cube_keys() * quads).div_ceil(self.planes() * plane * together) * together
    }

    /// Whether every lane has all of its copies to do, or some of them lie beyond the last key.
    pub fn even(&self, quads: usize, plane: usize, together: usize) -> bool {
        (self.cube_keys() * quads).is_multiple_of(self.planes() * plane * together)
    }
}

/// Where quad `quad` of row `row` lies in shared memory, in rows of `quads`.
///
/// Eight rows after one another differ in the banks of a quad, so that reading a column of quads meets no conflict:
/// rows of an odd number of quads do by themselves, for others the number of the quad is XORed with that of the row.
pub(crate) fn swizzle_period(quads: usize) -> usize {
    (1 << quads.trailing_zeros()).min(8)
}

/// What is XORed to the quads of a row, see [`swizzle_period`].
#[cube]
pub(crate) fn swizzle(row: usize, #[comptime] quads: usize) -> usize {
    let period = comptime!(swizzle_period(quads));
    if comptime!(period == 1) { 0usize.runtime() } else { row / comptime!(8 / period) % period }
}

/// Row and quad of the `i`-th copy of `unit`, in rows of `quads`: neighbouring units copy neighbouring quads.
#[cube]
pub(crate) fn copy_of<L: Layout>(
    unit: usize,
    #[comptime] i: usize,
    #[comptime] quads: usize,
    #[comptime] tiles: Tiles,
) -> (usize, usize) {
    let at = unit + comptime!(i * tiles.planes() * L::PLANE);
    (at / quads, at % quads)
}

/// Zeros for the values of keys from `left` on, which follow the first `copies` of `staged`: their weights are 0, but 0
/// times NaN is NaN. Keys that are not there need none, for their scores are masked.
#[cube]
pub(crate) fn clear_absent_values<U: MatrixUnit>(
    staged: &mut Array<Quad>,
    #[comptime] copies: usize,
    unit: usize,
    left: usize,
    #[comptime] tiles: Tiles,
) {
    if left < tiles.cube_keys() {
        #[unroll]
        for i in 0..comptime!(tiles.copies(tiles.vo_quads(), U::PLANE, U::VALUE_COPIES)) {
            let (row, _) = U::value_copy(unit, i, tiles);
            let slot = comptime!(copies + i);
            staged[slot] = select(row < left, staged[slot], Quad::new(0u32));
        }
    }
}

/// Which lane holds what of an accumulator, a tile of `ROWS` queries and `COLUMNS` keys (or elements of an output).
pub(crate) trait Layout: Send + Sync + 'static {
    /// Lanes.
    const PLANE: usize;
    /// Queries of a tile.
    const ROWS: usize;
    /// Keys of a tile, and elements of an output.
    const COLUMNS: usize;
    /// Elements of a tile in a lane.
    const ACC: usize;
    /// Rows of a tile in a lane.
    const LANE_ROWS: usize;
    /// Columns next to each other in a lane.
    const RUN: usize;
    /// Keys that a plane takes at a time are a multiple.
    const KEYS: usize;
    /// Whether keys and values are copied by the same lanes.
    const SAME_COPIES: bool;
    /// Copies of values by a lane are a multiple.
    const VALUE_COPIES: usize;
    /// Whether copies go to shared memory by themselves, into a stage that nobody reads; else there is one stage.
    const ASYNC: bool;

    /// Quads of keys that a lane copies.
    fn key_copies(tiles: Tiles) -> usize {
        tiles.copies(tiles.qk_quads(), Self::PLANE, 1)
    }
    /// Whether all of them are keys of the tile.
    fn even_keys(tiles: Tiles) -> bool {
        tiles.even(tiles.qk_quads(), Self::PLANE, 1)
    }
    /// Quads of shared memory that stages and queries take.
    fn shared_quads(tiles: Tiles) -> usize;
    /// Quads of a lane that are on their way to shared memory; at least 1.
    fn staged_quads(tiles: Tiles) -> usize;
    /// Which of the lane's rows element `e` is in.
    fn lane_row(e: usize) -> usize;
    /// Column of element `e` of tile `tile`, from the lane's first on.
    fn step(tile: usize, e: usize) -> usize;
}

/// Quads of shared memory of a cube: its stages, or at the end what its planes tell each other.
pub(crate) fn shared_quads<L: Layout>(tiles: Tiles) -> usize {
    let words = (tiles.key_planes - 1) * tiles.row_planes * plane_words::<L>(tiles);
    L::shared_quads(tiles).max(words.div_ceil(4))
}

/// Words of the softmax of a plane: sums, and of each row the maximum and the total.
pub(crate) fn plane_words<L: Layout>(tiles: Tiles) -> usize {
    let sums = tiles.dims.vo.div_ceil(L::COLUMNS) * L::ACC;
    tiles.row_tiles * (sums + 2 * L::LANE_ROWS) * L::PLANE
}

/// What the attention kernel asks of a machine. All lanes of a plane call together.
#[cube]
pub(crate) trait MatrixUnit: Layout + Math {
    /// [`Layout::ACC`].
    type Acc: Size;
    /// [`Layout::RUN`].
    type Run: Size;

    /// Row `i` of the lane, within a tile.
    fn row(lane: usize, #[comptime] i: usize) -> usize;
    /// First column of the lane.
    fn column(lane: usize) -> usize;

    /// The key and the quad of it that `unit` copies as its `i`-th.
    fn key_copy(unit: usize, #[comptime] i: usize, #[comptime] tiles: Tiles) -> (usize, usize);
    /// The same of a value.
    fn value_copy(unit: usize, #[comptime] i: usize, #[comptime] tiles: Tiles) -> (usize, usize);

    /// Begins to copy quad `at` of `from`, zeros unless `valid`, to quad `quad` of row `row` of the keys or values in
    /// `stage`; `slot` is the number of the copy among all of a lane.
    fn copy(
        from: &Tensor<Quad>,
        at: usize,
        valid: bool,
        shared: &mut [Quad],
        stage: usize,
        row: usize,
        quad: usize,
        #[comptime] first: usize,
        #[comptime] quads: usize,
        staged: &mut Array<Quad>,
        #[comptime] slot: usize,
    );
    /// Ends the copies of a stage that were begun.
    fn copied();
    /// Waits for the copies of `stage`, of which the first `left` keys are there, and for every plane.
    fn arrive(
        shared: &mut [Quad],
        stage: usize,
        unit: usize,
        staged: &mut Array<Quad>,
        left: usize,
        #[comptime] tiles: Tiles,
    );

    /// Waits for all copies, and for every plane: shared memory is free for other use.
    fn settle();

    /// Begins to copy the queries of the cube.
    fn fetch_queries(
        from: &Tensor<Quad>,
        rows: &TileRows,
        shared: &mut [Quad],
        unit: usize,
        #[comptime] tiles: Tiles,
    );
    /// The queries of the plane, in registers if they stay there.
    fn load_queries(
        from: &Tensor<Quad>,
        rows: &TileRows,
        shared: &[Quad],
        lane: usize,
        plane: usize,
        #[comptime] tiles: Tiles,
    ) -> Array<Quad>;

    /// `S = Q Kᵀ` over the plane's keys of `stage`.
    fn scores<E: Float>(
        queries: &Array<Quad>,
        staged: &Array<Quad>,
        shared: &[Quad],
        stage: usize,
        lane: usize,
        plane: usize,
        scores: &mut Array<Vector<f32, Self::Acc>>,
        #[comptime] tiles: Tiles,
    );
    /// `O += P V`.
    fn weigh<E: Float>(
        weights: &Array<Vector<f32, Self::Acc>>,
        shared: &[Quad],
        stage: usize,
        lane: usize,
        plane: usize,
        output: &mut Array<Vector<f32, Self::Acc>>,
        #[comptime] tiles: Tiles,
    );

    /// `x` of the row's lanes, the largest.
    fn row_max(x: f32) -> f32;
    /// `x` of the row's lanes, summed up.
    fn row_sum(x: f32) -> f32;
    /// For each element of tile `tile` the number of its row.
    fn spread(rows: &Array<f32>, #[comptime] tile: usize) -> Vector<f32, Self::Acc>;
}
