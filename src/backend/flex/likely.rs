//! The most likely tokens of each row, by a quickselect over tokens or over their masses.

use burn_flex::FlexTensor;

use super::float::{Float, widen_row};
use super::output::by_rows;
use super::sampling::mass;
use super::scratch::with_scratch;
use super::simd::per_instruction_set;
use super::view::{Rows, dims, with_rows};

/// How much of each row counts.
pub(super) enum Limit {
    /// The tokens than which fewer than these are more likely.
    TopK(Vec<i32>),
    /// The tokens than which the more likely ones have less probability.
    TopP(Vec<f32>),
}

/// The probabilities that count divided by their sum, and 0 for the others.
pub(super) fn renorm_probs(probs: FlexTensor, by: &Limit) -> FlexTensor {
    each_row::<f32>(probs, |row, probs| {
        let (least, above) = match by {
            Limit::TopK(top_k) => {
                let least = kth_largest(probs, most(top_k[row]));
                (least, probs.iter().filter(|p| **p >= least).map(|&p| mass(p)).sum::<u64>())
            }
            Limit::TopP(top_p) => threshold(probs, limit(top_p[row])),
        };
        let sum = above as f32 / (1_u64 << 40) as f32;
        for p in probs {
            if !p.is_nan() {
                *p = if *p >= least && *p > 0.0 { *p / sum } else { 0.0 };
            }
        }
    })
}

/// The logits that count, and `-inf` for the others.
pub(super) fn top_k_mask_logits<E: Float>(logits: FlexTensor, top_k: &[i32]) -> FlexTensor {
    each_row::<E>(logits, |row, logits| {
        let least = kth_largest(logits, most(top_k[row]));
        for x in logits {
            if *x < least {
                *x = f32::NEG_INFINITY;
            }
        }
    })
}

/// What there are to be fewer of above.
pub(super) fn most(top_k: i32) -> usize {
    top_k.max(1) as usize
}

/// What there is to be less of above. Masses are rounded, so that they may add up to more than 1: from 1 on there is no
/// limit, nor with NaN.
pub(super) fn limit(top_p: f32) -> u64 {
    if top_p < 1.0 { mass(top_p).max(1) } else { u64::MAX }
}

/// The smallest number above which there are fewer than `k`, `-inf` if there are not as many.
///
/// Few numbers pass the `k`th largest of those before them, so that the row is hardly more than read.
pub(super) fn kth_largest(row: &[f32], k: usize) -> f32 {
    let room = k.saturating_mul(2).max(128).min(row.len());
    let mut kept = Vec::with_capacity(room);
    let select = |kept: &mut Vec<f32>| *kept.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
    let mut least = f32::NEG_INFINITY;
    passing(
        row,
        least,
        |x, least| x > least,
        |_, x| {
            kept.push(x);
            if kept.len() == room && k < room {
                least = select(&mut kept);
                kept.truncate(k);
            }
            least
        },
    );
    if kept.len() < k { f32::NEG_INFINITY } else { select(&mut kept) }
}

per_instruction_set! {
    /// Calls `each` with the place of every number that passes `bar`, and the number; it returns the bar for the next. Where
    /// few pass, the row is hardly more than read: a block of which none does is left at once.
    pub(super) fn passing<P: Fn(f32, f32) -> bool, F: FnMut(usize, f32) -> f32>(
        row: &[f32],
        bar: f32,
        passes: P,
        each: F,
    ) {
        const BLOCK: usize = 64;
        let (mut bar, mut each) = (bar, each);
        for (block, numbers) in row.chunks(BLOCK).enumerate() {
            if numbers.iter().fold(false, |any, &x| any | passes(x, bar)) {
                for (at, &x) in numbers.iter().enumerate() {
                    if passes(x, bar) {
                        bar = each(block * BLOCK + at, x);
                    }
                }
            }
        }
    }
}

/// The smallest probability above which there is less mass than `limit`, `-inf` if there is nowhere as much, and how much
/// there is from it on.
pub(super) fn threshold(row: &[f32], limit: u64) -> (f32, u64) {
    let mut candidates: Vec<f32> = row.iter().copied().filter(|x| !x.is_nan()).collect();
    // Of what is larger than all candidates.
    let mut above = 0;
    while let Some(&pivot) = candidates.get(candidates.len() / 2) {
        let total = |numbers: &mut dyn Iterator<Item = &f32>| numbers.map(|&x| mass(x)).sum::<u64>();
        let larger = total(&mut candidates.iter().filter(|x| **x > pivot));
        if above + larger >= limit {
            candidates.retain(|&x| x > pivot);
            continue;
        }
        let from_pivot = above + larger + total(&mut candidates.iter().filter(|x| **x == pivot));
        if from_pivot >= limit {
            return (pivot, from_pivot);
        }
        above = from_pivot;
        candidates.retain(|&x| x < pivot);
    }
    (f32::NEG_INFINITY, above)
}

/// The rows of `x`, each changed by `change`.
fn each_row<E: Float>(x: FlexTensor, change: impl Fn(usize, &mut [f32]) + Sync) -> FlexTensor {
    let x = with_rows(x);
    let [rows, width] = dims(&x);
    let source: Rows<'_, E, 1> = Rows::of(&x);
    by_rows([rows, width], 0, |row, changed: &mut [E]| {
        with_scratch(width, |wide| {
            widen_row(source.row([row]), wide);
            change(row, wide);
            changed.iter_mut().zip(wide).for_each(|(to, from)| *to = E::narrow(*from));
        });
    })
}
