//! Cubes that run at the same time, and those that see each other's shared memory: Hopper's clusters.
//!
//! Source: PTX ISA, *Cluster of Cooperative Thread Arrays*.

use cubecl::prelude::*;
#[cfg(feature = "compilers")]
use cubecl_cpp::{shared::operation::OpToCPP, target::Cuda};
use cubecl_ir::{
    CanMaterialize, HasSideEffects,
    attributes::{BoolAttr, IndexAttr},
    cube_op,
    interfaces::side_effects::{MemoryEffect, MemoryEffectsOp},
    prelude::*,
};

use super::instruction::ptx;
#[cfg(feature = "compilers")]
use crate::isa::lowering::set_function_attribute;

/// An attribute of the kernel: `.reqnctapercluster` of `cubes` along the first axis of the grid, or `.minnctapersm`.
///
/// CubeCL's LLVM compiler does not support either, and an operation cannot set an attribute of its kernel. So it stays
/// while operations are lowered to LLVM, and sets the attribute once the function is lowered too.
#[cube_op(name = "flashinfer.launch_bound")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct LaunchBoundOp {
    pub cubes: IndexAttr,
    pub cluster: BoolAttr,
}

#[op_interface_impl]
impl MemoryEffectsOp for LaunchBoundOp {
    fn memory_effects(&self, _ctx: &Context) -> Vec<MemoryEffect> {
        vec![MemoryEffect::ReadAll, MemoryEffect::WriteAll]
    }
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl pliron_llvm::ToLLVMDialect for LaunchBoundOp {
    fn rewrite(&self, ctx: &mut Context, rw: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
        let (cubes, cluster) = (self.cubes(ctx).0, self.cluster(ctx).0);
        let (name, value) = if cluster {
            ("nvvm.cluster_dim", format!("{cubes},1,1"))
        } else {
            ("nvvm.minctasm", cubes.to_string())
        };
        set_function_attribute(ctx, rw, self.get_operation(), name, value)
    }
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl OpToCPP<Cuda> for LaunchBoundOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        match self.cluster(ctx).0 {
            true => "static_assert(false, \"clusters are for CubeCL's LLVM compiler\");\n".into(),
            // A hint.
            false => String::new(),
        }
    }
}

#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
fn launch_bound(#[comptime] cubes: usize, #[comptime] cluster: bool) {
    intrinsic!(|scope| {
        let op = LaunchBoundOp::new(scope.ctx_mut(), cubes, cluster);
        scope.register(&op);
    })
}

/// Makes each `cubes` cubes along the first axis of the grid, which is a multiple of it, a cluster.
#[cube]
pub(crate) fn form_clusters(#[comptime] cubes: usize) {
    launch_bound(cubes, true);
}

/// Lets ptxas use the registers of a kernel of which a core need have no more than `cubes` cubes at a time. Without it
/// ptxas aims at more cubes than the shared memory has room for, and spills for that.
#[cube]
pub(crate) fn min_cubes_per_core(#[comptime] cubes: usize) {
    launch_bound(cubes, false);
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

    /// Four floats of the shared memory of a cube of the cluster, at the place that `address` names in this one's:
    /// `mapa`, `ld.shared::cluster`. The lanes of a warp call together.
    pub(crate) fn load_shared_at(address: u32, rank: u32) -> four: Vector<f32, Const<4>> =
        WarpLoadOp(address, rank)
        "{{ .reg .b32 there; mapa.shared::cluster.u32 there, {address}, {rank}; \
         ld.shared::cluster.v4.f32 {four}, [there]; }}";
}
