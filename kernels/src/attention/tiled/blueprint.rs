use std::fmt;

use cubecl::ir::{ElemType, FloatKind};

use super::super::blueprint::{Mixed, Problem};
use super::super::specialized;
use crate::isa::Instruction;
use crate::unit::{Layout, Mfma16, Mfma32, MmaSync, Scalar1, Scalar32, Scalar64, Tiles, shared_quads};
use crate::{DeviceProfile, Refusal, Result};

pub(super) const KERNEL: &str = "tiled attention";

const F32: ElemType = ElemType::Float(FloatKind::F32);
const F16: ElemType = ElemType::Float(FloatKind::F16);
const BF16: ElemType = ElemType::Float(FloatKind::BF16);

/// Who multiplies the tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// `mma.sync` m16n8k16.
    MmaSync,
    /// `wgmma` m64nNk16, by warpgroups of four planes, while another one copies.
    Wgmma,
    /// MFMA 16x16x16.
    Mfma16,
    /// MFMA 32x32x8.
    Mfma32,
    /// Plain multiplications, on a CPU.
    Scalar1,
    /// Plain multiplications, 32 lanes.
    Scalar32,
    /// Plain multiplications, 64 lanes.
    Scalar64,
}

/// How one cube of the tiled kernel works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tiled {
    /// Who multiplies.
    pub unit: Unit,
    /// Tiles of rows that a plane owns.
    pub row_tiles: usize,
    /// Planes with different rows.
    pub row_planes: usize,
    /// Keys that a plane takes at a time.
    pub keys: usize,
    /// Planes with the same rows and different keys.
    pub key_planes: usize,
    /// Tiles of keys and values in shared memory.
    pub stages: usize,
    /// Whether the queries stay in registers.
    pub resident: bool,
    /// Cubes with different rows that read keys and values once for all of them: a cluster. 1 for none.
    pub cluster: usize,
}

/// The first CUDA, 12.3, that loads code which makes tensor maps.
const TENSOR_MAPS: i32 = 12030;

/// What a unit is, of what [`Layout`] says and the blueprint must know.
struct Machine {
    plane: usize,
    rows: usize,
    columns: usize,
    keys: usize,
    acc: usize,
    is_async: bool,
    shared_quads: fn(Tiles) -> usize,
    staged_quads: fn(Tiles) -> usize,
}

impl Machine {
    fn of<L: Layout>() -> Self {
        Self {
            plane: L::PLANE,
            rows: L::ROWS,
            columns: L::COLUMNS,
            keys: L::KEYS,
            acc: L::ACC,
            is_async: L::ASYNC,
            shared_quads: shared_quads::<L>,
            staged_quads: L::staged_quads,
        }
    }
}

impl Unit {
    fn machine(self) -> Machine {
        match self {
            Self::MmaSync => Machine::of::<MmaSync>(),
            // A warp's share of the accumulators is the same.
            Self::Wgmma => Machine { shared_quads: specialized::shared_quads, ..Machine::of::<MmaSync>() },
            Self::Mfma16 => Machine::of::<Mfma16>(),
            Self::Mfma32 => Machine::of::<Mfma32>(),
            Self::Scalar1 => Machine::of::<Scalar1>(),
            Self::Scalar32 => Machine::of::<Scalar32>(),
            Self::Scalar64 => Machine::of::<Scalar64>(),
        }
    }

    /// The instruction that multiplies tiles of a type; none for plain multiplications.
    pub(super) fn instruction(self, dtype: ElemType) -> Result<Option<Instruction>> {
        let instruction = match (self, dtype) {
            (Self::Scalar1 | Self::Scalar32 | Self::Scalar64, F32 | F16 | BF16) => None,
            (Self::MmaSync, F16 | BF16) => Some(Instruction::MmaSync),
            (Self::Wgmma, F16 | BF16) => Some(Instruction::Wgmma),
            (Self::Mfma16 | Self::Mfma32, F16) => Some(Instruction::MfmaF16),
            (Self::Mfma16 | Self::Mfma32, BF16) => Some(Instruction::MfmaBf16),
            _ => {
                let expected = format!("a type that {self:?} multiplies");
                return Err(Refusal::blueprint(KERNEL, "dtype", dtype, expected));
            }
        };
        Ok(instruction)
    }
}

impl Tiled {
    /// Whether the blueprint can run, or why not.
    pub(crate) fn check(&self, device: &DeviceProfile, problem: &Problem) -> Result<()> {
        let refused =
            |setting, got: usize, expected: String| Err(Refusal::blueprint(KERNEL, setting, got, expected));
        if problem.kv_dtype != problem.dtype {
            let expected = format!("{}, the type of the queries", problem.dtype);
            return Err(Refusal::blueprint(KERNEL, "kv_dtype", problem.kv_dtype, expected));
        }
        let instruction = self.unit.instruction(problem.dtype)?;
        if let Some(instruction) = instruction {
            instruction.check(KERNEL, device.arch)?;
        }
        let machine = self.unit.machine();
        if machine.plane != device.plane as usize {
            return refused("plane", device.plane as usize, format!("{} lanes", machine.plane));
        }
        let per_quad = 16 / problem.dtype.size();
        let whole = if instruction.is_some() { 16 } else { per_quad };
        for (setting, got) in [("head_dim", problem.dims.qk), ("head_dim_vo", problem.dims.vo)] {
            if got == 0 || got % whole != 0 || got > 256 {
                return refused(setting, got, format!("a multiple of {whole} up to 256"));
            }
        }
        for (setting, got) in [("stride of q or k", problem.align.qk), ("stride of v", problem.align.vo)] {
            if got % per_quad != 0 {
                return refused(setting, got, "rows aligned to 16 bytes".into());
            }
        }
        // A NaN is not positive.
        let positive = problem.scale > 0.0;
        if !positive {
            return Err(Refusal::blueprint(KERNEL, "scale", problem.scale, "a positive one"));
        }
        for (setting, got) in [
            ("row_tiles", self.row_tiles),
            ("row_planes", self.row_planes),
            ("key_planes", self.key_planes),
            ("keys", self.keys),
        ] {
            if got == 0 {
                return refused(setting, got, "at least 1".into());
            }
        }
        if !self.keys.is_multiple_of(machine.keys) {
            return refused("keys", self.keys, format!("a multiple of {}", machine.keys));
        }
        if machine.is_async != (self.stages > 1) {
            let expected = if machine.is_async { "at least 2" } else { "1" };
            return refused("stages", self.stages, expected.into());
        }
        let tiles = self.tiles(problem);
        if self.unit == Unit::Wgmma {
            if let Some(cuda) = device.cuda.filter(|&cuda| cuda < TENSOR_MAPS) {
                return refused(
                    "cuda",
                    cuda as usize,
                    format!("{TENSOR_MAPS} or newer, which knows tensor maps"),
                );
            }
            specialized::check(tiles)?;
        } else if self.cluster != 1 {
            return refused("cluster", self.cluster, "1: no other unit shares what it copies".into());
        }
        let units = self.planes() * machine.plane;
        if units > device.max_units as usize {
            return refused("row_planes", self.row_planes, format!("at most {} units", device.max_units));
        }
        // Accumulators and what is on its way to shared memory; the rest is for queries and addresses.
        let registers = self.row_tiles
            * (problem.dims.vo.div_ceil(machine.columns) + self.keys / machine.columns)
            * machine.acc
            + 4 * (machine.staged_quads)(tiles);
        let most = match device.plane {
            // A CPU has them in memory.
            1 => usize::MAX,
            // CDNA has 512.
            64 => 272,
            _ => 208,
        };
        if registers > most {
            let expected = format!("at most {most} registers, not {registers}");
            return refused("row_tiles", self.row_tiles, expected);
        }
        let shared = self.shared_memory(problem);
        if shared > device.shared_memory {
            let expected = format!("shared memory up to {}, not {shared} bytes", device.shared_memory);
            return refused("stages", self.stages, expected);
        }
        Ok(())
    }

    /// Rows of a cube, or of all cubes of a cluster.
    pub(crate) fn rows(&self) -> usize {
        self.cluster * self.row_planes * self.row_tiles * self.unit.machine().rows
    }

    /// Planes of a cube.
    pub(super) fn planes(&self) -> usize {
        let copying = if self.unit == Unit::Wgmma { specialized::PRODUCERS } else { 0 };
        self.row_planes * self.key_planes + copying
    }

    /// Keys of a cube at a time.
    pub(crate) fn cube_keys(&self) -> usize {
        self.keys * self.key_planes
    }

    pub(super) fn shared_memory(&self, problem: &Problem) -> usize {
        (self.unit.machine().shared_quads)(self.tiles(problem)) * 16
    }

    pub(super) fn tiles(&self, problem: &Problem) -> Tiles {
        Tiles {
            dims: problem.dims,
            row_tiles: self.row_tiles,
            keys: self.keys,
            row_planes: self.row_planes,
            key_planes: self.key_planes,
            stages: self.stages,
            resident: self.resident,
            cluster: self.cluster,
            // On CDNA it halves the shared memory that a plane takes, and with it doubles the planes of a core.
            direct_keys: self.row_planes == 1 && matches!(self.unit, Unit::Mfma16 | Unit::Mfma32),
            dtype: problem.dtype,
        }
    }
}

impl Mixed {
    /// Whether both can run, and together.
    pub(crate) fn check(&self, device: &DeviceProfile, problem: &Problem) -> Result<()> {
        self.many.check(device, problem)?;
        self.few.check(device, problem)?;
        let (got, wanted) = (self.few.planes(), self.many.planes());
        if got != wanted {
            let expected = format!("{wanted} planes, as tiles of many rows have");
            return Err(Refusal::blueprint(KERNEL, "key_planes", got, expected));
        }
        let units = (self.many.unit, self.few.unit);
        if units.0 == Unit::Wgmma {
            let expected = "planes that multiply alone: warpgroups have tiles of one size";
            return Err(Refusal::blueprint(KERNEL, "unit", "Wgmma", expected));
        }
        if units.0 != units.1 && units != (Unit::Mfma32, Unit::Mfma16) {
            let expected = format!("{:?}, as tiles of many rows have", units.0);
            return Err(Refusal::blueprint(KERNEL, "unit", format!("{:?}", units.1), expected));
        }
        Ok(())
    }
}

impl fmt::Display for Tiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unit, row_planes, row_tiles, key_planes, keys, stages, resident, cluster } = self;
        write!(
            f,
            "tiled on {unit:?}: {} rows ({row_planes} planes of {row_tiles} tiles), {} keys ({key_planes} planes of \
             {keys}), {stages} stages, queries in {}",
            self.rows(),
            self.cube_keys(),
            if *resident { "registers" } else { "shared memory" },
        )?;
        if *cluster > 1 { write!(f, ", clusters of {cluster}") } else { Ok(()) }
    }
}
