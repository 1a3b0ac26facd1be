//! The roles of a cube's planes, their work items, and their shares of registers.

use cubecl::prelude::*;

use super::super::plan::persistent::{heads_in_l2, item_and_head, snake_order};
use super::super::plan::{WorkList, WorkTile};
use crate::mma::TileShape;

/// Producer planes: one warpgroup, since registers are assigned to warpgroups.
pub(in super::super) const PRODUCERS: usize = 4;

/// Producer planes that copy the same tensor.
pub(super) const PAIR: usize = PRODUCERS / 2;

/// Hands out the work items of a cluster, one after the other.
#[derive(CubeType)]
pub(super) struct TileScheduler {
    /// Number of the current work item over all key heads.
    item: usize,
    round: usize,
    cluster: usize,
    clusters: usize,
    rank: usize,
    /// Key heads whose work items run side by side.
    together: usize,
    kv_heads: usize,
}

#[cube]
pub(super) fn tile_scheduler(
    list: &WorkList,
    kv_heads: usize,
    #[comptime] tiles: TileShape,
) -> TileScheduler {
    let cluster = CUBE_POS / tiles.cluster;
    let clusters = CUBE_COUNT / tiles.cluster;
    let mut together = kv_heads;
    if clusters == list.count * kv_heads {
        together = heads_in_l2(list, kv_heads, tiles);
    }
    let rank = CUBE_POS % tiles.cluster;
    TileScheduler { item: cluster, round: 0usize, cluster, clusters, rank, together, kv_heads }
}

#[cube]
impl TileScheduler {
    /// True if there is a current work item.
    pub fn has_work(&self, list: &WorkList) -> bool {
        self.item < list.count * self.kv_heads
    }

    /// The current work item, with the part of its rows for the cube's rank, or none.
    pub fn work(&self, list: &WorkList, #[comptime] tiles: TileShape) -> WorkTile {
        let (index, kv_head) = item_and_head(self.item, self.together, list.count, self.kv_heads);
        let mut work = list.at(index, kv_head, self.kv_heads);
        work.rows.first = min(work.rows.first + self.rank * comptime!(tiles.rows(16)), work.rows.end);
        work
    }

    /// Goes on to the next work item.
    pub fn advance(&mut self) {
        self.round += 1;
        self.item = snake_order(self.cluster, self.clusters, self.round);
    }
}

/// Registers of a producer unit, and of a consumer unit in so many planes, in multiples of 8. The sum must
/// not exceed the registers of the launch, or `setmaxnreg` deadlocks.
pub(super) fn registers(planes: usize) -> (usize, usize) {
    if planes == 8 { (24, 240) } else { (32, 160) }
}

#[cfg(test)]
mod tests {
    use super::{PRODUCERS, registers};

    #[test]
    fn nobody_asks_for_more_registers_than_there_are() {
        for consumers in [8, 12] {
            let (copying, multiplying) = registers(consumers);
            // A launch gives every lane the same multiple of 8 of the 64 Ki registers of a core.
            let planes = PRODUCERS + consumers;
            let given = (1 << 16) / (32 * planes) / 8 * 8;
            assert!(PRODUCERS * copying + consumers * multiplying <= planes * given, "{consumers}");
            assert_eq!((copying % 8, multiplying % 8), (0, 0));
        }
    }
}
