//! Linear layers on weights in the order of checkpoints.

use burn::{
    backend::Dispatch,
    tensor::{DType, Float, Tensor},
};

use crate::check::{self, Floats, shape};
use crate::dispatch::IntoBackend;
use crate::error::{Error, Result};
use crate::extension::FlashInferBackend;
use crate::memory;
use crate::types::{Activation, LinearParams, RmsNormStyle};

/// Options of [`linear`]. The epilogue is what follows the product, in this order, in f32 before the one rounding:
///
/// ```text
/// s = x · weightᵀ + bias
/// s = act(gate) · up              for the two halves of s, with `gate`
/// s = cap · tanh(s / cap)         with `soft_cap`
/// y = residual + s                with `residual`
/// ```
///
/// ```
/// # use burn::tensor::{DType, Device, Tensor};
/// # use burn_flashinfer::{Activation, LinearOptions, linear};
/// # fn main() -> Result<(), burn_flashinfer::Error> {
/// # let device = Device::default();
/// # let (x, gate_up) = (Tensor::<2>::ones([3, 8], &device), Tensor::<2>::ones([32, 8], &device));
/// // silu(x · gateᵀ) · (x · upᵀ), in one launch.
/// let y = linear(x, gate_up, LinearOptions::new().gate(Activation::Silu))?;
/// assert_eq!(y.dims(), [3, 16]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct LinearOptions<const D: usize> {
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<D>>,
    gate: Option<Activation>,
    soft_cap: Option<f32>,
    dtype: Option<DType>,
    batch_invariant: bool,
    tf32: bool,
}

impl<const D: usize> Default for LinearOptions<D> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const D: usize> LinearOptions<D> {
    /// The product alone.
    pub const fn new() -> Self {
        Self {
            bias: None,
            residual: None,
            gate: None,
            soft_cap: None,
            dtype: None,
            batch_invariant: false,
            tf32: false,
        }
    }

    /// Adds `[weight rows]`, of the type of `x`.
    pub fn bias(mut self, bias: Tensor<1>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Takes the first half of the weight's rows for gates and the second one for ups, as
    /// [`silu_and_mul`](crate::silu_and_mul) does: half as many outputs.
    pub fn gate(mut self, activation: Activation) -> Self {
        self.gate = Some(activation);
        self
    }

    /// Squeezes outputs into `-cap..cap`: `cap * tanh(s / cap)`. A positive, finite number.
    pub fn soft_cap(mut self, cap: f32) -> Self {
        self.soft_cap = Some(cap);
        self
    }

    /// Adds a tensor of the shape and type of the output; in place, where it has no other owner.
    pub fn residual(mut self, residual: Tensor<D>) -> Self {
        self.residual = Some(residual);
        self
    }

    /// The type of the output: that of `x`, or f32, for logits.
    pub fn output_dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Makes a row's bits independent of the rows beside it: the order of a sum is one for any number of rows. Few rows are
    /// slower then.
    pub fn batch_invariant(mut self, yes: bool) -> Self {
        self.batch_invariant = yes;
        self
    }

    /// Lets NVIDIA's GPUs since Ampere round factors of f32 to TF32, with 10 bits of fraction, as PyTorch's `allow_tf32`
    /// does: on an H200 that is 11 times as fast. Elsewhere, and for other types, nothing changes.
    pub fn tf32(mut self, yes: bool) -> Self {
        self.tf32 = yes;
        self
    }

    /// The type of the output, if it was set.
    pub(super) fn dtype(&self) -> Option<DType> {
        self.dtype
    }

    /// The options for numbers of `dtype` and a weight of this shape, if they fit. `dims` are those of `x`, and become
    /// those of the output.
    pub(super) fn checked(
        self,
        op: &'static str,
        floats: &Floats,
        dtype: DType,
        weight: [usize; 2],
        dims: &mut [usize; D],
    ) -> Result<Epilogue> {
        let Self { bias, residual, gate, soft_cap, dtype: wanted, batch_invariant, tf32 } = self;
        let [weight_rows, _] = weight;
        if gate.is_some() && !weight_rows.is_multiple_of(2) {
            return Err(shape(op, "weight", &weight, "as many gates as ups"));
        }
        if let Some(cap) = soft_cap
            && !(cap.is_finite() && cap > 0.0)
        {
            let expected = "a positive, finite number".into();
            return Err(Error::Value { op, argument: "soft_cap", got: cap.to_string(), expected });
        }
        let output = wanted.unwrap_or(dtype);
        if output != dtype && output != DType::F32 {
            let (got, expected) = (format!("{output:?}"), format!("{dtype:?}, as `x`, or F32"));
            return Err(Error::Dtype { op, argument: "output_dtype", got, expected });
        }
        if let Some(bias) = &bias {
            floats.of(dtype, "bias", bias)?;
            if bias.dims() != [weight_rows] {
                let expected = format!("[{weight_rows}], as rows of `weight`");
                return Err(shape(op, "bias", &bias.dims(), expected));
            }
        }
        let (epsilon, style) = (0.0, RmsNormStyle::Plain);
        let params = LinearParams { epsilon, style, gate, soft_cap, dtype: output, batch_invariant, tf32 };
        let rows = dims[..D - 1].iter().product();
        dims[D - 1] = params.outputs(weight_rows);
        if let Some(residual) = &residual {
            floats.of(output, "residual", residual)?;
            if residual.dims() != *dims {
                return Err(shape(op, "residual", &residual.dims(), format!("{dims:?}, as the output")));
            }
        }
        let bytes = memory::bytes([rows, dims[D - 1], output.size()]);
        memory::on_device(op, "x", [1, bytes], floats.device())?;
        let residual = residual.map(|residual| residual.reshape([rows, dims[D - 1]]));
        Ok(Epilogue { params, bias, residual, rows })
    }
}

/// Options that fit, and the rows of `x`.
pub(super) struct Epilogue {
    pub params: LinearParams,
    pub bias: Option<Tensor<1>>,
    pub residual: Option<Tensor<2>>,
    pub rows: usize,
}

/// `x · weightᵀ`: a linear layer without bias.
///
/// `x`: `[…, in]`, `weight`: `[out, in]`, as PyTorch and Hugging Face store it; the result is `[…, out]`.
/// Products are accumulated in f32 and rounded once; f32 factors are not rounded to TF32. Weights are read as they are, in
/// f16 and bf16 too. CubeCL's CPU uses Burn's matrix product.
///
/// # Errors
///
/// If shapes, types or devices do not fit together, or a tensor requires a gradient.
pub fn matmul_nt<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Result<Tensor<D>> {
    product("matmul_nt", x, None, weight, LinearOptions::new())
}

/// [`matmul_nt`] with [`LinearOptions`]: `x · weightᵀ + bias`, gated, capped and added to a residual.
///
/// `x`: `[…, in]`, `weight`: `[out, in]`, or `[2 * out, in]` with a gate; the result is `[…, out]`. GPUs compute all of it
/// in one launch.
///
/// # Errors
///
/// As [`matmul_nt`]; also if a gated weight has an odd number of rows, the cap is not positive and finite, or the output
/// has another type than that of `x` or f32.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    options: LinearOptions<D>,
) -> Result<Tensor<D>> {
    product("linear", x, None, weight, options)
}

/// [`linear`] of rows that are normalised first, as [`rms_norm`](crate::rms_norm) does with `norm` and `epsilon`:
/// `norm(x) · weightᵀ`.
///
/// `norm`: `[in]`, of the type of `x`. With up to 16 rows of bf16, NVIDIA GPUs compute all of it in one launch: the
/// weights do not wait for the norm. Elsewhere the norm is a launch of its own, which rounds its results.
///
/// # Errors
///
/// As [`linear`] and [`rms_norm`](crate::rms_norm).
pub fn rms_norm_linear<const D: usize>(
    x: Tensor<D>,
    norm: Tensor<1>,
    epsilon: f32,
    weight: Tensor<2>,
    options: LinearOptions<D>,
) -> Result<Tensor<D>> {
    let norm = Norm { weight: norm, epsilon, style: RmsNormStyle::Plain };
    product("rms_norm_linear", x, Some(norm), weight, options)
}

/// [`rms_norm_linear`] in Gemma's form, whose factors are 1 more than `norm`.
///
/// # Errors
///
/// As [`rms_norm_linear`].
pub fn gemma_rms_norm_linear<const D: usize>(
    x: Tensor<D>,
    norm: Tensor<1>,
    epsilon: f32,
    weight: Tensor<2>,
    options: LinearOptions<D>,
) -> Result<Tensor<D>> {
    let norm = Norm { weight: norm, epsilon, style: RmsNormStyle::Gemma };
    product("gemma_rms_norm_linear", x, Some(norm), weight, options)
}

struct Norm {
    weight: Tensor<1>,
    epsilon: f32,
    style: RmsNormStyle,
}

fn product<const D: usize>(
    op: &'static str,
    x: Tensor<D>,
    norm: Option<Norm>,
    weight: Tensor<2>,
    options: LinearOptions<D>,
) -> Result<Tensor<D>> {
    let floats = Floats::first(op, "x", &x)?;
    floats.like("weight", &weight)?;
    let mut dims = x.dims();
    let [weight_rows, in_dim] = weight.dims();
    if dims.last() != Some(&in_dim) {
        return Err(shape(op, "x", &dims, format!("[…, {in_dim}], as `weight` {:?}", weight.dims())));
    }
    if in_dim == 0 || weight_rows == 0 {
        return Err(shape(op, "weight", &weight.dims(), "no empty axis"));
    }
    if let Some(norm) = &norm {
        floats.like("norm", &norm.weight)?;
        if norm.weight.dims() != [in_dim] {
            let expected = format!("[{in_dim}], as the last axis of `x`");
            return Err(shape(op, "norm", &norm.weight.dims(), expected));
        }
        check::epsilon(op, "epsilon", norm.epsilon)?;
    }
    let checked = options.checked(op, &floats, x.dtype(), weight.dims(), &mut dims)?;
    let Epilogue { mut params, bias, residual, rows } = checked;
    if let Some(norm) = &norm {
        (params.epsilon, params.style) = (norm.epsilon, norm.style);
    }
    let x = x.reshape([rows, in_dim]);
    let norm = norm.map(|norm| norm.weight.into_backend());
    let (bias, residual) = (bias.map(Tensor::into_backend), residual.map(Tensor::into_backend));
    let (x, weight) = (x.into_backend(), weight.into_backend());
    let y = Dispatch::linear(x, weight, norm.into(), bias.into(), residual.into(), params);
    Ok(floats.origin.tensor::<2, Float>(y).reshape(dims))
}
