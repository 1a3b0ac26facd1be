//! Sampling from probabilities, from all or from the likely ones.
//!
//! A token counts if fewer than `top_k` tokens are more likely, these have together a mass below `top_p`, and
//! it is at least `min_p` times as likely as the most likely one. So there is a threshold, which a [radix
//! select](super::radix_select) finds. The token is the first at which the masses of those that count, added
//! up, exceed a random part of their sum. It is looked for in the segment of the row where that happens. Two
//! passes over the row and a segment, whatever the filters; without any, one and a segment.

use cubecl::{
    client::Client,
    ir::{ElemType, FloatKind},
    prelude::*,
};

use super::draw::{DRAW_WORDS, below, draw_of, philox};
use super::fixed_point::{fixed_point_where, top_p_mass};
use super::radix_select::{
    IN_FLIGHT, Limits, Memory, Row, SEGMENTS, SelectConfig, Threshold, load, select_row,
};
use crate::device::DeviceProfile;
use crate::device::tensor::{Result, addresses, alignment, contiguous, rows, shape, vector};
use crate::math::sync_row;
use crate::rows::row_group::{RowGroup, shuffle_scan};

const KERNEL: &str = "sample_probs";

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
    #[comptime] config: SelectConfig,
) {
    let (rows, units) = comptime!((config.row_group.rows, config.row_group.units));
    let unit = UNIT_POS as usize % units;
    let part = UNIT_POS as usize / units;
    let at = CUBE_POS * rows + part;
    if at >= total_draws {
        terminate!();
    }
    let draw = draw_of(draws, at);
    let vectors = probs.shape(1) / config.lanes;
    let row = Row::new(draw.row * probs.stride(0) / config.lanes, vectors);
    let mut limits = Limits::none();
    #[comptime]
    match top_k {
        ComptimeOption::Some(top_k) => {
            limits.count = u64::cast_from(max(top_k[draw.row], 1i32));
        }
        ComptimeOption::None => {}
    }
    #[comptime]
    match top_p {
        ComptimeOption::Some(top_p) => {
            limits.mass = top_p_mass(top_p[draw.row]);
        }
        ComptimeOption::None => {}
    }
    #[comptime]
    match min_p {
        ComptimeOption::Some(min_p) => {
            limits.floor = min_p[draw.row];
        }
        ComptimeOption::None => {}
    }

    let mut memory = Memory::new(part, unit, config);
    let threshold = select_row::<f32, N>(probs, &row, &limits, &mut memory, config);
    let mut sum = 0u64;
    for segment in 0..SEGMENTS {
        sum += memory.total(segment, config);
    }
    let is_valid = !threshold.has_nan && sum > 0u64;
    if is_valid {
        let target = below(sum, &philox(0u32, &draw));
        find::<N>(probs, &row, &threshold, target, at, samples, &mut memory, config);
    }
    if unit == 0 {
        valid[at] = select(is_valid, 1i32, 0i32);
        if !is_valid {
            samples[at] = 0i32;
        }
    }
}

/// Writes the first token at which the masses of those that count, added up, exceed `target`, which is below
/// their sum. Of its segment each unit has a run; that in which it is writes it.
#[allow(clippy::too_many_arguments, reason = "a row, a target, and where the token goes")]
#[cube]
fn find<N: Size>(
    probs: &Tensor<Vector<f32, N>>,
    row: &Row,
    threshold: &Threshold,
    target: u64,
    at: usize,
    samples: &mut [i32],
    memory: &mut Memory,
    #[comptime] config: SelectConfig,
) {
    let (units, row_group) = comptime!((config.row_group.units, config.row_group));
    let unit = memory.unit;
    let mut rest = target;
    let mut segment = 0usize;
    let mut in_segment = memory.total(0usize, config);
    while rest >= in_segment && segment + 1 < SEGMENTS {
        rest -= in_segment;
        segment += 1;
        in_segment = memory.total(segment, config);
    }

    let first = segment * row.segment(config);
    let end = min(first + row.segment(config), row.vectors);
    let run = (end - first).div_ceil(units);
    let first = first + unit * run;
    let end = min(first + run, end);
    let mut sum = 0u64;
    let mut i = first;
    while i < end {
        let read = load(probs, row, i, 1usize);
        #[unroll]
        for f in 0..IN_FLIGHT {
            if i + f < end {
                #[unroll]
                for lane in 0..config.lanes {
                    sum += fixed_point_kept(read[f].extract(lane), threshold);
                }
            }
        }
        i += IN_FLIGHT;
    }
    // All have read the masses of segments.
    sync_row(units);
    let (of_group, later) = shuffle_scan(sum, unit, row_group);
    memory.put(0usize, of_group, config);
    sync_row(units);
    let before = memory.sum(0usize, 0usize, unit / comptime!(row_group.shuffle_width), config) + of_group
        - later
        - sum;
    if rest >= before && rest < before + sum {
        rest -= before;
        let mut id = 0u32;
        let mut is_found = false.runtime();
        let mut i = first;
        while !is_found && i < end {
            let vector = probs[row.start + i];
            #[unroll]
            for lane in 0..config.lanes {
                let m = fixed_point_kept(vector.extract(lane), threshold);
                let is_here = !is_found && rest < m;
                id = select(is_here, u32::cast_from(i * config.lanes + lane), id);
                rest = select(is_found || is_here, rest, rest - m);
                is_found = is_found || is_here;
            }
            i += 1;
        }
        samples[at] = i32::cast_from(id);
    }
}

/// The mass of a probability that counts.
#[cube]
fn fixed_point_kept(p: f32, threshold: &Threshold) -> u64 {
    fixed_point_where(p >= threshold.value, p)
}

/// Probabilities, which of them count, and where the samples go.
pub struct SampleProbs {
    /// `[rows, vocab]` of f32.
    pub probs: TensorBinding,
    /// `[rows]` of i32: a token counts if fewer tokens are more likely. Below 1 it counts as 1.
    pub top_k: Option<TensorBinding>,
    /// `[rows]` of f32: a token counts if more likely ones have less mass; from 1 on, all do.
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
///
/// # Safety
///
/// The last word of each draw is from 0 to below the rows of `probs`.
pub unsafe fn launch(client: &Client, sample: SampleProbs) -> Result<()> {
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
    let device = DeviceProfile::of(client);
    let (row_group, cubes, dim) = RowGroup::of(KERNEL, client, count, vocab / lanes, 1024)?;
    let address = addresses(&[(&probs, 4), (&draws, 4)]);
    let config = SelectConfig {
        by_count: top_k.is_some(),
        by_mass: top_p.is_some(),
        has_floor: min_p.is_some(),
        segments: SEGMENTS,
        ..SelectConfig::new(&device, row_group, lanes, vocab)
    };
    // SAFETY: a unit beyond the last draw stops. The rows that the draws name are below that of probs and of
    // the filters, by the contract. A vector read is below the vectors of a row; shared memory has a
    // place for each group, bucket and candidate of each row of the cube, and no bucket or candidate beyond
    // is written.
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
            config,
        );
    }
    Ok(())
}
