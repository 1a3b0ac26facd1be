//! Penalties on tokens that a sequence has already.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use crate::device::grid::elementwise;
use crate::device::tensor::{Result, addresses, alignment, contiguous, rows, shape, vector};
use crate::math::{narrow, widen};

const KERNEL: &str = "apply_penalties";

/// With the repetition penalty `r`, for a token in the prompt or the output, `x / r` if `x > 0`, else
/// `x · r`. Then minus the frequency penalty times its count in the output, and minus the presence penalty if
/// it is in the output. A unit computes one vector. `y` may be `logits`: a unit reads its vector before it
/// writes it, and no other unit does.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn apply_penalties<F: Float, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    prompt: &[Vector<i32, N>],
    output: &[Vector<i32, N>],
    repetition: &[f32],
    frequency: &[f32],
    presence: &[f32],
    y: &mut Tensor<Vector<F, N>>,
    vectors: usize,
    total: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let row = ABSOLUTE_POS / vectors;
    let at = row * logits.stride(0) / N::value() + ABSOLUTE_POS % vectors;
    let x = widen::<F, N>(logits[at]);
    let zero = Vector::<f32, N>::new(0.0f32);
    let in_output = Vector::<f32, N>::cast_from(output[ABSOLUTE_POS]);
    let in_prompt = Vector::<f32, N>::cast_from(prompt[ABSOLUTE_POS]);

    let r = Vector::new(repetition[row]);
    let repeated = select_many(x.greater_than(&zero), x / r, x * r);
    let repeated_if_in_prompt = select_many(in_prompt.greater_than(&zero), repeated, x);
    let repeated = select_many(in_output.greater_than(&zero), repeated, repeated_if_in_prompt);
    let less = Vector::new(frequency[row]) * in_output + Vector::new(presence[row]);
    let penalised = select_many(in_output.greater_than(&zero), repeated - less, repeated);
    y[ABSOLUTE_POS] = narrow::<F, N>(penalised);
}

/// Logits, the tokens of their sequences so far, and the tensor for the result.
pub struct Penalties {
    /// `[rows, vocab]`.
    pub logits: TensorBinding,
    /// As `logits`, of i32, contiguous: how often each token is in the prompt.
    pub prompt: TensorBinding,
    /// As `prompt`: how often it is in the output.
    pub output: TensorBinding,
    /// `[rows]` of f32.
    pub repetition: TensorBinding,
    /// `[rows]` of f32.
    pub frequency: TensorBinding,
    /// `[rows]` of f32.
    pub presence: TensorBinding,
    /// As `logits`, contiguous. Without it the results replace `logits`, which is contiguous then.
    pub y: Option<TensorBinding>,
}

/// Penalises every logit, in f32, rounded once.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, penalties: Penalties, dtype: ElemType) -> Result<()> {
    let Penalties { logits, prompt, output, repetition, frequency, presence, y } = penalties;
    rows(KERNEL, "logits", &logits, 2)?;
    let [row_count, vocab] = [logits.shape[0], logits.shape[1]];
    let all = [row_count, vocab];
    contiguous(KERNEL, "y", y.as_ref().unwrap_or(&logits), &all)?;
    for (argument, counts) in [("prompt", &prompt), ("output", &output)] {
        contiguous(KERNEL, argument, counts, &all)?;
    }
    for (argument, penalty) in
        [("repetition", &repetition), ("frequency", &frequency), ("presence", &presence)]
    {
        contiguous(KERNEL, argument, penalty, &[row_count])?;
    }
    if vocab == 0 {
        return Err(shape(KERNEL, "logits", &logits, "rows that are not empty"));
    }
    if row_count == 0 {
        return Ok(());
    }

    // Counts are the widest.
    let counts = ElemType::Int(cubecl::ir::IntKind::I32);
    let lanes = vector(client, counts, &[vocab], alignment(&logits));
    let total = row_count * (vocab / lanes);
    let (cubes, dim) = elementwise(KERNEL, client, total)?;
    let address = addresses(&[(&logits, dtype.size()), (&prompt, 4)]);
    let y = y.map_or_else(|| logits.as_alias(0), TensorBinding::into_tensor_arg);
    // SAFETY: a unit beyond `total` stops; below it row and column are within the shape that all matrices
    // share, and rows within those of the penalties.
    unsafe {
        apply_penalties::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            lanes,
            logits.into_tensor_arg(),
            prompt.into_buffer_arg(),
            output.into_buffer_arg(),
            repetition.into_buffer_arg(),
            frequency.into_buffer_arg(),
            presence.into_buffer_arg(),
            y,
            vocab / lanes,
            total,
            dtype,
        );
    }
    Ok(())
}
