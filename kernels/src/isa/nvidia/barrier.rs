//! Barriers in shared memory with phases, barriers among some warps of a cube, and what warps with different tasks tell
//! the hardware.

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
#[cfg(feature = "compilers")]
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;

#[cfg(feature = "compilers")]
use crate::isa::lowering::Ptx;

/// A barrier of 8 bytes in shared memory that a phase of `count` arrivals completes: `mbarrier.init`. Once for each,
/// and then a barrier of the cube, before another lane uses it.
#[cube_op(name = "flashinfer.mbarrier_init")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct BarrierInitOp {
    pub barrier: Value,
    pub count: IndexAttr,
}
lower!(BarrierInitOp);
orders_memory!(BarrierInitOp);

#[cfg(feature = "compilers")]
impl BarrierInitOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let text = format!("mbarrier.init.shared::cta.b64 [$0], {};", self.count(ctx).0);
        Ptx::effect(&text, &[self.barrier(ctx)])
    }
}

/// [`BarrierInitOp`] at this [`super::shared_address`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn barrier_init(barrier: u32, #[comptime] count: usize) {
    intrinsic!(|scope| {
        let barrier = barrier.read_value(scope);
        let op = BarrierInitOp::new(scope.ctx_mut(), barrier, count);
        scope.register(&op);
    })
}

/// One arrival: `mbarrier.arrive`.
#[cube_op(name = "flashinfer.mbarrier_arrive")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct BarrierArriveOp {
    pub barrier: Value,
}
lower!(BarrierArriveOp);
orders_memory!(BarrierArriveOp);

#[cfg(feature = "compilers")]
impl BarrierArriveOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        Ptx::effect("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [$0]; }", &[self.barrier(ctx)])
    }
}

/// [`BarrierArriveOp`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn barrier_arrive(barrier: u32) {
    intrinsic!(|scope| {
        let barrier = barrier.read_value(scope);
        let op = BarrierArriveOp::new(scope.ctx_mut(), barrier);
        scope.register(&op);
    })
}

/// The phase is not complete before so many bytes have arrived, by [`super::copy_box`]: `mbarrier.expect_tx`. Before the
/// lane's own arrival.
#[cube_op(name = "flashinfer.mbarrier_expect")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct BarrierExpectOp {
    pub barrier: Value,
    pub bytes: IndexAttr,
}
lower!(BarrierExpectOp);
orders_memory!(BarrierExpectOp);

#[cfg(feature = "compilers")]
impl BarrierExpectOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let text = format!("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [$0], {};", self.bytes(ctx).0);
        Ptx::effect(&text, &[self.barrier(ctx)])
    }
}

/// [`BarrierExpectOp`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn barrier_expect(barrier: u32, #[comptime] bytes: usize) {
    intrinsic!(|scope| {
        let barrier = barrier.read_value(scope);
        let op = BarrierExpectOp::new(scope.ctx_mut(), barrier, bytes);
        scope.register(&op);
    })
}

/// Waits until the phase of this parity is complete: `mbarrier.try_wait.parity`. The first phase has parity 0, and the
/// one before it counts as complete.
#[cube_op(name = "flashinfer.mbarrier_wait")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct BarrierWaitOp {
    pub barrier: Value,
    pub parity: Value,
}
lower!(BarrierWaitOp);
orders_memory!(BarrierWaitOp);

#[cfg(feature = "compilers")]
impl BarrierWaitOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let text = "{ .reg .pred complete; again: \
                    mbarrier.try_wait.parity.shared::cta.b64 complete, [$0], $1; \
                    @complete bra.uni done; bra.uni again; done: }";
        Ptx::effect(text, &[self.barrier(ctx), self.parity(ctx)])
    }
}

/// [`BarrierWaitOp`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn barrier_wait(barrier: u32, parity: u32) {
    intrinsic!(|scope| {
        let (barrier, parity) = (barrier.read_value(scope), parity.read_value(scope));
        let op = BarrierWaitOp::new(scope.ctx_mut(), barrier, parity);
        scope.register(&op);
    })
}

/// A barrier of `units` of the cube by its number, from 1 to 15 (0 is the whole cube's): `bar.sync`, or to arrive without
/// waiting `bar.arrive`.
#[cube_op(name = "flashinfer.named_barrier")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct NamedBarrierOp {
    pub number: Value,
    pub units: IndexAttr,
    /// 1 if so.
    pub waits: IndexAttr,
}
lower!(NamedBarrierOp);
orders_memory!(NamedBarrierOp);

#[cfg(feature = "compilers")]
impl NamedBarrierOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let what = if self.waits(ctx).0 == 1 { "sync" } else { "arrive" };
        Ptx::effect(&format!("bar.{what} $0, {};", self.units(ctx).0), &[self.number(ctx)])
    }
}

/// [`NamedBarrierOp`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn named_barrier(number: u32, #[comptime] units: usize, #[comptime] waits: bool) {
    intrinsic!(|scope| {
        let number = number.read_value(scope);
        let op = NamedBarrierOp::new(scope.ctx_mut(), number, units, waits as usize);
        scope.register(&op);
    })
}

/// Makes what was written to shared memory, by ordinary stores or [`super::cp_async`], visible to the instructions that
/// read it by another way, [`super::wgmma`] among them: `fence.proxy.async`.
#[cube_op(name = "flashinfer.fence_proxy_async")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct FenceProxyOp {}
lower!(FenceProxyOp);
orders_memory!(FenceProxyOp);

#[cfg(feature = "compilers")]
impl FenceProxyOp {
    fn ptx(&self, _ctx: &Context) -> Ptx {
        Ptx::effect("fence.proxy.async.shared::cta;", &[])
    }
}

/// [`FenceProxyOp`].
#[cube]
pub(crate) fn fence_proxy_async() {
    intrinsic!(|scope| {
        let op = FenceProxyOp::new(scope.ctx_mut());
        scope.register(&op);
    })
}

/// How many registers a lane of this warpgroup has from here on, a multiple of 8: `setmaxnreg`. Warpgroups that give some
/// back leave them to those that ask for more, which wait for them.
#[cube_op(name = "flashinfer.setmaxnreg")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct SetRegistersOp {
    pub count: IndexAttr,
    /// 1 if these are more than before.
    pub more: IndexAttr,
}
lower!(SetRegistersOp);
orders_memory!(SetRegistersOp);

#[cfg(feature = "compilers")]
impl SetRegistersOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let way = if self.more(ctx).0 == 1 { "inc" } else { "dec" };
        Ptx::effect(&format!("setmaxnreg.{way}.sync.aligned.u32 {};", self.count(ctx).0), &[])
    }
}

/// [`SetRegistersOp`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn set_registers(#[comptime] count: usize, #[comptime] more: bool) {
    intrinsic!(|scope| {
        let op = SetRegistersOp::new(scope.ctx_mut(), count, more as usize);
        scope.register(&op);
    })
}
