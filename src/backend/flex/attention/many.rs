//! Many rows: prefill. A tile of keys is widened once and multiplied with every block of rows.
//!
//! In the scores of a block a lane is a row: the queries are transposed, so that neither the products nor the
//! softmax ever sum across a register. In `O += P V` a lane is an element of a head.

use std::{array::from_fn, hint::black_box, ops::Range};

use multiversion::target::match_target;

use super::super::{
    float::{Float, Widen, widen_row},
    scratch::{cut, with_scratch},
    simd::{self, KEYS, per_instruction_set},
};
use super::problem::{Cache, Problem, Work, finish};
use crate::types::LogitTile;

/// Keys of a tile: a multiple of `KEYS`.
const TILE: usize = 32;

pub(super) fn attend<E: Float, C: Widen>(
    problem: &Problem<'_, E, C>,
    work: &Work,
    output: &mut [&mut [E]],
    lse: &mut [&mut [f32]],
) {
    // Enough for every width.
    const LANES: usize = 32;
    let rows = ((work.queries.end - work.queries.start) * problem.group).next_multiple_of(LANES);
    let (dim, dim_vo) = (problem.head_dim, problem.head_dim_vo.next_multiple_of(LANES));
    let len = rows * (dim + dim_vo + 2) + TILE * (dim + dim_vo + LANES);
    with_scratch(len, |scratch| versions(problem, work, scratch, output, lse));
}

per_instruction_set! {
    fn versions<E: Float, C: Widen>(
        problem: &Problem<'_, E, C>,
        work: &Work,
        scratch: &mut [f32],
        output: &mut [&mut [E]],
        lse: &mut [&mut [f32]],
    ) {
        match_target! {
            "x86_64+avx512f" => body::<E, C, true, 16, 32>(problem, work, scratch, output, lse),
            "x86_64+avx2+fma" => body::<E, C, true, 8, 16>(problem, work, scratch, output, lse),
            "aarch64+neon" => body::<E, C, true, 4, 8>(problem, work, scratch, output, lse),
            _ => body::<E, C, false, 4, 8>(problem, work, scratch, output, lse),
        }
    }
}

/// `LANES` is twice `WIDTH`: two registers of rows make a block.
#[inline(always)]
fn body<E: Float, C: Widen, const FMA: bool, const WIDTH: usize, const LANES: usize>(
    problem: &Problem<'_, E, C>,
    work: &Work,
    mut scratch: &mut [f32],
    output: &mut [&mut [E]],
    lse: &mut [&mut [f32]],
) {
    let (group, dim, dim_vo) = (problem.group, problem.head_dim, problem.head_dim_vo);
    let padded = dim_vo.next_multiple_of(LANES);
    let rows = (work.queries.end - work.queries.start) * group;
    let tile_k = cut(&mut scratch, TILE * dim);
    let tile_v = cut(&mut scratch, TILE * padded);
    let scores = cut(&mut scratch, TILE * LANES);
    let (k_scale, v_scale) = (problem.k_scale(work), problem.v_scale(work));
    // Queries `[dim, LANES]`, sums `[LANES, padded]`, maximum and sum of exponentials `[LANES]` of each block.
    let block_len = LANES * (dim + padded + 2);
    let blocks = &mut scratch[..rows.div_ceil(LANES) * block_len];
    for (at, block) in blocks.chunks_exact_mut(block_len).enumerate() {
        block.fill(0.0);
        let (queries, rest) = block.split_at_mut(LANES * dim);
        for lane in 0..LANES.min(rows - at * LANES) {
            let query = problem.query(work, at * LANES + lane);
            for (into, from) in queries.iter_mut().skip(lane).step_by(LANES).zip(query) {
                *into = from.widen() * k_scale;
            }
        }
        let state = &mut rest[LANES * padded..];
        state[..LANES].fill(f32::NEG_INFINITY);
        for lane in 0..LANES.min(rows - at * LANES) {
            (state[lane], state[LANES + lane]) = problem.start(work, at * LANES + lane);
        }
    }

    let seen = problem.seen_by_any(work);
    for from in seen.clone().step_by(TILE) {
        let keys = (seen.end - from).min(TILE);
        let tile = Tile {
            from,
            keys,
            k: Wide::of(problem, &problem.k, work, from..from + keys, [dim, dim], tile_k),
            v: Wide::of(problem, &problem.v, work, from..from + keys, [dim_vo, padded], tile_v),
            scales: problem.scales_of(work, from, keys),
        };
        for (at, block) in blocks.chunks_exact_mut(block_len).enumerate() {
            let first = at * LANES;
            let rows = LANES.min(rows - first);
            let ranges: [(usize, usize); LANES] = from_fn(|lane| {
                let row = first + lane.min(rows - 1);
                let range = problem.seen(&work.request, work.queries.start + row / group);
                let end = range.end.saturating_sub(from).min(keys);
                (range.start.saturating_sub(from).min(end), end)
            });
            if ranges.iter().all(|(start, end)| start == end) {
                continue;
            }
            let rows = first..first + rows;
            attend_tile::<E, C, FMA, WIDTH, LANES>(problem, work, &tile, &ranges, rows, scores, block);
        }
    }

    for (at, block) in blocks.chunks_exact_mut(block_len).enumerate() {
        let (sums, state) = block[LANES * dim..].split_at_mut(LANES * padded);
        for lane in 0..LANES.min(rows - at * LANES) {
            let (factor, row_lse) = finish(problem.softmax, state[LANES + lane], state[lane]);
            let factor = factor * v_scale;
            let row = at * LANES + lane;
            let into = &mut output[row / group][row % group * dim_vo..][..dim_vo];
            let sums = &mut sums[lane * padded..][..dim_vo];
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
}

/// Keys or values of a tile in f32: where they are if they need neither widening nor padding, else a copy.
struct Wide<'a> {
    data: &'a [f32],
    places: [usize; TILE],
}

impl<'a> Wide<'a> {
    #[inline(always)]
    fn of<E: Float, C: Widen>(
        problem: &Problem<'a, E, C>,
        cache: &Cache<'a, C>,
        work: &Work,
        keys: Range<usize>,
        [width, padded]: [usize; 2],
        copy: &'a mut [f32],
    ) -> Self {
        let mut places = [0; TILE];
        let (used, unused) = places.split_at_mut(keys.len());
        problem.locate(cache, work, keys.start, used);
        let data = match C::as_wide(cache.data) {
            Some(data) if width == padded => data,
            _ => {
                for (copy, place) in copy.chunks_exact_mut(padded).zip(used.iter()) {
                    let (wide, padding) = copy.split_at_mut(width);
                    widen_row(cache.row(*place, width), wide);
                    padding.fill(0.0);
                }
                for (at, place) in used.iter_mut().enumerate() {
                    *place = at * padded;
                }
                &*copy
            }
        };
        // The scores of the padding keys are computed and not used.
        unused.fill(used.last().copied().unwrap_or_default());
        Self { data, places }
    }
}

struct Tile<'a> {
    /// Its first key.
    from: usize,
    keys: usize,
    k: Wide<'a>,
    v: Wide<'a>,
    /// The scales of each key and value, if they have them.
    scales: Option<[[f32; TILE]; 2]>,
}

/// One tile of keys for one block of rows; lane `i` sees the keys `ranges[i]` of the tile.
#[inline(always)]
fn attend_tile<E: Float, C: Widen, const FMA: bool, const WIDTH: usize, const LANES: usize>(
    problem: &Problem<'_, E, C>,
    work: &Work,
    tile: &Tile<'_>,
    ranges: &[(usize, usize); LANES],
    rows: Range<usize>,
    scores: &mut [f32],
    block: &mut [f32],
) {
    let (dim, padded) = (problem.head_dim, problem.head_dim_vo.next_multiple_of(LANES));
    let (queries, rest) = block.split_at_mut(LANES * dim);
    let (sums, state) = rest.split_at_mut(LANES * padded);
    let ([max, sum], []) = state.as_chunks_mut::<LANES>() else { return };

    let queries = queries.as_chunks::<WIDTH>().0.as_chunks::<2>().0;
    let fours = tile.keys.div_ceil(KEYS);
    let places = &tile.k.places.as_chunks::<KEYS>().0[..fours];
    let blocks = scores.as_chunks_mut::<WIDTH>().0.as_chunks_mut::<2>().0.as_chunks_mut::<KEYS>().0;
    for (places, scores) in places.iter().zip(blocks) {
        let keys = from_fn(|key| &tile.k.data[places[key]..][..dim]);
        *scores = simd::outer::<FMA, WIDTH, KEYS>(queries, keys, [[[0.0; WIDTH]; 2]; KEYS]);
    }
    let all_see_all = ranges.iter().all(|&range| range == (0, tile.keys));
    let scores = &mut scores[..tile.keys * LANES];
    if let Some([of_keys, _]) = &tile.scales {
        for (scores, scale) in scores.as_chunks_mut::<LANES>().0.iter_mut().zip(of_keys) {
            scores.iter_mut().for_each(|score| *score *= scale);
        }
    }
    let row_of = |lane| problem.row(work, rows.start + lane);
    let mut logits = LogitTile::new(scores, [1, LANES], [rows.len(), tile.keys], tile.from, &row_of);
    problem.transform(&mut logits);
    let scores = scores.as_chunks_mut::<LANES>().0;
    if !all_see_all {
        for (key, scores) in scores.iter_mut().enumerate() {
            for (score, (start, end)) in scores.iter_mut().zip(ranges) {
                *score = if (*start..*end).contains(&key) { *score } else { problem.masked() };
            }
        }
    }

    let mut fade = [1.0; LANES];
    if problem.softmax {
        let mut new = *max;
        for scores in scores.iter() {
            for lane in 0..LANES {
                // A comparison instead of `max`: it is one instruction, and ignores a NaN as well.
                new[lane] = if scores[lane] > new[lane] { scores[lane] } else { new[lane] };
            }
        }
        let shift = new.map(|new| if new == f32::NEG_INFINITY { 0.0 } else { new });
        for lane in 0..LANES {
            fade[lane] = simd::exp::<FMA>(max[lane] - shift[lane]);
            sum[lane] *= fade[lane];
        }
        for scores in scores.iter_mut() {
            for lane in 0..LANES {
                scores[lane] = simd::exp::<FMA>(scores[lane] - shift[lane]);
                sum[lane] += scores[lane];
            }
        }
        *max = new;
    }

    if let Some([_, of_values]) = &tile.scales {
        for (weights, scale) in scores.iter_mut().zip(of_values) {
            weights.iter_mut().for_each(|weight| *weight *= scale);
        }
    }
    if all_see_all {
        weigh::<FMA, WIDTH, LANES>(scores, &fade, &tile.v, rows.len(), sums);
        return;
    }
    // Row by row: 0 times the infinite value of a key that a row does not see would be NaN.
    for (lane, sums) in sums.chunks_exact_mut(padded).enumerate().take(rows.len()) {
        sums.iter_mut().for_each(|sum| *sum *= fade[lane]);
        let (start, end) = ranges[lane];
        let value = |key: usize| &tile.v.data[tile.v.places[key]..][..padded];
        let mut key = start;
        while key + 4 <= end {
            let keys = [key, key + 1, key + 2, key + 3];
            let weights = [keys.map(|key| scores[key][lane])];
            simd::accumulate::<f32, FMA, WIDTH, 1, 4>([&mut *sums], keys.map(value), weights);
            key += 4;
        }
        while key < end {
            simd::accumulate::<f32, FMA, WIDTH, 1, 1>([&mut *sums], [value(key)], [[scores[key][lane]]]);
            key += 1;
        }
    }
}

/// `sums[row] = fade[row] · sums[row] + Σ_key weights[key][row] · values[key]`.
#[inline(always)]
fn weigh<const FMA: bool, const WIDTH: usize, const LANES: usize>(
    weights: &[[f32; LANES]],
    fade: &[f32; LANES],
    values: &Wide<'_>,
    rows: usize,
    sums: &mut [f32],
) {
    /// Rows at once: as many registers of sums as `simd::outer` has.
    const ROWS: usize = 4;
    let padded = sums.len() / LANES;
    for (at, sums) in sums.chunks_exact_mut(ROWS * padded).enumerate().take(rows.div_ceil(ROWS)) {
        for column in (0..padded).step_by(LANES) {
            let mut parts = [[[0.0; WIDTH]; 2]; ROWS];
            for (weights, place) in weights.iter().zip(&values.places) {
                let weights: &[f32; ROWS] = &weights.as_chunks().0[at];
                let value = values.data[place + column..][..LANES].as_chunks::<WIDTH>().0;
                for row in 0..ROWS {
                    for half in 0..2 {
                        for lane in 0..WIDTH {
                            parts[row][half][lane] =
                                simd::mul_add::<FMA>(weights[row], value[half][lane], parts[row][half][lane]);
                        }
                    }
                }
            }
            let parts = black_box(parts);
            for row in 0..ROWS {
                let fade = fade[at * ROWS + row];
                let sums = &mut sums[row * padded + column..][..LANES];
                for (sum, part) in sums.iter_mut().zip(parts[row].as_flattened()) {
                    *sum = simd::mul_add::<FMA>(*sum, fade, *part);
                }
            }
        }
    }
}
