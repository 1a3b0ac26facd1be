//! The products of attention.

use cubecl::prelude::*;

use super::fragment::{Accumulator, Fragment};
use super::operands::{Operands, Queries};
use super::tile_shape::TileShape;
use crate::math::Math;
use crate::staging::Ring;

/// The products of attention by an instruction. All lanes of a plane call together.
#[cube]
pub(crate) trait Mma: Accumulator + Operands + Math {
    /// Tells the compiler that shared memory of so many vec16s bounds the cubes of a core, where it does not know.
    fn launch_bounds(#[comptime] shared_vecs: usize);

    /// `S = Q Kᵀ` over the plane's keys of the current stage.
    fn qk<E: Float>(q: &Queries, ring: &Ring, s: &mut Fragment<Self>, #[comptime] tiles: TileShape);
    /// `O += P V`. Runs of elements lie side by side after [`pair_outputs`](Self::pair_outputs) only.
    fn pv<E: Float>(p: &Fragment<Self>, ring: &Ring, o: &mut Fragment<Self>, #[comptime] tiles: TileShape);
    /// Puts the elements of each run of a complete output side by side.
    fn pair_outputs(o: &mut Fragment<Self>, #[comptime] tiles: TileShape);
    /// First element of the lane's `i`-th run of an output.
    fn output_element(#[comptime] i: usize, #[comptime] tiles: TileShape) -> usize;
}
