//! The instructions by name, as a blueprint holds them.

use cubecl::ir::{ElemType, FloatKind};

use crate::device::{Instruction, Refusal, Result};

const F32: ElemType = ElemType::Float(FloatKind::F32);
const F16: ElemType = ElemType::Float(FloatKind::F16);
const BF16: ElemType = ElemType::Float(FloatKind::BF16);
/// f32 that is multiplied as TF32.
pub const TF32: ElemType = ElemType::Float(FloatKind::TF32);
/// Codes of 8 bits.
pub(crate) const E4M3: ElemType = ElemType::Float(FloatKind::E4M3);

/// The instruction that multiplies tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MmaKind {
    /// `mma.sync` m16n8k16, k8 for TF32.
    MmaSync,
    /// `wgmma` m64nNk16, k8 for TF32 and k32 for e4m3, by warpgroups of four planes, while another one copies.
    Wgmma,
    /// MFMA 16x16x16, 16x16x32 for e4m3.
    Mfma16,
    /// MFMA 32x32x8, 32x32x16 for e4m3.
    Mfma32,
    /// Plain multiplications, on a CPU.
    Scalar1,
    /// Plain multiplications, 32 lanes.
    Scalar32,
    /// Plain multiplications, 64 lanes.
    Scalar64,
}

impl MmaKind {
    /// The instruction that multiplies tiles of a type; none for plain multiplications.
    pub(crate) fn instruction(self, kernel: &'static str, dtype: ElemType) -> Result<Option<Instruction>> {
        let instruction = match (self, dtype) {
            (Self::Scalar1 | Self::Scalar32 | Self::Scalar64, F32 | F16 | BF16) => None,
            (Self::MmaSync, F16 | BF16 | TF32) => Some(Instruction::MmaSync),
            (Self::Wgmma, F16 | BF16 | TF32 | E4M3) => Some(Instruction::Wgmma),
            (Self::Mfma16 | Self::Mfma32, F16) => Some(Instruction::MfmaF16),
            (Self::Mfma16 | Self::Mfma32, BF16) => Some(Instruction::MfmaBf16),
            (Self::Mfma16 | Self::Mfma32, E4M3) => Some(Instruction::MfmaFp8),
            _ => {
                let expected = format!("a type that {self:?} multiplies");
                return Err(Refusal::blueprint(kernel, "dtype", dtype, expected));
            }
        };
        Ok(instruction)
    }
}

/// Refuses types that are no numbers, like codes: those have kernels of their own.
pub(crate) fn check_numbers(kernel: &'static str, dtype: ElemType) -> Result<()> {
    match dtype {
        F32 | F16 | BF16 | TF32 => Ok(()),
        _ => Err(Refusal::blueprint(kernel, "dtype", dtype, "f32, f16 or bf16")),
    }
}

/// A call with the type of a unit: `on_unit!(unit, |U| call::<U>())`. A warp's part of a warpgroup's tiles is that of
/// `mma.sync`.
macro_rules! on_unit {
    ($unit:expr, |$type:ident| $call:expr) => {
        match $unit {
            $crate::mma::MmaKind::MmaSync | $crate::mma::MmaKind::Wgmma => {
                type $type = $crate::mma::MmaSync;
                $call
            }
            $crate::mma::MmaKind::Mfma16 => {
                type $type = $crate::mma::Mfma16;
                $call
            }
            $crate::mma::MmaKind::Mfma32 => {
                type $type = $crate::mma::Mfma32;
                $call
            }
            $crate::mma::MmaKind::Scalar1 => {
                type $type = $crate::mma::Scalar1;
                $call
            }
            $crate::mma::MmaKind::Scalar32 => {
                type $type = $crate::mma::Scalar32;
                $call
            }
            $crate::mma::MmaKind::Scalar64 => {
                type $type = $crate::mma::Scalar64;
                $call
            }
        }
    };
}
pub(crate) use on_unit;
