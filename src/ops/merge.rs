//! Combining attention over two sets of keys.

use burn::{backend::Dispatch, tensor::Tensor};

use crate::check::{Floats, shape};
use crate::error::Result;
use crate::extension::FlashInferBackend;

/// Merges the states of attention over two disjoint sets of keys into the state over their union.
///
/// `v_a`, `v_b`: outputs `[tokens, heads, head_dim]`; `s_a`, `s_b`: base-2 LSE `[tokens, heads]` in f32, as attention
/// returns them. With `m = max(s_a, s_b)`, `w_a = 2^(s_a - m)` and `w_b = 2^(s_b - m)`:
///
/// `v = (w_a v_a + w_b v_b) / (w_a + w_b)`, `s = m + log2(w_a + w_b)`.
///
/// Where both LSE are `-inf`, `v = 0` and `s = -inf`. A state whose LSE is `-inf` does not count, whatever its output.
///
/// # Errors
///
/// If shapes, types or devices do not fit together, or a tensor requires a gradient.
pub fn merge_state(
    v_a: Tensor<3>,
    s_a: Tensor<2>,
    v_b: Tensor<3>,
    s_b: Tensor<2>,
) -> Result<(Tensor<3>, Tensor<2>)> {
    const OP: &str = "merge_state";
    let floats = Floats::first(OP, "v_a", &v_a)?;
    floats.like("v_b", &v_b)?;
    floats.f32("s_a", &s_a)?;
    floats.f32("s_b", &s_b)?;
    let [tokens, heads, _] = v_a.dims();
    if v_b.dims() != v_a.dims() {
        return Err(shape(OP, "v_b", &v_b.dims(), format!("{:?}, as `v_a`", v_a.dims())));
    }
    for (argument, dims) in [("s_a", s_a.dims()), ("s_b", s_b.dims())] {
        if dims != [tokens, heads] {
            return Err(shape(OP, argument, &dims, format!("[{tokens}, {heads}], as `v_a`")));
        }
    }
    let (v, s) = Dispatch::merge_state(
        v_a.into_dispatch(),
        s_a.into_dispatch(),
        v_b.into_dispatch(),
        s_b.into_dispatch(),
    );
    Ok((Tensor::from_dispatch(v), Tensor::from_dispatch(s)))
}
