//! Sampling: the distributions that tokens are drawn from.

use super::check::{check_len, value};
use crate::error::Result;

/// [`softmax`](crate::sampling::softmax): `exp(x / t) / Σ exp(x / t)` for each row of `logits`
/// `[rows, vocab]` and its temperature `t`; at temperature 0 the largest logits share the probability, at
/// infinity all above `-inf`. A row of `-inf` becomes 0.
///
/// # Errors
///
/// If `vocab` is 0, or there is not one temperature for each row.
pub fn softmax(logits: &[f64], temperature: &[f64], vocab: usize) -> Result<Vec<f64>> {
    const OP: &str = "reference::softmax";
    check_matrix(OP, "logits", logits.len(), temperature.len(), vocab)?;
    let row = |(row, &t): (&[f64], &f64)| {
        let max = row.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(x));
        let weight = |&x: &f64| match x {
            f64::NEG_INFINITY => 0.0,
            x if x == max => 1.0,
            x if x < max && max == f64::INFINITY => 0.0,
            // `abs` for -0.
            x => ((x - max) / t.abs()).exp(),
        };
        let sum: f64 = row.iter().map(weight).sum();
        let share = |x| match sum {
            _ if t.is_nan() || t < 0.0 => f64::NAN,
            0.0 => 0.0,
            sum => weight(x) / sum,
        };
        row.iter().map(share).collect::<Vec<_>>()
    };
    Ok(logits.chunks_exact(vocab).zip(temperature).flat_map(row).collect())
}

/// The filter of a row's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Filter {
    /// Keeps a token if fewer than `top_k` tokens are strictly more likely.
    pub top_k: Option<i64>,
    /// Keeps a token if the strictly more likely ones have a total probability below `top_p`.
    pub top_p: Option<f32>,
    /// Keeps tokens at least this many times as likely as the most likely one.
    pub min_p: Option<f32>,
}

/// The probabilities with which the tokens of a row are drawn, by
/// [`sampling_from_probs`](crate::sampling::sampling_from_probs) without a filter and by
/// [`top_k_sampling_from_probs`](crate::sampling::top_k_sampling_from_probs) and its like with one: `probs`
/// without those that do not count, divided by the sum of the others. `None` if there is none, or a NaN.
///
/// Probabilities are the multiples of 2⁻⁴⁰ that sampling takes them for, so that it is exact which of them count.
pub fn distribution(probs: &[f32], filter: &Filter) -> Option<Vec<f64>> {
    if probs.iter().any(|p| p.is_nan()) {
        return None;
    }
    let max = probs.iter().fold(0.0_f32, |max, &p| max.max(p));
    let least = match filter.min_p {
        Some(min_p) if min_p * max > 0.0 => (min_p * max).min(max),
        _ => 0.0,
    };
    let limit = filter.top_p.filter(|&p| p < 1.0).map(|p| mass(p).max(1.0));
    // The more likely ones come first, and with them their sum.
    let mut order: Vec<usize> =
        (0..probs.len()).filter(|&id| probs[id] > 0.0 && probs[id] >= least).collect();
    order.sort_by(|&a, &b| probs[b].total_cmp(&probs[a]));
    let mut kept = vec![0.0; probs.len()];
    let (mut above, mut above_count) = (0.0, 0);
    let mut at = 0;
    while at < order.len() {
        let p = probs[order[at]];
        let fits =
            filter.top_k.is_none_or(|k| above_count < k.max(1)) && limit.is_none_or(|limit| above < limit);
        if !fits {
            break;
        }
        while at < order.len() && probs[order[at]] == p {
            kept[order[at]] = mass(p);
            above += mass(p);
            above_count += 1;
            at += 1;
        }
    }
    let sum: f64 = kept.iter().sum();
    (sum > 0.0).then(|| kept.iter().map(|mass| mass / sum).collect())
}

/// [`top_p_renorm_probs`](crate::sampling::top_p_renorm_probs) and
/// [`top_k_renorm_probs`](crate::sampling::top_k_renorm_probs) of one row: [`distribution`], but a NaN stays
/// where it is and does not count, and nothing becomes of nothing.
pub fn renormalised(probs: &[f32], filter: &Filter) -> Vec<f64> {
    let numbers: Vec<f32> = probs.iter().map(|&p| if p.is_nan() { 0.0 } else { p }).collect();
    let shares = distribution(&numbers, filter).unwrap_or_else(|| vec![0.0; probs.len()]);
    probs.iter().zip(shares).map(|(p, share)| if p.is_nan() { f64::NAN } else { share }).collect()
}

/// [`top_k_mask_logits`](crate::sampling::top_k_mask_logits) of one row: `-inf` instead of each logit that at
/// least `top_k` others exceed.
pub fn top_k_mask_logits(logits: &[f64], top_k: i64) -> Vec<f64> {
    let mut order: Vec<f64> = logits.iter().copied().filter(|x| !x.is_nan()).collect();
    order.sort_by(|a, b| b.total_cmp(a));
    let last = usize::try_from(top_k.max(1) - 1).ok().and_then(|last| order.get(last));
    let least = last.copied().unwrap_or(f64::NEG_INFINITY);
    logits.iter().map(|&x| if x < least { f64::NEG_INFINITY } else { x }).collect()
}

/// [`top_k`](crate::sampling::top_k) of one row: where its `k` largest numbers are, the largest first, NaN
/// last, the first of equals first.
///
/// # Errors
///
/// If there are not as many.
pub fn top_k(row: &[f64], k: usize) -> Result<Vec<usize>> {
    if k > row.len() {
        return Err(value("reference::top_k", "k", k.to_string(), format!("at most {}", row.len())));
    }
    let mut order: Vec<usize> = (0..row.len()).collect();
    // A stable sort leaves equals in order: 0 and -0, and all NaN.
    let rank = |id: usize| if row[id].is_nan() { None } else { Some(row[id]) };
    order.sort_by(|&a, &b| rank(b).partial_cmp(&rank(a)).unwrap_or(std::cmp::Ordering::Equal));
    order.truncate(k);
    Ok(order)
}

/// [`apply_penalties`](crate::sampling::apply_penalties) of one row: `prompt` and `output` say how often each token is
/// there.
///
/// # Errors
///
/// If there is not one count for each logit.
pub fn apply_penalties(
    logits: &[f64],
    prompt: &[i64],
    output: &[i64],
    [repetition, frequency, presence]: [f64; 3],
) -> Result<Vec<f64>> {
    const OP: &str = "reference::apply_penalties";
    check_len(OP, "prompt", prompt.len(), &[logits.len()])?;
    check_len(OP, "output", output.len(), &[logits.len()])?;
    let penalised = logits.iter().zip(prompt.iter().zip(output)).map(|(&x, (&prompt, &output))| {
        let x = match x {
            _ if prompt <= 0 && output <= 0 => x,
            x if x > 0.0 => x / repetition,
            x => x * repetition,
        };
        if output > 0 { x - frequency * output as f64 - presence } else { x }
    });
    Ok(penalised.collect())
}

/// The result of [`chain_speculative_sampling`](crate::sampling::chain_speculative_sampling) for one draft.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// With which probability each drafted token is accepted: `min(q / p, 1)`.
    pub accepted: Vec<f64>,
    /// With which probabilities the token is drawn that comes after `i` drafted ones: over their sum
    /// `max(q - p, 0)`, and after the last `q`. `None` if there is none above 0, or a NaN.
    pub next: Vec<Option<Vec<f64>>>,
}

/// [`chain_speculative_sampling`](crate::sampling::chain_speculative_sampling) of one request: `draft_probs`
/// `[drafted, vocab]`, `target_probs` `[drafted + 1, vocab]`.
///
/// # Errors
///
/// If `vocab` is 0, or the lengths do not fit each other.
pub fn chain_speculative_sampling(
    draft_probs: &[f32],
    draft_ids: &[i64],
    target_probs: &[f32],
    vocab: usize,
) -> Result<Chain> {
    const OP: &str = "reference::chain_speculative_sampling";
    let drafted = draft_ids.len();
    check_matrix(OP, "draft_probs", draft_probs.len(), drafted, vocab)?;
    check_matrix(OP, "target_probs", target_probs.len(), drafted + 1, vocab)?;
    let row = |probs: &[f32], i: usize| probs[i * vocab..(i + 1) * vocab].to_vec();
    let accepted = draft_ids.iter().enumerate().map(|(i, &id)| {
        let token = usize::try_from(id).ok().filter(|&id| id < vocab);
        let Some(id) = token else { return 0.0 };
        let (p, q) = (f64::from(draft_probs[i * vocab + id]), f64::from(target_probs[i * vocab + id]));
        if q > 0.0 { (q / p).min(1.0) } else { 0.0 }
    });
    let next = (0..=drafted).map(|i| {
        let q = row(target_probs, i);
        if i == drafted {
            return distribution(&q, &Filter::default());
        }
        let p = row(draft_probs, i);
        let excess: Vec<f32> = q.iter().zip(&p).map(|(q, p)| if q - p < 0.0 { 0.0 } else { q - p }).collect();
        distribution(&excess, &Filter::default())
    });
    Ok(Chain { accepted: accepted.collect(), next: next.collect() })
}

/// A probability as a multiple of 2⁻⁴⁰.
fn mass(p: f32) -> f64 {
    if p > 0.0 { (f64::from(p.min(2.0)) * 40.0_f64.exp2()).floor().max(1.0) } else { 0.0 }
}

fn check_matrix(
    op: &'static str,
    argument: &'static str,
    len: usize,
    rows: usize,
    vocab: usize,
) -> Result<()> {
    if vocab == 0 {
        return Err(value(op, "vocab", "0".into(), "at least 1".into()));
    }
    check_len(op, argument, len, &[rows, vocab])
}
