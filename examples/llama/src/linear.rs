//! Linear layers on weights of 16 or 32 bits, of 8 and of 4, with what stands around them in a decoder layer.

use anyhow::Result;
use burn::tensor::Tensor;
use burn_flashinfer::{
    Activation, Fp8, LinearOptions, QuantizedWeight, fused_add_rms_norm, linear, matmul_nt_quantized,
    quantize_per_token, rms_norm, rms_norm_linear, scaled_linear, silu_and_mul,
};

/// The most rows that are multiplied as they are, where more may be rounded to e4m3. On an H200 a layer of Llama 3 8B's width takes
/// 90 us with 32 rows and 159 with 64, and with up to 128 rows of e4m3 83 (`benches/results/products-h200-2026-11-30.csv`).
pub const FEW_ROWS: usize = 32;

/// The weight of a linear layer, `[out, in]`.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "a model has a few hundred weights, each of which is far larger elsewhere"
)]
pub enum Weight {
    Dense(Tensor<2>),
    Quantized {
        weight: QuantizedWeight,
        /// More than [`FEW_ROWS`] rows are rounded to e4m3, as the weight is.
        rounds_rows: bool,
    },
}

/// A linear layer.
#[derive(Debug)]
pub struct Linear {
    pub weight: Weight,
    pub bias: Option<Tensor<1>>,
    /// The first half of the outputs are gates of the second: `silu(gate) · up`.
    pub is_gated: bool,
}

/// The norm of a layer's inputs.
#[derive(Debug)]
pub struct Norm {
    pub weight: Tensor<1>,
    pub epsilon: f32,
}

/// The residual stream `[tokens, hidden_size]`.
///
/// The product before an addition adds it where it can. After few rows of codes, which cannot, the norm after it does.
#[derive(Debug)]
pub struct Residual {
    sum: Tensor<2>,
    /// To be added yet.
    addend: Option<Tensor<2>>,
}

impl Residual {
    pub fn new(sum: Tensor<2>) -> Self {
        Self { sum, addend: None }
    }

    /// The stream, added up.
    pub fn into_sum(self) -> Tensor<2> {
        match self.addend {
            Some(addend) => self.sum + addend,
            None => self.sum,
        }
    }

    /// The norm of the stream, and the stream.
    pub fn normed(self, Norm { weight, epsilon }: &Norm) -> Result<(Tensor<2>, Self)> {
        let Self { sum, addend } = self;
        let (normed, sum) = match addend {
            Some(addend) => fused_add_rms_norm(addend, sum, weight.clone(), *epsilon)?,
            None => (rms_norm(sum.clone(), weight.clone(), *epsilon)?, sum),
        };
        Ok((normed, Self::new(sum)))
    }
}

impl Linear {
    /// The layer of the stream's norm, and the stream.
    pub fn of_norm(&self, residual: Residual, norm: &Norm) -> Result<(Tensor<2>, Residual)> {
        if let Weight::Dense(weight) = &self.weight {
            // One launch for both.
            let sum = residual.into_sum();
            let Norm { weight: norm, epsilon } = norm;
            let y = rms_norm_linear(sum.clone(), norm.clone(), *epsilon, weight.clone(), self.options())?;
            return Ok((y, Residual::new(sum)));
        }
        let (x, residual) = residual.normed(norm)?;
        Ok((self.forward(x)?, residual))
    }

    /// Adds the layer of `x` to the stream.
    pub fn add_to(&self, residual: Residual, x: Tensor<2>) -> Result<Residual> {
        match &self.weight {
            Weight::Quantized { rounds_rows, .. } if !is_rounded(*rounds_rows, &x) => {
                let sum = residual.into_sum();
                Ok(Residual { sum, addend: Some(self.forward(x)?) })
            }
            _ => Ok(Residual::new(self.product(x, self.options().residual(residual.into_sum()))?)),
        }
    }

    /// The layer of `x`.
    pub fn forward(&self, x: Tensor<2>) -> Result<Tensor<2>> {
        self.product(x, self.options())
    }

    fn product(&self, x: Tensor<2>, options: LinearOptions<2>) -> Result<Tensor<2>> {
        let (weight, rounds_rows) = match &self.weight {
            Weight::Dense(weight) => return Ok(linear(x, weight.clone(), options)?),
            Weight::Quantized { weight, rounds_rows } => (weight, *rounds_rows),
        };
        if is_rounded(rounds_rows, &x) {
            let dtype = x.dtype();
            let (codes, scales) = quantize_per_token(x, Fp8::E4m3)?;
            return Ok(scaled_linear(codes, scales, weight, options.output_dtype(dtype))?);
        }
        let mut y = matmul_nt_quantized(x, weight)?;
        if let Some(bias) = &self.bias {
            y = y + bias.clone().unsqueeze();
        }
        Ok(if self.is_gated { silu_and_mul(y)? } else { y })
    }

    fn options(&self) -> LinearOptions<2> {
        let mut options = LinearOptions::new();
        if let Some(bias) = &self.bias {
            options = options.bias(bias.clone());
        }
        if self.is_gated { options.gate(Activation::Silu) } else { options }
    }
}

fn is_rounded(rounds_rows: bool, x: &Tensor<2>) -> bool {
    rounds_rows && x.dims()[0] > FEW_ROWS
}
