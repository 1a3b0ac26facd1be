//! Numbers of 8 bits.

use std::fmt;

/// An fp8 format: sign, exponent, mantissa. Tensors hold its codes as `U8`, and a float is `code * scale`.
///
/// Floats are rounded to the nearest code, ties to even, and saturate beyond the largest; NaN stays NaN.
///
/// Quantisation rounds `x / scale`, computed in f32. That is exact for every scale that is finite and not 0,
/// including subnormal ones, and zeros are always 0. Scales are on the device, so none is an error. A scale
/// of 0 is the limit of small ones: all but 0 becomes the largest code. An infinite or NaN scale makes every
/// code NaN.
///
/// ```
/// use burn_flashinfer::Fp8;
///
/// assert_eq!(Fp8::E4m3.decode(Fp8::E4m3.encode(0.3)), 0.3125);
/// assert_eq!(Fp8::E4m3.decode(Fp8::E4m3.encode(1e6)), Fp8::E4m3.max());
/// assert!(Fp8::E5m2.decode(Fp8::E5m2.encode(f32::NAN)).is_nan());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fp8 {
    /// Four bits of exponent, three of mantissa, up to 448; NaN, but no infinity (OCP `e4m3fn`).
    E4m3,
    /// Half of [`E4m3`](Self::E4m3), up to 240; one NaN, no infinity, no negative zero: the format of AMD
    /// CDNA3.
    E4m3Fnuz,
    /// Five bits of exponent, two of mantissa, up to 57344: the upper half of an f16 (OCP).
    E5m2,
}

/// The name that PyTorch and ONNX give the format: `e4m3fn`, `e4m3fnuz` or `e5m2`.
impl fmt::Display for Fp8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::E4m3 => "e4m3fn",
            Self::E4m3Fnuz => "e4m3fnuz",
            Self::E5m2 => "e5m2",
        })
    }
}

#[cfg(feature = "cube")]
impl From<Fp8> for burn_flashinfer_kernels::Fp8 {
    fn from(format: Fp8) -> Self {
        match format {
            Fp8::E4m3 => Self::E4m3,
            Fp8::E4m3Fnuz => Self::E4m3Fnuz,
            Fp8::E5m2 => Self::E5m2,
        }
    }
}

impl Fp8 {
    /// The largest number.
    pub const fn max(self) -> f32 {
        match self {
            Self::E4m3 => 448.0,
            Self::E4m3Fnuz => 240.0,
            Self::E5m2 => 57344.0,
        }
    }

    /// Bits of the mantissa, and bias of the exponent.
    pub(crate) const fn layout(self) -> (u32, u32) {
        match self {
            Self::E4m3 => (3, 7),
            Self::E4m3Fnuz => (3, 8),
            Self::E5m2 => (2, 15),
        }
    }

    const fn nan(self) -> u8 {
        match self {
            Self::E4m3 | Self::E5m2 => 0x7f,
            Self::E4m3Fnuz => 0x80,
        }
    }

    /// The code nearest to `x`.
    #[inline(always)]
    pub const fn encode(self, x: f32) -> u8 {
        let (mantissa, bias) = self.layout();
        let size = if x.abs() > self.max() { self.max() } else { x.abs() };
        // A number that is normal in the format drops bits of its mantissa and changes its bias; a smaller
        // one is counted in units of the smallest, by adding the f32 whose last bit is that unit.
        let dropped = 23 - mantissa;
        let bits = size.to_bits();
        let even = (bits >> dropped) & 1;
        let rounded = bits.wrapping_add((1 << (dropped - 1)) - 1).wrapping_add(even) >> dropped;
        let normal = rounded.wrapping_sub((127 - bias) << mantissa);
        let units = f32::from_bits((127 + 24 - bias - mantissa) << 23);
        let counted = (size + units).to_bits().wrapping_sub(units.to_bits());
        let is_normal = size >= f32::from_bits((128 - bias) << 23);
        let magnitude = if is_normal { normal } else { counted };
        let sign = (x.to_bits() >> 24) & 0x80;
        // The bits of a negative zero are NaN in that format.
        let sign = if matches!(self, Self::E4m3Fnuz) && magnitude == 0 { 0 } else { sign };
        if x.is_nan() { self.nan() } else { (magnitude | sign) as u8 }
    }

    /// The number of a code, exactly.
    #[inline(always)]
    pub const fn decode(self, code: u8) -> f32 {
        let (mantissa, bias) = self.layout();
        let (sign, magnitude) = ((code as u32 & 0x80) << 24, code as u32 & 0x7f);
        let is_nan = match self {
            Self::E4m3 => magnitude == 0x7f,
            Self::E4m3Fnuz => code == 0x80,
            Self::E5m2 => magnitude > 0x7c,
        };
        if is_nan {
            return f32::NAN;
        }
        if matches!(self, Self::E5m2) && magnitude == 0x7c {
            return f32::from_bits(sign | f32::INFINITY.to_bits());
        }
        let normal = (magnitude << (23 - mantissa)) + ((127 - bias) << 23);
        let unit = f32::from_bits((128 - bias - mantissa) << 23);
        let counted = (magnitude as f32 * unit).to_bits();
        let is_small = magnitude < 1 << mantissa;
        f32::from_bits(sign | if is_small { counted } else { normal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [Fp8; 3] = [Fp8::E4m3, Fp8::E4m3Fnuz, Fp8::E5m2];

    /// The value by definition: `(-1)^s · 2^(e - bias) · 1.m`, and `0.m` of the exponent 1 where `e` is 0.
    fn by_definition(format: Fp8, code: u8) -> f64 {
        let (mantissa, bias) = format.layout();
        let (e, m) = (i32::from(code & 0x7f) >> mantissa, f64::from(code & ((1 << mantissa) - 1)));
        let m = m / f64::from(1 << mantissa);
        let power = |e: i32| 2f64.powi(e - bias as i32);
        let size = if e == 0 { power(1) * m } else { power(e) * (1.0 + m) };
        if code & 0x80 == 0 { size } else { -size }
    }

    #[test]
    fn every_code_is_its_number() {
        for format in FORMATS {
            let special: &[u8] = match format {
                Fp8::E4m3 => &[0x7f, 0xff],
                Fp8::E4m3Fnuz => &[0x80],
                Fp8::E5m2 => &[0x7d, 0x7e, 0x7f, 0xfd, 0xfe, 0xff],
            };
            for code in 0..=u8::MAX {
                let number = format.decode(code);
                if special.contains(&code) {
                    assert!(number.is_nan(), "{format:?} {code:#x}");
                } else if format == Fp8::E5m2 && code & 0x7f == 0x7c {
                    assert_eq!(number, if code < 0x80 { f32::INFINITY } else { f32::NEG_INFINITY });
                } else {
                    assert_eq!(f64::from(number), by_definition(format, code), "{format:?} {code:#x}");
                    assert_eq!(format.encode(number), code, "{format:?} {number}");
                }
            }
        }
    }

    /// Between each number and the next: below, at and above the middle.
    #[test]
    fn rounds_to_the_nearest_and_ties_to_even() {
        for format in FORMATS {
            let last = format.encode(format.max());
            for code in 0..last {
                let (low, high) = (format.decode(code), format.decode(code + 1));
                let middle = f32::midpoint(low, high);
                let even = code + code % 2;
                for (x, wanted) in [(middle.next_down(), code), (middle, even), (middle.next_up(), code + 1)]
                {
                    assert_eq!(format.encode(x), wanted, "{format:?} {x}");
                    let negative = if wanted == 0 && format == Fp8::E4m3Fnuz { 0 } else { wanted | 0x80 };
                    assert_eq!(format.encode(-x), negative, "{format:?} -{x}");
                }
            }
            for x in [format.max() * 1.5, f32::MAX, f32::INFINITY] {
                assert_eq!((format.encode(x), format.encode(-x)), (last, last | 0x80));
            }
            assert!(format.decode(format.encode(f32::NAN)).is_nan());
            assert_eq!(format.encode(f32::MIN_POSITIVE / 2.0), 0);
        }
    }
}
