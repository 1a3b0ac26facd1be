//! The least number of a row that counts: the smallest above which there are fewer than `most` numbers, and less than
//! `limit` mass.
//!
//! Numbers are compared as integers in the same order, their keys. A row goes through
//!
//! | pass | finds |
//! |---|---|
//! | tally | how many numbers there are in each bucket of keys, and so bounds of the masses above each |
//! | collect | the mass above the buckets in which the least one must be, and what is in these: the candidates |
//!
//! and the candidates, few enough for shared memory, through a bisection. Only if they are not are they tallied again, in
//! buckets as much smaller as they are fewer. Sums are of integers: what comes out does not depend on their order.

use cubecl::prelude::*;

use super::mass::{ZERO, key_of, mass, mass_of_key};
use super::top_k::MOST_TOP_K;
use crate::DeviceProfile;
use crate::math::widen;
use crate::team::{Team, group_max, group_sum, group_sums, meet};

/// Parts of a row whose masses are known, so that a token is looked for in one of them and not in all.
pub(crate) const SEGMENTS: usize = 8;
/// Loads that a unit has under way.
pub(crate) const IN_FLIGHT: usize = 4;

/// Sums of a row that are kept at a time. While numbers are tallied: the counts in buckets, the least and the most that
/// these may weigh; the mass and count beyond the range, and of its upper half.
const SLOTS: usize = SEGMENTS + 6;
const IN_BUCKETS: usize = 0;
const AT_LEAST: usize = 1;
const AT_MOST: usize = 2;
const OVER_MASS: usize = 3;
const OVER_COUNT: usize = 4;
const HALF_MASS: usize = 5;
const HALF_COUNT: usize = 6;
const LARGEST: usize = 7;
/// While they are collected, and later: the masses of segments, how many numbers count, how many are NaN.
const COUNT: usize = SEGMENTS;
const NANS: usize = SEGMENTS + 1;
/// Mass and count above a key that is tried, twice.
const TRIED: usize = SEGMENTS + 2;

/// What a row keeps apart: the ends of the bracket, how many numbers there are from each on, and how many were collected.
const FOUND: usize = 5;
const LOW: usize = 0;
const HIGH: usize = 1;
const FROM_LOW: usize = 2;
const FROM_HIGH: usize = 3;
pub(crate) const COLLECTED: usize = 4;
/// Bits that a candidate's key takes, as a difference; the others are its segment.
const KEY_BITS: u32 = 29;

/// What is searched for, known when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Search {
    pub team: Team,
    /// Elements of a vector.
    pub lanes: usize,
    /// What is less than the numbers above: their count, their mass.
    pub by_count: bool,
    pub by_mass: bool,
    /// Whether nothing counts that is less than a part of the largest number.
    pub has_floor: bool,
    /// Whether numbers are probabilities, of which positive ones count, or logits.
    pub of_probs: bool,
    /// Whether the mass of what counts is wanted.
    pub sums: bool,
    /// Buckets of a tally, and candidates there is room for: a power of 2.
    pub size: usize,
}

impl Search {
    /// A search without limits, in rows of `vocab` numbers.
    pub(crate) fn new(device: &DeviceProfile, team: Team, lanes: usize, vocab: usize) -> Self {
        // 32 KiB at most, beside 4 KiB of sums.
        let most = if device.shared_memory >= 40 << 10 { 4096 } else { MOST_TOP_K };
        let size = vocab.next_power_of_two().clamp(64, most);
        Self {
            team,
            lanes,
            by_count: false,
            by_mass: false,
            has_floor: false,
            of_probs: true,
            sums: true,
            size,
        }
    }

    fn buckets(self) -> usize {
        if self.is_limited() { self.size } else { 1 }
    }

    fn candidates(self) -> usize {
        self.buckets()
    }

    /// Whether there is a limit.
    fn is_limited(self) -> bool {
        self.by_count || self.by_mass
    }

    /// The least key that may count.
    pub(crate) fn least(self) -> u32 {
        if self.of_probs { ZERO + 1 } else { 1 }
    }

    /// Where the buckets of the first tally begin, and how many bits of a key a bucket covers: probabilities from 2^-31 to
    /// 2, or all logits.
    fn first_buckets(self) -> (u32, u32) {
        let (base, bits) = if self.of_probs { (0xb000_0000, 28) } else { (0, 32) };
        (base, bits - self.size.ilog2())
    }
}

/// Where a row has its vectors.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Row {
    /// The first.
    pub start: usize,
    /// How many it has.
    pub vectors: usize,
    /// How many a segment has.
    pub segment: usize,
}

#[cube]
impl Row {
    pub(crate) fn new(start: usize, vectors: usize) -> Row {
        Row { start, vectors, segment: vectors.div_ceil(SEGMENTS) }
    }
}

/// What must be less above a number for it to count.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Limits {
    pub most: u64,
    pub limit: u64,
    /// Part of the largest number.
    pub floor: f32,
}

#[cube]
impl Limits {
    pub(crate) fn none() -> Limits {
        Limits { most: u64::MAX.runtime(), limit: u64::MAX.runtime(), floor: 0.0f32.runtime() }
    }
}

/// What counts of a row.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Kept {
    /// Whose key is at least this.
    pub least: u32,
    /// Whether there is a NaN.
    pub has_nan: bool,
}

/// The shared memory of a cube, and where in it a row has its part: it is one of several, or the only one.
#[derive(CubeType)]
pub(crate) struct Memory {
    pub tallies: Shared<[Atomic<u32>]>,
    /// What a key exceeds the bracket's lower end by, and its segment.
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
    pub(crate) fn new(row: usize, unit: usize, #[comptime] search: Search) -> Memory {
        let team = comptime!(search.team);
        Memory {
            tallies: Shared::new_slice(comptime!(team.rows * search.buckets())),
            candidates: Shared::new_slice(comptime!(team.rows * search.candidates())),
            sums: Shared::new_slice(comptime!(team.rows * SLOTS * team.groups())),
            found: Shared::new_slice(comptime!(team.rows * FOUND)),
            row,
            unit,
        }
    }

    /// Keeps a sum of this unit's group.
    pub(crate) fn put(&mut self, slot: usize, of_group: u64, #[comptime] search: Search) {
        let team = comptime!(search.team);
        if self.unit % comptime!(team.group) == 0 {
            let group = self.unit / comptime!(team.group);
            self.sums[(self.row * SLOTS + slot) * comptime!(team.groups()) + group] = of_group;
        }
    }

    /// Adds to a sum of this unit's group.
    fn add(&mut self, slot: usize, of_group: u64, #[comptime] search: Search) {
        let team = comptime!(search.team);
        if self.unit % comptime!(team.group) == 0 {
            let group = self.unit / comptime!(team.group);
            self.sums[(self.row * SLOTS + slot) * comptime!(team.groups()) + group] += of_group;
        }
    }

    /// Adds up what the groups from `first` until `end` have put, in each unit.
    pub(crate) fn sum(&self, slot: usize, first: usize, end: usize, #[comptime] search: Search) -> u64 {
        let team = comptime!(search.team);
        let mut part = 0u64;
        let mut group = self.unit % comptime!(team.group);
        while group < comptime!(team.groups()) {
            let of_group = self.sums[(self.row * SLOTS + slot) * comptime!(team.groups()) + group];
            part += select(group >= first && group < end, of_group, 0u64);
            group += comptime!(team.group);
        }
        group_sum(part, team)
    }

    /// Adds up what all groups have put.
    pub(crate) fn total(&self, slot: usize, #[comptime] search: Search) -> u64 {
        self.sum(slot, 0usize, comptime!(search.team.groups()), search)
    }

    fn found(&self, which: usize) -> u32 {
        self.found[self.row * FOUND + which].load()
    }

    /// A place for one more that is collected.
    pub(crate) fn collected(&self) -> u32 {
        self.found[self.row * FOUND + COLLECTED].fetch_add(1u32)
    }

    pub(crate) fn find(&self, which: usize, value: u32) {
        self.found[self.row * FOUND + which].store(value);
    }
}

/// The key of a number that may count, or 0.
#[cube]
pub(crate) fn countable(x: f32, #[comptime] search: Search) -> u32 {
    if comptime!(search.of_probs) { select(x > 0.0f32, u32::reinterpret(x) | ZERO, 0u32) } else { key_of(x) }
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

/// Keys from `low` to below `top`, in buckets of `2^shift` that begin at `base`: the first has also what is below it, the
/// last what is above.
#[derive(CubeType, Clone, Copy)]
struct Range {
    low: u32,
    base: u32,
    top: u32,
    shift: u32,
}

#[cube]
impl Range {
    /// The least key of a bucket.
    fn edge(&self, bucket: usize, #[comptime] search: Search) -> u32 {
        let offset = u32::cast_from(bucket) << self.shift;
        let is_top = bucket == comptime!(search.buckets()) || offset >= self.top - self.base;
        let edge = select(is_top, self.top, self.base + offset);
        select(bucket == 0, self.low, edge)
    }

    /// From `low` to below `top` in as small buckets as can be.
    fn within(low: u32, top: u32, #[comptime] search: Search) -> Range {
        let mut shift = 0u32;
        while (top - low) >> shift >= comptime!(search.buckets() as u32) {
            shift += 1u32;
        }
        Range { low, base: low, top, shift }
    }

    fn half(&self) -> u32 {
        self.low + (self.top - self.low) / 2u32
    }
}

/// Between which keys the least one that counts is: from `low` on there is too much, from `high` on there is not.
#[derive(CubeType, Clone, Copy)]
struct Bracket {
    low: u32,
    high: u32,
    /// How many numbers are between them, at most.
    count: u32,
}

/// What counts of a row. The masses of its segments are in the memory then, if the search sums them.
#[cube]
pub(crate) fn search_row<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    row: &Row,
    limits: &Limits,
    memory: &mut Memory,
    #[comptime] search: Search,
) -> Kept {
    let mut low = comptime!(search.least()).runtime();
    let mut high = comptime!(search.least()).runtime();
    let mut floor = 0u32;
    if comptime!(search.is_limited() || search.has_floor) {
        let (base, shift) = comptime!(search.first_buckets());
        let range = Range { low, base: base.runtime(), top: u32::MAX.runtime(), shift: shift.runtime() };
        let largest = tally::<F, N>(x, row, &range, memory, true, search);
        if comptime!(search.is_limited()) {
            let first = bracket_of(&range, limits, memory, true, search);
            low = first.low;
            high = first.high;
            let mut count = first.count;
            while !is_narrow(low, high, count, search) {
                let range = Range::within(max(low, comptime!(search.least())), high, search);
                tally::<F, N>(x, row, &range, memory, false, search);
                let next = bracket_of(&range, limits, memory, false, search);
                low = next.low;
                high = next.high;
                count = next.count;
            }
            // Of two keys it is the lower.
            high = select(high - low == 1u32, low, high);
        }
        if comptime!(search.has_floor) {
            let largest = f32::reinterpret(max(largest, ZERO) - ZERO);
            let least = limits.floor * largest;
            // NaN is no floor.
            floor = countable(select(least > largest, largest, least), search);
            let is_above = floor >= high;
            low = select(is_above, floor, low);
            high = select(is_above, floor, high);
        }
    }
    let bracket = Bracket { low, high, count: 0u32.runtime() };
    collect::<F, N>(x, row, &bracket, memory, search);
    // Not `low`, which is the bracket's.
    let mut kept = low;
    if comptime!(search.is_limited()) {
        if low < high {
            kept = max(bisect(&bracket, limits, memory, search), floor);
            if comptime!(search.sums) {
                add_candidates(&bracket, kept, memory, search);
            }
        }
    }
    let has_nan = if comptime!(search.sums) { memory.total(NANS, search) > 0u64 } else { false.runtime() };
    Kept { least: max(kept, comptime!(search.least())), has_nan }
}

/// Whether what is in a bracket can be collected.
#[cube]
fn is_narrow(low: u32, high: u32, count: u32, #[comptime] search: Search) -> bool {
    let width = high - low;
    width == 1u32 || (count <= comptime!(search.candidates() as u32) && width <= comptime!(1u32 << KEY_BITS))
}

/// Counts the numbers in the buckets of the range; returns the largest key if that is asked for. Unless it is the first
/// tally of a row there are numbers beyond, and bounds of masses may stay as wide as they are: what is beyond, and in the
/// upper half, is weighed.
#[cube]
fn tally<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    row: &Row,
    range: &Range,
    memory: &mut Memory,
    #[comptime] is_first: bool,
    #[comptime] search: Search,
) -> u32 {
    let (units, buckets) = comptime!((search.team.units, search.buckets()));
    let unit = memory.unit;
    let tallies = memory.row * buckets;
    let mut bucket = unit;
    while bucket < buckets {
        memory.tallies[tallies + bucket].store(0u32);
        bucket += units;
    }
    meet(units);

    let mut largest = 0u32;
    let mut over_mass = 0u64;
    let mut half_mass = 0u64;
    let mut over_count = 0u32;
    let mut half_count = 0u32;
    let half = range.half();
    let mut first = 0usize;
    while first < row.vectors {
        let read = load(x, row, first + unit, units);
        #[unroll]
        for f in 0..IN_FLIGHT {
            if first + unit + comptime!(f * units) < row.vectors {
                let vector = widen::<F, N>(read[f]);
                #[unroll]
                for lane in 0..search.lanes {
                    let value = vector.extract(lane);
                    let key = countable(value, search);
                    if comptime!(search.has_floor && is_first) {
                        largest = max(largest, key);
                    }
                    if comptime!(search.is_limited()) {
                        if key >= range.low && key < range.top {
                            let bucket = (max(key, range.base) - range.base) >> range.shift;
                            let bucket = min(usize::cast_from(bucket), comptime!(buckets - 1));
                            memory.tallies[tallies + bucket].fetch_add(1u32);
                        }
                    }
                    if comptime!(!is_first && search.by_mass) {
                        let mass = mass(value);
                        over_mass += select(key >= range.top, mass, 0u64);
                        half_mass += select(key >= half, mass, 0u64);
                        half_count += select(key >= half, 1u32, 0u32);
                    }
                    if comptime!(!is_first) {
                        over_count += select(key >= range.top, 1u32, 0u32);
                    }
                }
            }
        }
        first += comptime!(IN_FLIGHT * units);
    }
    if comptime!(!is_first) {
        memory.put(OVER_COUNT, group_sum(u64::cast_from(over_count), search.team), search);
        if comptime!(search.by_mass) {
            memory.put(OVER_MASS, group_sum(over_mass, search.team), search);
            memory.put(HALF_MASS, group_sum(half_mass, search.team), search);
            memory.put(HALF_COUNT, group_sum(u64::cast_from(half_count), search.team), search);
        }
    }
    if comptime!(search.has_floor && is_first) {
        let of_group = group_max(largest, search.team);
        memory.put(LARGEST, u64::cast_from(of_group), search);
    }
    meet(units);
    if comptime!(search.has_floor && is_first) {
        let mut group = unit % comptime!(search.team.group);
        while group < comptime!(search.team.groups()) {
            let at = (memory.row * SLOTS + LARGEST) * comptime!(search.team.groups()) + group;
            largest = max(largest, u32::cast_from(memory.sums[at]));
            group += comptime!(search.team.group);
        }
        largest = group_max(largest, search.team);
    }
    largest
}

/// Whether less than the limits is above.
#[cube]
fn fits(count: u64, mass: u64, limits: &Limits, #[comptime] search: Search) -> bool {
    let is_few = if comptime!(search.by_count) { count < limits.most } else { true.runtime() };
    let is_light = if comptime!(search.by_mass) { mass < limits.limit } else { true.runtime() };
    is_few && is_light
}

/// Where the least key that counts is, by a tally. Each unit adds up its buckets, and looks for the ends among them.
#[cube]
fn bracket_of(
    range: &Range,
    limits: &Limits,
    memory: &mut Memory,
    #[comptime] is_first: bool,
    #[comptime] search: Search,
) -> Bracket {
    let (units, buckets, team) = comptime!((search.team.units, search.buckets(), search.team));
    let each = comptime!(buckets.div_ceil(units));
    let unit = memory.unit;
    let first = min(unit * each, buckets.runtime());
    let end = min(first + each, buckets.runtime());
    let tallies = memory.row * buckets;

    let mut count = 0u64;
    let mut at_least = 0u64;
    let mut at_most = 0u64;
    for bucket in first..end {
        let n = u64::cast_from(memory.tallies[tallies + bucket].load());
        count += n;
        if comptime!(search.by_mass) {
            at_least += n * mass_of_key(range.edge(bucket, search));
            at_most += n * mass_of_key(range.edge(bucket + 1, search) - 1u32);
        }
    }
    let groups = comptime!(team.groups());
    let next = unit / comptime!(team.group) + 1;
    let (of_group, later) = group_sums(count, unit, team);
    let mut count_above = later;
    memory.put(IN_BUCKETS, of_group, search);
    let (of_group, later) = group_sums(at_least, unit, team);
    let mut least_above = later;
    memory.put(AT_LEAST, of_group, search);
    let (of_group, later) = group_sums(at_most, unit, team);
    let mut most_above = later;
    memory.put(AT_MOST, of_group, search);
    meet(units);
    count_above += memory.sum(IN_BUCKETS, next, groups, search);
    least_above += memory.sum(AT_LEAST, next, groups, search);
    most_above += memory.sum(AT_MOST, next, groups, search);
    let mut is_half_high = false.runtime();
    if comptime!(!is_first) {
        count_above += memory.total(OVER_COUNT, search);
        if comptime!(search.by_mass) {
            let over_mass = memory.total(OVER_MASS, search);
            least_above += over_mass;
            most_above += over_mass;
            let half_count = memory.total(HALF_COUNT, search);
            is_half_high = fits(half_count, memory.total(HALF_MASS, search), limits, search);
        }
    }

    let mut is_high = fits(count_above, most_above, limits, search);
    let mut may_be = fits(count_above, least_above, limits, search);
    for i in 0..end - first {
        let bucket = end - 1 - i;
        let n = u64::cast_from(memory.tallies[tallies + bucket].load());
        let count_here = count_above + n;
        if comptime!(search.by_mass) {
            least_above += n * mass_of_key(range.edge(bucket, search));
            most_above += n * mass_of_key(range.edge(bucket + 1, search) - 1u32);
        }
        let is_high_here = fits(count_here, most_above, limits, search);
        let may_be_here = fits(count_here, least_above, limits, search);
        if is_high && !is_high_here {
            memory.find(HIGH, range.edge(bucket + 1, search));
            memory.find(FROM_HIGH, u32::cast_from(count_above));
        }
        if may_be && !may_be_here {
            memory.find(LOW, range.edge(bucket, search));
            memory.find(FROM_LOW, u32::cast_from(count_here));
        }
        count_above = count_here;
        is_high = is_high_here;
        may_be = may_be_here;
    }
    // If everything counts, or may.
    if unit == 0 {
        if is_high {
            memory.find(HIGH, range.low);
            memory.find(FROM_HIGH, u32::cast_from(count_above));
        }
        if may_be {
            memory.find(LOW, range.low - 1u32);
            memory.find(FROM_LOW, u32::cast_from(count_above));
        }
    }
    meet(units);
    let mut low = memory.found(LOW);
    let mut high = memory.found(HIGH);
    let count = memory.found(FROM_LOW) - memory.found(FROM_HIGH);
    if comptime!(!is_first && search.by_mass) {
        let half = range.half();
        low = select(is_half_high, low, max(low, half));
        high = select(is_half_high, min(high, half), high);
    }
    Bracket { low, high, count }
}

/// Sums what is from the bracket's upper end on, by segment, and puts what is in the bracket among the candidates.
#[cube]
fn collect<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    row: &Row,
    bracket: &Bracket,
    memory: &mut Memory,
    #[comptime] search: Search,
) {
    let (units, team, candidates) = comptime!((search.team.units, search.team, search.candidates()));
    let unit = memory.unit;
    if unit == 0 {
        memory.find(COLLECTED, 0u32);
    }
    meet(units);
    let low = max(bracket.low, comptime!(search.least()));
    let mut count = 0u32;
    let mut nans = 0u32;
    for segment in 0..SEGMENTS {
        let end = min((segment + 1) * row.segment, row.vectors);
        let mut sum = 0u64;
        let mut first = segment * row.segment;
        while first < end {
            let read = load(x, row, first + unit, units);
            #[unroll]
            for f in 0..IN_FLIGHT {
                if first + unit + comptime!(f * units) < end {
                    let vector = widen::<F, N>(read[f]);
                    #[unroll]
                    for lane in 0..search.lanes {
                        let value = vector.extract(lane);
                        let key = countable(value, search);
                        let counts = key >= bracket.high;
                        if comptime!(search.sums) {
                            sum += select(counts, mass(value), 0u64);
                            nans += select(value.is_nan(), 1u32, 0u32);
                        }
                        if comptime!(search.by_count) {
                            count += select(counts, 1u32, 0u32);
                        }
                        if comptime!(search.is_limited()) {
                            if key >= low && !counts {
                                let at = memory.collected();
                                // There is room for all of them.
                                if at < comptime!(candidates as u32) {
                                    let candidate = (key - bracket.low) | u32::cast_from(segment) << KEY_BITS;
                                    memory.candidates[memory.row * candidates + usize::cast_from(at)] =
                                        candidate;
                                }
                            }
                        }
                    }
                }
            }
            first += comptime!(IN_FLIGHT * units);
        }
        if comptime!(search.sums) {
            memory.put(segment, group_sum(sum, team), search);
        }
    }
    if comptime!(search.by_count) {
        memory.put(COUNT, group_sum(u64::cast_from(count), team), search);
    }
    if comptime!(search.sums) {
        memory.put(NANS, group_sum(u64::cast_from(nans), team), search);
    }
    meet(units);
}

/// The least key that counts, given the candidates in the bracket.
#[cube]
fn bisect(bracket: &Bracket, limits: &Limits, memory: &mut Memory, #[comptime] search: Search) -> u32 {
    let (units, team, candidates) = comptime!((search.team.units, search.team, search.candidates()));
    let all = min(usize::cast_from(memory.found(COLLECTED)), candidates.runtime());
    let mut mass_above = 0u64;
    let mut count_above = 0u64;
    if comptime!(search.by_mass) {
        for segment in 0..SEGMENTS {
            mass_above += memory.total(segment, search);
        }
    }
    if comptime!(search.by_count) {
        count_above = memory.total(COUNT, search);
    }
    let mut low = bracket.low;
    let mut high = bracket.high;
    let mut slot = TRIED.runtime();
    while high - low > 1u32 {
        let middle = low + (high - low) / 2u32;
        let mut sum = 0u64;
        let mut count = 0u64;
        let mut i = memory.unit;
        while i < all {
            let key = memory.candidates[memory.row * candidates + i] & comptime!((1u32 << KEY_BITS) - 1);
            let key = bracket.low + key;
            let is_above = key >= middle;
            if comptime!(search.by_mass) {
                sum += select(is_above, mass_of_key(key), 0u64);
            }
            count += select(is_above, 1u64, 0u64);
            i += units;
        }
        if comptime!(search.by_mass) {
            memory.put(slot, group_sum(sum, team), search);
        }
        if comptime!(search.by_count) {
            memory.put(slot + 1, group_sum(count, team), search);
        }
        meet(units);
        if comptime!(search.by_mass) {
            sum = memory.total(slot, search);
        }
        if comptime!(search.by_count) {
            count = memory.total(slot + 1, search);
        }
        let is_high = fits(count_above + count, mass_above + sum, limits, search);
        high = select(is_high, middle, high);
        low = select(is_high, low, middle);
        // What others may still read stays for a round.
        slot = comptime!(2 * TRIED + 2) - slot;
    }
    low
}

/// Adds the masses of the candidates from `least` on to those of their segments.
#[cube]
fn add_candidates(bracket: &Bracket, least: u32, memory: &mut Memory, #[comptime] search: Search) {
    let (units, team, candidates) = comptime!((search.team.units, search.team, search.candidates()));
    let all = min(usize::cast_from(memory.found(COLLECTED)), candidates.runtime());
    // Their sums are read no more.
    meet(units);
    for segment in 0..SEGMENTS {
        let mut sum = 0u64;
        let mut i = memory.unit;
        while i < all {
            let candidate = memory.candidates[memory.row * candidates + i];
            let key = bracket.low + (candidate & comptime!((1u32 << KEY_BITS) - 1));
            let counts = key >= least && candidate >> KEY_BITS == u32::cast_from(segment);
            sum += select(counts, mass_of_key(key), 0u64);
            i += units;
        }
        memory.add(segment, group_sum(sum, team), search);
    }
    meet(units);
}
