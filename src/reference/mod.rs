//! Reference of every operation: slow, in f64, on plain numbers. The fast operations must agree with it.
//!
//! Nothing here needs a backend. The tests of this crate compare every device with these functions. They also
//! define the exact result of an operation, where two results differ.
//!
//! ```
//! use burn_flashinfer::AttentionOptions;
//! use burn_flashinfer::reference::{Heads, attention, merge_state};
//!
//! # fn main() -> burn_flashinfer::Result<()> {
//! // Two tokens, one head of two elements.
//! let q = Heads::new([2, 1, 2], vec![1.0, 0.0, 0.0, 1.0])?;
//! let k = Heads::new([2, 1, 2], vec![3.0, 0.5, -1.0, 2.0])?;
//! let v = Heads::new([2, 1, 2], vec![1.0, 2.0, 3.0, 4.0])?;
//!
//! let whole = attention(&q, &k, &v, &AttentionOptions::new())?;
//! let [first, second] = [0..1, 1..2].map(|keys| {
//!     attention(&q, &k.tokens(keys.clone())?, &v.tokens(keys)?, &AttentionOptions::new())
//! });
//! let merged = merge_state(&first?, &second?)?;
//! assert!((merged.output.values()[0] - whole.output.values()[0]).abs() < 1e-12);
//! assert!((merged.lse[0] - whole.lse[0]).abs() < 1e-12);
//! # Ok(())
//! # }
//! ```

mod bits;
mod merge;
mod rows;
mod sampling;

use std::ops::Range;

use crate::attention::{AttentionVariant, Request, Row, visible};
use crate::error::{Error, Result};
use crate::extension::RopeStyle;
use crate::options::{AttentionOptions, KvLayout};

pub use bits::{packbits, segment_packbits, segment_unpackbits, unpackbits};
pub use merge::{merge_state, merge_state_in_place, merge_states, variable_length_merge_states};
pub use sampling::{
    Chain, Filter, apply_penalties, chain_speculative_sampling, distribution, renormalised, softmax, top_k,
    top_k_mask_logits,
};

pub use rows::{
    fused_add_rms_norm, gelu_and_mul, gelu_tanh_and_mul, gemma_fused_add_rms_norm, gemma_rms_norm,
    layer_norm, matmul_nt, rms_norm, segment_gemm, silu_and_mul,
};

/// Numbers of shape `[tokens, heads, head_dim]`, the last axis contiguous.
#[derive(Debug, Clone, PartialEq)]
pub struct Heads {
    shape: [usize; 3],
    values: Vec<f64>,
}

impl Heads {
    /// Takes `values` as an array of this shape.
    ///
    /// # Errors
    ///
    /// If their number is not the product of the shape, or there is no head or element.
    pub fn new(shape: [usize; 3], values: Vec<f64>) -> Result<Self> {
        check_len("reference::Heads::new", "values", values.len(), &shape)?;
        Ok(Self { shape, values })
    }

    /// `[tokens, heads, head_dim]`.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The numbers, row by row.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// A copy of some tokens.
    ///
    /// # Errors
    ///
    /// If the range is not within the tokens.
    pub fn tokens(&self, range: Range<usize>) -> Result<Self> {
        let [tokens, heads, dim] = self.shape;
        if range.start > range.end || range.end > tokens {
            let expected = format!("within 0..{tokens}");
            return Err(value("reference::Heads::tokens", "range", format!("{range:?}"), expected));
        }
        let row = heads * dim;
        let values = self.values[range.start * row..range.end * row].to_vec();
        Ok(Self { shape: [range.len(), heads, dim], values })
    }

    fn row(&self, token: usize, head: usize) -> &[f64] {
        let [_, heads, dim] = self.shape;
        let start = (token * heads + head) * dim;
        &self.values[start..start + dim]
    }
}

/// Attention over a set of keys, which [`merge_state`] can combine with attention over other keys.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// `[tokens, q_heads, head_dim_v]`: `softmax(logits) · v`.
    pub output: Heads,
    /// `[tokens, q_heads]`: `log2(Σ exp(logits))`.
    pub lse: Vec<f64>,
}

/// Attention of one request: [`single_prefill`](crate::single_prefill), and [`single_decode`](crate::single_decode)
/// with one token.
///
/// `q`: `[tokens, q_heads, head_dim]`, `k`: `[kv_tokens, kv_heads, head_dim]`, `v`: `[kv_tokens, kv_heads, head_dim_v]`
/// (the layout in the options does not count here). The logit of key `j` for query `i` of head `h`, in this order:
///
/// 1. `s = scale · q[i, h] · k[j, h / (q_heads / kv_heads)]`,
/// 2. with a soft cap `s = cap · tanh(s / cap)`,
/// 3. causal: `-inf` unless `j <= kv_tokens - tokens + i`,
/// 4. with a window: `-inf` unless `j >= kv_tokens - tokens + i - window`.
///
/// A query without a key gets output 0 and LSE `-inf`.
///
/// # Errors
///
/// If the shapes do not fit together.
pub fn attention(q: &Heads, k: &Heads, v: &Heads, options: &AttentionOptions) -> Result<State> {
    let variant = options.params(q.shape[2]).variant;
    attention_of(q, k, v, &*variant, 0, (&[], &[]))
}

/// [`attention`] of a variant, for request `index` of a batch. `floats` and `ints` are the variant's tensors.
///
/// # Errors
///
/// As [`attention`].
pub fn attention_of(
    q: &Heads,
    k: &Heads,
    v: &Heads,
    variant: &dyn AttentionVariant,
    index: usize,
    (floats, ints): (&[f32], &[i32]),
) -> Result<State> {
    const OP: &str = "reference::attention";
    let ([tokens, q_heads, dim], [keys, kv_heads, k_dim], [v_keys, v_heads, v_dim]) =
        (q.shape, k.shape, v.shape);
    if k_dim != dim || kv_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
        let expected = format!("a head dimension of {dim} and heads that divide {q_heads}");
        return Err(shape(OP, "k", &k.shape, expected));
    }
    if [v_keys, v_heads] != [keys, kv_heads] {
        return Err(shape(OP, "v", &v.shape, format!("[{keys}, {kv_heads}, head_dim_v]")));
    }
    let scale = f64::from(variant.scale());
    let request = Request { index, qo_len: tokens, kv_len: keys };
    let mut output = Vec::with_capacity(tokens * q_heads * v_dim);
    let mut lse = Vec::with_capacity(tokens * q_heads);
    for query in 0..tokens {
        for q_head in 0..q_heads {
            let kv_head = q_head / (q_heads / kv_heads);
            let row = Row { request, query, q_head, kv_head, floats, ints };
            let logits: Vec<(usize, f64)> = visible(variant, &request, query)
                .filter(|&key| variant.keep(&row, key))
                .map(|key| {
                    (key, scale * variant.logit(dot(q.row(query, q_head), k.row(key, kv_head)), &row, key))
                })
                .collect();
            let (start, mut sum) = variant.start(&row);
            let start = if start == f64::NEG_INFINITY { start } else { scale * start };
            // The largest logit, so that no exponential overflows.
            let max = logits.iter().fold(start, |max, &(_, logit)| max.max(logit));
            let max = if max.is_finite() { max } else { 0.0 };
            sum *= (start - max).exp();
            let mut sums = vec![0.0; v_dim];
            for (key, logit) in logits {
                let weight = (logit - max).exp();
                sum += weight;
                for (o, x) in sums.iter_mut().zip(v.row(key, kv_head)) {
                    *o += weight * x;
                }
            }
            let finished = |o: &f64| variant.finish(if sum == 0.0 { 0.0 } else { o / sum }, &row);
            output.extend(sums.iter().map(finished));
            lse.push(max * std::f64::consts::LOG2_E + sum.log2());
        }
    }
    Ok(State { output: Heads { shape: [tokens, q_heads, v_dim], values: output }, lse })
}

/// Attention of a batch: request `r` has the queries `qo_indptr[r]..qo_indptr[r + 1]` of `q` and the keys and values
/// `keys(r)`, for instance a range of [`Heads::tokens`] ([`batch_prefill_ragged`](crate::batch_prefill_ragged)) or
/// [gathered](gather_pages) pages ([`batch_prefill_paged`](crate::batch_prefill_paged)).
///
/// # Errors
///
/// If `qo_indptr` is not a row pointer over `q`, or as [`attention`] and `keys`.
pub fn batch_attention(
    q: &Heads,
    qo_indptr: &[usize],
    mut keys: impl FnMut(usize) -> Result<(Heads, Heads)>,
    options: &AttentionOptions,
) -> Result<State> {
    let [tokens, q_heads, mut dim] = q.shape;
    if qo_indptr.first() != Some(&0) || qo_indptr.last() != Some(&tokens) {
        let expected = format!("from 0 to {tokens}");
        return Err(value("reference::batch_attention", "qo_indptr", format!("{qo_indptr:?}"), expected));
    }
    let (mut values, mut lse) = (Vec::new(), Vec::new());
    for (request, rows) in qo_indptr.windows(2).enumerate() {
        let (k, v) = keys(request)?;
        let variant = options.params(q.shape[2]).variant;
        let state = attention_of(&q.tokens(rows[0]..rows[1])?, &k, &v, &*variant, request, (&[], &[]))?;
        dim = v.shape[2];
        values.extend(state.output.values);
        lse.extend(state.lse);
    }
    Ok(State { output: Heads::new([tokens, q_heads, dim], values)?, lse })
}

/// The keys, or the values, of one layer in pages: `[pages, page_size, kv_heads, head_dim]`, or with heads before
/// tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Pages {
    pages: usize,
    page_size: usize,
    heads: usize,
    dim: usize,
    layout: KvLayout,
    values: Vec<f64>,
}

impl Pages {
    /// Takes `values` as pages. `shape` is that of the tensor, in the order of `layout`.
    ///
    /// # Errors
    ///
    /// If the number of values is not the product of the shape, or a page would be empty.
    pub fn new(shape: [usize; 4], layout: KvLayout, values: Vec<f64>) -> Result<Self> {
        check_len("reference::Pages::new", "values", values.len(), &shape)?;
        let [pages, a, b, dim] = shape;
        let (page_size, heads) = match layout {
            KvLayout::Nhd => (a, b),
            KvLayout::Hnd => (b, a),
        };
        Ok(Self { pages, page_size, heads, dim, layout, values })
    }

    /// The numbers, in the order of the layout.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The range of the elements of `head` of the token in `slot` (`page * page_size + offset in the page`).
    fn row(&self, slot: usize, head: usize) -> Range<usize> {
        let (page, offset) = (slot / self.page_size, slot % self.page_size);
        let row = match self.layout {
            KvLayout::Nhd => (page * self.page_size + offset) * self.heads + head,
            KvLayout::Hnd => (page * self.heads + head) * self.page_size + offset,
        };
        row * self.dim..(row + 1) * self.dim
    }
}

/// The tokens of one request, one after the other: those of the pages `indices`, of which the last holds
/// `last_page_len`.
///
/// # Errors
///
/// If a page is outside the pool, or `last_page_len` is not that of a [`PageTable`](crate::PageTable).
pub fn gather_pages(pages: &Pages, indices: &[usize], last_page_len: usize) -> Result<Heads> {
    const OP: &str = "reference::gather_pages";
    if let Some(page) = indices.iter().find(|&&page| page >= pages.pages) {
        return Err(value(OP, "indices", page.to_string(), format!("below {}", pages.pages)));
    }
    let valid = if indices.is_empty() { 0..=0 } else { 1..=pages.page_size };
    if !valid.contains(&last_page_len) {
        return Err(value(OP, "last_page_len", last_page_len.to_string(), format!("within {valid:?}")));
    }
    let tokens = indices.len().saturating_sub(1) * pages.page_size + last_page_len;
    let mut values = Vec::with_capacity(tokens * pages.heads * pages.dim);
    for token in 0..tokens {
        let slot = indices[token / pages.page_size] * pages.page_size + token % pages.page_size;
        for head in 0..pages.heads {
            values.extend_from_slice(&pages.values[pages.row(slot, head)]);
        }
    }
    Heads::new([tokens, pages.heads, pages.dim], values)
}

/// [`append_paged_kv`](crate::append_paged_kv) for the keys, or for the values: token `t` of `new` goes to the slot
/// `slots[t] = page * page_size + offset in the page`, or nowhere.
///
/// # Errors
///
/// If shapes do not fit together, or a slot is outside the pool. Nothing has been written then.
pub fn append_paged_kv(pages: &mut Pages, new: &Heads, slots: &[Option<usize>]) -> Result<()> {
    const OP: &str = "reference::append_paged_kv";
    let expected = [slots.len(), pages.heads, pages.dim];
    if new.shape != expected {
        return Err(shape(OP, "new", &new.shape, format!("{expected:?}")));
    }
    let end = pages.pages * pages.page_size;
    if let Some(slot) = slots.iter().flatten().find(|&&slot| slot >= end) {
        return Err(value(OP, "slots", slot.to_string(), format!("below {end}")));
    }
    for (token, &slot) in slots.iter().enumerate() {
        let Some(slot) = slot else { continue };
        for head in 0..pages.heads {
            let row = pages.row(slot, head);
            pages.values[row].copy_from_slice(new.row(token, head));
        }
    }
    Ok(())
}

/// [`apply_rope`](crate::apply_rope) for the queries, or for the keys. With the angle `a = positions[t] · f` of a pair
/// `(x, y)`, it becomes `(x cos a - y sin a, y cos a + x sin a)`.
///
/// `x`: `[tokens, heads, head_dim]`; `frequencies`: one for each pair, [stretched](crate::RopeScaling) already, as
/// [`RopeConfig::frequencies`](crate::RopeConfig::frequencies) gives them. Elements beyond the pairs stay as they are.
///
/// # Errors
///
/// If there is not one position for each token, or a head is shorter than the pairs.
pub fn apply_rope(x: &Heads, frequencies: &[f64], positions: &[usize], style: RopeStyle) -> Result<Heads> {
    const OP: &str = "reference::apply_rope";
    let [tokens, heads, dim] = x.shape;
    check_len(OP, "positions", positions.len(), &[tokens])?;
    let pairs = frequencies.len();
    if 2 * pairs > dim {
        return Err(shape(OP, "x", &x.shape, format!("a head dimension of at least {}", 2 * pairs)));
    }
    let mut values = x.values.clone();
    for (token, &position) in positions.iter().enumerate() {
        for head in 0..heads {
            let start = (token * heads + head) * dim;
            for (pair, frequency) in frequencies.iter().enumerate() {
                let (first, second) = match style {
                    RopeStyle::Halves => (start + pair, start + pair + pairs),
                    RopeStyle::Interleaved => (start + 2 * pair, start + 2 * pair + 1),
                };
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let (a, b) = (x.values[first], x.values[second]);
                (values[first], values[second]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }
    Ok(Heads { shape: x.shape, values })
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn shape(op: &'static str, argument: &'static str, got: &[usize], expected: String) -> Error {
    Error::Shape { op, argument, got: format!("{got:?}"), expected }
}

fn value(op: &'static str, argument: &'static str, got: String, expected: String) -> Error {
    Error::Value { op, argument, got, expected }
}

fn check_len(op: &'static str, argument: &'static str, len: usize, shape: &[usize]) -> Result<()> {
    // Extents before an empty axis must not overflow either, or the arithmetic on rows would.
    let product =
        |least: usize| shape.iter().try_fold(1_usize, |p, &extent| p.checked_mul(extent.max(least)));
    if product(1).is_some() && product(0) == Some(len) && !shape[1..].contains(&0) {
        return Ok(());
    }
    Err(value(op, argument, format!("of length {len}"), format!("the elements of {shape:?}")))
}
