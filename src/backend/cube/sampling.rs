//! Launches of softmax and sampling.

use burn::backend::{DType, cubecl::dtype_to_storage_type};
use burn::tensor::Shape;
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use burn_flashinfer_kernels::sampling::{
    self, Emit, Filter, Output, Penalties, SampleLogits, SampleProbs, Softmax, TopK, Verify,
};

use super::tensor::{dense, empty_like, fresh, in_rows, index, launched};
use crate::extension::{Limit, MaybeFloats, MaybeInts};

pub(super) fn softmax_with_temperature(logits: CubeTensor, temperature: CubeTensor) -> CubeTensor {
    let probs = empty_like(&logits, logits.meta.shape().clone(), DType::F32);
    if probs.meta.num_elements() > 0 {
        let (client, dtype) = (logits.client.clone(), dtype_to_storage_type(logits.dtype));
        let softmax = Softmax {
            logits: in_rows(logits).binding(),
            temperature: into_contiguous(temperature).binding(),
            probs: probs.clone().binding(),
        };
        launched(sampling::softmax(&client, softmax, dtype));
    }
    probs
}

pub(super) fn apply_penalties(
    logits: CubeTensor,
    prompt: CubeTensor,
    output: CubeTensor,
    repetition: CubeTensor,
    frequency: CubeTensor,
    presence: CubeTensor,
) -> CubeTensor {
    let logits = in_rows(logits);
    let y = fresh(&logits);
    let result = y.clone().unwrap_or_else(|| logits.clone());
    if result.meta.num_elements() > 0 {
        let (client, dtype) = (logits.client.clone(), dtype_to_storage_type(logits.dtype));
        let floats = |floats| into_contiguous(floats).binding();
        let penalties = Penalties {
            logits: logits.binding(),
            prompt: index(prompt),
            output: index(output),
            repetition: floats(repetition),
            frequency: floats(frequency),
            presence: floats(presence),
            y: y.map(CubeTensor::binding),
        };
        launched(sampling::apply_penalties(&client, penalties, dtype));
    }
    result
}

pub(super) fn renorm_probs(probs: CubeTensor, by: Limit<CubeBackend>) -> CubeTensor {
    let by = match by {
        Limit::TopK(top_k) => sampling::Limit::TopK(index(top_k)),
        Limit::TopP(top_p) => sampling::Limit::TopP(into_contiguous(top_p).binding()),
    };
    filtered(probs, by, Output::Renormalised)
}

pub(super) fn top_k_mask_logits(logits: CubeTensor, top_k: CubeTensor) -> CubeTensor {
    filtered(logits, sampling::Limit::TopK(index(top_k)), Output::Masked)
}

pub(super) fn top_k(x: CubeTensor, k: usize) -> (CubeTensor, CubeTensor) {
    let shape: Shape = [x.meta.shape()[0], k].into();
    let (values, ids) = (empty_like(&x, shape.clone(), x.dtype), empty_like(&x, shape, DType::I32));
    let (client, dtype) = (x.client.clone(), dtype_to_storage_type(x.dtype));
    let top = TopK { x: in_rows(x).binding(), values: values.clone().binding(), ids: ids.clone().binding() };
    launched(sampling::top_k(&client, top, dtype));
    (values, ids)
}

pub(super) fn sample_logits(
    logits: CubeTensor,
    temperature: CubeTensor,
    draws: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let (samples, valid) = samples_for(&logits, &draws);
    let (client, dtype) = (logits.client.clone(), dtype_to_storage_type(logits.dtype));
    let sample = SampleLogits {
        logits: in_rows(logits).binding(),
        temperature: into_contiguous(temperature).binding(),
        draws: index(draws),
        samples: samples.clone().binding(),
        valid: valid.clone().binding(),
    };
    // SAFETY: `Draws::check` has compared the rows of the draws with those of the logits.
    launched(unsafe { sampling::sample_logits(&client, sample, dtype) });
    (samples, valid)
}

pub(super) fn chain_speculative_sampling(
    draft_probs: CubeTensor,
    draft_ids: CubeTensor,
    target_probs: CubeTensor,
    draws: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let [requests, drafted] = [draft_ids.meta.shape()[0], draft_ids.meta.shape()[1]];
    let vocab = draft_probs.meta.shape()[2];
    let ints = |shape: [usize; 2]| empty_like(&draft_ids, shape.into(), DType::I32);
    let (ids, counts) = (ints([requests, drafted + 1]), ints([requests, sampling::COUNTS]));
    let residual = empty_like(&draft_probs, [requests, vocab].into(), DType::F32);
    let client = draft_probs.client.clone();
    let (draft_ids, draws) = (into_contiguous(draft_ids), into_contiguous(draws));
    let verify = Verify {
        draft_probs: into_contiguous(draft_probs).binding(),
        draft_ids: draft_ids.clone().binding(),
        target_probs: into_contiguous(target_probs).binding(),
        draws: draws.clone().binding(),
        counts: counts.clone().binding(),
        residual: residual.clone().binding(),
    };
    launched(sampling::verify(&client, verify));
    let (samples, valid) =
        sample_probs(residual, MaybeInts::None, MaybeFloats::None, MaybeFloats::None, draws);
    let emit = Emit {
        draft_ids: draft_ids.binding(),
        samples: samples.binding(),
        valid: valid.binding(),
        counts: counts.clone().binding(),
        ids: ids.clone().binding(),
    };
    launched(sampling::emit(&client, emit));
    (ids, counts)
}

pub(super) fn sample_probs(
    probs: CubeTensor,
    top_k: MaybeInts<CubeBackend>,
    top_p: MaybeFloats<CubeBackend>,
    min_p: MaybeFloats<CubeBackend>,
    draws: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let (samples, valid) = samples_for(&probs, &draws);
    let client = probs.client.clone();
    let sample = SampleProbs {
        probs: in_rows(probs).binding(),
        top_k: top_k.into_option().map(index),
        top_p: dense(top_p),
        min_p: dense(min_p),
        draws: index(draws),
        samples: samples.clone().binding(),
        valid: valid.clone().binding(),
    };
    // SAFETY: `Draws::check` has compared the rows of the draws with those of the probabilities.
    launched(unsafe { sampling::sample_probs(&client, sample) });
    (samples, valid)
}

/// The filtered tokens of each row.
fn filtered(x: CubeTensor, by: sampling::Limit, output: Output) -> CubeTensor {
    let y = empty_like(&x, x.meta.shape().clone(), x.dtype);
    if y.meta.num_elements() > 0 {
        let (client, dtype) = (x.client.clone(), dtype_to_storage_type(x.dtype));
        let filter = Filter { x: in_rows(x).binding(), by, y: y.clone().binding(), output };
        launched(sampling::filter(&client, filter, dtype));
    }
    y
}

/// Tensors for the token of each draw, and for its validity.
fn samples_for(rows: &CubeTensor, draws: &CubeTensor) -> (CubeTensor, CubeTensor) {
    let shape: Shape = [draws.meta.shape()[0]].into();
    (empty_like(rows, shape.clone(), DType::I32), empty_like(rows, shape, DType::I32))
}
