//! Attention on Hopper, whose warps have different tasks.

mod consumer;
mod kernel;
mod producer;
mod ring;

pub(super) use kernel::{PRODUCERS, cubes_for, is_shared_out, specialized};
pub(super) use producer::{MAP_QUADS, box_rows, prepare};
pub(super) use ring::{check, shared_quads};
