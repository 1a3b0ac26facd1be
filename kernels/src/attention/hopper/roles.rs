//! The roles of a cube's planes, and their shares of rows and registers.

use cubecl::prelude::*;

use super::super::plan::{WorkList, WorkTile};
use crate::mma::TileShape;

/// Producer planes: one warpgroup, since registers are assigned to warpgroups.
pub(in super::super) const PRODUCERS: usize = 4;

/// Producer planes that copy the same tensor.
pub(super) const PAIR: usize = PRODUCERS / 2;

/// A work item of a key head, with the part of its rows for a rank of the cluster, or none.
#[cube]
pub(super) fn work_of_rank(
    list: &WorkList,
    index: usize,
    kv_head: usize,
    kv_heads: usize,
    rank: usize,
    #[comptime] tiles: TileShape,
) -> WorkTile {
    let mut work = list.at(index, kv_head, kv_heads);
    work.rows.first = min(work.rows.first + rank * comptime!(tiles.rows(16)), work.rows.end);
    work
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
