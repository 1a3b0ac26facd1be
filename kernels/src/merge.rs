//! Combining attention over sets of keys.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use crate::attention::state::{divisor, finite, lse};
use crate::device::DeviceProfile;
use crate::device::grid::cover;
use crate::device::tensor::{Result, addresses, alignment, contiguous, rows, shape, vector, with_axis};
use crate::math::{Exact, LOG2_E, Math, narrow, widen};

const KERNEL: &str = "merge";

/// The comptime settings of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Blueprint {
    /// Rows of a cube.
    rows: usize,
    /// Units of a row.
    units: usize,
    /// `merged_v` is `first_v`.
    replaces_v: bool,
    /// `merged_s` is `first_s`.
    replaces_s: bool,
}

/// For each token and head, over its states `i`:
///
/// ```text
/// m = max s_i      w_i = 2^(s_i - m)      v = Σ w_i v_i / Σ w_i      s = m + log2(Σ w_i)
/// ```
/// The states of token `t` are `[t, ..]` or, with a row pointer, `[0, indptr[t]..indptr[t + 1]]`, and `first[t]` before
/// them. Where `mask[t]` is 0, the result is `first[t]`.
///
/// `U` units own a row: unit `u` computes the vectors `u, u + U, ..` of `v`, the first one also `s`. It
/// writes a vector of `v` after it has read it, and no other unit reads it; but all of them read `first_s`.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn merge<F: Float, N: Size>(
    first_v: &ComptimeOption<OwnedTensor<Vector<F, N>>>,
    first_s: &ComptimeOption<OwnedTensor<f32>>,
    v: &Tensor<Vector<F, N>>,
    s: &Tensor<f32>,
    indptr: &ComptimeOption<Box<[i32]>>,
    mask: &ComptimeOption<Box<[i32]>>,
    merged_v: &mut [Vector<F, N>],
    merged_s: &mut [f32],
    total: usize,
    #[comptime] blueprint: Blueprint,
    #[define(F)] _dtype: ElemType,
) {
    let units = comptime!(blueprint.units);
    let unit = UNIT_POS as usize % units;
    let row = CUBE_POS * blueprint.rows + UNIT_POS as usize / units;
    let (token, head) = (row / v.shape(2), row % v.shape(2));
    let vectors = v.shape(3) / N::value();

    let mut own = f32::NEG_INFINITY.runtime();
    #[comptime]
    match first_s {
        ComptimeOption::Some(first_s) => {
            if row < total {
                own = first_s[token * first_s.stride(0) + head * first_s.stride(1)];
            }
        }
        ComptimeOption::None => {}
    }
    if comptime!(blueprint.replaces_s && units > 1) {
        sync_cube();
    }
    if row >= total {
        terminate!();
    }
    #[comptime]
    match mask {
        ComptimeOption::Some(mask) => {
            if mask[token] == 0 {
                copy::<F, N>(first_v, merged_v, token, head, row * vectors, vectors, unit, blueprint);
                if unit == 0 {
                    merged_s[row] = own;
                }
                terminate!();
            }
        }
        ComptimeOption::None => {}
    }

    let mut group = token;
    let mut begin = 0usize;
    let mut end = v.shape(1);
    #[comptime]
    match indptr {
        ComptimeOption::Some(indptr) => {
            group = 0usize;
            begin = usize::cast_from(indptr[token]);
            end = usize::cast_from(indptr[token + 1]);
        }
        ComptimeOption::None => {}
    }
    let lse_at = group * s.stride(0) + head * s.stride(2);
    let mut highest = own;
    for state in begin..end {
        highest = max(highest, s[lse_at + state * s.stride(1)]);
    }
    let base = finite(highest);
    let own = Exact::exp2(own - base);
    let mut sum = own;
    for state in begin..end {
        sum += Exact::exp2(s[lse_at + state * s.stride(1)] - base);
    }
    if unit == 0 {
        merged_s[row] = lse(base, sum, sum.ln() * LOG2_E);
    }

    let start = group * v.stride(0) + head * v.stride(2);
    let zero = Vector::<f32, N>::new(0.0f32);
    let divisor = Vector::<f32, N>::new(divisor(sum));
    let mut i = unit;
    while i < vectors {
        let mut merged = zero;
        #[comptime]
        match first_v {
            ComptimeOption::Some(first_v) => {
                let at = (token * first_v.stride(0) + head * first_v.stride(1)) / N::value() + i;
                merged += weighted::<F, N>(own, first_v[at]);
            }
            ComptimeOption::None => {}
        }
        for state in begin..end {
            let weight = Exact::exp2(s[lse_at + state * s.stride(1)] - base);
            merged += weighted::<F, N>(weight, v[(start + state * v.stride(1)) / N::value() + i]);
        }
        merged_v[row * vectors + i] = narrow::<F, N>(merged / divisor);
        i += units;
    }
}

/// Copies a row of `first_v`.
#[allow(clippy::too_many_arguments, reason = "a part of the kernel")]
#[cube]
fn copy<F: Float, N: Size>(
    first_v: &ComptimeOption<OwnedTensor<Vector<F, N>>>,
    merged_v: &mut [Vector<F, N>],
    token: usize,
    head: usize,
    to: usize,
    vectors: usize,
    unit: usize,
    #[comptime] blueprint: Blueprint,
) {
    #[comptime]
    match first_v {
        ComptimeOption::Some(first_v) => {
            if comptime!(!blueprint.replaces_v) {
                let from = (token * first_v.stride(0) + head * first_v.stride(1)) / N::value();
                let mut i = unit;
                while i < vectors {
                    merged_v[to + i] = first_v[from + i];
                    i += comptime!(blueprint.units);
                }
            }
        }
        ComptimeOption::None => {}
    }
}

/// `weight · x`; without a weight `x` may hold anything, NaN too.
#[cube]
fn weighted<F: Float, N: Size>(weight: f32, x: Vector<F, N>) -> Vector<f32, N> {
    let zero = Vector::<f32, N>::new(0.0f32);
    let weight = Vector::<f32, N>::new(weight);
    select_many(weight.greater_than(&zero), weight * widen::<F, N>(x), zero)
}

/// Attention over sets of keys: `v`, rows of any strides, and its LSE `s`, base 2, which has the axes of `v`
/// but the last.
pub struct State {
    /// The output.
    pub v: TensorBinding,
    /// The LSE, in f32.
    pub s: TensorBinding,
}

impl State {
    /// Refuses a state unless `v` has `rank` axes, all but the last of them those of `s`.
    fn of_rank(self, v: &'static str, s: &'static str, rank: usize) -> Result<Self> {
        rows(KERNEL, v, &self.v, rank)?;
        let wanted = &self.v.shape[..rank - 1];
        if self.s.shape[..] != *wanted {
            return Err(shape(KERNEL, s, &self.s, format!("{wanted:?}, as `{v}`")));
        }
        Ok(self)
    }

    /// With an axis of one element before axis `at`.
    fn with_axis(self, at: usize) -> Self {
        Self { v: with_axis(self.v, at), s: with_axis(self.s, at) }
    }
}

/// The states that are merged.
#[allow(clippy::large_enum_variant, reason = "one a launch, taken apart at once")]
pub enum States {
    /// Two of each token: `[tokens, heads, head_dim]`.
    Two {
        /// The first one.
        a: State,
        /// The other.
        b: State,
        /// `[tokens]` of i32, contiguous: where it is 0, the first one stays as it is.
        mask: Option<TensorBinding>,
    },
    /// The same number of states of each token: `[tokens, states, heads, head_dim]`.
    Equal(State),
    /// Any number of states of each token.
    Ragged {
        /// `[rows, heads, head_dim]`.
        states: State,
        /// `[tokens + 1]` of i32, contiguous: those of token `t` are the rows `indptr[t]..indptr[t + 1]`.
        indptr: TensorBinding,
    },
}

/// States, and the tensors for the merged ones.
pub struct Merge {
    /// The states to merge.
    pub states: States,
    /// `[tokens, heads, head_dim]`, contiguous. Without it the first of two states is replaced, which is
    /// contiguous then.
    pub v: Option<TensorBinding>,
    /// `[tokens, heads]` of f32, likewise.
    pub s: Option<TensorBinding>,
}

/// Merges the states of each token, in f32, rounded once. Without states, or if none saw a key, the output is
/// 0 and its `s` `-inf`.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
///
/// # Safety
///
/// The row pointer of [`States::Ragged`] never falls, and stays within 0 and the number of rows.
pub unsafe fn launch(client: &Client, merge: Merge, dtype: ElemType) -> Result<()> {
    let Merge { states, v: merged_v, s: merged_s } = merge;
    let (first, State { v, s }, indptr, mask) = match states {
        States::Two { a, b, mask } => {
            let (a, b) = (a.of_rank("v_a", "s_a", 3)?, b.of_rank("v_b", "s_b", 3)?);
            (Some(a), b.with_axis(1), None, mask)
        }
        States::Equal(states) => (None, states.of_rank("v", "s", 4)?, None, None),
        States::Ragged { states, indptr } => {
            (None, states.of_rank("v", "s", 3)?.with_axis(0), Some(indptr), None)
        }
    };
    let tokens = indptr.as_ref().map_or(v.shape[0], |indptr| indptr.size().saturating_sub(1));
    let wanted = [tokens, v.shape[2], v.shape[3]];
    let [_, heads, width] = wanted;
    if let Some(indptr) = &indptr {
        contiguous(KERNEL, "indptr", indptr, &[tokens + 1])?;
    }
    if let Some(mask) = &mask {
        contiguous(KERNEL, "mask", mask, &[tokens])?;
    }
    if let Some(first) = &first
        && first.v.shape[..] != wanted
    {
        return Err(shape(KERNEL, "v_a", &first.v, format!("{wanted:?}, as `v_b`")));
    }
    let (first_v, first_s) = first.map_or((None, None), |State { v, s }| (Some(v), Some(s)));
    for (argument, merged, first, wanted) in
        [("merged_v", &merged_v, &first_v, &wanted[..]), ("merged_s", &merged_s, &first_s, &wanted[..2])]
    {
        let Some(merged) = merged.as_ref().or(first.as_ref()) else {
            return Err(shape(KERNEL, argument, &v, "a tensor for the result"));
        };
        contiguous(KERNEL, argument, merged, wanted)?;
    }
    let total = tokens * heads;
    if total * width == 0 {
        return Ok(());
    }

    let align = first_v.iter().map(alignment).fold(alignment(&v), usize::min);
    let lanes = vector(client, dtype, &[width], align);
    let (blueprint, count, dim) = {
        let device = DeviceProfile::of(client);
        let (units, rows) = match device.cpu_cores {
            // On a CPU units are threads: a row each.
            Some(cores) => (1, cores as usize),
            None => {
                let most = device.max_units.min(128) as usize;
                let units = (width / lanes).min(most);
                (units, most / units)
            }
        };
        let (replaces_v, replaces_s) = (merged_v.is_none(), merged_s.is_none());
        let count = cover(KERNEL, total.div_ceil(rows), device.max_cubes)?;
        let blueprint = Blueprint { rows, units, replaces_v, replaces_s };
        (blueprint, count, CubeDim::new_1d((rows * units) as u32))
    };
    let size = dtype.size();
    let floats = [Some(&v), first_v.as_ref(), merged_v.as_ref()].into_iter().flatten();
    let lses = [Some(&s), first_s.as_ref(), merged_s.as_ref()].into_iter().flatten();
    let tensors: Vec<_> = floats.map(|v| (v, size)).chain(lses.map(|s| (s, 4))).collect();
    let address = addresses(&tensors);
    // Indices of `first_v` and `first_s` among the buffers, if they are replaced.
    let merged_v =
        merged_v.map_or_else(|| BufferArg::alias(0, total * width), TensorBinding::into_buffer_arg);
    let merged_s = merged_s.map_or_else(|| BufferArg::alias(1, total), TensorBinding::into_buffer_arg);
    // SAFETY: a unit beyond `total` rows stops before it reads or writes. Below it token, head and vectors
    // are within the one shape that all tensors were checked to have. The vectors divide it, as they do every
    // stride. States are within `v` and `s` by their extent, or by the contract on the row pointer. Every
    // unit of a cube reaches the barrier. Where results replace the first state, a unit writes a vector after
    // it has read it, and an LSE after the barrier.
    unsafe {
        merge::launch_unchecked(
            client,
            count,
            dim,
            address,
            lanes,
            first_v.map(TensorBinding::into_tensor_arg).into(),
            first_s.map(TensorBinding::into_tensor_arg).into(),
            v.into_tensor_arg(),
            s.into_tensor_arg(),
            indptr.map(TensorBinding::into_buffer_arg).into(),
            mask.map(TensorBinding::into_buffer_arg).into(),
            merged_v,
            merged_s,
            total,
            blueprint,
            dtype,
        );
    }
    Ok(())
}
