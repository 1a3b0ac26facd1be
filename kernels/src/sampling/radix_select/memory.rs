//! The shared memory of a radix select: histograms, candidates, sums of shuffle groups, and the state of a row.

use cubecl::prelude::*;

use super::row::{SEGMENTS, SelectConfig};
use crate::rows::row_group::shuffle_sum;

/// Sums of a row that are kept at a time. With a histogram: the counts in buckets, their least and their
/// greatest mass, and the mass and count beyond the range and of its upper half.
const SLOTS: usize = SEGMENTS + 3;
pub(super) const IN_BUCKETS: usize = 0;
pub(super) const AT_LEAST: usize = 1;
pub(super) const AT_MOST: usize = 2;
pub(super) const OVER_MASS: usize = 3;
pub(super) const OVER_COUNT: usize = 4;
pub(super) const HALF_MASS: usize = 5;
pub(super) const HALF_COUNT: usize = 6;
/// While values are collected, and later: the masses of segments, how many values pass, how many are NaN.
pub(super) const COUNT: usize = SEGMENTS;
pub(super) const NANS: usize = SEGMENTS + 1;
/// The mass of the candidates.
pub(super) const MASS_WITHIN: usize = SEGMENTS + 2;

/// The state of a row: the ends of the bracket, how many values there are from each on, and how many were collected.
const FOUND: usize = 5;
pub(super) const LOW: usize = 0;
pub(super) const HIGH: usize = 1;
pub(super) const FROM_LOW: usize = 2;
pub(super) const FROM_HIGH: usize = 3;
pub(crate) const COLLECTED: usize = 4;

/// The shared memory of a cube, and where in it a row has its part: it is one of several, or the only one.
#[derive(CubeType)]
pub(crate) struct Memory {
    pub histogram: Shared<[Atomic<u32>]>,
    /// The distance of each key from the bracket's lower end, and its segment.
    pub candidates: Shared<[u32]>,
    /// `[SLOTS, groups]` for each row.
    sums: Shared<[u64]>,
    /// `[FOUND]` for each row.
    found: Shared<[Atomic<u32>]>,
    pub row: usize,
    pub unit: usize,
}

#[cube]
impl Memory {
    pub(crate) fn new(row: usize, unit: usize, #[comptime] config: SelectConfig) -> Memory {
        let row_group = comptime!(config.row_group);
        Memory {
            histogram: Shared::new_slice(comptime!(row_group.rows * config.buckets())),
            candidates: Shared::new_slice(comptime!(row_group.rows * config.candidates())),
            sums: Shared::new_slice(comptime!(row_group.rows * SLOTS * row_group.shuffle_groups())),
            found: Shared::new_slice(comptime!(row_group.rows * FOUND)),
            row,
            unit,
        }
    }

    /// Keeps a sum of this unit's group.
    pub(crate) fn put(&mut self, slot: usize, of_group: u64, #[comptime] config: SelectConfig) {
        let row_group = comptime!(config.row_group);
        let of_unit = self.unit % comptime!(row_group.shuffle_width);
        if of_unit == 0 {
            let group = self.unit / comptime!(row_group.shuffle_width);
            self.sums[(self.row * SLOTS + slot) * comptime!(row_group.shuffle_groups()) + group] = of_group;
        }
    }

    /// Adds to a sum of this unit's group.
    pub(super) fn add(&mut self, slot: usize, of_group: u64, #[comptime] config: SelectConfig) {
        let row_group = comptime!(config.row_group);
        let of_unit = self.unit % comptime!(row_group.shuffle_width);
        if of_unit == 0 {
            let group = self.unit / comptime!(row_group.shuffle_width);
            self.sums[(self.row * SLOTS + slot) * comptime!(row_group.shuffle_groups()) + group] += of_group;
        }
    }

    /// The sum of the values of the groups from `first` until `end`, in each unit.
    pub(crate) fn sum(&self, slot: usize, first: usize, end: usize, #[comptime] config: SelectConfig) -> u64 {
        let row_group = comptime!(config.row_group);
        let mut part = 0u64;
        let mut group = self.unit % comptime!(row_group.shuffle_width);
        while group < comptime!(row_group.shuffle_groups()) {
            let of_group =
                self.sums[(self.row * SLOTS + slot) * comptime!(row_group.shuffle_groups()) + group];
            part += select(group >= first && group < end, of_group, 0u64);
            group += comptime!(row_group.shuffle_width);
        }
        shuffle_sum(part, row_group)
    }

    /// The sum of the values of all groups.
    pub(crate) fn total(&self, slot: usize, #[comptime] config: SelectConfig) -> u64 {
        self.sum(slot, 0usize, comptime!(config.row_group.shuffle_groups()), config)
    }

    pub(super) fn found(&self, which: usize) -> u32 {
        self.found[self.row * FOUND + which].load()
    }

    /// A place for one more that is collected.
    pub(crate) fn collected(&self) -> u32 {
        self.found[self.row * FOUND + COLLECTED].fetch_add(1u32)
    }

    /// Lowers the result `which` to `value`.
    pub(super) fn at_most(&self, which: usize, value: u32) {
        self.found[self.row * FOUND + which].fetch_min(value);
    }

    /// Raises it.
    pub(super) fn at_least(&self, which: usize, value: u32) {
        self.found[self.row * FOUND + which].fetch_max(value);
    }

    pub(crate) fn set_found(&self, which: usize, value: u32) {
        self.found[self.row * FOUND + which].store(value);
    }
}
