//! Matrix units with the places of their elements known.
//!
//! A *plane* multiplies small tiles: `S = Q Kᵀ`, `O += P V`. The fragment layout is part of an Mma's
//! interface ([`FragmentLayout`]). So the softmax between the two products works on the registers of the
//! first product, and the probabilities go into the second product without leaving registers.
//!
//! Everything in shared memory, and every copy to it, is counted in 16-byte [`Vec16`]s.

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

use crate::math::Math;
use crate::problem::HeadDims;
use crate::request::TileRows;

/// 16 bytes of any content.
pub(crate) type Vec16 = Vector<u32, Const<4>>;

/// The tiles of a cube, and the planes that multiply them. Comptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TileShape {
    pub dims: HeadDims,
    /// Tiles of [`FragmentLayout::ROWS`] rows that a plane owns.
    pub q_tiles: usize,
    /// Keys of a plane at a time.
    pub keys: usize,
    /// Planes with different rows.
    pub q_planes: usize,
    /// Planes with the same rows and different keys.
    pub kv_planes: usize,
    /// Tiles of keys and values in shared memory.
    pub stages: usize,
    /// The queries stay in registers.
    pub q_in_registers: bool,
    /// Cubes that share their copies.
    pub cluster: usize,
    /// Keys are copied to the registers of the one plane that needs them, and not through shared memory.
    pub direct_keys: bool,
    /// Type of queries, keys and values.
    pub dtype: ElemType,
}

impl TileShape {
    /// Elements in a vec16.
    pub fn per_vec(&self) -> usize {
        16 / self.dtype.size()
    }

    /// The type is bf16, or else f16.
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

    /// Vec16s in a key.
    pub fn qk_vecs(&self) -> usize {
        self.dims.qk / self.per_vec()
    }

    /// Vec16s in a value.
    pub fn vo_vecs(&self) -> usize {
        self.dims.vo / self.per_vec()
    }

    /// Vec16s in the keys of a stage; the values follow.
    pub fn key_vecs(&self) -> usize {
        if self.direct_keys { 0 } else { self.cube_keys() * self.qk_vecs() }
    }

    /// Vec16s in a stage.
    pub fn stage_vecs(&self) -> usize {
        self.key_vecs() + self.cube_keys() * self.vo_vecs()
    }

    /// Copies of a lane for rows of `vecs`, `together` at a time.
    pub fn copies(&self, vecs: usize, plane: usize, together: usize) -> usize {
        (self.cube_keys() * vecs).div_ceil(self.planes() * plane * together) * together
    }

    /// True if every lane has the same number of copies; else some of them are beyond the last key.
    pub fn even(&self, vecs: usize, plane: usize, together: usize) -> bool {
        (self.cube_keys() * vecs).is_multiple_of(self.planes() * plane * together)
    }
}

/// Period of the swizzle of shared memory in rows of `vecs`.
///
/// Eight consecutive rows differ in the banks of a vec16, so that a read of a column of vec16s has no bank
/// conflict. Rows of an odd number of vec16s need no swizzle; in others the index of the vec16 is XORed with
/// that of the row.
pub(crate) fn swizzle_period(vecs: usize) -> usize {
    (1 << vecs.trailing_zeros()).min(8)
}

/// The operand of the XOR for the vec16s of a row, see [`swizzle_period`].
#[cube]
pub(crate) fn swizzle(row: usize, #[comptime] vecs: usize) -> usize {
    let period = comptime!(swizzle_period(vecs));
    if comptime!(period == 1) { 0usize.runtime() } else { row / comptime!(8 / period) % period }
}

/// Row and vec16 of the `i`-th copy of `unit`, in rows of `vecs`: neighbouring units copy neighbouring
/// vec16s.
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

/// Writes zeros for the values of keys from `left` on, which follow the first `copies` of `staged`. Their
/// probabilities are 0, but 0 times NaN is NaN. Missing keys need no zeros, since their scores are masked.
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

/// The fragment layout of an accumulator: a tile of `ROWS` queries and `COLUMNS` keys (or elements of an
/// output).
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
    /// Adjacent columns in a lane.
    const RUN: usize;
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
        tiles.copies(tiles.qk_vecs(), Self::PLANE, 1)
    }
    /// True if every copy of keys is within the tile.
    fn even_keys(tiles: TileShape) -> bool {
        tiles.even(tiles.qk_vecs(), Self::PLANE, 1)
    }
    /// Vec16s of shared memory for stages and queries.
    fn shared_vecs(tiles: TileShape) -> usize;
    /// Vec16s of a lane in flight to shared memory; at least 1.
    fn staged_vecs(tiles: TileShape) -> usize;
    /// The lane's row of element `e`.
    fn lane_row(e: usize) -> usize;
    /// Column of element `e` of tile `tile`, from the lane's first on.
    fn step(tile: usize, e: usize) -> usize;
}

/// Vec16s of shared memory of a cube: its stages, or at the end the results that its planes merge.
pub(crate) fn shared_vecs<L: FragmentLayout>(tiles: TileShape) -> usize {
    let words = (tiles.kv_planes - 1) * tiles.q_planes * plane_words::<L>(tiles);
    L::shared_vecs(tiles).max(words.div_ceil(4))
}

/// Words of the softmax state of a plane: output, and row_max and row_sum of each row.
pub(crate) fn plane_words<L: FragmentLayout>(tiles: TileShape) -> usize {
    let sums = tiles.dims.vo.div_ceil(L::COLUMNS) * L::ACC;
    tiles.q_tiles * (sums + 2 * L::LANE_ROWS) * L::PLANE
}

/// The operations of the attention kernel. All lanes of a plane call together.
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

    /// The key, and its vec16, of the `i`-th copy of `unit`.
    fn key_copy(unit: usize, #[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize);
    /// The value, and its vec16, of the `i`-th copy of `unit`.
    fn value_copy(unit: usize, #[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize);

    /// Begins to copy vec16 `at` of `from` to vec16 `vec` of row `row` of the keys or values in `stage`;
    /// zeros unless `valid`. `slot` is the index of the copy among all of a lane.
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
    /// Commits the copies of a stage.
    fn commit_stage();
    /// Waits for the copies of `stage`, of which the first `left` keys are valid, and for every plane.
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

    /// The largest `x` among the row's lanes.
    fn row_max(x: f32) -> f32;
    /// The sum of `x` over the row's lanes.
    fn row_sum(x: f32) -> f32;
    /// The value of each element's row, for all elements of tile `tile`.
    fn spread(rows: &Array<f32>, #[comptime] tile: usize) -> Vector<f32, Self::Acc>;
}
