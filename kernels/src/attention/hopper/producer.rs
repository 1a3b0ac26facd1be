//! The producer warpgroup: two warps copy the keys, two the queries and values.
//!
//! Whole tiles are copied by TMA, box by box. The last tile of a request, and keys in pages that no box fits
//! into, are copied lane by lane.

use cubecl::prelude::*;

use super::super::buffers::QkvVecs;
use super::super::kv_table::{fits, key_place, origin};
use super::super::mask::key_tiles;
use super::super::plan::{WorkList, WorkTile};
use super::ring::{ROW_BYTES, Ring, full, stage_ptr, wait_empty};
use super::roles::{PAIR, TileScheduler};
use super::tensor_maps::TensorMaps;
use crate::isa::nvidia::{
    barrier_arrive, barrier_expect, copy_box, cp_async_at, cp_async_commit, cp_async_wait, fence_proxy_async,
    shuffle,
};
use crate::mma::TileShape;
use crate::request::TileRows;
use crate::staging::Vec16;

/// Rows of a TMA box: a divisor of a page and of a cube's part of the keys of a tile. 0 if that is less than
/// a swizzle atom.
pub(in super::super) fn box_rows(keys: usize, page_size: Option<usize>) -> usize {
    match page_size {
        None => keys,
        Some(page_size) => {
            let rows = 1 << keys.trailing_zeros().min(page_size.trailing_zeros());
            if rows < 8 { 0 } else { rows }
        }
    }
}

/// The state of a producer.
#[derive(CubeType)]
struct Producer {
    base: u32,
    /// Rank of its cube in the cluster.
    rank: usize,
    /// Tiles of queries so far.
    queries: u32,
    /// Tiles of keys, or of values, so far.
    stages: u32,
}

/// Copies the tiles of a cluster's work items: one pair of planes the keys, the other one the queries and values.
#[cube]
pub(super) fn produce(
    qkv: &QkvVecs,
    maps: &TensorMaps,
    list: &WorkList,
    scheduler: &mut TileScheduler,
    base: u32,
    #[comptime] tiles: TileShape,
) {
    let (queries, stages) = (0u32.runtime(), 0u32.runtime());
    let mut producer = Producer { base, rank: CUBE_POS % tiles.cluster, queries, stages };
    if (UNIT_POS_Y as usize) < PAIR {
        while scheduler.has_work(list) {
            let work = scheduler.work(list, tiles);
            let mut walk = key_tiles(&list.mask, &work, tiles.keys, 0usize);
            if work.first_row < work.rows.end {
                while walk.at < work.end {
                    produce_tile(qkv, maps, &work, walk.at, &mut producer, Ring::Keys, tiles);
                    walk.advance(&list.mask);
                }
            }
            scheduler.advance();
        }
    } else {
        // The queries of the current work item have been copied, behind its predecessor's second tile of values: there is
        // room for them, and time until the third.
        let mut has_queries = false;
        while scheduler.has_work(list) {
            let work = scheduler.work(list, tiles);
            scheduler.advance();
            let mut walk = key_tiles(&list.mask, &work, tiles.keys, 0usize);
            if work.first_row < work.rows.end && walk.at < work.end {
                if !has_queries {
                    produce_queries(qkv, &work, &mut producer, tiles);
                }
                has_queries = false;
                let has_room = comptime!(Ring::Queries.stages(tiles) > 1);
                let mut count = 0u32.runtime();
                while walk.at < work.end {
                    produce_tile(qkv, maps, &work, walk.at, &mut producer, Ring::Values, tiles);
                    walk.advance(&list.mask);
                    count += 1;
                    if has_room && count == 2 && scheduler.has_work(list) {
                        let next = scheduler.work(list, tiles);
                        let has_tiles = key_tiles(&list.mask, &next, tiles.keys, 0usize).at < next.end;
                        if next.first_row < next.rows.end && has_tiles {
                            produce_queries(qkv, &next, &mut producer, tiles);
                            has_queries = true;
                        }
                    }
                }
            }
        }
    }
}

/// Copies the queries of a work item.
#[cube]
fn produce_queries(qkv: &QkvVecs, work: &WorkTile, producer: &mut Producer, #[comptime] tiles: TileShape) {
    wait_empty(producer.base, producer.queries, Ring::Queries, tiles);
    let to = stage_ptr(producer.base, producer.queries, Ring::Queries, tiles);
    copy_queries(&qkv.q, &work.rows, to, tiles);
    producer_commit(full(producer.base, producer.queries, Ring::Queries, tiles));
    producer.queries += 1;
}

/// Copies a tile of the keys, or of the values, of a work item, from key `at` on.
#[cube]
fn produce_tile(
    qkv: &QkvVecs,
    maps: &TensorMaps,
    work: &WorkTile,
    at: usize,
    producer: &mut Producer,
    #[comptime] tile: Ring,
    #[comptime] tiles: TileShape,
) {
    let (table, request, kv_head) = (&qkv.table, &work.rows.request, work.rows.kv_head);
    let from = if comptime!(tile == Ring::Keys) { &qkv.k } else { &qkv.v };
    let map = if comptime!(tile == Ring::Keys) { maps.k.address() } else { maps.v.address() };
    let plane = UNIT_POS_Y as usize % PAIR;
    let vecs = comptime!(tile.vecs(tiles));
    let head = kv_head * from.stride(2) + origin(table, request, from.stride(1));
    // No box reaches beyond its page. Keys beyond the work item are masked, but not what might lie beyond the request.
    let boxed = fits(table, work.start, maps.box_rows) && at + tiles.keys <= request.kv_len;
    let boxes = boxes_of(producer.rank, plane, max(maps.box_rows, 1), tiles);
    // Looked up while there is no room yet.
    let row = at + boxes.row(UNIT_POS_X as usize);
    let (page, slot) = key_place(table, request, min(row, request.kv_len - 1));
    let mut rows = Array::<usize>::new(comptime!(tiles.keys.div_ceil(LOOKED_UP)));
    if !boxed {
        #[unroll]
        for i in 0..comptime!(tiles.keys.div_ceil(LOOKED_UP)) {
            let row = at + own_row(i * LOOKED_UP, tiles.keys);
            let (page, slot) = key_place(table, request, min(row, work.end - 1));
            rows[i] = (page * from.stride(0) + slot * from.stride(1) + head) / 8;
        }
    }
    wait_empty(producer.base, producer.stages, tile, tiles);
    let to = stage_ptr(producer.base, producer.stages, tile, tiles);
    let full = full(producer.base, producer.stages, tile, tiles);
    if boxed {
        // Other planes may have begun to copy: the tile is not complete before all units have arrived.
        if plane == 0 && UNIT_POS_X == 0 {
            barrier_expect(full, comptime!(tiles.keys * vecs * 16));
        }
        let place = BoxPlace { page, slot: slot + origin(table, request, 1usize), kv_head };
        copy_boxes(map, &boxes, &place, to, full, vecs, tiles);
        barrier_arrive(full);
    } else {
        #[unroll]
        for i in 0..comptime!(tiles.keys.div_ceil(LOOKED_UP)) {
            copy_rows(from, rows[i], to, i * LOOKED_UP, work.end - at, vecs, tiles.keys);
        }
        producer_commit(full);
    }
    producer.stages += 1;
}

/// The TMA boxes that a plane copies: box `i` is copied by producer plane `i % planes` of the cluster.
#[derive(CubeType)]
struct Boxes {
    first: usize,
    count: usize,
    rows: usize,
    #[cube(comptime)]
    planes: usize,
}

#[cube]
fn boxes_of(rank: usize, plane: usize, rows: usize, #[comptime] tiles: TileShape) -> Boxes {
    let planes = comptime!(PAIR * tiles.cluster);
    let first = rank + plane * tiles.cluster;
    let all = comptime!(tiles.keys) / rows;
    Boxes { first, count: (all + comptime!(planes - 1) - first) / planes, rows, planes }
}

#[cube]
impl Boxes {
    /// First row of the box.
    fn row(&self, index: usize) -> usize {
        (self.first + index * self.planes) * self.rows
    }
}

/// The place of the box that a lane looked up: the one of its number.
#[derive(CubeType)]
struct BoxPlace {
    page: usize,
    slot: usize,
    kv_head: usize,
}

/// Copies TMA boxes of 64 elements of the rows, each to every cube of the cluster.
#[cube]
fn copy_boxes(
    map: u64,
    boxes: &Boxes,
    place: &BoxPlace,
    to: u32,
    full: u32,
    #[comptime] vecs: usize,
    #[comptime] tiles: TileShape,
) {
    for i in 0..boxes.count {
        let (page, slot) = (shuffle(place.page, i as u32) as u32, shuffle(place.slot, i as u32) as u32);
        let to = to + (boxes.row(i) * ROW_BYTES) as u32;
        #[unroll]
        for column in 0..comptime!(vecs / 8) {
            copy_box(
                to,
                comptime!(column * tiles.keys * ROW_BYTES),
                map,
                comptime!(column * 64),
                slot,
                page,
                place.kv_head as u32,
                full,
                tiles.cluster,
            );
        }
    }
}

/// Rows of a part of a tile; each lane of the two planes looks up the place of one.
const LOOKED_UP: usize = 32 * PAIR;

/// Rows of the plane in the part that begins with row `first`, of a tile of `rows`.
fn rows_of_plane(first: usize, rows: usize) -> usize {
    (rows - first).min(LOOKED_UP) / PAIR
}

/// The row that a lane looks up.
#[cube]
fn own_row(#[comptime] first: usize, #[comptime] rows: usize) -> usize {
    let of_plane = comptime!(rows_of_plane(first, rows));
    let plane = UNIT_POS_Y as usize % PAIR;
    first + plane * of_plane + min(UNIT_POS_X as usize, comptime!(of_plane - 1))
}

/// Arrives on full: a tile has arrived and is visible to the instructions that multiply. The copies could
/// arrive by themselves. But then each consumer would need that fence between two products, which took 200 of
/// the 2800 cycles of a tile.
#[cube]
fn producer_commit(full: u32) {
    cp_async_commit();
    cp_async_wait(0usize);
    fence_proxy_async();
    barrier_arrive(full);
}

/// Begins to copy the rows of queries; missing rows are zeros.
#[cube]
fn copy_queries(from: &Tensor<Vec16>, owned: &TileRows, to: u32, #[comptime] tiles: TileShape) {
    let rows = comptime!(tiles.rows(16));
    #[unroll]
    for i in 0..comptime!(rows.div_ceil(LOOKED_UP)) {
        let (token, head, _) = owned.place(own_row(i * LOOKED_UP, rows));
        let own = (token * from.stride(0) + head * from.stride(1)) / 8;
        copy_rows(from, own, to, i * LOOKED_UP, owned.end - owned.first, tiles.q_vecs(), rows);
    }
}

/// Begins to copy the plane's rows of a part of a tile to shared memory. The part begins with row `first` of
/// a tile of `rows`. `own` is the place of the row that the lane looked up; rows from `end` on are zeros.
///
/// Eight lanes copy 64 elements of a row. So a lane's copies are always of the same column, and differ by
/// constants.
#[cube]
fn copy_rows(
    from: &Tensor<Vec16>,
    own: usize,
    to: u32,
    #[comptime] first: usize,
    end: usize,
    #[comptime] vecs: usize,
    #[comptime] rows: usize,
) {
    let count = comptime!(rows_of_plane(first, rows));
    let lane = UNIT_POS_X as usize;
    let row = first + UNIT_POS_Y as usize % PAIR * count + lane / 8;
    // All addresses come first: their latencies overlap.
    let mut places = Array::<usize>::new(comptime!(count / 4));
    #[unroll]
    for i in 0..comptime!(count / 4) {
        places[i] = shuffle(own, (lane / 8) as u32 + comptime!(4 * i as u32)) + lane % 8;
    }
    let even = to + (row * ROW_BYTES + ((lane % 8) ^ (row % 8)) * 16) as u32;
    let odd = even ^ 64;
    #[unroll]
    for i in 0..comptime!(count / 4) {
        let valid = row + comptime!(4 * i) < end;
        let at = places[i];
        #[unroll]
        for column in 0..comptime!(vecs / 8) {
            let offset = comptime!((column * rows + 4 * i) * ROW_BYTES);
            let to = if comptime!(i % 2 == 0) { even } else { odd };
            cp_async_at::<Vec16>(to, offset, &from[at..at + comptime!(vecs)], comptime!(column * 128), valid);
        }
    }
}

#[cfg(test)]
mod tests {
    use cubecl::ir::{ElemType, FloatKind};

    use super::super::roles::PAIR;
    use super::{box_rows, boxes_of};
    use crate::mma::TileShape;
    use crate::problem::HeadDims;

    #[test]
    fn a_box_divides_tiles_and_pages() {
        assert_eq!(box_rows(160, None), 160);
        let pages = [1, 7, 8, 12, 16, 24, 64, 160, 256];
        assert_eq!(pages.map(|page| box_rows(160, Some(page))), [0, 0, 8, 0, 16, 8, 32, 32, 32]);
        assert_eq!(pages.map(|page| box_rows(80, Some(page))), [0, 0, 8, 0, 16, 8, 16, 16, 16]);
    }

    #[test]
    fn each_box_is_copied_once() {
        for (keys, cluster, page) in [64, 80, 112, 128, 160, 176, 192].into_iter().flat_map(|keys| {
            [1, 2].into_iter().flat_map(move |cluster| {
                [None, Some(8), Some(16), Some(64)].map(|page| (keys, cluster, page))
            })
        }) {
            let tiles = TileShape {
                dims: HeadDims { qk: 128, vo: 128 },
                q_tiles: 1,
                keys,
                q_planes: 8,
                kv_planes: 1,
                stages: 2,
                q_in_registers: false,
                cluster,
                direct_keys: false,
                dtype: ElemType::Float(FloatKind::BF16),
                kv_dtype: ElemType::Float(FloatKind::BF16).into(),
                shares_codes: true,
                machine: crate::device::Machine::Portable,
                fp8_mma: false,
            };
            let rows = box_rows(keys / cluster, page);
            let mut copied = vec![];
            for (rank, plane) in (0..cluster).flat_map(|rank| (0..PAIR).map(move |plane| (rank, plane))) {
                let boxes = boxes_of(rank, plane, rows, tiles);
                copied.extend((0..boxes.count).map(|i| boxes.row(i)));
            }
            copied.sort_unstable();
            assert_eq!(copied, (0..keys).step_by(rows).collect::<Vec<_>>(), "{keys} {cluster} {page:?}");
        }
    }
}
