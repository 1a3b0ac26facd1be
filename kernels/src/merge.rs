//! Combining attention over two sets of keys.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use crate::grid::elementwise;
use crate::math::LOG2_E;
use crate::tensor::{Result, addresses, contiguous, shape};

const KERNEL: &str = "merge_state";

/// `v = (2^s_a v_a + 2^s_b v_b) / (2^s_a + 2^s_b)` and `s = log2(2^s_a + 2^s_b)`. A unit computes one element of `v`;
/// the first of a row also `s`.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn merge_state<F: Float>(
    v_a: &Tensor<F>,
    s_a: &Tensor<f32>,
    v_b: &Tensor<F>,
    s_b: &Tensor<f32>,
    v: &mut Tensor<F>,
    s: &mut Tensor<f32>,
    total: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let (heads, dim) = (v.shape(1), v.shape(2));
    let column = ABSOLUTE_POS % dim;
    let row = ABSOLUTE_POS / dim;
    let (token, head) = (row / heads, row % heads);

    let a = s_a[token * s_a.stride(0) + head * s_a.stride(1)];
    let b = s_b[token * s_b.stride(0) + head * s_b.stride(1)];
    let highest = max(a, b);
    // Where both are -inf, subtract 0 instead: (-inf) - (-inf) would be NaN.
    let base = select(highest == f32::NEG_INFINITY, 0.0f32, highest);
    let weight_a = exp2(a - base);
    let weight_b = exp2(b - base);
    let sum = weight_a + weight_b;

    let a = f32::cast_from(v_a[token * v_a.stride(0) + head * v_a.stride(1) + column * v_a.stride(2)]);
    let b = f32::cast_from(v_b[token * v_b.stride(0) + head * v_b.stride(1) + column * v_b.stride(2)]);
    let merged = (weight_a * a + weight_b * b) / sum;
    v[ABSOLUTE_POS] = F::cast_from(select(sum == 0.0f32, 0.0f32, merged));
    if column == 0 {
        s[row] = select(sum == 0.0f32, f32::NEG_INFINITY, base + sum.ln() * LOG2_E);
    }
}

#[cube]
fn exp2(x: f32) -> f32 {
    (x * std::f32::consts::LN_2).exp()
}

/// Two attention states, and where the merged one goes.
pub struct Merge {
    /// `[tokens, heads, head_dim]`.
    pub v_a: TensorBinding,
    /// `[tokens, heads]` of f32, base 2.
    pub s_a: TensorBinding,
    /// As `v_a`.
    pub v_b: TensorBinding,
    /// As `s_a`.
    pub s_b: TensorBinding,
    /// As `v_a`, contiguous.
    pub v: TensorBinding,
    /// As `s_a`, contiguous.
    pub s: TensorBinding,
}

/// Merges two attention states; where neither saw a key, the output is 0 and its `s` `-inf`.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, merge: Merge, dtype: ElemType) -> Result<()> {
    let Merge { v_a, s_a, v_b, s_b, v, s } = merge;
    if v_a.shape.len() != 3 {
        return Err(shape(KERNEL, "v_a", &v_a, "[tokens, heads, head_dim]"));
    }
    let wanted = v_a.shape.to_vec();
    for (argument, tensor, wanted) in
        [("v_b", &v_b, &wanted[..]), ("s_a", &s_a, &wanted[..2]), ("s_b", &s_b, &wanted[..2])]
    {
        if tensor.shape.to_vec() != wanted {
            return Err(shape(KERNEL, argument, tensor, format!("{wanted:?}, as `v_a`")));
        }
    }
    contiguous(KERNEL, "v", &v, &wanted)?;
    contiguous(KERNEL, "s", &s, &wanted[..2])?;
    let total = v.size();
    if total == 0 {
        return Ok(());
    }

    let (count, dim) = elementwise(KERNEL, client, total)?;
    let size = dtype.size();
    let address = addresses(&[(&v_a, size), (&v_b, size), (&v, size), (&s_a, 4), (&s_b, 4), (&s, 4)]);
    // SAFETY: a unit beyond `total` stops; below it token, head and column are within the one shape that all tensors
    // were found to have.
    unsafe {
        merge_state::launch_unchecked(
            client,
            count,
            dim,
            address,
            v_a.into_tensor_arg(),
            s_a.into_tensor_arg(),
            v_b.into_tensor_arg(),
            s_b.into_tensor_arg(),
            v.into_tensor_arg(),
            s.into_tensor_arg(),
            total,
            dtype,
        );
    }
    Ok(())
}
