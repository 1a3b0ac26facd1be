//! `y = x · w` of tiles in shared memory: the matrix unit of a linear layer.
//!
//! A *stage* has the rows of `x`, then those of `w` as they are stored, both in vec16s and swizzled. The
//! accumulators stay in registers, in the places that `FragmentLayout` names.

mod mfma;
mod mma_sync;
mod scalar;
mod tiles;

pub(crate) use tiles::{Gated, GemmMma, GemmTileShape, product_vecs, w_at, w_copy, wait_gemm_stage, x_copy};
