//! Attention on Hopper, whose warps are producers and consumers.

mod consumer;
mod kernel;
mod producer;
mod ring;
mod roles;
mod tensor_maps;

pub(super) use kernel::warp_specialized;
pub(super) use producer::box_rows;
pub(super) use ring::{check, shared_vecs};
pub(super) use roles::PRODUCERS;
pub(super) use tensor_maps::tensor_maps;
