//! Queries, keys and values, and attention over some of them.

use std::ops::Range;

use super::check::{check_len, value};
use crate::error::Result;

/// Numbers of shape `[tokens, heads, head_dim]`, the last axis contiguous.
#[derive(Debug, Clone, PartialEq)]
pub struct Heads {
    pub(super) shape: [usize; 3],
    pub(super) values: Vec<f64>,
}

impl Heads {
    /// Takes `values` as an array of this shape.
    ///
    /// # Errors
    ///
    /// If their number is not the product of the shape, or there is no head or element.
    pub fn new(shape: [usize; 3], values: Vec<f64>) -> Result<Self> {
        check_len("reference::Heads::new", "values", values.len(), &shape)?;
        Ok(Self { shape, values })
    }

    /// `[tokens, heads, head_dim]`.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The numbers, row by row.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// A copy of some tokens.
    ///
    /// # Errors
    ///
    /// If the range is not within the tokens.
    pub fn tokens(&self, range: Range<usize>) -> Result<Self> {
        let [tokens, heads, dim] = self.shape;
        if range.start > range.end || range.end > tokens {
            let expected = format!("within 0..{tokens}");
            return Err(value("reference::Heads::tokens", "range", format!("{range:?}"), expected));
        }
        let row = heads * dim;
        let values = self.values[range.start * row..range.end * row].to_vec();
        Ok(Self { shape: [range.len(), heads, dim], values })
    }

    pub(super) fn row(&self, token: usize, head: usize) -> &[f64] {
        let [_, heads, dim] = self.shape;
        let start = (token * heads + head) * dim;
        &self.values[start..start + dim]
    }
}

/// Attention over a set of keys, which [`merge_state`](super::merge_state) can combine with attention over other keys.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// `[tokens, q_heads, head_dim_v]`: `softmax(logits) · v`.
    pub output: Heads,
    /// `[tokens, q_heads]`: `log2(Σ exp(logits))`.
    pub lse: Vec<f64>,
}
