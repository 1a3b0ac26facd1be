//! The row that a radix select searches: its values, its limits, and the settings of the search.

use cubecl::prelude::*;

use super::super::fixed_point::{ZERO_KEY, radix_key};
use crate::device::DeviceProfile;
use crate::rows::row_group::RowGroup;

/// The most values of a row that can be asked for.
pub const MAX_TOP_K: usize = 2048;
/// Parts of a row whose masses are known, so that a token is looked for in one of them and not in all.
pub(crate) const SEGMENTS: usize = 8;
/// Loads that a unit has under way.
pub(crate) const IN_FLIGHT: usize = 4;

/// The limits that a kernel has, and the sizes of its tables. Comptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SelectConfig {
    pub row_group: RowGroup,
    /// Elements of a vector.
    pub lanes: usize,
    /// Limits the count above.
    pub by_count: bool,
    /// Limits the mass above.
    pub by_mass: bool,
    /// Refuses values below a fraction of the largest one.
    pub has_floor: bool,
    /// Values are probabilities, of which positive ones count, and else logits.
    pub of_probs: bool,
    /// Parts of a row, each with a mass of the values that pass.
    pub segments: usize,
    /// Buckets of a histogram, and room for candidates: a power of 2.
    pub size: usize,
}

impl SelectConfig {
    /// No limits, in rows of `vocab` values.
    pub(crate) fn new(device: &DeviceProfile, row_group: RowGroup, lanes: usize, vocab: usize) -> Self {
        // 32 KiB at most, beside 4 KiB of sums. A bucket costs as much as several values.
        let most = if device.shared_memory >= 40 << 10 { 4096 } else { MAX_TOP_K };
        let size = vocab.div_ceil(8).next_power_of_two().clamp(64, most);
        Self {
            row_group,
            lanes,
            by_count: false,
            by_mass: false,
            has_floor: false,
            of_probs: true,
            segments: 0,
            size,
        }
    }

    /// The units of each of `rows` rows of so many vectors. Serial parts gain nothing from more units, so
    /// they are no more than keep the device busy. With fewer units, more rows would be in flight than the
    /// caches hold.
    pub(crate) fn units(device: &DeviceProfile, rows: usize, vectors: usize) -> u32 {
        let of_device = device.cores.unwrap_or(1) * 512;
        let busy = of_device.div_ceil(rows).next_power_of_two().min(vectors.div_ceil(IN_FLIGHT));
        busy.max(vectors.div_ceil(4 * IN_FLIGHT)).min(1024) as u32
    }

    pub(super) fn buckets(self) -> usize {
        if self.is_limited() { self.size } else { 1 }
    }

    pub(super) fn candidates(self) -> usize {
        self.buckets()
    }

    /// True if there is a limit.
    pub(super) fn is_limited(self) -> bool {
        self.by_count || self.by_mass
    }

    /// The least key that may count.
    pub(crate) fn least(self) -> u32 {
        if self.of_probs { ZERO_KEY + 1 } else { 1 }
    }

    /// Begin of the first histogram's buckets, and the bits of a key in a bucket. They cover probabilities
    /// from 2^-31 to 2, or all logits.
    pub(super) fn first_buckets(self) -> (u32, u32) {
        let (base, bits) = if self.of_probs { (0xb000_0000, 28) } else { (0, 32) };
        (base, bits - self.size.ilog2())
    }
}

/// The vectors of a row.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Row {
    /// The first.
    pub start: usize,
    /// The number of vectors.
    pub vectors: usize,
}

#[cube]
impl Row {
    pub(crate) fn new(start: usize, vectors: usize) -> Row {
        Row { start, vectors }
    }

    /// The number of vectors of a segment.
    pub(crate) fn segment(&self, #[comptime] config: SelectConfig) -> usize {
        self.vectors.div_ceil(comptime!(config.segments.max(1)))
    }
}

/// The bounds of `above(x)` for `x` to pass: it must be less.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Limits {
    pub count: u64,
    pub mass: u64,
    /// Part of the largest value.
    pub floor: f32,
}

#[cube]
impl Limits {
    pub(crate) fn none() -> Limits {
        Limits { count: u64::MAX.runtime(), mass: u64::MAX.runtime(), floor: 0.0f32.runtime() }
    }
}

/// True if a value may pass, and its key if it may.
#[cube]
pub(super) fn countable(x: f32, #[comptime] config: SelectConfig) -> (bool, u32) {
    if comptime!(config.of_probs) {
        (x > 0.0f32, u32::reinterpret(x) | ZERO_KEY)
    } else {
        (!x.is_nan(), radix_key(x))
    }
}

/// Every `stride`th vector of a row from `first` on, `IN_FLIGHT` of them: for those that are not there, its last.
#[cube]
pub(crate) fn load<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    row: &Row,
    first: usize,
    #[comptime] stride: usize,
) -> Array<Vector<F, N>> {
    let mut read = Array::<Vector<F, N>>::new(IN_FLIGHT);
    #[unroll]
    for f in 0..IN_FLIGHT {
        read[f] = x[row.start + min(first + comptime!(f * stride), row.vectors - 1)];
    }
    read
}

/// True if a count and a mass above are less than the limits.
#[cube]
pub(super) fn fits(count: u64, mass: u64, limits: &Limits, #[comptime] config: SelectConfig) -> bool {
    let is_few = if comptime!(config.by_count) { count < limits.count } else { true.runtime() };
    let is_light = if comptime!(config.by_mass) { mass < limits.mass } else { true.runtime() };
    is_few && is_light
}
