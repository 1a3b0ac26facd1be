//! The comptime settings of the attention kernels, chosen or forced.

use std::fmt;

use cubecl::ir::ElemType;
use cubecl::prelude::TensorBinding;

use super::launch::KeyRange;
use super::portable::Portable;
use super::request::RequestShape;
use super::tiled::Tiled;
use crate::tensor::{alignment, offset_alignment};
use crate::{DeviceProfile, Result};

/// Sizes of a head: of queries and keys, and of values and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeadDims {
    /// Elements of a query and of a key.
    pub qk: usize,
    /// Elements of a value and of an output.
    pub vo: usize,
}

/// Largest vectors of one load, in elements: the strides of queries and keys, and of values, must be
/// multiples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Elements of one load of queries and keys.
    pub qk: usize,
    /// Elements of one load of values.
    pub vo: usize,
}

/// The kernel that runs, and its comptime settings. Each distinct blueprint is a kernel to compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blueprint {
    /// Plain arithmetic, on every device.
    Portable(Portable),
    /// Tiles of one shape.
    Tiled(Tiled),
    /// Tiles of two shapes.
    Mixed(Mixed),
}

/// Tiles of two shapes in one launch: decode tiles read while prefill tiles multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mixed {
    /// For requests with more rows than `decode` has.
    pub prefill: Tiled,
    /// For requests whose rows fit into one tile of `decode`.
    pub decode: Tiled,
}

/// The choice of the blueprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The launcher chooses.
    #[default]
    Auto,
    /// The caller chooses; a blueprint that cannot run is refused, never replaced.
    Exactly(Blueprint),
}

/// The inputs of the choice of a blueprint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Problem {
    /// Sizes of a head.
    pub dims: HeadDims,
    /// Type of queries and output.
    pub dtype: ElemType,
    /// Type of keys and values.
    pub kv_dtype: ElemType,
    /// Query heads.
    pub q_heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Factor on the logits.
    pub scale: f32,
    /// Largest vectors of one load.
    pub align: Alignment,
}

impl Problem {
    /// Query heads of a key head.
    pub(crate) fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }
}

impl Alignment {
    /// Elements to which every row of a tensor is aligned.
    pub fn of_rows(tensor: &TensorBinding, dtype: ElemType) -> usize {
        alignment(tensor).min(offset_alignment(tensor, dtype.size()))
    }
}

impl Blueprint {
    /// Elements of one load: rows must be aligned to as many.
    pub fn loads(&self, kv_dtype: ElemType) -> Alignment {
        match self {
            Self::Portable(portable) => Alignment { qk: portable.qk_vector, vo: portable.vo_vector },
            Self::Tiled(_) | Self::Mixed(_) => {
                let elements = 16 / kv_dtype.size();
                Alignment { qk: elements, vo: elements }
            }
        }
    }

    /// The blueprint for a batch on a device: tiled where that can run, else portable. With `fixed` it does
    /// not depend on the batch.
    pub(super) fn auto(
        device: &DeviceProfile,
        problem: &Problem,
        variant: &dyn KeyRange,
        requests: &[RequestShape],
        fixed: bool,
    ) -> Self {
        Tiled::auto(device, problem, variant, requests, fixed)
            .unwrap_or_else(|_| Self::portable(device, problem))
    }

    /// The portable blueprint for a device.
    pub(super) fn portable(device: &DeviceProfile, problem: &Problem) -> Self {
        Self::Portable(Portable::auto(device, problem.dims, problem.kv_dtype.size(), problem.align))
    }

    /// Checks that the blueprint can run on the device.
    ///
    /// # Errors
    ///
    /// If a setting is beyond the device or does not fit the problem.
    pub fn check(&self, device: &DeviceProfile, problem: &Problem) -> Result<()> {
        match self {
            Self::Portable(portable) => portable.check(device, problem.dims, problem.align),
            Self::Tiled(tiled) => tiled.check(device, problem),
            Self::Mixed(mixed) => mixed.check(device, problem),
        }
    }
}

impl fmt::Display for Blueprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Portable(portable) => portable.fmt(f),
            Self::Tiled(tiled) => tiled.fmt(f),
            Self::Mixed(Mixed { prefill, decode }) => write!(f, "{prefill}; with {decode}"),
        }
    }
}
