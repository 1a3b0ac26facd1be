//! The ring of stages between the producer and the consumers of a cube.

use cubecl::prelude::*;

use super::tiles::{CONSUMERS, WarpgroupTiles};
use crate::isa::nvidia::{barrier_arrive, barrier_init, barrier_wait};

/// The stages at a [`shared_address`](crate::isa::nvidia::shared_address), seen by one warp.
#[derive(CubeType)]
pub(super) struct StageRing {
    pub base: u32,
    /// Stages so far.
    pub count: u32,
    #[cube(comptime)]
    tiles: WarpgroupTiles,
}

#[cube]
impl StageRing {
    /// A ring at its first stage.
    pub fn new(base: u32, #[comptime] tiles: WarpgroupTiles) -> Self {
        StageRing { base, count: 0u32.runtime(), tiles }
    }

    /// Address of the stage of number `count`.
    pub fn stage(&self, count: u32) -> u32 {
        let stages = comptime!(self.tiles.stages as u32);
        self.base + count % stages * comptime!(self.tiles.stage_bytes() as u32)
    }

    /// Address of the barrier that stage `count` has arrived.
    pub fn full(&self, count: u32) -> u32 {
        let stages = comptime!(self.tiles.stages as u32);
        self.base + comptime!(self.tiles.barriers_at() as u32) + count % stages * 16u32
    }

    /// Waits until stage `count` has arrived.
    pub fn wait_full(&self, count: u32) {
        let stages = comptime!(self.tiles.stages as u32);
        barrier_wait(self.full(count), count / stages % 2u32);
    }

    /// Waits until there is room for stage `count`.
    pub fn wait_empty(&self, count: u32) {
        let stages = comptime!(self.tiles.stages as u32);
        barrier_wait(self.full(count) + 8u32, (count / stages + 1u32) % 2u32);
    }

    /// Tells the producer that this warp needs stage `count` no more.
    pub fn release(&self, count: u32) {
        if UNIT_POS_X == 0 {
            barrier_arrive(self.full(count) + 8u32);
        }
    }

    /// Initialises the barriers: the producer arrives on full, each consumer warp on empty. One lane.
    pub fn init(&self) {
        #[unroll]
        for stage in 0..comptime!(self.tiles.stages as u32) {
            barrier_init(self.full(stage), 1usize);
            barrier_init(self.full(stage) + 8u32, CONSUMERS);
        }
    }
}
