use cubecl::prelude::*;

use super::ring::{Ring, Staging, Vec16};
use crate::isa::nvidia::{cp_async, cp_async_commit, cp_async_wait, shared_address};

/// `cp.async`, NVIDIA since Ampere: copies into a stage that no plane reads.
pub(crate) struct CpAsync;

#[cube]
impl Staging for CpAsync {
    fn copy(
        ring: &mut Ring,
        from: &Tensor<Vec16>,
        at: usize,
        valid: bool,
        to: usize,
        #[comptime] _slot: usize,
    ) {
        let to = shared_address(&ring.shared[0..1]) + to as u32 * 16u32;
        cp_async(to, 0usize, &from[at..at + 1], valid);
    }

    fn commit() {
        cp_async_commit();
    }

    fn wait(#[comptime] in_flight: usize) {
        cp_async_wait(in_flight);
        sync_cube();
    }
}
