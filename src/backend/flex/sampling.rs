//! Sampling: the same arithmetic as in the kernels of the other devices, so that a draw gives the same token.
//!
//! The choice of a token is computed in integers, or in fused operations; see `kernels/src/sampling`.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::draw::{Draw, below, mass};
use super::filter;
use super::float::{Float, widen_row};
use super::output::by_rows;
use super::simd::{self, per_instruction_set};
use super::view::{self, Rows, dims, with_rows};
use super::weights::Temperature;
use crate::extension::DRAW_WORDS;
use multiversion::target::match_target;

/// `exp((x - max) / temperature) / Σ` of each row, the largest logits alone at temperature 0.
pub(super) fn softmax<E: Float>(logits: FlexTensor, temperature: FlexTensor) -> FlexTensor {
    let logits = with_rows(logits);
    let [rows, vocab] = dims(&logits);
    let temperature = view::widened::<f32>(temperature);
    let source: Rows<'_, E, 1> = Rows::of(&logits);
    by_rows([rows, vocab], 0, |row, probs| {
        widen_row(source.row([row]), probs);
        softmax_row(probs, &Temperature::new(temperature[row]));
    })
}

per_instruction_set! {
    /// Replaces logits by their probabilities.
    fn softmax_row(row: &mut [f32], t: &Temperature) {
        match_target! {
            "x86_64+avx512f" => softmax_body::<true>(row, t),
            "x86_64+avx2+fma" => softmax_body::<true>(row, t),
            "aarch64+neon" => softmax_body::<true>(row, t),
            _ => softmax_body::<false>(row, t),
        }
    }
}

#[inline(always)]
fn softmax_body<const FMA: bool>(row: &mut [f32], t: &Temperature) {
    const LANES: usize = 16;
    let mut highest = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            highest[lane] = if block[lane] > highest[lane] { block[lane] } else { highest[lane] };
        }
    }
    let highest = highest.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    let weight = |x: f32| t.weight::<FMA>(x, highest);
    let mut sums = [0.0_f32; LANES];
    let (blocks, rest) = row.as_chunks_mut::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            block[lane] = weight(block[lane]);
            sums[lane] += block[lane];
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *x = weight(*x);
        *sum += *x;
    }
    let sum = simd::sum(sums);
    // A row of -inf has no probability. A temperature below 0, or NaN, is no temperature.
    let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    let scale = if t.is_valid { scale } else { f32::NAN };
    row.iter_mut().for_each(|x| *x *= scale);
}

/// The filters of each row.
pub(super) struct Filters {
    pub top_k: Option<Vec<i32>>,
    pub top_p: Option<Vec<f32>>,
    pub min_p: Option<Vec<f32>>,
}

/// A token of the likely ones for each draw, and whether there is one.
pub(super) fn sample_probs(
    probs: FlexTensor,
    filters: &Filters,
    draws: FlexTensor,
) -> (FlexTensor, FlexTensor) {
    let probs = with_rows(probs);
    let source: Rows<'_, f32, 1> = Rows::of(&probs);
    each_draw(draws, |draw| sample_row(source.row([draw.row]), filters, draw))
}

fn sample_row(probs: &[f32], filters: &Filters, draw: &Draw) -> Option<usize> {
    let at = |filter: &Option<Vec<f32>>| filter.as_ref().map(|filter| filter[draw.row]);
    if has_nan(probs) {
        return None;
    }
    let mut least = 0.0;
    if let Some(top_k) = &filters.top_k {
        least = filter::kth_largest(probs, filter::most(top_k[draw.row]));
    }
    if let Some(top_p) = at(&filters.top_p) {
        least = filter::threshold(probs, filter::limit(top_p)).0.max(least);
    }
    if let Some(min_p) = at(&filters.min_p) {
        let largest = probs.iter().fold(0.0, |max, &p| if p > max { p } else { max });
        let floor = min_p * largest;
        // NaN is no floor.
        least = if floor > largest { largest } else { floor }.max(least);
    }
    if least <= 0.0 {
        return first_beyond(probs.iter().map(|&p| mass(p)).enumerate(), draw);
    }
    let mut likely = vec![];
    filter::passing_in_order(
        probs,
        least,
        |p, least| p >= least,
        |id, p| {
            likely.push((id, mass(p)));
            least
        },
    );
    first_beyond(likely.into_iter(), draw)
}

/// The first token at which the masses, added up, exceed a random part of their sum.
fn first_beyond(mut masses: impl Iterator<Item = (usize, u64)> + Clone, draw: &Draw) -> Option<usize> {
    let sum = masses.clone().map(|(_, mass)| mass).sum();
    let mut rest = below(sum, draw.words(0));
    let is_here = |&(_, mass): &(usize, u64)| {
        let is_here = rest < mass;
        rest = rest.wrapping_sub(mass);
        is_here
    };
    masses.find(is_here).map(|(id, _)| id)
}

per_instruction_set! {
    fn has_nan(row: &[f32]) -> bool {
        row.iter().fold(false, |any, x| any | x.is_nan())
    }
}

/// A token of a row without filters.
pub(super) fn draw_from(probs: &[f32], draw: &Draw) -> Option<usize> {
    sample_row(probs, &Filters { top_k: None, top_p: None, min_p: None }, draw)
}

/// The token of each draw, and true if there is one: 0 is written for none.
pub(super) fn each_draw(
    draws: FlexTensor,
    sample: impl Fn(&Draw) -> Option<usize> + Sync,
) -> (FlexTensor, FlexTensor) {
    let draws = view::indices(draws);
    let words: &[i32] = draws.storage();
    let (words, _) = words.as_chunks::<DRAW_WORDS>();
    let samples: Vec<Option<usize>> = words.par_iter().map(|words| sample(&Draw::of(*words))).collect();
    let ids = samples.iter().map(|sample| sample.unwrap_or(0) as i32).collect();
    let valid = samples.iter().map(|sample| i32::from(sample.is_some())).collect();
    let shape = [samples.len()];
    (view::ints(ids, shape), view::ints(valid, shape))
}
