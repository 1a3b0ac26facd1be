//! ```text
//! o_i = Σ_j p_ij v_j / Σ_j p_ij      p_ij = exp(s_ij - m_i)      s_ij = scale logit(q_i·k_j), for visible j
//! ```
//! A row is one query token of one query head. `U` units own a row and walk over its visible keys in tiles; per tile
//!
//! | step | unit `u` of `U` | shared memory |
//! |------|-----------------|---------------|
//! | 1 | logits of keys `u, u + U, ..` | writes `logits` |
//! |   | *sync* | |
//! | 2 | row_max of the tile; probabilities of keys `u, u + U, ..` | reads `logits`, writes `weights`, `values` |
//! |   | *sync* | |
//! | 3 | row_sum of the tile; output columns `u, u + U, ..` | reads `weights`, `values` |
//!
//! Two barriers a tile are enough: step 1 of the next tile writes only what step 2 has finished reading. Its
//! step 2 comes after a barrier that every unit reaches after step 3. All units find row_max and row_sum in
//! the same order. So they agree without communication, and the result does not change from run to run.
//!
//! On a GPU a cube is one row. On a CPU a unit is a thread and a barrier a spin lock, so there a cube is many rows of
//! one unit each, every row with its part of the shared memory, and there are no barriers.
//!
//! Keys outside the range of a row are never read, let alone multiplied. A tile whose weights are all negligible
//! ([`Variant::negligible`]) counts as one without keys in steps 2 and 3: the row decides alone, and the same in each unit.

use cubecl::prelude::*;

use super::super::buffers::{Outputs, Qkv, key_scale, value_scale};
use super::super::kv_table::{key_offset, request_of};
use super::super::mask::{CustomMask, keeps};
use super::super::state::{divisor, finite, lse};
use super::super::variant::Variant;
use super::Portable;
use crate::code8::floats;
use crate::element::Element;
use crate::math::{Exact, LOG2_E, narrow, sync_row};
use crate::problem::HeadDims;
use crate::request::query_row;

/// The rows of all tokens and query heads, see the module.
#[allow(clippy::type_complexity, reason = "an alias of it is no shorter")]
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn attention<V: Variant, F: Float, C: Numeric, QK: Size, VO: Size>(
    qkv: &Qkv<Vector<F, QK>, Vector<C, QK>, Vector<C, VO>>,
    outputs: &mut Outputs<F>,
    mask: &ComptimeOption<CustomMask>,
    args: &V::Args,
    #[comptime] dims: HeadDims,
    #[comptime] blueprint: Portable,
    #[comptime] element: Element,
    #[define(F, C)] _dtypes: [ElemType; 2],
) {
    let (q, k, v, table) = (&qkv.q, &qkv.k, &qkv.v, &qkv.table);
    let units = comptime!(blueprint.units as usize);
    let rows = comptime!(blueprint.rows as usize);
    let tile = comptime!(blueprint.tile);
    let qk = comptime!(dims.qk / blueprint.qk_vector);
    let vo = comptime!(dims.vo / blueprint.vo_vector);

    let unit = UNIT_POS as usize % units;
    let part = UNIT_POS as usize / units;
    let row = CUBE_POS * rows + part;
    let q_heads = q.shape(1);
    if row >= q.shape(0) * q_heads {
        terminate!();
    }
    let token = row / q_heads;
    let head = row % q_heads;
    let kv_head = head / (q_heads / k.shape(2));
    let request = request_of(table, token);
    let query = token - request.first_token;
    let of = query_row(&request, query, head, kv_head);
    let (start, end) = V::keys(args, &request, query);
    // No key beyond the request is read, whatever the variant says.
    let end = min(end, request.kv_len);
    let scale = V::scale(args);
    let k_scale = key_scale(&qkv.scales, kv_head);
    // The logit of a key that is not kept.
    let masked = comptime!(if V::SOFTMAX { f32::NEG_INFINITY } else { 0.0 }).runtime();

    let mut q_shared = Shared::<[Vector<f32, QK>]>::new_slice(rows * qk);
    let mut logits = Shared::<[f32]>::new_slice(rows * tile);
    let mut weights = Shared::<[f32]>::new_slice(rows * tile);
    let mut values = Shared::<[usize]>::new_slice(rows * tile);

    // Offsets of this row's part.
    let (query_at, tile_at) = (part * qk, part * tile);

    let q_row = (token * q.stride(0) + head * q.stride(1)) / QK::value();
    let mut i = unit;
    while i < qk {
        q_shared[query_at + i] = Vector::cast_from(q[q_row + i]);
        i += units;
    }
    sync_row(units);

    let columns = comptime!(vo.div_ceil(units));
    let unrolled = comptime!(columns <= 8);
    let mut sums = Array::<Vector<f32, VO>>::new(columns);
    #[unroll(unrolled)]
    for c in 0..columns {
        sums[c] = Vector::new(0.0f32);
    }
    let (m, l) = V::start(args, &of);
    // A scale may be 0, and -inf times it is NaN.
    let mut maximum = select(m == f32::NEG_INFINITY, m, m * scale);
    let mut sum = l;

    let negligible = V::negligible(args, &request);
    let mut first = start;
    while first < end {
        let keys = min(tile, end - first);

        let mut j = unit;
        while j < keys {
            let at = key_offset(table, &request, first + j, k.stride(0), k.stride(1));
            let at = (at + kv_head * k.stride(2)) / QK::value();
            let mut dot = Vector::<f32, QK>::new(0.0f32);
            for i in 0..qk {
                dot += q_shared[query_at + i] * number::<C, QK>(k[at + i], element);
            }
            let mut product = scaled::<Const<1>>(Vector::new(dot.vector_sum()), &k_scale).extract(0usize);
            #[comptime]
            match &qkv.token_scales {
                ComptimeOption::Some(scales) => {
                    let (of_key, _) = scales.of(table, &request, first + j, kv_head);
                    product *= of_key;
                }
                ComptimeOption::None => {}
            }
            let mut logit = V::logit::<Exact>(args, product, &of, first + j);
            #[comptime]
            match V::slope(args, &of) {
                ComptimeOption::Some(slope) => {
                    logit = fma(slope, f32::cast_from((first + j) as i32 - of.position()), logit);
                }
                ComptimeOption::None => {}
            }
            let mut is_kept = V::keep(args, &of, first + j);
            #[comptime]
            match mask {
                ComptimeOption::Some(mask) => is_kept = is_kept && keeps(mask, &request, query, first + j),
                ComptimeOption::None => {}
            }
            logits[tile_at + j] = select(is_kept, logit * scale, masked);
            j += units;
        }
        sync_row(units);

        let keys = counted::<V>(keys, &negligible, &logits, tile_at, maximum);
        let mut m_new = maximum;
        for j in 0..keys {
            m_new = max(m_new, logits[tile_at + j]);
        }
        let base = finite(m_new);
        let mut j = unit;
        while j < keys {
            let logit = logits[tile_at + j];
            weights[tile_at + j] = if comptime!(V::SOFTMAX) { (logit - base).exp() } else { logit };
            let at = key_offset(table, &request, first + j, v.stride(0), v.stride(1));
            values[tile_at + j] = (at + kv_head * v.stride(2)) / VO::value();
            j += units;
        }
        sync_row(units);

        if comptime!(V::SOFTMAX) {
            let alpha = (maximum - base).exp();
            maximum = m_new;
            sum *= alpha;
            #[unroll(unrolled)]
            for c in 0..columns {
                sums[c] *= Vector::new(alpha);
            }
        }
        for j in 0..keys {
            let mut weight = weights[tile_at + j];
            let at = values[tile_at + j];
            sum += weight;
            #[comptime]
            match &qkv.token_scales {
                ComptimeOption::Some(scales) => {
                    let (_, of_value) = scales.of(table, &request, first + j, kv_head);
                    weight *= of_value;
                }
                ComptimeOption::None => {}
            }
            #[unroll(unrolled)]
            for c in 0..columns {
                let column = unit + c * units;
                if comptime!(vo % units == 0) || column < vo {
                    sums[c] += Vector::new(weight) * number::<C, VO>(v[at + column], element);
                }
            }
        }
        first += tile;
    }

    let v_scale = value_scale(&qkv.scales, kv_head);
    let output = outputs.output.with_vector_size_mut::<VO>();
    #[unroll(unrolled)]
    for c in 0..columns {
        let column = unit + c * units;
        if comptime!(vo % units == 0) || column < vo {
            let mut finished = sums[c];
            if comptime!(V::SOFTMAX) {
                finished = sums[c] / Vector::new(divisor(sum));
            }
            finished = scaled::<VO>(finished, &v_scale);
            #[unroll]
            for i in 0..VO::value() {
                finished.insert(i, V::finish(args, finished.extract(i), &of));
            }
            output[row * vo + column] = narrow::<F, VO>(finished);
        }
    }
    #[comptime]
    match &mut outputs.lse {
        ComptimeOption::Some(of_rows) => {
            if unit == 0 {
                of_rows[row] = lse(maximum * LOG2_E, sum, sum.ln() * LOG2_E);
            }
        }
        ComptimeOption::None => {}
    }
}

/// The keys of a tile that count, whose logits begin at `at`: none if all are negligible below the largest so far.
#[cube]
fn counted<V: Variant>(
    keys: usize,
    negligible: &ComptimeOption<f32>,
    logits: &[f32],
    at: usize,
    maximum: f32,
) -> usize {
    #[comptime]
    match negligible {
        ComptimeOption::Some(distance) => {
            let mut counted = keys;
            if comptime!(V::SOFTMAX) {
                let mut highest = f32::NEG_INFINITY.runtime();
                for j in 0..keys {
                    highest = max(highest, logits[at + j]);
                }
                counted = select(maximum - highest > *distance, 0usize, keys);
            }
            counted
        }
        ComptimeOption::None => keys,
    }
}

/// Stored elements as floats, but for their scale.
#[cube]
fn number<C: Numeric, N: Size>(x: Vector<C, N>, #[comptime] element: Element) -> Vector<f32, N> {
    #[comptime]
    match element {
        Element::Number(_) => Vector::cast_from(x),
        Element::Code(format) => floats::<N>(Vector::cast_from(x), format),
    }
}

/// `x` times the factor, if there is one.
#[cube]
fn scaled<N: Size>(x: Vector<f32, N>, factor: &ComptimeOption<f32>) -> Vector<f32, N> {
    #[comptime]
    match factor {
        ComptimeOption::Some(factor) => x * Vector::new(*factor),
        ComptimeOption::None => x,
    }
}
