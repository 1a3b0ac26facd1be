//! Attention by its formula.

use super::check::{dot, shape, value};
use super::heads::{Heads, State};
use crate::error::Result;
use crate::types::{AttentionOptions, AttentionVariant, HostInputs, Request, Row, visible};

/// Attention of one request: [`single_prefill`](crate::single_prefill), and [`single_decode`](crate::single_decode)
/// with one token.
///
/// `q`: `[tokens, q_heads, head_dim]`, `k`: `[kv_tokens, kv_heads, head_dim]`, `v`: `[kv_tokens, kv_heads, head_dim_v]`
/// (the layout in the options does not count here). The logit of key `j` for query `i` of head `h`, in this order:
///
/// 1. `s = scale · q[i, h] · k[j, h / (q_heads / kv_heads)]`,
/// 2. with a soft cap `s = cap · tanh(s / cap)`,
/// 3. with slopes `s + slope[h] · (j - (kv_tokens - tokens + i))`,
/// 4. causal: `-inf` unless `j <= kv_tokens - tokens + i`,
/// 5. with a window: `-inf` unless `j >= kv_tokens - tokens + i - window`.
///
/// A query without a key gets output 0 and LSE `-inf`.
///
/// # Errors
///
/// If the shapes do not fit together.
pub fn attention(q: &Heads, k: &Heads, v: &Heads, options: &AttentionOptions) -> Result<State> {
    let variant = options.params(q.shape[2]).variant;
    attention_of(q, k, v, &*variant, 0, HostInputs::default())
}

/// [`attention`] of a variant with its tensors, for request `index` of a batch.
///
/// `s_ij = scale · (logit(q_i·k_j) + slope_i · (j - position_i))`, and `-inf` for a key that it masks. The output is
/// `softmax(s) · v`, with the variant's initial `(m, l)` and output transform; without a softmax it is `s · v`, masked keys
/// weighing nothing, and the LSE is NaN.
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
    inputs: HostInputs<'_>,
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
            let row = Row { request, query, q_head, kv_head, inputs };
            let slope = variant.slope(&row);
            let logits: Vec<(usize, f64)> = visible(variant, &request, query)
                .filter(|&key| variant.keep(&row, key))
                .map(|key| {
                    let logit = variant.logit(dot(q.row(query, q_head), k.row(key, kv_head)), &row, key);
                    (key, scale * (logit + slope * (key as i64 - row.position()) as f64))
                })
                .collect();
            if !variant.softmax() {
                let mut sums = vec![0.0; v_dim];
                for (key, weight) in logits {
                    sums.iter_mut().zip(v.row(key, kv_head)).for_each(|(o, x)| *o += weight * x);
                }
                output.extend(sums.into_iter().map(|o| variant.finish(o, &row)));
                lse.push(f64::NAN);
                continue;
            }
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
/// [gathered](super::gather_pages) pages ([`batch_prefill_paged`](crate::batch_prefill_paged)).
///
/// # Errors
///
/// If `qo_indptr` is not a row pointer over `q`, or as [`attention`] and `keys`.
pub fn batch_attention(
    q: &Heads,
    qo_indptr: &[usize],
    keys: impl FnMut(usize) -> Result<(Heads, Heads)>,
    options: &AttentionOptions,
) -> Result<State> {
    batch_attention_with(q, qo_indptr, keys, options, HostInputs::default())
}

/// [`batch_attention`] with sinks, slopes, or the tensors of a variant.
///
/// # Errors
///
/// As [`batch_attention`].
pub fn batch_attention_with(
    q: &Heads,
    qo_indptr: &[usize],
    mut keys: impl FnMut(usize) -> Result<(Heads, Heads)>,
    options: &AttentionOptions,
    inputs: HostInputs<'_>,
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
        let state = attention_of(&q.tokens(rows[0]..rows[1])?, &k, &v, &*variant, request, inputs)?;
        dim = v.shape[2];
        values.extend(state.output.values);
        lse.extend(state.lse);
    }
    Ok(State { output: Heads::new([tokens, q_heads, dim], values)?, lse })
}
