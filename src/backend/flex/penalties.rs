//! Penalties on tokens that a sequence has already.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::float::Float;
use super::view::{self, dims};

/// The penalties of each row.
pub(super) struct Penalties {
    pub repetition: Vec<f32>,
    pub frequency: Vec<f32>,
    pub presence: Vec<f32>,
}

/// Penalises logits, in place if they have no other owner.
pub(super) fn apply<E: Float>(
    logits: FlexTensor,
    prompt: FlexTensor,
    output: FlexTensor,
    by: &Penalties,
) -> FlexTensor {
    let [rows, vocab] = dims(&logits);
    let (mut logits, prompt, output) = (view::dense(logits), view::dense(prompt), view::dense(output));
    let (prompt, output): (&[i32], &[i32]) = (prompt.storage(), output.storage());
    let x = &mut logits.storage_mut::<E>()[..rows * vocab];
    x.par_chunks_exact_mut(vocab).enumerate().for_each(|(row, x)| {
        let (prompt, output) = (&prompt[row * vocab..][..vocab], &output[row * vocab..][..vocab]);
        let (r, frequency, presence) = (by.repetition[row], by.frequency[row], by.presence[row]);
        for ((x, &prompt), &output) in x.iter_mut().zip(prompt).zip(output) {
            let wide = x.widen();
            let repeated = if wide > 0.0 { wide / r } else { wide * r };
            let repeated = if prompt > 0 || output > 0 { repeated } else { wide };
            let less = frequency * output as f32 + presence;
            *x = E::narrow(if output > 0 { repeated - less } else { repeated });
        }
    });
    logits
}
