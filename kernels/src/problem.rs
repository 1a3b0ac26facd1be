//! The inputs of the choice of a kernel.

use cubecl::ir::ElemType;
use cubecl::prelude::TensorBinding;

use crate::device::tensor::{alignment, offset_alignment};
use crate::element::Element;

/// Sizes of a head: of queries and keys, and of values and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeadDims {
    /// Elements of a query and of a key.
    pub qk: usize,
    /// Elements of a value and of an output.
    pub vo: usize,
}

/// Largest vectors of one load, in elements: the strides of queries and keys, and of values, must be
/// multiples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Elements of one load of queries and keys.
    pub qk: usize,
    /// Elements of one load of values.
    pub vo: usize,
}

/// The inputs of the choice of a blueprint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Problem {
    /// Sizes of a head.
    pub dims: HeadDims,
    /// Type of queries and output.
    pub dtype: ElemType,
    /// Stored type of keys and values.
    pub kv_dtype: Element,
    /// Query heads.
    pub q_heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Factor on the logits.
    pub scale: f32,
    /// Largest vectors of one load.
    pub align: Alignment,
    /// Products over codes may be of codes: queries and probabilities are rounded to 8 bits.
    pub fp8_mma: bool,
}

impl Problem {
    /// Query heads of a key head.
    pub(crate) fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }
}

impl Alignment {
    /// Elements to which every row of a tensor is aligned.
    pub fn of_rows(tensor: &TensorBinding, dtype: ElemType) -> usize {
        alignment(tensor).min(offset_alignment(tensor, dtype.size()))
    }
}
