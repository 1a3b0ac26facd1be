//! Cubes that run at the same time and see each other's shared memory: Hopper's clusters.
//!
//! Source: PTX ISA, *Cluster of Cooperative Thread Arrays*.

use cubecl::prelude::*;
#[cfg(feature = "compilers")]
use cubecl_cpp::{shared::operation::OpToCPP, target::Cuda};
use cubecl_ir::{
    CanMaterialize, HasSideEffects,
    attributes::IndexAttr,
    cube_op,
    interfaces::side_effects::{MemoryEffect, MemoryEffectsOp},
    prelude::*,
};

use super::instruction::ptx;
#[cfg(feature = "compilers")]
use crate::isa::lowering::set_function_attribute;

/// Makes each `cubes` cubes along the first axis of the grid a cluster: `.reqnctapercluster`. The grid is a
/// multiple of it.
///
/// CubeCL's LLVM compiler does not support clusters, and an operation cannot set an attribute of its kernel.
/// So it stays while operations are lowered to LLVM, and sets the attribute once the function is lowered too.
#[cube_op(name = "flashinfer.cluster")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct ClusterOp {
    pub cubes: IndexAttr,
}

#[op_interface_impl]
impl MemoryEffectsOp for ClusterOp {
    fn memory_effects(&self, _ctx: &Context) -> Vec<MemoryEffect> {
        vec![MemoryEffect::ReadAll, MemoryEffect::WriteAll]
    }
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl pliron_llvm::ToLLVMDialect for ClusterOp {
    fn rewrite(&self, ctx: &mut Context, rw: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
        let cubes = self.cubes(ctx).0;
        set_function_attribute(ctx, rw, self.get_operation(), "nvvm.cluster_dim", format!("{cubes},1,1"))
    }
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl OpToCPP<Cuda> for ClusterOp {
    fn to_cpp(&self, _ctx: &Context) -> String {
        "static_assert(false, \"clusters are for CubeCL's LLVM compiler\");\n".into()
    }
}

/// [`ClusterOp`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn form_clusters(#[comptime] cubes: usize) {
    intrinsic!(|scope| {
        let op = ClusterOp::new(scope.ctx_mut(), cubes);
        scope.register(&op);
    })
}

ptx! {
    /// Waits for all units of the cluster, and for their writes to shared memory, including the initial
    /// states of barriers: `barrier.cluster`. Whole warps.
    pub(crate) fn sync_cluster() = EffectOp()
        "fence.mbarrier_init.release.cluster; barrier.cluster.arrive.release.aligned; \
         barrier.cluster.wait.acquire.aligned;";

    /// One arrival at the same barrier of another cube of the cluster, or of this one: `mapa`, `mbarrier.arrive`. The
    /// barrier is a [`super::shared_address`].
    pub(crate) fn barrier_arrive_at(barrier: u32, rank: u32) = EffectOp(barrier, rank)
        "{{ .reg .b32 there; mapa.shared::cluster.u32 there, {barrier}, {rank}; \
         mbarrier.arrive.shared::cluster.b64 _, [there]; }}";
}
