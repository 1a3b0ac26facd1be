//! The RoPE kernel: rotates heads of queries and keys, and stores them.

use cubecl::{ir::ElemType, prelude::*, std::FastDivmod};

use super::blueprint::Blueprint;
use super::head::{rotate, squares};
use crate::code8::{divisor, scale_of};
use crate::rows::pages::row_of;
use crate::rows::row_group;

/// `(a, b) -> (a cos - b sin, b cos + a sin)` for each pair of a head of `q` and `k`, at the angle of the
/// token's position. With weights, the head is first divided by its root mean square and multiplied with
/// them. Heads of `v` only move.
///
/// A unit has some pairs of vectors of a head. In the rotated part a pair is a vector of first elements and
/// one of second ones; elsewhere it is two neighbours. A unit reads both before it writes them and no other
/// unit accesses them, so outputs may be inputs.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn rope<F: Float, Q: Numeric, K: Numeric, N: Size, M: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    cos_sin: &Tensor<Vector<f32, M>>,
    positions: &[i32],
    q_out: &mut Tensor<Vector<Q, N>>,
    k_out: &mut Tensor<Vector<K, N>>,
    v_out: &mut Tensor<Vector<K, N>>,
    slots: &ComptimeOption<Box<[i32]>>,
    q_weight: &ComptimeOption<Box<[Vector<F, N>]>>,
    k_weight: &ComptimeOption<Box<[Vector<F, N>]>>,
    q_scale: &ComptimeOption<Box<[f32]>>,
    k_scale: &ComptimeOption<Box<[f32]>>,
    v_scale: &ComptimeOption<Box<[f32]>>,
    epsilon: f32,
    rotary_dim: usize,
    heads: FastDivmod<usize>,
    page_size: FastDivmod<usize>,
    total: usize,
    #[comptime] blueprint: Blueprint,
    #[define(F, Q, K)] _dtypes: [ElemType; 3],
) {
    let (rows, units) = comptime!((blueprint.row_group.rows, blueprint.row_group.units));
    let unit = UNIT_POS as usize % units;
    let row = CUBE_POS * rows + UNIT_POS as usize / units;
    let (q_heads, k_heads) = (q.shape(2), k.shape(2));
    let (token, head) = heads.div_mod(row);
    // A unit without a row still waits with the others.
    let is_row = row < total;
    let is_q = is_row && head < q_heads;
    let is_k = is_row && head >= q_heads && head < q_heads + k_heads;
    let (k_head, v_head) = (head - min(q_heads, head), head - min(q_heads + k_heads, head));
    let q_row = token * q.stride(1) + head * q.stride(2);
    let k_row = token * k.stride(1) + k_head * k.stride(2);

    // Loads before the norm, so that they are in flight while it waits for the head.
    let of_token = select(is_row, token, 0usize);
    let angles = usize::cast_from(positions[of_token]) * cos_sin.stride(0);
    let slot = slot_of(slots, of_token);
    let mut factor = 1.0f32;
    if comptime!(q_weight.is_some()) {
        let mut part = 0.0f32;
        if is_q {
            part = squares::<F, N>(q, q_row, unit, units);
        } else if is_k {
            part = squares::<F, N>(k, k_row, unit, units);
        }
        let sum = row_group::row_sum(part, unit, blueprint.row_group);
        factor = 1.0f32 / (sum / f32::cast_from(q.shape(3)) + epsilon).sqrt();
    }

    if is_row {
        if is_q {
            let to = (token * q_heads + head) * q.shape(3);
            let by = divisor(scale_of(q_scale, head, blueprint.q_code));
            rotate::<F, Q, N, M>(
                q,
                q_row,
                q_out,
                to,
                q_weight,
                factor,
                &by,
                cos_sin,
                angles,
                rotary_dim,
                unit,
                blueprint,
                blueprint.q_code,
            );
        } else if slot >= 0i32 {
            let slot = usize::cast_from(slot);
            if is_k {
                let to = row_of(slot, k_head, page_size, k_out.stride(0), k_out.stride(1), k_out.stride(2));
                let by = divisor(scale_of(k_scale, k_head, blueprint.k_code));
                rotate::<F, K, N, M>(
                    k,
                    k_row,
                    k_out,
                    to,
                    k_weight,
                    factor,
                    &by,
                    cos_sin,
                    angles,
                    rotary_dim,
                    unit,
                    blueprint,
                    blueprint.k_code,
                );
            } else {
                let to = row_of(slot, v_head, page_size, v_out.stride(0), v_out.stride(1), v_out.stride(2));
                let by = divisor(scale_of(v_scale, v_head, blueprint.v_code));
                let row = token * v.stride(1) + v_head * v.stride(2);
                let no_weight = ComptimeOption::new_None();
                rotate::<F, K, N, M>(
                    v,
                    row,
                    v_out,
                    to,
                    &no_weight,
                    1.0f32,
                    &by,
                    cos_sin,
                    angles,
                    0usize,
                    unit,
                    blueprint,
                    blueprint.v_code,
                );
            }
        }
    }
}

/// The slot of a token of keys and values, or its own row.
#[cube]
fn slot_of(slots: &ComptimeOption<Box<[i32]>>, token: usize) -> i32 {
    #[comptime]
    match slots {
        ComptimeOption::Some(slots) => slots[token],
        ComptimeOption::None => i32::cast_from(token),
    }
}
