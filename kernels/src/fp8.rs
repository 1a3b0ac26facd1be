//! Fp8: rounding of floats to it, and back.

use cubecl::prelude::*;

use crate::device::Machine;
use crate::isa::{amd, nvidia};

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
    pub(crate) const fn power(exponent: i32) -> f32 {
        f32::from_bits(((127 + exponent) as u32) << 23)
    }
}

/// Rounding by the instructions of a device, four floats at a time: on an H200 a norm in fp8 took 0.082 ms
/// by [`rounded`].
#[cube]
pub(crate) fn converted<N: Size>(
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
pub(crate) fn rounded<N: Size>(x: Vector<f32, N>, #[comptime] format: Fp8) -> Vector<u32, N> {
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
