//! Few rows: decoding. The cache is read once, in the order it lies, and widened in registers.
//!
//! For each tile of keys: scores of all rows, exponentials, weighted sum of the values. A lane is an element of a head.

use multiversion::{multiversion, target::target_cfg_f};

use super::super::{
    float::{Float, widen_row},
    scratch::{cut, with_scratch},
    simd::{self, STEP},
};
use super::{Problem, Work, exponents, finish};

/// Rows at most: above, the lanes of `many` are filled well enough to win.
pub(super) const ROWS: usize = 8;
/// Keys of a tile.
const TILE: usize = 64;

pub(super) fn attend<E: Float>(
    problem: &Problem<'_, E>,
    work: &Work,
    output: &mut [&mut [E]],
    lse: &mut [&mut [f32]],
) {
    let rows = (work.queries.end - work.queries.start) * problem.group;
    with_scratch(rows * (problem.head_dim + problem.head_dim_vo + TILE), |scratch| {
        versions(problem, work, rows, scratch, output, lse)
    });
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
fn versions<E: Float>(
    problem: &Problem<'_, E>,
    work: &Work,
    rows: usize,
    scratch: &mut [f32],
    output: &mut [&mut [E]],
    lse: &mut [&mut [f32]],
) {
    // NEON has nothing but fused.
    if target_cfg_f!(target_feature = "fma") || cfg!(target_arch = "aarch64") {
        body::<E, true>(problem, work, rows, scratch, output, lse)
    } else {
        body::<E, false>(problem, work, rows, scratch, output, lse)
    }
}

#[inline(always)]
fn body<E: Float, const FMA: bool>(
    problem: &Problem<'_, E>,
    work: &Work,
    rows: usize,
    mut scratch: &mut [f32],
    output: &mut [&mut [E]],
    lse: &mut [&mut [f32]],
) {
    let (head_dim, head_dim_vo, group) = (problem.head_dim, problem.head_dim_vo, problem.group);
    let queries = cut(&mut scratch, rows * head_dim);
    let sums = cut(&mut scratch, rows * head_dim_vo);
    let scores = scratch;
    for (row, query) in queries.chunks_exact_mut(head_dim).enumerate() {
        widen_row(problem.query(work, row), query);
    }
    sums.fill(0.0);
    let mut max = [f32::NEG_INFINITY; ROWS];
    let mut sum = [0.0; ROWS];
    let seen = problem.seen_by_any(work);
    let mut places = [0; TILE];
    for from in seen.clone().step_by(TILE) {
        let keys = (seen.end - from).min(TILE);
        problem.locate(&problem.k, work, from, &mut places[..keys]);
        score::<E, FMA>(problem, queries, &places[..keys], scores);
        let mut all_see_all = true;
        for row in 0..rows {
            let range = problem.seen(&work.request, work.queries.start + row / group);
            let (first, end) = (range.start.saturating_sub(from), range.end.saturating_sub(from).min(keys));
            all_see_all &= first == 0 && end == keys;
            let scores = &mut scores[row * TILE..][..TILE];
            exponents::<FMA>(&problem.params, &mut scores[..keys]);
            scores[..first.min(keys)].fill(f32::NEG_INFINITY);
            scores[end..].fill(f32::NEG_INFINITY);
            let new = maximum(scores).max(max[row]);
            let shift = if new == f32::NEG_INFINITY { 0.0 } else { new };
            let fade = simd::exp2::<FMA>(max[row] - shift);
            sum[row] = sum[row] * fade + exponentials::<FMA>(scores, shift);
            max[row] = new;
            if fade != 1.0 {
                sums[row * head_dim_vo..][..head_dim_vo].iter_mut().for_each(|sum| *sum *= fade);
            }
        }
        problem.locate(&problem.v, work, from, &mut places[..keys]);
        if all_see_all {
            weigh::<E, FMA>(problem, sums, &places[..keys], scores);
        } else {
            // Row by row: 0 times the infinite value of a key that a row does not see would be NaN.
            for (row, sums) in sums.chunks_exact_mut(head_dim_vo).enumerate() {
                let range = problem.seen(&work.request, work.queries.start + row / group);
                let end = range.end.saturating_sub(from).min(keys);
                let first = range.start.saturating_sub(from).min(end);
                weigh::<E, FMA>(problem, sums, &places[first..end], &scores[row * TILE + first..]);
            }
        }
    }
    for (row, sums) in sums.chunks_exact(head_dim_vo).enumerate() {
        let (factor, row_lse) = finish(sum[row], max[row]);
        let into = &mut output[row / group][row % group * head_dim_vo..][..head_dim_vo];
        for (into, sum) in into.iter_mut().zip(sums) {
            *into = E::narrow(sum * factor);
        }
        if let Some(lse) = lse.get_mut(row / group).and_then(|lse| lse.get_mut(row % group)) {
            *lse = row_lse;
        }
    }
}

/// `scores[row][key] = queries[row] · keys[key]`, rows of scores `TILE` apart.
#[inline(always)]
fn score<E: Float, const FMA: bool>(
    problem: &Problem<'_, E>,
    queries: &[f32],
    places: &[usize],
    scores: &mut [f32],
) {
    let head_dim = problem.head_dim;
    let rows = queries.len() / head_dim.max(1);
    let query = |row: usize| &queries[row * head_dim..][..head_dim];
    if rows == 1 {
        let (fours, rest) = places.as_chunks::<4>();
        for (places, scores) in fours.iter().zip(scores.as_chunks_mut::<4>().0) {
            [*scores] =
                simd::dots::<E, FMA, 1, 4>([query(0)], places.map(|place| problem.k.row(place, head_dim)));
        }
        for (place, score) in rest.iter().zip(&mut scores[fours.len() * 4..]) {
            [[*score]] = simd::dots::<E, FMA, 1, 1>([query(0)], [problem.k.row(*place, head_dim)]);
        }
        return;
    }
    for (key, place) in places.iter().enumerate() {
        let keys = [problem.k.row(*place, head_dim)];
        let mut row = 0;
        while row + 4 <= rows {
            let dots = simd::dots::<E, FMA, 4, 1>([0, 1, 2, 3].map(|i| query(row + i)), keys);
            for (i, [dot]) in dots.into_iter().enumerate() {
                scores[(row + i) * TILE + key] = dot;
            }
            row += 4;
        }
        while row + 2 <= rows {
            let dots = simd::dots::<E, FMA, 2, 1>([query(row), query(row + 1)], keys);
            scores[row * TILE + key] = dots[0][0];
            scores[(row + 1) * TILE + key] = dots[1][0];
            row += 2;
        }
        if row < rows {
            [[scores[row * TILE + key]]] = simd::dots::<E, FMA, 1, 1>([query(row)], keys);
        }
    }
}

#[inline(always)]
fn maximum(scores: &[f32]) -> f32 {
    let mut max = [f32::NEG_INFINITY; STEP];
    for scores in scores.as_chunks::<STEP>().0 {
        for lane in 0..STEP {
            max[lane] = if scores[lane] > max[lane] { scores[lane] } else { max[lane] };
        }
    }
    max.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Replaces `scores` by `2^(scores - shift)` and returns the sum of them.
#[inline(always)]
fn exponentials<const FMA: bool>(scores: &mut [f32], shift: f32) -> f32 {
    let mut sums = [0.0; STEP];
    for scores in scores.as_chunks_mut::<STEP>().0 {
        for lane in 0..STEP {
            scores[lane] = simd::exp2::<FMA>(scores[lane] - shift);
            sums[lane] += scores[lane];
        }
    }
    simd::sum(sums)
}

/// `sums[row] += Σ_key weights[row][key] · values[key]`, rows of weights `TILE` apart.
#[inline(always)]
fn weigh<E: Float, const FMA: bool>(
    problem: &Problem<'_, E>,
    sums: &mut [f32],
    places: &[usize],
    weights: &[f32],
) {
    let head_dim = problem.head_dim_vo;
    let (fours, rest) = places.as_chunks::<4>();
    let weight = |row: usize, key: usize| weights[row * TILE + key];
    for (at, places) in fours.iter().enumerate() {
        let values = places.map(|place| problem.v.row(place, head_dim));
        let weights = |row: usize| [0, 1, 2, 3].map(|key| weight(row, at * 4 + key));
        let mut pairs = sums.chunks_exact_mut(2 * head_dim);
        let mut row = 0;
        for pair in &mut pairs {
            let (one, two) = pair.split_at_mut(head_dim);
            simd::accumulate::<E, FMA, 2, 4>([one, two], values, [weights(row), weights(row + 1)]);
            row += 2;
        }
        let last = pairs.into_remainder();
        if !last.is_empty() {
            simd::accumulate::<E, FMA, 1, 4>([last], values, [weights(row)]);
        }
    }
    for (at, place) in rest.iter().enumerate() {
        let value = [problem.v.row(*place, head_dim)];
        for (row, sums) in sums.chunks_exact_mut(head_dim).enumerate() {
            simd::accumulate::<E, FMA, 1, 1>([sums], value, [[weight(row, fours.len() * 4 + at)]]);
        }
    }
}
