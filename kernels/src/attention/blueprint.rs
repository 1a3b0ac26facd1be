//! The comptime settings of the attention kernels, chosen or forced.

use cubecl::ir::ElemType;

use super::portable::Portable;
use super::tiled::Tiled;
use crate::{DeviceProfile, Result};

/// Sizes of a head of queries and keys, and of values and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeadDims {
    /// Elements of a query and of a key.
    pub qk: usize,
    /// Elements of a value and of an output.
    pub vo: usize,
}

/// The most elements that one load may take, of queries and keys and of values: the strides must be multiples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Of queries and keys.
    pub qk: usize,
    /// Of values.
    pub vo: usize,
}

/// Which kernel runs, and how. Each distinct blueprint is a kernel to compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blueprint {
    /// Plain arithmetic, on every device.
    Portable(Portable),
    /// Tiles on matrix cores.
    Tiled(Tiled),
}

/// Who chooses the blueprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The launcher.
    #[default]
    Auto,
    /// The caller; a blueprint that cannot run is refused, never replaced.
    Exactly(Blueprint),
}

/// What the choice of a blueprint depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Problem {
    /// Sizes of a head.
    pub dims: HeadDims,
    /// Type of queries, keys, values and output.
    pub dtype: ElemType,
    /// Query heads.
    pub q_heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Query tokens of all requests.
    pub tokens: usize,
    /// Query tokens of the longest request.
    pub max_qo_len: usize,
    /// Requests.
    pub requests: usize,
    /// Keys of all requests; of a paged batch those that its pages hold.
    pub keys: usize,
    /// Factor on `q·k`.
    pub scale: f32,
    /// The most elements that one load may take.
    pub align: Alignment,
}

impl Problem {
    /// Query heads of a key head.
    pub(crate) fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// Rows of the longest request, for a key head.
    pub(crate) fn most_rows(&self) -> usize {
        self.max_qo_len * self.group()
    }
}

impl Blueprint {
    /// The blueprint for a problem on a device: tiles where they can run, else the portable kernel.
    pub fn auto(device: &DeviceProfile, problem: &Problem) -> Self {
        match Tiled::auto(device, problem) {
            Ok(tiled) => Self::Tiled(tiled),
            Err(_) => {
                Self::Portable(Portable::auto(device, problem.dims, problem.dtype.size(), problem.align))
            }
        }
    }

    /// Whether the blueprint can run, or why not.
    ///
    /// # Errors
    ///
    /// If a setting is beyond the device or does not fit the problem.
    pub fn check(&self, device: &DeviceProfile, problem: &Problem) -> Result<()> {
        match self {
            Self::Portable(portable) => portable.check(device, problem.dims, problem.align),
            Self::Tiled(tiled) => tiled.check(device, problem),
        }
    }

    /// What runs, and why nothing faster does.
    pub fn explain(&self, device: &DeviceProfile, problem: &Problem) -> String {
        match (self, Tiled::auto(device, problem)) {
            (Self::Tiled(tiled), _) => tiled.to_string(),
            (Self::Portable(portable), Ok(_)) => format!("{portable}, forced"),
            (Self::Portable(portable), Err(refusal)) => format!("{portable}; {refusal}"),
        }
    }
}
