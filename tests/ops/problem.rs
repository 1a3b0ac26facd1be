//! Attention problems: random inputs, what they should give, and ways to run them.

use std::f32::consts::LOG2_E;

use burn::tensor::{DType, Device, Tensor};
use burn_flashinfer::{
    AttentionOptions, AttentionOutput, Indptr, KvLayout, KvPages, PageTable, batch_prefill_paged,
    batch_prefill_ragged, reference, single_prefill,
};

use crate::devices::Target;
use crate::support::{Host, Rng, View, check, round};

/// An attention problem without its numbers.
#[derive(Debug, Clone)]
pub struct Case {
    pub dtype: DType,
    pub kv_heads: usize,
    pub group: usize,
    pub dim: usize,
    pub v_dim: usize,
    /// Queries and keys of each request.
    pub lengths: Vec<(usize, usize)>,
    pub causal: bool,
    pub window: Option<usize>,
    pub soft_cap: Option<f32>,
    pub scale: Option<f32>,
}

impl Case {
    pub fn new(dtype: DType, dim: usize, lengths: &[(usize, usize)]) -> Self {
        let lengths = lengths.to_vec();
        let (causal, window, soft_cap, scale) = (false, None, None, None);
        Self { dtype, kv_heads: 2, group: 2, dim, v_dim: dim, lengths, causal, window, soft_cap, scale }
    }

    pub fn heads(self, kv_heads: usize, group: usize) -> Self {
        Self { kv_heads, group, ..self }
    }

    pub fn causal(self) -> Self {
        Self { causal: true, ..self }
    }

    pub fn options(&self) -> AttentionOptions {
        let mut options = AttentionOptions::new().causal(self.causal).return_lse(true);
        if let Some(window) = self.window {
            options = options.window_left(window);
        }
        if let Some(cap) = self.soft_cap {
            options = options.soft_cap(cap);
        }
        if let Some(scale) = self.scale {
            options = options.scale(scale);
        }
        options
    }

    pub fn problem(&self, label: &str) -> Problem {
        let rng = &mut Rng::new(&format!("{label} {self:?}"));
        let queries = self.lengths.iter().map(|&(queries, _)| queries).sum();
        let keys = self.lengths.iter().map(|&(_, keys)| keys).sum();
        Problem {
            q: Host::random([queries, self.kv_heads * self.group, self.dim], self.dtype, rng),
            k: Host::random([keys, self.kv_heads, self.dim], self.dtype, rng),
            v: Host::random([keys, self.kv_heads, self.v_dim], self.dtype, rng),
            case: self.clone(),
        }
    }
}

/// An attention problem: `q` `[tokens, heads, dim]`, `k` and `v` of all requests one after the other.
#[derive(Debug, Clone)]
pub struct Problem {
    pub case: Case,
    pub q: Host<3>,
    pub k: Host<3>,
    pub v: Host<3>,
}

/// What attention should give.
pub struct Expected {
    pub oracle: reference::State,
    pub baseline: (Vec<f32>, Vec<f32>),
    /// The same with the weights in the type of the values, as matrix cores take them.
    pub in_type: (Vec<f32>, Vec<f32>),
}

/// What attention gave, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Got {
    pub output: Vec<f32>,
    pub lse: Vec<f32>,
}

impl Got {
    pub fn of(attended: AttentionOutput) -> Self {
        let lse = attended.lse.expect("the LSE was asked for");
        assert_eq!(lse.dtype(), DType::F32);
        assert_eq!(lse.dims(), [attended.output.dims()[0], attended.output.dims()[1]]);
        Self { output: Host::of(attended.output).values, lse: Host::of(lse).values }
    }

    pub fn bits(&self) -> (Vec<u32>, Vec<u32>) {
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect();
        (bits(&self.output), bits(&self.lse))
    }
}

/// Rows `indptr[r]..indptr[r + 1]` for requests of these lengths.
pub fn indptr(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut end = 0;
    let ends = lengths.map(|length| {
        end += length;
        end
    });
    std::iter::once(0).chain(ends.collect::<Vec<_>>()).collect()
}

impl Problem {
    pub fn qo_indptr(&self) -> Vec<usize> {
        indptr(self.case.lengths.iter().map(|&(queries, _)| queries))
    }

    pub fn kv_indptr(&self) -> Vec<usize> {
        indptr(self.case.lengths.iter().map(|&(_, keys)| keys))
    }

    pub fn expected(&self) -> Expected {
        let (k, v, rows) = (self.k.heads(), self.v.heads(), self.kv_indptr());
        let keys = |r: usize| Ok((k.tokens(rows[r]..rows[r + 1])?, v.tokens(rows[r]..rows[r + 1])?));
        let options = self.case.options();
        let oracle = reference::batch_attention(&self.q.heads(), &self.qo_indptr(), keys, &options);
        let baseline = self.baseline(None, |weight| weight);
        let narrow = Some(self.case.dtype).filter(|dtype| *dtype != DType::F32);
        let in_type = self.baseline(narrow, |weight| round(weight, self.case.dtype));
        Expected { oracle: oracle.expect("a problem that fits"), baseline, in_type }
    }

    /// Straightforward attention in f32 with weights as `weigh` leaves them and the output rounded to the type: output and
    /// LSE. `narrow` is the type of 16 bits that matrix cores round the `tanh` of a cap to. The exponent is `s c - m c` then,
    /// with one rounding and that of `m c`: of logits near 1e5 the latter alone makes the largest weight 1.003.
    pub fn baseline(&self, narrow: Option<DType>, weigh: impl Fn(f32) -> f32) -> (Vec<f32>, Vec<f32>) {
        let case = &self.case;
        let scale = case.scale.unwrap_or(1.0 / (case.dim as f32).sqrt());
        // A cap is between the scale and the exponential, so it leaves no scale to multiply by.
        let c = LOG2_E * if case.soft_cap.is_some() { 1.0 } else { scale };
        let (mut output, mut lse) = (Vec::new(), Vec::new());
        let (qo, kv) = (self.qo_indptr(), self.kv_indptr());
        for (r, &(queries, keys)) in case.lengths.iter().enumerate() {
            for (i, h) in (0..queries).flat_map(|i| (0..case.kv_heads * case.group).map(move |h| (i, h))) {
                let q = self.q.row(qo[r] + i, h);
                let position = (keys + i) as isize - queries as isize;
                let last = if case.causal { position.min(keys as isize - 1) } else { keys as isize - 1 };
                let first = case.window.map_or(0, |w| position.saturating_sub_unsigned(w).max(0));
                let visible = || (first..=last).map(|j| kv[r] + j as usize);
                let logits: Vec<f32> = visible()
                    .map(|j| {
                        let s = q.iter().zip(self.k.row(j, h / case.group)).map(|(q, k)| q * k).sum::<f32>();
                        let tanh = |x: f32| narrow.map_or(x.tanh(), |dtype| round(x.tanh(), dtype));
                        case.soft_cap.map_or(s, |cap| cap * tanh(scale * s / cap))
                    })
                    .collect();
                // A scale may be 0 or below it.
                let largest =
                    |logits: &mut dyn Iterator<Item = f32>| logits.fold(f32::NEG_INFINITY, f32::max);
                let (weights, max): (Vec<f32>, f32) = if narrow.is_some() {
                    let max = largest(&mut logits.iter().map(|s| s * c));
                    (logits.iter().map(|s| s.mul_add(c, -max).exp2()).collect(), max)
                } else {
                    let s = logits.iter().map(|s| s * (c / LOG2_E));
                    let max = largest(&mut s.clone());
                    (s.map(|s| (s - max).exp()).collect(), max * LOG2_E)
                };
                let sum: f32 = weights.iter().sum();
                lse.push(max + sum.log2());
                let mut row = vec![0.0_f32; case.v_dim];
                for (j, weight) in visible().zip(&weights) {
                    let (weight, v) = (weigh(*weight), self.v.row(j, h / case.group));
                    row.iter_mut().zip(v).for_each(|(o, v)| *o += weight * v);
                }
                let normal = if logits.is_empty() { 0.0 } else { 1.0 / sum };
                output.extend(row.into_iter().map(|o| round(o * normal, case.dtype)));
            }
        }
        (output, lse)
    }

    pub fn check(&self, what: &str, target: &Target, expected: &Expected, got: &Got) {
        let what = format!("{what} on {}: {:?}", target.name, self.case);
        let Expected { oracle, baseline, in_type } = expected;
        let baseline = if target.has_matrix_cores() { in_type } else { baseline };
        check(format!("{what}: output"), &got.output, &baseline.0, oracle.output.values(), self.case.dtype);
        check(format!("{what}: LSE"), &got.lse, &baseline.1, &oracle.lse, DType::F32);
        let dim = self.case.v_dim;
        for (row, lse) in oracle.lse.iter().enumerate().filter(|&(_, &lse)| lse == f64::NEG_INFINITY) {
            let row = &got.output[row * dim..(row + 1) * dim];
            assert!(row.iter().all(|&o| o == 0.0), "{what}: a row of LSE {lse} is {row:?}");
        }
    }

    /// One request after the other.
    pub fn single(&self, device: &Device, view: View, layout: KvLayout) -> Got {
        let mut got = Got { output: Vec::new(), lse: Vec::new() };
        let (qo, kv) = (self.qo_indptr(), self.kv_indptr());
        for r in 0..self.case.lengths.len() {
            let q = self.q.tokens(qo[r]..qo[r + 1]).view(view, device);
            let [k, v] =
                [&self.k, &self.v].map(|x| oriented(&x.tokens(kv[r]..kv[r + 1]), view, layout, device));
            let options = self.case.options().kv_layout(layout);
            let request = Got::of(single_prefill(q, k, v, &options).expect("a problem that fits"));
            got.output.extend(request.output);
            got.lse.extend(request.lse);
        }
        got
    }

    pub fn ragged(&self, device: &Device, view: View, layout: KvLayout) -> Got {
        let q = self.q.view(view, device);
        let [k, v] = [&self.k, &self.v].map(|x| oriented(x, view, layout, device));
        let [qo, kv] = [self.qo_indptr(), self.kv_indptr()]
            .map(|indptr| Indptr::new(&indptr, device).expect("a row pointer"));
        let options = self.case.options().kv_layout(layout);
        Got::of(batch_prefill_ragged(q, k, v, &qo, &kv, &options).expect("a problem that fits"))
    }

    pub fn paged(&self, device: &Device, page_size: usize, layout: KvLayout) -> Got {
        let paging = self.paging(page_size);
        let [k, v] = [&self.k, &self.v].map(|x| paging.pool(x, layout).tensor(device));
        self.paged_in(device, k, v, layout, &paging)
    }

    pub fn paged_in(
        &self,
        device: &Device,
        k: Tensor<4>,
        v: Tensor<4>,
        layout: KvLayout,
        paging: &Paging,
    ) -> Got {
        let pages = KvPages::new(k, v, layout).expect("pages that fit");
        let qo = Indptr::new(&self.qo_indptr(), device).expect("a row pointer");
        let options = self.case.options();
        let q = self.q.tensor(device);
        Got::of(batch_prefill_paged(q, &qo, &pages, &paging.table(device), &options).expect("it fits"))
    }

    /// Pages in random order, with some that nobody owns between them.
    pub fn paging(&self, page_size: usize) -> Paging {
        let rng = &mut Rng::new(&format!("pages {page_size} {:?}", self.case));
        let keys: Vec<usize> = self.case.lengths.iter().map(|&(_, keys)| keys).collect();
        let owned: Vec<usize> = keys.iter().map(|keys| keys.div_ceil(page_size)).collect();
        let used = owned.iter().sum::<usize>();
        let pages = used + 3;
        let mut indices = rng.shuffled(pages);
        indices.truncate(used);
        Paging { page_size, pages, indptr: indptr(owned.into_iter()), indices, keys }
    }
}

fn oriented(x: &Host<3>, view: View, layout: KvLayout, device: &Device) -> Tensor<3> {
    match layout {
        KvLayout::Nhd => x.view(view, device),
        KvLayout::Hnd => x.swapped().view(view, device),
    }
}

/// Where the keys of each request lie in a pool.
#[derive(Debug, Clone)]
pub struct Paging {
    pub page_size: usize,
    pub pages: usize,
    pub indptr: Vec<usize>,
    pub indices: Vec<usize>,
    pub keys: Vec<usize>,
}

impl Paging {
    pub fn last_page_len(&self) -> Vec<usize> {
        self.keys.iter().map(|&keys| if keys == 0 { 0 } else { (keys - 1) % self.page_size + 1 }).collect()
    }

    pub fn table(&self, device: &Device) -> PageTable {
        let last = self.last_page_len();
        PageTable::new(&self.indptr, &self.indices, &last, self.page_size, self.pages, device)
            .expect("a valid table")
    }

    /// The slot of token `token` of request `r`.
    pub fn slot(&self, r: usize, token: usize) -> usize {
        self.indices[self.indptr[r] + token / self.page_size] * self.page_size + token % self.page_size
    }

    /// The pool that holds the tokens of `x`; NaN where there is none.
    pub fn pool(&self, x: &Host<3>, layout: KvLayout) -> Host<4> {
        let [_, heads, dim] = x.shape;
        let shape = match layout {
            KvLayout::Nhd => [self.pages, self.page_size, heads, dim],
            KvLayout::Hnd => [self.pages, heads, self.page_size, dim],
        };
        let mut pool = Host::full(shape, x.dtype, f32::NAN);
        let rows = indptr(self.keys.iter().copied());
        for (r, &keys) in self.keys.iter().enumerate() {
            for (token, head) in (0..keys).flat_map(|token| (0..heads).map(move |head| (token, head))) {
                let slot = self.slot(r, token);
                let (page, offset) = (slot / self.page_size, slot % self.page_size);
                let row = match layout {
                    KvLayout::Nhd => slot * heads + head,
                    KvLayout::Hnd => (page * heads + head) * self.page_size + offset,
                };
                pool.values[row * dim..(row + 1) * dim].copy_from_slice(x.row(rows[r] + token, head));
            }
        }
        pool
    }
}
