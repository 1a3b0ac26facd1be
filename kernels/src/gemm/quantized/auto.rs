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
    /// The settings for few rows; none for more. Those of NVIDIA were measured on an H200 with the layers of Llama 3 8B, and
    /// depend on the tiles of 16 outputs of a core.
    ///
    /// A cube reads its rows of `x` from the second-level cache. So it has few outputs for few rows, and more for more. Where
    /// there are many tiles, planes have outputs of their own, so that all cubes run at the same time.
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
        let (output_tiles, output_planes, depth_planes, depth, stages, cluster) =
            match (row_tiles, tiles.div_ceil(cores), bits) {
                (1, ..=3, 8) => (1, 1, 4, 512, 4, 1),
                (1, _, 8) => (1, 7, 1, 256, 3, 1),
                (1, ..=3, _) if problem.d_in <= 8192 => (1, 1, 8, 1024, 3, 1),
                (1, ..=3, _) => (2, 1, 4, 512, 4, 2),
                (1, ..) => (2, 1, 4, 512, 3, 1),
                (2, ..=2, 4) => (2, 1, 4, 512, 4, 2),
                (2, 3, 8) => (2, 1, 4, 512, 3, 1),
                (2, ..=3, _) => (2, 1, 4, 512, 4, 1),
                (2, _, 8) => (2, 2, 2, 256, 4, 1),
                (2, ..) => (4, 2, 2, 256, 3, 1),
                (4, ..=2, _) => (2, 1, 4, 512, 4, 1),
                (4, ..=6, _) => (2, 2, 2, 256, 4, 1),
                (4, _, 8) => (2, 2, 2, 256, 3, 1),
                (4, ..) => (2, 4, 1, 256, 3, 1),
                (_, ..=2, 8) => (1, 1, 4, 512, 3, 1),
                (_, ..=2, _) => (1, 2, 4, 512, 3, 1),
                (_, ..=6, 8) => (1, 4, 1, 256, 4, 1),
                (_, ..=6, _) => (2, 2, 2, 256, 3, 1),
                _ => (2, 4, 2, 256, 3, 1),
            };
        // The more cubes share the inputs, the fewer wait for memory.
        let cubes = tiles.div_ceil(output_tiles * output_planes);
        let cluster = if 2 * cubes <= cores { 4 } else { cluster };
        let cluster = cluster.min(device.max_cluster());
        let unit = MmaKind::MmaSync;
        Some(Self { unit, output_tiles, output_planes, row_tiles, depth_planes, depth, stages, cluster })
    }
}
