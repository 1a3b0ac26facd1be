use std::fmt;

use cubecl::ir::{ElemType, FloatKind};

use super::super::blueprint::Problem;
use crate::isa::{Arch, Instruction};
use crate::unit::{Layout, Mfma16, Mfma32, MmaSync, PER_QUAD, Tiles, shared_quads};
use crate::{DeviceProfile, Refusal, Result};

const KERNEL: &str = "tiled attention";

/// Below this many large tiles for each core, small ones end sooner.
const SMALL_WAVES: usize = 2;

/// Who multiplies the tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// `mma.sync` m16n8k16.
    MmaSync,
    /// MFMA 16x16x16.
    Mfma16,
    /// MFMA 32x32x8.
    Mfma32,
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
    /// Keys of a cube, if the keys of a request are split among cubes.
    pub chunk: Option<usize>,
}

/// What a unit is, of what [`Layout`] says and the blueprint must know.
struct Machine {
    plane: usize,
    rows: usize,
    columns: usize,
    keys: usize,
    acc: usize,
    is_async: bool,
    shared_quads: fn(Tiles) -> usize,
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
        }
    }
}

impl Unit {
    fn machine(self) -> Machine {
        match self {
            Self::MmaSync => Machine::of::<MmaSync>(),
            Self::Mfma16 => Machine::of::<Mfma16>(),
            Self::Mfma32 => Machine::of::<Mfma32>(),
        }
    }

    fn instruction(self, bf16: bool) -> Instruction {
        match (self, bf16) {
            (Self::MmaSync, _) => Instruction::MmaSync,
            (Self::Mfma16 | Self::Mfma32, false) => Instruction::MfmaF16,
            (Self::Mfma16 | Self::Mfma32, true) => Instruction::MfmaBf16,
        }
    }
}

impl Tiled {
    /// The choice for a problem, or why there is none.
    pub(crate) fn auto(device: &DeviceProfile, problem: &Problem) -> Result<Self> {
        is_bf16(problem.dtype)?;
        let mut chosen = match device.arch {
            Arch::Gfx(_) => Self::on_cdna(problem),
            _ => Self::on_nvidia(device, problem),
        };
        chosen.chunk = chosen.split(device, problem);
        chosen.check(device, problem)?;
        Ok(chosen)
    }

    /// Whether all rows of a key head fit into `rows`.
    fn fits(problem: &Problem, rows: usize) -> bool {
        problem.max_qo_len * problem.group() <= rows
    }

    fn on_nvidia(device: &DeviceProfile, problem: &Problem) -> Self {
        let dim = problem.dims.qk.max(problem.dims.vo);
        let few = Self {
            unit: Unit::MmaSync,
            row_tiles: 1,
            row_planes: 1,
            keys: 16,
            key_planes: 4,
            stages: if dim <= 128 { 3 } else { 2 },
            resident: dim <= 128,
            chunk: None,
        };
        let many = Self { row_planes: 4, keys: 64, key_planes: 1, stages: 2, ..few };
        if Self::fits(problem, 16) {
            few
        } else if dim > 128 {
            // The accumulators of 32 rows would not fit into registers.
            Self { row_planes: 8, keys: 32, resident: false, ..many }
        } else {
            // 32 rows a plane halve the reads of keys and values: 349 against 320 TFLOP/s over 8192 tokens. But 64 rows
            // spread over the machine where 128 leave it half empty: 231 against 166 over 1024 (H200, 32/8 heads).
            let large = Self { row_tiles: 2, resident: dim <= 64, ..many };
            let tiles = (problem.tokens * problem.group()).div_ceil(large.rows()) * problem.kv_heads;
            if tiles < SMALL_WAVES * device.cores.unwrap_or(1) { many } else { large }
        }
    }

    fn on_cdna(problem: &Problem) -> Self {
        let dim = problem.dims.qk.max(problem.dims.vo);
        let many = Self {
            unit: Unit::Mfma32,
            row_tiles: 1,
            row_planes: 4,
            keys: if dim <= 128 { 64 } else { 32 },
            key_planes: 1,
            stages: 1,
            resident: true,
            chunk: None,
        };
        if Self::fits(problem, 16) {
            Self {
                unit: Unit::Mfma16,
                row_planes: 1,
                keys: 32,
                key_planes: if dim <= 128 { 4 } else { 2 },
                ..many
            }
        } else {
            many
        }
    }

    /// Keys of a chunk, so that every core has one, if the tiles of rows alone leave cores without work. More than one
    /// for each core read no faster (2149 GB/s with one, 1996 with two: 1 x 16384 keys, H200).
    fn split(&self, device: &DeviceProfile, problem: &Problem) -> Option<usize> {
        let (cores, least) = (device.cores?, 4 * self.cube_keys());
        let row_tiles = (problem.max_qo_len * problem.group()).div_ceil(self.rows());
        let tiles = problem.requests * row_tiles * problem.kv_heads;
        // With fewer than 4 tiles of keys merging costs more than it gains.
        if tiles == 0 || 4 * tiles > 3 * cores || problem.keys <= least * problem.requests {
            return None;
        }
        let chunks = (cores / (problem.kv_heads * row_tiles)).max(1);
        Some(problem.keys.div_ceil(chunks).next_multiple_of(self.cube_keys()).max(least))
    }

    /// Whether the blueprint can run, or why not.
    pub(crate) fn check(&self, device: &DeviceProfile, problem: &Problem) -> Result<()> {
        let refused = |setting, got, expected: String| {
            Err(Refusal::Blueprint { kernel: KERNEL, setting, got, expected })
        };
        let bf16 = is_bf16(problem.dtype)?;
        self.unit.instruction(bf16).check(KERNEL, device.arch)?;
        let machine = self.unit.machine();
        for (setting, got) in [("head_dim", problem.dims.qk), ("head_dim_vo", problem.dims.vo)] {
            if got % 16 != 0 || got > 256 {
                return refused(setting, got, "a multiple of 16 up to 256".into());
            }
        }
        for (setting, got) in [("stride of q or k", problem.align.qk), ("stride of v", problem.align.vo)] {
            if got % PER_QUAD != 0 {
                return refused(setting, got, "rows aligned to 16 bytes".into());
            }
        }
        // A NaN is not positive.
        let positive = problem.scale > 0.0;
        if !positive {
            return refused("scale", 0, format!("a positive one, not {}", problem.scale));
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
        let tiles = self.tiles(problem)?;
        let units = tiles.planes() * machine.plane;
        if units > device.max_units as usize {
            return refused("row_planes", self.row_planes, format!("at most {} units", device.max_units));
        }
        // Two words a register: accumulators, queries and what is left for addresses.
        let registers = self.row_tiles
            * (problem.dims.vo.div_ceil(machine.columns) + self.keys / machine.columns)
            * machine.acc;
        if registers > 208 {
            return refused(
                "row_tiles",
                self.row_tiles,
                format!("at most 208 accumulators, not {registers}"),
            );
        }
        if self.chunk.is_some_and(|chunk| chunk == 0 || chunk % self.cube_keys() != 0) {
            return refused("chunk", self.chunk.unwrap_or(0), format!("a multiple of {}", self.cube_keys()));
        }
        let shared = self.shared_memory(problem);
        if shared > device.shared_memory {
            let expected = format!("shared memory up to {}, not {shared} bytes", device.shared_memory);
            return refused("stages", self.stages, expected);
        }
        Ok(())
    }

    /// Rows of a cube.
    pub(crate) fn rows(&self) -> usize {
        self.row_planes * self.row_tiles * self.unit.machine().rows
    }

    fn cube_keys(&self) -> usize {
        self.keys * self.key_planes
    }

    fn shared_memory(&self, problem: &Problem) -> usize {
        self.tiles(problem).map_or(usize::MAX, |tiles| (self.unit.machine().shared_quads)(tiles) * 16)
    }

    pub(super) fn tiles(&self, problem: &Problem) -> Result<Tiles> {
        Ok(Tiles {
            dims: problem.dims,
            row_tiles: self.row_tiles,
            keys: self.keys,
            row_planes: self.row_planes,
            key_planes: self.key_planes,
            stages: self.stages,
            resident: self.resident,
            // On CDNA it halves the shared memory that a plane takes, and with it doubles the planes of a core.
            direct_keys: self.row_planes == 1 && self.unit != Unit::MmaSync,
            bf16: is_bf16(problem.dtype)?,
        })
    }
}

fn is_bf16(dtype: ElemType) -> Result<bool> {
    match dtype {
        ElemType::Float(FloatKind::BF16) => Ok(true),
        ElemType::Float(FloatKind::F16) => Ok(false),
        _ => Err(Refusal::Blueprint {
            kernel: KERNEL,
            setting: "element size",
            got: dtype.size(),
            expected: "f16 or bf16".into(),
        }),
    }
}

impl fmt::Display for Tiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unit, row_tiles, row_planes, keys, key_planes, stages, resident, chunk } = self;
        write!(
            f,
            "tiled on {unit:?}: {} rows ({row_planes} planes of {row_tiles} tiles), {} keys ({key_planes} planes of \
             {keys}), {stages} stages, queries in {}",
            self.rows(),
            self.cube_keys(),
            if *resident { "registers" } else { "shared memory" },
        )?;
        match chunk {
            Some(chunk) => write!(f, ", split into chunks of {chunk} keys"),
            None => Ok(()),
        }
    }
}
