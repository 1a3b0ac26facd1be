//! ```text
//! o_i = Σ_j p_ij v_j / Σ_j p_ij      p_ij = exp2(s_ij - m_i)      s_ij = log2(e) scale logit(q_i·k_j), visible j
//! ```
//! FlashAttention-2 on any [`Mma`]. The queries of the heads that share a key head are packed into rows: row
//! `r` is query `r / group` of head `r % group`. A cube owns a tile of rows. It walks over the keys that any
//! of them sees, or over a chunk of them, a tile of keys at a time:
//!
//! | step | each plane | memory |
//! |---|---|---|
//! | 1 | waits for the tile | *barrier*; the copy of the tile after next begins |
//! | 2 | `S = Q Kᵀ` for its rows and keys | reads keys |
//! | 3 | masks `S` where a range ends in the tile; row_max, `P = exp2(S - m)`, row_sum; `O *= alpha` | none |
//! | 4 | `O += P V` | reads values |
//!
//! `S`, `P` and `O` never leave the registers. With few rows (decoding) the planes take different keys of the
//! tile, and their results are merged in shared memory at the end. A cube with a chunk stores normalised
//! partial results, row_max and row_sum, which [`super::combine`] merges in the order of the keys.
//!
//! Keys beyond the last one that a row sees are never read: their places in shared memory are zero.

use cubecl::prelude::*;

use super::super::kv_table::{Table, origin};
use super::super::plan::{WorkTile, rows_of, work_at};
use super::super::variant::Variant;
use super::copy_stage::copy_stage;
use super::epilogue::store_rows;
use super::merge_planes::merge_planes;
use super::softmax::{logits, mask, online_softmax, row_of, start_softmax};
use crate::math::LOG2_E;
use crate::mma::{Mma, TileShape, Vec16, shared_vecs};

/// The run-time numbers of a problem.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct TiledParams {
    /// Query heads of a key head.
    pub group: usize,
    /// Work items of a key head.
    pub work_items: usize,
    /// Rows of partial results that the workspace has room for.
    pub partial_rows: usize,
}

/// Comptime settings besides the tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TileConfig {
    /// Tiles of requests with many rows.
    pub prefill: TileShape,
    /// Tiles of requests whose rows fit into one, if they have their own.
    pub decode: Option<TileShape>,
}

impl TileConfig {
    fn shared_vecs<M: Mma, F: Mma>(&self) -> usize {
        shared_vecs::<M>(self.prefill).max(self.decode.map_or(0, shared_vecs::<F>))
    }

    /// Largest number of rows of a request with decode tiles.
    fn decode_rows<F: Mma>(&self) -> usize {
        self.decode.map_or(0, |decode| decode.rows(F::ROWS))
    }
}

/// `q`: `[tokens, q_heads, qk]`, `k`: `[pages, slots, kv_heads, qk]`, `v`: `[pages, slots, kv_heads, vo]`,
/// all in vec16 but with strides in elements. `output`: `[tokens, q_heads, vo]`. `workspace`:
/// `[partial_rows, vo]`, then `[partial_rows, 2]` of row_max and row_sum.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn tiled<M: Mma, F: Mma, V: Variant, E: Float>(
    q: &Tensor<Vec16>,
    k: &Tensor<Vec16>,
    v: &Tensor<Vec16>,
    output: &mut [Vector<E, M::Run>],
    lse: &mut ComptimeOption<Box<[f32]>>,
    workspace: &mut ComptimeOption<Box<[Vector<f32, Const<2>>]>>,
    work_items: &[i32],
    table: &Table,
    args: &V::Args,
    params: &TiledParams,
    #[comptime] config: TileConfig,
    #[define(E)] _dtype: ElemType,
) {
    // The heads of a work item run side by side: their keys are neighbours in memory, and on MI300X a head
    // stays on an XCD if there are 8.
    let kv_heads = k.shape(2);
    let index = CUBE_POS / kv_heads;
    if index >= params.work_items {
        terminate!();
    }
    let work = work_at(work_items, index);
    let rows = work.request.qo_len * params.group;
    if work.first_row >= rows {
        terminate!();
    }
    let head = CUBE_POS % kv_heads;
    let mut shared = Shared::<[Vec16]>::new_aligned_slice(comptime!(config.shared_vecs::<M, F>()), 128usize);
    let mut decode = false;
    if comptime!(config.decode.is_some()) {
        decode = rows <= comptime!(config.decode_rows::<F>());
    }
    if decode {
        if comptime!(config.decode.is_some()) {
            let output = output.with_vector_size_mut::<F::Run>();
            let tiles = comptime!(config.decode.unwrap_or(config.prefill));
            attend::<F, V, E>(
                q,
                k,
                v,
                output,
                lse,
                workspace,
                &work,
                head,
                table,
                args,
                params,
                &mut shared,
                tiles,
            );
        }
    } else {
        attend::<M, V, E>(
            q,
            k,
            v,
            output,
            lse,
            workspace,
            &work,
            head,
            table,
            args,
            params,
            &mut shared,
            comptime!(config.prefill),
        );
    }
}

/// Computes one work item, with tiles of one shape.
#[allow(clippy::too_many_arguments, reason = "the buffers of the kernel")]
#[cube]
fn attend<U: Mma, V: Variant, E: Float>(
    q: &Tensor<Vec16>,
    k: &Tensor<Vec16>,
    v: &Tensor<Vec16>,
    output: &mut [Vector<E, U::Run>],
    lse: &mut ComptimeOption<Box<[f32]>>,
    workspace: &mut ComptimeOption<Box<[Vector<f32, Const<2>>]>>,
    work: &WorkTile,
    kv_head: usize,
    table: &Table,
    args: &V::Args,
    params: &TiledParams,
    shared: &mut [Vec16],
    #[comptime] tiles: TileShape,
) {
    let rows = comptime!(tiles.rows(U::ROWS));
    let lane = UNIT_POS_X as usize;
    let plane = UNIT_POS_Y as usize;
    let unit = UNIT_POS as usize;
    let group = params.group;
    let request = &work.request;
    let owned = rows_of(work, kv_head, group);

    // Queries of the first and the last row, and the keys that all rows see: from `unmasked_start` to
    // `unmasked_end`.
    let first_query = owned.first / group;
    let last_query = (min(owned.first + rows, owned.end) - 1) / group;
    let (_, unmasked_end) = V::keys(args, request, first_query);
    let (unmasked_start, _) = V::keys(args, request, last_query);
    let (start, end) = (work.start, work.end);
    let unmasked_end = min(unmasked_end, end);

    let mut staged = Array::<Vec16>::new(comptime!(U::staged_vecs(tiles)));
    let heads = kv_head * k.stride(2) + origin(table, request, k.stride(1));
    let v_heads = kv_head * v.stride(2) + origin(table, request, v.stride(1));

    U::fetch_queries(q, &owned, shared, unit, tiles);
    let cube_keys = comptime!(tiles.cube_keys());
    let stage_vecs = comptime!(tiles.stage_vecs());
    let ahead = comptime!(if tiles.stages > 1 { tiles.stages - 1 } else { 1 });
    #[unroll]
    for i in 0..ahead {
        copy_stage::<U>(
            k,
            v,
            heads,
            v_heads,
            table,
            request,
            start + comptime!(i * cube_keys),
            end,
            shared,
            comptime!(i * stage_vecs).runtime(),
            unit,
            &mut staged,
            tiles,
        );
    }
    let queries = U::load_queries(q, &owned, &*shared, lane, plane, tiles);

    let columns = comptime!(tiles.keys / U::COLUMNS);
    let elements = comptime!(tiles.dims.vo.div_ceil(U::COLUMNS));
    let lane_rows = comptime!(tiles.q_tiles * U::LANE_ROWS);
    let mut scores = Array::<Vector<f32, U::Acc>>::new(comptime!(tiles.q_tiles * columns));
    let mut o = Array::<Vector<f32, U::Acc>>::new(comptime!(tiles.q_tiles * elements));
    #[unroll]
    for i in 0..comptime!(tiles.q_tiles * elements) {
        o[i] = Vector::new(0.0f32);
    }
    let first_row = plane % tiles.q_planes * comptime!(tiles.q_tiles * U::ROWS);
    let first = work.is_first_chunk() && plane < tiles.q_planes;
    let mut softmax = start_softmax::<U, V>(args, &owned, first_row, first, tiles);
    let scale_log2 = V::scale(args) * LOG2_E;
    // The lane's first key in a tile.
    let first_key = plane / tiles.q_planes * tiles.keys + U::column(lane);

    let mut stage = 0usize;
    let mut at = start;
    while at < end {
        U::wait_stage(shared, stage, unit, &mut staged, end - at, tiles);
        let mut next = stage + comptime!(ahead * stage_vecs);
        if comptime!(tiles.stages == 1) {
            next = 0usize;
        } else if next >= comptime!(tiles.stages * stage_vecs) {
            next -= comptime!(tiles.stages * stage_vecs);
        }
        copy_stage::<U>(
            k,
            v,
            heads,
            v_heads,
            table,
            request,
            at + comptime!(ahead * cube_keys),
            end,
            shared,
            next,
            unit,
            &mut staged,
            tiles,
        );

        U::qk::<E>(&queries, &staged, &*shared, stage, lane, plane, &mut scores, tiles);

        let key = (at + first_key) as u32;
        logits::<U, V>(&mut scores, args, &owned, first_row, key, tiles);
        if at < unmasked_start || at + cube_keys > unmasked_end {
            #[unroll]
            for r in 0..lane_rows {
                let query = owned.at(first_row + row_of::<U>(lane, r)).query;
                let (start, end_of_row) = V::keys(args, request, query);
                mask::<U>(&mut scores, r, key, start as u32, min(end_of_row, end) as u32, tiles);
            }
        }
        online_softmax::<U>(&mut scores, &mut softmax, scale_log2, tiles);
        // A branch around this while no row_max rises costs more than it saves: 3% of a prefill on an H200,
        // since it splits the instruction schedule.
        #[unroll]
        for m in 0..tiles.q_tiles {
            let alpha = U::spread(&softmax.alpha, m);
            #[unroll]
            for i in 0..elements {
                o[comptime!(m * elements + i)] *= alpha;
            }
        }

        U::pv::<E>(&scores, &*shared, stage, lane, plane, &mut o, tiles);

        stage += stage_vecs;
        if stage == comptime!(tiles.stages * stage_vecs) {
            stage = 0usize;
        }
        at += cube_keys;
    }
    #[unroll]
    for r in 0..lane_rows {
        softmax.row_sum[r] = U::row_sum(softmax.row_sum[r]);
    }
    if comptime!(tiles.kv_planes > 1) {
        merge_planes::<U>(shared, lane, plane, &mut softmax, &mut o, scale_log2, tiles);
    }

    store_rows::<U, V, E>(
        output,
        lse,
        workspace,
        args,
        work,
        &owned,
        &softmax,
        &o,
        scale_log2,
        q.shape(1),
        params.partial_rows,
        lane,
        plane,
        tiles,
    );
}
