//! Attention: the part of the problem of each task, and its place in the tensors.
//!
//! A task is one request, one key-value head and a few queries of it: all query heads that share the
//! key-value head are computed together, so that each key and value is read once for all of them. A row is
//! one query of one such head. Few rows go to [`few`], which is made for reading the cache fast, more rows to
//! [`many`], which is made for arithmetic.

mod few;
mod many;

use std::ops::Range;

use burn::backend::Flex;
use burn::tensor::DType;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{
    float::Float,
    simd,
    view::{Rows, dims, indices, tensor, with_rows},
};
use crate::attention::{AttentionVariant, Request, Row, visible};
use crate::extension::{Attended, AttentionParams, Batch, MaybeFloats, MaybeInts, PagesLayout};
use crate::options::KvLayout;

/// Rows that a task with several queries aims at.
const ROWS: usize = 64;
/// Multiplications below which waking other threads costs more than it saves: an estimate, not measured yet.
const PARALLEL: usize = 1 << 19;

/// Keys or values.
#[derive(Clone, Copy)]
struct Cache<'a, E> {
    data: &'a [E],
    start: isize,
    token: isize,
    head: isize,
    page: isize,
}

impl<'a, E: Float> Cache<'a, E> {
    fn of(tensor: &'a FlexTensor, layout: Option<KvLayout>) -> Self {
        let strides = tensor.layout().strides();
        let (page, token, head) = match layout {
            None => (0, strides[0], strides[1]),
            Some(KvLayout::Nhd) => (strides[0], strides[1], strides[2]),
            Some(KvLayout::Hnd) => (strides[0], strides[2], strides[1]),
        };
        Self { data: tensor.storage(), start: tensor.layout().start_offset() as isize, token, head, page }
    }

    #[inline(always)]
    fn row(&self, at: usize, len: usize) -> &'a [E] {
        &self.data[at..][..len]
    }

    #[inline(always)]
    fn fetch(&self, at: usize, len: usize) {
        simd::fetch(self.row(at, len));
    }
}

/// The places of each request's tokens.
#[derive(Clone, Copy)]
enum Index<'a> {
    Ragged { qo_indptr: &'a [i32], kv_indptr: &'a [i32] },
    Paged { qo_indptr: &'a [i32], kv_indptr: &'a [i32], pages: &'a [i32], last: &'a [i32], page_size: usize },
}

/// The place of one request's tokens.
#[derive(Clone, Copy)]
struct Tokens {
    /// Its number in the batch.
    index: usize,
    /// Its first query token.
    token: usize,
    qo_len: usize,
    /// Its first key, or where its pages begin in the list of pages.
    first: usize,
    kv_len: usize,
}

impl Tokens {
    fn shape(&self) -> Request {
        Request { index: self.index, qo_len: self.qo_len, kv_len: self.kv_len }
    }
}

impl Index<'_> {
    fn requests(&self) -> usize {
        match self {
            Self::Ragged { qo_indptr, .. } | Self::Paged { qo_indptr, .. } => {
                qo_indptr.len().saturating_sub(1)
            }
        }
    }

    fn request(&self, r: usize) -> Tokens {
        let (qo_indptr, kv_indptr) = match self {
            Self::Ragged { qo_indptr, kv_indptr } | Self::Paged { qo_indptr, kv_indptr, .. } => {
                (qo_indptr, kv_indptr)
            }
        };
        let [token, first] = [qo_indptr, kv_indptr].map(|rows| rows[r] as usize);
        let (qo_len, len) = (qo_indptr[r + 1] as usize - token, kv_indptr[r + 1] as usize - first);
        let kv_len = match self {
            Self::Paged { last, page_size, .. } if len > 0 => (len - 1) * page_size + last[r] as usize,
            _ => len,
        };
        Tokens { index: r, token, qo_len, first, kv_len }
    }

    /// The request that owns a query token, if one does.
    fn owner(&self, token: usize) -> Option<Tokens> {
        let (mut low, mut high) = (0, self.requests());
        while low < high {
            let middle = (low + high) / 2;
            if self.request(middle).token <= token { low = middle + 1 } else { high = middle }
        }
        let request = self.request(low.checked_sub(1)?);
        (token < request.token + request.qo_len).then_some(request)
    }
}

/// An attention problem.
struct Problem<'a, E> {
    q: Rows<'a, E, 2>,
    k: Cache<'a, E>,
    v: Cache<'a, E>,
    index: Index<'a>,
    variant: &'a dyn AttentionVariant,
    floats: &'a [f32],
    ints: &'a [i32],
    kv_heads: usize,
    /// Query heads that share a key-value head.
    group: usize,
    head_dim: usize,
    head_dim_vo: usize,
}

/// Some consecutive queries of a request, for the query heads that share one key-value head.
#[derive(Clone, Copy)]
struct Work {
    request: Tokens,
    kv_head: usize,
    queries: Queries,
}

/// Some consecutive queries of a request.
#[derive(Clone, Copy)]
struct Queries {
    start: usize,
    end: usize,
}

impl<E: Float> Problem<'_, E> {
    /// The keys that query `i` of a request sees.
    fn seen(&self, request: &Tokens, i: usize) -> Range<usize> {
        visible(self.variant, &request.shape(), i)
    }

    /// The keys that any of these queries sees. Both ends only ever grow from query to query.
    fn seen_by_any(&self, work: &Work) -> Range<usize> {
        let Queries { start, end } = work.queries;
        let (first, last) = (self.seen(&work.request, start), self.seen(&work.request, end - 1));
        first.start.min(last.end)..last.end
    }

    /// A row of `work`, as the variant is told.
    fn row(&self, work: &Work, row: usize) -> Row<'_> {
        Row {
            request: work.request.shape(),
            query: work.queries.start + row / self.group,
            q_head: work.kv_head * self.group + row % self.group,
            kv_head: work.kv_head,
            floats: self.floats,
            ints: self.ints,
        }
    }

    /// Maximum of the scaled logits and sum of exponentials of a row before its first key.
    fn start(&self, work: &Work, row: usize) -> (f32, f32) {
        let (max, sum) = self.variant.start(&self.row(work, row));
        // A scale may be 0, and -inf times it is NaN.
        let max = if max == f64::NEG_INFINITY { max } else { max * f64::from(self.variant.scale()) };
        (max as f32, sum as f32)
    }

    fn query(&self, work: &Work, row: usize) -> &[E] {
        let token = work.request.token + work.queries.start + row / self.group;
        self.q.row([token, work.kv_head * self.group + row % self.group])
    }

    /// Writes the offsets of keys `from..` of the request in the cache.
    #[inline(always)]
    fn locate(&self, cache: &Cache<'_, E>, work: &Work, from: usize, places: &mut [usize]) {
        let base = cache.start + work.kv_head as isize * cache.head;
        match self.index {
            Index::Paged { pages, page_size, .. } => {
                let mut page = work.request.first + from / page_size;
                let mut offset = from % page_size;
                let mut at = 0;
                while at < places.len() {
                    let here = (page_size - offset).min(places.len() - at);
                    let mut place = base + pages[page] as isize * cache.page + offset as isize * cache.token;
                    for slot in &mut places[at..at + here] {
                        *slot = place as usize;
                        place += cache.token;
                    }
                    (at, page, offset) = (at + here, page + 1, 0);
                }
            }
            _ => {
                let mut place = base + (work.request.first + from) as isize * cache.token;
                for slot in places {
                    *slot = place as usize;
                    place += cache.token;
                }
            }
        }
    }

    /// Computes the queries of `work`: `output[i]` and `lse[i]` belong to its query `i` and hold its heads.
    fn attend(&self, work: &Work, output: &mut [&mut [E]], lse: &mut [&mut [f32]]) {
        if (work.queries.end - work.queries.start) * self.group <= few::ROWS {
            few::attend(self, work, output, lse);
        } else {
            many::attend(self, work, output, lse);
        }
    }
}

/// The factor on the output and the LSE of one query, from its row_sum and row_max.
///
/// The sum is 0 only if the query has seen no key, and NaN if it has seen a NaN.
#[inline(always)]
fn finish(sum: f32, max: f32) -> (f32, f32) {
    if sum == 0.0 {
        (0.0, f32::NEG_INFINITY)
    } else {
        (1.0 / sum, max * std::f32::consts::LOG2_E + sum.log2())
    }
}

pub(super) fn attention<E: Float>(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    batch: Batch<Flex>,
    params: AttentionParams,
) -> Attended<Flex> {
    let (q, k, v) = (with_rows(q), with_rows(k), with_rows(v));
    let Batch { index, floats, ints, layout, .. } = batch;
    let floats = match floats {
        MaybeFloats::None => None,
        MaybeFloats::Some(floats) => Some(floats.to_contiguous()),
    };
    let ints = match ints {
        MaybeInts::None => None,
        MaybeInts::Some(ints) => Some(indices(ints)),
    };
    let floats: &[f32] = floats.as_ref().map_or(&[], |floats| floats.storage());
    let ints: &[i32] = ints.as_ref().map_or(&[], |ints| ints.storage());
    let index = indices(index);
    let index: &[i32] = index.storage();
    let [qo_indptr, kv_indptr] = [layout.qo_indptr, layout.kv_indptr].map(|list| &index[list]);
    let (index, layout) = match layout.pages {
        None => (Index::Ragged { qo_indptr, kv_indptr }, None),
        Some(PagesLayout { last_page_len, indices, page_size, layout }) => {
            let (pages, last) = (&index[indices], &index[last_page_len]);
            (Index::Paged { qo_indptr, kv_indptr, pages, last, page_size }, Some(layout))
        }
    };
    run::<E>([&q, &k, &v], (floats, ints), index, layout, params)
}

fn run<E: Float>(
    [q, k, v]: [&FlexTensor; 3],
    (floats, ints): (&[f32], &[i32]),
    index: Index<'_>,
    layout: Option<KvLayout>,
    params: AttentionParams,
) -> Attended<Flex> {
    let [tokens, q_heads, head_dim] = dims(q);
    let kv_heads = match layout {
        None | Some(KvLayout::Hnd) => k.layout().shape()[1],
        Some(KvLayout::Nhd) => k.layout().shape()[2],
    };
    let head_dim_vo = v.layout().shape()[v.layout().num_dims() - 1];
    let problem = Problem::<E> {
        q: Rows::of(q),
        k: Cache::of(k, layout),
        v: Cache::of(v, layout),
        index,
        variant: &*params.variant,
        floats,
        ints,
        kv_heads,
        group: q_heads / kv_heads.max(1),
        head_dim,
        head_dim_vo,
    };
    let mut output = vec![E::narrow(0.0); tokens * q_heads * head_dim_vo];
    let mut lse = vec![f32::NEG_INFINITY; if params.return_lse { tokens * q_heads } else { 0 }];
    if !output.is_empty() {
        problem.compute(&mut output, &mut lse);
    }
    let output = tensor(output, [tokens, q_heads, head_dim_vo], q.dtype());
    if params.return_lse {
        Attended::WithLse(output, tensor(lse, [tokens, q_heads], DType::F32))
    } else {
        Attended::WithoutLse(output)
    }
}

/// A task with the pieces of the output it writes.
struct Task<'a, E> {
    work: Work,
    output: Vec<&'a mut [E]>,
    lse: Vec<&'a mut [f32]>,
}

impl<E: Float> Problem<'_, E> {
    fn compute(&self, output: &mut [E], lse: &mut [f32]) {
        let requests = || (0..self.index.requests()).map(|r| self.index.request(r));
        let pairs: usize = requests().map(|request| request.qo_len.saturating_mul(request.kv_len)).sum();
        let heads = self.kv_heads * self.group;
        let parallel = pairs.saturating_mul(heads * (self.head_dim + self.head_dim_vo)) >= PARALLEL;
        if requests().all(|request| request.qo_len <= 1) {
            self.decode(output, lse, parallel);
            return;
        }
        let tasks = self.tasks(output, lse);
        let run = |mut task: Task<'_, E>| self.attend(&task.work, &mut task.output, &mut task.lse);
        if parallel {
            tasks.into_par_iter().with_max_len(1).for_each(run);
        } else {
            tasks.into_iter().for_each(run);
        }
    }

    /// One query per request: a task writes one piece of the output, so the tasks need no list.
    fn decode(&self, output: &mut [E], lse: &mut [f32], parallel: bool) {
        let run = |at: usize, output: &mut [E], lse: &mut [f32]| {
            if let Some(request) = self.index.owner(at / self.kv_heads) {
                let work =
                    Work { request, kv_head: at % self.kv_heads, queries: Queries { start: 0, end: 1 } };
                self.attend(&work, &mut [output], &mut [lse]);
            }
        };
        let piece = self.group * self.head_dim_vo;
        match (parallel, lse.is_empty()) {
            (true, true) => {
                output.par_chunks_mut(piece).enumerate().for_each(|(at, output)| run(at, output, &mut []));
            }
            (true, false) => output
                .par_chunks_mut(piece)
                .zip(lse.par_chunks_mut(self.group))
                .enumerate()
                .for_each(|(at, (output, lse))| run(at, output, lse)),
            (false, _) => {
                let mut lse = lse.chunks_mut(self.group);
                for (at, output) in output.chunks_mut(piece).enumerate() {
                    run(at, output, lse.next().unwrap_or_default());
                }
            }
        }
    }

    fn tasks<'a>(&self, output: &'a mut [E], lse: &'a mut [f32]) -> Vec<Task<'a, E>> {
        let mut outputs = output.chunks_mut(self.group * self.head_dim_vo);
        let mut lses = lse.chunks_mut(self.group);
        let mut tasks = Vec::new();
        let mut token = 0;
        let per_task = (ROWS / self.group).max(1);
        for request in (0..self.index.requests()).map(|r| self.index.request(r)) {
            // Tokens of no request keep an output of 0.
            let skipped = request.token.saturating_sub(token) * self.kv_heads;
            if skipped > 0 {
                outputs.nth(skipped - 1);
                lses.nth(skipped - 1);
            }
            for start in (0..request.qo_len).step_by(per_task) {
                let queries = Queries { start, end: (start + per_task).min(request.qo_len) };
                let count = queries.end - queries.start;
                let from = tasks.len();
                tasks.extend((0..self.kv_heads).map(|kv_head| Task {
                    work: Work { request, kv_head, queries },
                    output: Vec::with_capacity(count),
                    lse: Vec::with_capacity(count),
                }));
                for _ in 0..count {
                    for task in &mut tasks[from..] {
                        task.output.extend(outputs.next());
                        task.lse.extend(lses.next());
                    }
                }
            }
            token = request.token + request.qo_len;
        }
        tasks
    }
}

#[cfg(test)]
mod tests;
