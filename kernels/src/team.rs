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
        let mut parts = Shared::<[f32]>::new_slice(units);
        parts[unit] = part;
        sync_cube();
        sum = 0.0f32;
        for u in 0..units {
            sum += parts[u];
        }
    }
    sum
}

/// The largest `part` of the units of a row.
#[cube]
pub(crate) fn highest(part: f32, unit: usize, #[comptime] units: usize) -> f32 {
    let mut highest = part;
    if comptime!(units > 1) {
        let mut parts = Shared::<[f32]>::new_slice(units);
        parts[unit] = part;
        sync_cube();
        for u in 0..units {
            highest = max(highest, parts[u]);
        }
    }
    highest
}
