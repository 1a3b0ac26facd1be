//! Codes of 8 bits: rounding of floats to them, and back.

use std::fmt;

use cubecl::{
    client::Client,
    ir::{ElemType, UIntKind},
    prelude::*,
};

use crate::device::tensor::{Result, contiguous};
use crate::device::{Arch, Instruction, Machine};
use crate::fp8::{self, Fp8};
use crate::math::{narrow, widen};

/// The meaning of codes of 8 bits, but for their scale.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code8 {
    /// Floats.
    Fp8(Fp8),
    /// Integers of two's complement, from -127 to 127.
    Int8,
}

impl From<Fp8> for Code8 {
    fn from(format: Fp8) -> Self {
        Self::Fp8(format)
    }
}

/// The name of the format.
impl fmt::Debug for Code8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fp8(format) => format.fmt(f),
            Self::Int8 => f.write_str("Int8"),
        }
    }
}

impl Code8 {
    /// The largest number.
    pub(crate) const fn max(self) -> f32 {
        match self {
            Self::Fp8(format) => format.max(),
            Self::Int8 => 127.0,
        }
    }

    /// The machine whose instructions turn codes into numbers; the portable one if there are none.
    pub(crate) fn decoder(self, client: &Client) -> Machine {
        let arch = Arch::of(client);
        match self {
            Self::Fp8(Fp8::E4m3 | Fp8::E5m2) if Instruction::CvtFp8.exists_on(arch) => Machine::Nvidia,
            Self::Fp8(_) if Instruction::CvtFp8Fnuz.exists_on(arch) => Machine::Amd,
            _ => Machine::Portable,
        }
    }

    /// The machine whose instructions turn numbers into codes; the portable one if there are none.
    pub(crate) fn encoder(self, client: &Client) -> Machine {
        let arch = Arch::of(client);
        match self {
            Self::Fp8(Fp8::E4m3 | Fp8::E5m2) if Instruction::CvtFp8.exists_on(arch) => Machine::Nvidia,
            Self::Fp8(Fp8::E4m3Fnuz) if Instruction::CvtFp8Fnuz.exists_on(arch) => Machine::Amd,
            _ => Machine::Portable,
        }
    }
}

/// The floats of codes, exactly.
#[cube]
pub(crate) fn floats<N: Size>(code: Vector<u32, N>, #[comptime] format: Code8) -> Vector<f32, N> {
    #[comptime]
    match format {
        Code8::Fp8(format) => fp8::floats::<N>(code, format),
        Code8::Int8 => int8_floats::<N>(code),
    }
}

/// The floats of int8, without a conversion, of which devices do few at a time: `128 + code` are the last bits of an f32.
#[cube]
fn int8_floats<N: Size>(code: Vector<u32, N>) -> Vector<f32, N> {
    let biased = (code ^ Vector::new(0x80u32)) | Vector::new(comptime!(8_388_608.0f32.to_bits()));
    Vector::<f32, N>::reinterpret(biased) - Vector::new(8_388_736.0f32)
}

/// The nearest int8, ties to even; beyond the largest it, and 0 of NaN.
#[cube]
fn int8_rounded<N: Size>(x: Vector<f32, N>) -> Vector<u32, N> {
    let most = Vector::new(127.0f32);
    let limited = max(min(x, most), -most);
    // The last bits of a sum with 1.5 · 2²³ are those of the integer.
    let rounded =
        Vector::<u32, N>::reinterpret(limited + Vector::new(12_582_912.0f32)) & Vector::new(0xffu32);
    select_many(x.is_nan(), Vector::new(0u32), rounded)
}

/// A format of 8 bits, and the device whose instructions convert to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Code {
    format: Code8,
    machine: Machine,
    /// Each head has a scale of its own.
    of_heads: bool,
}

impl Code {
    /// Conversion by the instructions of a device, if it has some for this format.
    pub(crate) fn of(format: impl Into<Code8>, scale: &TensorBinding, client: &Client) -> Self {
        Self { of_heads: scale.size() > 1, ..Self::of_all(format, client) }
    }

    /// [`of`](Self::of) with one scale for all that a unit converts.
    pub(crate) fn of_all(format: impl Into<Code8>, client: &Client) -> Self {
        let format = format.into();
        Self { format, machine: format.encoder(client), of_heads: false }
    }

    /// The largest number of the format.
    pub(crate) fn max(self) -> f32 {
        self.format.max()
    }
}

/// The fp8 format of a tensor, one byte an element, and its scale: a float is `code · scale`.
pub struct Quantized {
    /// The fp8 format.
    pub format: Fp8,
    /// f32, contiguous: `[1]`, or `[heads]` where a tensor has heads.
    pub scale: TensorBinding,
}

impl Quantized {
    /// The format, and the scale as an argument of a kernel.
    pub(crate) fn unzip(quantized: Option<Self>, client: &Client) -> (Option<Code>, Option<BufferArg>) {
        quantized
            .map(|Self { format, scale }| (Code::of(format, &scale, client), scale.into_buffer_arg()))
            .unzip()
    }

    /// Refuses a scale of more than one element.
    pub(crate) fn check_one(quantized: Option<&Self>, kernel: &'static str) -> Result<()> {
        quantized.map_or(Ok(()), |quantized| contiguous(kernel, "scale", &quantized.scale, &[1]))
    }
}

/// The type of a tensor's elements: floats of type `dtype`, or fp8.
pub(crate) fn element_type(is_quantized: bool, dtype: ElemType) -> ElemType {
    if is_quantized { ElemType::UInt(UIntKind::U8) } else { dtype }
}

/// The scale of a head: 1 for a tensor of floats.
#[cube]
pub(crate) fn scale_of(
    scale: &ComptimeOption<Box<[f32]>>,
    head: usize,
    #[comptime] code: Option<Code>,
) -> f32 {
    // The comptime flag, not the length of the buffer, which may be more than what was allocated.
    let of_heads = comptime!(code.is_some_and(|code| code.of_heads));
    #[comptime]
    match scale {
        ComptimeOption::Some(scale) => {
            if comptime!(of_heads) {
                scale[head]
            } else {
                scale[0]
            }
        }
        ComptimeOption::None => 1.0f32,
    }
}

/// The divisor form of a scale: `x / scale = x · power · (inverse + rest)`, for every finite scale, although
/// `1 / scale` may exceed f32. Exact to 2^-46 before the one rounding to f32.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Divisor {
    /// A power of two.
    power: f32,
    /// The inverse `1 / (scale · power)`, smaller in size by two ulp at most.
    inverse: f32,
    /// The remainder of the inverse, never 0: so the sign of a zero stays, and infinity is not multiplied
    /// with 0.
    rest: f32,
}

/// `scale` as a divisor. A scale of 0 is the limit of small ones: it keeps a 0 and makes all other values
/// infinite. A scale that is not finite makes all values NaN.
#[cube]
pub(crate) fn divisor(scale: f32) -> Divisor {
    let bits = u32::reinterpret(scale);
    let (sign, size) = (bits & 0x8000_0000u32, bits & 0x7fff_ffffu32);
    let is_small = size < comptime!(Fp8::power(-64).to_bits());
    let is_large = size > comptime!(Fp8::power(64).to_bits());
    let power = select(is_large, comptime!(Fp8::power(-64)), 1.0f32);
    let power = select(is_small, comptime!(Fp8::power(64)), power);
    // The bits of a subnormal f32 count units of 2⁻¹⁴⁹; devices may flush it to 0 in a product.
    let counted = f32::cast_from(size) * comptime!(Fp8::power(64 - 149));
    let is_subnormal = size < comptime!(f32::MIN_POSITIVE.to_bits());
    let scaled = select(is_subnormal, counted, f32::reinterpret(size) * power);
    // An infinite inverse becomes the largest float; the inverse of infinity, 0, becomes NaN.
    let inverse = f32::reinterpret(u32::reinterpret(1.0f32 / scaled) - 1u32);
    let rest = fma(-inverse, scaled, 1.0f32) * inverse;
    Divisor {
        power,
        inverse: f32::reinterpret(u32::reinterpret(inverse) | sign),
        rest: f32::reinterpret(u32::reinterpret(rest) | sign),
    }
}

/// `x` in the type of memory. A float type `E` rounds ties to even. Fp8 divides `by` a scale, rounds to f32,
/// and then to the nearest code, saturating beyond the largest.
#[cube]
pub(crate) fn encode<E: Numeric, N: Size>(
    x: Vector<f32, N>,
    by: &Divisor,
    #[comptime] code: Option<Code>,
) -> Vector<E, N> {
    #[comptime]
    match code {
        None => narrow::<E, N>(x),
        Some(Code { format, machine, .. }) => {
            let x = x * Vector::new(by.power);
            let x = fma(x, Vector::new(by.inverse), x * Vector::new(by.rest));
            let lanes = N::value();
            #[comptime]
            match format {
                Code8::Fp8(format) => {
                    let codes = if comptime!(lanes.is_multiple_of(4) && machine != Machine::Portable) {
                        fp8::converted::<N>(x, format, machine)
                    } else {
                        fp8::rounded::<N>(x, format)
                    };
                    Vector::cast_from(codes)
                }
                Code8::Int8 => Vector::cast_from(int8_rounded::<N>(x)),
            }
        }
    }
}

/// The float of a stored element, exactly; for fp8 without its scale.
#[cube]
pub(crate) fn decode<E: Numeric, N: Size>(x: Vector<E, N>, #[comptime] code: Option<Code>) -> Vector<f32, N> {
    #[comptime]
    match code {
        None => widen::<E, N>(x),
        Some(Code { format, .. }) => floats::<N>(Vector::cast_from(x), format),
    }
}
