//! The units that share a row.

use cubecl::{client::Client, prelude::*};

use crate::DeviceProfile;
use crate::grid::cover;
use crate::tensor::Result;

/// Who works on a row: a cube is one row, or `rows` rows of one unit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Team {
    /// Rows of a cube.
    pub rows: usize,
    /// Units of a row.
    pub units: usize,
}

impl Team {
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
        let team = Self { rows: cube_rows as usize, units: units as usize };
        Ok((team, count, CubeDim::new_1d(units * cube_rows)))
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
pub(crate) fn total(part: f32, unit: usize, #[comptime] units: usize) -> f32 {
    let mut sum = part;
    if comptime!(units > 1) {
        let (groups, members) = comptime!((groups(units), units / groups(units)));
        let mut parts = Shared::<[f32]>::new_slice(units);
        let mut sums = Shared::<[f32]>::new_slice(groups);
        parts[unit] = part;
        sync_cube();
        // Each unit adding all parts took 36 us of the 67 that a norm of 8192 x 8192 has on an H200.
        if unit < groups {
            for member in 1..members {
                sum += parts[unit + member * groups];
            }
            sums[unit] = sum;
        }
        sync_cube();
        sum = 0.0f32;
        for group in 0..groups {
            sum += sums[group];
        }
    }
    sum
}

/// The largest `part` of the units of a row.
#[cube]
pub(crate) fn highest(part: f32, unit: usize, #[comptime] units: usize) -> f32 {
    let mut highest = part;
    if comptime!(units > 1) {
        let (groups, members) = comptime!((groups(units), units / groups(units)));
        let mut parts = Shared::<[f32]>::new_slice(units);
        let mut most = Shared::<[f32]>::new_slice(groups);
        parts[unit] = part;
        sync_cube();
        if unit < groups {
            for member in 1..members {
                highest = max(highest, parts[unit + member * groups]);
            }
            most[unit] = highest;
        }
        sync_cube();
        for group in 0..groups {
            highest = max(highest, most[group]);
        }
    }
    highest
}

/// How many groups of equal size units form: near the root of their number, so that all take about as long.
fn groups(units: usize) -> usize {
    let mut groups = 1;
    while units.is_multiple_of(2 * groups) && 4 * groups * groups <= units {
        groups *= 2;
    }
    groups
}
