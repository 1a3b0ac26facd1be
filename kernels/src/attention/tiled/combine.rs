//! ```text
//! o = Σ_c w_c o_c / Σ_c w_c      w_c = t_c exp(scale (b_c - m))      s = log2(e) scale m + log2 Σ_c w_c      m = max_c b_c
//! ```
//! over the chunks `c` of a request's keys, in their order: the same sum every run. `b_c` is the row_max of
//! the chunk before scaling, `t_c` its row_sum. Without a softmax it is the sum `Σ_c o_c`. A unit computes 4
//! elements.

use cubecl::prelude::*;

use super::super::buffers::Outputs;
use super::super::plan::merge_at;
use super::super::state::{divisor, finite, lse};
use super::super::variant::Variant;
use crate::math::{LOG2_E, narrow};
use crate::request::query_row;

/// Chunks whose partial results are read at once, so that their latencies overlap. One after the other, 16 of them took
/// 10 us (H200).
const COMBINE_UNROLL: usize = 8;

/// The run-time numbers of a problem.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct CombineParams {
    pub q_heads: usize,
    pub kv_heads: usize,
    /// Rows that a merge has at most.
    pub merge_rows: usize,
    /// Vectors of all merges, if each had as many rows.
    pub total: usize,
}

/// `workspace`: `[partial_rows, vo]`, then `[partial_rows, 2]` of `b` and `t`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn combine<V: Variant, O: Float>(
    workspace: &[Vector<f32, Const<4>>],
    outputs: &mut Outputs<O>,
    merges: &[i32],
    args: &V::Args,
    params: &CombineParams,
    #[comptime] vectors: usize,
    #[define(O)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= params.total {
        terminate!();
    }
    let column = ABSOLUTE_POS % vectors;
    let row = ABSOLUTE_POS / vectors % params.merge_rows;
    let head_of_merge = ABSOLUTE_POS / vectors / params.merge_rows;
    let kv_head = head_of_merge % params.kv_heads;
    let merge = merge_at(merges, head_of_merge / params.kv_heads);
    if row >= merge.rows {
        terminate!();
    }
    let first = merge.partial + kv_head * merge.per_head + row;
    let stride = params.kv_heads * merge.per_head;
    let o = workspace.with_vector_size::<Const<2>>();
    let sums_at = outputs.partial_rows * comptime!(vectors * 2);

    let scale = V::scale(args);
    let mut m_new = f32::NEG_INFINITY.runtime();
    let mut base = 0.0f32;
    let mut sum = 0.0f32;
    let mut merged = Vector::<f32, Const<4>>::new(0.0f32);
    let mut c = 0usize;
    while c < merge.chunks {
        let mut of_rows = Array::<Vector<f32, Const<2>>>::new(COMBINE_UNROLL);
        let mut parts = Array::<Vector<f32, Const<4>>>::new(COMBINE_UNROLL);
        let before = m_new;
        #[unroll]
        for i in 0..COMBINE_UNROLL {
            let at = first + min(c + i, merge.chunks - 1) * stride;
            if comptime!(V::SOFTMAX) {
                of_rows[i] = o[sums_at + at];
            }
            parts[i] = workspace[at * vectors + column];
        }
        if comptime!(V::SOFTMAX) {
            #[unroll]
            for i in 0..COMBINE_UNROLL {
                m_new = max(m_new, of_rows[i].extract(0usize));
            }
            base = finite(m_new);
            let alpha = ((before - base) * scale).exp();
            sum *= alpha;
            merged *= Vector::new(alpha);
            #[unroll]
            for i in 0..COMBINE_UNROLL {
                let relative = (of_rows[i].extract(0usize) - base) * scale;
                let weight =
                    select(c + i < merge.chunks, of_rows[i].extract(1usize) * relative.exp(), 0.0f32);
                sum += weight;
                merged += parts[i] * Vector::new(weight);
            }
        } else {
            #[unroll]
            for i in 0..COMBINE_UNROLL {
                merged += parts[i] * Vector::new(select(c + i < merge.chunks, 1.0f32, 0.0f32));
            }
        }
        c += COMBINE_UNROLL;
    }
    let group = params.q_heads / params.kv_heads;
    let packed = merge.first_row + row;
    let q_head = kv_head * group + packed % group;
    let to = (merge.request.first_token + packed / group) * params.q_heads + q_head;
    let row = query_row(&merge.request, packed / group, q_head, kv_head);
    let mut finished = merged;
    if comptime!(V::SOFTMAX) {
        finished = merged / Vector::new(divisor(sum));
    }
    #[unroll]
    for i in 0..4usize {
        finished.insert(i, V::finish(args, finished.extract(i), &row));
    }
    let output = outputs.output.with_vector_size_mut::<Const<4>>();
    output[to * vectors + column] = narrow::<O, Const<4>>(finished);
    #[comptime]
    match &mut outputs.lse {
        ComptimeOption::Some(of_rows) => {
            if column == 0 {
                of_rows[to] = lse(base * scale * LOG2_E, sum, sum.ln() * LOG2_E);
            }
        }
        ComptimeOption::None => {}
    }
}
