//! Sampling from probabilities, from all or from the likely ones, by rejection.
//!
//! A token is accepted if fewer than `top_k` tokens are more likely, these have together a mass below `top_p`, and it is at
//! least `min_p` times as likely as the most likely one. A row goes through
//!
//! | pass | over | finds |
//! |---|---|---|
//! | first | the row | masses of its segments, the largest probability, NaN |
//! | with `min_p` | the row | masses of what reaches the threshold |
//! | a round: draw | one segment | a token with probability `p` among those above `low` |
//! | a round: judge | the row | masses and counts above `p`, and above the middle of `p` and `high` |
//!
//! Until a token is accepted `low` rises: to `p`, and `high` falls to the middle, if what is above the middle would be
//! accepted; to the middle if not. The judging pass has the masses of the next round's segments, whichever it is. So a
//! token accepted at once takes two passes and a segment, and each further round one and a segment more. On a model of 32000
//! Gaussian logits of deviation 1 to 3 that came to 2.4 passes for `top_p` 0.9, 3.1 for 0.5, and 3.2 to 5.1 for `top_k` 50.

use cubecl::{
    client::Client,
    ir::{ElemType, FloatKind},
    prelude::*,
};

use super::draw::{DRAW_WORDS, below, draw_of, philox};
use super::mass::{
    Pass, Place, Row, SEGMENTS, SUMS, find, fold, helpers, limit_of, mass_of, sum_above, sum_of,
};
use crate::DeviceProfile;
use crate::team::{Team, highest, total};
use crate::tensor::{Result, addresses, alignment, contiguous, rows, shape, vector};

const KERNEL: &str = "sample_probs";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Blueprint {
    team: Team,
    lanes: usize,
    /// Units that add up one sum.
    helpers: usize,
    /// The pass that judges a token.
    judging: Pass,
}

#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn sample_probs<N: Size>(
    probs: &Tensor<Vector<f32, N>>,
    top_k: &ComptimeOption<Box<[i32]>>,
    top_p: &ComptimeOption<Box<[f32]>>,
    min_p: &ComptimeOption<Box<[f32]>>,
    draws: &[i32],
    samples: &mut [i32],
    valid: &mut [i32],
    total_draws: usize,
    #[comptime] blueprint: Blueprint,
) {
    let (rows, units) = comptime!((blueprint.team.rows, blueprint.team.units));
    let (helpers, lanes, judging) = comptime!((blueprint.helpers, blueprint.lanes, blueprint.judging));
    let unit = UNIT_POS as usize % units;
    let part = UNIT_POS as usize / units;
    let at = CUBE_POS * rows + part;
    if at >= total_draws {
        terminate!();
    }
    let draw = draw_of(draws, at);
    let vectors = probs.shape(1) / lanes;
    let row = Row { start: draw.row * probs.stride(0) / lanes, vectors, segment: vectors.div_ceil(SEGMENTS) };

    let mut parts = Shared::<[u64]>::new_slice(rows * 2 * SUMS * units);
    let mut sums = Shared::<[u64]>::new_slice(rows * 2 * SUMS * helpers);
    let mut runs = Shared::<[u64]>::new_slice(units);
    let place = Place { parts: part * 2 * SUMS * units, sums: part * 2 * SUMS * helpers };

    let found =
        sum_above::<N>(probs, &row, 0.0f32, 2.0f32, &mut parts, &place, unit, units, lanes, Pass::First);
    fold(&parts, &mut sums, &place, unit, units, helpers, 2 * SUMS);
    let largest = highest(found.highest, unit, units);
    let nans = total(f32::cast_from(found.nans), unit, units);

    let mut low = 0.0f32;
    let mut high = largest;
    let mut pivot = 0usize;
    let mut filtered = false.runtime();
    let mut most = u64::cast_from(u32::MAX);
    let mut limit = u64::MAX.runtime();
    #[comptime]
    match top_k {
        ComptimeOption::Some(top_k) => {
            most = u64::cast_from(max(top_k[draw.row], 1i32));
            filtered = true;
        }
        ComptimeOption::None => {}
    }
    #[comptime]
    match top_p {
        ComptimeOption::Some(top_p) => {
            limit = limit_of(top_p[draw.row]);
            filtered = true;
        }
        ComptimeOption::None => {}
    }
    #[comptime]
    match min_p {
        ComptimeOption::Some(min_p) => {
            let threshold = min_p[draw.row] * largest;
            // Without a limit, NaN is none.
            let threshold = select(threshold > largest, largest, threshold);
            if threshold > 0.0f32 {
                // The next number below.
                low = f32::reinterpret(u32::reinterpret(threshold) - 1u32);
                sum_above::<N>(probs, &row, low, 2.0f32, &mut parts, &place, unit, units, lanes, Pass::Low);
                fold(&parts, &mut sums, &place, unit, units, helpers, 2 * SUMS);
            }
        }
        ComptimeOption::None => {}
    }

    let mut mass_above = mass_of(&sums, &place, pivot, helpers);
    let mut id = 0u32;
    let mut round = 0u32;
    let is_valid = nans == 0.0f32 && mass_above > 0u64;
    let mut searching = is_valid;
    while searching {
        let target = below(mass_above, &philox(round, &draw));
        let token =
            find::<N>(probs, &row, low, target, &sums, &place, pivot, &mut runs, unit, units, helpers, lanes);
        id = token.id;
        round += 1u32;
        searching = filtered;
        if filtered {
            let middle = (token.p + high) * 0.5f32;
            sum_above::<N>(probs, &row, token.p, middle, &mut parts, &place, unit, units, lanes, judging);
            fold(&parts, &mut sums, &place, unit, units, helpers, 2 * SUMS);
            let above = mass_of(&sums, &place, 0usize, helpers);
            let above_middle = mass_of(&sums, &place, 1usize, helpers);
            let count = sum_of(&sums, &place, 0usize, SEGMENTS, helpers);
            let count_middle = sum_of(&sums, &place, 1usize, SEGMENTS, helpers);
            searching = count >= most || above >= limit;
            let descend = count_middle < most && above_middle < limit;
            low = select(descend, token.p, middle);
            high = select(descend, middle, high);
            pivot = select(descend, 0usize, 1usize);
            mass_above = select(descend, above, above_middle);
        }
    }
    if unit == 0 {
        samples[at] = i32::cast_from(select(is_valid, id, 0u32));
        valid[at] = select(is_valid, 1i32, 0i32);
    }
}

/// Probabilities, which of them count, and where the samples go.
pub struct SampleProbs {
    /// `[rows, vocab]` of f32.
    pub probs: TensorBinding,
    /// `[rows]` of i32: only tokens than which fewer than these are more likely. Below 1 it counts as 1.
    pub top_k: Option<TensorBinding>,
    /// `[rows]` of f32: only tokens than which the more likely ones have less mass; from 1 on, all.
    pub top_p: Option<TensorBinding>,
    /// `[rows]` of f32: only tokens as likely as this part of the most likely one.
    pub min_p: Option<TensorBinding>,
    /// `[draws, DRAW_WORDS]` of i32.
    pub draws: TensorBinding,
    /// `[draws]` of i32: the tokens.
    pub samples: TensorBinding,
    /// `[draws]` of i32: 1, or 0 if the row has a NaN or no positive probability; then the sample is 0.
    pub valid: TensorBinding,
}

/// Draws a token for each draw.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, sample: SampleProbs) -> Result<()> {
    let SampleProbs { probs, top_k, top_p, min_p, draws, samples, valid } = sample;
    rows(KERNEL, "probs", &probs, 2)?;
    let [row_count, vocab] = [probs.shape[0], probs.shape[1]];
    for (argument, filter) in [("top_k", &top_k), ("top_p", &top_p), ("min_p", &min_p)] {
        if let Some(filter) = filter {
            contiguous(KERNEL, argument, filter, &[row_count])?;
        }
    }
    let count = samples.shape.first().copied().unwrap_or(0);
    contiguous(KERNEL, "draws", &draws, &[count, DRAW_WORDS])?;
    contiguous(KERNEL, "samples", &samples, &[count])?;
    contiguous(KERNEL, "valid", &valid, &[count])?;
    if count == 0 {
        return Ok(());
    }
    if vocab == 0 || vocab > i32::MAX as usize || row_count == 0 {
        return Err(shape(KERNEL, "probs", &probs, "rows of 1 to i32::MAX elements"));
    }

    let dtype = ElemType::Float(FloatKind::F32);
    let lanes = vector(client, dtype, &[vocab], alignment(&probs));
    // 104 bytes of shared memory for each.
    let most = if DeviceProfile::of(client).shared_memory >= 56 << 10 { 512 } else { 256 };
    let (team, cubes, dim) = Team::of(KERNEL, client, count, vocab / lanes, most)?;
    let address = addresses(&[(&probs, 4), (&draws, 4)]);
    let judging = if top_k.is_some() { Pass::Counted } else { Pass::Both };
    let blueprint = Blueprint { team, lanes, helpers: helpers(team.units, 2 * SUMS), judging };
    // SAFETY: a unit beyond the last draw stops. The rows that the draws name are below that of probs and of the filters:
    // their caller checked it. A vector read is below the vectors of a row; what is in shared memory has a place for each
    // unit, or helper, of each row of the cube.
    unsafe {
        sample_probs::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            lanes,
            probs.into_tensor_arg(),
            top_k.map(TensorBinding::into_buffer_arg).into(),
            top_p.map(TensorBinding::into_buffer_arg).into(),
            min_p.map(TensorBinding::into_buffer_arg).into(),
            draws.into_buffer_arg(),
            samples.into_buffer_arg(),
            valid.into_buffer_arg(),
            count,
            blueprint,
        );
    }
    Ok(())
}
