//! Matrix units: instructions that multiply small tiles, with the places of all elements known.
//!
//! A *plane* multiplies small tiles: `S = Q Kᵀ`, `O += P V`. The fragment layout is part of an Mma's
//! interface ([`FragmentLayout`]). So the softmax between the two products works on the registers of the
//! first product, and the probabilities go into the second product without leaving registers. The other part
//! of it is the layout of the operands in shared memory ([`Operands`]), and [`Staging`](crate::staging::Staging) the
//! way there.

mod fragment;
mod gemm;
mod mfma;
mod mma_sync;
mod operands;
mod scalar;
mod tile_shape;

use cubecl::prelude::*;

pub(crate) use fragment::{Fragment, FragmentLayout, column_step};
pub(crate) use gemm::{GemmMma, GemmTileShape, product_vecs, w_at, w_copy, wait_gemm_stage, x_copy};
pub(crate) use mfma::{Mfma16, Mfma32};
pub(crate) use mma_sync::{MmaSync, p_operand};
pub(crate) use operands::{CopyShape, Operands, first_key, first_row, wait_stage};
pub(crate) use scalar::{Scalar1, Scalar32, Scalar64};
pub(crate) use tile_shape::TileShape;

use crate::math::Math;
use crate::staging::{Ring, Vec16};

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

/// The products of attention by an instruction, and its accumulators. All lanes of a plane call together.
#[cube]
pub(crate) trait Mma: Operands + Math + Sized {
    /// [`FragmentLayout::ACC`].
    type Acc: Size;
    /// [`FragmentLayout::RUN`].
    type Run: Size;

    /// Row `i` of the lane, within a tile.
    fn row(#[comptime] i: usize) -> usize;
    /// First column of the lane.
    fn column() -> usize;

    /// `S = Q Kᵀ` over the plane's keys of the current stage.
    fn qk<E: Float>(q: &Array<Vec16>, ring: &Ring, s: &mut Fragment<Self>, #[comptime] tiles: TileShape);
    /// `O += P V`.
    fn pv<E: Float>(p: &Fragment<Self>, ring: &Ring, o: &mut Fragment<Self>, #[comptime] tiles: TileShape);

    /// The largest `x` among the row's lanes.
    fn row_max(x: f32) -> f32;
    /// The sum of `x` over the row's lanes.
    fn row_sum(x: f32) -> f32;
    /// The value of each element's row, for all elements of the `m`-th tile of rows.
    fn spread(rows: &Array<f32>, #[comptime] m: usize) -> Vector<f32, Self::Acc>;
}
