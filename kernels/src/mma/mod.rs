//! Machines that multiply matrices, with the places of the elements known.
//!
//! A *plane* multiplies small tiles: `S = Q Kᵀ`, `O += P V`. Which lane holds which element is part of a unit's
//! interface ([`FragmentLayout`]): so the softmax between the two products works on the registers that the first one left, and
//! the weights go into the second one without leaving them.
//!
//! Everything in shared memory and on its way there is counted in 16-byte [`Vec16`]s.

mod gemm;
mod mfma;
mod mma_sync;
mod scalar;

use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

pub(crate) use gemm::{GemmMma, GemmTileShape, product_vecs, w_copy, x_copy};
pub(crate) use mfma::{Mfma16, Mfma32};
pub(crate) use mma_sync::{MmaSync, p_operand};
pub(crate) use scalar::{Scalar1, Scalar32, Scalar64};

use crate::attention::{HeadDims, TileRows};
use crate::math::Math;

/// 16 bytes, whatever is in them.
pub(crate) type Vec16 = Vector<u32, Const<4>>;

/// What a cube works on at a time, and by whom. Comptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TileShape {
    pub dims: HeadDims,
    /// TileShape of [`FragmentLayout::ROWS`] rows that a plane owns.
    pub q_tiles: usize,
    /// Keys that a plane takes at a time.
    pub keys: usize,
    /// Planes with different rows.
    pub q_planes: usize,
    /// Planes with the same rows and different keys.
    pub kv_planes: usize,
    /// TileShape of keys and values that shared memory holds.
    pub stages: usize,
    /// Whether the queries stay in registers.
    pub q_in_registers: bool,
    /// Cubes that share what they copy.
    pub cluster: usize,
    /// Whether keys go to the registers of the one plane that needs them, and not through shared memory.
    pub direct_keys: bool,
    /// Type of queries, keys and values.
    pub dtype: ElemType,
}

impl TileShape {
    /// Elements in a vec.
    pub fn per_vec(&self) -> usize {
        16 / self.dtype.size()
    }

    /// bf16, or else f16.
    pub fn bf16(&self) -> bool {
        self.dtype == ElemType::Float(FloatKind::BF16)
    }

    pub fn planes(&self) -> usize {
        self.q_planes * self.kv_planes
    }

    /// Keys of a cube at a time.
    pub fn cube_keys(&self) -> usize {
        self.keys * self.kv_planes
    }

    /// Rows of a cube.
    pub fn rows(&self, unit_rows: usize) -> usize {
        self.q_planes * self.q_tiles * unit_rows
    }

    /// Quads of a key.
    pub fn qk_vecs(&self) -> usize {
        self.dims.qk / self.per_vec()
    }

    /// Quads of a value.
    pub fn vo_vecs(&self) -> usize {
        self.dims.vo / self.per_vec()
    }

    /// Quads of the keys of a stage; the values follow.
    pub fn key_vecs(&self) -> usize {
        if self.direct_keys { 0 } else { self.cube_keys() * self.qk_vecs() }
    }

    /// Quads of a stage.
    pub fn stage_vecs(&self) -> usize {
        self.key_vecs() + self.cube_keys() * self.vo_vecs()
    }

    /// Quads that a lane copies of rows of `vecs`, `together` at a time.
    pub fn copies(&self, vecs: usize, plane: usize, together: usize) -> usize {
        (self.cube_keys() * vecs).div_ceil(self.planes() * plane * together) * together
    }

    /// Whether every lane has all of its copies to do, or some of them lie beyond the last key.
    pub fn even(&self, vecs: usize, plane: usize, together: usize) -> bool {
        (self.cube_keys() * vecs).is_multiple_of(self.planes() * plane * together)
    }
}

/// Where vec `vec` of row `row` lies in shared memory, in rows of `vecs`.
///
/// Eight rows after one another differ in the banks of a vec, so that reading a column of vecs meets no conflict:
/// rows of an odd number of vecs do by themselves, for others the number of the vec is XORed with that of the row.
pub(crate) fn swizzle_period(vecs: usize) -> usize {
    (1 << vecs.trailing_zeros()).min(8)
}

/// What is XORed to the vecs of a row, see [`swizzle_period`].
#[cube]
pub(crate) fn swizzle(row: usize, #[comptime] vecs: usize) -> usize {
    let period = comptime!(swizzle_period(vecs));
    if comptime!(period == 1) { 0usize.runtime() } else { row / comptime!(8 / period) % period }
}

/// Row and vec of the `i`-th copy of `unit`, in rows of `vecs`: neighbouring units copy neighbouring vecs.
#[cube]
pub(crate) fn copy_of<L: FragmentLayout>(
    unit: usize,
    #[comptime] i: usize,
    #[comptime] vecs: usize,
    #[comptime] tiles: TileShape,
) -> (usize, usize) {
    let at = unit + comptime!(i * tiles.planes() * L::PLANE);
    (at / vecs, at % vecs)
}

/// Zeros for the values of keys from `left` on, which follow the first `copies` of `staged`: their weights are 0, but 0
/// times NaN is NaN. Keys that are not there need none, for their scores are masked.
#[cube]
pub(crate) fn clear_absent_values<U: Mma>(
    staged: &mut Array<Vec16>,
    #[comptime] copies: usize,
    unit: usize,
    left: usize,
    #[comptime] tiles: TileShape,
) {
    if left < tiles.cube_keys() {
        #[unroll]
        for i in 0..comptime!(tiles.copies(tiles.vo_vecs(), U::PLANE, U::VALUE_COPIES)) {
            let (row, _) = U::value_copy(unit, i, tiles);
            let slot = comptime!(copies + i);
            staged[slot] = select(row < left, staged[slot], Vec16::new(0u32));
        }
    }
}

/// Which lane holds what of an accumulator, a tile of `ROWS` queries and `COLUMNS` keys (or elements of an output).
pub(crate) trait FragmentLayout: Send + Sync + 'static {
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
    fn key_copies(tiles: TileShape) -> usize {
        tiles.copies(tiles.qk_vecs(), Self::PLANE, 1)
    }
    /// Whether all of them are keys of the tile.
    fn even_keys(tiles: TileShape) -> bool {
        tiles.even(tiles.qk_vecs(), Self::PLANE, 1)
    }
    /// Quads of shared memory that stages and queries take.
    fn shared_vecs(tiles: TileShape) -> usize;
    /// Quads of a lane that are on their way to shared memory; at least 1.
    fn staged_vecs(tiles: TileShape) -> usize;
    /// Which of the lane's rows element `e` is in.
    fn lane_row(e: usize) -> usize;
    /// Column of element `e` of tile `tile`, from the lane's first on.
    fn step(tile: usize, e: usize) -> usize;
}

/// Quads of shared memory of a cube: its stages, or at the end what its planes tell each other.
pub(crate) fn shared_vecs<L: FragmentLayout>(tiles: TileShape) -> usize {
    let words = (tiles.kv_planes - 1) * tiles.q_planes * plane_words::<L>(tiles);
    L::shared_vecs(tiles).max(words.div_ceil(4))
}

/// Words of the softmax of a plane: sums, and of each row the maximum and the total.
pub(crate) fn plane_words<L: FragmentLayout>(tiles: TileShape) -> usize {
    let sums = tiles.dims.vo.div_ceil(L::COLUMNS) * L::ACC;
    tiles.q_tiles * (sums + 2 * L::LANE_ROWS) * L::PLANE
}

/// What the attention kernel asks of a machine. All lanes of a plane call together.
#[cube]
pub(crate) trait Mma: FragmentLayout + Math {
    /// [`FragmentLayout::ACC`].
    type Acc: Size;
    /// [`FragmentLayout::RUN`].
    type Run: Size;

    /// Row `i` of the lane, within a tile.
    fn row(lane: usize, #[comptime] i: usize) -> usize;
    /// First column of the lane.
    fn column(lane: usize) -> usize;

    /// The key and the vec of it that `unit` copies as its `i`-th.
    fn key_copy(unit: usize, #[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize);
    /// The same of a value.
    fn value_copy(unit: usize, #[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize);

    /// Begins to copy vec `at` of `from`, zeros unless `valid`, to vec `vec` of row `row` of the keys or values in
    /// `stage`; `slot` is the number of the copy among all of a lane.
    fn copy(
        from: &Tensor<Vec16>,
        at: usize,
        valid: bool,
        shared: &mut [Vec16],
        stage: usize,
        row: usize,
        vec: usize,
        #[comptime] first: usize,
        #[comptime] vecs: usize,
        staged: &mut Array<Vec16>,
        #[comptime] slot: usize,
    );
    /// Ends the copies of a stage that were begun.
    fn commit_stage();
    /// Waits for the copies of `stage`, of which the first `left` keys are there, and for every plane.
    fn wait_stage(
        shared: &mut [Vec16],
        stage: usize,
        unit: usize,
        staged: &mut Array<Vec16>,
        left: usize,
        #[comptime] tiles: TileShape,
    );

    /// Waits for all copies, and for every plane: shared memory is free for other use.
    fn wait_all_stages();

    /// Begins to copy the queries of the cube.
    fn fetch_queries(
        from: &Tensor<Vec16>,
        rows: &TileRows,
        shared: &mut [Vec16],
        unit: usize,
        #[comptime] tiles: TileShape,
    );
    /// The queries of the plane, in registers if they stay there.
    fn load_queries(
        from: &Tensor<Vec16>,
        rows: &TileRows,
        shared: &[Vec16],
        lane: usize,
        plane: usize,
        #[comptime] tiles: TileShape,
    ) -> Array<Vec16>;

    /// `S = Q Kᵀ` over the plane's keys of `stage`.
    fn qk<E: Float>(
        queries: &Array<Vec16>,
        staged: &Array<Vec16>,
        shared: &[Vec16],
        stage: usize,
        lane: usize,
        plane: usize,
        scores: &mut Array<Vector<f32, Self::Acc>>,
        #[comptime] tiles: TileShape,
    );
    /// `O += P V`.
    fn pv<E: Float>(
        weights: &Array<Vector<f32, Self::Acc>>,
        shared: &[Vec16],
        stage: usize,
        lane: usize,
        plane: usize,
        output: &mut Array<Vector<f32, Self::Acc>>,
        #[comptime] tiles: TileShape,
    );

    /// `x` of the row's lanes, the largest.
    fn row_max(x: f32) -> f32;
    /// `x` of the row's lanes, summed up.
    fn row_sum(x: f32) -> f32;
    /// For each element of tile `tile` the number of its row.
    fn spread(rows: &Array<f32>, #[comptime] tile: usize) -> Vector<f32, Self::Acc>;
}
