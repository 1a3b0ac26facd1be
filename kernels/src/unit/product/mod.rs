//! `y = x · w` of tiles in shared memory: what a linear layer asks of a matrix unit.
//!
//! A *stage* has the rows of `x`, and after them those of `w` as they are stored, both in quads and swizzled. The sums stay
//! in registers, in the places that [`Layout`] names.

mod mfma;
mod mma_sync;
mod scalar;

use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::{Layout, MatrixUnit, Quad};

/// What a cube multiplies at a time, and by whom. Comptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ProductTiles {
    /// Tiles of [`Layout::ROWS`] rows that a plane owns.
    pub row_tiles: usize,
    /// Tiles of [`Layout::COLUMNS`] columns that a plane owns.
    pub column_tiles: usize,
    /// Planes with different rows.
    pub row_planes: usize,
    /// Planes with different columns.
    pub column_planes: usize,
    /// Elements that are summed up at a time.
    pub depth: usize,
    /// Stages that shared memory holds.
    pub stages: usize,
    /// Whether the rows of `w` are its inputs, as they stand in `x · w`, and not its outputs.
    pub by_input: bool,
    /// Type of both factors.
    pub dtype: ElemType,
}

impl ProductTiles {
    /// Elements in a quad.
    pub fn per_quad(&self) -> usize {
        16 / self.dtype.size()
    }

    /// bf16, or else f16.
    pub fn bf16(&self) -> bool {
        self.dtype == ElemType::Float(FloatKind::BF16)
    }

    pub fn planes(&self) -> usize {
        self.row_planes * self.column_planes
    }

    /// Rows of a cube.
    pub fn rows<L: Layout>(&self) -> usize {
        self.row_planes * self.row_tiles * L::ROWS
    }

    /// Columns of a cube.
    pub fn columns<L: Layout>(&self) -> usize {
        self.column_planes * self.column_tiles * L::COLUMNS
    }

    /// Quads of the depth.
    pub fn depth_quads(&self) -> usize {
        self.depth / self.per_quad()
    }

    /// Quads of `x` in a stage; those of `w` follow.
    pub fn x_quads<L: Layout>(&self) -> usize {
        self.rows::<L>() * self.depth_quads()
    }

    /// Rows of `w` in a stage.
    pub fn w_rows<L: Layout>(&self) -> usize {
        if self.by_input { self.depth } else { self.columns::<L>() }
    }

    /// Quads of a row of `w`.
    pub fn w_row_quads<L: Layout>(&self) -> usize {
        if self.by_input { self.columns::<L>() / self.per_quad() } else { self.depth_quads() }
    }

    /// Quads of a stage.
    pub fn stage_quads<L: Layout>(&self) -> usize {
        self.x_quads::<L>() + self.w_rows::<L>() * self.w_row_quads::<L>()
    }

    /// Rows of `w` that go to one lane together, which transposes them.
    pub fn w_together<L: Layout>(&self) -> usize {
        if self.by_input { L::VALUE_COPIES } else { 1 }
    }

    fn units<L: Layout>(&self) -> usize {
        self.planes() * L::PLANE
    }

    /// Quads of `x` that a lane copies.
    pub fn x_copies<L: Layout>(&self) -> usize {
        self.x_quads::<L>().div_ceil(self.units::<L>())
    }

    /// Quads of `w` that a lane copies.
    pub fn w_copies<L: Layout>(&self) -> usize {
        let together = self.w_together::<L>();
        let quads = self.w_rows::<L>() * self.w_row_quads::<L>();
        quads.div_ceil(self.units::<L>() * together) * together
    }

    /// Whether every lane has all of these copies of `x` to do.
    pub fn x_even<L: Layout>(&self) -> bool {
        self.x_quads::<L>().is_multiple_of(self.units::<L>())
    }

    /// The same of `w`.
    pub fn w_even<L: Layout>(&self) -> bool {
        let quads = self.w_rows::<L>() * self.w_row_quads::<L>();
        quads.is_multiple_of(self.units::<L>() * self.w_together::<L>())
    }

    /// Quads of a lane that are on their way to shared memory; at least 1.
    pub fn staged_quads<L: Layout>(&self) -> usize {
        if L::ASYNC { 1 } else { self.x_copies::<L>() + self.w_copies::<L>() }
    }
}

/// Quads of shared memory of a cube.
pub(crate) fn product_quads<L: Layout>(tiles: ProductTiles) -> usize {
    tiles.stages * tiles.stage_quads::<L>()
}

/// The row of `x` and the quad of it that `unit` copies as its `i`-th.
#[cube]
pub(crate) fn x_copy<L: Layout>(
    unit: usize,
    #[comptime] i: usize,
    #[comptime] tiles: ProductTiles,
) -> (usize, usize) {
    let at = unit + comptime!(i * tiles.units::<L>());
    (at / tiles.depth_quads(), at % tiles.depth_quads())
}

/// The same of `w`.
#[cube]
pub(crate) fn w_copy<L: Layout>(
    unit: usize,
    #[comptime] i: usize,
    #[comptime] tiles: ProductTiles,
) -> (usize, usize) {
    let together = comptime!(tiles.w_together::<L>());
    let quads = comptime!(tiles.w_row_quads::<L>());
    let at = unit + comptime!(i / together * tiles.units::<L>());
    (at / quads * together + comptime!(i % together), at % quads)
}

/// Zeros for what lies beyond the depth: whatever is there in memory, times 0 it might be NaN.
#[cube]
fn clear_absent<L: Layout>(
    staged: &mut Array<Quad>,
    unit: usize,
    left: usize,
    #[comptime] tiles: ProductTiles,
) {
    if left < tiles.depth {
        #[unroll]
        for i in 0..comptime!(tiles.x_copies::<L>()) {
            let (_, quad) = x_copy::<L>(unit, i, tiles);
            staged[i] = select(quad * tiles.per_quad() < left, staged[i], Quad::new(0u32));
        }
        #[unroll]
        for i in 0..comptime!(tiles.w_copies::<L>()) {
            let (row, quad) = w_copy::<L>(unit, i, tiles);
            let depth = if comptime!(tiles.by_input) { row } else { quad * tiles.per_quad() };
            let slot = comptime!(tiles.x_copies::<L>() + i);
            staged[slot] = select(depth < left, staged[slot], Quad::new(0u32));
        }
    }
}

/// What the product asks of a machine beside. All lanes of a plane call together.
#[cube]
pub(crate) trait ProductUnit: MatrixUnit {
    /// Waits for the copies of `stage`, of whose depth the first `left` are there, and for every plane.
    fn land(
        shared: &mut [Quad],
        stage: usize,
        unit: usize,
        staged: &mut Array<Quad>,
        left: usize,
        #[comptime] tiles: ProductTiles,
    );

    /// `sums += x · w` over the depth of `stage`.
    fn multiply<E: Float>(
        shared: &[Quad],
        stage: usize,
        lane: usize,
        plane: usize,
        sums: &mut Array<Vector<f32, Self::Acc>>,
        #[comptime] tiles: ProductTiles,
    );
}
