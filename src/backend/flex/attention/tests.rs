//! Against a plain softmax in f64, in every layout and type, with NaN wherever nothing may be read.

use burn::tensor::{Bytes, Shape, bf16, f16};
use burn_flex::Layout;

use super::super::float::Float;
use super::*;
use crate::extension::{BatchLayout, Launch, MaybeFloats, MaybeInts, MaybeMask};
use crate::types::{SharedVariant, StandardAttention};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end
    }
    /// Roughly normal.
    fn normal(&mut self) -> f32 {
        (0..6).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).sum::<f32>() * 1.4
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Ragged,
    Paged(KvLayout),
}

/// One random problem. Strides: rows of `q`, `k` and `v` are cut out of wider rows that hold NaN beside them.
struct Case {
    kind: Kind,
    qo_lens: Vec<usize>,
    kv_lens: Vec<usize>,
    kv_heads: usize,
    group: usize,
    dim: usize,
    dim_vo: usize,
    page_size: usize,
    variant: StandardAttention,
}

fn ints(values: Vec<usize>) -> FlexTensor {
    let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
    let layout = Layout::contiguous(Shape::from(vec![values.len()]));
    FlexTensor::new(Bytes::from_elems(values), layout, DType::I32)
}

fn indptr(lens: &[usize]) -> Vec<usize> {
    let mut sum = 0;
    std::iter::once(0).chain(lens.iter().map(|len| (sum += len, sum).1)).collect()
}

/// A tensor with `margin` elements that are NaN after each row of the last axis.
fn with_margin<E: Float>(values: &[f32], shape: &[usize], margin: usize) -> FlexTensor {
    let width = shape[shape.len() - 1];
    let mut data = Vec::new();
    for row in values.chunks_exact(width) {
        data.extend(row.iter().map(|value| E::narrow(*value)));
        data.extend(vec![E::narrow(f32::NAN); margin]);
    }
    let mut strides = vec![1; shape.len()];
    let mut stride = (width + margin) as isize;
    for axis in (0..shape.len() - 1).rev() {
        strides[axis] = stride;
        stride *= shape[axis] as isize;
    }
    FlexTensor::new(Bytes::from_elems(data), Layout::new(Shape::from(shape.to_vec()), strides, 0), E::dtype())
}

fn floats(tensor: &FlexTensor) -> Vec<f32> {
    match tensor.dtype() {
        DType::F32 => tensor.storage::<f32>().to_vec(),
        DType::F16 => tensor.storage::<f16>().iter().map(|x| x.to_f32()).collect(),
        _ => tensor.storage::<bf16>().iter().map(|x| x.to_f32()).collect(),
    }
}

/// The lists in one tensor; of a paged batch also pages, lengths of last pages, page size and layout.
fn batch(
    qo_indptr: &[usize],
    kv_indptr: &[usize],
    pages: Option<(&[usize], &[usize], usize, KvLayout)>,
) -> Batch<Flex> {
    let mut index = vec![];
    let mut add = |list: &[usize]| {
        let first = index.len();
        index.extend_from_slice(list);
        first..index.len()
    };
    let [qo_indptr, kv_indptr] = [qo_indptr, kv_indptr].map(&mut add);
    let pages = pages.map(|(indices, last, page_size, layout)| {
        let [indices, last_page_len] = [indices, last].map(&mut add);
        PagesLayout { last_page_len, indices, page_size, layout }
    });
    let layout = BatchLayout { qo_indptr, kv_indptr, pages, ranges: 0..0, launch: Launch::default() };
    Batch {
        index: ints(index),
        workspace: MaybeFloats::None,
        inputs: VariantTensors {
            sinks: MaybeFloats::None,
            slopes: MaybeFloats::None,
            floats: MaybeFloats::None,
            ints: MaybeInts::None,
        },
        mask: MaybeMask::None,
        layout,
    }
}

impl Case {
    fn params(&self) -> AttentionParams {
        AttentionParams { variant: SharedVariant::new(self.variant.clone()), return_lse: true }
    }

    fn check<E: Float>(&self, random: &mut Random) {
        let (tokens, keys) = (self.qo_lens.iter().sum::<usize>(), self.kv_lens.iter().sum::<usize>());
        let q_heads = self.kv_heads * self.group;
        let mut values =
            |len: usize| -> Vec<f32> { (0..len).map(|_| E::narrow(random.normal() * 1.5).widen()).collect() };
        let q = values(tokens * q_heads * self.dim);
        let k = values(keys * self.kv_heads * self.dim);
        let v = values(keys * self.kv_heads * self.dim_vo);

        let margin = random.below(3);
        let q_tensor = with_margin::<E>(&q, &[tokens, q_heads, self.dim], margin);
        let (batch, k_tensor, v_tensor) = match self.kind {
            Kind::Ragged => {
                let k = with_margin::<E>(&k, &[keys, self.kv_heads, self.dim], margin);
                let v = with_margin::<E>(&v, &[keys, self.kv_heads, self.dim_vo], 2 * margin);
                (batch(&indptr(&self.qo_lens), &indptr(&self.kv_lens), None), k, v)
            }
            Kind::Paged(layout) => {
                let (batch, places, pages) = self.pages(layout, random);
                let pool = |values: &[f32], dim: usize| {
                    let mut pool = vec![f32::NAN; pages * self.page_size * self.kv_heads * dim];
                    for (row, values) in values.chunks_exact(dim).enumerate() {
                        let (page, offset) = places[row / self.kv_heads];
                        let head = row % self.kv_heads;
                        let at = match layout {
                            KvLayout::Nhd => (page * self.page_size + offset) * self.kv_heads + head,
                            KvLayout::Hnd => (page * self.kv_heads + head) * self.page_size + offset,
                        };
                        pool[at * dim..][..dim].copy_from_slice(values);
                    }
                    let [a, b] = match layout {
                        KvLayout::Nhd => [self.page_size, self.kv_heads],
                        KvLayout::Hnd => [self.kv_heads, self.page_size],
                    };
                    with_margin::<E>(&pool, &[pages, a, b, dim], 0)
                };
                (batch, pool(&k, self.dim), pool(&v, self.dim_vo))
            }
        };
        let Attended::WithLse(output, lse) =
            attention::<E>(q_tensor, KeysValues::floats(k_tensor, v_tensor), batch, self.params())
        else {
            unreachable!("the LSE was asked for")
        };
        let (output, lse) = (floats(&output), floats(&lse));
        assert_eq!(output.len(), tokens * q_heads * self.dim_vo);

        let epsilon = match E::dtype() {
            DType::F32 => 1e-6,
            DType::F16 => 4.9e-4,
            _ => 3.9e-3,
        };
        let (mut token, mut first) = (0, 0);
        for (qo_len, kv_len) in self.qo_lens.iter().zip(&self.kv_lens) {
            for i in 0..*qo_len {
                for head in 0..q_heads {
                    let row = (token + i) * q_heads + head;
                    let query = &q[row * self.dim..][..self.dim];
                    let (want, want_lse) =
                        self.oracle(query, &k, &v, first, *kv_len, *qo_len, i, head / self.group);
                    let got = &output[row * self.dim_vo..][..self.dim_vo];
                    let lse_error = (f64::from(lse[row]) - want_lse).abs();
                    assert!(
                        lse_error < 2e-5 * (1.0 + want_lse.abs()) || f64::from(lse[row]) == want_lse,
                        "lse {} {want_lse}",
                        lse[row]
                    );
                    for (got, want) in got.iter().zip(want) {
                        let bound = epsilon * want.abs() + 2e-5;
                        assert!((f64::from(*got) - want).abs() <= bound, "row {row}: {got} for {want}");
                    }
                }
            }
            (token, first) = (token + qo_len, first + kv_len);
        }
    }

    fn pages(&self, layout: KvLayout, random: &mut Random) -> (Batch<Flex>, Vec<(usize, usize)>, usize) {
        let counts: Vec<usize> = self.kv_lens.iter().map(|len| len.div_ceil(self.page_size)).collect();
        let used: usize = counts.iter().sum();
        let pages = used + 3;
        let mut order: Vec<usize> = (0..pages).collect();
        for at in (1..pages).rev() {
            order.swap(at, random.below(at + 1));
        }
        let mut places = Vec::new();
        let mut last = Vec::new();
        for (len, from) in self.kv_lens.iter().zip(indptr(&counts)) {
            places.extend((0..*len).map(|j| (order[from + j / self.page_size], j % self.page_size)));
            last.push(if *len == 0 { 0 } else { (len - 1) % self.page_size + 1 });
        }
        let mut indices = order[..used].to_vec();
        indices.extend((used == 0).then_some(0));
        let lists = (&indices[..], &last[..], self.page_size, layout);
        let batch = batch(&indptr(&self.qo_lens), &indptr(&counts), Some(lists));
        (batch, places, pages)
    }

    #[allow(clippy::too_many_arguments)]
    fn oracle(
        &self,
        query: &[f32],
        k: &[f32],
        v: &[f32],
        first: usize,
        kv_len: usize,
        qo_len: usize,
        i: usize,
        head: usize,
    ) -> (Vec<f64>, f64) {
        let position = (kv_len + i) as i64 - qo_len as i64;
        let row = |values: &[f32], j: usize, dim: usize| -> Vec<f64> {
            values[((first + j) * self.kv_heads + head) * dim..][..dim]
                .iter()
                .map(|x| f64::from(*x))
                .collect()
        };
        let logits: Vec<f64> = (0..kv_len)
            .map(|j| {
                let visible = (!self.variant.causal || j as i64 <= position)
                    && self
                        .variant
                        .window_left
                        .is_none_or(|window| j as i64 >= position - window.min(1 << 40) as i64);
                let dot: f64 =
                    row(k, j, self.dim).iter().zip(query).map(|(k, q)| k * f64::from(*q)).sum::<f64>();
                let logit = dot * f64::from(self.variant.scale);
                let cap = self.variant.soft_cap.map(f64::from);
                let logit = cap.map_or(logit, |cap| cap * (logit / cap).tanh());
                if visible { logit } else { f64::NEG_INFINITY }
            })
            .collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if max == f64::NEG_INFINITY {
            return (vec![0.0; self.dim_vo], max);
        }
        let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
        let mut output = vec![0.0; self.dim_vo];
        for (j, logit) in logits.iter().enumerate() {
            for (output, v) in output.iter_mut().zip(row(v, j, self.dim_vo)) {
                *output += (logit - max).exp() / sum * v;
            }
        }
        (output, (max + sum.ln()) / std::f64::consts::LN_2)
    }
}

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[random.below(from.len())]
}

#[test]
fn random_problems_agree_with_f64() {
    for seed in 1..=150 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let kind = pick(&mut random, &[Kind::Ragged, Kind::Paged(KvLayout::Nhd), Kind::Paged(KvLayout::Hnd)]);
        let requests = 1 + random.below(4);
        let decode = random.below(3) == 0;
        let dim = pick(&mut random, &[8, 16, 24, 40, 59, 64, 72, 80, 128]);
        let case = Case {
            kind,
            qo_lens: (0..requests)
                .map(|_| if decode { random.below(2) } else { pick(&mut random, &[0, 1, 2, 17, 37, 70]) })
                .collect(),
            kv_lens: (0..requests).map(|_| pick(&mut random, &[0, 1, 15, 31, 32, 54, 97, 129])).collect(),
            kv_heads: pick(&mut random, &[1, 2, 3]),
            group: pick(&mut random, &[1, 2, 3, 4, 7, 8, 16, 33]),
            dim,
            dim_vo: if random.below(3) == 0 { 48 } else { dim },
            page_size: pick(&mut random, &[1, 5, 16]),
            variant: StandardAttention {
                causal: random.below(2) == 0,
                window_left: (random.below(3) == 0).then(|| pick(&mut random, &[0, 3, 20, usize::MAX])),
                soft_cap: (random.below(3) == 0).then_some(2.5),
                scale: pick(&mut random, &[0.125, 0.4]),
                skip_softmax: None,
                ranges: None,
            },
        };
        println!(
            "seed {seed}: {kind:?} {:?} {:?} {}x{} d {} {} {:?}",
            case.qo_lens, case.kv_lens, case.kv_heads, case.group, case.dim, case.dim_vo, case.variant
        );
        match seed % 3 {
            0 => case.check::<f32>(&mut random),
            1 => case.check::<f16>(&mut random),
            _ => case.check::<bf16>(&mut random),
        }
    }
}

/// Queries `[tokens, 1, 16]` over as many keys, causal, on both paths.
fn causal_with(tokens: usize, change: impl Fn(&mut [f32], &mut [f32], &mut [f32])) -> Vec<f32> {
    let mut random = Random(7);
    let [mut q, mut k, mut v] =
        [(); 3].map(|()| (0..tokens * 16).map(|_| random.normal()).collect::<Vec<_>>());
    change(&mut q, &mut k, &mut v);
    let [q, k, v] = [q, k, v].map(|x| with_margin::<f32>(&x, &[tokens, 1, 16], 0));
    let variant = StandardAttention {
        causal: true,
        window_left: None,
        soft_cap: None,
        scale: 0.25,
        skip_softmax: None,
        ranges: None,
    };
    let params = AttentionParams { variant: SharedVariant::new(variant), return_lse: false };
    match attention::<f32>(q, KeysValues::floats(k, v), batch(&[0, tokens], &[0, tokens], None), params) {
        Attended::WithoutLse(output) | Attended::WithLse(output, _) => floats(&output),
    }
}

#[test]
fn what_a_row_does_not_see_does_not_reach_it() {
    for tokens in [6, 50] {
        let plain = causal_with(tokens, |_, _, _| ());
        let at = tokens - 3;
        for bad in [f32::NAN, f32::INFINITY, 3e38] {
            let last = |x: &mut [f32]| x[at * 16..(at + 1) * 16].fill(bad);
            let outputs = [
                causal_with(tokens, |_, k, v| (last(k), last(v)).1),
                causal_with(tokens, |_, k, _| last(k)),
                causal_with(tokens, |_, _, v| last(v)),
            ];
            for output in outputs {
                assert_eq!(output[..at * 16], plain[..at * 16], "{bad} {tokens}");
            }
        }
        let nan_query = causal_with(tokens, |q, _, _| q[at * 16] = f32::NAN);
        for (row, (got, plain)) in nan_query.chunks(16).zip(plain.chunks(16)).enumerate() {
            assert!(if row == at { got.iter().all(|x| x.is_nan()) } else { got == plain }, "row {row}");
        }
    }
}
