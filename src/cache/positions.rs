//! Positions of tokens in their sequences.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor};

use super::clock::Stamp;
use crate::error::{Error, Result};
use crate::indptr::{Indptr, index, upload};
use crate::memory;

/// The position of each token in its sequence, for [`apply_rope`](crate::apply_rope).
#[derive(Debug, Clone)]
pub struct Positions {
    len: usize,
    /// One past the largest position: how long a table must be.
    end: usize,
    pub(crate) tensor: Tensor<1, Int>,
    /// The moment that it is of, if it comes from a cache.
    stamp: Option<Arc<Stamp>>,
}

impl Positions {
    /// Copies `positions`, one for each token, to `device`.
    ///
    /// # Errors
    ///
    /// If a position passes `i32::MAX`.
    pub fn new(positions: &[usize], device: &Device) -> Result<Self> {
        let mut values = memory::list("Positions::new", "positions", positions.len())?;
        for (at, &position) in positions.iter().enumerate() {
            values.push(index("Positions::new", "positions", at, position)?);
        }
        Ok(Self::uploaded(values, device))
    }

    /// The positions of a ragged batch whose request `r` continues a sequence that already has `offsets[r]` tokens.
    ///
    /// # Errors
    ///
    /// If there is not one offset for each request, a position passes `i32::MAX`, or the host has no memory
    /// for one of each token.
    pub fn continuing(indptr: &Indptr, offsets: &[usize]) -> Result<Self> {
        const OP: &str = "Positions::continuing";
        if offsets.len() != indptr.requests() {
            return Err(Error::Value {
                op: OP,
                argument: "offsets",
                got: format!("of length {}", offsets.len()),
                expected: format!("one for each of {} requests", indptr.requests()),
            });
        }
        let mut positions = memory::list(OP, "indptr", indptr.total())?;
        for (length, &offset) in indptr.lengths().zip(offsets) {
            for token in 0..length {
                let (at, position) = (positions.len(), offset.saturating_add(token));
                positions.push(index("Positions::new", "positions", at, position)?);
            }
        }
        Ok(Self::uploaded(positions, &indptr.device()))
    }

    /// Positions that are none below 0.
    pub(crate) fn uploaded(positions: Vec<i32>, device: &Device) -> Self {
        let end = positions.iter().max().map_or(0, |&position| position as usize + 1);
        Self { len: positions.len(), end, tensor: upload(positions, device), stamp: None }
    }

    /// Positions that are on the device already, below `end`.
    pub(crate) fn of_tensor(tensor: Tensor<1, Int>, end: usize, stamp: Option<Arc<Stamp>>) -> Self {
        Self { len: tensor.dims()[0], end, tensor, stamp }
    }

    pub(crate) fn stamped(self, stamp: Arc<Stamp>) -> Self {
        Self { stamp: Some(stamp), ..self }
    }

    pub(crate) fn stamp(&self) -> Option<&Arc<Stamp>> {
        self.stamp.as_ref()
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn end(&self) -> usize {
        self.end
    }
}
