//! Codes of 8 bits.

use std::fmt;

use super::fp8::Fp8;

/// The meaning of codes of 8 bits, but for their scale.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code8 {
    /// Floats.
    Fp8(Fp8),
    /// Integers of two's complement, from -127 to 127: rounded to the nearest, ties to even.
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
            Self::Fp8(format) => fmt::Debug::fmt(format, f),
            Self::Int8 => f.write_str("Int8"),
        }
    }
}

#[cfg(feature = "cube")]
impl From<Code8> for burn_flashinfer_kernels::Code8 {
    fn from(format: Code8) -> Self {
        match format {
            Code8::Fp8(format) => Self::Fp8(format.into()),
            Code8::Int8 => Self::Int8,
        }
    }
}

impl Code8 {
    /// The floats, if it is a format of them.
    pub(crate) const fn fp8(self) -> Option<Fp8> {
        match self {
            Self::Fp8(format) => Some(format),
            Self::Int8 => None,
        }
    }

    /// The largest number.
    pub(crate) const fn max(self) -> f32 {
        match self {
            Self::Fp8(format) => format.max(),
            Self::Int8 => 127.0,
        }
    }

    /// The code nearest to `x`; 0 of NaN, if there is no NaN.
    #[inline(always)]
    pub(crate) const fn encode(self, x: f32) -> u8 {
        match self {
            Self::Fp8(format) => format.encode(x),
            Self::Int8 => x.clamp(-127.0, 127.0).round_ties_even() as i8 as u8,
        }
    }

    /// The number of a code, exactly.
    #[inline(always)]
    pub(crate) const fn decode(self, code: u8) -> f32 {
        match self {
            Self::Fp8(format) => format.decode(code),
            Self::Int8 => code as i8 as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_rounded_to_the_nearest() {
        for integer in -127..=127_i8 {
            let code = integer as u8;
            assert_eq!(Code8::Int8.decode(code), f32::from(integer));
            assert_eq!(Code8::Int8.encode(f32::from(integer)), code);
            let even = if integer % 2 == 0 { integer } else { integer.saturating_add(1) };
            assert_eq!(Code8::Int8.encode(f32::from(integer) + 0.5), even as u8, "{integer}.5");
        }
        assert_eq!([f32::INFINITY, -1e9, f32::NAN].map(|x| Code8::Int8.encode(x) as i8), [127, -127, 0]);
    }
}
