//! What MODE asks of float arithmetic.

use crate::decode::Instruction;
use crate::float::{F16, F32, F64, Format, Rounding, f16_to_f32, fma_f32};
use crate::wave::{LANES, Wave};

/// Bits of MODE that keep denormals; where they are clear, denormals are zeros.
pub(super) const INPUT_32: u32 = 1 << 4;
pub(super) const OUTPUT_32: u32 = 1 << 5;
pub(super) const INPUT_16_64: u32 = 1 << 6;
pub(super) const OUTPUT_16_64: u32 = 1 << 7;
/// A NaN is clamped to 0.
const DX10_CLAMP: u32 = 1 << 8;
const IEEE: u32 = 1 << 9;
/// Overflow gives the largest value: of f16, and of conversions to fp8 and matrix products.
const OVERFLOW_SATURATES: u32 = 1 << 23;
/// Vector instructions do nothing.
pub(super) const VSKIP: u32 = 1 << 28;
/// How many paths of `s_cbranch_*_fork` wait, in the highest bits.
pub(super) const FORKS: u32 = 29;

/// Arithmetic that rounds otherwise than to the nearest even, which is what the CPU does.
#[derive(Clone, Copy)]
pub(super) struct Directed {
    format: Format,
    rounding: Rounding,
    saturate: bool,
}

impl Wave {
    #[inline]
    pub(super) fn keeps(&self, denormals: u32) -> bool {
        self.mode & denormals != 0
    }

    #[inline]
    pub(super) fn ieee(&self) -> bool {
        self.mode & IEEE != 0
    }

    #[inline]
    pub(super) fn saturates(&self) -> bool {
        self.mode & OVERFLOW_SATURATES != 0
    }

    /// Whether any rounding or overflow is not the CPU's.
    #[inline]
    pub(super) fn is_directed(&self) -> bool {
        self.mode & (0xf | OVERFLOW_SATURATES) != 0
    }

    pub(super) fn directed32(&self) -> Option<Directed> {
        (self.mode & 3 != 0).then(|| Directed {
            format: F32,
            rounding: Rounding::of_mode(self.mode),
            saturate: false,
        })
    }

    pub(super) fn directed16(&self) -> Option<Directed> {
        let saturate = self.saturates();
        let rounding = Rounding::of_mode(self.mode >> 2);
        (rounding != Rounding::NearestEven || saturate).then_some(Directed {
            format: F16,
            rounding,
            saturate,
        })
    }

    pub(super) fn directed64(&self) -> Option<Directed> {
        let rounding = Rounding::of_mode(self.mode >> 2);
        (rounding != Rounding::NearestEven).then_some(Directed { format: F64, rounding, saturate: false })
    }

    /// `a * b + c` of f32.
    pub(super) fn fused32(&self) -> impl Fn(f32, f32, f32) -> f32 + use<> {
        let directed = self.directed32();
        move |a, b, c| directed.map_or_else(|| fma_f32(a, b, c), |directed| directed.fused32(a, b, c))
    }

    /// Output modifier and clamp. `denormals` are those of the output: where they are kept, and in IEEE
    /// mode, there is no output modifier.
    #[inline]
    pub(super) fn modified<T: Scalable>(&self, i: &Instruction, denormals: u32, values: &mut [T; LANES]) {
        if i.output_modifier != 0 || i.clamp {
            self.modify(i, denormals, values);
        }
    }

    #[inline(never)]
    fn modify<T: Scalable>(&self, i: &Instruction, denormals: u32, values: &mut [T; LANES]) {
        if i.output_modifier != 0 && !self.keeps(denormals) && !self.ieee() {
            let factor = [1.0, 2.0, 4.0, 0.5][usize::from(i.output_modifier & 3)];
            // It loses the sign of zero.
            *values = values.map(|value| value.scaled(factor));
        }
        if i.clamp {
            let keep_nan = self.mode & DX10_CLAMP == 0;
            *values = values.map(|value| value.clamped(keep_nan));
        }
    }
}

/// What modifiers do to f32 and f64.
pub(super) trait Scalable: Copy {
    fn scaled(self, factor: f32) -> Self;
    fn clamped(self, keep_nan: bool) -> Self;
}

macro_rules! scalable {
    ($float:ty) => {
        impl Scalable for $float {
            #[inline]
            fn scaled(self, factor: f32) -> Self {
                self * <$float>::from(factor) + 0.0
            }

            #[inline]
            fn clamped(self, keep_nan: bool) -> Self {
                match self > 0.0 {
                    true => self.min(1.0),
                    false if keep_nan && self.is_nan() => self,
                    false => 0.0,
                }
            }
        }
    };
}

scalable!(f32);
scalable!(f64);

impl Directed {
    fn value(self, bits: u64) -> f64 {
        match self.format {
            F64 => f64::from_bits(bits),
            F32 => f32::from_bits(bits as u32).into(),
            _ => f16_to_f32(bits as u16).into(),
        }
    }

    /// `a * b + c`.
    pub(super) fn fused(self, a: f64, b: f64, c: f64) -> f64 {
        self.value(self.format.fused(a, b, c, self.rounding, self.saturate))
    }

    pub(super) fn sum(self, a: f64, b: f64) -> f64 {
        self.fused(a, 1.0, b)
    }

    pub(super) fn product(self, a: f64, b: f64) -> f64 {
        // A zero of the sign of the product adds nothing, not even to a zero.
        self.fused(a, b, if a.is_sign_negative() == b.is_sign_negative() { 0.0 } else { -0.0 })
    }

    /// `value * 2^exponent`.
    pub(super) fn scale(self, value: f64, exponent: i32) -> f64 {
        self.value(self.format.scale(value, exponent, self.rounding, self.saturate))
    }

    pub(super) fn fused32(self, a: f32, b: f32, c: f32) -> f32 {
        self.fused(a.into(), b.into(), c.into()) as f32
    }

    pub(super) fn sum32(self, a: f32, b: f32) -> f32 {
        self.sum(a.into(), b.into()) as f32
    }

    pub(super) fn product32(self, a: f32, b: f32) -> f32 {
        self.product(a.into(), b.into()) as f32
    }
}
