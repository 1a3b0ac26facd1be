use cubecl::ir::{ElemType, FloatKind};

use super::super::blueprint;
use super::tiles::CodeTiles;
use crate::device::{DeviceProfile, Instruction, Machine, Refusal, Result};
use crate::mma::{BLOCK, CodeMma, Gated, GemmTileShape, Mfma16, MmaKind, MmaSync, WeightFormat};

pub(super) const KERNEL: &str = "quantized gemm";

/// The inputs of the choice of a blueprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Elements of a row of `x`.
    pub d_in: usize,
    /// Elements of a row of `y`.
    pub d_out: usize,
    /// Type of `x` and `y`.
    pub dtype: ElemType,
    /// Format of the weight.
    pub format: WeightFormat,
    /// Largest vector of one load of `x`, in elements.
    pub align: usize,
    /// Largest vector of one load of codes or scales, in bytes.
    pub weight_align: usize,
}

impl Problem {
    /// The product of 16- or 32-bit numbers that follows once the weight is dequantised.
    pub(super) fn dense(&self) -> blueprint::Problem {
        let Self { rows, d_in, d_out, dtype, .. } = *self;
        // A new weight begins where memory does, and is contiguous.
        let align = self.align.min(1 << d_in.trailing_zeros().min(6));
        blueprint::Problem::product([rows, d_in, d_out], dtype, align)
    }
}

/// The kernel that runs, and its comptime settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blueprint {
    /// Codes as operands.
    FewRows(FewRows),
    /// The weight in the type of `x`, and then this product.
    Dequantized(blueprint::Blueprint),
}

/// The comptime settings of the kernel for few rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FewRows {
    /// The instruction that multiplies tiles: [`MmaKind::MmaSync`] or [`MmaKind::Mfma16`].
    pub unit: MmaKind,
    /// Tiles of outputs that a plane owns.
    pub output_tiles: usize,
    /// Planes with different outputs.
    pub output_planes: usize,
    /// Tiles of rows of `x`, all of which each plane owns.
    pub row_tiles: usize,
    /// Planes with different parts of the inputs of a stage.
    pub depth_planes: usize,
    /// Inputs at a time: 128, or a multiple, for each of these planes.
    pub depth: usize,
    /// Stages in shared memory.
    pub stages: usize,
    /// Cubes with different parts of the inputs.
    pub cluster: usize,
}

/// A call with the type of a unit that multiplies codes, or else a refusal.
macro_rules! on_code_unit {
    ($unit:expr, |$type:ident| $call:expr) => {
        match $unit {
            MmaKind::MmaSync => {
                type $type = MmaSync;
                $call
            }
            MmaKind::Mfma16 => {
                type $type = Mfma16;
                $call
            }
            other => Err(Refusal::blueprint(KERNEL, "unit", format!("{other:?}"), "MmaSync or Mfma16")),
        }
    };
}
pub(super) use on_code_unit;

fn refused<T>(setting: &'static str, got: impl ToString, expected: impl Into<String>) -> Result<T> {
    Err(Refusal::blueprint(KERNEL, setting, got, expected))
}

/// Refuses groups that no kernel knows, and rows that are not made of blocks where they must be.
pub(super) fn check_format(format: WeightFormat, d_in: usize) -> Result<()> {
    if let WeightFormat::Int4 { group } = format
        && ![32, 64, 128].contains(&group)
    {
        return refused("group", group, "32, 64 or 128");
    }
    if !d_in.is_multiple_of(format.unit()) {
        return refused("d_in", d_in, format!("a multiple of {}", format.unit()));
    }
    Ok(())
}

impl FewRows {
    pub(super) fn tiles(&self, device: &DeviceProfile, problem: &Problem) -> CodeTiles {
        let has = |instruction: Instruction| instruction.exists_on(device.arch);
        let machine = match problem.format {
            WeightFormat::E4m3(_) if has(Instruction::CvtFp8) => Machine::Nvidia,
            WeightFormat::E4m3(_) if has(Instruction::CvtFp8Fnuz) => Machine::Amd,
            WeightFormat::Int4 { .. } if has(Instruction::MmaSync) => Machine::Nvidia,
            _ => Machine::Portable,
        };
        CodeTiles {
            tiles: GemmTileShape {
                row_tiles: self.output_tiles,
                column_tiles: self.row_tiles,
                row_planes: self.output_planes,
                column_planes: 1,
                depth_planes: self.depth_planes,
                depth: self.depth,
                stages: self.stages,
                by_input: false,
                gated: Gated::Neither,
                dtype: problem.dtype,
            },
            format: problem.format,
            machine,
        }
    }

    /// Checks that the blueprint can run on the device.
    pub(super) fn check(&self, device: &DeviceProfile, problem: &Problem) -> Result<()> {
        if !matches!(problem.dtype, ElemType::Float(FloatKind::F16 | FloatKind::BF16)) {
            return refused("dtype", problem.dtype, "16 bits");
        }
        if let Some(instruction) = self.unit.instruction(KERNEL, problem.dtype)? {
            instruction.check(KERNEL, device.arch)?;
        }
        check_format(problem.format, problem.d_in)?;
        for (setting, got) in [
            ("output_tiles", self.output_tiles),
            ("output_planes", self.output_planes),
            ("row_tiles", self.row_tiles),
            ("depth_planes", self.depth_planes),
            ("depth", self.depth),
            ("stages", self.stages),
        ] {
            if got == 0 {
                return refused(setting, got, "at least 1");
            }
        }
        if !self.depth.is_multiple_of(BLOCK * self.depth_planes) {
            return refused("depth", self.depth, format!("a multiple of {BLOCK} for each plane"));
        }
        on_code_unit!(self.unit, |U| self.check_unit::<U>(device, problem))?;
        self.check_alignment(problem)?;
        let most = device.max_cluster();
        if self.cluster == 0 || self.cluster > most {
            return refused("cluster", self.cluster, format!("from 1 to {most}"));
        }
        Ok(())
    }

    fn check_unit<U: CodeMma>(&self, device: &DeviceProfile, problem: &Problem) -> Result<()> {
        let tiles = self.tiles(device, problem);
        if U::PLANE != device.plane as usize {
            return refused("plane", device.plane, format!("{} lanes", U::PLANE));
        }
        if U::ASYNC != (self.stages > 1) {
            return refused("stages", self.stages, if U::ASYNC { "at least 2" } else { "1" });
        }
        if tiles.tiles.columns::<U>() < problem.rows {
            return refused("row_tiles", self.row_tiles, format!("enough for {} rows", problem.rows));
        }
        let units = tiles.tiles.planes() * U::PLANE;
        if units > device.max_units as usize {
            return refused("units", units, format!("at most {}", device.max_units));
        }
        let shared = tiles.shared_vecs::<U>() * 16;
        if shared > device.shared_memory {
            return refused("shared memory", shared, format!("at most {} bytes", device.shared_memory));
        }
        Ok(())
    }

    /// Operands are copied 16 bytes at a time.
    fn check_alignment(&self, problem: &Problem) -> Result<()> {
        let (unit, outputs) = match problem.format {
            WeightFormat::E4m3(_) => (16, 1),
            WeightFormat::Int4 { .. } => (BLOCK, 4),
        };
        for (setting, got, unit) in [
            ("d_in", problem.d_in, unit),
            ("d_out", problem.d_out, outputs),
            ("stride", problem.align, 8),
            ("bytes", problem.weight_align, 16),
        ] {
            if !got.is_multiple_of(unit) {
                return refused(setting, got, format!("a multiple of {unit}"));
            }
        }
        Ok(())
    }
}
