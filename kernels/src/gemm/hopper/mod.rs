//! The product on Hopper, whose warps are producers and consumers.
//!
//! A cube owns tiles of `y` in turn. One producer warp copies 64 inputs of the rows of `x` and of the rows of `weight` at a
//! time by TMA into a ring of stages. Two consumer warpgroups multiply 64 rows of `x` each with all of these weights by
//! `wgmma`. Where tiles are fewer than cores, a cluster owns a tile, and each of its cubes a part of the inputs.

mod kernel;
mod ring;
mod split;
mod store;
mod tiles;

pub(super) use kernel::warp_specialized;
pub(super) use tiles::{CONSUMERS, PRODUCERS, ROWS, STAGE_INPUTS, WarpgroupTiles};
