//! The persistent tile scheduler: each core has one cube, which goes through work items round by round.

use cubecl::prelude::*;

use super::work::WorkList;
use crate::mma::TileShape;

/// Rounds up to which a launch is persistent: each core has one cube, which goes on to the next work item
/// while the last one ends. With more rounds, cubes take work items as they become free (H200, 8192 tokens:
/// 559 TFLOP/s against 546; 2048 tokens: 428 against 444).
const PERSISTENT_ROUNDS: usize = 8;

/// Tiles of keys of a work item up to which a launch is persistent whatever the rounds: to begin a cube takes as long as a
/// part of so short a walk. A tenth of 16384 keys in blocks of 128 x 128 ran at 510 TFLOP/s without, and 577 with it; 64 prompts
/// of 1024 tokens at 345 and 373, 128 of 512 at 226 and 270 (H200).
const SHORT_WALK: usize = 12;

/// L2 budget for keys and values of concurrent work items. 4 MiB to 24 MiB are the same within the noise.
const L2_BUDGET: usize = 8 << 20;

/// True if the launch is persistent, of so many work items over all key heads, none of which has more than `walk` tiles of
/// keys.
pub(crate) fn is_persistent(items: usize, walk: usize, cores: Option<usize>, cluster: usize) -> bool {
    cores.is_some_and(|cores| walk <= SHORT_WALK || items <= PERSISTENT_ROUNDS * (cores / cluster))
}

/// Cubes for so many work items over all key heads.
pub(crate) fn cubes_for(items: usize, walk: usize, cores: Option<usize>, cluster: usize) -> usize {
    cluster
        * match cores {
            Some(cores) if is_persistent(items, walk, Some(cores), cluster) => items.min(cores / cluster),
            _ => items,
        }
}

/// Key heads whose work items run side by side: as many as fit in the L2 budget with their keys and values.
/// The estimate is by the first request, which has the heaviest work item. 32 heads of 16384 keys all
/// together: 507 TFLOP/s, in turn 581 (H200).
#[cube]
pub(crate) fn heads_in_l2(list: &WorkList, kv_heads: usize, #[comptime] tiles: TileShape) -> usize {
    let bytes = usize::cast_from(list.items[2]) * comptime!((tiles.dims.qk + tiles.dims.vo) * 2);
    min(max(L2_BUDGET / max(bytes, 1), 1), kv_heads)
}

/// Work item and key head of an item, of `count` work items a key head.
#[cube]
pub(crate) fn item_and_head(item: usize, together: usize, count: usize, kv_heads: usize) -> (usize, usize) {
    let section = item / (count * together);
    let first = section * together;
    let heads = min(together, kv_heads - first);
    let at = item - count * first;
    (at / heads, first + at % heads)
}

/// The item of a cube in a round: forwards and backwards in turn, so that the heaviest and the lightest are
/// paired.
#[cube]
pub(crate) fn snake_order(at: usize, count: usize, round: usize) -> usize {
    round * count + select(round % 2 == 1, count - 1 - at, at)
}
