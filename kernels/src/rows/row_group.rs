//! Units that share a row, and their reductions.

use cubecl::{client::Client, prelude::*};

use crate::device::Arch;
use crate::device::DeviceProfile;
use crate::device::grid::cover;
use crate::device::tensor::Result;
use crate::isa::nvidia;

/// The units of a row. A cube holds one row of many units, or many rows of few units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RowGroup {
    /// Rows of a cube.
    pub rows: usize,
    /// Units of a row.
    pub units: usize,
    /// Neighbours that exchange values by shuffles: a plane, or a part of one.
    pub shuffle_width: usize,
    /// Uses `shfl.sync` with the full mask, since CubeCL's shuffle takes the active mask.
    full_mask: bool,
}

impl RowGroup {
    /// Shuffle groups of a row.
    pub(crate) fn shuffle_groups(self) -> usize {
        self.units / self.shuffle_width
    }

    /// The units for `rows` rows of `vectors` vectors, at most `most` a row, and the size of the launch.
    pub(crate) fn of(
        kernel: &'static str,
        client: &Client,
        rows: usize,
        vectors: usize,
        most: u32,
    ) -> Result<(Self, CubeCount, CubeDim)> {
        let device = DeviceProfile::of(client);
        let (units, cube_rows) = match device.cpu_cores {
            // On a CPU units are threads: a row each.
            Some(cores) => (1, cores),
            None => {
                let units =
                    u32::try_from(vectors).unwrap_or(u32::MAX).min(most).next_multiple_of(device.plane);
                (units.min(device.max_units), 1)
            }
        };
        let count = cover(kernel, rows.div_ceil(cube_rows as usize), device.max_cubes)?;
        // A plane may be narrower than the widest that a device has.
        let shuffle_width = units.min(device.plane).min(32) as usize;
        let full_mask = matches!(device.arch, Arch::Sm(_));
        let row_group = Self { rows: cube_rows as usize, units: units as usize, shuffle_width, full_mask };
        Ok((row_group, count, CubeDim::new_1d(units * cube_rows)))
    }

    /// The units for `rows` short rows of `vectors` vectors: neighbours, which need no shared memory.
    pub(crate) fn of_neighbours(
        kernel: &'static str,
        client: &Client,
        rows: usize,
        vectors: usize,
    ) -> Result<(Self, CubeCount, CubeDim)> {
        /// Units of a cube.
        const CUBE_UNITS: u32 = 256;
        let device = DeviceProfile::of(client);
        let (units, cube_rows) = match device.cpu_cores {
            // On a CPU units are threads: a row each.
            Some(cores) => (1, cores as usize),
            None => {
                // A plane may be narrower than the widest that a device has.
                let units = vectors.next_power_of_two().min(device.plane.min(32) as usize);
                (units, device.max_units.min(CUBE_UNITS) as usize / units)
            }
        };
        let count = cover(kernel, rows.div_ceil(cube_rows), device.max_cubes)?;
        let full_mask = matches!(device.arch, Arch::Sm(_));
        let row_group = Self { rows: cube_rows, units, shuffle_width: units, full_mask };
        Ok((row_group, count, CubeDim::new_1d((units * cube_rows) as u32)))
    }
}

/// The sum of `part` over the units of a row, with the same bits in each.
#[cube]
pub(crate) fn row_sum(part: f32, unit: usize, #[comptime] row_group: RowGroup) -> f32 {
    let mut sum = Array::<f32>::new(1usize);
    sum[0] = part;
    row_sums(&mut sum, 1usize, unit, row_group);
    sum[0]
}

/// Replaces each of `count` parts by its sum over the units of a row, with one wait for all.
#[cube]
pub(crate) fn row_sums(
    parts: &mut Array<f32>,
    #[comptime] count: usize,
    unit: usize,
    #[comptime] row_group: RowGroup,
) {
    #[unroll]
    for which in 0..count {
        #[unroll]
        for step in 0..comptime!(row_group.shuffle_width.ilog2()) {
            let part = parts[which];
            parts[which] = part + f32::reinterpret(shuffle_xor(u32::reinterpret(part), step, row_group));
        }
    }
    let groups = comptime!(row_group.shuffle_groups());
    if comptime!(groups > 1) {
        let mut sums = Shared::<[f32]>::new_slice(comptime!(count * groups));
        if unit.is_multiple_of(comptime!(row_group.shuffle_width)) {
            #[unroll]
            for which in 0..count {
                sums[which * groups + unit / comptime!(row_group.shuffle_width)] = parts[which];
            }
        }
        sync_cube();
        #[unroll]
        for which in 0..count {
            let mut sum = sums[which * groups];
            for group in 1..groups {
                sum += sums[which * groups + group];
            }
            parts[which] = sum;
        }
    }
}

/// The largest `part` of the units of a row.
#[cube]
pub(crate) fn row_max(part: u32, unit: usize, #[comptime] row_group: RowGroup) -> u32 {
    let mut largest = part;
    #[unroll]
    for step in 0..comptime!(row_group.shuffle_width.ilog2()) {
        largest = max(largest, shuffle_xor(largest, step, row_group));
    }
    let groups = comptime!(row_group.shuffle_groups());
    if comptime!(groups > 1) {
        let mut of_groups = Shared::<[u32]>::new_slice(groups);
        if unit.is_multiple_of(comptime!(row_group.shuffle_width)) {
            of_groups[unit / comptime!(row_group.shuffle_width)] = largest;
        }
        sync_cube();
        for group in 0..groups {
            largest = max(largest, of_groups[group]);
        }
    }
    largest
}

/// The value of unit `u ^ (1 << step)`.
#[cube]
fn shuffle_xor(x: u32, #[comptime] step: u32, #[comptime] row_group: RowGroup) -> u32 {
    if comptime!(row_group.full_mask) {
        // CubeCL's shuffle takes the active mask, and would not wait for the other lanes of a diverged plane.
        u32::reinterpret(nvidia::shuffle_xor(f32::reinterpret(x), comptime!(1usize << step)))
    } else {
        plane_shuffle_xor(x, comptime!(1u32 << step))
    }
}

/// [`shuffle_xor`] of 64 bits, in two halves.
#[cube]
fn shuffle_xor_u64(x: u64, #[comptime] step: u32, #[comptime] row_group: RowGroup) -> u64 {
    let low = shuffle_xor(u32::cast_from(x & 0xffff_ffffu64), step, row_group);
    let high = shuffle_xor(u32::cast_from(x >> 32u64), step, row_group);
    (u64::cast_from(high) << 32u64) + u64::cast_from(low)
}

/// The sum over the units of a shuffle group, in each of them.
#[cube]
pub(crate) fn shuffle_sum(part: u64, #[comptime] row_group: RowGroup) -> u64 {
    let mut sum = part;
    #[unroll]
    for step in 0..comptime!(row_group.shuffle_width.ilog2()) {
        sum += shuffle_xor_u64(sum, step, row_group);
    }
    sum
}

/// The sum over the units of a shuffle group, and over those after this one.
#[cube]
pub(crate) fn shuffle_scan(part: u64, unit: usize, #[comptime] row_group: RowGroup) -> (u64, u64) {
    let mut sum = part;
    let mut later = 0u64;
    #[unroll]
    for step in 0..comptime!(row_group.shuffle_width.ilog2()) {
        let other = shuffle_xor_u64(sum, step, row_group);
        let is_later = (unit >> comptime!(step as usize)) & 1 == 0;
        later += select(is_later, other, 0u64);
        sum += other;
    }
    (sum, later)
}

/// The sum of `part` over the units of a row before this one, and over all of them.
#[cube]
pub(crate) fn prefix_sum(part: u64, unit: usize, #[comptime] row_group: RowGroup) -> (u64, u64) {
    let (of_group, later) = shuffle_scan(part, unit, row_group);
    let mut before = of_group - later - part;
    let mut sum = of_group;
    let groups = comptime!(row_group.shuffle_groups());
    if comptime!(groups > 1) {
        let mut of_groups = Shared::<[u64]>::new_slice(groups);
        let group = unit / comptime!(row_group.shuffle_width);
        if unit.is_multiple_of(comptime!(row_group.shuffle_width)) {
            of_groups[group] = of_group;
        }
        sync_cube();
        sum = 0u64;
        for other in 0..groups {
            let of_other = of_groups[other];
            before += select(other < group, of_other, 0u64);
            sum += of_other;
        }
    }
    (before, sum)
}
