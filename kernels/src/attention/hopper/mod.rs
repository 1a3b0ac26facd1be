//! Attention on Hopper, whose warps are producers and consumers.

mod consumer;
mod kernel;
mod producer;
mod ring;

pub(super) use kernel::{PRODUCERS, cubes_for, is_persistent, warp_specialized};
pub(super) use producer::{MAP_VECS, box_rows, make_maps};
pub(super) use ring::{check, shared_vecs};
