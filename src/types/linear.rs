use burn::tensor::DType;

use super::styles::{Activation, RmsNormStyle};

/// The options of a linear layer, without its tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearParams {
    /// Added to the mean of the squares, if the inputs are normalised first.
    pub epsilon: f32,
    /// The factors of the norm.
    pub style: RmsNormStyle,
    /// The function of the gates, which are the first half of the weight's rows.
    pub gate: Option<Activation>,
    /// The soft cap, a positive number.
    pub soft_cap: Option<f32>,
    /// Type of the outputs: that of the inputs, or f32.
    pub dtype: DType,
    /// The order of a sum does not depend on the number of rows.
    pub batch_invariant: bool,
    /// f32 may be multiplied as TF32.
    pub tf32: bool,
}

impl LinearParams {
    /// Outputs of a weight of so many rows.
    pub fn outputs(&self, weight_rows: usize) -> usize {
        if self.gate.is_some() { weight_rows / 2 } else { weight_rows }
    }
}
