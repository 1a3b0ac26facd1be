//! Sampling from logits: the arithmetic of `kernels/src/sampling/logits.rs`, so that a draw gives the same token.

use std::sync::OnceLock;

use burn_flex::FlexTensor;

use super::draw::{Draw, below, high_half};
use super::float::{Float, with_wide};
use super::sampling::each_draw;
use super::simd::per_instruction_set;
use super::view::{self, Rows, dims, with_rows};
use super::weights::Temperature;

/// Logits of a chunk, whose probabilities are relative to its own largest logit.
const CHUNK: usize = 4096;
/// Logits of a block: its probabilities are computed again, to find a token in it.
const BLOCK: usize = 64;
/// Fractional bits of a fixed-point probability, and of a chunk's factor relative to the largest logit of its
/// row.
const MASS_BITS: i32 = 40;
const SHARE_BITS: i32 = 63;

/// The maximum of a chunk, NaN if it has one, and the sum of its masses.
#[derive(Debug, Clone, Copy)]
struct ChunkMass {
    max: f32,
    mass: u64,
}

/// A token for each draw, with probability `softmax(logits / temperature)`, and whether there is one.
pub(super) fn sample<E: Float>(
    logits: FlexTensor,
    temperature: FlexTensor,
    draws: FlexTensor,
) -> (FlexTensor, FlexTensor) {
    let logits = with_rows(logits);
    let source: Rows<'_, E, 1> = Rows::of(&logits);
    let temperature: Vec<_> = view::widened::<f32>(temperature).into_iter().map(Temperature::new).collect();
    // The probabilities of a row are computed once, by the first of its draws.
    let [rows, _] = dims(&logits);
    let chunk_masses: Vec<OnceLock<Vec<ChunkMass>>> = (0..rows).map(|_| OnceLock::new()).collect();
    each_draw(draws, |draw| {
        let (row, t) = (source.row([draw.row]), &temperature[draw.row]);
        let weigh_row =
            || row.chunks(CHUNK).map(|chunk| with_wide(chunk, |chunk| mass_of(chunk, t))).collect();
        if t.is_valid { pick(row, chunk_masses[draw.row].get_or_init(weigh_row), t, draw) } else { None }
    })
}

per_instruction_set! {
    fn mass_of(chunk: &[f32], t: &Temperature) -> ChunkMass {
        const LANES: usize = 16;
        let (mut highest, mut any_nan) = ([f32::NEG_INFINITY; LANES], [false; LANES]);
        let (blocks, rest) = chunk.as_chunks::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                highest[lane] = if block[lane] > highest[lane] { block[lane] } else { highest[lane] };
                any_nan[lane] |= block[lane].is_nan();
            }
        }
        if any_nan.contains(&true) || rest.iter().any(|x| x.is_nan()) {
            return ChunkMass { max: f32::NAN, mass: 0 };
        }
        let max = highest.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
        ChunkMass { max, mass: masses(chunk, max, t) }
    }
}

/// The sum of the masses of a chunk, or of a part of it. In f64 it is exact: below 2^53.
#[inline(always)]
fn masses(chunk: &[f32], max: f32, t: &Temperature) -> u64 {
    const LANES: usize = 8;
    let mut sums = [0.0_f64; LANES];
    let (blocks, rest) = chunk.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            sums[lane] += t.mass(block[lane], max, MASS_BITS);
        }
    }
    let rest: f64 = rest.iter().map(|&x| t.mass(x, max, MASS_BITS)).sum();
    (sums.iter().sum::<f64>() + rest) as u64
}

/// The first token at which the masses exceed a random part of their sum: first the chunk, then the token in it.
fn pick<E: Float>(row: &[E], chunks: &[ChunkMass], t: &Temperature, draw: &Draw) -> Option<usize> {
    let larger =
        |max: f32, chunk: &ChunkMass| if chunk.max > max || chunk.max.is_nan() { chunk.max } else { max };
    let max = chunks
        .iter()
        .fold(f32::NEG_INFINITY, |max, chunk| if max.is_nan() { max } else { larger(max, chunk) });
    if max.is_nan() || max == f32::NEG_INFINITY {
        return None;
    }
    let share = |chunk: &ChunkMass| t.mass(chunk.max, max, SHARE_BITS) as u64;
    let sum = chunks.iter().map(|chunk| scaled(chunk.mass, share(chunk))).sum();
    let mut rest = below(sum, draw.words(0));
    for (at, (chunk, logits)) in chunks.iter().zip(row.chunks(CHUNK)).enumerate() {
        let share = share(chunk);
        let mass = scaled(chunk.mass, share);
        if rest < mass {
            let id = with_wide(logits, |logits| find(logits, chunk.max, t, share, rest));
            return id.map(|id| at * CHUNK + id);
        }
        rest -= mass;
    }
    None
}

per_instruction_set! {
    /// The first of the logits of a chunk at which their masses, relative to the largest of the row, exceed `target`.
    fn find(chunk: &[f32], max: f32, t: &Temperature, share: u64, target: u64) -> Option<usize> {
        let mut reached = 0;
        for (at, block) in chunk.chunks(BLOCK).enumerate() {
            let end = reached + masses(block, max, t);
            if target < scaled(end, share) {
                let is_here = |&x: &f32| {
                    reached += t.mass(x, max, MASS_BITS) as u64;
                    target < scaled(reached, share)
                };
                return block.iter().position(is_here).map(|id| at * BLOCK + id);
            }
            reached = end;
        }
        None
    }
}

/// A mass of a chunk, relative to the largest of its row, rounded down. It rises with the mass, so that a token found
/// by it is one that has mass.
fn scaled(mass: u64, share: u64) -> u64 {
    high_half(2 * mass, share)
}
