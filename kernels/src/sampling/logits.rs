//! Sampling from logits by the largest sum with Gumbel noise: one pass, no exponential of a logit.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use super::draw::{DRAW_WORDS, draw_of, philox, word};
use super::mass::key_of;
use super::search::{IN_FLIGHT, Row, load};
use crate::math::{ln, ln_near, widen};
use crate::team::{Team, largest};
use crate::tensor::{Result, addresses, alignment, contiguous, rows, shape, vector};

const KERNEL: &str = "sample_logits";

/// `argmax(logit / temperature + gumbel)`, the first if several are; `argmax(logit)` at temperature 0. Unit `u` of `U`
/// takes the vectors `u, u + U, ..`.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn sample_logits<F: Float, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    temperature: &[f32],
    draws: &[i32],
    samples: &mut [i32],
    valid: &mut [i32],
    total_draws: usize,
    #[comptime] team: Team,
    #[comptime] lanes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let (rows, units) = comptime!((team.rows, team.units));
    let unit = UNIT_POS as usize % units;
    let at = CUBE_POS * rows + UNIT_POS as usize / units;
    if at >= total_draws {
        terminate!();
    }
    let draw = draw_of(draws, at);
    let vectors = logits.shape(1) / lanes;
    let start = draw.row * logits.stride(0) / lanes;
    let t = temperature[draw.row];
    let is_greedy = t == 0.0f32;
    let inverse = 1.0f32 / t;

    let mut best = f32::NEG_INFINITY.runtime();
    let mut id = u32::MAX.runtime();
    // A temperature below 0, or NaN, is no temperature.
    let mut is_valid = t >= 0.0f32;
    let row = Row::new(start, vectors);
    let mut turn = unit;
    while turn < vectors {
        let read = load(logits, &row, turn, units);
        #[unroll]
        for f in 0..IN_FLIGHT {
            let i = turn + comptime!(f * units);
            if i < vectors {
                let vector = widen::<F, N>(read[f]);
                let first = i * lanes;
                #[unroll]
                for block in 0..comptime!(lanes.div_ceil(4)) {
                    let words = philox(u32::cast_from(first / 4 + block), &draw);
                    #[unroll]
                    for lane in 0..comptime!(lanes.min(4)) {
                        let logit = vector.extract(comptime!(4 * block + lane));
                        let random = word(&words, (first + lane) % 4);
                        let score = select(is_greedy, logit, fma(logit, inverse, gumbel(random)));
                        is_valid = is_valid && !logit.is_nan();
                        // Not `max`: the first of equals counts.
                        let is_better = score > best;
                        best = select(is_better, score, best);
                        id = select(is_better, u32::cast_from(first + 4 * block + lane), id);
                    }
                }
            }
        }
        turn += comptime!(IN_FLIGHT * units);
    }

    // The first of those with the best score, unless some unit has seen what is none.
    let key = key_of(best);
    let is_best = largest(key, unit, team) == key;
    let id = !largest(select(is_best, !id, 0u32), unit, team);
    let is_valid = largest(u32::cast_from(!is_valid), unit, team) == 0u32;
    let is_valid = is_valid && id != u32::MAX;
    if unit == 0 {
        samples[at] = i32::cast_from(select(is_valid, id, 0u32));
        valid[at] = select(is_valid, 1i32, 0i32);
    }
}

/// `-ln(-ln(u))` for `u = (random + 1/2) / 2^32`, to the same bits on every device.
#[cube]
fn gumbel(random: u32) -> f32 {
    // Near 1 it is `1 - u` that f32 holds exactly, and on which the largest values depend.
    let complement = !random;
    let is_near_one = complement < 0x4afb_0cccu32;
    let near = ln_near((f32::cast_from(complement) + 0.5f32) * -2.328_306_4e-10_f32, 0.0f32);
    let far = ln((f32::cast_from(random) + 0.5f32) * 2.328_306_4e-10_f32);
    -ln(-select(is_near_one, near, far))
}

/// Logits, and where the samples go.
pub struct SampleLogits {
    /// `[rows, vocab]`.
    pub logits: TensorBinding,
    /// `[rows]` of f32, from 0.
    pub temperature: TensorBinding,
    /// `[draws, DRAW_WORDS]` of i32.
    pub draws: TensorBinding,
    /// `[draws]` of i32: the tokens.
    pub samples: TensorBinding,
    /// `[draws]` of i32: 1, or 0 if the row has a NaN or nothing above `-inf`; then the sample is 0.
    pub valid: TensorBinding,
}

/// Draws a token for each draw.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, sample: SampleLogits, dtype: ElemType) -> Result<()> {
    let SampleLogits { logits, temperature, draws, samples, valid } = sample;
    rows(KERNEL, "logits", &logits, 2)?;
    let [row_count, vocab] = [logits.shape[0], logits.shape[1]];
    contiguous(KERNEL, "temperature", &temperature, &[row_count])?;
    let count = samples.shape.first().copied().unwrap_or(0);
    contiguous(KERNEL, "draws", &draws, &[count, DRAW_WORDS])?;
    contiguous(KERNEL, "samples", &samples, &[count])?;
    contiguous(KERNEL, "valid", &valid, &[count])?;
    if count == 0 {
        return Ok(());
    }
    if vocab == 0 || vocab > i32::MAX as usize || row_count == 0 {
        return Err(shape(KERNEL, "logits", &logits, "rows of 1 to i32::MAX elements"));
    }

    let lanes = vector(client, dtype, &[vocab], alignment(&logits));
    let (team, cubes, dim) = Team::of(KERNEL, client, count, vocab / lanes, 1024)?;
    let address = addresses(&[(&logits, dtype.size()), (&draws, 4)]);
    // SAFETY: a unit beyond the last draw stops. The rows that the draws name are below those of logits and temperature:
    // their caller checked it. A vector read is below the vectors of a row; shared memory has a place for each group.
    unsafe {
        sample_logits::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            lanes,
            logits.into_tensor_arg(),
            temperature.into_buffer_arg(),
            draws.into_buffer_arg(),
            samples.into_buffer_arg(),
            valid.into_buffer_arg(),
            count,
            team,
            lanes,
            dtype,
        );
    }
    Ok(())
}
