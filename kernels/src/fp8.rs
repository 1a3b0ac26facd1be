//! Fp8: rounding of floats to it, and back.

use cubecl::{
    client::Client,
    ir::{ElemType, UIntKind},
    prelude::*,
};

use crate::device::tensor::{Result, contiguous};
use crate::device::{Arch, Instruction, Machine};
use crate::isa::{amd, nvidia};
use crate::math::{narrow, widen};

/// A format of 8 bits: sign, exponent, mantissa.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fp8 {
    /// Four bits of exponent, three of mantissa, up to 448, NaN but no infinity (OCP).
    E4m3,
    /// As [`E4m3`](Self::E4m3) of half the size, up to 240; one NaN, no infinity, no negative zero (AMD CDNA3).
    E4m3Fnuz,
    /// Five bits of exponent, two of mantissa, up to 57344: the upper half of an f16 (OCP).
    E5m2,
}

impl Fp8 {
    /// Bits of the mantissa.
    const fn mantissa(self) -> u32 {
        match self {
            Self::E4m3 | Self::E4m3Fnuz => 3,
            Self::E5m2 => 2,
        }
    }

    /// Bias of the exponent.
    const fn bias(self) -> u32 {
        match self {
            Self::E4m3 => 7,
            Self::E4m3Fnuz => 8,
            Self::E5m2 => 15,
        }
    }

    /// The largest value.
    pub(crate) const fn max(self) -> f32 {
        match self {
            Self::E4m3 => 448.0,
            Self::E4m3Fnuz => 240.0,
            Self::E5m2 => 57344.0,
        }
    }

    const fn nan(self) -> u32 {
        match self {
            Self::E4m3 | Self::E5m2 => 0x7f,
            Self::E4m3Fnuz => 0x80,
        }
    }

    /// `2^exponent`.
    const fn power(exponent: i32) -> f32 {
        f32::from_bits(((127 + exponent) as u32) << 23)
    }
}

/// An fp8 format, and the device whose instructions convert to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Code {
    format: Fp8,
    machine: Machine,
    /// Each head has a scale of its own.
    of_heads: bool,
}

impl Code {
    /// Conversion by the instructions of a device, if it has some for this format.
    pub(crate) fn of(format: Fp8, scale: &TensorBinding, client: &Client) -> Self {
        Self { of_heads: scale.size() > 1, ..Self::of_all(format, client) }
    }

    /// [`of`](Self::of) with one scale for all that a unit converts.
    pub(crate) fn of_all(format: Fp8, client: &Client) -> Self {
        let arch = Arch::of(client);
        let machine = match format {
            Fp8::E4m3 | Fp8::E5m2 if Instruction::CvtFp8.exists_on(arch) => Machine::Nvidia,
            Fp8::E4m3Fnuz if Instruction::CvtFp8Fnuz.exists_on(arch) => Machine::Amd,
            _ => Machine::Portable,
        };
        Self { format, machine, of_heads: false }
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
            let codes = if comptime!(lanes.is_multiple_of(4) && machine != Machine::Portable) {
                converted::<N>(x, format, machine)
            } else {
                rounded::<N>(x, format)
            };
            Vector::cast_from(codes)
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

/// Rounding by the instructions of a device, four floats at a time: on an H200 a norm in fp8 took 0.082 ms
/// by [`rounded`].
#[cube]
fn converted<N: Size>(
    x: Vector<f32, N>,
    #[comptime] format: Fp8,
    #[comptime] machine: Machine,
) -> Vector<u32, N> {
    let lanes = N::value();
    let e5m2 = comptime!(matches!(format, Fp8::E5m2));
    let mut codes = Vector::<u32, N>::new(0u32);
    #[unroll]
    for vec in 0..comptime!(lanes / 4) {
        let mut four = Vector::<f32, Const<4>>::new(0.0f32);
        #[unroll]
        for lane in 0..4usize {
            four.insert(lane, x.extract(comptime!(4 * vec + lane)));
        }
        let word = match machine {
            Machine::Nvidia => nvidia::to_fp8(four, e5m2),
            _ => {
                // This device turns floats beyond the largest into NaN.
                let most = Vector::new(comptime!(format.max()));
                let least = Vector::new(comptime!(-format.max()));
                let clamped = select_many(four.is_nan(), four, clamp(four, least, most));
                amd::to_fp8(clamped, e5m2)
            }
        };
        #[unroll]
        for lane in 0..4usize {
            let byte = (word >> comptime!(8 * lane as u32)) & 0xffu32;
            codes.insert(comptime!(4 * vec + lane), byte);
        }
    }
    codes
}

/// Rounding on the bits of f32, since not every device converts. A float that is normal in the format drops
/// mantissa bits, rounded, and changes its bias. A smaller one is counted in units of the smallest, by adding
/// the f32 whose last bit is that unit.
#[cube]
fn rounded<N: Size>(x: Vector<f32, N>, #[comptime] format: Fp8) -> Vector<u32, N> {
    let (dropped, bias) = comptime!((23 - format.mantissa(), format.bias()));
    let (least, unit_last) =
        comptime!((Fp8::power(1 - bias as i32), Fp8::power(24 - bias as i32 - format.mantissa() as i32)));
    let sign = (Vector::<u32, N>::reinterpret(x) >> Vector::new(24u32)) & Vector::new(0x80u32);
    let size = min(x.abs(), Vector::new(comptime!(format.max())));
    let bits = Vector::<u32, N>::reinterpret(size);
    let half = Vector::new(comptime!((1u32 << (dropped - 1)) - 1));
    let even = (bits >> Vector::new(dropped)) & Vector::new(1u32);
    let normal = ((bits + half + even) >> Vector::new(dropped))
        - Vector::new(comptime!((127 - bias) << format.mantissa()));
    let counted = Vector::<u32, N>::reinterpret(size + Vector::new(unit_last))
        - Vector::new(comptime!(unit_last.to_bits()));
    let magnitude = select_many(size.less_than(&Vector::new(least)), counted, normal);
    let mut code = magnitude | sign;
    if comptime!(matches!(format, Fp8::E4m3Fnuz)) {
        // The bits of a negative zero are NaN in this format.
        code = select_many(magnitude.equal(&Vector::new(0u32)), magnitude, code);
    }
    select_many(x.is_nan(), Vector::new(comptime!(format.nan())), code)
}

/// The floats of codes, exactly.
#[cube]
pub(crate) fn floats<N: Size>(code: Vector<u32, N>, #[comptime] format: Fp8) -> Vector<f32, N> {
    let (mantissa, bias) = comptime!((format.mantissa(), format.bias()));
    let sign = (code & Vector::new(0x80u32)) << Vector::new(24u32);
    let magnitude = code & Vector::new(0x7fu32);
    let rebias = comptime!((127 - bias) << 23);
    let normal = (magnitude << Vector::new(comptime!(23 - mantissa))) + Vector::new(rebias);
    // No product with a subnormal f32, which devices may flush to 0.
    let unit = comptime!(Fp8::power(1 - bias as i32 - mantissa as i32));
    let counted = Vector::<u32, N>::reinterpret(Vector::<f32, N>::cast_from(magnitude) * Vector::new(unit));
    let is_small = magnitude.less_than(&Vector::new(comptime!(1u32 << mantissa)));
    let value = Vector::<f32, N>::reinterpret(select_many(is_small, counted, normal) | sign);
    let nan = Vector::new(f32::NAN);
    match format {
        Fp8::E4m3 => select_many(magnitude.equal(&Vector::new(0x7fu32)), nan, value),
        Fp8::E4m3Fnuz => select_many(code.equal(&Vector::new(0x80u32)), nan, value),
        Fp8::E5m2 => {
            let infinity =
                Vector::<f32, N>::reinterpret(Vector::new(comptime!(f32::INFINITY.to_bits())) | sign);
            let value = select_many(magnitude.equal(&Vector::new(0x7cu32)), infinity, value);
            select_many(magnitude.greater_than(&Vector::new(0x7cu32)), nan, value)
        }
    }
}
