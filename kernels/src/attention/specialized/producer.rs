//! The warpgroup that copies.

use cubecl::prelude::*;

use super::super::batch::{Table, key_place, origin};
use super::super::plan::{rows_of, work_at};
use super::super::tiled::TiledParams;
use super::kernel::PRODUCERS;
use super::ring::{ROW_BYTES, Tile, full, place_of, wait_empty};
use crate::isa::nvidia::{
    barrier_arrive, cp_async_at, cp_async_commit, cp_async_wait, fence_proxy_async, shuffle,
};
use crate::unit::{Quad, Rows, Tiles, place};

/// Where a producer is.
#[derive(CubeType)]
pub(super) struct Producer {
    pub base: u32,
    /// Tiles so far.
    pub queries: u32,
    pub keys: u32,
    pub values: u32,
}

/// Copies what one work needs: queries, then keys and values tile by tile, keys a tile ahead of values.
#[allow(clippy::too_many_arguments, reason = "the buffers of the kernel")]
#[cube]
pub(super) fn produce(
    q: &Tensor<Quad>,
    k: &Tensor<Quad>,
    v: &Tensor<Quad>,
    works: &[i32],
    index: usize,
    kv_head: usize,
    table: &Table,
    params: &TiledParams,
    producer: &mut Producer,
    #[comptime] tiles: Tiles,
) {
    let work = work_at(works, index);
    let request = &work.request;
    let owned = rows_of(&work, kv_head, params.group);
    if owned.first < owned.end && work.start < work.end {
        let lane = UNIT_POS_X as usize;
        let plane = UNIT_POS_Y as usize;
        let base = producer.base;
        wait_empty(base, producer.queries, Tile::Queries, tiles);
        copy_queries(q, &owned, base, lane, plane, tiles);
        cp_async_commit();
        let mut begun = full(base, producer.queries, Tile::Queries, tiles);
        producer.queries += 1;

        let k_head = kv_head * k.stride(2) + origin(table, request, k.stride(1));
        let v_head = kv_head * v.stride(2) + origin(table, request, v.stride(1));
        let parts = comptime!(tiles.keys.div_ceil(LOOKED_UP));
        let mut k_at = Array::<usize>::new(parts);
        let mut v_at = Array::<usize>::new(parts);
        let mut next_v_at = Array::<usize>::new(parts);
        let mut at = work.start;
        while at < work.end + tiles.keys {
            if at < work.end {
                #[unroll]
                for i in 0..parts {
                    let own = own_row(i * LOOKED_UP, lane, plane, tiles.keys);
                    let (page, slot) = key_place(table, request, min(at + own, work.end - 1));
                    k_at[i] = (page * k.stride(0) + slot * k.stride(1) + k_head) / 8;
                    next_v_at[i] = (page * v.stride(0) + slot * v.stride(1) + v_head) / 8;
                }
                wait_empty(base, producer.keys, Tile::Keys, tiles);
                let to = place_of(base, producer.keys, Tile::Keys, tiles);
                copy_tile(k, &k_at, to, lane, plane, work.end - at, tiles.qk_quads(), tiles.keys);
                cp_async_commit();
                hand_over(begun, 1usize);
                begun = full(base, producer.keys, Tile::Keys, tiles);
                producer.keys += 1;
            }
            if at > work.start {
                wait_empty(base, producer.values, Tile::Values, tiles);
                let to = place_of(base, producer.values, Tile::Values, tiles);
                let left = work.end + tiles.keys - at;
                copy_tile(v, &v_at, to, lane, plane, left, tiles.vo_quads(), tiles.keys);
                cp_async_commit();
                hand_over(begun, 1usize);
                begun = full(base, producer.values, Tile::Values, tiles);
                producer.values += 1;
            }
            #[unroll]
            for i in 0..parts {
                v_at[i] = next_v_at[i];
            }
            at += tiles.keys;
        }
        hand_over(begun, 0usize);
    }
}

/// Rows of a part of a tile, for each of which a lane looks up where it lies: a lane one of its plane's.
const LOOKED_UP: usize = 32 * PRODUCERS;

/// Rows of the plane in the part that begins with row `first`, of a tile of `rows`.
fn rows_of_plane(first: usize, rows: usize) -> usize {
    (rows - first).min(LOOKED_UP) / PRODUCERS
}

/// The row that a lane looks up.
#[cube]
fn own_row(#[comptime] first: usize, lane: usize, plane: usize, #[comptime] rows: usize) -> usize {
    let of_plane = comptime!(rows_of_plane(first, rows));
    first + plane * of_plane + min(lane, comptime!(of_plane - 1))
}

/// Begins to copy a tile of `rows`; those from `left` on are zeros. `places` are where the rows that the lane looked up
/// lie.
#[allow(clippy::too_many_arguments, reason = "a place and its sizes")]
#[cube]
fn copy_tile(
    from: &Tensor<Quad>,
    places: &Array<usize>,
    to: u32,
    lane: usize,
    plane: usize,
    left: usize,
    #[comptime] quads: usize,
    #[comptime] rows: usize,
) {
    #[unroll]
    for i in 0..comptime!(rows.div_ceil(LOOKED_UP)) {
        let of_plane = comptime!(rows_of_plane(i * LOOKED_UP, rows));
        let first = comptime!(i * LOOKED_UP) + plane * of_plane;
        copy_rows(from, places[i], to, lane, first, left, quads, of_plane, rows);
    }
}

/// Tells the consumers that a tile is there, `later` groups of copies after its own: once they have arrived, and are to
/// be seen by the instructions that multiply. The copies could tell by themselves, but then each consumer would need
/// that fence, which took 200 of the 2800 cycles of a tile, between one product and the next.
#[cube]
fn hand_over(full: u32, #[comptime] later: usize) {
    cp_async_wait(later);
    fence_proxy_async();
    barrier_arrive(full);
}

/// Begins to copy the rows of queries; those that are not there are zeros.
#[cube]
fn copy_queries(
    from: &Tensor<Quad>,
    owned: &Rows,
    base: u32,
    lane: usize,
    plane: usize,
    #[comptime] tiles: Tiles,
) {
    let rows = comptime!(tiles.rows(16));
    let parts = comptime!(rows.div_ceil(LOOKED_UP));
    let mut places = Array::<usize>::new(parts);
    #[unroll]
    for i in 0..parts {
        let (token, head, _) = place(owned, own_row(i * LOOKED_UP, lane, plane, rows));
        places[i] = (token * from.stride(0) + head * from.stride(1)) / 8;
    }
    copy_tile(from, &places, base, lane, plane, owned.end - owned.first, tiles.qk_quads(), rows);
}

/// Begins to copy `count` rows from `first` on of a tile of `rows` to shared memory. `own` is where the row lies whose
/// number, from `first` on, is that of the lane; rows from `end` on are zeros.
///
/// Eight lanes copy 64 elements of a row, so that a lane's copies are always of the same column of it, and what differs
/// between them are constants.
#[allow(clippy::too_many_arguments, reason = "two places and their sizes")]
#[cube]
fn copy_rows(
    from: &Tensor<Quad>,
    own: usize,
    to: u32,
    lane: usize,
    first: usize,
    end: usize,
    #[comptime] quads: usize,
    #[comptime] count: usize,
    #[comptime] rows: usize,
) {
    let row = first + lane / 8;
    // All at first: then their latencies overlap.
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
        for column in 0..comptime!(quads / 8) {
            let offset = comptime!((column * rows + 4 * i) * ROW_BYTES);
            let to = if comptime!(i % 2 == 0) { even } else { odd };
            cp_async_at::<Quad>(to, offset, &from[at..at + comptime!(quads)], comptime!(column * 128), valid);
        }
    }
}
