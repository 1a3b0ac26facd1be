//! Combining attention over sets of keys: the states of a token and head are added up in f32 and rounded once.

use burn::tensor::{DType, Shape};
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;

use super::float::Float;
use super::scratch::with_scratch;
use super::simd::per_instruction_set;
use super::view::{self, Rows, dims, with_rows};

/// Elements below which waking other threads costs more than it saves.
const PARALLEL: usize = 1 << 15;

/// Attention over a set of keys: `v`, and the LSE `s`, which has the axes of `v` but the last.
pub(super) struct State {
    pub(super) v: FlexTensor,
    pub(super) s: FlexTensor,
}

impl State {
    /// With an axis of one element before axis `at`.
    fn with_axis(self, at: usize) -> Self {
        let insert = |tensor: FlexTensor| {
            let layout = tensor.layout();
            let (mut shape, mut strides) = (layout.shape().to_vec(), layout.strides().to_vec());
            shape.insert(at, 1);
            strides.insert(at, 0);
            let layout = Layout::new(Shape::from(shape), strides, layout.start_offset());
            tensor.with_layout(layout)
        };
        Self { v: insert(self.v), s: insert(self.s) }
    }
}

/// Merges `b` into `a`, but where the mask is 0: in place, where `a` has no other owner.
pub(super) fn two<E: Float>(a: State, b: State, mask: Option<Vec<i32>>) -> (FlexTensor, FlexTensor) {
    let masked = |token: usize| mask.as_ref().is_some_and(|mask| mask[token] == 0);
    merge::<E>(a, b.with_axis(1), |token| (token, if masked(token) { 0..0 } else { 0..1 }))
}

/// Merges the states of each token.
pub(super) fn many<E: Float>(states: State, indptr: Option<Vec<i32>>) -> (FlexTensor, FlexTensor) {
    match indptr {
        None => {
            let [tokens, count, heads, dim] = dims(&states.v);
            merge::<E>(nothing::<E>([tokens, heads, dim], states.v.dtype()), states, |token| {
                (token, 0..count)
            })
        }
        Some(indptr) => {
            let [_, heads, dim] = dims(&states.v);
            let shape = [indptr.len() - 1, heads, dim];
            let at = |token: usize| indptr[token] as usize;
            merge::<E>(nothing::<E>(shape, states.v.dtype()), states.with_axis(0), |token| {
                (0, at(token)..at(token + 1))
            })
        }
    }
}

/// Attention over no keys.
fn nothing<E: Float>(shape: [usize; 3], dtype: DType) -> State {
    let [tokens, heads, dim] = shape;
    State {
        v: view::tensor(vec![E::narrow(0.0); tokens * heads * dim], shape, dtype),
        s: view::tensor(vec![f32::NEG_INFINITY; tokens * heads], [tokens, heads], DType::F32),
    }
}

/// Merges into the state of each token those of `states` `[groups, states, heads, head_dim]` that `of` names, if any: a
/// group, and which of it.
fn merge<E: Float>(
    into: State,
    states: State,
    of: impl Fn(usize) -> (usize, std::ops::Range<usize>) + Sync,
) -> (FlexTensor, FlexTensor) {
    let [tokens, heads, dim] = dims(&into.v);
    let (mut v, mut s) = (view::dense(into.v), view::dense(into.s));
    let (others, lses) = (with_rows(states.v), with_rows(states.s));
    let work = others.layout().num_elements();
    let (others, lses): (Rows<'_, E, 3>, Rows<'_, f32, 2>) = (Rows::of(&others), Rows::of(&lses));
    let values = &mut v.storage_mut::<E>()[..tokens * heads * dim];
    let sums = &mut s.storage_mut::<f32>()[..tokens * heads];
    let one = |(row, (value, s)): (usize, (&mut [E], &mut f32))| {
        let (token, head) = (row / heads, row % heads);
        let (group, states) = of(token);
        if states.is_empty() {
            return;
        }
        let lse = |state: usize| lses.row([group, state])[head];
        let highest = states.clone().map(lse).fold(*s, f32::max);
        let weight = |s: f32| if s == f32::NEG_INFINITY { 0.0 } else { (s - highest).exp2() };
        with_scratch(dim, |wide| {
            wide.fill(0.0);
            let mut sum = 0.0;
            let mut add = |weight: f32, row: &[E]| {
                // The output of a state without weight may hold anything, NaN too.
                if weight != 0.0 {
                    sum += weight;
                    add_weighted(weight, row, wide);
                }
            };
            add(weight(*s), value);
            states.for_each(|state| add(weight(lse(state)), others.row([group, state, head])));
            *s = if sum == 0.0 { f32::NEG_INFINITY } else { highest + sum.log2() };
            scaled(wide, if sum == 0.0 { 0.0 } else { 1.0 / sum }, value);
        });
    };
    if work < PARALLEL {
        values.chunks_exact_mut(dim).zip(sums).enumerate().for_each(one);
    } else {
        values.par_chunks_exact_mut(dim).zip(sums).enumerate().for_each(one);
    }
    (v, s)
}

per_instruction_set! {
    /// `sums += weight · row`.
    fn add_weighted<E: Float>(weight: f32, row: &[E], sums: &mut [f32]) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += weight * x.widen();
        }
    }
}

per_instruction_set! {
    /// `row = wide · scale`.
    fn scaled<E: Float>(wide: &[f32], scale: f32, row: &mut [E]) {
        for (x, wide) in row.iter_mut().zip(wide) {
            *x = E::narrow(wide * scale);
        }
    }
}
