//! The choice of the settings.

use super::super::auto::CORES;
use super::super::blueprint;
use super::blueprint::{Blueprint, FewRows, Problem};
use crate::device::{DeviceProfile, Result};
use crate::mma::MmaKind;

/// The most rows for which the codes' bytes, and not the products, are the bound.
const MAX_ROWS: usize = 64;

impl Blueprint {
    /// The fastest blueprint for a problem on a device.
    ///
    /// # Errors
    ///
    /// If no kernel of [`gemm`](super::super) runs there, on a CPU.
    pub fn auto(device: &DeviceProfile, problem: &Problem) -> Result<Self> {
        if let Some(few) = FewRows::auto(device, problem) {
            // Devices with less shared memory have fewer stages.
            let mut fewer = (few.stages.min(2)..=few.stages).rev().map(|stages| FewRows { stages, ..few });
            if let Some(few) = fewer.find(|few| few.check(device, problem).is_ok()) {
                return Ok(Self::FewRows(few));
            }
        }
        Ok(Self::Dequantized(blueprint::Blueprint::auto(device, &problem.dense())?))
    }
}

impl FewRows {
    /// The settings for few rows; none for more.
    ///
    /// A cube reads its rows of `x` from the second-level cache. So it has as many outputs as make that less than its codes:
    /// a tile of 16 for 8 rows of e4m3, two for int4. Where then too few cubes are left, clusters split the inputs; where
    /// there are many, planes have outputs of their own, so that all cubes run at the same time. Not measured yet.
    fn auto(device: &DeviceProfile, problem: &Problem) -> Option<Self> {
        if problem.rows > MAX_ROWS {
            return None;
        }
        let bits = problem.format.bits();
        if device.plane == 64 {
            let row_tiles = problem.rows.div_ceil(16).max(1);
            let (unit, output_tiles, depth) =
                (MmaKind::Mfma16, 8 / bits, if row_tiles > 2 { 256 } else { 512 });
            let depth_planes = depth / 128;
            return Some(Self {
                unit,
                output_tiles,
                output_planes: 1,
                row_tiles,
                depth_planes,
                depth,
                stages: 1,
                cluster: 1,
            });
        }
        let cores = device.cores.unwrap_or(CORES);
        let row_tiles = problem.rows.div_ceil(8).max(1).next_power_of_two();
        let tiles = problem.d_out.div_ceil(16);
        let least = row_tiles * 8 / bits;
        // Tiles of a cube of which a core has two.
        let all = tiles.div_ceil(2 * cores);
        let (output_tiles, output_planes, depth_planes, depth, stages) = match (least.max(all), row_tiles) {
            (1, _) => (1, 1, 4, 512, 4),
            (2, ..=2) => (2, 1, 4, if bits == 4 { 1024 } else { 512 }, 3),
            (3..=4, ..=2) => (2, 2, 2, 256, 4),
            (total, ..=2) => (1, total.min(8), 1, if bits == 4 { 512 } else { 256 }, 3),
            (_, 4) => (2, 2, 2, 256, 4),
            _ => (2, 4, 1, 256, 3),
        };
        let cubes = tiles.div_ceil(output_tiles * output_planes);
        let cluster = match cubes {
            cubes if 2 * cubes <= cores => 4,
            cubes if cubes <= cores => 2,
            _ => 1,
        };
        let cluster = cluster.min(device.max_cluster());
        let unit = MmaKind::MmaSync;
        Some(Self { unit, output_tiles, output_planes, row_tiles, depth_planes, depth, stages, cluster })
    }
}
