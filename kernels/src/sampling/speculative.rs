//! Verifies drafted tokens: the large model accepts those of the small one that it would have drawn.

use cubecl::{
    client::Client,
    ir::{ElemType, FloatKind},
    prelude::*,
};

use super::draw::{DRAW_WORDS, draw_of, philox};
use crate::device::grid::elementwise;
use crate::device::tensor::{Result, addresses, contiguous, shape, vector};
use crate::rows::row_group::RowGroup;

const KERNEL: &str = "chain_speculative_sampling";
/// Words of a request in `counts`.
pub const COUNTS: usize = 3;

/// Accepts drafted token `i` if `u_i · p_i < q_i`, where `p` and `q` are its probabilities in draft and
/// target. `counts` of a request: the number of tokens accepted each by itself, and the number before the
/// first rejection. The next token is drawn from `residual`: `max(q - p, 0)`, and after the last `q`. All
/// units verify, each writes its part of `residual`.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn verify<N: Size>(
    draft_probs: &[Vector<f32, N>],
    draft_ids: &[i32],
    target_probs: &[Vector<f32, N>],
    draws: &[i32],
    counts: &mut [i32],
    residual: &mut [Vector<f32, N>],
    drafted: usize,
    vectors: usize,
    requests: usize,
    #[comptime] row_group: RowGroup,
    #[comptime] lanes: usize,
) {
    let (rows, units) = comptime!((row_group.rows, row_group.units));
    let unit = UNIT_POS as usize % units;
    let request = CUBE_POS * rows + UNIT_POS as usize / units;
    if request >= requests {
        terminate!();
    }
    let draw = draw_of(draws, request);
    let draft = request * drafted * vectors;
    let target = request * (drafted + 1) * vectors;

    let mut accepted = 0i32;
    let mut emitted = 0usize;
    let mut is_chain = true.runtime();
    for i in 0..drafted {
        let id = draft_ids[request * drafted + i];
        // A token outside of the vocabulary has no probability.
        let is_token = id >= 0i32 && usize::cast_from(id) < vectors * lanes;
        let id = usize::cast_from(select(is_token, id, 0i32));
        let p = element::<N>(draft_probs, draft + i * vectors, id, lanes);
        let q = element::<N>(target_probs, target + i * vectors, id, lanes);
        // The first block is that of the token after the accepted ones.
        let words = philox(u32::cast_from(i) + 1u32, &draw);
        let u = f32::cast_from(words.a >> 8u32) * 5.960_464_5e-8_f32;
        let is_accepted = is_token && u * p < q;
        is_chain = is_chain && is_accepted;
        accepted += select(is_accepted, 1i32, 0i32);
        emitted += select(is_chain, 1usize, 0usize);
    }

    let is_bonus = emitted == drafted;
    let target = target + emitted * vectors;
    let draft = draft + min(emitted, drafted - 1) * vectors;
    let mut i = unit;
    while i < vectors {
        let q = target_probs[target + i];
        let excess = q - draft_probs[draft + i];
        // A comparison instead of `max`, which would drop a NaN.
        let zero = Vector::<f32, N>::new(0.0f32);
        let excess = select_many(excess.less_than(&zero), zero, excess);
        let is_bonus = Vector::<u32, N>::new(u32::cast_from(is_bonus));
        residual[request * vectors + i] = select_many(is_bonus.equal(&Vector::new(1u32)), q, excess);
        i += units;
    }
    if unit == 0 {
        counts[request * COUNTS] = accepted;
        counts[request * COUNTS + 1] = i32::cast_from(emitted);
    }
}

/// Element `at` of the row of vectors that begins at `first`.
#[cube]
fn element<N: Size>(row: &[Vector<f32, N>], first: usize, at: usize, #[comptime] lanes: usize) -> f32 {
    let vector = row[first + at / lanes];
    let mut element = vector.extract(0usize);
    #[unroll]
    for lane in 1..lanes {
        element = select(at % lanes == lane, vector.extract(lane), element);
    }
    element
}

/// The drafted tokens before the first that is not accepted, then the one that was drawn instead, then -1. A
/// unit writes one.
#[cube(launch_unchecked)]
fn emit(
    draft_ids: &[i32],
    samples: &[i32],
    valid: &[i32],
    counts: &mut [i32],
    ids: &mut [i32],
    drafted: usize,
    total: usize,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let request = ABSOLUTE_POS / (drafted + 1);
    let i = ABSOLUTE_POS % (drafted + 1);
    let emitted = usize::cast_from(counts[request * COUNTS + 1]);
    let drawn = select(i == emitted, samples[request], -1i32);
    let kept = draft_ids[request * drafted + min(i, drafted - 1)];
    ids[ABSOLUTE_POS] = select(i < emitted, kept, drawn);
    if i == 0 {
        counts[request * COUNTS + 2] = valid[request];
    }
}

/// Drafts, and where the outcome goes.
pub struct Verify {
    /// `[requests, drafted, vocab]` of f32, contiguous.
    pub draft_probs: TensorBinding,
    /// `[requests, drafted]` of i32.
    pub draft_ids: TensorBinding,
    /// `[requests, drafted + 1, vocab]` of f32, contiguous.
    pub target_probs: TensorBinding,
    /// `[requests, DRAW_WORDS]` of i32.
    pub draws: TensorBinding,
    /// `[requests, COUNTS]` of i32: tokens accepted each by itself, before the first that is not, and, once
    /// [emitted](launch_emit), whether there is one after them.
    pub counts: TensorBinding,
    /// `[requests, vocab]` of f32: the distribution of the token after the accepted ones.
    pub residual: TensorBinding,
}

/// Verifies the drafted tokens.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, verify: Verify) -> Result<()> {
    let Verify { draft_probs, draft_ids, target_probs, draws, counts, residual } = verify;
    if draft_probs.shape.len() != 3 || draft_probs.shape[1] == 0 || draft_probs.shape[2] == 0 {
        return Err(shape(KERNEL, "draft_probs", &draft_probs, "[requests, drafted, vocab], no draft empty"));
    }
    let [requests, drafted, vocab] = [draft_probs.shape[0], draft_probs.shape[1], draft_probs.shape[2]];
    contiguous(KERNEL, "draft_probs", &draft_probs, &[requests, drafted, vocab])?;
    contiguous(KERNEL, "draft_ids", &draft_ids, &[requests, drafted])?;
    contiguous(KERNEL, "target_probs", &target_probs, &[requests, drafted + 1, vocab])?;
    contiguous(KERNEL, "draws", &draws, &[requests, DRAW_WORDS])?;
    contiguous(KERNEL, "counts", &counts, &[requests, COUNTS])?;
    contiguous(KERNEL, "residual", &residual, &[requests, vocab])?;
    if requests == 0 {
        return Ok(());
    }
    let lanes = vector(client, ElemType::Float(FloatKind::F32), &[vocab], 64);
    let (row_group, cubes, dim) = RowGroup::of(KERNEL, client, requests, vocab / lanes, 512)?;
    let address = addresses(&[(&target_probs, 4)]);
    // SAFETY: a unit beyond the last request stops. Rows are those of a request, drafted tokens outside of
    // the vocabulary are read as token 0, and vectors are below those of a row.
    unsafe {
        verify::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            lanes,
            draft_probs.into_buffer_arg(),
            draft_ids.into_buffer_arg(),
            target_probs.into_buffer_arg(),
            draws.into_buffer_arg(),
            counts.into_buffer_arg(),
            residual.into_buffer_arg(),
            drafted,
            vocab / lanes,
            requests,
            row_group,
            lanes,
        );
    }
    Ok(())
}

/// Verified drafts, the tokens drawn after them, and where the tokens go.
pub struct Emit {
    /// `[requests, drafted]` of i32.
    pub draft_ids: TensorBinding,
    /// `[requests]` of i32: a token drawn from `residual` for each.
    pub samples: TensorBinding,
    /// `[requests]` of i32: whether it is one.
    pub valid: TensorBinding,
    /// `[requests, COUNTS]` of i32.
    pub counts: TensorBinding,
    /// `[requests, drafted + 1]` of i32.
    pub ids: TensorBinding,
}

/// Emits the tokens of each request.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch_emit(client: &Client, emit: Emit) -> Result<()> {
    let Emit { draft_ids, samples, valid, counts, ids } = emit;
    if draft_ids.shape.len() != 2 || draft_ids.shape[1] == 0 {
        return Err(shape(KERNEL, "draft_ids", &draft_ids, "[requests, drafted], no draft empty"));
    }
    let [requests, drafted] = [draft_ids.shape[0], draft_ids.shape[1]];
    contiguous(KERNEL, "draft_ids", &draft_ids, &[requests, drafted])?;
    contiguous(KERNEL, "samples", &samples, &[requests])?;
    contiguous(KERNEL, "valid", &valid, &[requests])?;
    contiguous(KERNEL, "counts", &counts, &[requests, COUNTS])?;
    contiguous(KERNEL, "ids", &ids, &[requests, drafted + 1])?;
    let total = requests * (drafted + 1);
    if total == 0 {
        return Ok(());
    }
    let (cubes, dim) = elementwise(KERNEL, client, total)?;
    // SAFETY: a unit beyond `total` stops; below it request and token are within the shapes that were checked.
    unsafe {
        emit::launch_unchecked(
            client,
            cubes,
            dim,
            draft_ids.into_buffer_arg(),
            samples.into_buffer_arg(),
            valid.into_buffer_arg(),
            counts.into_buffer_arg(),
            ids.into_buffer_arg(),
            drafted,
            total,
        );
    }
    Ok(())
}
