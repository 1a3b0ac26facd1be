//! Few rows: decoding. The cache is read once, in the order of memory, and widened in registers.
//!
//! For each tile of keys: scores of all rows, exponentials, weighted sum of the values. A lane is an element of a head.

use std::{array::from_fn, ops::Range};

use multiversion::target::match_target;

use super::super::{
    float::{Float, Widen, widen_row},
    scratch::{cut, with_scratch},
    simd::{self, STEP, per_instruction_set},
};
use super::problem::{Cache, Problem, Work, finish};
use crate::types::LogitTile;

/// Rows at most: above, the lanes of `many` are filled well enough to win.
pub(super) const ROWS: usize = 8;
/// Keys of a tile.
const TILE: usize = 64;

pub(super) fn attend<E: Float, C: Widen>(
    problem: &Problem<'_, E, C>,
    work: &Work,
    output: &mut [&mut [E]],
    lse: &mut [&mut [f32]],
) {
    let rows = (work.queries.end - work.queries.start) * problem.group;
    with_scratch(rows * (problem.head_dim + problem.head_dim_vo + TILE), |scratch| {
        versions(problem, work, rows, scratch, output, lse)
    });
}

per_instruction_set! {
    fn versions<E: Float, C: Widen>(
        problem: &Problem<'_, E, C>,
        work: &Work,
        rows: usize,
        scratch: &mut [f32],
        output: &mut [&mut [E]],
        lse: &mut [&mut [f32]],
    ) {
        match_target! {
            "x86_64+avx512f" => body::<E, C, true, 16>(problem, work, rows, scratch, output, lse),
            "x86_64+avx2+fma" => body::<E, C, true, 8>(problem, work, rows, scratch, output, lse),
            // Two registers of NEON, which has 32 of them.
            "aarch64+neon" => body::<E, C, true, 8>(problem, work, rows, scratch, output, lse),
            _ => body::<E, C, false, 4>(problem, work, rows, scratch, output, lse),
        }
    }
}

#[inline(always)]
fn body<E: Float, C: Widen, const FMA: bool, const LANES: usize>(
    problem: &Problem<'_, E, C>,
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
    let k_scale = problem.k_scale(work);
    for (row, query) in queries.chunks_exact_mut(head_dim).enumerate() {
        widen_row(problem.query(work, row), query);
        query.iter_mut().for_each(|x| *x *= k_scale);
    }
    sums.fill(0.0);
    let mut max = [f32::NEG_INFINITY; ROWS];
    let mut sum = [0.0; ROWS];
    for row in 0..rows {
        (max[row], sum[row]) = problem.start(work, row);
    }
    let seen = problem.seen_by_any(work);
    let mut next = Places::of(problem, &problem.k, work, seen.clone());
    let mut from = seen.start;
    while from < seen.end {
        let k = next;
        let keys = k.len;
        let v = Places::of(problem, &problem.v, work, from..seen.end);
        next = Places::of(problem, &problem.k, work, from + keys..seen.end);
        score::<E, C, FMA, LANES>(problem, queries, k.get(), v.get(), scores);
        let scales = problem.scales_of::<TILE>(work, from, keys);
        if let Some([of_keys, _]) = &scales {
            for scores in scores.chunks_exact_mut(TILE).take(rows) {
                scores.iter_mut().zip(of_keys).for_each(|(score, scale)| *score *= scale);
            }
        }
        let row_of = |row| problem.row(work, row);
        problem.transform(&mut LogitTile::new(scores, [TILE, 1], [rows, keys], from, &row_of));
        let mut all_see_all = true;
        for row in 0..rows {
            let range = problem.seen(&work.request, work.queries.start + row / group);
            let (first, end) = (range.start.saturating_sub(from), range.end.saturating_sub(from).min(keys));
            all_see_all &= first == 0 && end == keys;
            let scores = &mut scores[row * TILE..][..TILE];
            scores[..first.min(keys)].fill(problem.masked());
            scores[end..].fill(problem.masked());
            if !problem.softmax {
                continue;
            }
            let new = maximum(scores).max(max[row]);
            let shift = if new == f32::NEG_INFINITY { 0.0 } else { new };
            let fade = simd::exp::<FMA>(max[row] - shift);
            sum[row] = sum[row] * fade + exponentials::<FMA>(scores, shift);
            max[row] = new;
            if fade != 1.0 {
                sums[row * head_dim_vo..][..head_dim_vo].iter_mut().for_each(|sum| *sum *= fade);
            }
        }
        if let Some([_, of_values]) = &scales {
            for weights in scores.chunks_exact_mut(TILE).take(rows) {
                weights.iter_mut().zip(of_values).for_each(|(weight, scale)| *weight *= scale);
            }
        }
        if all_see_all {
            weigh::<E, C, FMA, LANES>(problem, sums, v.get(), next.get(), scores);
        } else {
            // Row by row: 0 times the infinite value of a key that a row does not see would be NaN.
            for (row, sums) in sums.chunks_exact_mut(head_dim_vo).enumerate() {
                let range = problem.seen(&work.request, work.queries.start + row / group);
                let end = range.end.saturating_sub(from).min(keys);
                let first = range.start.saturating_sub(from).min(end);
                let weights = &scores[row * TILE + first..];
                weigh::<E, C, FMA, LANES>(problem, sums, &v.get()[first..end], &[], weights);
            }
        }
        from += keys;
    }
    for (row, sums) in sums.chunks_exact_mut(head_dim_vo).enumerate() {
        let (factor, row_lse) = finish(problem.softmax, sum[row], max[row]);
        let factor = factor * problem.v_scale(work);
        let into = &mut output[row / group][row % group * head_dim_vo..][..head_dim_vo];
        sums.iter_mut().for_each(|sum| *sum *= factor);
        problem.variant.finish_row(sums, &problem.row(work, row));
        for (into, sum) in into.iter_mut().zip(sums) {
            *into = E::narrow(*sum);
        }
        if let Some(lse) = lse.get_mut(row / group).and_then(|lse| lse.get_mut(row % group)) {
            *lse = row_lse;
        }
    }
}

/// Offsets of the keys or values of a tile.
#[derive(Clone, Copy)]
struct Places {
    places: [usize; TILE],
    len: usize,
}

impl Places {
    /// The places of the first keys of a range: at most the keys of a tile.
    #[inline(always)]
    fn of<E: Float, C: Widen>(
        problem: &Problem<'_, E, C>,
        cache: &Cache<'_, C>,
        work: &Work,
        keys: Range<usize>,
    ) -> Self {
        let (mut places, len) = ([0; TILE], keys.len().min(TILE));
        problem.locate(cache, work, keys.start, &mut places[..len]);
        Self { places, len }
    }

    #[inline(always)]
    fn get(&self) -> &[usize] {
        &self.places[..self.len]
    }
}

/// `scores[row][key] = queries[row] · keys[key]`, rows of scores `TILE` apart. On the way, fetches `values` into the
/// processor's cache: the keys of one head may lie so far apart that it would not foresee them.
#[inline(always)]
fn score<E: Float, C: Widen, const FMA: bool, const LANES: usize>(
    problem: &Problem<'_, E, C>,
    queries: &[f32],
    keys: &[usize],
    values: &[usize],
    scores: &mut [f32],
) {
    let rows = queries.len() / problem.head_dim;
    let mut row = 0;
    while row < rows {
        let ahead = if row == 0 { values } else { &[] };
        let (queries, scores) = (&queries[row * problem.head_dim..], &mut scores[row * TILE..]);
        row += match rows - row {
            1 => score_rows::<E, C, FMA, LANES, 1, 8>(problem, queries, keys, ahead, scores),
            2 | 3 => score_rows::<E, C, FMA, LANES, 2, 4>(problem, queries, keys, ahead, scores),
            _ => score_rows::<E, C, FMA, LANES, 4, 2>(problem, queries, keys, ahead, scores),
        };
    }
}

/// The scores of the first `ROWS` rows.
#[inline(always)]
fn score_rows<
    E: Float,
    C: Widen,
    const FMA: bool,
    const LANES: usize,
    const ROWS: usize,
    const KEYS: usize,
>(
    problem: &Problem<'_, E, C>,
    queries: &[f32],
    places: &[usize],
    ahead: &[usize],
    scores: &mut [f32],
) -> usize {
    let dim = problem.head_dim;
    let mut rows = [queries; ROWS];
    for (row, query) in rows.iter_mut().enumerate() {
        *query = &queries[row * dim..][..dim];
    }
    let (blocks, rest) = places.as_chunks::<KEYS>();
    for (block, places) in blocks.iter().enumerate() {
        for place in ahead.iter().skip(block * KEYS).take(KEYS) {
            problem.v.fetch(*place, problem.head_dim_vo);
        }
        let mut keys = [problem.k.row(places[0], dim); KEYS];
        for (key, place) in keys.iter_mut().zip(places) {
            *key = problem.k.row(*place, dim);
        }
        let dots = simd::dots::<C, FMA, LANES, ROWS, KEYS>(rows, keys);
        for (row, dots) in dots.iter().enumerate() {
            scores[row * TILE + block * KEYS..][..KEYS].copy_from_slice(dots);
        }
    }
    for (at, place) in rest.iter().enumerate() {
        let dots = simd::dots::<C, FMA, LANES, ROWS, 1>(rows, [problem.k.row(*place, dim)]);
        for (row, [dot]) in dots.into_iter().enumerate() {
            scores[row * TILE + blocks.len() * KEYS + at] = dot;
        }
    }
    ROWS
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

/// Replaces `scores` by `e^(scores - shift)` and returns the sum of them.
#[inline(always)]
fn exponentials<const FMA: bool>(scores: &mut [f32], shift: f32) -> f32 {
    let mut sums = [0.0; STEP];
    for scores in scores.as_chunks_mut::<STEP>().0 {
        for lane in 0..STEP {
            scores[lane] = simd::exp::<FMA>(scores[lane] - shift);
            sums[lane] += scores[lane];
        }
    }
    simd::sum(sums)
}

/// `sums[row] += Σ_key weights[row][key] · values[key]`, rows of probabilities `TILE` apart. Prefetches the
/// next keys.
#[inline(always)]
fn weigh<E: Float, C: Widen, const FMA: bool, const LANES: usize>(
    problem: &Problem<'_, E, C>,
    sums: &mut [f32],
    values: &[usize],
    next: &[usize],
    weights: &[f32],
) {
    let dim = problem.head_dim_vo;
    let rows = sums.len() / dim;
    let mut row = 0;
    while row < rows {
        let ahead = if row == 0 { next } else { &[] };
        let (sums, weights) = (&mut sums[row * dim..], &weights[row * TILE..]);
        row += match rows - row {
            1 => weigh_rows::<E, C, FMA, LANES, 1, 8>(problem, sums, values, ahead, weights),
            2 | 3 => weigh_rows::<E, C, FMA, LANES, 2, 4>(problem, sums, values, ahead, weights),
            _ => weigh_rows::<E, C, FMA, LANES, 4, 2>(problem, sums, values, ahead, weights),
        };
    }
}

/// The sums of the first `ROWS` rows.
#[inline(always)]
fn weigh_rows<
    E: Float,
    C: Widen,
    const FMA: bool,
    const LANES: usize,
    const ROWS: usize,
    const KEYS: usize,
>(
    problem: &Problem<'_, E, C>,
    sums: &mut [f32],
    places: &[usize],
    ahead: &[usize],
    weights: &[f32],
) -> usize {
    let dim = problem.head_dim_vo;
    let (blocks, rest) = places.as_chunks::<KEYS>();
    for (block, places) in blocks.iter().enumerate() {
        for place in ahead.iter().skip(block * KEYS).take(KEYS) {
            problem.k.fetch(*place, problem.head_dim);
        }
        let mut values = [problem.v.row(places[0], dim); KEYS];
        for (value, place) in values.iter_mut().zip(places) {
            *value = problem.v.row(*place, dim);
        }
        let mut weights_of = [[0.0; KEYS]; ROWS];
        for (row, weights_of) in weights_of.iter_mut().enumerate() {
            weights_of.copy_from_slice(&weights[row * TILE + block * KEYS..][..KEYS]);
        }
        simd::accumulate::<C, FMA, LANES, ROWS, KEYS>(split(sums, dim), values, weights_of);
    }
    for (at, place) in rest.iter().enumerate() {
        let mut weights_of = [[0.0]; ROWS];
        for (row, [weight]) in weights_of.iter_mut().enumerate() {
            *weight = weights[row * TILE + blocks.len() * KEYS + at];
        }
        let values = [problem.v.row(*place, dim)];
        simd::accumulate::<C, FMA, LANES, ROWS, 1>(split(sums, dim), values, weights_of);
    }
    ROWS
}

/// The first `ROWS` rows of `width`.
#[inline(always)]
fn split<const ROWS: usize>(rows: &mut [f32], width: usize) -> [&mut [f32]; ROWS] {
    let mut split: [&mut [f32]; ROWS] = from_fn(|_| &mut [][..]);
    for (split, row) in split.iter_mut().zip(rows.chunks_exact_mut(width)) {
        *split = row;
    }
    split
}
