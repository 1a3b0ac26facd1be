//! Sampling from logits: the probabilities of a chunk are relative to its own maximum, in one pass over
//! memory; a draw then picks a chunk and a token of it.
//!
//! | launch | reads | writes |
//! |---|---|---|
//! | weigh | the logits | the maximum of each chunk, and the sum of the masses in it |
//! | pick | these, and one chunk | the first token at which the masses exceed a random part of their sum |
//!
//! Chunks are the same on every device, and sums are of integers: a draw gives the same token wherever it is made.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use super::chunk::{CHUNK, Chunk, chunk_of, chunks_of, unit_and_chunk};
use super::draw::{DRAW_WORDS, below, draw_of, high_half, philox};
use super::fixed_point::MAX_VOCAB;
use super::fixed_point::{from_radix_key, radix_key};
use super::radix_select::{IN_FLIGHT, load};
use super::weights::{Temperature, WEIGHT_BITS};
use crate::device::tensor::{Result, addresses, alignment, buffer, contiguous, rows, shape, vector};
use crate::math::{sync_row, widen};
use crate::rows::row_group::{RowGroup, prefix_sum, row_max};

const KERNEL: &str = "sample_logits";

/// Fractional bits of the factor of a chunk, relative to the largest of its row.
const SHARE_BITS: u32 = 63;

/// Writes the maximum of each chunk, NaN if it has one, and the sum of its masses.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn weigh<F: Float, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    temperature: &[f32],
    maxima: &mut [f32],
    masses: &mut [u64],
    total: usize,
    #[comptime] row_group: RowGroup,
    #[comptime] lanes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let units = comptime!(row_group.units);
    let (unit, at) = unit_and_chunk(row_group);
    if at >= total {
        terminate!();
    }
    let place = Chunk::new(at, logits.shape(1) / lanes, lanes);
    let row = place.row;
    let chunk = place.vectors_from(row * logits.stride(0) / lanes, lanes);

    let mut highest = f32::NEG_INFINITY.runtime();
    let mut has_nan = false.runtime();
    let mut first = unit;
    while first < chunk.vectors {
        // A vector that is not there is the last one once more, which raises no maximum.
        let read = load(logits, &chunk, first, units);
        #[unroll]
        for f in 0..IN_FLIGHT {
            let x = widen::<F, N>(read[f]);
            #[unroll]
            for lane in 0..lanes {
                highest = max(highest, x.extract(lane));
                has_nan = has_nan || x.extract(lane).is_nan();
            }
        }
        first += comptime!(IN_FLIGHT * units);
    }
    // The key of a NaN is above all others.
    let highest = from_radix_key(row_max(select(has_nan, u32::MAX, radix_key(highest)), unit, row_group));

    let t = Temperature::new(temperature[row]);
    let mut mass = 0u64;
    let mut first = unit;
    while first < chunk.vectors {
        let read = load(logits, &chunk, first, units);
        #[unroll]
        for f in 0..IN_FLIGHT {
            if first + comptime!(f * units) < chunk.vectors {
                mass += mass_of::<N>(widen::<F, N>(read[f]), highest, &t, lanes);
            }
        }
        first += comptime!(IN_FLIGHT * units);
    }
    let (_, mass) = prefix_sum(mass, unit, row_group);
    if unit == 0 {
        maxima[at] = highest;
        masses[at] = mass;
    }
}

/// Writes the token of each draw. Of the chunks, and of the vectors of the chunk in which the token is, each
/// unit has a run.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn pick<F: Float, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    temperature: &[f32],
    maxima: &[f32],
    masses: &[u64],
    draws: &[i32],
    samples: &mut [i32],
    valid: &mut [i32],
    total_draws: usize,
    #[comptime] row_group: RowGroup,
    #[comptime] lanes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let (rows, units) = comptime!((row_group.rows, row_group.units));
    let unit = UNIT_POS as usize % units;
    let part = UNIT_POS as usize / units;
    let at = CUBE_POS * rows + part;
    if at >= total_draws {
        terminate!();
    }
    let draw = draw_of(draws, at);
    let t = Temperature::new(temperature[draw.row]);
    let vectors = logits.shape(1) / lanes;
    let chunks = chunks_of(vectors, lanes);
    let first_of_row = draw.row * chunks;

    let mut key = 0u32;
    let mut chunk = unit;
    while chunk < chunks {
        let highest = maxima[first_of_row + chunk];
        key = max(key, select(highest.is_nan(), u32::MAX, radix_key(highest)));
        chunk += units;
    }
    // NaN if the row has one.
    let highest = from_radix_key(row_max(key, unit, row_group));
    let is_valid = t.is_valid && highest > f32::NEG_INFINITY;

    let run = chunks.div_ceil(units);
    let first = min(unit * run, chunks);
    let end = min(first + run, chunks);
    let mut mass = 0u64;
    for chunk in first..end {
        let share = t.fixed_weight(maxima[first_of_row + chunk], highest, SHARE_BITS);
        mass += scaled(masses[first_of_row + chunk], share);
    }
    let (before, sum) = prefix_sum(mass, unit, row_group);
    let mut chosen = Shared::<[u64]>::new_slice(comptime!(2 * rows));
    let target = below(sum, &philox(0u32, &draw));
    if is_valid && target >= before && target - before < mass {
        let mut rest = target - before;
        let mut here = first;
        let mut is_found = false.runtime();
        for chunk in first..end {
            let share = t.fixed_weight(maxima[first_of_row + chunk], highest, SHARE_BITS);
            let mass = scaled(masses[first_of_row + chunk], share);
            let is_here = !is_found && rest < mass;
            here = select(is_here, chunk, here);
            rest = select(is_found || is_here, rest, rest - mass);
            is_found = is_found || is_here;
        }
        chosen[2 * part] = u64::cast_from(here);
        chosen[2 * part + 1] = rest;
    }
    sync_row(units);

    if is_valid {
        let here = usize::cast_from(chosen[2 * part]);
        let rest = chosen[2 * part + 1];
        let chunk = chunk_of(draw.row * logits.stride(0) / lanes, vectors, here, lanes);
        let of_chunk = maxima[first_of_row + here];
        let share = t.fixed_weight(of_chunk, highest, SHARE_BITS);
        let run = chunk.vectors.div_ceil(units);
        let first = min(unit * run, chunk.vectors);
        let end = min(first + run, chunk.vectors);
        let mut mass = 0u64;
        let mut i = first;
        while i < end {
            let read = load(logits, &chunk, i, 1usize);
            #[unroll]
            for f in 0..IN_FLIGHT {
                if i + f < end {
                    mass += mass_of::<N>(widen::<F, N>(read[f]), of_chunk, &t, lanes);
                }
            }
            i += IN_FLIGHT;
        }
        let (before, _) = prefix_sum(mass, unit, row_group);
        if scaled(before, share) <= rest && rest < scaled(before + mass, share) {
            let mut reached = before;
            let mut id = 0u32;
            let mut is_found = false.runtime();
            let mut i = first;
            while !is_found && i < end {
                let vector = widen::<F, N>(logits[chunk.start + i]);
                let first_id = here * CHUNK + i * lanes;
                #[unroll]
                for lane in 0..lanes {
                    reached += t.fixed_weight(vector.extract(lane), of_chunk, WEIGHT_BITS);
                    let is_here = !is_found && rest < scaled(reached, share);
                    id = select(is_here, u32::cast_from(first_id + lane), id);
                    is_found = is_found || is_here;
                }
                i += 1;
            }
            samples[at] = i32::cast_from(id);
        }
    }
    if unit == 0 {
        valid[at] = select(is_valid, 1i32, 0i32);
        if !is_valid {
            samples[at] = 0i32;
        }
    }
}

/// The masses of a vector, added up.
#[cube]
fn mass_of<N: Size>(x: Vector<f32, N>, highest: f32, t: &Temperature, #[comptime] lanes: usize) -> u64 {
    let mut sum = 0u64;
    #[unroll]
    for lane in 0..lanes {
        sum += t.fixed_weight(x.extract(lane), highest, WEIGHT_BITS);
    }
    sum
}

/// A mass of a chunk, below 2^62, relative to the largest of its row, rounded down. It rises with the mass, so that
/// a token found by it is one that has mass.
#[cube]
fn scaled(mass: u64, share: u64) -> u64 {
    high_half(mass + mass, share)
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
    /// `[draws]` of i32: 1, or 0 if the row has a NaN or nothing above `-inf`, or its temperature is below 0
    /// or NaN; then the sample is 0.
    pub valid: TensorBinding,
}

/// Draws a token for each draw, with probability `softmax(logits / temperature)`.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
///
/// # Safety
///
/// The last word of each draw is from 0 to below the rows of `logits`.
pub unsafe fn launch(client: &Client, sample: SampleLogits, dtype: ElemType) -> Result<()> {
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
    if vocab == 0 || vocab > MAX_VOCAB || row_count == 0 {
        return Err(shape(KERNEL, "logits", &logits, format!("rows of 1 to {MAX_VOCAB} elements")));
    }

    let lanes = vector(client, dtype, &[vocab], alignment(&logits));
    let vectors = vocab.min(CHUNK) / lanes;
    let total = row_count * vocab.div_ceil(CHUNK);
    let row_group =
        |count| RowGroup::of(KERNEL, client, count, vectors, vectors.div_ceil(IN_FLIGHT).min(256) as u32);
    let ((weigh_group, weigh_cubes, weigh_dim), (row_group, cubes, dim)) =
        (row_group(total)?, row_group(count)?);
    let address = addresses(&[(&logits, dtype.size()), (&draws, 4)]);
    let (maxima, masses) = (buffer(client, total, 4), buffer(client, total, 8));
    // SAFETY: a unit beyond the last chunk, or draw, stops. A vector read is below the vectors of a chunk,
    // and these are below those of a row; there is a maximum and a mass for each chunk. The rows that the
    // draws name are below those of logits and temperature, by the contract. Shared memory has a
    // place for each group, and two for each row of a cube.
    unsafe {
        weigh::launch_unchecked(
            client,
            weigh_cubes,
            weigh_dim,
            address,
            lanes,
            logits.clone().into_tensor_arg(),
            temperature.clone().into_buffer_arg(),
            maxima.clone().into_buffer_arg(),
            masses.clone().into_buffer_arg(),
            total,
            weigh_group,
            lanes,
            dtype,
        );
        pick::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            lanes,
            logits.into_tensor_arg(),
            temperature.into_buffer_arg(),
            maxima.into_buffer_arg(),
            masses.into_buffer_arg(),
            draws.into_buffer_arg(),
            samples.into_buffer_arg(),
            valid.into_buffer_arg(),
            count,
            row_group,
            lanes,
            dtype,
        );
    }
    Ok(())
}
