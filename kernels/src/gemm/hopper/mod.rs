//! The product on Hopper, whose warps are producers and consumers.
//!
//! A cube owns tiles of `y` in turn: of one product, or of segments of rows with a matrix each. One producer warp copies 128
//! bytes of the rows of `x` and of the rows of `weight` at a time by TMA into a ring of stages. Two consumer warpgroups
//! multiply 64 rows of `x` each with all of these weights by `wgmma`. Where tiles are fewer than cores, a cluster owns a tile, and each of its cubes a part of the inputs.

mod kernel;
mod launch;
mod ring;
mod row_tiles;
mod split;
mod store;
mod tiles;

pub(crate) use launch::{Matrices, launch};
pub use row_tiles::WORK_WORDS;
pub(crate) use tiles::ROWS;
pub(super) use tiles::WarpgroupTiles;
