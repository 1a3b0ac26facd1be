//! ```text
//! o_i = Σ_j p_ij v_j / Σ_j p_ij      p_ij = exp2(s_ij - m_i)      s_ij = log2(e) scale q_i·k_j, soft-capped, visible j
//! ```
//! FlashAttention-2 on any [`MatrixUnit`]. The queries of the heads that share a key head are packed into rows: row
//! `r` is query `r / group` of head `r % group`. A cube owns a tile of rows and walks over the keys that any of them
//! sees, a tile of keys at a time:
//!
//! | step | each plane | memory |
//! |---|---|---|
//! | 1 | waits for the tile | *barrier*; the copy of the tile after next begins |
//! | 2 | `S = Q Kᵀ` for its rows and keys | reads keys |
//! | 3 | masks `S` where a row's end is in the tile; new maxima, `P = exp2(S - m)`, sums; `O *= exp2(m_old - m)` | none |
//! | 4 | `O += P V` | reads values |
//!
//! `S`, `P` and `O` never leave the registers. With few rows (decoding) the planes take different keys of the tile, and
//! what they found is merged in shared memory at the end. With `split`, a cube sees a chunk of the keys only and leaves
//! a normalised partial output, and its largest logit and sum of weights, which [`super::combine`] merges in the order of the keys.
//!
//! Keys beyond the last one that a row sees are never read: their places in shared memory are zero.

use cubecl::prelude::*;

use super::super::batch::{Table, key_piece, query_piece, visible};
use super::fetch::fetch;
use super::merge::merge_planes;
use super::softmax::{mask, new_softmax, row_of, soft_cap, weights};
use crate::math::{LOG2_E, narrow};
use crate::unit::{MatrixUnit, Quad, Rows, Tiles, place, shared_quads};

/// The run-time numbers of a problem.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct TiledParams {
    pub scale: f32,
    pub soft_cap: f32,
    /// `i32::MAX` for none.
    pub window_left: usize,
    pub causal: u32,
    /// Query heads of a key head.
    pub group: usize,
    /// Pieces of work of a key head: tiles of rows, or with `split` chunks of keys.
    pub pieces: usize,
    /// Keys of a chunk.
    pub chunk: usize,
    /// With `split`: tiles of rows of the longest request.
    pub row_tiles: usize,
}

/// Comptime choices beside the tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    pub split: bool,
    pub soft_cap: bool,
}

/// `q`: `[tokens, q_heads, qk]`, `k`: `[pages, slots, kv_heads, qk]`, `v`: `[pages, slots, kv_heads, vo]`, all in quads
/// but with strides in elements. `output`: `[tokens, q_heads, vo]`, or with `split` `[pieces, q rows.., vo]`.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn tiled<U: MatrixUnit, E: Float, O: Float>(
    q: &Tensor<Quad>,
    k: &Tensor<Quad>,
    v: &Tensor<Quad>,
    output: &mut Tensor<Vector<O, U::Run>>,
    lse: &mut ComptimeOption<Box<[f32]>>,
    table: &Table,
    params: &TiledParams,
    #[comptime] tiles: Tiles,
    #[comptime] variant: Variant,
    #[define(E, O)] _dtypes: [ElemType; 2],
) {
    let rows = comptime!(tiles.rows(U::ROWS));
    let lane = UNIT_POS_X as usize;
    let plane = UNIT_POS_Y as usize;
    let unit = UNIT_POS as usize;

    // Heads of a piece run side by side: their keys are neighbours in memory, and on MI300X a head stays on an XCD if
    // there are 8. The heaviest tiles of causal attention, at the end of a request, go first.
    let kv_heads = k.shape(2);
    let mut row_tile = 0usize;
    let mut cube = CUBE_POS;
    if comptime!(variant.split) {
        row_tile = cube % params.row_tiles;
        cube /= params.row_tiles;
    }
    let kv_head = cube % kv_heads;
    let piece = cube / kv_heads;
    if piece >= params.pieces {
        terminate!();
    }
    let found = if comptime!(variant.split) {
        key_piece(table, piece, params.chunk, q.shape(0), k.shape(1))
    } else {
        query_piece(table, params.pieces - 1 - piece, params.group, rows, q.shape(0), k.shape(1))
    };
    let request = found.request;
    let mut chunk_start = 0usize;
    let mut chunk_end = request.kv_len;
    if comptime!(variant.split) {
        chunk_start = found.number * params.chunk;
        chunk_end = min(chunk_end, chunk_start + params.chunk);
    } else {
        row_tile = found.number;
    }
    let group = params.group;
    let owned = Rows {
        first_token: request.first_token,
        first: row_tile * rows,
        end: request.qo_len * group,
        group,
        first_head: kv_head * group,
    };
    if owned.first >= owned.end || (comptime!(variant.split) && chunk_start >= chunk_end) {
        terminate!();
    }

    // Queries of the first and the last row, and the keys that they see: all see those from `every` on, none beyond.
    let first_query = owned.first / group;
    let last_query = (min(owned.first + rows, owned.end) - 1) / group;
    let (any_start, every_end) = visible(&request, first_query, params.causal, params.window_left);
    let (every_start, any_end) = visible(&request, last_query, params.causal, params.window_left);
    let start = max(any_start, chunk_start);
    let end = min(any_end, chunk_end);
    let every_end = min(every_end, chunk_end);

    let mut shared = Shared::<[Quad]>::new_aligned_slice(comptime!(shared_quads::<U>(tiles)), 128usize);
    let mut staged = Array::<Quad>::new(comptime!(U::staged_quads(tiles)));
    let heads = kv_head * k.stride(2);
    let v_heads = kv_head * v.stride(2);

    U::fetch_queries(q, &owned, &mut shared, unit, tiles);
    let cube_keys = comptime!(tiles.cube_keys());
    let stage_quads = comptime!(tiles.stage_quads());
    let ahead = comptime!(if tiles.stages > 1 { tiles.stages - 1 } else { 1 });
    #[unroll]
    for i in 0..ahead {
        fetch::<U>(
            k,
            v,
            heads,
            v_heads,
            table,
            &request,
            start + comptime!(i * cube_keys),
            end,
            &mut shared,
            comptime!(i * stage_quads).runtime(),
            unit,
            &mut staged,
            tiles,
        );
    }
    let queries = U::load_queries(q, &owned, &shared, lane, plane, tiles);

    let columns = comptime!(tiles.keys / U::COLUMNS);
    let elements = comptime!(tiles.dims.vo.div_ceil(U::COLUMNS));
    let lane_rows = comptime!(tiles.row_tiles * U::LANE_ROWS);
    let mut scores = Array::<Vector<f32, U::Acc>>::new(comptime!(tiles.row_tiles * columns));
    let mut sums = Array::<Vector<f32, U::Acc>>::new(comptime!(tiles.row_tiles * elements));
    #[unroll]
    for i in 0..comptime!(tiles.row_tiles * elements) {
        sums[i] = Vector::new(0.0f32);
    }
    let mut softmax = new_softmax(lane_rows);
    let first_row = plane % tiles.row_planes * comptime!(tiles.row_tiles * U::ROWS);
    let factor = if comptime!(variant.soft_cap) { LOG2_E.runtime() } else { params.scale * LOG2_E };
    // The lane's first key in a tile.
    let first_key = plane / tiles.row_planes * tiles.keys + U::column(lane);

    let mut stage = 0usize;
    let mut at = start;
    while at < end {
        U::arrive(&mut shared, stage, unit, &mut staged, end - at, tiles);
        let mut next = stage + comptime!(ahead * stage_quads);
        if comptime!(tiles.stages == 1) {
            next = 0usize;
        } else if next >= comptime!(tiles.stages * stage_quads) {
            next -= comptime!(tiles.stages * stage_quads);
        }
        fetch::<U>(
            k,
            v,
            heads,
            v_heads,
            table,
            &request,
            at + comptime!(ahead * cube_keys),
            end,
            &mut shared,
            next,
            unit,
            &mut staged,
            tiles,
        );

        U::scores::<E>(&queries, &staged, &shared, stage, lane, plane, &mut scores, tiles);

        if comptime!(variant.soft_cap) {
            soft_cap::<U>(&mut scores, params.scale, params.soft_cap, tiles);
        }
        if at < every_start || at + cube_keys > every_end {
            #[unroll]
            for r in 0..lane_rows {
                let row = first_row + row_of::<U>(lane, r);
                let query = min(owned.first + row, owned.end - 1) / group;
                let (start, end_of_row) = visible(&request, query, params.causal, params.window_left);
                let key = (at + first_key) as u32;
                mask::<U>(&mut scores, r, key, start as u32, min(end_of_row, end) as u32, tiles);
            }
        }
        weights::<U>(&mut scores, &mut softmax, factor, tiles);
        // Skipping this while no maximum rises costs more than it saves: 3% of a prefill on an H200, since the branch
        // parts what is scheduled together.
        #[unroll]
        for m in 0..tiles.row_tiles {
            let rescale = U::spread(&softmax.rescales, m);
            #[unroll]
            for i in 0..elements {
                sums[comptime!(m * elements + i)] *= rescale;
            }
        }

        U::weigh::<E>(&scores, &shared, stage, lane, plane, &mut sums, tiles);

        stage += stage_quads;
        if stage == comptime!(tiles.stages * stage_quads) {
            stage = 0usize;
        }
        at += cube_keys;
    }
    #[unroll]
    for r in 0..lane_rows {
        softmax.totals[r] = U::row_sum(softmax.totals[r]);
    }
    if comptime!(tiles.key_planes > 1) {
        merge_planes::<U>(&mut shared, lane, plane, &mut softmax, &mut sums, factor, tiles);
    }

    // Nothing visible, or nothing but -inf: the sums are 0 and stay 0.
    let q_heads = q.shape(1);
    if plane < tiles.row_planes {
        #[unroll]
        for r in 0..lane_rows {
            let row = first_row + row_of::<U>(lane, r);
            let (token, head, valid) = place(&owned, row);
            let mut to = token * q_heads + head;
            if comptime!(variant.split) {
                // Pieces, then the tokens of the longest request, then heads.
                let longest = params.row_tiles * rows;
                to = (piece * kv_heads + kv_head) * longest + owned.first + row;
            }
            if valid {
                let total = softmax.totals[r];
                let norm = 1.0f32 / select(total == 0.0f32, 1.0f32, total);
                #[unroll]
                for i in 0..elements {
                    let tile = sums[comptime!(r / U::LANE_ROWS * elements + i)];
                    #[unroll]
                    for e in 0..comptime!(U::ACC) {
                        if comptime!(U::lane_row(e) == r % U::LANE_ROWS && U::step(0, e) % U::RUN == 0) {
                            let mut run = Vector::<f32, U::Run>::empty();
                            #[unroll]
                            for o in 0..comptime!(U::RUN) {
                                run.insert(o, tile.extract(comptime!(e + o)) * norm);
                            }
                            let element = U::column(lane) + comptime!(U::step(i, e));
                            if comptime!(tiles.dims.vo.is_multiple_of(U::COLUMNS)) || element < tiles.dims.vo
                            {
                                output[(to * tiles.dims.vo + element) / comptime!(U::RUN)] =
                                    narrow::<O, U::Run>(run);
                            }
                        }
                    }
                }
                #[comptime]
                match lse {
                    ComptimeOption::Some(lse) => {
                        if U::column(lane) == 0 {
                            if comptime!(variant.split) {
                                // Their sum would be rounded where logits are large.
                                lse[2 * to] = softmax.maxima[r];
                                lse[2 * to + 1] = total;
                            } else {
                                let value = softmax.maxima[r] * factor + total.ln() * LOG2_E;
                                lse[to] = select(total == 0.0f32, f32::NEG_INFINITY, value);
                            }
                        }
                    }
                    ComptimeOption::None => {}
                }
            }
        }
    }
}
