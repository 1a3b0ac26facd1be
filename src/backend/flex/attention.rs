//! Attention on the CPU: tiled online softmax over contiguous, ragged or paged keys.
//!
//! The work is cut into items: a tile of query tokens of one request with all heads, or a single query token with one
//! key head. An item reads each key and value once for all of its query heads, widens them to f32 a tile at a time, and
//! owns its part of the output. Items run in parallel, in any order, with the same result.

use burn::backend::Flex;
use burn::tensor::DType;
use burn_flex::FlexTensor;
use multiversion::multiversion;
use rayon::prelude::*;

use super::float::{Float, dot, exp2_non_positive, widen_row};
use super::view::{self, Rows, dims, with_rows};
use crate::extension::{Attended, AttentionParams, Batch};
use crate::options::KvLayout;

/// Query tokens of an item: enough that widening a key costs little beside its products.
const QUERY_TILE: usize = 8;
/// Keys between two updates of a running softmax.
const KEY_TILE: usize = 16;
/// Multiplications below which waking other threads costs more than it saves (measured: benches/LOG.md).
const PARALLEL_WORK: usize = 1 << 18;

pub(super) fn attention<E: Float>(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    batch: Batch<Flex>,
    params: AttentionParams,
) -> Attended<Flex> {
    let dtype = q.dtype();
    let (q, k, v) = (with_rows(q), with_rows(k), with_rows(v));
    let [tokens, q_heads, _] = dims(&q);
    match batch {
        Batch::Single => {
            let [keys, kv_heads, _] = dims(&k);
            let (qo_indptr, kv_indptr) = ([0, tokens as i32], [0, keys as i32]);
            let keys = Contiguous { kv_indptr: &kv_indptr, k: Rows::of(&k), v: Rows::of(&v) };
            attend_all::<E, _>(&Rows::of(&q), &keys, &qo_indptr, [tokens, q_heads, kv_heads], params, dtype)
        }
        Batch::Ragged(index) => {
            let kv_heads = dims::<3>(&k)[1];
            let (qo_indptr, kv_indptr) = (view::indices(index.qo_indptr), view::indices(index.kv_indptr));
            let keys = Contiguous { kv_indptr: kv_indptr.storage(), k: Rows::of(&k), v: Rows::of(&v) };
            let extents = [tokens, q_heads, kv_heads];
            attend_all::<E, _>(&Rows::of(&q), &keys, qo_indptr.storage(), extents, params, dtype)
        }
        Batch::Paged(index) => {
            let [_, a, b, _] = dims(&k);
            let kv_heads = if index.layout == KvLayout::Nhd { b } else { a };
            let [qo_indptr, kv_indptr, indices, last_page_len] =
                [index.qo_indptr, index.kv_indptr, index.indices, index.last_page_len].map(view::indices);
            let keys = Paged {
                indptr: kv_indptr.storage(),
                indices: indices.storage(),
                last_page_len: last_page_len.storage(),
                page_size: index.page_size,
                layout: index.layout,
                k: Rows::of(&k),
                v: Rows::of(&v),
            };
            let extents = [tokens, q_heads, kv_heads];
            attend_all::<E, _>(&Rows::of(&q), &keys, qo_indptr.storage(), extents, params, dtype)
        }
    }
}

/// Where the keys and values of a request are.
trait Keys<E>: Sync {
    /// How many keys a request has.
    fn len(&self, request: usize) -> usize;
    /// Key and value `j` of a request.
    fn get(&self, request: usize, j: usize, head: usize) -> (&[E], &[E]);
    /// The head dimension of the values.
    fn value_dim(&self) -> usize;
}

struct Contiguous<'a, E> {
    kv_indptr: &'a [i32],
    k: Rows<'a, E, 2>,
    v: Rows<'a, E, 2>,
}

impl<E: Float> Keys<E> for Contiguous<'_, E> {
    fn len(&self, request: usize) -> usize {
        (self.kv_indptr[request + 1] - self.kv_indptr[request]) as usize
    }

    #[inline(always)]
    fn get(&self, request: usize, j: usize, head: usize) -> (&[E], &[E]) {
        let at = [self.kv_indptr[request] as usize + j, head];
        (self.k.row(at), self.v.row(at))
    }

    fn value_dim(&self) -> usize {
        self.v.width()
    }
}

struct Paged<'a, E> {
    indptr: &'a [i32],
    indices: &'a [i32],
    last_page_len: &'a [i32],
    page_size: usize,
    layout: KvLayout,
    k: Rows<'a, E, 3>,
    v: Rows<'a, E, 3>,
}

impl<E: Float> Keys<E> for Paged<'_, E> {
    fn len(&self, request: usize) -> usize {
        let pages = (self.indptr[request + 1] - self.indptr[request]) as usize;
        pages.saturating_sub(1) * self.page_size + self.last_page_len[request] as usize
    }

    #[inline(always)]
    fn get(&self, request: usize, j: usize, head: usize) -> (&[E], &[E]) {
        let page = self.indices[self.indptr[request] as usize + j / self.page_size] as usize;
        let at = match self.layout {
            KvLayout::Nhd => [page, j % self.page_size, head],
            KvLayout::Hnd => [page, head, j % self.page_size],
        };
        (self.k.row(at), self.v.row(at))
    }

    fn value_dim(&self) -> usize {
        self.v.width()
    }
}

/// Queries that one thread handles, and the part of the output that is theirs.
struct Item<'a, E> {
    request: usize,
    /// The first query token, in the tensor and in its request, and how many there are.
    token: usize,
    row: usize,
    tokens: usize,
    /// The first key head and how many there are.
    kv_head: usize,
    kv_heads: usize,
    /// Queries of the request.
    queries: usize,
    output: &'a mut [E],
    /// Empty unless the LSE was asked for.
    lse: &'a mut [f32],
}

fn attend_all<E: Float, K: Keys<E>>(
    q: &Rows<'_, E, 2>,
    keys: &K,
    qo_indptr: &[i32],
    [tokens, q_heads, kv_heads]: [usize; 3],
    params: AttentionParams,
    dtype: DType,
) -> Attended<Flex> {
    let value_dim = keys.value_dim();
    let mut output = vec![E::narrow(0.0); tokens * q_heads * value_dim];
    let mut lse = vec![0.0_f32; if params.return_lse { tokens * q_heads } else { 0 }];

    let mut items = Vec::new();
    let (mut output_left, mut lse_left) = (output.as_mut_slice(), lse.as_mut_slice());
    let mut work = 0_usize;
    for (request, rows) in qo_indptr.windows(2).enumerate() {
        let (first, end) = (rows[0] as usize, rows[1] as usize);
        let queries = end - first;
        work = work.saturating_add(queries * keys.len(request) * q_heads * (q.width() + value_dim));
        for token in (first..end).step_by(QUERY_TILE) {
            let tokens = QUERY_TILE.min(end - token);
            // The heads of several tokens do not lie side by side in the output, those of one do.
            let parts = if tokens == 1 { kv_heads } else { 1 };
            for part in 0..parts {
                let rows = tokens * q_heads / parts;
                let (output, rest) = output_left.split_at_mut(rows * value_dim);
                output_left = rest;
                let (lse, rest) = lse_left.split_at_mut(if params.return_lse { rows } else { 0 });
                lse_left = rest;
                items.push(Item {
                    request,
                    token,
                    row: token - first,
                    tokens,
                    kv_head: part,
                    kv_heads: kv_heads / parts,
                    queries,
                    output,
                    lse,
                });
            }
        }
    }
    let group = q_heads / kv_heads;
    if work < PARALLEL_WORK {
        items.into_iter().for_each(|item| attend(q, keys, item, group, params));
    } else {
        items.into_par_iter().for_each(|item| attend(q, keys, item, group, params));
    }

    let output = view::tensor(output, [tokens, q_heads, value_dim], dtype);
    if params.return_lse {
        Attended::WithLse(output, view::tensor(lse, [tokens, q_heads], DType::F32))
    } else {
        Attended::WithoutLse(output)
    }
}

/// The running softmax of the rows of an item, and what it needs from one tile to the next.
///
/// A row is one query head of one query token.
struct State {
    /// Queries in f32, times scale and `log2 e` unless there is a soft cap: `[rows, dim]`.
    queries: Vec<f32>,
    /// Keys, then values of a tile in f32: `[KEY_TILE, max(dim, value_dim)]`.
    tile: Vec<f32>,
    /// Logits to base 2, then their exponentials: `[rows, KEY_TILE]`.
    logits: Vec<f32>,
    /// Largest logit of each row so far, sum of exponentials relative to it, and the sum of values weighted by them.
    maximum: Vec<f32>,
    sum: Vec<f32>,
    values: Vec<f32>,
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
fn attend<E: Float, K: Keys<E>>(
    q: &Rows<'_, E, 2>,
    keys: &K,
    item: Item<'_, E>,
    group: usize,
    params: AttentionParams,
) {
    let (dim, value_dim) = (q.width(), keys.value_dim());
    let rows = item.tokens * group;
    let key_count = keys.len(item.request);
    // The last query stands at the last key.
    let position = |row: usize| (key_count + item.row + row / group) as isize - item.queries as isize;
    let visible = |row: usize| {
        let position = position(row);
        let end = if params.causal { (position + 1).max(0) as usize } else { key_count };
        let start = params
            .window_left
            .map_or(0, |window| (position - window.min(isize::MAX as usize) as isize).max(0));
        (start as usize, end.min(key_count))
    };
    // Rows come in the order of the tokens, so that their ranges only move to the right.
    let (first_key, _) = visible(0);
    let (_, last_key) = visible(rows - 1);

    let mut state = State {
        queries: vec![0.0; rows * dim],
        tile: vec![0.0; KEY_TILE * dim.max(value_dim)],
        logits: vec![0.0; rows * KEY_TILE],
        maximum: vec![0.0; rows],
        sum: vec![0.0; rows],
        values: vec![0.0; rows * value_dim],
    };
    for head in 0..item.kv_heads {
        let kv_head = item.kv_head + head;
        let q_head = |row: usize| kv_head * group + row % group;
        state.maximum.fill(f32::NEG_INFINITY);
        state.sum.fill(0.0);
        state.values.fill(0.0);
        for row in 0..rows {
            let from = q.row([item.token + row / group, q_head(row)]);
            widen_row(from, &mut state.queries[row * dim..(row + 1) * dim]);
        }
        let mut tile = first_key;
        while tile < last_key {
            let tile_end = (tile + KEY_TILE).min(last_key);
            let range = |row: usize| {
                let (start, end) = visible(row);
                (start.clamp(tile, tile_end), end.clamp(tile, tile_end))
            };
            logits_of(keys, &item, kv_head, (tile, tile_end), &mut state, dim, params, range);
            softmax_of(&mut state, value_dim, tile, range);
            values_of(keys, &item, kv_head, (tile, tile_end), &mut state, value_dim, range);
            tile = tile_end;
        }
        for row in 0..rows {
            // In the output, all heads of this item's tokens lie side by side.
            let slot = row / group * item.kv_heads * group + head * group + row % group;
            let (sum, maximum) = (state.sum[row], state.maximum[row]);
            let output = &mut item.output[slot * value_dim..(slot + 1) * value_dim];
            let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            for (output, value) in output.iter_mut().zip(&state.values[row * value_dim..]) {
                *output = E::narrow(value * scale);
            }
            if params.return_lse {
                item.lse[slot] = if sum == 0.0 { f32::NEG_INFINITY } else { maximum + sum.log2() };
            }
        }
    }
}

/// Logits, to base 2, of the visible keys of a tile.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn logits_of<E: Float, K: Keys<E>>(
    keys: &K,
    item: &Item<'_, E>,
    kv_head: usize,
    (tile, tile_end): (usize, usize),
    state: &mut State,
    dim: usize,
    params: AttentionParams,
    range: impl Fn(usize) -> (usize, usize),
) {
    use std::f32::consts::LOG2_E;
    let rows = state.maximum.len();
    for j in tile..tile_end {
        let key = &mut state.tile[..dim];
        widen_row(keys.get(item.request, j, kv_head).0, key);
        for row in 0..rows {
            let (start, end) = range(row);
            if start <= j && j < end {
                let product = params.scale * dot(&state.queries[row * dim..(row + 1) * dim], key);
                let logit = params.soft_cap.map_or(product, |cap| cap * (product / cap).tanh());
                state.logits[row * KEY_TILE + j - tile] = logit * LOG2_E;
            }
        }
    }
}

/// Turns the logits of a tile into exponentials and rescales what the row has so far.
#[inline(always)]
fn softmax_of(state: &mut State, value_dim: usize, tile: usize, range: impl Fn(usize) -> (usize, usize)) {
    for row in 0..state.maximum.len() {
        let (start, end) = range(row);
        let logits = &mut state.logits[row * KEY_TILE + start - tile..row * KEY_TILE + end - tile];
        let before = state.maximum[row];
        let maximum = logits.iter().fold(before, |maximum, &logit| maximum.max(logit));
        // No key so far, or only some at -inf.
        if logits.is_empty() || (maximum == f32::NEG_INFINITY && logits.iter().all(|logit| !logit.is_nan())) {
            logits.fill(0.0);
            continue;
        }
        let rescale = if before == maximum { 1.0 } else { exp2_non_positive(before - maximum) };
        let mut sum = 0.0;
        for logit in logits {
            *logit = exp2_non_positive(*logit - maximum);
            sum += *logit;
        }
        state.sum[row] = state.sum[row] * rescale + sum;
        state.maximum[row] = maximum;
        if rescale != 1.0 {
            state.values[row * value_dim..(row + 1) * value_dim]
                .iter_mut()
                .for_each(|value| *value *= rescale);
        }
    }
}

/// Adds the values of a tile, weighted.
#[inline(always)]
fn values_of<E: Float, K: Keys<E>>(
    keys: &K,
    item: &Item<'_, E>,
    kv_head: usize,
    (tile, tile_end): (usize, usize),
    state: &mut State,
    value_dim: usize,
    range: impl Fn(usize) -> (usize, usize),
) {
    for j in tile..tile_end {
        let value = &mut state.tile[..value_dim];
        widen_row(keys.get(item.request, j, kv_head).1, value);
        for row in 0..state.maximum.len() {
            let (start, end) = range(row);
            if start <= j && j < end {
                let weight = state.logits[row * KEY_TILE + j - tile];
                let sums = &mut state.values[row * value_dim..(row + 1) * value_dim];
                for (sum, value) in sums.iter_mut().zip(value.iter()) {
                    *sum += weight * value;
                }
            }
        }
    }
}
