use cubecl::ir::{ElemType, FloatKind};

use super::work::FEW_ROWS;
use crate::attention::MmaKind;
use crate::device::{Arch, Instruction};
use crate::device::{DeviceProfile, Refusal, Result};
use crate::mma::{GemmTileShape, Mfma16, Mfma32, MmaSync, Scalar32, Scalar64, product_vecs};

const KERNEL: &str = "segment_gemm";

/// The inputs of the choice of a blueprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// Elements of a row of `x`.
    pub d_in: usize,
    /// Elements of a row of `y`.
    pub d_out: usize,
    /// Type of `x`, `y` and the matrices.
    pub dtype: ElemType,
    /// Largest vector of one load of `x` or of a matrix, in elements.
    pub align: usize,
    /// The rows of a matrix are its inputs.
    pub by_input: bool,
    /// Largest number of rows of a work item.
    pub tile_rows: usize,
}

/// The kernel that runs, and its comptime settings. Each distinct blueprint is a kernel to compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blueprint {
    /// Plain multiplications, on every device.
    Plain(Plain),
    /// Tiles in shared memory.
    Tiled(Tiled),
}

/// The comptime settings of the plain kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plain {
    /// Rows that are multiplied with an element of the matrix once it is read.
    pub rows: usize,
    /// Columns, or vectors of them, of a cube.
    pub across: usize,
    /// Units that share a column, each with its part of the depth.
    pub parts: usize,
}

/// The comptime settings of the tiled kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tiled {
    /// The instruction that multiplies tiles.
    pub unit: MmaKind,
    /// Tiles of rows that a plane owns.
    pub row_tiles: usize,
    /// Tiles of columns that a plane owns.
    pub column_tiles: usize,
    /// Planes with different rows.
    pub row_planes: usize,
    /// Planes with different columns.
    pub column_planes: usize,
    /// Vectors of 16 bytes of the depth at a time.
    pub depth_vecs: usize,
    /// Stages in shared memory.
    pub stages: usize,
}

impl Blueprint {
    /// The blueprint for a problem on a device.
    pub fn auto(device: &DeviceProfile, problem: &Problem) -> Self {
        match Tiled::auto(device, problem) {
            Ok(tiled) => Self::Tiled(tiled),
            Err(_) => Self::Plain(Plain::auto(device, problem)),
        }
    }
}

impl Plain {
    pub(super) fn auto(device: &DeviceProfile, problem: &Problem) -> Self {
        let rows = if problem.tile_rows == 1 { 1 } else { FEW_ROWS };
        let vectors = |extent: usize| extent.div_ceil(device.widest(problem.dtype.size()));
        if let Some(cores) = device.cpu_cores {
            // On a CPU units are threads.
            return Self { rows, across: cores as usize, parts: 1 };
        }
        let most = device.max_units.min(256) as usize;
        let fitting = |wanted: usize, most: usize| wanted.next_power_of_two().min(most.max(1));
        // Neighbouring units read neighbouring elements: columns of a row of inputs, parts of a row of
        // outputs. A part has at least 8 elements.
        if problem.by_input {
            let across = fitting(vectors(problem.d_out), 32);
            Self { rows, across, parts: fitting(problem.d_in / 8, most / across) }
        } else {
            let parts = fitting(vectors(problem.d_in), 32);
            Self { rows, across: fitting(problem.d_out, most / parts), parts }
        }
    }
}

impl Tiled {
    /// The blueprint for a problem, or why there is none.
    fn auto(device: &DeviceProfile, problem: &Problem) -> Result<Self> {
        let refused =
            |setting, got: usize, expected: String| Err(Refusal::blueprint(KERNEL, setting, got, expected));
        if problem.tile_rows <= FEW_ROWS {
            return refused("tile_rows", problem.tile_rows, format!("more than {FEW_ROWS}"));
        }
        let tiled = Self::of(device, problem)?;
        let per_vec = 16 / problem.dtype.size();
        for (setting, got) in [("d_in", problem.d_in), ("d_out", problem.d_out), ("stride", problem.align)] {
            if !got.is_multiple_of(per_vec) {
                return refused(setting, got, format!("a multiple of {per_vec}"));
            }
        }
        let units = tiled.row_planes * tiled.column_planes * device.plane as usize;
        if units > device.max_units as usize {
            return refused("units", units, format!("at most {}", device.max_units));
        }
        let shared = tiled.shared_vecs(problem) * 16;
        if shared > device.shared_memory {
            return refused("shared memory", shared, format!("at most {} bytes", device.shared_memory));
        }
        Ok(tiled)
    }

    /// Tiles of the rows of a work item and 128 columns.
    fn of(device: &DeviceProfile, problem: &Problem) -> Result<Self> {
        let mfma = match problem.dtype {
            ElemType::Float(FloatKind::F16) => Some(Instruction::MfmaF16),
            ElemType::Float(FloatKind::BF16) => Some(Instruction::MfmaBf16),
            _ => None,
        };
        // `[row tiles, column tiles, row planes, column planes]` for 128, 64 and 16 rows.
        let (unit, depth_vecs, stages, shapes) = match (device.arch, device.plane) {
            (arch, 32) if mfma.is_some() && Instruction::MmaSync.exists_on(arch) => {
                (MmaKind::MmaSync, 4, 4, [[4, 8, 2, 2], [2, 8, 2, 2], [1, 4, 1, 4]])
            }
            (arch, 64) if mfma.is_some_and(|mfma| mfma.exists_on(arch)) => {
                let unit = if problem.tile_rows <= 16 { MmaKind::Mfma16 } else { MmaKind::Mfma32 };
                (unit, 8, 1, [[2, 2, 2, 2], [1, 2, 2, 2], [1, 2, 1, 4]])
            }
            (Arch::Sm(_) | Arch::Gfx(_), 32) => {
                (MmaKind::Scalar32, 8, 1, [[4, 2, 4, 4], [2, 4, 4, 2], [2, 2, 1, 4]])
            }
            (Arch::Sm(_) | Arch::Gfx(_), 64) => {
                (MmaKind::Scalar64, 8, 1, [[4, 4, 2, 2], [2, 4, 2, 2], [1, 2, 1, 4]])
            }
            (_, plane) => return Err(Refusal::plane(KERNEL, plane)),
        };
        let [many, some, few] = shapes;
        let [row_tiles, column_tiles, row_planes, column_planes] = match problem.tile_rows {
            ..=16 => few,
            17..=64 => some,
            65..=128 => many,
            rows => {
                return Err(Refusal::blueprint(KERNEL, "tile_rows", rows, "at most 128"));
            }
        };
        Ok(Self { unit, row_tiles, column_tiles, row_planes, column_planes, depth_vecs, stages })
    }

    fn shared_vecs(&self, problem: &Problem) -> usize {
        let tiles = self.tiles(problem);
        match self.unit {
            // No blueprint here uses warpgroups; the warps of one could do it alone.
            MmaKind::MmaSync | MmaKind::Wgmma => product_vecs::<MmaSync>(tiles),
            MmaKind::Mfma16 => product_vecs::<Mfma16>(tiles),
            MmaKind::Mfma32 => product_vecs::<Mfma32>(tiles),
            MmaKind::Scalar1 | MmaKind::Scalar32 => product_vecs::<Scalar32>(tiles),
            MmaKind::Scalar64 => product_vecs::<Scalar64>(tiles),
        }
    }

    pub(super) fn tiles(&self, problem: &Problem) -> GemmTileShape {
        GemmTileShape {
            row_tiles: self.row_tiles,
            column_tiles: self.column_tiles,
            row_planes: self.row_planes,
            column_planes: self.column_planes,
            depth: self.depth_vecs * 16 / problem.dtype.size(),
            stages: self.stages,
            by_input: problem.by_input,
            dtype: problem.dtype,
        }
    }
}
