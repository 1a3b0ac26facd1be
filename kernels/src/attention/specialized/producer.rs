//! The warpgroup that copies.

use cubecl::prelude::*;

use super::super::batch::{Table, key_place, origin};
use super::super::plan::work_at;
use super::super::tiled::TiledParams;
use super::kernel::PRODUCERS;
use super::ring::{ROW_BYTES, Tile, full, place_of, wait_empty};
use crate::isa::nvidia::{cp_async_arrive, cp_async_at, shuffle};
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
    let group = params.group;
    let end_row = request.qo_len * group;
    if work.first_row < end_row && work.start < work.end {
        let lane = UNIT_POS_X as usize;
        let plane = UNIT_POS_Y as usize;
        let owned = Rows {
            first_token: request.first_token,
            first: work.first_row,
            end: end_row,
            group,
            first_head: kv_head * group,
        };
        let base = producer.base;
        wait_empty(base, producer.queries, Tile::Queries, tiles);
        copy_queries(q, &owned, base, lane, plane, tiles);
        cp_async_arrive(full(base, producer.queries, Tile::Queries, tiles));
        producer.queries += 1;

        let k_head = kv_head * k.stride(2) + origin(table, request, k.stride(1));
        let v_head = kv_head * v.stride(2) + origin(table, request, v.stride(1));
        // Each lane looks up one of the plane's keys.
        let of_plane = comptime!(tiles.keys / PRODUCERS);
        let first = plane * of_plane;
        let own_row = first + min(lane, comptime!(of_plane - 1));
        let mut v_at = 0usize;
        let mut at = work.start;
        while at < work.end + tiles.keys {
            let mut next_v_at = 0usize;
            if at < work.end {
                let (page, slot) = key_place(table, request, min(at + own_row, work.end - 1));
                let k_at = (page * k.stride(0) + slot * k.stride(1) + k_head) / 8;
                next_v_at = (page * v.stride(0) + slot * v.stride(1) + v_head) / 8;
                wait_empty(base, producer.keys, Tile::Keys, tiles);
                let to = place_of(base, producer.keys, Tile::Keys, tiles);
                copy_rows(k, k_at, to, lane, first, work.end - at, tiles.qk_quads(), of_plane, tiles.keys);
                cp_async_arrive(full(base, producer.keys, Tile::Keys, tiles));
                producer.keys += 1;
            }
            if at > work.start {
                wait_empty(base, producer.values, Tile::Values, tiles);
                let to = place_of(base, producer.values, Tile::Values, tiles);
                let end = work.end + tiles.keys - at;
                copy_rows(v, v_at, to, lane, first, end, tiles.vo_quads(), of_plane, tiles.keys);
                cp_async_arrive(full(base, producer.values, Tile::Values, tiles));
                producer.values += 1;
            }
            v_at = next_v_at;
            at += tiles.keys;
        }
    }
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
    // A lane looks up one row at a time.
    let together = comptime!(if rows.is_multiple_of(128) { 128usize } else { 64 });
    let of_plane = comptime!(together / PRODUCERS);
    #[unroll]
    for i in 0..comptime!(rows / together) {
        let first = plane * of_plane + comptime!(i * together);
        let (token, head, _) = place(owned, first + lane % of_plane);
        let own = (token * from.stride(0) + head * from.stride(1)) / 8;
        copy_rows(from, own, base, lane, first, owned.end - owned.first, tiles.qk_quads(), of_plane, rows);
    }
}

/// Begins to copy `count` rows from `first` on of a tile of `rows` to shared memory. `own` is where the row lies whose number,
/// from `first` on, is that of the lane; rows from `end` on are zeros.
///
/// Eight lanes copy 64 elements of a row, so that a lane's copies are always of the same column of it, and what differs between
/// them are constants.
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
