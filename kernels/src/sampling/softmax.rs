//! Probabilities of logits. The chunks of long rows are summed first, in parallel: one row keeps a whole
//! device busy, and the result does not depend on the number of rows.

use cubecl::{
    client::Client,
    ir::{ElemType, FloatKind},
    prelude::*,
};

use super::chunk::{CHUNK, Chunk, unit_and_chunk};
use super::fixed_point::{from_radix_key, radix_key};
use super::radix_select::{IN_FLIGHT, Row, load};
use super::weights::Temperature;
use crate::device::tensor::{Result, addresses, alignment, buffer, contiguous, rows, shape, vector};
use crate::math::widen;
use crate::rows::row_group::{RowGroup, row_max, row_sum};

const KERNEL: &str = "softmax";

/// Writes the maximum of each chunk, and its sum of exponentials.
#[cube(launch_unchecked, address_type = "dynamic")]
fn weigh<F: Float, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    temperature: &[f32],
    of_chunks: &mut [f32],
    #[comptime] row_group: RowGroup,
    #[comptime] lanes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let (unit, at) = unit_and_chunk(row_group);
    let place = Chunk::new(at, logits.shape(1) / lanes, lanes);
    let row = place.row;
    if row >= logits.shape(0) {
        terminate!();
    }
    let t = Temperature::new(temperature[row]);
    let chunk = place.vectors_from(row * logits.stride(0) / lanes, lanes);
    let (highest, sum) = max_and_sum::<F, N>(logits, &chunk, &t, unit, row_group, lanes);
    if unit == 0 {
        of_chunks[2 * at] = highest;
        of_chunks[2 * at + 1] = sum;
    }
}

/// `p = exp((x - max) / temperature) / Σ` of a chunk, given the sums of all chunks of the row, if it has
/// several.
#[cube(launch_unchecked, address_type = "dynamic")]
fn softmax<F: Float, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    temperature: &[f32],
    of_chunks: &ComptimeOption<Box<[f32]>>,
    probs: &mut Tensor<Vector<f32, N>>,
    #[comptime] row_group: RowGroup,
    #[comptime] lanes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let units = comptime!(row_group.units);
    let (unit, at) = unit_and_chunk(row_group);
    let place = Chunk::new(at, logits.shape(1) / lanes, lanes);
    let (row, chunks) = (place.row, place.chunks);
    if row >= logits.shape(0) {
        terminate!();
    }
    let t = Temperature::new(temperature[row]);
    let chunk = place.vectors_from(row * logits.stride(0) / lanes, lanes);
    let mut of_row = f32::NEG_INFINITY.runtime();
    let mut sum = 0.0f32.runtime();
    #[comptime]
    match of_chunks {
        ComptimeOption::Some(of_chunks) => {
            let mut other = unit;
            while other < chunks {
                of_row = max(of_row, of_chunks[2 * (row * chunks + other)]);
                other += units;
            }
            of_row = from_radix_key(row_max(radix_key(of_row), unit, row_group));
            let mut other = unit;
            while other < chunks {
                let at = 2 * (row * chunks + other);
                sum += of_chunks[at + 1] * t.weight(of_chunks[at], of_row);
                other += units;
            }
            sum = row_sum(sum, unit, row_group);
        }
        ComptimeOption::None => {
            let (highest, weight) = max_and_sum::<F, N>(logits, &chunk, &t, unit, row_group, lanes);
            of_row = highest;
            sum = weight;
        }
    }
    // A row of -inf has no probability. A temperature below 0, or NaN, is no temperature.
    let scale = select(sum == 0.0f32, 0.0f32, 1.0f32 / sum);
    let scale = Vector::<f32, N>::new(select(t.is_valid, scale, f32::NAN));

    let into = place.vectors_from(row * place.vectors, lanes).start;
    let mut first = unit;
    while first < chunk.vectors {
        let read = load(logits, &chunk, first, units);
        #[unroll]
        for f in 0..IN_FLIGHT {
            let i = first + comptime!(f * units);
            if i < chunk.vectors {
                probs[into + i] = t.weights::<N>(widen::<F, N>(read[f]), of_row) * scale;
            }
        }
        first += comptime!(IN_FLIGHT * units);
    }
}

/// The maximum of a chunk and its sum of exponentials, in one pass: the maximum rises, and the sum is
/// rescaled. Unit `u` of `U` takes the vectors `u, u + U, ..`.
#[cube]
fn max_and_sum<F: Float, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    chunk: &Row,
    t: &Temperature,
    unit: usize,
    #[comptime] row_group: RowGroup,
    #[comptime] lanes: usize,
) -> (f32, f32) {
    let units = comptime!(row_group.units);
    let mut highest = f32::NEG_INFINITY.runtime();
    let mut sums = Vector::<f32, N>::new(0.0f32);
    let mut first = unit;
    while first < chunk.vectors {
        // A vector that is not there is the last one once more, which raises no maximum.
        let read = load(logits, chunk, first, units);
        let mut of_block = highest;
        #[unroll]
        for f in 0..IN_FLIGHT {
            let x = widen::<F, N>(read[f]);
            #[unroll]
            for lane in 0..lanes {
                of_block = max(of_block, x.extract(lane));
            }
        }
        if of_block > highest {
            // A sum of no logits is 0 and stays 0.
            sums *= Vector::new(t.weight(highest, of_block));
            highest = of_block;
        }
        #[unroll]
        for f in 0..IN_FLIGHT {
            if first + comptime!(f * units) < chunk.vectors {
                sums += t.weights::<N>(widen::<F, N>(read[f]), highest);
            }
        }
        first += comptime!(IN_FLIGHT * units);
    }
    let of_chunk = from_radix_key(row_max(radix_key(highest), unit, row_group));
    (of_chunk, row_sum(sums.vector_sum() * t.weight(highest, of_chunk), unit, row_group))
}

/// Logits, and where their probabilities go.
pub struct Softmax {
    /// `[rows, vocab]`.
    pub logits: TensorBinding,
    /// `[rows]` of f32, from 0.
    pub temperature: TensorBinding,
    /// As `logits`, of f32, contiguous.
    pub probs: TensorBinding,
}

/// Turns every row into probabilities, in f32.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, softmax: Softmax, dtype: ElemType) -> Result<()> {
    let Softmax { logits, temperature, probs } = softmax;
    rows(KERNEL, "logits", &logits, 2)?;
    let [row_count, vocab] = [logits.shape[0], logits.shape[1]];
    contiguous(KERNEL, "temperature", &temperature, &[row_count])?;
    contiguous(KERNEL, "probs", &probs, &[row_count, vocab])?;
    if vocab == 0 {
        return Err(shape(KERNEL, "logits", &logits, "rows that are not empty"));
    }
    if row_count == 0 {
        return Ok(());
    }

    let widest = ElemType::Float(FloatKind::F32);
    let lanes = vector(client, widest, &[vocab], alignment(&logits));
    let vectors = vocab.min(CHUNK) / lanes;
    let chunks = vocab.div_ceil(CHUNK);
    let (row_group, cubes, dim) = RowGroup::of(
        KERNEL,
        client,
        row_count * chunks,
        vectors,
        vectors.div_ceil(IN_FLIGHT).min(256) as u32,
    )?;
    let address = addresses(&[(&logits, dtype.size()), (&probs, 4)]);
    let of_chunks = (chunks > 1).then(|| buffer(client, 2 * row_count * chunks, size_of::<f32>()));
    if let Some(of_chunks) = &of_chunks {
        // SAFETY: a unit beyond the last row stops; a vector is below those of its chunk, and these are below
        // those of the row. There is a maximum and a sum for each chunk. Shared memory has a place for each
        // group.
        unsafe {
            weigh::launch_unchecked(
                client,
                cubes.clone(),
                dim,
                address,
                lanes,
                logits.clone().into_tensor_arg(),
                temperature.clone().into_buffer_arg(),
                of_chunks.clone().into_buffer_arg(),
                row_group,
                lanes,
                dtype,
            );
        }
    }
    // SAFETY: as above; logits and probs have the same vectors.
    unsafe {
        softmax::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            lanes,
            logits.into_tensor_arg(),
            temperature.into_buffer_arg(),
            of_chunks.map(TensorBinding::into_buffer_arg).into(),
            probs.into_tensor_arg(),
            row_group,
            lanes,
            dtype,
        );
    }
    Ok(())
}
