//! The histogram of a row's radix keys, and the bracket of keys in which the threshold is.

use cubecl::prelude::*;

use super::memory::{
    AT_LEAST, AT_MOST, FROM_HIGH, FROM_LOW, HALF_COUNT, HALF_MASS, HIGH, IN_BUCKETS, LOW, Memory, OVER_COUNT,
    OVER_MASS,
};
use super::row::{IN_FLIGHT, Limits, Row, SelectConfig, countable, fits, load};
use crate::math::{sync_row, widen};
use crate::rows::row_group::{row_max, shuffle_scan, shuffle_sum};
use crate::sampling::fixed_point::{fixed_point, fixed_point_of_key};

/// Keys from `low` to below `top`, in buckets of `2^shift` that begin at `base`. The first bucket also has
/// the keys below it, the last one those above.
#[derive(CubeType, Clone, Copy)]
pub(super) struct KeyRange {
    pub low: u32,
    pub base: u32,
    pub top: u32,
    pub shift: u32,
}

#[cube]
impl KeyRange {
    /// The least key of a bucket.
    pub(super) fn edge(&self, bucket: usize, #[comptime] config: SelectConfig) -> u32 {
        let offset = u32::cast_from(bucket) << self.shift;
        let is_top = bucket == comptime!(config.buckets()) || offset >= self.top - self.base;
        let edge = select(is_top, self.top, self.base + offset);
        select(bucket == 0, self.low, edge)
    }

    /// From `low` to below `top` in as small buckets as can be.
    pub(super) fn within(low: u32, top: u32, #[comptime] config: SelectConfig) -> KeyRange {
        let mut shift = 0u32;
        while (top - low) >> shift >= comptime!(config.buckets() as u32) {
            shift += 1u32;
        }
        KeyRange { low, base: low, top, shift }
    }

    pub(super) fn set(&mut self, other: &KeyRange) {
        self.low = other.low;
        self.base = other.base;
        self.top = other.top;
        self.shift = other.shift;
    }

    pub(super) fn half(&self) -> u32 {
        self.low + (self.top - self.low) / 2u32
    }
}

/// A bracket of the threshold's key: values from `low` on exceed the limits, those from `high` on do not.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Bracket {
    pub low: u32,
    pub high: u32,
    /// Values between them, at most.
    pub count: u32,
}

#[cube]
impl Bracket {
    pub(super) fn set(&mut self, other: &Bracket) {
        self.low = other.low;
        self.high = other.high;
        self.count = other.count;
    }
}

/// Counts the values in the buckets of the range; returns the largest key if there is a floor.
///
/// After the first histogram of a row there are values beyond the range, and bounds of masses may stay as wide as they
/// are. So the masses beyond the range and of its upper half are summed.
#[cube]
pub(super) fn count_buckets<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    row: &Row,
    range: &KeyRange,
    memory: &mut Memory,
    #[comptime] is_first: bool,
    #[comptime] config: SelectConfig,
) -> u32 {
    let (units, buckets) = comptime!((config.row_group.units, config.buckets()));
    let unit = memory.unit;
    let histogram = memory.row * buckets;
    let mut bucket = unit;
    while bucket < buckets {
        memory.histogram[histogram + bucket].store(0u32);
        bucket += units;
    }
    sync_row(units);

    let mut largest = 0u32;
    let mut over_mass = 0u64;
    let mut half_mass = 0u64;
    let mut over_count = 0u32;
    let mut half_count = 0u32;
    let half = range.half();
    let mut first = unit;
    while first < row.vectors {
        let read = load(x, row, first, units);
        #[unroll]
        for f in 0..IN_FLIGHT {
            if first + comptime!(f * units) < row.vectors {
                let vector = widen::<F, N>(read[f]);
                #[unroll]
                for lane in 0..config.lanes {
                    let value = vector.extract(lane);
                    let (counts, key) = countable(value, config);
                    if comptime!(config.has_floor && is_first) {
                        largest = max(largest, select(counts, key, 0u32));
                    }
                    let is_over = counts && key >= range.top;
                    if comptime!(config.is_limited()) {
                        // All that counts is in the first range.
                        let is_in =
                            if comptime!(is_first) { counts } else { counts && key >= range.low && !is_over };
                        if is_in {
                            let bucket = (max(key, range.base) - range.base) >> range.shift;
                            let bucket = min(usize::cast_from(bucket), comptime!(buckets - 1));
                            memory.histogram[histogram + bucket].fetch_add(1u32);
                        }
                    }
                    if comptime!(!is_first && config.by_mass) {
                        let mass = fixed_point(value);
                        let is_half = counts && key >= half;
                        over_mass += select(is_over, mass, 0u64);
                        half_mass += select(is_half, mass, 0u64);
                        half_count += select(is_half, 1u32, 0u32);
                    }
                    if comptime!(!is_first) {
                        over_count += select(is_over, 1u32, 0u32);
                    }
                }
            }
        }
        first += comptime!(IN_FLIGHT * units);
    }
    if comptime!(!is_first) {
        memory.put(OVER_COUNT, shuffle_sum(u64::cast_from(over_count), config.row_group), config);
        if comptime!(config.by_mass) {
            memory.put(OVER_MASS, shuffle_sum(over_mass, config.row_group), config);
            memory.put(HALF_MASS, shuffle_sum(half_mass, config.row_group), config);
            memory.put(HALF_COUNT, shuffle_sum(u64::cast_from(half_count), config.row_group), config);
        }
    }
    sync_row(units);
    if comptime!(config.has_floor && is_first) {
        largest = row_max(largest, unit, config.row_group);
    }
    largest
}

/// Bounds of the probability of a bucket's values. The estimate takes the middle value for each.
#[cube]
fn bounds(
    range: &KeyRange,
    bucket: usize,
    #[comptime] is_guess: bool,
    #[comptime] config: SelectConfig,
) -> (u64, u64) {
    let least = range.edge(bucket, config);
    let most = range.edge(bucket + 1, config) - 1u32;
    if comptime!(is_guess) {
        let mass = fixed_point_of_key(least + (most - least) / 2u32);
        (mass, mass)
    } else {
        (fixed_point_of_key(least), fixed_point_of_key(most))
    }
}

/// A guess is right by a thousandth, in the mean of many.
#[cube]
fn margin(mass: u64, #[comptime] is_guess: bool) -> u64 {
    if comptime!(is_guess) { mass >> 10u64 } else { 0u64.runtime() }
}

/// True if `above` surely is less than the limits, its mass being at most `most`.
#[cube]
fn surely_fits(
    count: u64,
    most: u64,
    limits: &Limits,
    #[comptime] is_guess: bool,
    #[comptime] config: SelectConfig,
) -> bool {
    fits(count, most + margin(most, is_guess), limits, config)
}

/// True if `above` may be less than the limits, its mass being at least `least`.
#[cube]
fn may_fit(
    count: u64,
    least: u64,
    limits: &Limits,
    #[comptime] is_guess: bool,
    #[comptime] config: SelectConfig,
) -> bool {
    fits(count, least - margin(least, is_guess), limits, config)
}

/// The bracket of the threshold, by the first histogram or a later one: a sure one, or by the first a guess. Each unit
/// adds up its buckets, and looks for the ends among them.
#[cube]
pub(super) fn find_bracket(
    range: &KeyRange,
    limits: &Limits,
    memory: &mut Memory,
    is_again: bool,
    #[comptime] is_guess: bool,
    #[comptime] config: SelectConfig,
) -> Bracket {
    let (units, buckets, row_group) = comptime!((config.row_group.units, config.buckets(), config.row_group));
    let each = comptime!(buckets.div_ceil(units));
    let unit = memory.unit;
    let first = min(unit * each, buckets.runtime());
    let end = min(first + each, buckets.runtime());
    let histogram = memory.row * buckets;

    let mut count = 0u64;
    let mut at_least = 0u64;
    let mut at_most = 0u64;
    for bucket in first..end {
        let n = u64::cast_from(memory.histogram[histogram + bucket].load());
        // Most buckets are empty, and those of a plane are neighbours.
        if n > 0u64 {
            count += n;
            if comptime!(config.by_mass) {
                let (least, most) = bounds(range, bucket, is_guess, config);
                at_least += n * least;
                at_most += n * most;
            }
        }
    }
    // All units have read the previous sums.
    sync_row(units);
    let groups = comptime!(row_group.shuffle_groups());
    let next = unit / comptime!(row_group.shuffle_width) + 1;
    let (of_group, later) = shuffle_scan(count, unit, row_group);
    let mut count_above = later;
    memory.put(IN_BUCKETS, of_group, config);
    let (of_group, later) = shuffle_scan(at_least, unit, row_group);
    let mut least_above = later;
    memory.put(AT_LEAST, of_group, config);
    let mut most_above = later;
    if comptime!(!is_guess) {
        let (of_group, later) = shuffle_scan(at_most, unit, row_group);
        most_above = later;
        memory.put(AT_MOST, of_group, config);
    }
    sync_row(units);
    count_above += memory.sum(IN_BUCKETS, next, groups, config);
    let least_later = memory.sum(AT_LEAST, next, groups, config);
    least_above += least_later;
    most_above += if comptime!(is_guess) { least_later } else { memory.sum(AT_MOST, next, groups, config) };
    let mut is_half_high = false.runtime();
    if comptime!(!is_guess) {
        count_above += select(is_again, memory.total(OVER_COUNT, config), 0u64);
        if comptime!(config.by_mass) {
            let over_mass = select(is_again, memory.total(OVER_MASS, config), 0u64);
            least_above += over_mass;
            most_above += over_mass;
            let half_count = memory.total(HALF_COUNT, config);
            is_half_high = fits(half_count, memory.total(HALF_MASS, config), limits, config);
        }
    }

    let mut is_high = surely_fits(count_above, most_above, limits, is_guess, config);
    let mut may_be = may_fit(count_above, least_above, limits, is_guess, config);
    let is_high_at_end = surely_fits(count_above + count, most_above + at_most, limits, is_guess, config);
    let may_be_at_end = may_fit(count_above + count, least_above + at_least, limits, is_guess, config);
    if is_high != is_high_at_end || may_be != may_be_at_end {
        for i in 0..end - first {
            let bucket = end - 1 - i;
            let n = u64::cast_from(memory.histogram[histogram + bucket].load());
            if n > 0u64 {
                let count_here = count_above + n;
                if comptime!(config.by_mass) {
                    let (least, most) = bounds(range, bucket, is_guess, config);
                    least_above += n * least;
                    most_above += n * most;
                }
                let is_high_here = surely_fits(count_here, most_above, limits, is_guess, config);
                let may_be_here = may_fit(count_here, least_above, limits, is_guess, config);
                if is_high && !is_high_here {
                    memory.set_found(HIGH, range.edge(bucket + 1, config));
                    memory.set_found(FROM_HIGH, u32::cast_from(count_above));
                }
                if may_be && !may_be_here {
                    memory.set_found(LOW, range.edge(bucket, config));
                    memory.set_found(FROM_LOW, u32::cast_from(count_here));
                }
                count_above = count_here;
                is_high = is_high_here;
                may_be = may_be_here;
            }
        }
    } else {
        count_above += count;
    }
    // All values pass, or may pass.
    if unit == 0 {
        if is_high {
            memory.set_found(HIGH, range.low);
            memory.set_found(FROM_HIGH, u32::cast_from(count_above));
        }
        if may_be {
            memory.set_found(LOW, range.low - 1u32);
            memory.set_found(FROM_LOW, u32::cast_from(count_above));
        }
    }
    sync_row(units);
    let mut low = memory.found(LOW);
    let mut high = memory.found(HIGH);
    let count = memory.found(FROM_LOW) - memory.found(FROM_HIGH);
    if comptime!(!is_guess && config.by_mass) {
        let half = range.half();
        low = select(is_again && !is_half_high, max(low, half), low);
        high = select(is_again && is_half_high, min(high, half), high);
    }
    Bracket { low, high, count }
}
