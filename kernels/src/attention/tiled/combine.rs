//! ```text
//! o = Σ_c w_c o_c / Σ_c w_c      w_c = t_c exp(scale (b_c - m))      s = log2(e) scale m + log2 Σ_c w_c      m = max_c b_c
//! ```
//! over the chunks `c` of a request's keys, in their order: the same sum every run. `b_c` is the largest score of the
//! chunk before scaling, `t_c` the sum of the weights relative to it. A unit computes 4 elements.

use cubecl::prelude::*;

use super::super::batch::{Table, pieces_of};
use crate::math::narrow;

/// Where the partial results lie.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Partials {
    /// Factor on scores; 1 if a soft cap has scaled them.
    pub scale: f32,
    /// Keys of a chunk.
    pub chunk: usize,
    /// Rows of a chunk of a key head.
    pub rows: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub tokens: usize,
    pub keys: usize,
    /// Vectors of the output.
    pub total: usize,
}

/// `partial`: `[pieces, kv_heads, rows, vo]`, `sums`: `[pieces, kv_heads, rows, 2]` of `b` and `t`, `output`: `[tokens,
/// q_heads, vo]`.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn combine<O: Float>(
    partial: &[Vector<f32, Const<4>>],
    sums: &[f32],
    output: &mut [Vector<O, Const<4>>],
    lse: &mut ComptimeOption<Box<[f32]>>,
    table: &Table,
    params: &Partials,
    #[comptime] vectors: usize,
    #[define(O)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= params.total {
        terminate!();
    }
    let column = ABSOLUTE_POS % vectors;
    let row = ABSOLUTE_POS / vectors;
    let (token, head) = (row / params.q_heads, row % params.q_heads);
    let group = params.q_heads / params.kv_heads;
    let found = pieces_of(table, token, params.chunk, params.tokens, params.keys);
    let chunks = found.request.kv_len.div_ceil(params.chunk);
    let within = (token - found.request.first_token) * group + head % group;
    let first = (found.number * params.kv_heads + head / group) * params.rows + within;
    let stride = params.kv_heads * params.rows;

    let mut highest = f32::NEG_INFINITY.runtime();
    for c in 0..chunks {
        highest = max(highest, sums[2 * (first + c * stride)]);
    }
    // While every chunk is empty, subtract 0 instead: (-inf) - (-inf) would be NaN.
    let base = select(highest == f32::NEG_INFINITY, 0.0f32, highest);
    let mut sum = 0.0f32;
    let mut merged = Vector::<f32, Const<4>>::new(0.0f32);
    for c in 0..chunks {
        let at = first + c * stride;
        let weight = sums[2 * at + 1] * ((sums[2 * at] - base) * params.scale).exp();
        sum += weight;
        merged += partial[at * vectors + column] * Vector::new(weight);
    }
    let norm = select(sum == 0.0f32, 1.0f32, sum);
    output[ABSOLUTE_POS] = narrow::<O, Const<4>>(merged / Vector::new(norm));
    #[comptime]
    match lse {
        ComptimeOption::Some(lse) => {
            if column == 0 {
                let value = (base * params.scale + sum.ln()) * crate::math::LOG2_E;
                lse[row] = select(sum == 0.0f32, f32::NEG_INFINITY, value);
            }
        }
        ComptimeOption::None => {}
    }
}
