//! The units that share a row.

use cubecl::{client::Client, prelude::*};

use crate::DeviceProfile;
use crate::grid::cover;
use crate::isa::{Arch, nvidia};
use crate::tensor::Result;

/// Who works on a row: a cube is one row, or `rows` rows of one unit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Team {
    /// Rows of a cube.
    pub rows: usize,
    /// Units of a row.
    pub units: usize,
    /// Neighbours that exchange numbers without shared memory.
    pub group: usize,
    /// Whether all lanes of a plane can be waited for when they exchange numbers, wherever they are.
    is_nvidia: bool,
}

impl Team {
    /// How many groups a row has.
    pub(crate) fn groups(self) -> usize {
        self.units / self.group
    }

    /// The team for `rows` rows of `vectors` vectors, of at most `most` units, and the launch that has it.
    pub(crate) fn of(
        kernel: &'static str,
        client: &Client,
        rows: usize,
        vectors: usize,
        most: u32,
    ) -> Result<(Self, CubeCount, CubeDim)> {
        let device = DeviceProfile::of(client);
        let (units, cube_rows) = match device.cpu_cores {
            // Units are threads here: a row each.
            Some(cores) => (1, cores),
            None => {
                let units =
                    u32::try_from(vectors).unwrap_or(u32::MAX).min(most).next_multiple_of(device.plane);
                (units.min(device.max_units), 1)
            }
        };
        let count = cover(kernel, rows.div_ceil(cube_rows as usize), device.max_cubes)?;
        // A plane may be narrower than the widest that a device has.
        let group = units.min(device.plane).min(32) as usize;
        let is_nvidia = matches!(device.arch, Arch::Sm(_));
        let team = Self { rows: cube_rows as usize, units: units as usize, group, is_nvidia };
        Ok((team, count, CubeDim::new_1d(units * cube_rows)))
    }
}

impl Team {
    /// The team for `rows` short rows of `vectors` vectors: neighbours, which exchange numbers without shared memory.
    pub(crate) fn of_neighbours(
        kernel: &'static str,
        client: &Client,
        rows: usize,
        vectors: usize,
    ) -> Result<(Self, CubeCount, CubeDim)> {
        /// Units of a cube.
        const CUBE: u32 = 256;
        let device = DeviceProfile::of(client);
        let (units, cube_rows) = match device.cpu_cores {
            // Units are threads here: a row each.
            Some(cores) => (1, cores as usize),
            None => {
                // A plane may be narrower than the widest that a device has.
                let units = vectors.next_power_of_two().min(device.plane.min(32) as usize);
                (units, device.max_units.min(CUBE) as usize / units)
            }
        };
        let count = cover(kernel, rows.div_ceil(cube_rows), device.max_cubes)?;
        let is_nvidia = matches!(device.arch, Arch::Sm(_));
        let team = Self { rows: cube_rows, units, group: units, is_nvidia };
        Ok((team, count, CubeDim::new_1d((units * cube_rows) as u32)))
    }
}

/// Waits for the other units of the row, if there are any.
#[cube]
pub(crate) fn meet(#[comptime] units: usize) {
    if comptime!(units > 1) {
        sync_cube();
    }
}

/// The sum of `part` over the units of a row, to the bit the same in each.
#[cube]
pub(crate) fn total(part: f32, unit: usize, #[comptime] team: Team) -> f32 {
    let mut sum = Array::<f32>::new(1usize);
    sum[0] = part;
    totals(&mut sum, 1usize, unit, team);
    sum[0]
}

/// Replaces each of `count` parts by its sum over the units of a row, waiting once for all.
#[cube]
pub(crate) fn totals(parts: &mut Array<f32>, #[comptime] count: usize, unit: usize, #[comptime] team: Team) {
    #[unroll]
    for which in 0..count {
        #[unroll]
        for step in 0..comptime!(team.group.ilog2()) {
            let part = parts[which];
            parts[which] = part + f32::reinterpret(exchanged(u32::reinterpret(part), step, team));
        }
    }
    let groups = comptime!(team.groups());
    if comptime!(groups > 1) {
        let mut sums = Shared::<[f32]>::new_slice(comptime!(count * groups));
        if unit.is_multiple_of(comptime!(team.group)) {
            #[unroll]
            for which in 0..count {
                sums[which * groups + unit / comptime!(team.group)] = parts[which];
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
pub(crate) fn largest(part: u32, unit: usize, #[comptime] team: Team) -> u32 {
    let mut largest = part;
    #[unroll]
    for step in 0..comptime!(team.group.ilog2()) {
        largest = max(largest, exchanged(largest, step, team));
    }
    let groups = comptime!(team.groups());
    if comptime!(groups > 1) {
        let mut of_groups = Shared::<[u32]>::new_slice(groups);
        if unit.is_multiple_of(comptime!(team.group)) {
            of_groups[unit / comptime!(team.group)] = largest;
        }
        sync_cube();
        for group in 0..groups {
            largest = max(largest, of_groups[group]);
        }
    }
    largest
}

/// The number of the unit `1 << step` away in the group.
#[cube]
fn exchanged(x: u32, #[comptime] step: u32, #[comptime] team: Team) -> u32 {
    if comptime!(team.is_nvidia) {
        // CubeCL asks which lanes are active, and would not wait for the others of a plane that has diverged.
        u32::reinterpret(nvidia::shuffle_xor(f32::reinterpret(x), comptime!(1usize << step)))
    } else {
        plane_shuffle_xor(x, comptime!(1u32 << step))
    }
}

/// [`exchanged`], in two halves.
#[cube]
fn exchanged_wide(x: u64, #[comptime] step: u32, #[comptime] team: Team) -> u64 {
    let low = exchanged(u32::cast_from(x & 0xffff_ffffu64), step, team);
    let high = exchanged(u32::cast_from(x >> 32u64), step, team);
    (u64::cast_from(high) << 32u64) + u64::cast_from(low)
}

/// The sum over the units of a group, in each.
#[cube]
pub(crate) fn group_sum(part: u64, #[comptime] team: Team) -> u64 {
    let mut sum = part;
    #[unroll]
    for step in 0..comptime!(team.group.ilog2()) {
        sum += exchanged_wide(sum, step, team);
    }
    sum
}

/// The sum over the units of a group, and over those that come after this one.
#[cube]
pub(crate) fn group_sums(part: u64, unit: usize, #[comptime] team: Team) -> (u64, u64) {
    let mut sum = part;
    let mut later = 0u64;
    #[unroll]
    for step in 0..comptime!(team.group.ilog2()) {
        let other = exchanged_wide(sum, step, team);
        let is_later = (unit >> comptime!(step as usize)) & 1 == 0;
        later += select(is_later, other, 0u64);
        sum += other;
    }
    (sum, later)
}

/// The sum of `part` over the units of a row before this one, and over all of them.
#[cube]
pub(crate) fn running_sum(part: u64, unit: usize, #[comptime] team: Team) -> (u64, u64) {
    let (of_group, later) = group_sums(part, unit, team);
    let mut before = of_group - later - part;
    let mut sum = of_group;
    let groups = comptime!(team.groups());
    if comptime!(groups > 1) {
        let mut of_groups = Shared::<[u64]>::new_slice(groups);
        let group = unit / comptime!(team.group);
        if unit.is_multiple_of(comptime!(team.group)) {
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
