//! A linear layer on rows and a weight both of 8 bits.

use burn::{
    backend::Dispatch,
    tensor::{DType, Device, Float, Int, Tensor},
};

use super::QuantizedWeight;
use crate::check::{self, Floats, shape};
use crate::dispatch::IntoBackend;
use crate::error::{Error, Result};
use crate::extension::{FlashInferBackend, ScaledRows};
use crate::memory;
use crate::ops::linear::{Epilogue, LinearOptions};
use crate::types::WeightFormat;

/// True if the matrix units of `device` multiply codes of e4m3, as Hopper's do: many rows then take less time in
/// [`scaled_linear`] than in [`matmul_nt_quantized`](crate::matmul_nt_quantized), and elsewhere more.
pub fn multiplies_e4m3(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    if let burn::backend::DispatchDevice::Cube(device) = device.clone().inner().as_dispatch() {
        return crate::backend::multiplies_e4m3(device);
    }
    let _ = device;
    false
}

/// `(x · x_scales) · dequantised(weight)ᵀ` for rows and a weight of e4m3: [`linear`](crate::linear) at twice the rate.
///
/// `x`: `[…, in]` codes (`U8`, OCP's [`Fp8::E4m3`](crate::Fp8::E4m3)), as [`rms_norm_quant`](crate::rms_norm_quant) and
/// [`silu_and_mul_quant`](crate::silu_and_mul_quant) make them; `x_scales`: f32, `[1]`, or `[rows]` with one scale for each row of
/// `x`. The weight is `[out, in]`, or `[2 * out, in]` with a gate, of [`WeightFormat::E4m3`]. The result is `[…, out]`, of
/// [`LinearOptions::output_dtype`]: f32 unless set, or f16 or bf16. Bias and residual are of that type.
///
/// The matrix units of Hopper and CDNA3 multiply the codes, of rows and outputs in whole 16. Hopper's sum 128 products with 14
/// bits, and these sums are added up in f32 (source: DeepSeek-AI, *DeepSeek-V3 Technical Report*, 2024). Elsewhere both factors
/// are written once in f32 and multiplied as [`matmul_nt`](crate::matmul_nt) does; that takes memory for as many numbers.
///
/// # Errors
///
/// If shapes, types, formats or devices do not fit together, or a tensor requires a gradient.
///
/// ```
/// use burn::tensor::{DType, Device, Distribution, Tensor};
/// use burn_flashinfer::{
///     Fp8, LinearOptions, Quantization, QuantizedWeight, WeightFormat, WeightScales, rms_norm_quant, scaled_linear,
/// };
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let weight = Tensor::<2>::random([256, 128], Distribution::Normal(0.0, 0.02), &device);
/// let weight = QuantizedWeight::quantize(weight, WeightFormat::E4m3(WeightScales::PerChannel))?;
/// let scale = Tensor::<1>::from_floats([0.01], &device);
/// let quantization = Quantization::new(Fp8::E4m3, scale.clone())?;
/// let x = Tensor::<2>::ones([3, 128], &device);
/// let x = rms_norm_quant(x, Tensor::ones([128], &device), 1e-5, &quantization)?;
/// let y = scaled_linear(x, scale, &weight, LinearOptions::new())?;
/// assert_eq!((y.dims(), y.dtype()), ([3, 256], DType::F32));
/// # Ok(())
/// # }
/// ```
pub fn scaled_linear<const D: usize>(
    x: Tensor<D, Int>,
    x_scales: Tensor<1>,
    weight: &QuantizedWeight,
    options: LinearOptions<D>,
) -> Result<Tensor<D>> {
    const OP: &str = "scaled_linear";
    check::codes(OP, "x", &x)?;
    let floats = Floats::first(OP, "x_scales", &x_scales)?;
    floats.on_device("x", &x.device())?;
    floats.on_device("weight", &weight.device())?;
    let (mut dims, [weight_rows, inputs]) = (x.dims(), weight.dims());
    if dims.last() != Some(&inputs) {
        return Err(shape(OP, "x", &dims, format!("[…, {inputs}], as `weight` {:?}", weight.dims())));
    }
    let rows: usize = dims[..D - 1].iter().product();
    floats.f32("x_scales", &x_scales)?;
    if x_scales.dims() != [1] && x_scales.dims() != [rows] {
        let expected = format!("[1] or [{rows}], one for each row of `x`");
        return Err(shape(OP, "x_scales", &x_scales.dims(), expected));
    }
    if !matches!(weight.format(), WeightFormat::E4m3(_)) {
        let (got, expected) = (format!("of {:?}", weight.format()), "of e4m3".into());
        return Err(Error::Value { op: OP, argument: "weight", got, expected });
    }
    let dtype = options.dtype().unwrap_or(DType::F32);
    check::float(OP, "output_dtype", dtype, floats.device())?;
    let Epilogue { params, bias, residual, rows } =
        options.checked(OP, &floats, dtype, weight.dims(), &mut dims)?;
    if rows > 0 {
        let numbers = memory::bytes([rows + weight_rows, inputs, size_of::<f32>()]);
        memory::on_device(OP, "weight", [1, numbers], floats.device())?;
    }
    let (codes, scales) = weight.tensors();
    let y = Dispatch::scaled_linear(
        ScaledRows { codes: x.reshape([rows, inputs]).into_backend(), scales: x_scales.into_backend() },
        codes.into_backend(),
        scales.into_backend(),
        bias.map(Tensor::into_backend).into(),
        residual.map(Tensor::into_backend).into(),
        weight.format(),
        params,
    );
    Ok(floats.origin.tensor::<2, Float>(y).reshape(dims))
}
