use cubecl::prelude::*;

use super::buffers::{CodeScales, CodeScalesLaunch, TokenScales, TokenScalesLaunch};
use crate::device::Refusal;
use crate::device::tensor::{Result, contiguous, shape};
use crate::element::Element;

const KERNEL: &str = "attention";

/// The scales of keys and of values that are codes, of f32.
///
/// One for all tokens: `[1]` or `[kv_heads]`, contiguous. Or one for each token and head: as keys and values, with one element
/// in place of a head.
pub struct KvScales {
    /// The factor on `q·k`, before anything else happens to it.
    pub k: TensorBinding,
    /// The factor on the output, before the variant finishes it; or on the weight of its token.
    pub v: TensorBinding,
}

impl KvScales {
    /// True if there is one for each token.
    pub fn are_of_tokens(&self) -> bool {
        self.k.shape.len() > 1
    }

    /// With others in place of those of tokens.
    pub(super) fn of_tokens(self, other: impl Fn(TensorBinding) -> TensorBinding) -> Self {
        let [k, v] = [self.k, self.v].map(|scale| if scale.shape.len() > 1 { other(scale) } else { scale });
        Self { k, v }
    }
}

/// Codes have scales, and numbers have none. `keys` are `[pages, slots, kv_heads, _]`.
pub(super) fn check_scales(kv_dtype: Element, scales: Option<&KvScales>, keys: &TensorBinding) -> Result<()> {
    let Some(scales) = scales else {
        let argument = "kv_scales";
        return if kv_dtype.is_code() { Err(Refusal::Missing { kernel: KERNEL, argument }) } else { Ok(()) };
    };
    let kv_heads = keys.shape[2];
    for (argument, scale) in [("k_scale", &scales.k), ("v_scale", &scales.v)] {
        if !kv_dtype.is_code() {
            return Err(shape(KERNEL, argument, scale, "none, of numbers"));
        }
        if scales.are_of_tokens() {
            let wanted = [keys.shape[0], keys.shape[1], kv_heads, 1];
            if scale.shape.to_vec() != wanted || scale.tiling.is_tiled() {
                return Err(shape(KERNEL, argument, scale, format!("{wanted:?}, as `k`")));
            }
        } else {
            let of_heads = scale.size() == kv_heads;
            contiguous(KERNEL, argument, scale, &[if of_heads { kv_heads } else { 1 }])?;
        }
    }
    Ok(())
}

/// The tensors of a checked problem, with keys and values in pages.
pub(super) struct Operands {
    pub q: TensorBinding,
    pub k: TensorBinding,
    pub v: TensorBinding,
    pub output: TensorBinding,
    pub lse: Option<TensorBinding>,
    pub scales: Option<KvScales>,
}

/// The launch arguments of scales that were checked: of all tokens, and of each.
pub(super) fn scales_arguments(
    scales: Option<KvScales>,
) -> (ComptimeOptionArgs<CodeScales>, ComptimeOptionArgs<TokenScales>) {
    let (of_tokens, of_all) = match scales {
        Some(scales) if scales.are_of_tokens() => (Some(scales), None),
        scales => (None, scales),
    };
    let of_all = of_all.map(|KvScales { k, v }| {
        let [k_stride, v_stride] = [&k, &v].map(|scale| usize::from(scale.size() > 1));
        CodeScalesLaunch::new(k.into_buffer_arg(), v.into_buffer_arg(), k_stride, v_stride)
    });
    let of_tokens =
        of_tokens.map(|KvScales { k, v }| TokenScalesLaunch::new(k.into_tensor_arg(), v.into_tensor_arg()));
    (of_all.into(), of_tokens.into())
}
