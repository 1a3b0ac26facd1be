//! Attention on Hopper, whose warps are producers and consumers.

mod consumer;
mod kernel;
mod producer;
mod ring;
mod roles;

pub(super) use kernel::warp_specialized;
pub(super) use producer::{MAP_VECS, box_rows, make_maps};
pub(super) use ring::{check, shared_vecs};
pub(super) use roles::PRODUCERS;
