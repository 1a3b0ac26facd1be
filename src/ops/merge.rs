//! Combining attention over sets of keys.

use burn::{
    backend::Dispatch,
    tensor::{Bool, DType, Tensor},
};

use crate::check::{Floats, shape};
use crate::dispatch::IntoBackend;
use crate::error::{Error, Result};
use crate::extension::{FlashInferBackend, MaybeInts};
use crate::indptr::Indptr;

/// Merges the states of attention over two disjoint sets of keys into the state over their union.
///
/// `v_a`, `v_b`: outputs `[tokens, heads, head_dim]`; `s_a`, `s_b`: base-2 LSE `[tokens, heads]` in f32, as attention
/// returns them. With `m = max(s_a, s_b)`, `w_a = 2^(s_a - m)` and `w_b = 2^(s_b - m)`:
///
/// `v = (w_a v_a + w_b v_b) / (w_a + w_b)`, `s = m + log2(w_a + w_b)`.
///
/// Where both LSE are `-inf`, `v = 0` and `s = -inf`. A state whose LSE is `-inf` does not count, whatever
/// its output. Computed in f32 and rounded once, into the memory of `v_a` and of `s_a` where these have no
/// other owner (FlashInfer's `merge_state`; <https://arxiv.org/abs/2501.01005> calls it attention
/// composition).
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_flashinfer::merge_state;
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let v = |x: f32| Tensor::<3>::full([1, 1, 2], x, &device);
/// let s = |x: f32| Tensor::<2>::full([1, 1], x, &device);
/// // Of the weight of all keys together, the first ones have 3 of 4 parts.
/// let (v, s) = merge_state(v(1.0), s(3f32.log2()), v(5.0), s(0.0))?;
/// assert!((v.max().into_scalar::<f32>() - 2.0).abs() < 1e-5);
/// assert!((s.into_scalar::<f32>() - 2.0).abs() < 1e-5);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// If shapes, types or devices do not fit together, a head is empty, or a tensor requires a gradient.
pub fn merge_state(
    v_a: Tensor<3>,
    s_a: Tensor<2>,
    v_b: Tensor<3>,
    s_b: Tensor<2>,
) -> Result<(Tensor<3>, Tensor<2>)> {
    const OP: &str = "merge_state";
    let floats = Floats::first(OP, "v_a", &v_a)?;
    two(&floats, OP, ["v_a", "s_a", "v_b", "s_b"], (v_a, s_a), (v_b, s_b), MaybeInts::None)
}

/// Merges the state `v_other`, `s_other` of each token into `v`, `s`, which are returned: [`merge_state`], of
/// the tokens whose `mask` is true, if there is one; the state of every other token stays as it is, to the
/// bit.
///
/// Shapes as for [`merge_state`]; `mask`: `[tokens]`. The result takes the memory of `v` and of `s` where
/// these have no other owner: to save it, do not keep clones of them (FlashInfer's `merge_state_in_place`).
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_flashinfer::merge_state_in_place;
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let v = |x: f32| Tensor::<3>::full([2, 1, 4], x, &device);
/// let s = || Tensor::<2>::zeros([2, 1], &device);
/// let mask = Tensor::from_data([true, false], &device);
/// let (v, s) = merge_state_in_place(v(1.0), s(), v(3.0), s(), Some(mask))?;
/// assert_eq!(v.slice([0..2, 0..1, 0..1]).into_data().iter::<f32>().collect::<Vec<_>>(), [2.0, 1.0]);
/// assert_eq!(s.into_data().iter::<f32>().collect::<Vec<_>>(), [1.0, 0.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// As [`merge_state`].
pub fn merge_state_in_place(
    v: Tensor<3>,
    s: Tensor<2>,
    v_other: Tensor<3>,
    s_other: Tensor<2>,
    mask: Option<Tensor<1, Bool>>,
) -> Result<(Tensor<3>, Tensor<2>)> {
    const OP: &str = "merge_state_in_place";
    let floats = Floats::first(OP, "v", &v)?;
    let mask = match mask {
        None => MaybeInts::None,
        Some(mask) => {
            floats.on_device("mask", &mask.device())?;
            let tokens = v.dims()[0];
            if mask.dims() != [tokens] {
                return Err(shape(OP, "mask", &mask.dims(), format!("[{tokens}], the tokens of `v`")));
            }
            MaybeInts::Some(mask.int().cast(DType::I32).into_backend())
        }
    };
    two(&floats, OP, ["v", "s", "v_other", "s_other"], (v, s), (v_other, s_other), mask)
}

/// Merges the states of attention over any number of disjoint sets of keys into the state over their union.
///
/// `v`: outputs `[tokens, states, heads, head_dim]`; `s`: base-2 LSE `[tokens, states, heads]` in f32. Over
/// the states `i` of each token and head, with `m = max s_i` and `w_i = 2^(s_i - m)`:
///
/// `v = Σ w_i v_i / Σ w_i`, `s = m + log2(Σ w_i)`.
///
/// Without any state, or where all LSE are `-inf`, `v = 0` and `s = -inf`. A state whose LSE is `-inf` does not count,
/// whatever its output. Computed in f32 and rounded once (FlashInfer's `merge_states`).
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_flashinfer::{AttentionOptions, merge_states, single_prefill};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let random = |tokens| Tensor::<3>::random([tokens, 2, 16], Distribution::Default, &device);
/// let (q, k, v) = (random(3), random(12), random(12));
/// let options = AttentionOptions::new().return_lse(true);
/// let (mut outputs, mut lses) = (vec![], vec![]);
/// for keys in [0..5, 5..6, 6..12] {
///     let part = |x: &Tensor<3>| x.clone().slice(keys.clone());
///     let found = single_prefill(q.clone(), part(&k), part(&v), &options)?;
///     outputs.push(found.output);
///     lses.extend(found.lse);
/// }
/// let (merged, _) = merge_states(Tensor::stack(outputs, 1), Tensor::stack(lses, 1))?;
/// let whole = single_prefill(q, k, v, &AttentionOptions::new())?.output;
/// assert!((merged - whole).abs().max().into_scalar::<f32>() < 1e-5);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// As [`merge_state`].
pub fn merge_states(v: Tensor<4>, s: Tensor<3>) -> Result<(Tensor<3>, Tensor<2>)> {
    const OP: &str = "merge_states";
    let floats = Floats::first(OP, "v", &v)?;
    check_lse(&floats, OP, ["v", "s"], v.dims(), &s)?;
    let [tokens, states, heads, dim] = v.dims();
    if states == 0 {
        return Ok(nothing(&v, [tokens, heads, dim]));
    }
    let (v, s) = Dispatch::merge_states(v.into_backend(), s.into_backend(), MaybeInts::None);
    Ok((floats.origin.tensor(v), floats.origin.tensor(s)))
}

/// [`merge_states`] of tokens that do not all have the same number of them: those of token `t` are the rows
/// `indptr[t]..indptr[t + 1]` of `v` and `s`.
///
/// `v`: `[indptr.total(), heads, head_dim]`, `s`: `[indptr.total(), heads]` in f32; the result has one row
/// for each of the `indptr.requests()` tokens. A token without states gets output 0 and LSE `-inf`
/// (FlashInfer's `variable_length_merge_states`).
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_flashinfer::{Indptr, variable_length_merge_states};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let v = Tensor::<3>::from_data([[[1.0]], [[3.0]], [[7.0]]], &device);
/// let s = Tensor::<2>::zeros([3, 1], &device);
/// let indptr = Indptr::from_lengths(&[2, 0, 1], &device)?;
/// let (v, s) = variable_length_merge_states(v, s, &indptr)?;
/// assert_eq!(v.into_data().iter::<f32>().collect::<Vec<_>>(), [2.0, 0.0, 7.0]);
/// assert_eq!(s.into_data().iter::<f32>().collect::<Vec<_>>(), [1.0, f32::NEG_INFINITY, 0.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// As [`merge_state`], and if the row pointer does not cover exactly the rows of `v`.
pub fn variable_length_merge_states(
    v: Tensor<3>,
    s: Tensor<2>,
    indptr: &Indptr,
) -> Result<(Tensor<3>, Tensor<2>)> {
    const OP: &str = "variable_length_merge_states";
    let floats = Floats::first(OP, "v", &v)?;
    check_lse(&floats, OP, ["v", "s"], v.dims(), &s)?;
    floats.on_device("indptr", &indptr.device())?;
    let [rows, heads, dim] = v.dims();
    if indptr.total() != rows {
        return Err(Error::Index {
            op: OP,
            argument: "indptr",
            at: indptr.requests(),
            got: indptr.total().to_string(),
            expected: format!("{rows}, the rows of `v`"),
        });
    }
    if rows == 0 {
        return Ok(nothing(&v, [indptr.requests(), heads, dim]));
    }
    let indptr = MaybeInts::Some(indptr.tensor.clone().into_backend());
    let (v, s) = Dispatch::merge_states(v.into_backend(), s.into_backend(), indptr);
    Ok((floats.origin.tensor(v), floats.origin.tensor(s)))
}

/// `names`: those of `v_a`, `s_a`, `v_b` and `s_b`.
fn two(
    floats: &Floats,
    op: &'static str,
    names: [&'static str; 4],
    (v_a, s_a): (Tensor<3>, Tensor<2>),
    (v_b, s_b): (Tensor<3>, Tensor<2>),
    mask: MaybeInts<Dispatch>,
) -> Result<(Tensor<3>, Tensor<2>)> {
    let [v_a_name, s_a_name, v_b_name, s_b_name] = names;
    let dims = v_a.dims();
    floats.like(v_b_name, &v_b)?;
    if v_b.dims() != dims {
        return Err(shape(op, v_b_name, &v_b.dims(), format!("{dims:?}, as `{v_a_name}`")));
    }
    check_lse(floats, op, [v_a_name, s_a_name], dims, &s_a)?;
    check_lse(floats, op, [v_a_name, s_b_name], dims, &s_b)?;
    let (v, s) = Dispatch::merge_state(
        v_a.into_backend(),
        s_a.into_backend(),
        v_b.into_backend(),
        s_b.into_backend(),
        mask,
    );
    Ok((floats.origin.tensor(v), floats.origin.tensor(s)))
}

/// `s` must have a number for each head of `v`, which must not be empty.
fn check_lse<const V: usize, const S: usize>(
    floats: &Floats,
    op: &'static str,
    [v_name, s_name]: [&'static str; 2],
    v: [usize; V],
    s: &Tensor<S>,
) -> Result<()> {
    floats.f32(s_name, s)?;
    let (heads, width) = (&v[..V - 1], v[V - 1]);
    if s.dims() != *heads {
        return Err(shape(op, s_name, &s.dims(), format!("{heads:?}, as `{v_name}`")));
    }
    if width == 0 {
        return Err(shape(op, v_name, &v, "a last axis that is not empty"));
    }
    Ok(())
}

/// Attention over no keys, of the type of `v`.
fn nothing<const D: usize>(v: &Tensor<D>, [tokens, heads, dim]: [usize; 3]) -> (Tensor<3>, Tensor<2>) {
    let device = v.device();
    let s = Tensor::full([tokens, heads], f32::NEG_INFINITY, (&device, DType::F32));
    (Tensor::zeros([tokens, heads, dim], (&device, v.dtype())), s)
}
