//! Instructions of NVIDIA's GPUs: since Ampere (sm_80) for one warp of 32 lanes, and Hopper's (sm_90a) for four.

mod arithmetic;
mod barrier;
mod cluster;
mod copy;
mod instruction;
mod matrix;
mod register;
mod tensor_map;
mod warpgroup;

pub(crate) use arithmetic::{
    bf16_of_f16, exp2, from_fp8, from_int4, pack, reciprocal, shuffle, shuffle_word_xor, shuffle_xor,
    swap_middle_bytes, tanh, to_fp8, to_tf32,
};
pub(crate) use barrier::{
    any_of, barrier_arrive, barrier_expect, barrier_init, barrier_wait, fence_proxy_async, named_barrier,
    set_registers,
};
pub(crate) use cluster::{
    barrier_arrive_at, form_clusters, load_shared_at, min_cubes_per_core, sync_cluster,
};
pub(crate) use copy::{cp_async, cp_async_at, cp_async_commit, cp_async_wait, shared_address};
pub(crate) use matrix::{OperandType, ldmatrix, mma};
#[cfg(feature = "compilers")]
pub(super) use register::Register;
pub(crate) use tensor_map::{TensorMap, copy_box, copy_matrix_box, prefetch_map, tensor_map};
pub(crate) use warpgroup::{Operand, Product, wgmma_registers, wgmma_registers_if, wgmma_shared, wgmma_wait};
