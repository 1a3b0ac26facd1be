//! Instructions of NVIDIA's GPUs: since Ampere (sm_80) for one warp of 32 lanes, and Hopper's (sm_90a) for four.

/// Lowers an operation to the one instruction that its `ptx` describes.
macro_rules! lower {
    ($op:ident) => {
        #[cfg(feature = "compilers")]
        #[op_interface_impl]
        impl ToLLVMDialect for $op {
            fn rewrite(
                &self,
                ctx: &mut Context,
                rw: &mut DialectConversionRewriter,
                _: &OperandsInfo,
            ) -> Result<()> {
                self.ptx(ctx).to_llvm(ctx, rw, self.get_operation())
            }
        }

        #[cfg(feature = "compilers")]
        #[op_interface_impl]
        impl OpToCPP<Cuda> for $op {
            fn to_cpp(&self, ctx: &Context) -> String {
                self.ptx(ctx).to_cpp(ctx, self.get_operation())
            }
        }
    };
}

/// All lanes of the warp take part.
macro_rules! plane_wide {
    ($op:ident) => {
        #[op_interface_impl]
        impl Synchronizes for $op {
            fn minimum_scope(&self, _ctx: &Context) -> SyncScope {
                SyncScope::Plane
            }
            fn maximum_scope(&self, _ctx: &Context) -> SyncScope {
                SyncScope::Plane
            }
        }
    };
}

/// Comes after every access to memory before it, and before every one after it.
macro_rules! orders_memory {
    ($op:ident) => {
        #[op_interface_impl]
        impl MemoryEffectsOp for $op {
            fn memory_effects(&self, _ctx: &Context) -> Vec<MemoryEffect> {
                vec![MemoryEffect::ReadAll, MemoryEffect::WriteAll]
            }
        }
    };
}

mod arithmetic;
mod barrier;
mod cluster;
mod copy;
mod matrix;
mod tensor_map;
mod warpgroup;

#[allow(unused_imports, reason = "attention over 8-bit pages is to come; until then a test lowers it")]
pub(crate) use arithmetic::from_fp8;
pub(crate) use arithmetic::{exp2, pack, reciprocal, shuffle, shuffle_xor, to_fp8};
pub(crate) use barrier::{
    barrier_arrive, barrier_expect, barrier_init, barrier_wait, fence_proxy_async, named_barrier,
    set_registers,
};
pub(crate) use cluster::{barrier_arrive_at, form_clusters, sync_cluster};
pub(crate) use copy::{cp_async, cp_async_at, cp_async_commit, cp_async_wait, shared_address};
pub(crate) use matrix::{ldmatrix, mma};
pub(crate) use tensor_map::{MAP_BYTES, acquire_map, copy_box, map_rows, publish_map};
pub(crate) use warpgroup::{DEPTH, Operand, Product, wgmma_registers, wgmma_shared, wgmma_wait};
