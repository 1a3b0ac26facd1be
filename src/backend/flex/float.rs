//! The element types, widened to f32 for arithmetic.

use burn::tensor::{Element, bf16, f16};
use burn_flex::FlexTensor;

use super::scratch::with_scratch;
use crate::simd::per_instruction_set;

/// An element that kernels read; they compute in f32.
pub(super) trait Widen: bytemuck::Pod + Send + Sync {
    /// The same number in f32, exactly. The code lets a loop over it become vector code on any processor.
    fn widen(self) -> f32;

    /// The elements of a tensor's storage.
    fn of(tensor: &FlexTensor) -> &[Self];

    /// The elements themselves, where they need no widening.
    fn as_wide(_elements: &[Self]) -> Option<&[f32]> {
        None
    }
}

/// An element that kernels read and write.
pub(super) trait Float: Element + Widen {
    /// The nearest number to `value`.
    fn narrow(value: f32) -> Self;
}

impl Widen for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    fn of(tensor: &FlexTensor) -> &[Self] {
        tensor.storage()
    }

    fn as_wide(elements: &[Self]) -> Option<&[f32]> {
        Some(elements)
    }
}

impl Float for f32 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Widen for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn of(tensor: &FlexTensor) -> &[Self] {
        tensor.storage()
    }
}

impl Float for bf16 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        // No branch, so that loops become vector code: the addend carries into the upper half if the lower
        // one rounds up. A NaN could carry into the sign.
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let nan = (bits >> 16) | 0x40;
        Self::from_bits(if value.is_nan() { nan } else { rounded } as u16)
    }
}

impl Widen for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        // `f16::to_f32` asks the processor at every call whether it can convert, which no loop survives. Instead: move
        // exponent and mantissa into place and let one product with 2^112 correct the bias, of subnormal numbers too.
        const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
        let bits = u32::from(self.to_bits());
        let sign = (bits & 0x8000) << 16;
        let magnitude = (bits & 0x7fff) << 13;
        let finite = (f32::from_bits(magnitude) * REBIAS).to_bits();
        let special = magnitude | 0x7f80_0000;
        f32::from_bits(sign | if bits & 0x7c00 == 0x7c00 { special } else { finite })
    }

    fn of(tensor: &FlexTensor) -> &[Self] {
        tensor.storage()
    }
}

impl Float for f16 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        // As above. A subnormal of f16 is counted in its smallest units, by adding the f32 whose last bit is
        // that unit.
        const LEAST_NORMAL: f32 = f32::from_bits((127 - 14) << 23);
        let (sign, size) = ((value.to_bits() >> 16) & 0x8000, value.abs());
        let bits = size.to_bits();
        let normal = (bits.wrapping_add(0xfff + ((bits >> 13) & 1)) >> 13).wrapping_sub(112 << 10);
        let subnormal = (size + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
        let finite = if size < LEAST_NORMAL { subnormal } else { normal };
        let magnitude = if size >= 65520.0 { 0x7c00 } else { finite };
        let nan = 0x7e00 | ((bits >> 13) & 0x3ff);
        Self::from_bits((sign | if value.is_nan() { nan } else { magnitude }) as u16)
    }
}

/// Writes `from`, widened, to `to`.
#[inline(always)]
pub(super) fn widen_row<E: Widen>(from: &[E], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.widen();
    }
}

per_instruction_set! {
    /// [`widen_row`], for callers that are not made for an instruction set themselves.
    pub(super) fn widened<E: Widen>(from: &[E], to: &mut [f32]) {
        widen_row(from, to);
    }
}

/// Calls `work` with a row, widened.
pub(super) fn with_wide<E: Widen, T>(row: &[E], work: impl FnOnce(&[f32]) -> T) -> T {
    match E::as_wide(row) {
        Some(wide) => work(wide),
        None => with_scratch(row.len(), |wide| {
            widened(row, wide);
            work(wide)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_is_exact() {
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert!(half.widen() == half.to_f32() || half.is_nan() && half.widen().is_nan(), "{bits:#x}");
            assert_eq!(brain.widen().to_bits() & 0xff80_0000, brain.to_f32().to_bits() & 0xff80_0000);
            assert!(brain.widen() == brain.to_f32() || brain.is_nan() && brain.widen().is_nan(), "{bits:#x}");
        }
    }

    /// Every number of the types, and numbers between it and the next: below, at and above the middle.
    #[test]
    fn narrowing_rounds_to_even() {
        for bits in 0..=u16::MAX {
            let [half, next_half] = [bits, bits.wrapping_add(1)].map(|bits| f16::from_bits(bits).to_f32());
            let [brain, next_brain] = [bits, bits.wrapping_add(1)].map(|bits| bf16::from_bits(bits).to_f32());
            for (low, high) in [(half, next_half), (brain, next_brain), (65504.0, 65536.0)] {
                let middle = f32::midpoint(low, high);
                for x in [low, middle.next_down(), middle, middle.next_up()] {
                    if x.is_nan() {
                        assert!(<f16 as Float>::narrow(x).is_nan() && <bf16 as Float>::narrow(x).is_nan());
                    } else {
                        assert_eq!(<f16 as Float>::narrow(x).to_bits(), f16::from_f32(x).to_bits(), "{x}");
                        assert_eq!(<bf16 as Float>::narrow(x).to_bits(), bf16::from_f32(x).to_bits(), "{x}");
                    }
                }
            }
        }
    }
}
