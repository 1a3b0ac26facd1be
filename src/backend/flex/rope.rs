//! Rotary position embedding, after the norm of each head if there is one.

use burn_flex::FlexTensor;

use super::float::{Float, widened};
use super::output::each_row;
use super::scratch::with_scratch;
use super::simd::{dot, per_instruction_set};
use super::view::{self, Rows, dims, with_rows};
use crate::types::RopeStyle;

/// Elements below which waking other threads costs more than it saves.
const PARALLEL: usize = 1 << 15;

/// The rotations of tokens.
pub(super) struct Rotations<'a> {
    /// `[max_positions, rotary_dim]`: cosines, then sines.
    pub(super) cos_sin: &'a FlexTensor,
    pub(super) positions: &'a [i32],
    pub(super) style: RopeStyle,
}

/// The norm of each head before it is rotated.
pub(super) struct HeadNorm {
    pub(super) weight: Vec<f32>,
    pub(super) epsilon: f32,
}

/// Rotates the heads of `x` `[tokens, heads, head_dim]`: in place, if it has no other owner.
pub(super) fn rope<E: Float>(x: FlexTensor, by: &Rotations<'_>, norm: Option<&HeadNorm>) -> FlexTensor {
    let mut x = view::dense(x);
    let [tokens, heads, dim] = dims(&x);
    let rows = &mut x.storage_mut::<E>()[..tokens * heads * dim];
    each_row(rows, heads * dim, PARALLEL, |token, row| {
        for head in row.chunks_exact_mut(dim) {
            with_scratch(dim, |wide| {
                widened(head, wide);
                by.apply(token, wide, norm);
                narrow_row(wide, head);
            });
        }
    });
    x
}

/// The same in f32, for callers that round in another way.
pub(super) fn rope_wide<E: Float>(x: FlexTensor, by: &Rotations<'_>, norm: Option<&HeadNorm>) -> FlexTensor {
    let x = with_rows(x);
    let [tokens, heads, dim] = dims(&x);
    let source: Rows<'_, E, 2> = Rows::of(&x);
    let mut rotated = vec![0.0_f32; tokens * heads * dim];
    each_row(&mut rotated, heads * dim, PARALLEL, |token, row| {
        for (head, wide) in row.chunks_exact_mut(dim).enumerate() {
            widened(source.row([token, head]), wide);
            by.apply(token, wide, norm);
        }
    });
    view::tensor(rotated, [tokens, heads, dim], burn::tensor::DType::F32)
}

impl Rotations<'_> {
    /// Normalises and rotates a head of a token.
    fn apply(&self, token: usize, head: &mut [f32], norm: Option<&HeadNorm>) {
        if let Some(HeadNorm { weight, epsilon }) = norm {
            let factor = 1.0 / (dot(head, head) / head.len() as f32 + epsilon).sqrt();
            head.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * factor * weight);
        }
        let table: Rows<'_, f32, 1> = Rows::of(self.cos_sin);
        let (cos, sin) = table.row([self.positions[token] as usize]).split_at(table.width() / 2);
        rotate(&mut head[..2 * cos.len()], cos, sin, self.style);
    }
}

per_instruction_set! {
    /// `(a, b) -> (a cos - b sin, b cos + a sin)`.
    fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], style: RopeStyle) {
        match style {
            RopeStyle::Halves => {
                let (a, b) = x.split_at_mut(cos.len());
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
            RopeStyle::Interleaved => {
                let (pairs, _) = x.as_chunks_mut::<2>();
                for (([a, b], cos), sin) in pairs.iter_mut().zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

per_instruction_set! {
    fn narrow_row<E: Float>(wide: &[f32], row: &mut [E]) {
        for (to, from) in row.iter_mut().zip(wide) {
            *to = E::narrow(*from);
        }
    }
}
