//! The tiles of a GEMM, and the copies of its factors.

use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::super::codes::to_fnuz_all;
use super::super::fragment::{Fragment, FragmentLayout};
use super::super::kind::E4M3;
use super::super::operands::{CopyShape, Operands};
use super::super::product::Mma;
use crate::staging::{Ring, Staging, Vec16};

/// The tiles of a cube, and the planes that multiply them. Comptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct GemmTileShape {
    /// Tiles of [`FragmentLayout::ROWS`] rows that a plane owns.
    pub row_tiles: usize,
    /// Tiles of [`FragmentLayout::COLUMNS`] columns that a plane owns.
    pub column_tiles: usize,
    /// Planes with different rows.
    pub row_planes: usize,
    /// Planes with different columns.
    pub column_planes: usize,
    /// Planes with different parts of the depth of a stage.
    pub depth_planes: usize,
    /// Elements of the depth at a time.
    pub depth: usize,
    /// Stages in shared memory.
    pub stages: usize,
    /// The rows of `w` are its inputs, as in `x · w`, and not its outputs.
    pub by_input: bool,
    /// The factor whose rows are gates and ups.
    pub gated: Gated,
    /// Type of both factors.
    pub dtype: ElemType,
}

/// The factor of a gated product that has two rows for each output: one of its first half, the gate, and one of its
/// second half, the up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Gated {
    Neither,
    /// The one whose rows are rows of the product.
    Rows,
    /// The one whose rows are columns of the product.
    Columns,
}

impl GemmTileShape {
    /// Elements in a vec16.
    pub fn per_vec(&self) -> usize {
        16 / self.dtype.size()
    }

    /// The type is bf16, or else f16.
    pub fn bf16(&self) -> bool {
        self.dtype == ElemType::Float(FloatKind::BF16)
    }

    pub fn planes(&self) -> usize {
        self.row_planes * self.column_planes * self.depth_planes
    }

    /// Rows of a cube.
    pub fn rows<L: FragmentLayout>(&self) -> usize {
        self.row_planes * self.row_tiles * L::ROWS
    }

    /// Columns of a cube.
    pub fn columns<L: FragmentLayout>(&self) -> usize {
        self.column_planes * self.column_tiles * L::COLUMNS
    }

    /// Vec16s in the depth.
    pub fn depth_vecs(&self) -> usize {
        self.depth / self.per_vec()
    }

    /// Vec16s of `x` in a stage; those of `w` follow.
    pub fn x_vecs<L: FragmentLayout>(&self) -> usize {
        self.rows::<L>() * self.depth_vecs()
    }

    /// Rows of `w` in a stage.
    pub fn w_rows<L: FragmentLayout>(&self) -> usize {
        if self.by_input { self.depth } else { self.columns::<L>() }
    }

    /// Vec16s in a row of `w`.
    pub fn w_row_vecs<L: FragmentLayout>(&self) -> usize {
        if self.by_input { self.columns::<L>() / self.per_vec() } else { self.depth_vecs() }
    }

    /// Vec16s in a stage.
    pub fn stage_vecs<L: FragmentLayout>(&self) -> usize {
        self.x_vecs::<L>() + self.w_rows::<L>() * self.w_row_vecs::<L>()
    }

    /// Rows of `w` that one lane copies together, since it transposes them.
    pub fn w_together<L: CopyShape>(&self) -> usize {
        if self.by_input { L::VALUE_COPIES } else { 1 }
    }

    fn units<L: FragmentLayout>(&self) -> usize {
        self.planes() * L::PLANE
    }

    /// Vec16s of `x` that a lane copies.
    pub fn x_copies<L: FragmentLayout>(&self) -> usize {
        self.x_vecs::<L>().div_ceil(self.units::<L>())
    }

    /// Vec16s of `w` that a lane copies.
    pub fn w_copies<L: CopyShape>(&self) -> usize {
        let together = self.w_together::<L>();
        let vecs = self.w_rows::<L>() * self.w_row_vecs::<L>();
        vecs.div_ceil(self.units::<L>() * together) * together
    }

    /// True if every lane has the same number of copies of `x`.
    pub fn x_even<L: FragmentLayout>(&self) -> bool {
        self.x_vecs::<L>().is_multiple_of(self.units::<L>())
    }

    /// True if every lane has the same number of copies of `w`.
    pub fn w_even<L: CopyShape>(&self) -> bool {
        let vecs = self.w_rows::<L>() * self.w_row_vecs::<L>();
        vecs.is_multiple_of(self.units::<L>() * self.w_together::<L>())
    }

    /// Vec16s of a lane in flight to shared memory; at least 1.
    pub fn staged_vecs<L: CopyShape>(&self) -> usize {
        if L::ASYNC { 1 } else { self.x_copies::<L>() + self.w_copies::<L>() }
    }
}

/// Vec16s in the shared memory of a cube.
pub(crate) fn product_vecs<L: FragmentLayout>(tiles: GemmTileShape) -> usize {
    tiles.stages * tiles.stage_vecs::<L>()
}

/// The row of `x`, and its vec16, of the unit's `i`-th copy.
#[cube]
pub(crate) fn x_copy<L: FragmentLayout>(
    #[comptime] i: usize,
    #[comptime] tiles: GemmTileShape,
) -> (usize, usize) {
    let at = UNIT_POS as usize + comptime!(i * tiles.units::<L>());
    (at / tiles.depth_vecs(), at % tiles.depth_vecs())
}

/// The row of `w`, and its vec16, of the unit's `i`-th copy.
#[cube]
pub(crate) fn w_copy<L: CopyShape>(#[comptime] i: usize, #[comptime] tiles: GemmTileShape) -> (usize, usize) {
    let together = comptime!(tiles.w_together::<L>());
    let vecs = comptime!(tiles.w_row_vecs::<L>());
    let at = UNIT_POS as usize + comptime!(i / together * tiles.units::<L>());
    (at / vecs * together + comptime!(i % together), at % vecs)
}

/// Place of vec16 `vec` of row `row` of a stage's `w`, unless it is transposed.
#[cube]
pub(crate) fn w_at<M: Operands>(
    stage: usize,
    row: usize,
    vec: usize,
    #[comptime] tiles: GemmTileShape,
) -> usize {
    let vecs = comptime!(tiles.w_row_vecs::<M>());
    let first = stage + comptime!(tiles.x_vecs::<M>());
    if comptime!(tiles.by_input) {
        M::value_at(first, row, vec, vecs)
    } else {
        M::key_at(first, row, vec, vecs)
    }
}

/// Waits for the copies of the current stage, of whose depth the first `left` have arrived, and for every plane.
#[cube]
pub(crate) fn wait_gemm_stage<M: GemmMma>(ring: &mut Ring, left: usize, #[comptime] tiles: GemmTileShape) {
    if comptime!(M::ASYNC) {
        M::Staging::wait(comptime!(tiles.stages - 2));
    } else {
        clear_absent::<M>(ring, left, tiles);
        // Once for each cube and not for each plane that reads them, and while the matrix unit is still at the last stage.
        if comptime!(tiles.dtype == E4M3) {
            to_fnuz_all(&mut ring.staged, tiles.staged_vecs::<M>());
        }
        // Every plane has read the last stage.
        sync_cube();
        #[unroll]
        for i in 0..comptime!(tiles.x_copies::<M>()) {
            let (row, vec) = x_copy::<M>(i, tiles);
            if comptime!(tiles.x_even::<M>()) || row < comptime!(tiles.rows::<M>()) {
                let to = M::query_at(ring.stage, row, vec, comptime!(tiles.depth_vecs()));
                ring.shared[to] = ring.staged[i];
            }
        }
        M::store_w(ring, tiles);
        sync_cube();
    }
}

/// Stores the rows of `w` that have arrived in registers, as they are.
#[cube]
pub(super) fn store_rows_of_w<M: Operands>(ring: &mut Ring, #[comptime] tiles: GemmTileShape) {
    #[unroll]
    for i in 0..comptime!(tiles.w_copies::<M>()) {
        let (row, vec) = w_copy::<M>(i, tiles);
        if comptime!(tiles.w_even::<M>()) || row < comptime!(tiles.w_rows::<M>()) {
            let to = w_at::<M>(ring.stage, row, vec, tiles);
            ring.shared[to] = ring.staged[comptime!(tiles.x_copies::<M>() + i)];
        }
    }
}

/// Writes zeros beyond the depth: anything may be in memory there, and NaN times 0 is NaN.
#[cube]
fn clear_absent<M: CopyShape>(ring: &mut Ring, left: usize, #[comptime] tiles: GemmTileShape) {
    if left < tiles.depth {
        #[unroll]
        for i in 0..comptime!(tiles.x_copies::<M>()) {
            let (_, vec) = x_copy::<M>(i, tiles);
            ring.staged[i] = select(vec * tiles.per_vec() < left, ring.staged[i], Vec16::new(0u32));
        }
        #[unroll]
        for i in 0..comptime!(tiles.w_copies::<M>()) {
            let (row, vec) = w_copy::<M>(i, tiles);
            let depth = if comptime!(tiles.by_input) { row } else { vec * tiles.per_vec() };
            let slot = comptime!(tiles.x_copies::<M>() + i);
            ring.staged[slot] = select(depth < left, ring.staged[slot], Vec16::new(0u32));
        }
    }
}

/// Number of the plane among those with different columns.
#[cube]
pub(super) fn column_plane(#[comptime] tiles: GemmTileShape) -> usize {
    let plane = UNIT_POS_Y as usize / tiles.row_planes;
    if comptime!(tiles.depth_planes > 1) { plane % tiles.column_planes } else { plane }
}

/// First vec16 of the plane's part of the depth.
#[cube]
pub(super) fn first_depth_vec(#[comptime] tiles: GemmTileShape) -> usize {
    if comptime!(tiles.depth_planes > 1) {
        UNIT_POS_Y as usize / comptime!(tiles.row_planes * tiles.column_planes)
            * comptime!(tiles.depth_vecs() / tiles.depth_planes)
    } else {
        0usize.runtime()
    }
}

/// Operations of a GEMM besides those of attention. All lanes of a plane call together.
#[cube]
pub(crate) trait GemmMma: Mma + Sized {
    /// Stores the rows of `w` that have arrived in registers to the stage.
    fn store_w(ring: &mut Ring, #[comptime] tiles: GemmTileShape);

    /// `acc += x · w` over the depth of the current stage.
    fn multiply<E: Float>(ring: &Ring, acc: &mut Fragment<Self>, #[comptime] tiles: GemmTileShape);
}
