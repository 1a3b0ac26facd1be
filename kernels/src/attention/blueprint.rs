//! The comptime settings of the attention kernels, chosen or forced.

use std::fmt;

use super::portable::Portable;
use super::tiled::{Mixed, Tiled};
use crate::device::{DeviceProfile, Result};
use crate::element::Element;
use crate::problem::{Alignment, Problem};
use crate::request::{KeyRange, RequestShape};

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

/// The choice of the blueprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The launcher chooses.
    #[default]
    Auto,
    /// The caller chooses; a blueprint that cannot run is refused, never replaced.
    Exactly(Blueprint),
}

impl Blueprint {
    /// Elements of one load: rows must be aligned to as many.
    pub fn loads(&self, kv_dtype: Element) -> Alignment {
        match self {
            Self::Portable(portable) => Alignment { qk: portable.qk_vector, vo: portable.vo_vector },
            Self::Tiled(_) | Self::Mixed(_) => {
                let elements = 16 / kv_dtype.size();
                Alignment { qk: elements, vo: elements }
            }
        }
    }

    /// The same with products of numbers: for the same work items, since tiles are as large.
    #[must_use]
    pub fn of_numbers(self) -> Self {
        let of_numbers = |tiled: Tiled| Tiled { fp8_mma: false, ..tiled };
        match self {
            Self::Portable(_) => self,
            Self::Tiled(tiled) => Self::Tiled(of_numbers(tiled)),
            Self::Mixed(mixed) => Self::Mixed(Mixed { prefill: of_numbers(mixed.prefill), ..mixed }),
        }
    }

    /// True if some products are of codes.
    pub(super) fn fp8_mma(&self) -> bool {
        match self {
            Self::Portable(_) => false,
            Self::Tiled(tiled) | Self::Mixed(Mixed { prefill: tiled, .. }) => tiled.fp8_mma,
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
        let size = problem.dtype.size().max(problem.kv_dtype.size());
        Self::Portable(Portable::auto(device, problem.dims, size, problem.align))
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
