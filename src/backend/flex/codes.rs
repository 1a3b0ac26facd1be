//! The codes of 8 bits as elements.

use burn::tensor::f16;
use burn_flex::FlexTensor;

use super::float::Widen;

/// Codes of OCP's e4m3.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(super) struct E4m3(u8);

/// Codes of e4m3 FNUZ.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(super) struct E4m3Fnuz(u8);

/// Codes of e5m2.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(super) struct E5m2(u8);

/// Integers of two's complement.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(super) struct Int8(i8);

/// The number of a code with three bits of mantissa. No branch, so that loops become vector code.
#[inline(always)]
fn with_three_bits<const BIAS: u32>(code: u8, is_nan: bool) -> f32 {
    let (sign, magnitude) = ((u32::from(code) & 0x80) << 24, u32::from(code) & 0x7f);
    let least = (128 - BIAS) << 23;
    let normal = (magnitude << 20) + ((127 - BIAS) << 23);
    // Exponent 0 means that of 1 without its leading bit, which is taken off again.
    let small = (f32::from_bits((magnitude << 20) + least) - f32::from_bits(least)).to_bits();
    let number = if magnitude < 8 { small } else { normal };
    f32::from_bits(sign | if is_nan { f32::NAN.to_bits() } else { number })
}

impl Widen for E4m3 {
    #[inline(always)]
    fn widen(self) -> f32 {
        with_three_bits::<7>(self.0, self.0 & 0x7f == 0x7f)
    }

    fn of(tensor: &FlexTensor) -> &[Self] {
        bytemuck::cast_slice(tensor.storage::<u8>())
    }
}

impl Widen for E4m3Fnuz {
    #[inline(always)]
    fn widen(self) -> f32 {
        with_three_bits::<8>(self.0, self.0 == 0x80)
    }

    fn of(tensor: &FlexTensor) -> &[Self] {
        bytemuck::cast_slice(tensor.storage::<u8>())
    }
}

impl Widen for E5m2 {
    /// The upper half of an f16.
    #[inline(always)]
    fn widen(self) -> f32 {
        f16::from_bits(u16::from(self.0) << 8).widen()
    }

    fn of(tensor: &FlexTensor) -> &[Self] {
        bytemuck::cast_slice(tensor.storage::<u8>())
    }
}

impl Widen for Int8 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self.0)
    }

    fn of(tensor: &FlexTensor) -> &[Self] {
        bytemuck::cast_slice(tensor.storage::<u8>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Fp8;

    #[test]
    fn every_code_is_its_number() {
        for code in 0..=u8::MAX {
            for (got, format) in [
                (E4m3(code).widen(), Fp8::E4m3),
                (E4m3Fnuz(code).widen(), Fp8::E4m3Fnuz),
                (E5m2(code).widen(), Fp8::E5m2),
            ] {
                let wanted = format.decode(code);
                assert!(got == wanted || got.is_nan() && wanted.is_nan(), "{format} {code:#x}: {got}");
            }
        }
    }
}
