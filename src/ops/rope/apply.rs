//! Rotary position embedding, alone and fused with its neighbours.

use burn::{
    backend::Dispatch,
    tensor::{Int, Tensor},
};

use super::table::Rope;
use crate::cache::{KvPages, Positions, Says, SlotMapping};
use crate::check::{self, Floats, shape};
use crate::dispatch::{IntoBackend, Origin};
use crate::error::{Error, Result};
use crate::extension::{FlashInferBackend, MaybeHeadNorm, RotatedAndAppended, Rotations};
use crate::ops::append::fits;
use crate::ops::quantization::{Quantization, check_quantization};

/// Rotates queries and keys by their positions.
///
/// `q`: `[tokens, q_heads, head_dim]`, `k`: `[tokens, kv_heads, head_dim]`, `positions`: one for each token.
/// With the angle `a = position * f_i` of pair `i`, the pair `(x, y)` becomes
/// `(x cos a - y sin a, y cos a + x sin a)`, computed in f32 and rounded once. Elements from `rotary_dim` on
/// stay as they are. A tensor that has no other owner is rotated in place: to save the memory, do not keep
/// clones.
///
/// Positions by the offsets of requests are [`Positions::continuing`].
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_flashinfer::{Positions, Rope, RopeConfig, apply_rope};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let rope = Rope::new(&RopeConfig::new(64).theta(500_000.0), 8192, &device)?;
/// let q = Tensor::<3>::random([3, 8, 64], Distribution::Default, &device);
/// let k = Tensor::<3>::random([3, 2, 64], Distribution::Default, &device);
/// let (q, k) = apply_rope(q, k, &rope, &Positions::new(&[0, 1, 2], &device)?)?;
/// assert_eq!((q.dims(), k.dims()), ([3, 8, 64], [3, 2, 64]));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// If shapes, types or devices do not fit together, a position is beyond the table, or a tensor requires a gradient.
pub fn apply_rope(
    q: Tensor<3>,
    k: Tensor<3>,
    rope: &Rope,
    positions: &Positions,
) -> Result<(Tensor<3>, Tensor<3>)> {
    const OP: &str = "apply_rope";
    rotate(OP, q, k, None, rope, positions)
}

/// The norms of the heads of queries and of keys that some models (Qwen 3, Gemma 3) take before RoPE.
#[derive(Debug, Clone)]
pub struct QkNorm {
    /// `[head_dim]`.
    pub q_weight: Tensor<1>,
    /// `[head_dim]`.
    pub k_weight: Tensor<1>,
    /// Added to the mean of the squares.
    pub epsilon: f32,
}

/// [`apply_rope`] after `x / sqrt(mean(x²) + epsilon) * weight` over each head of `q` and `k`: all in f32,
/// rounded once.
///
/// # Errors
///
/// As [`apply_rope`], and if a weight does not fit, or `epsilon` is negative or not finite.
pub fn qk_rms_norm_rope(
    q: Tensor<3>,
    k: Tensor<3>,
    norm: &QkNorm,
    rope: &Rope,
    positions: &Positions,
) -> Result<(Tensor<3>, Tensor<3>)> {
    rotate("qk_rms_norm_rope", q, k, Some(norm), rope, positions)
}

/// [`apply_rope`], with the result in 8 bits: divided by the scales of `q_quantization` and `k_quantization`,
/// whose formats are the same, and rounded once. (FlashInfer's `quant_scale` is the inverse of a scale here.)
///
/// # Errors
///
/// As [`apply_rope`], and if the formats differ or a scale is on another device.
pub fn rope_quantize_fp8(
    q: Tensor<3>,
    k: Tensor<3>,
    rope: &Rope,
    positions: &Positions,
    q_quantization: &Quantization,
    k_quantization: &Quantization,
) -> Result<(Tensor<3, Int>, Tensor<3, Int>)> {
    const OP: &str = "rope_quantize_fp8";
    let rotations = checked(OP, &q, &k, None, rope, positions)?;
    for quantization in [q_quantization, k_quantization] {
        check_quantization(OP, quantization, &q.device())?;
    }
    if q_quantization.format != k_quantization.format {
        return Err(Error::Value {
            op: OP,
            argument: "k_quantization",
            got: format!("{:?}", k_quantization.format),
            expected: format!("{:?}, as `q_quantization`", q_quantization.format),
        });
    }
    let [q_scale, k_scale] = [q_quantization, k_quantization].map(|by| by.scale.clone().into_backend());
    let origin = Origin::of(&q);
    let (q, k) = (q.into_backend(), k.into_backend());
    let (q, k) = Dispatch::rope_quantize_fp8(q, k, rotations, q_scale, k_scale, q_quantization.format);
    Ok((origin.tensor(q), origin.tensor(k)))
}

/// The queries, keys and values of new tokens: `[tokens, heads, head_dim]`.
#[derive(Debug, Clone)]
pub struct Qkv {
    /// `[tokens, q_heads, head_dim]`.
    pub q: Tensor<3>,
    /// `[tokens, kv_heads, head_dim]`.
    pub k: Tensor<3>,
    /// `[tokens, kv_heads, head_dim_v]`.
    pub v: Tensor<3>,
}

/// The operations of a layer between its projections and attention, in one launch: [`apply_rope`] (or, with
/// `norm`, [`qk_rms_norm_rope`]), then [`append_paged_kv`](crate::append_paged_kv) of the rotated keys and
/// the values. Returns the rotated queries.
///
/// Keys are rounded once: to their own type, or to the type of [fp8 pages](KvPages::new_fp8).
///
/// ```
/// use burn::tensor::{DType, Device, Distribution, Tensor};
/// use burn_flashinfer::{
///     CacheConfig, Fp8, PagedKvCache, Qkv, Rope, RopeConfig, gather_paged_kv, rope_append_paged_kv,
/// };
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let config = CacheConfig::new(1, 64, 16, 2, 64).fp8(Fp8::e4m3_of(&device));
/// let mut cache = PagedKvCache::new(&config, &device)?;
/// let rope = Rope::new(&RopeConfig::new(64), 1024, &device)?;
/// let story = cache.create();
/// let slots = cache.reserve(&[(story, 5)])?;
/// let positions = cache.last_positions(&[(story, 5)])?;
///
/// let random = |heads| Tensor::<3>::random([5, heads, 64], Distribution::Default, &device);
/// let qkv = Qkv { q: random(8), k: random(2), v: random(2) };
/// let q = rope_append_paged_kv(cache.layer_mut(0)?, qkv, None, &rope, &positions, &slots)?;
/// assert_eq!(q.dims(), [5, 8, 64]);
/// let (k, v) = gather_paged_kv(cache.layer(0)?, &cache.page_table(&[story])?, DType::F32)?;
/// assert_eq!((k.dims(), v.dims()), ([5, 2, 64], [5, 2, 64]));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// As those three. Nothing has been written then.
pub fn rope_append_paged_kv(
    pages: &mut KvPages,
    qkv: Qkv,
    norm: Option<&QkNorm>,
    rope: &Rope,
    positions: &Positions,
    slots: &SlotMapping,
) -> Result<Tensor<3>> {
    const OP: &str = "rope_append_paged_kv";
    let Qkv { q, k, v } = qkv;
    let rotations = checked(OP, &q, &k, norm, rope, positions)?;
    Floats::first(OP, "q", &q)?.like("v", &v)?;
    fits(OP, pages, &k, &v, slots)?;
    pages.check_current(OP, "positions", Says::Some, positions.stamp())?;
    if slots.is_empty() {
        return Ok(q);
    }
    let origin = Origin::of(&q);
    let [q, k, v] = [q, k, v].map(IntoBackend::into_backend);
    let slots = slots.tensor.clone().into_backend();
    let mut rotated = None;
    pages.update(|pages| {
        let RotatedAndAppended { q, pages } =
            Dispatch::rope_append_paged_kv(pages, q, k, v, rotations, slots);
        rotated = Some(q);
        pages
    });
    rotated.map(|q| origin.tensor(q)).ok_or_else(|| Error::Read {
        op: OP,
        argument: "q",
        got: "nothing".into(),
        expected: "its rotation".into(),
    })
}

fn rotate(
    op: &'static str,
    q: Tensor<3>,
    k: Tensor<3>,
    norm: Option<&QkNorm>,
    rope: &Rope,
    positions: &Positions,
) -> Result<(Tensor<3>, Tensor<3>)> {
    let rotations = checked(op, &q, &k, norm, rope, positions)?;
    let origin = Origin::of(&q);
    let (q, k) = Dispatch::apply_rope(q.into_backend(), k.into_backend(), rotations);
    Ok((origin.tensor(q), origin.tensor(k)))
}

/// Rotations that fit queries and keys.
fn checked(
    op: &'static str,
    q: &Tensor<3>,
    k: &Tensor<3>,
    norm: Option<&QkNorm>,
    rope: &Rope,
    positions: &Positions,
) -> Result<Rotations<Dispatch>> {
    let floats = Floats::first(op, "q", q)?;
    floats.like("k", k)?;
    floats.on_device("rope", &rope.cos_sin.device())?;
    floats.on_device("positions", &positions.tensor.device())?;
    let ([tokens, _, head_dim], [k_tokens, _, k_dim]) = (q.dims(), k.dims());
    if [k_tokens, k_dim] != [tokens, head_dim] {
        return Err(shape(op, "k", &k.dims(), format!("[{tokens}, kv_heads, {head_dim}], as `q`")));
    }
    if rope.rotary_dim() > head_dim {
        let expected = format!("a head dimension of at least {}, as `rope` rotates", rope.rotary_dim());
        return Err(shape(op, "q", &q.dims(), expected));
    }
    if positions.len() != tokens {
        return Err(Error::Value {
            op,
            argument: "positions",
            got: format!("of length {}", positions.len()),
            expected: format!("one for each of {tokens} tokens"),
        });
    }
    if positions.end() > rope.max_positions() {
        return Err(Error::Value {
            op,
            argument: "positions",
            got: format!("up to {}", positions.end() - 1),
            expected: format!("below {}, the positions of `rope`", rope.max_positions()),
        });
    }
    let norm = match norm {
        None => MaybeHeadNorm::None,
        Some(QkNorm { q_weight, k_weight, epsilon }) => {
            for (argument, weight) in [("norm.q_weight", q_weight), ("norm.k_weight", k_weight)] {
                floats.like(argument, weight)?;
                if weight.dims() != [head_dim] {
                    let expected = format!("[{head_dim}], the head dimension");
                    return Err(shape(op, argument, &weight.dims(), expected));
                }
            }
            check::epsilon(op, "norm.epsilon", *epsilon)?;
            let [q, k] = [q_weight, k_weight].map(|weight| weight.clone().into_backend());
            MaybeHeadNorm::Some(q, k, *epsilon)
        }
    };
    Ok(Rotations {
        cos_sin: rope.cos_sin.clone().into_backend(),
        positions: positions.tensor.clone().into_backend(),
        norm,
        style: rope.style,
    })
}
