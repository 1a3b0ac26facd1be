//! The choice of the settings, from measurements on an H200.

use cubecl::ir::{ElemType, FloatKind};

use super::blueprint::{Blueprint, Dot, Problem, Skinny, Tiled, WarpSpecialized};
use super::hopper::ROWS;
use super::machine::KERNEL;
use crate::device::{Arch, DeviceProfile, Instruction, Result};
use crate::mma::{E4M3, MmaKind};

/// Cores of an H200, for a device that does not tell.
pub(super) const CORES: usize = 132;

/// Rows from which on one instruction serves any number of them.
const MANY_ROWS: usize = 17;
/// Rows up to which each cube normalises all of `x`, rather than another kernel. At 32 rows a step of a Llama 3 8B took
/// 0.12 ms longer (H200).
const NORMED_ROWS: usize = 16;

/// True if the device has a kernel for so many rows: one whose units run in planes, with more rows a GPU of NVIDIA or AMD.
pub fn is_for(device: &DeviceProfile, rows: usize) -> bool {
    let is_known = matches!(device.arch, Arch::Sm(_) | Arch::Gfx(_));
    device.plane > 1 && (rows <= Dot::MAX_ROWS || is_known)
}

impl Blueprint {
    /// The fastest blueprint for a problem on a device.
    ///
    /// # Errors
    ///
    /// If units do not run in planes, on a CPU. If both factors are e4m3 and no matrix unit multiplies them.
    pub fn auto(device: &DeviceProfile, problem: &Problem) -> Result<Self> {
        if problem.dtype == E4M3 {
            return Self::of_codes(device, problem);
        }
        let few = Skinny::auto(device, problem).filter(|_| !problem.batch_invariant);
        if let Some(skinny) = few
            && skinny.check(device, problem).is_ok()
        {
            return Ok(Self::Skinny(skinny));
        }
        let dot = Dot { rows: problem.rows.next_power_of_two().min(Dot::MAX_ROWS) };
        dot.check(device)?;
        if problem.rows <= Dot::MAX_ROWS && !problem.batch_invariant {
            return Ok(Self::Dot(dot));
        }
        let specialized = WarpSpecialized::auto(device, problem, false);
        if specialized.check(device, problem, false).is_ok() {
            return Ok(Self::WarpSpecialized(specialized));
        }
        // The instruction may depend on the rows, and the order of a sum on the instruction.
        let rows = if problem.batch_invariant { problem.rows.max(MANY_ROWS) } else { problem.rows };
        let tiled = Tiled::of(device, problem.dtype, rows);
        let tiled = tiled.and_then(|tiled| tiled.check(device, problem, false).map(|()| tiled));
        Ok(tiled.map_or(Self::Dot(dot), Self::Tiled))
    }

    /// Matrix units alone multiply codes: those of CDNA3, and Hopper's.
    fn of_codes(device: &DeviceProfile, problem: &Problem) -> Result<Self> {
        if let Arch::Gfx(_) = device.arch {
            Instruction::MfmaFp8.check(KERNEL, device.arch)?;
            let tiled = Tiled::of(device, problem.dtype, problem.rows)?;
            return tiled.check(device, problem, false).map(|()| Self::Tiled(tiled));
        }
        let specialized = WarpSpecialized::auto(device, problem, false);
        specialized.check(device, problem, false).map(|()| Self::WarpSpecialized(specialized))
    }
}

impl Skinny {
    /// The settings for few rows; none for more.
    ///
    /// A cube has as many outputs as let all cubes run at the same time: then every core reads until the end. Longer
    /// runs of a row are read at full speed: 1 KiB at a time for few outputs, 256 bytes for many.
    pub(super) fn auto(device: &DeviceProfile, problem: &Problem) -> Option<Self> {
        let cores = device.cores.unwrap_or(CORES);
        let outputs = problem.weight_rows().div_ceil(16);
        let unit = MmaKind::MmaSync;
        let of_cubes = |cubes: usize| outputs.div_ceil(cubes * cores);
        let (row_tiles, cubes) = match problem.rows {
            ..=16 => (2, 2),
            17..=32 => (4, 1),
            33..=64 => (8, 1),
            _ => return None,
        };
        let (output_tiles, output_planes, depth_planes, depth_vecs, stages, cluster) =
            match (of_cubes(cubes), row_tiles) {
                (..=2, 8) => (2, 2, 4, 32, 3, 2),
                (3..=4, 8) => (2, 2, 4, 32, 3, 1),
                (5..=8, 8) => (4, 2, 2, 16, 4, 1),
                (_, 8) => (2, 7, 1, 16, 3, 1),
                (1, 2) => (1, 1, 4, 64, 3, 1),
                (2, 2) if outputs <= 3 * cores => (1, 1, 4, 32, 4, 1),
                (tiles @ ..=2, _) => (tiles, 1, 4, 32, 4, 1),
                (3, _) => (3, 1, 4, 32, 3, 1),
                (tiles, _) => (tiles.min(7), 1, 4, 16, 3, 1),
            };
        let is_f16 = problem.dtype == ElemType::Float(FloatKind::F16);
        let norm = problem.normed && problem.rows <= NORMED_ROWS && !is_f16;
        Some(Self {
            unit,
            output_tiles,
            output_planes,
            row_tiles,
            depth_planes,
            depth_vecs,
            stages,
            cluster,
            norm,
        })
    }
}

/// Tiles of the kernel for warpgroups: outputs, stages that fit, and the time in percent of a tile of 256 outputs for as
/// many products. Narrow tiles read more.
const SHAPES: [(usize, usize, usize); 8] = [
    (256, 4, 100),
    (224, 4, 104),
    (192, 5, 104),
    (160, 5, 108),
    (128, 6, 113),
    (96, 7, 124),
    (64, 8, 150),
    (32, 8, 240),
];
/// The cost of a cluster that splits the inputs: percent of the products' time, and once for their sum.
const SPLIT: (usize, usize) = (126, 10_000_000);

impl WarpSpecialized {
    /// The tile for which the last round of tiles leaves the fewest cores without one. Where there are few tiles, pairs of
    /// cubes split the inputs: larger clusters find too few neighbouring cores. Tiles of any width add up alike, split
    /// ones do not.
    pub(crate) fn auto(device: &DeviceProfile, problem: &Problem, by_input: bool) -> Self {
        let cores = device.cores.unwrap_or(CORES);
        let row_tiles = problem.rows.div_ceil(ROWS);
        let tiles = |outputs| row_tiles * problem.weight_rows().div_ceil(outputs);
        // A copy of matrices by input is of 64 outputs. Tiles of e4m3 have two accumulators.
        let is_e4m3 = problem.dtype == E4M3;
        let shapes = SHAPES.into_iter().filter(|(outputs, ..)| {
            (!by_input || outputs.is_multiple_of(64)) && (!is_e4m3 || *outputs <= 128)
        });
        let alone = shapes.clone().map(|(outputs, stages, percent)| {
            let cost = tiles(outputs).div_ceil(cores) * outputs * percent * problem.d_in * 100 / 64;
            (cost, Self { outputs, stages, cluster: 1, group: 16 })
        });
        let split = shapes
            // Pairs of tiles of 96 took longer than their products tell.
            .filter(|&(outputs, ..)| !problem.batch_invariant && !is_e4m3 && outputs != 96)
            .filter(|&(outputs, ..)| 2 * tiles(outputs) <= cores)
            .map(|(outputs, stages, percent)| {
                let cost = outputs * percent * problem.d_in * SPLIT.0 / 128 + SPLIT.1;
                (cost, Self { outputs, stages, cluster: 2, group: 16 })
            });
        let best = alone.chain(split).min_by_key(|(cost, _)| *cost);
        best.map_or(Self { outputs: 256, stages: 4, cluster: 1, group: 16 }, |(_, best)| best)
    }
}
