//! Rotary position embedding.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use crate::grid::elementwise;
use crate::tensor::{Result, addresses, contiguous, rows, shape};

const KERNEL: &str = "apply_rope";

/// How the elements of a head are paired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Style {
    /// Element `i` with `i + rotary_dim / 2`.
    Halves,
    /// Element `2i` with `2i + 1`.
    Interleaved,
}

/// `(a, b) -> (a cos - b sin, b cos + a sin)` for each pair, at the angle of the token's position. A unit computes one
/// element of `q_out` or, in the heads after those of `q`, of `k_out`.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn apply_rope<F: Float>(
    q: &Tensor<F>,
    k: &Tensor<F>,
    cos_sin: &Tensor<f32>,
    positions: &[i32],
    q_out: &mut Tensor<F>,
    k_out: &mut Tensor<F>,
    rotary_dim: usize,
    total: usize,
    #[comptime] style: Style,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let (q_heads, k_heads, dim) = (q.shape(1), k.shape(1), q.shape(2));
    let column = ABSOLUTE_POS % dim;
    let head = ABSOLUTE_POS / dim % (q_heads + k_heads);
    let token = ABSOLUTE_POS / dim / (q_heads + k_heads);
    let angles = usize::cast_from(positions[token]) * cos_sin.stride(0);
    if head < q_heads {
        let row = token * q.stride(0) + head * q.stride(1);
        q_out[(token * q_heads + head) * dim + column] =
            rotated::<F>(q, row, column, cos_sin, angles, rotary_dim, style);
    } else {
        let head = head - q_heads;
        let row = token * k.stride(0) + head * k.stride(1);
        k_out[(token * k_heads + head) * dim + column] =
            rotated::<F>(k, row, column, cos_sin, angles, rotary_dim, style);
    }
}

/// Element `column` of the head that begins at `x[row]`, rotated by the angles at `cos_sin[angles]`.
#[cube]
fn rotated<F: Float>(
    x: &Tensor<F>,
    row: usize,
    column: usize,
    cos_sin: &Tensor<f32>,
    angles: usize,
    rotary_dim: usize,
    #[comptime] style: Style,
) -> F {
    let mut value = x[row + column];
    if column < rotary_dim {
        let half = rotary_dim / 2;
        let (pair, first, partner) = match style {
            Style::Halves => {
                let first = column < half;
                (column % half, first, select(first, column + half, column - min(half, column)))
            }
            Style::Interleaved => {
                let first = column % 2 == 0;
                (column / 2, first, select(first, column + 1, column - min(1usize, column)))
            }
        };
        let cos = cos_sin[angles + pair];
        let sin = cos_sin[angles + half + pair];
        let a = f32::cast_from(value);
        let b = f32::cast_from(x[row + partner]);
        value = F::cast_from(a * cos + select(first, -b, b) * sin);
    }
    value
}

/// Queries and keys, and where their rotations go.
pub struct Rope {
    /// `[tokens, q_heads, head_dim]`.
    pub q: TensorBinding,
    /// `[tokens, k_heads, head_dim]`.
    pub k: TensorBinding,
    /// `[max_positions, rotary_dim]` of f32: the cosines of a position, then its sines.
    pub cos_sin: TensorBinding,
    /// `[tokens]` of `i32`, contiguous.
    pub positions: TensorBinding,
    /// As `q`, contiguous.
    pub q_out: TensorBinding,
    /// As `k`, contiguous.
    pub k_out: TensorBinding,
    /// The pairing.
    pub style: Style,
}

/// Rotates the first `rotary_dim` elements of every head and copies the others. The positions are trusted to be rows of
/// `cos_sin`.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, rope: Rope, dtype: ElemType) -> Result<()> {
    let Rope { q, k, cos_sin, positions, q_out, k_out, style } = rope;
    rows(KERNEL, "q", &q, 3)?;
    rows(KERNEL, "k", &k, 3)?;
    rows(KERNEL, "cos_sin", &cos_sin, 2)?;
    let [tokens, q_heads, dim] = [q.shape[0], q.shape[1], q.shape[2]];
    let k_heads = k.shape[1];
    if k.shape.to_vec() != [tokens, k_heads, dim] {
        return Err(shape(KERNEL, "k", &k, format!("[{tokens}, k_heads, {dim}], as `q`")));
    }
    let rotary_dim = cos_sin.shape[1];
    if rotary_dim > dim || !rotary_dim.is_multiple_of(2) {
        return Err(shape(KERNEL, "cos_sin", &cos_sin, format!("an even number of columns up to {dim}")));
    }
    contiguous(KERNEL, "positions", &positions, &[tokens])?;
    contiguous(KERNEL, "q_out", &q_out, &[tokens, q_heads, dim])?;
    contiguous(KERNEL, "k_out", &k_out, &[tokens, k_heads, dim])?;
    let total = tokens * (q_heads + k_heads) * dim;
    if tokens * q_heads * k_heads * dim == 0 || cos_sin.size() == 0 {
        return if total == 0 { Ok(()) } else { Err(shape(KERNEL, "q", &q, "no empty axis but the first")) };
    }

    let (count, cube_dim) = elementwise(KERNEL, client, total)?;
    let size = dtype.size();
    let address = addresses(&[(&q, size), (&k, size), (&cos_sin, 4), (&q_out, size), (&k_out, size)]);
    // SAFETY: a unit beyond `total` stops; below it token, head and column are within `q` or `k`, and the outputs have
    // their shapes, contiguous. A partner is within the first `rotary_dim <= head_dim` elements. Positions are rows of
    // `cos_sin` by contract.
    unsafe {
        apply_rope::launch_unchecked(
            client,
            count,
            cube_dim,
            address,
            q.into_tensor_arg(),
            k.into_tensor_arg(),
            cos_sin.into_tensor_arg(),
            positions.into_buffer_arg(),
            q_out.into_tensor_arg(),
            k_out.into_tensor_arg(),
            rotary_dim,
            total,
            style,
            dtype,
        );
    }
    Ok(())
}
