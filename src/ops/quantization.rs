//! Rounding of results to 8 bits.

use burn::backend::Dispatch;
use burn::tensor::{Device, Float, Int, Tensor};

use crate::check;
use crate::dispatch::{IntoBackend, Origin};
use crate::error::{Error, Result};
use crate::extension::{FlashInferBackend, MaybeFloats, Rounding, Rows, ScaledRows};
use crate::memory;
use crate::types::Fp8;

impl Fp8 {
    /// The format with three bits of mantissa that `device` computes with: [`E4m3Fnuz`](Self::E4m3Fnuz) on CDNA3,
    /// [`E4m3`](Self::E4m3) on all others. Any device takes any format.
    pub fn e4m3_of(device: &Device) -> Self {
        #[cfg(feature = "cube")]
        if let burn::backend::DispatchDevice::Cube(device) = device.clone().inner().as_dispatch()
            && crate::backend::has_fnuz(device)
        {
            return Self::E4m3Fnuz;
        }
        let _ = device;
        Self::E4m3
    }
}

/// Rounding of a result to 8 bits: it is divided by a scale first.
#[derive(Debug, Clone)]
#[must_use]
pub struct Quantization {
    pub(crate) format: Fp8,
    pub(crate) scale: Tensor<1>,
}

impl Quantization {
    /// Quantisation to `format`, with `scale` `[1]` of f32: a float is `code * scale`. See [`Fp8`] on scales.
    ///
    /// # Errors
    ///
    /// If `scale` is not one f32, or requires a gradient.
    pub fn new(format: Fp8, scale: Tensor<1>) -> Result<Self> {
        let scale = check::scales("Quantization::new", "scale", scale, 1)?;
        Ok(Self { format, scale })
    }
}

/// Rounds each row to 8 bits with the least scale that reaches its largest number: `x ≈ code · scale`.
///
/// `x`: `[…, width]` of f32, f16 or bf16. Returns codes (`U8`) of the same shape, and the scales, f32 `[rows]`, in the order of
/// the rows: what [`scaled_linear`](crate::scaled_linear) takes.
///
/// ```text
/// scale = max |x| / format.max(), or 1 for a row of zeros       code = encode(x / scale)
/// ```
///
/// A row with a NaN or an infinity becomes NaN. Source: the dynamic quantisation per token of `compressed-tensors` and vLLM.
///
/// # Errors
///
/// If `x` has an empty last axis, requires a gradient, or its device has no integers of 8 bits.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_flashinfer::{Fp8, quantize_per_token};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let x = Tensor::<2>::from_floats([[1.0, -448.0], [0.5, 0.25]], &Device::default());
/// let (codes, scales) = quantize_per_token(x, Fp8::E4m3)?;
/// assert_eq!((codes.dims(), scales.dims()), ([2, 2], [2]));
/// # Ok(())
/// # }
/// ```
pub fn quantize_per_token<const D: usize>(x: Tensor<D>, format: Fp8) -> Result<(Tensor<D, Int>, Tensor<1>)> {
    const OP: &str = "quantize_per_token";
    let floats = check::Floats::first(OP, "x", &x)?;
    check::bytes(OP, "x", floats.device())?;
    let dims = x.dims();
    let width = dims[D - 1];
    if width == 0 {
        return Err(check::shape(OP, "x", &dims, "a last axis that is not empty"));
    }
    let rows = dims[..D - 1].iter().product::<usize>();
    memory::on_device(OP, "x", [1, memory::bytes([rows, width + 4])], floats.device())?;
    let (codes, scales) = {
        let ScaledRows { codes, scales } =
            Dispatch::quantize_rows(x.clone().reshape([rows, width]).into_backend(), format);
        let origin = || Origin::of(&x);
        (origin().tensor::<2, Int>(codes), origin().tensor::<1, Float>(scales))
    };
    Ok((codes.reshape(dims), scales))
}

/// Rounding for a backend: to fp8, or to the type of the rows.
pub(crate) fn rounding(quantization: Option<&Quantization>) -> Rounding<Dispatch> {
    match quantization {
        None => Rounding::none(),
        Some(Quantization { format, scale }) => {
            let scale = MaybeFloats::Some(scale.clone().into_backend());
            Rounding { scale, format: Some(*format) }
        }
    }
}

/// Refuses a quantisation on another device than `device`, or one without integers of 8 bits.
pub(crate) fn check_quantization(
    op: &'static str,
    quantization: &Quantization,
    device: &Device,
) -> Result<()> {
    check::same_device(op, "quantization", &quantization.scale.device(), device)?;
    check::bytes(op, "quantization", device)
}

/// Rows of a backend, and the tensor that they become.
pub(crate) struct Rounded<const D: usize> {
    pub rows: Rows<Dispatch>,
    pub dims: [usize; D],
    pub origin: Origin,
}

impl<const D: usize> Rounded<D> {
    /// The rows of an operation without quantisation.
    pub(crate) fn numbers(self, op: &'static str) -> Result<Tensor<D>> {
        match self.rows {
            Rows::Floats(rows) => Ok(self.origin.tensor::<2, Float>(rows).reshape(self.dims)),
            Rows::Codes(_) => Err(wrong_rows(op, "codes", "numbers")),
        }
    }

    /// The rows of an operation with quantisation.
    pub(crate) fn codes(self, op: &'static str) -> Result<Tensor<D, Int>> {
        match self.rows {
            Rows::Codes(rows) => Ok(self.origin.tensor::<2, Int>(rows).reshape(self.dims)),
            Rows::Floats(_) => Err(wrong_rows(op, "numbers", "codes")),
        }
    }
}

/// The error for a backend that breaks the contract of the extension.
fn wrong_rows(op: &'static str, got: &str, expected: &str) -> Error {
    Error::Read { op, argument: "x", got: got.into(), expected: expected.into() }
}
