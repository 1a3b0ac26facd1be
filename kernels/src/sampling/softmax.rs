//! Probabilities of logits.

use cubecl::{
    client::Client,
    ir::{ElemType, FloatKind},
    prelude::*,
};

use super::mass::{key_of, number_of};
use super::search::{IN_FLIGHT, Row, Search, load};
use crate::DeviceProfile;
use crate::math::widen;
use crate::team::{Team, largest, total};
use crate::tensor::{Result, addresses, alignment, contiguous, rows, shape, vector};

const KERNEL: &str = "softmax";

/// `p = exp((x - max) / temperature) / Σ`, the largest logits alone at temperature 0. Unit `u` of `U` takes the vectors
/// `u, u + U, ..`: twice, the first time for a maximum that rises and a sum that is scaled along.
#[cube(launch_unchecked, address_type = "dynamic")]
fn softmax<F: Float, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    temperature: &[f32],
    probs: &mut Tensor<Vector<f32, N>>,
    #[comptime] team: Team,
    #[comptime] lanes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let (rows, units) = comptime!((team.rows, team.units));
    let unit = UNIT_POS as usize % units;
    let row = CUBE_POS * rows + UNIT_POS as usize / units;
    if row >= logits.shape(0) {
        terminate!();
    }
    let vectors = logits.shape(1) / lanes;
    let start = row * logits.stride(0) / lanes;
    let t = temperature[row];
    let inverse = 1.0f32 / t;

    let row_of = Row::new(start, vectors);
    let mut highest = f32::NEG_INFINITY.runtime();
    let mut sums = Vector::<f32, N>::new(0.0f32);
    let mut first = unit;
    while first < vectors {
        // A vector that is not there is the last one once more, which raises no maximum.
        let read = load(logits, &row_of, first, units);
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
            // Of nothing so far, 0 remains 0.
            sums *= Vector::new(weight_of(highest, of_block, inverse));
            highest = of_block;
        }
        #[unroll]
        for f in 0..IN_FLIGHT {
            if first + comptime!(f * units) < vectors {
                sums += weights::<N>(widen::<F, N>(read[f]), highest, inverse);
            }
        }
        first += comptime!(IN_FLIGHT * units);
    }
    let of_row = number_of(largest(key_of(highest), unit, team));
    let sum = total(sums.vector_sum() * weight_of(highest, of_row, inverse), unit, team);
    // A row of -inf has no probability. A temperature below 0, or NaN, is no temperature.
    let scale = select(sum == 0.0f32, 0.0f32, 1.0f32 / sum);
    let scale = Vector::<f32, N>::new(select(t >= 0.0f32, scale, f32::NAN));

    let mut first = unit;
    while first < vectors {
        let read = load(logits, &row_of, first, units);
        #[unroll]
        for f in 0..IN_FLIGHT {
            let i = first + comptime!(f * units);
            if i < vectors {
                let x = widen::<F, N>(read[f]);
                probs[row * vectors + i] = weights::<N>(x, of_row, inverse) * scale;
            }
        }
        first += comptime!(IN_FLIGHT * units);
    }
}

/// `exp((x - largest) · inverse)`, and 1 for the largest, where 0 may meet infinity.
#[cube]
fn weights<N: Size>(x: Vector<f32, N>, largest: f32, inverse: f32) -> Vector<f32, N> {
    // While every logit is -inf, subtract 0 instead: (-inf) - (-inf) would be NaN.
    let base = Vector::new(select(largest == f32::NEG_INFINITY, 0.0f32, largest));
    let power = ((x - base) * Vector::new(inverse)).exp();
    select_many(x.equal(&base), Vector::new(1.0f32), power)
}

/// [`weights`] of one.
#[cube]
fn weight_of(x: f32, largest: f32, inverse: f32) -> f32 {
    weights::<Const<1>>(Vector::new(x), largest, inverse).extract(0usize)
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
    let (team, cubes, dim) = Team::of(
        KERNEL,
        client,
        row_count,
        vocab / lanes,
        Search::units(&DeviceProfile::of(client), row_count, vocab / lanes),
    )?;
    let address = addresses(&[(&logits, dtype.size()), (&probs, 4)]);
    // SAFETY: a unit beyond the last row stops; a vector is below those of a row, which logits and probs share. Shared
    // memory has a place for each group.
    unsafe {
        softmax::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            lanes,
            logits.into_tensor_arg(),
            temperature.into_buffer_arg(),
            probs.into_tensor_arg(),
            team,
            lanes,
            dtype,
        );
    }
    Ok(())
}
