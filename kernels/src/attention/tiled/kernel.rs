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
//! a normalised partial output and its base-2 log-sum-exp, which [`super::combine`] merges in the order of the keys.
//!
//! Keys beyond the last one that a row sees are never read: their places in shared memory are zero.

use cubecl::prelude::*;

use super::super::batch::{Request, Table, key_piece, key_place, query_piece, visible};
use crate::math::{LOG2_E, narrow};
use crate::unit::{MatrixUnit, Quad, Rows, Tiles, place, plane_words, shared_quads};

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
    let mut maxima = Array::<f32>::new(lane_rows);
    let mut totals = Array::<f32>::new(lane_rows);
    let mut bases = Array::<f32>::new(lane_rows);
    let mut rescales = Array::<f32>::new(lane_rows);
    let first_row = plane % tiles.row_planes * comptime!(tiles.row_tiles * U::ROWS);
    #[unroll]
    for r in 0..lane_rows {
        maxima[r] = f32::NEG_INFINITY;
        totals[r] = 0.0f32;
    }
    let factor = if comptime!(variant.soft_cap) { LOG2_E.runtime() } else { params.scale * LOG2_E };
    // The lane's first key in a tile.
    let first_key = plane / tiles.row_planes * tiles.keys + U::column(lane);

    let mut stage = 0usize;
    let mut at = start;
    while at < end {
        U::arrive(&mut shared, stage, unit, &staged, tiles);
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

        U::scores::<E>(&queries, &shared, stage, lane, plane, &mut scores, tiles);

        if comptime!(variant.soft_cap) {
            #[unroll]
            for i in 0..comptime!(tiles.row_tiles * columns) {
                let mut tile = scores[i];
                #[unroll]
                for e in 0..comptime!(U::ACC) {
                    tile.insert(e, soft_capped::<U>(tile.extract(e), params.scale, params.soft_cap));
                }
                scores[i] = tile;
            }
        }
        if at < every_start || at + cube_keys > every_end {
            #[unroll]
            for r in 0..lane_rows {
                let row = first_row + row_of::<U>(lane, r);
                let query = min(owned.first + row, owned.end - 1) / group;
                let (row_start, row_end) = visible(&request, query, params.causal, params.window_left);
                let (row_start, row_end) = (row_start as u32, min(row_end, end) as u32);
                let key = (at + first_key) as u32;
                #[unroll]
                for n in 0..columns {
                    let mut tile = scores[comptime!(r / U::LANE_ROWS * columns + n)];
                    #[unroll]
                    for e in 0..comptime!(U::ACC) {
                        if comptime!(U::lane_row(e) == r % U::LANE_ROWS) {
                            let key = key + comptime!(U::step(n, e) as u32);
                            let seen = key >= row_start && key < row_end;
                            tile.insert(e, select(seen, tile.extract(e), f32::NEG_INFINITY));
                        }
                    }
                    scores[comptime!(r / U::LANE_ROWS * columns + n)] = tile;
                }
            }
        }

        #[unroll]
        for r in 0..lane_rows {
            let mut highest = maxima[r];
            #[unroll]
            for n in 0..columns {
                let tile = scores[comptime!(r / U::LANE_ROWS * columns + n)];
                #[unroll]
                for e in 0..comptime!(U::ACC) {
                    if comptime!(U::lane_row(e) == r % U::LANE_ROWS) {
                        highest = max(highest, tile.extract(e));
                    }
                }
            }
            let highest = U::row_max(highest);
            // While every logit is -inf, subtract 0 instead: (-inf) - (-inf) would be NaN.
            let base = select(highest == f32::NEG_INFINITY, 0.0f32, highest * factor);
            bases[r] = -base;
            let rescale = U::exp2(fma(maxima[r], factor, -base));
            rescales[r] = rescale;
            totals[r] *= rescale;
            maxima[r] = highest;
        }
        #[unroll]
        for i in 0..comptime!(tiles.row_tiles * columns) {
            let mut tile = scores[i];
            #[unroll]
            for e in 0..comptime!(U::ACC) {
                let r = comptime!(i / columns * U::LANE_ROWS + U::lane_row(e));
                let weight = U::exp2(fma(tile.extract(e), factor, bases[r]));
                totals[r] += weight;
                tile.insert(e, weight);
            }
            scores[i] = tile;
        }
        // Skipping this while no maximum rises costs more than it saves: 3% of a prefill on an H200, since the branch
        // parts what is scheduled together.
        #[unroll]
        for m in 0..tiles.row_tiles {
            let rescale = U::spread(&rescales, m);
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
        totals[r] = U::row_sum(totals[r]);
    }
    if comptime!(tiles.key_planes > 1) {
        merge_planes::<U>(&mut shared, lane, plane, &mut maxima, &mut totals, &mut sums, factor, tiles);
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
                let total = totals[r];
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
                            let value = maxima[r] * factor + total.ln() * LOG2_E;
                            lse[to] = select(total == 0.0f32, f32::NEG_INFINITY, value);
                        }
                    }
                    ComptimeOption::None => {}
                }
            }
        }
    }
}

/// Row `r` of the lane, within the rows of its plane.
#[cube]
fn row_of<U: MatrixUnit>(lane: usize, #[comptime] r: usize) -> usize {
    U::row(lane, comptime!(r % U::LANE_ROWS)) + comptime!(r / U::LANE_ROWS * U::ROWS)
}

/// Begins to copy the tile of keys and values from `first` on; beyond `end` there are zeros.
#[allow(clippy::too_many_arguments, reason = "two tensors and their places")]
#[cube]
fn fetch<U: MatrixUnit>(
    k: &Tensor<Quad>,
    v: &Tensor<Quad>,
    k_head: usize,
    v_head: usize,
    table: &Table,
    request: &Request,
    first: usize,
    end: usize,
    shared: &mut [Quad],
    stage: usize,
    unit: usize,
    staged: &mut Array<Quad>,
    #[comptime] tiles: Tiles,
) {
    if first < end {
        let copies = comptime!(tiles.copies(tiles.qk_quads(), U::PLANE, 1));
        let v_copies = comptime!(tiles.copies(tiles.vo_quads(), U::PLANE, U::VALUE_COPIES));
        let even = comptime!(tiles.even(tiles.qk_quads(), U::PLANE, 1));
        let v_even = comptime!(tiles.even(tiles.vo_quads(), U::PLANE, U::VALUE_COPIES));
        let same = comptime!(U::SAME_COPIES && copies == v_copies);
        let mut v_at = Array::<usize>::new(copies);
        // Where they come from first: the loads of the page table overlap.
        let mut k_at = Array::<usize>::new(copies);
        #[unroll]
        for i in 0..copies {
            let (row, quad) = U::key_copy(unit, i, tiles);
            let (page, slot) = key_place(table, request, min(first + row, end - 1));
            k_at[i] = (page * k.stride(0) + slot * k.stride(1) + k_head) / 8 + quad;
            if same {
                v_at[i] = (page * v.stride(0) + slot * v.stride(1) + v_head) / 8 + quad;
            }
        }
        #[unroll]
        for i in 0..copies {
            let (row, quad) = U::key_copy(unit, i, tiles);
            if comptime!(even) || row < tiles.cube_keys() {
                U::copy(
                    k,
                    k_at[i],
                    first + row < end,
                    shared,
                    stage,
                    row,
                    quad,
                    0usize,
                    tiles.qk_quads(),
                    staged,
                    i,
                );
            }
        }
        #[unroll]
        for i in 0..v_copies {
            let (row, quad) = U::value_copy(unit, i, tiles);
            let at = if same {
                v_at[i]
            } else {
                let (page, slot) = key_place(table, request, min(first + row, end - 1));
                (page * v.stride(0) + slot * v.stride(1) + v_head) / 8 + quad
            };
            if comptime!(v_even) || row < tiles.cube_keys() {
                U::copy(
                    v,
                    at,
                    first + row < end,
                    shared,
                    stage,
                    row,
                    quad,
                    tiles.key_quads(),
                    tiles.vo_quads(),
                    staged,
                    comptime!(copies + i),
                );
            }
        }
    }
    U::copied();
}

/// `cap * tanh(scale * logit / cap)`.
#[cube]
fn soft_capped<U: MatrixUnit>(logit: f32, scale: f32, cap: f32) -> f32 {
    // tanh x = 1 - 2 / (1 + e^2x), which ends at ±1 where the exponential ends.
    let e = U::exp2(logit * scale / cap * (2.0f32 * LOG2_E));
    cap - 2.0f32 * cap / (e + 1.0f32)
}

/// Merges what the planes with the same rows found into the first of them.
#[allow(clippy::too_many_arguments, reason = "the state of the softmax")]
#[cube]
fn merge_planes<U: MatrixUnit>(
    shared: &mut [Quad],
    lane: usize,
    plane: usize,
    maxima: &mut Array<f32>,
    totals: &mut Array<f32>,
    sums: &mut Array<Vector<f32, U::Acc>>,
    factor: f32,
    #[comptime] tiles: Tiles,
) {
    let lane_rows = comptime!(tiles.row_tiles * U::LANE_ROWS);
    let registers = comptime!(tiles.row_tiles * tiles.dims.vo.div_ceil(U::COLUMNS) * U::ACC);
    let words = shared.with_vector_size_mut::<Const<1>>();
    let per_plane = comptime!(plane_words::<U>(tiles));
    // Copies that nobody waited for must not land on what is written here.
    U::settle();
    if plane >= tiles.row_planes {
        let mine = (plane - tiles.row_planes) * per_plane + lane;
        #[unroll]
        for r in 0..lane_rows {
            words[mine + comptime!(2 * r * U::PLANE)] = Vector::new(u32::reinterpret(maxima[r]));
            words[mine + comptime!((2 * r + 1) * U::PLANE)] = Vector::new(u32::reinterpret(totals[r]));
        }
        #[unroll]
        for i in 0..comptime!(registers / U::ACC) {
            #[unroll]
            for e in 0..comptime!(U::ACC) {
                words[mine + comptime!((2 * lane_rows + i * U::ACC + e) * U::PLANE)] =
                    Vector::new(u32::reinterpret(sums[i].extract(e)));
            }
        }
    }
    sync_cube();
    if plane < tiles.row_planes {
        let mut mine_scales = Array::<f32>::new(lane_rows);
        let mut their_scales = Array::<f32>::new(lane_rows);
        #[unroll]
        for p in 1..tiles.key_planes {
            let theirs = ((plane + comptime!((p - 1) * tiles.row_planes)) * per_plane) + lane;
            #[unroll]
            for r in 0..lane_rows {
                let maximum = f32::reinterpret(words[theirs + comptime!(2 * r * U::PLANE)].extract(0usize));
                let total =
                    f32::reinterpret(words[theirs + comptime!((2 * r + 1) * U::PLANE)].extract(0usize));
                let highest = max(maxima[r], maximum);
                let base = select(highest == f32::NEG_INFINITY, 0.0f32, highest * factor);
                let a = U::exp2(fma(maxima[r], factor, -base));
                let b = U::exp2(fma(maximum, factor, -base));
                totals[r] = totals[r] * a + total * b;
                maxima[r] = highest;
                mine_scales[r] = a;
                their_scales[r] = b;
            }
            #[unroll]
            for i in 0..comptime!(registers / U::ACC) {
                let m = comptime!(i * U::ACC * tiles.row_tiles / registers);
                let a = U::spread(&mine_scales, m);
                let b = U::spread(&their_scales, m);
                let mut theirs_sum = Vector::<f32, U::Acc>::empty();
                #[unroll]
                for e in 0..comptime!(U::ACC) {
                    let word = words[theirs + comptime!((2 * lane_rows + i * U::ACC + e) * U::PLANE)];
                    theirs_sum.insert(e, f32::reinterpret(word.extract(0usize)));
                }
                sums[i] = sums[i] * a + theirs_sum * b;
            }
        }
    }
}
