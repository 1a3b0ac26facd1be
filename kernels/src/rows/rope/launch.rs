//! The launcher of RoPE.

use cubecl::{
    client::Client,
    ir::{ElemType, FloatKind},
    prelude::*,
};

use super::blueprint::{Blueprint, Style};
use super::kernel::rope;
use crate::code8::{Quantized, element_type};
use crate::device::tensor::{
    KvLayout, Result, addresses, alignment, contiguous, one_page, rows, shape, vector,
};
use crate::rows::pages::{KvQuantized, Pools, unzip};
use crate::rows::row_group::RowGroup;

const KERNEL: &str = "rope";

/// Queries and keys, and the tensors for their rotations.
pub struct Rope {
    /// `[tokens, q_heads, head_dim]`.
    pub q: TensorBinding,
    /// `[tokens, k_heads, head_dim]`.
    pub k: TensorBinding,
    /// `[max_positions, rotary_dim]` of f32: the cosines of a position, then its sines.
    pub cos_sin: TensorBinding,
    /// `[tokens]` of `i32`, contiguous.
    pub positions: TensorBinding,
    /// The pairing.
    pub style: Style,
    /// The norm of each head before it is rotated.
    pub norm: Option<HeadNorm>,
    /// As `q`, contiguous. Without it the rotations replace `q`, which is contiguous then.
    pub q_out: Option<TensorBinding>,
    /// Scales if `q_out` is fp8: one for all heads or one for each.
    pub q_quantized: Option<Quantized>,
    /// The destination of the keys.
    pub to: To,
}

/// Root mean square norms of heads of queries and of keys.
pub struct HeadNorm {
    /// `[head_dim]`, contiguous.
    pub q_weight: TensorBinding,
    /// `[head_dim]`, contiguous.
    pub k_weight: TensorBinding,
    /// Added to the mean of the squares.
    pub epsilon: f32,
}

/// The destination of rotated keys.
#[allow(clippy::large_enum_variant, reason = "there is one for a launch")]
pub enum To {
    /// The rotated keys replace `k`, which is contiguous.
    InPlace,
    /// A tensor as `k`, contiguous; fp8 if there is a scale: one for all heads or one for each.
    Tensor(TensorBinding, Option<Quantized>),
    /// Pages, which also take the values.
    Pages {
        /// `[tokens, k_heads, v_dim]`.
        v: TensorBinding,
        /// The pages.
        pools: Pools,
        /// `[tokens]` of `i32`, contiguous: `page * page_size + offset` for each token, negative to skip it.
        slots: TensorBinding,
    },
}

/// The destination of keys and values, as pages.
struct Places {
    k_out: TensorBinding,
    /// The values; without values the keys, with no head of them.
    v: TensorBinding,
    v_heads: usize,
    v_out: TensorBinding,
    slots: Option<TensorBinding>,
    quantized: Option<KvQuantized>,
    in_place: bool,
}

impl Places {
    fn of(to: To, k: &TensorBinding) -> Result<Self> {
        let [tokens, heads, dim] = [k.shape[0], k.shape[1], k.shape[2]];
        // One page has a slot for each token.
        let keys_alone = |k_out: TensorBinding, quantized: Option<Quantized>, in_place| {
            contiguous(KERNEL, "k_out", &k_out, &[tokens, heads, dim])?;
            let quantized = quantized.map(|Quantized { format, scale }| KvQuantized {
                format: format.into(),
                k_scale: scale.clone(),
                v_scale: scale,
            });
            let pools =
                Pools { k: one_page(k_out.clone()), v: one_page(k_out), layout: KvLayout::Nhd, quantized };
            let Pools { k: k_out, v: v_out, quantized, .. } = pools.by_slot(KERNEL, heads, [dim; 2])?;
            Ok(Self { k_out, v: k.clone(), v_heads: 0, v_out, slots: None, quantized, in_place })
        };
        match to {
            To::InPlace => keys_alone(k.clone(), None, true),
            To::Tensor(k_out, quantized) => keys_alone(k_out, quantized, false),
            To::Pages { v, pools, slots } => {
                rows(KERNEL, "v", &v, 3)?;
                let v_dim = v.shape[2];
                if v.shape.to_vec() != [tokens, heads, v_dim] {
                    let expected = format!("[{tokens}, {heads}, v_dim], as `k`");
                    return Err(shape(KERNEL, "v", &v, expected));
                }
                contiguous(KERNEL, "slots", &slots, &[tokens])?;
                let Pools { k: k_out, v: v_out, quantized, .. } =
                    pools.by_slot(KERNEL, heads, [dim, v_dim])?;
                Ok(Self { k_out, v, v_heads: heads, v_out, slots: Some(slots), quantized, in_place: false })
            }
        }
    }
}

/// Rotates the first `rotary_dim` elements of every head of `q` and `k`, after its norm if there is one, and
/// copies the others. Inputs are of type `dtype`.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
///
/// # Safety
///
/// Each of `positions` is from 0 to below the rows of `cos_sin`. Slots are as [`append`](crate::rows::append::append)
/// wants them.
pub unsafe fn launch(client: &Client, rope: Rope, dtype: ElemType) -> Result<()> {
    let Rope { q, k, cos_sin, positions, style, norm, q_out, q_quantized, to } = rope;
    rows(KERNEL, "q", &q, 3)?;
    rows(KERNEL, "k", &k, 3)?;
    rows(KERNEL, "cos_sin", &cos_sin, 2)?;
    let [tokens, q_heads, dim] = [q.shape[0], q.shape[1], q.shape[2]];
    let k_heads = k.shape[1];
    let like_k = [tokens, k_heads, dim];
    if k.shape.to_vec() != like_k {
        return Err(shape(KERNEL, "k", &k, format!("[{tokens}, k_heads, {dim}], as `q`")));
    }
    let rotary_dim = cos_sin.shape[1];
    if rotary_dim > dim || !rotary_dim.is_multiple_of(2) {
        return Err(shape(KERNEL, "cos_sin", &cos_sin, format!("an even number of columns up to {dim}")));
    }
    contiguous(KERNEL, "positions", &positions, &[tokens])?;
    contiguous(KERNEL, "q_out", q_out.as_ref().unwrap_or(&q), &[tokens, q_heads, dim])?;
    if let Some(HeadNorm { q_weight, k_weight, .. }) = &norm {
        contiguous(KERNEL, "q_weight", q_weight, &[dim])?;
        contiguous(KERNEL, "k_weight", k_weight, &[dim])?;
    }
    if let Some(Quantized { scale, .. }) = &q_quantized {
        let scales = if scale.size() == 1 { 1 } else { q_heads };
        contiguous(KERNEL, "q_scale", scale, &[scales])?;
    }
    let to = Places::of(to, &k)?;
    if tokens == 0 {
        return Ok(());
    }
    // The sizes, not their product, which can wrap to 0.
    if [q_heads, k_heads, dim, cos_sin.size(), to.v.size()].contains(&0) {
        return Err(shape(KERNEL, "q", &q, "no empty axis but the first"));
    }

    let outputs = [q_out.as_ref().unwrap_or(&q), &to.k_out, &to.v_out];
    let align = [&q, &k, &to.v].into_iter().chain(outputs).map(alignment).min().unwrap_or(1);
    let v_dim = to.v.shape[2];
    let lanes = vector(client, dtype, &[rotary_dim / 2, dim, v_dim], align);
    let f32s = ElemType::Float(FloatKind::F32);
    let angles = vector(client, f32s, &[lanes, rotary_dim / 2], alignment(&cos_sin));
    let heads = q_heads + k_heads + to.v_heads;
    let total = tokens * heads;
    let pairs = (dim.max(v_dim) / lanes).div_ceil(2);
    let (row_group, count, cube_dim) = RowGroup::of_neighbours(KERNEL, client, total, pairs)?;
    let size = dtype.size();
    let address = addresses(&[
        (&q, size),
        (&k, size),
        (&to.v, size),
        (&cos_sin, 4),
        (outputs[0], size),
        (outputs[1], size),
        (outputs[2], size),
    ]);
    let page_size = to.k_out.shape[1];
    let element = element_type(to.quantized.is_some(), dtype);
    let q_dtype = element_type(q_quantized.is_some(), dtype);
    let (q_code, q_scale) = Quantized::unzip(q_quantized, client);
    let [(k_code, k_scale), (v_code, v_scale)] = unzip(to.quantized, client);
    let blueprint = Blueprint { style, row_group, q_code, k_code, v_code };
    let (q_weight, k_weight, epsilon) = match norm {
        None => (None, None, 0.0),
        Some(HeadNorm { q_weight, k_weight, epsilon }) => {
            (Some(q_weight.into_buffer_arg()), Some(k_weight.into_buffer_arg()), epsilon)
        }
    };
    // All tensors get four axes, as pages have: an alias has the shape of its original.
    let [q, k, v] = [q, k, to.v].map(one_page);
    let q_out = q_out.map_or_else(|| q.as_alias(0), TensorBinding::into_tensor_arg);
    let [k_out, v_out] = [to.k_out, to.v_out].map(|out| match to.in_place {
        true => out.as_alias(1),
        false => out.into_tensor_arg(),
    });
    // SAFETY: a row beyond `total` does nothing; below it token and head are within `q`, `k` or `v`, of which
    // the outputs have the shapes. Vectors stay below the head dimension, which `lanes` divides, as it does
    // half of what is rotated. Positions are rows of `cos_sin`, and slots within the pools, by contract.
    unsafe {
        rope::launch_unchecked(
            client,
            count,
            cube_dim,
            address,
            lanes,
            angles,
            q.into_tensor_arg(),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            cos_sin.into_tensor_arg(),
            positions.into_buffer_arg(),
            q_out,
            k_out,
            v_out,
            to.slots.map(TensorBinding::into_buffer_arg).into(),
            q_weight.into(),
            k_weight.into(),
            q_scale.into(),
            k_scale.into(),
            v_scale.into(),
            epsilon,
            rotary_dim,
            heads,
            page_size,
            total,
            blueprint,
            [dtype, q_dtype, element],
        );
    }
    Ok(())
}
