//! `y = x · w` of tiles in shared memory: the matrix unit of a linear layer.
//!
//! A *stage* has the rows of `x`, then those of `w` as they are stored, both in vec16s and swizzled. The
//! accumulators stay in registers, in the places that [`FragmentLayout`] names.

mod mfma;
mod mma_sync;
mod scalar;

use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::{FragmentLayout, Mma, Vec16};

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
    /// Elements of the depth at a time.
    pub depth: usize,
    /// Stages in shared memory.
    pub stages: usize,
    /// The rows of `w` are its inputs, as in `x · w`, and not its outputs.
    pub by_input: bool,
    /// Type of both factors.
    pub dtype: ElemType,
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
        self.row_planes * self.column_planes
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
    pub fn w_together<L: FragmentLayout>(&self) -> usize {
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
    pub fn w_copies<L: FragmentLayout>(&self) -> usize {
        let together = self.w_together::<L>();
        let vecs = self.w_rows::<L>() * self.w_row_vecs::<L>();
        vecs.div_ceil(self.units::<L>() * together) * together
    }

    /// True if every lane has the same number of copies of `x`.
    pub fn x_even<L: FragmentLayout>(&self) -> bool {
        self.x_vecs::<L>().is_multiple_of(self.units::<L>())
    }

    /// True if every lane has the same number of copies of `w`.
    pub fn w_even<L: FragmentLayout>(&self) -> bool {
        let vecs = self.w_rows::<L>() * self.w_row_vecs::<L>();
        vecs.is_multiple_of(self.units::<L>() * self.w_together::<L>())
    }

    /// Vec16s of a lane in flight to shared memory; at least 1.
    pub fn staged_vecs<L: FragmentLayout>(&self) -> usize {
        if L::ASYNC { 1 } else { self.x_copies::<L>() + self.w_copies::<L>() }
    }
}

/// Vec16s in the shared memory of a cube.
pub(crate) fn product_vecs<L: FragmentLayout>(tiles: GemmTileShape) -> usize {
    tiles.stages * tiles.stage_vecs::<L>()
}

/// The row of `x`, and its vec16, of the `i`-th copy of `unit`.
#[cube]
pub(crate) fn x_copy<L: FragmentLayout>(
    unit: usize,
    #[comptime] i: usize,
    #[comptime] tiles: GemmTileShape,
) -> (usize, usize) {
    let at = unit + comptime!(i * tiles.units::<L>());
    (at / tiles.depth_vecs(), at % tiles.depth_vecs())
}

/// The row of `w`, and its vec16, of the `i`-th copy of `unit`.
#[cube]
pub(crate) fn w_copy<L: FragmentLayout>(
    unit: usize,
    #[comptime] i: usize,
    #[comptime] tiles: GemmTileShape,
) -> (usize, usize) {
    let together = comptime!(tiles.w_together::<L>());
    let vecs = comptime!(tiles.w_row_vecs::<L>());
    let at = unit + comptime!(i / together * tiles.units::<L>());
    (at / vecs * together + comptime!(i % together), at % vecs)
}

/// Writes zeros beyond the depth: anything may be in memory there, and NaN times 0 is NaN.
#[cube]
fn clear_absent<L: FragmentLayout>(
    staged: &mut Array<Vec16>,
    unit: usize,
    left: usize,
    #[comptime] tiles: GemmTileShape,
) {
    if left < tiles.depth {
        #[unroll]
        for i in 0..comptime!(tiles.x_copies::<L>()) {
            let (_, vec) = x_copy::<L>(unit, i, tiles);
            staged[i] = select(vec * tiles.per_vec() < left, staged[i], Vec16::new(0u32));
        }
        #[unroll]
        for i in 0..comptime!(tiles.w_copies::<L>()) {
            let (row, vec) = w_copy::<L>(unit, i, tiles);
            let depth = if comptime!(tiles.by_input) { row } else { vec * tiles.per_vec() };
            let slot = comptime!(tiles.x_copies::<L>() + i);
            staged[slot] = select(depth < left, staged[slot], Vec16::new(0u32));
        }
    }
}

/// Operations of a GEMM besides those of attention. All lanes of a plane call together.
#[cube]
pub(crate) trait GemmMma: Mma {
    /// Waits for the copies of `stage`, of whose depth the first `left` have arrived, and for every plane.
    fn land(
        shared: &mut [Vec16],
        stage: usize,
        unit: usize,
        staged: &mut Array<Vec16>,
        left: usize,
        #[comptime] tiles: GemmTileShape,
    );

    /// `acc += x · w` over the depth of `stage`, into the accumulators.
    fn multiply<E: Float>(
        shared: &[Vec16],
        stage: usize,
        lane: usize,
        plane: usize,
        sums: &mut Array<Vector<f32, Self::Acc>>,
        #[comptime] tiles: GemmTileShape,
    );
}
