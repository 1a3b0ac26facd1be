use cubecl::ir::{ElemType, FloatKind};

use super::epilogue::Steps;
use super::hopper::WarpgroupTiles;
use super::machine::{KERNEL, Machine, check_tiles, refused};
use crate::device::{Arch, DeviceProfile, Instruction, Refusal, Result};
use crate::isa::nvidia::OperandType;
use crate::mma::{BLOCK, E4M3, Gated, GemmTileShape, MmaKind, TF32, on_unit};

/// The inputs of the choice of a blueprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Elements of a row of `x`, and of `weight`.
    pub d_in: usize,
    /// Elements of a row of `y`: rows of `weight`, or half of them if it is gated.
    pub d_out: usize,
    /// Type of `x` and `weight`, and of the bias unless it is e4m3. That of the instruction, if f32 is multiplied as TF32.
    pub dtype: ElemType,
    /// Type of `y`: that of `x`, or f32.
    pub y_dtype: ElemType,
    /// Each output has two rows of `weight`, a gate and an up.
    pub gated: bool,
    /// `x` is normalised first.
    pub normed: bool,
    /// A row's bits do not depend on the rows beside it.
    pub batch_invariant: bool,
    /// Largest vector of one load of each factor, the bias or `y`, in elements.
    pub align: usize,
}

impl Problem {
    /// A product alone, of so many rows, inputs and outputs.
    pub fn product([rows, d_in, d_out]: [usize; 3], dtype: ElemType, align: usize) -> Self {
        Self {
            rows,
            d_in,
            d_out,
            dtype,
            y_dtype: dtype,
            gated: false,
            normed: false,
            batch_invariant: false,
            align,
        }
    }

    /// The problem as the device computes it: f32 exactly, where no instruction multiplies TF32.
    pub(super) fn on(self, device: &DeviceProfile) -> Self {
        let has_tf32 = Instruction::MmaSync.exists_on(device.arch);
        Self { dtype: if has_tf32 { self.dtype } else { storage(self.dtype) }, ..self }
    }

    /// Rows of `weight` for each output.
    fn halves(&self) -> usize {
        1 + usize::from(self.gated)
    }

    /// Rows of `weight`.
    pub(crate) fn weight_rows(&self) -> usize {
        self.d_out * self.halves()
    }
}

/// The kernel that runs, and its comptime settings. Each distinct blueprint is a kernel to compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blueprint {
    /// Plain multiplications.
    Dot(Dot),
    /// Few rows.
    Skinny(Skinny),
    /// Tiles in shared memory.
    Tiled(Tiled),
    /// Hopper's warpgroups.
    WarpSpecialized(WarpSpecialized),
}

/// The comptime settings of the kernel without a matrix unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dot {
    /// Rows of `x` that are multiplied with a weight once it is read.
    pub rows: usize,
}

/// The comptime settings of the kernel for few rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Skinny {
    /// The instruction that multiplies tiles.
    pub unit: MmaKind,
    /// Tiles of outputs that a plane owns.
    pub output_tiles: usize,
    /// Planes with different outputs.
    pub output_planes: usize,
    /// Tiles of rows of `x`, all of which each plane owns.
    pub row_tiles: usize,
    /// Planes with different parts of the inputs of a stage.
    pub depth_planes: usize,
    /// Vectors of 16 bytes of the inputs at a time.
    pub depth_vecs: usize,
    /// Stages in shared memory.
    pub stages: usize,
    /// Cubes with different parts of the inputs.
    pub cluster: usize,
    /// The kernel normalises `x`, if the problem asks for it. Otherwise another kernel does, before this one.
    pub norm: bool,
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

/// The comptime settings of the kernel for Hopper's warpgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WarpSpecialized {
    /// Outputs of a tile.
    pub outputs: usize,
    /// Stages in shared memory.
    pub stages: usize,
    /// Cubes with different parts of the inputs of a tile.
    pub cluster: usize,
    /// Rows of tiles that are multiplied side by side.
    pub group: usize,
}

/// The type of the elements in memory, those of TF32 are f32.
pub(super) fn storage(dtype: ElemType) -> ElemType {
    if dtype == TF32 { ElemType::Float(FloatKind::F32) } else { dtype }
}

/// The type of the bias: that of the factors in memory, or of `y` if they are codes.
pub(super) fn element(dtype: ElemType, y_dtype: ElemType) -> ElemType {
    if dtype == E4M3 { y_dtype } else { storage(dtype) }
}

/// Checks that each extent or stride is a whole number of vectors of 16 bytes.
fn check_vectors(problem: &Problem, extents: &[(&'static str, usize)]) -> Result<()> {
    let per_vec = 16 / problem.dtype.size();
    match extents.iter().find(|(_, got)| !got.is_multiple_of(per_vec)) {
        Some(&(setting, got)) => refused(setting, got, format!("a multiple of {per_vec}")),
        None => Ok(()),
    }
}

impl Dot {
    /// The most rows that fit into registers.
    pub const MAX_ROWS: usize = 8;

    /// Checks that the blueprint can run on the device.
    pub(super) fn check(&self, device: &DeviceProfile) -> Result<()> {
        if device.plane == 1 {
            return refused("plane", device.plane, "units that run in planes");
        }
        if !(1..=Self::MAX_ROWS).contains(&self.rows) {
            return refused("rows", self.rows, format!("from 1 to {}", Self::MAX_ROWS));
        }
        Ok(())
    }
}

impl Skinny {
    pub(super) fn tiles(&self, problem: &Problem) -> GemmTileShape {
        GemmTileShape {
            row_tiles: self.output_tiles,
            column_tiles: self.row_tiles,
            row_planes: self.output_planes,
            column_planes: 1,
            depth_planes: self.depth_planes,
            depth: self.depth_vecs * 16 / problem.dtype.size(),
            stages: self.stages,
            by_input: false,
            gated: if problem.gated { Gated::Rows } else { Gated::Neither },
            dtype: problem.dtype,
        }
    }

    /// Checks that the blueprint can run on the device.
    pub(super) fn check(&self, device: &DeviceProfile, problem: &Problem) -> Result<()> {
        let tiles = self.tiles(problem);
        let machine = on_unit!(self.unit, |U| Machine::skinny::<U>(tiles, self.norm));
        check_tiles(self.unit, tiles, &machine, device)?;
        check_vectors(problem, &[("d_in", problem.d_in), ("stride", problem.align)])?;
        if !machine.rows.is_multiple_of(4 * problem.halves()) {
            return refused("output_tiles", self.output_tiles, "a multiple of 4 outputs");
        }
        if machine.columns < problem.rows {
            return refused("row_tiles", self.row_tiles, format!("enough for {} rows", problem.rows));
        }
        // Before it is divided by its root mean square, a row times its gains can exceed f16.
        if self.norm && problem.dtype == ElemType::Float(FloatKind::F16) {
            return refused("norm", "f16", "f32 or bf16");
        }
        let most = device.max_cluster();
        if self.cluster == 0 || self.cluster > most {
            return refused("cluster", self.cluster, format!("from 1 to {most}"));
        }
        Ok(())
    }
}

impl Tiled {
    pub(crate) fn tiles(&self, dtype: ElemType, by_input: bool, gated: bool) -> GemmTileShape {
        GemmTileShape {
            row_tiles: self.row_tiles,
            column_tiles: self.column_tiles,
            row_planes: self.row_planes,
            column_planes: self.column_planes,
            depth_planes: 1,
            depth: self.depth_vecs * 16 / dtype.size(),
            stages: self.stages,
            by_input,
            gated: if gated { Gated::Columns } else { Gated::Neither },
            dtype,
        }
    }

    /// Tiles of up to so many rows and 128 columns.
    ///
    /// # Errors
    ///
    /// If no matrix unit works in the planes of the device.
    pub(crate) fn of(device: &DeviceProfile, dtype: ElemType, rows: usize) -> Result<Self> {
        let mfma = match dtype {
            ElemType::Float(FloatKind::F16) => Some(Instruction::MfmaF16),
            ElemType::Float(FloatKind::BF16) => Some(Instruction::MfmaBf16),
            E4M3 => Some(Instruction::MfmaFp8),
            _ => None,
        };
        // `[row tiles, column tiles, row planes, column planes]` for 128, 64 and 16 rows.
        let (unit, depth_vecs, stages, shapes) = match (device.arch, device.plane) {
            (arch, 32) if (mfma.is_some() || dtype == TF32) && Instruction::MmaSync.exists_on(arch) => {
                (MmaKind::MmaSync, 4, 4, [[4, 8, 2, 2], [2, 8, 2, 2], [1, 4, 1, 4]])
            }
            (arch, 64) if mfma.is_some_and(|mfma| mfma.exists_on(arch)) => {
                let unit = if rows <= 16 { MmaKind::Mfma16 } else { MmaKind::Mfma32 };
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
        let [row_tiles, column_tiles, row_planes, column_planes] = match rows {
            ..=16 => few,
            17..=64 => some,
            _ => many,
        };
        Ok(Self { unit, row_tiles, column_tiles, row_planes, column_planes, depth_vecs, stages })
    }

    /// Checks that the blueprint can run on the device.
    pub(crate) fn check(&self, device: &DeviceProfile, problem: &Problem, by_input: bool) -> Result<()> {
        let tiles = self.tiles(problem.dtype, by_input, problem.gated);
        let machine = on_unit!(self.unit, |U| Machine::tiled::<U>(tiles));
        check_tiles(self.unit, tiles, &machine, device)?;
        if problem.dtype == E4M3 {
            // A stage, and the outputs of a cube, are within a block with a scale of its own.
            let columns = machine.columns / problem.halves();
            if tiles.depth != BLOCK {
                return refused("depth_vecs", self.depth_vecs, format!("{BLOCK} inputs of e4m3"));
            }
            if !BLOCK.is_multiple_of(columns) {
                return refused("columns", columns, format!("a part of {BLOCK} outputs of e4m3"));
            }
        }
        check_vectors(problem, &[("d_in", problem.d_in), ("d_out", problem.d_out), ("stride", problem.align)])
    }
}

impl WarpSpecialized {
    pub(super) fn tiles(
        &self,
        [dtype, y_dtype]: [ElemType; 2],
        by_input: bool,
        steps: Steps,
    ) -> WarpgroupTiles {
        let Self { outputs, stages, cluster, .. } = *self;
        let operands = OperandType::of(dtype);
        WarpgroupTiles { outputs, stages, cluster, operands, y: y_dtype, by_input, steps }
    }

    /// Checks that the blueprint can run on the device.
    pub(crate) fn check(&self, device: &DeviceProfile, problem: &Problem, by_input: bool) -> Result<()> {
        if let Some(instruction) = MmaKind::Wgmma.instruction(KERNEL, problem.dtype)? {
            instruction.check(KERNEL, device.arch)?;
        }
        check_vectors(
            problem,
            &[("d_in", problem.d_in), ("d_out", problem.d_out), ("stride", problem.align)],
        )?;
        if self.outputs == 0 || self.outputs > 256 || !self.outputs.is_multiple_of(32) {
            return refused("outputs", self.outputs, "a multiple of 32 up to 256");
        }
        // The sums of a stage are beside those of all.
        if problem.dtype == E4M3 && self.outputs > 128 {
            return refused("outputs", self.outputs, "at most 128 of e4m3");
        }
        if problem.dtype == E4M3 && self.cluster > 1 {
            return refused("cluster", self.cluster, "1 of e4m3");
        }
        if by_input && !self.outputs.is_multiple_of(64) {
            return refused("outputs", self.outputs, "a multiple of 64, by input");
        }
        if self.group == 0 {
            return refused("group", self.group, "at least 1");
        }
        if ![1, 2, 4, 8].contains(&self.cluster) {
            return refused("cluster", self.cluster, "1, 2, 4 or 8");
        }
        let shared = WarpgroupTiles::shared_vecs(self.outputs, self.stages) * 16;
        if self.stages < 3 || shared > device.shared_memory {
            let expected = format!("at least 3 and at most {} bytes, not {shared}", device.shared_memory);
            return refused("stages", self.stages, expected);
        }
        Ok(())
    }
}
