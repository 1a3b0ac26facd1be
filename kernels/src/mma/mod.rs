//! Matrix units: instructions that multiply small tiles, with the places of all elements known.
//!
//! A *plane* multiplies small tiles: `S = Q Kᵀ`, `O += P V`. The fragment layout is part of an Mma's
//! interface (`FragmentLayout`). So the softmax between the two products works on the registers of the
//! first product, and the probabilities go into the second product without leaving registers. The other part
//! of it is the layout of the operands in shared memory ([`Operands`]), and [`Staging`](crate::staging::Staging) the
//! way there.

mod codes;
mod fragment;
mod gemm;
mod kind;
mod mfma;
mod mfma_fp8;
mod mma_sync;
mod mma_sync_product;
mod operands;
mod product;
mod scalar;
mod tile_shape;

pub(crate) use codes::{BLOCK, CodeMma, four_codes, prepared_zero};
pub use codes::{Scales, WeightFormat};
pub(crate) use fragment::{Accumulator, Fragment, FragmentLayout, column_step};
pub(crate) use gemm::{Gated, GemmMma, GemmTileShape, product_vecs, w_at, w_copy, wait_gemm_stage, x_copy};
pub(crate) use kind::{E4M3, check_numbers, on_unit};
pub use kind::{MmaKind, TF32};
pub(crate) use mfma::{Mfma16, Mfma32};
pub(crate) use mfma_fp8::{MfmaFp8Of16, MfmaFp8Of32};
pub(crate) use mma_sync::{MmaSync, convert_p};
pub(crate) use operands::{CopyShape, first_key, first_row, plane_words, shared_vecs, wait_stage};
pub(crate) use product::Mma;
pub(crate) use scalar::{Scalar1, Scalar32, Scalar64};
pub(crate) use tile_shape::TileShape;
