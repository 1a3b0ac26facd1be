//! Barriers in shared memory with phases, barriers among some warps of a cube, and hints to the hardware from
//! warps with different tasks.

use cubecl::prelude::*;

use super::instruction::ptx;

ptx! {
    /// A barrier of 8 bytes in shared memory, at this [`super::shared_address`], that a phase of `count` arrivals
    /// completes: `mbarrier.init`. Once for each, and then a barrier of the cube, before another lane uses it.
    pub(crate) fn barrier_init(barrier: u32, #[comptime] count: usize) =
        EffectOp(barrier) "mbarrier.init.shared::cta.b64 [{barrier}], {count};";

    /// One arrival: `mbarrier.arrive`.
    pub(crate) fn barrier_arrive(barrier: u32) =
        EffectOp(barrier) "{{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [{barrier}]; }}";

    /// The phase is not complete before so many bytes have arrived, by [`super::copy_box`]:
    /// `mbarrier.expect_tx`. Before the lane's own arrival.
    pub(crate) fn barrier_expect(barrier: u32, #[comptime] bytes: usize) =
        EffectOp(barrier) "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [{barrier}], {bytes};";

    /// Waits until the phase of this parity is complete: `mbarrier.try_wait.parity`. The first phase has
    /// parity 0, and the one before it counts as complete.
    pub(crate) fn barrier_wait(barrier: u32, parity: u32) = EffectOp(barrier, parity)
        "{{ .reg .pred complete; again: \
         mbarrier.try_wait.parity.shared::cta.b64 complete, [{barrier}], {parity}; \
         @complete bra.uni done; bra.uni again; done: }}";

    /// A barrier of `units` of the cube by its number, from 1 to 15 (0 is the whole cube's): `bar.sync`, or to arrive
    /// without waiting `bar.arrive`.
    pub(crate) fn named_barrier(number: u32, #[comptime] units: usize, #[comptime] waits: bool) =
        EffectOp(number) "bar.{what} {number}, {units};", what = if waits { "sync" } else { "arrive" };

    /// 1 if `vote` is not 0 in any of `units` units of the cube, which meet at the barrier of this number, else 0:
    /// `bar.red.or`.
    pub(crate) fn any_of(number: u32, vote: u32, #[comptime] units: usize) -> any: u32 = UpdateOp(number, vote)
        "{{ .reg .pred any; setp.ne.u32 any, {vote}, 0; bar.red.or.pred any, {number}, {units}, any; \
         selp.u32 {any}, 1, 0, any; }}";

    /// Makes writes to shared memory, by ordinary stores or [`super::cp_async`], visible to instructions that
    /// read through the async proxy, such as `wgmma`: `fence.proxy.async`.
    pub(crate) fn fence_proxy_async() = EffectOp() "fence.proxy.async.shared::cta;";

    /// Sets the registers of each lane of this warpgroup, a multiple of 8: `setmaxnreg`. Warpgroups that
    /// release registers leave them to those that request more, which wait for them.
    pub(crate) fn set_registers(#[comptime] count: usize, #[comptime] more: bool) =
        EffectOp() "setmaxnreg.{way}.sync.aligned.u32 {count};", way = if more { "inc" } else { "dec" };
}
