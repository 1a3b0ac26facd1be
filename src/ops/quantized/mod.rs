//! A linear layer on weights of 8 or 4 bits.

mod pack;
mod scaled;
mod weight;

use burn::{
    backend::Dispatch,
    tensor::{Float, Tensor},
};

use crate::check::{Floats, shape};
use crate::dispatch::IntoBackend;
use crate::error::Result;
use crate::extension::FlashInferBackend;
use crate::memory;

pub use scaled::{multiplies_e4m3, scaled_linear};
pub use weight::{GptqVersion, QuantizedWeight};

/// `x · dequantised(weight)ᵀ`: a linear layer without bias on a weight of 8 or 4 bits.
///
/// `x`: `[…, in]`, the weight is `[out, in]`; the result is `[…, out]` of the type of `x`. Products are accumulated in f32 and
/// rounded once.
///
/// Up to 64 rows of f16 or bf16 read the codes once, on NVIDIA since Ampere and on AMD's CDNA; no weight is rounded. Of more
/// rows, of f32 and on other GPUs the weight is written once in the type of `x`, rounded, and multiplied as
/// [`matmul_nt`](crate::matmul_nt) does: that takes memory for as many numbers.
///
/// # Errors
///
/// If shapes or devices do not fit together, or `x` requires a gradient.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_flashinfer::{QuantizedWeight, WeightFormat, WeightScales, matmul_nt_quantized};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let weight = Tensor::<2>::random([256, 128], Distribution::Normal(0.0, 0.02), &device);
/// let weight = QuantizedWeight::quantize(weight, WeightFormat::E4m3(WeightScales::PerChannel))?;
/// let y = matmul_nt_quantized(Tensor::<2>::ones([3, 128], &device), &weight)?;
/// assert_eq!(y.dims(), [3, 256]);
/// # Ok(())
/// # }
/// ```
pub fn matmul_nt_quantized<const D: usize>(x: Tensor<D>, weight: &QuantizedWeight) -> Result<Tensor<D>> {
    const OP: &str = "matmul_nt_quantized";
    let floats = Floats::first(OP, "x", &x)?;
    floats.on_device("weight", &weight.device())?;
    let mut dims = x.dims();
    let [outputs, inputs] = weight.dims();
    if dims.last() != Some(&inputs) {
        return Err(shape(OP, "x", &dims, format!("[…, {inputs}], as `weight` {:?}", weight.dims())));
    }
    let (rows, size) = (dims[..D - 1].iter().product::<usize>(), x.dtype().size());
    memory::on_device(OP, "x", [1, memory::bytes([rows, outputs, size])], &x.device())?;
    if rows > 0 {
        memory::on_device(OP, "weight", [1, memory::bytes([outputs, inputs, size])], &x.device())?;
    }
    let x = x.reshape([rows, inputs]).into_backend();
    let (codes, scales) = weight.tensors();
    let y = Dispatch::matmul_nt_quantized(x, codes.into_backend(), scales.into_backend(), weight.format());
    dims[D - 1] = outputs;
    Ok(floats.origin.tensor::<2, Float>(y).reshape(dims))
}
