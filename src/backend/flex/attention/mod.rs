//! Attention: the part of the problem of each task, and its place in the tensors.
//!
//! A task is one request, one key-value head and a few queries of it: all query heads that share the
//! key-value head are computed together, so that each key and value is read once for all of them. A row is
//! one query of one such head. Few rows go to [`few`], which is made for reading the cache fast, more rows to
//! [`many`], which is made for arithmetic.

mod few;
mod many;
mod problem;

use burn::backend::Flex;
use burn::tensor::DType;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use self::problem::{Cache, Index, Mask, Problem, Queries, Scales, Work};
use super::{
    codes::{E4m3, E4m3Fnuz, E5m2, Int8},
    float::{Float, Widen},
    view::{Rows, dims, indices, tensor, wide, widened, with_rows},
};
use crate::extension::{
    Attended, Batch, KeysValues, KvTensors, MaybeMask, MaybeScales, PagesLayout, VariantTensors,
};
use crate::types::{AttentionParams, Code8, Fp8, HostInputs, KvLayout};

/// Rows that a task with several queries aims at.
const ROWS: usize = 64;
/// Multiplications below which waking other threads costs more than it saves: an estimate, not measured yet.
const PARALLEL: usize = 1 << 19;

/// Codes are multiplied with queries in f32, so that there is not a version for each type of both.
pub(super) fn attention<E: Float>(
    q: FlexTensor,
    kv: KeysValues<Flex>,
    batch: Batch<Flex>,
    params: AttentionParams,
) -> Attended<Flex> {
    let KeysValues { tensors, scales, format } = kv;
    let (k, v, of_tokens) = match tensors {
        KvTensors::Floats(k, v) | KvTensors::Codes(k, v) => (k, v, None),
        KvTensors::Scaled(k, v, k_scales, v_scales) => (k, v, Some([k_scales, v_scales].map(with_rows))),
    };
    let (k, v) = (with_rows(k), with_rows(v));
    let scales = match scales {
        MaybeScales::None => [Vec::new(), Vec::new()],
        MaybeScales::Some(k, v) => [k, v].map(widened::<f32>),
    };
    let Some(format) = format else {
        return attend::<E, E>([&with_rows(q), &k, &v], Scales::default(), batch, params);
    };
    let (dtype, q) = (q.dtype(), wide::<E>(q));
    let (tensors, scales) =
        ([&q, &k, &v], Scales { k: &scales[0], v: &scales[1], of_tokens: of_tokens.as_ref() });
    let attended = match format {
        Code8::Fp8(Fp8::E4m3) => attend::<f32, E4m3>(tensors, scales, batch, params),
        Code8::Fp8(Fp8::E4m3Fnuz) => attend::<f32, E4m3Fnuz>(tensors, scales, batch, params),
        Code8::Fp8(Fp8::E5m2) => attend::<f32, E5m2>(tensors, scales, batch, params),
        Code8::Int8 => attend::<f32, Int8>(tensors, scales, batch, params),
    };
    let rounded = |output: FlexTensor| {
        let numbers = output.storage::<f32>().iter().map(|&x| E::narrow(x)).collect();
        tensor::<E, 3>(numbers, dims(&output), dtype)
    };
    match attended {
        Attended::WithoutLse(output) => Attended::WithoutLse(rounded(output)),
        Attended::WithLse(output, lse) => Attended::WithLse(rounded(output), lse),
    }
}

fn attend<E: Float, C: Widen>(
    [q, k, v]: [&FlexTensor; 3],
    scales: Scales<'_>,
    batch: Batch<Flex>,
    params: AttentionParams,
) -> Attended<Flex> {
    let Batch { index, inputs, mask, layout, .. } = batch;
    let VariantTensors { sinks, slopes, floats, ints } = inputs;
    let [sinks, slopes, floats] =
        [sinks, slopes, floats].map(|tensor| tensor.into_option().map(|tensor| tensor.to_contiguous()));
    let ints = ints.into_option().map(indices);
    let [sinks, slopes, floats] =
        [&sinks, &slopes, &floats].map(|tensor| tensor.as_ref().map_or(&[][..], |tensor| tensor.storage()));
    let ints = ints.as_ref().map_or(&[][..], |ints| ints.storage());
    let inputs = HostInputs { sinks, slopes, floats, ints };
    let mask = match mask {
        MaybeMask::None => None,
        MaybeMask::Some(bytes, _, first_bits) => Some((bytes.to_contiguous(), indices(first_bits))),
    };
    let mask = mask
        .as_ref()
        .map(|(bytes, first_bits)| Mask { bytes: bytes.storage(), first_bits: first_bits.storage() });
    let index = indices(index);
    let index: &[i32] = index.storage();
    let [qo_indptr, kv_indptr] = [layout.qo_indptr, layout.kv_indptr].map(|list| &index[list]);
    let (index, pages) = match layout.pages {
        None => (Index::Ragged { qo_indptr, kv_indptr }, (None, 0)),
        Some(PagesLayout { last_page_len, indices, page_size, layout }) => {
            let (pages, last) = (&index[indices], &index[last_page_len]);
            let has_axis = k.layout().num_dims() == 4;
            (
                Index::Paged { qo_indptr, kv_indptr, pages, last, page_size },
                (has_axis.then_some(layout), page_size),
            )
        }
    };
    run::<E, C>([q, k, v], (scales, inputs, mask), index, pages, params)
}

fn run<E: Float, C: Widen>(
    [q, k, v]: [&FlexTensor; 3],
    (scales, inputs, mask): (Scales<'_>, HostInputs<'_>, Option<Mask<'_>>),
    index: Index<'_>,
    pages: (Option<KvLayout>, usize),
    params: AttentionParams,
) -> Attended<Flex> {
    let [tokens, q_heads, head_dim] = dims(q);
    let kv_heads = match pages.0 {
        None | Some(KvLayout::Hnd) => k.layout().shape()[1],
        Some(KvLayout::Nhd) => k.layout().shape()[2],
    };
    let head_dim_vo = v.layout().shape()[v.layout().num_dims() - 1];
    let problem = Problem::<E, C> {
        q: Rows::of(q),
        k: Cache::of(k, pages),
        v: Cache::of(v, pages),
        token_scales: scales.of_tokens.map(|scales| scales.each_ref().map(|scales| Cache::of(scales, pages))),
        scales,
        index,
        variant: &*params.variant,
        softmax: params.variant.softmax(),
        inputs,
        mask,
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

impl<E: Float, C: Widen> Problem<'_, E, C> {
    /// Computes the queries of `work`: `output[i]` and `lse[i]` belong to its query `i` and hold its heads.
    fn attend(&self, work: &Work, output: &mut [&mut [E]], lse: &mut [&mut [f32]]) {
        if (work.queries.end - work.queries.start) * self.group <= few::ROWS {
            few::attend(self, work, output, lse);
        } else {
            many::attend(self, work, output, lse);
        }
    }

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
