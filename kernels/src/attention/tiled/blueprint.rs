use std::fmt;

use cubecl::ir::{ElemType, FloatKind};

use super::super::blueprint::{Blueprint, Mixed, Problem};
use super::super::plan::Span;
use super::super::specialized;
use crate::isa::{Arch, Instruction};
use crate::unit::{Layout, Mfma16, Mfma32, MmaSync, Scalar1, Scalar32, Scalar64, Tiles, shared_quads};
use crate::{DeviceProfile, Refusal, Result};

const KERNEL: &str = "tiled attention";

const F32: ElemType = ElemType::Float(FloatKind::F32);
const F16: ElemType = ElemType::Float(FloatKind::F16);
const BF16: ElemType = ElemType::Float(FloatKind::BF16);

/// Below this many large tiles for each core, small ones end sooner.
const SMALL_WAVES: usize = 2;

/// Up to so many rows of a request its keys are read slower than multiplied by `mma.sync`.
const FEW_ROWS: usize = 16;

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
    fn instruction(self, dtype: ElemType) -> Result<Option<Instruction>> {
        let instruction = match (self, dtype) {
            (Self::Scalar1 | Self::Scalar32 | Self::Scalar64, F32 | F16 | BF16) => None,
            (Self::MmaSync, F16 | BF16) => Some(Instruction::MmaSync),
            (Self::Wgmma, F16 | BF16) => Some(Instruction::Wgmma),
            (Self::Mfma16 | Self::Mfma32, F16) => Some(Instruction::MfmaF16),
            (Self::Mfma16 | Self::Mfma32, BF16) => Some(Instruction::MfmaBf16),
            _ => {
                return Err(Refusal::Blueprint {
                    kernel: KERNEL,
                    setting: "element size",
                    got: dtype.size(),
                    expected: format!("a type that {self:?} multiplies"),
                });
            }
        };
        Ok(instruction)
    }
}

impl Tiled {
    /// The choice for a batch, or why there is none. With `fixed` it does not depend on the batch.
    pub(in super::super) fn auto(
        device: &DeviceProfile,
        problem: &Problem,
        spans: &[Span],
        fixed: bool,
    ) -> Result<Blueprint> {
        let has =
            |unit: Unit| matches!(unit.instruction(problem.dtype), Ok(Some(it)) if it.exists_on(device.arch));
        let group = problem.group();
        let all: usize = spans.iter().map(|span| span.qo_len * group).sum();
        // One size for any number of rows, if it may not depend on the batch.
        let longest = match fixed {
            true => usize::MAX,
            false => spans.iter().map(|span| span.qo_len * group).max().unwrap_or(0),
        };
        if has(Unit::Wgmma) && !fixed && longest > FEW_ROWS && !Self::is_short(device, problem, spans) {
            let can = |tiled: &Self| tiled.check(device, problem).is_ok();
            if let Some(tiled) = Self::on_hopper(problem, spans).find(can) {
                return Ok(Blueprint::Tiled(tiled));
            }
        }
        let mixed = if has(Unit::MmaSync) {
            // A size between the extremes, if it may not depend on the batch.
            Some(Self::on_nvidia(device, problem, if fixed { 0 } else { all }))
        } else if has(Unit::Mfma32) {
            Some(Self::on_cdna(problem))
        } else {
            None
        };
        if let Some(mixed) = mixed {
            let has_few = spans.iter().any(|span| (1..=mixed.few.rows()).contains(&(span.qo_len * group)));
            let both = fixed || (has_few && longest > mixed.few.rows());
            let one = if longest <= mixed.few.rows() { mixed.few } else { mixed.many };
            let choices = [both.then_some(Blueprint::Mixed(mixed)), Some(Blueprint::Tiled(one))];
            let mut choices = choices.into_iter().flatten();
            if let Some(chosen) = choices.find(|choice| choice.check(device, problem).is_ok()) {
                return Ok(chosen);
            }
        }
        let tiled = Self::on_plain(device, problem, longest)?;
        tiled.check(device, problem)?;
        Ok(Blueprint::Tiled(tiled))
    }

    /// Warpgroups with the most keys at a time that there is room for. Also for requests with few rows beside others with
    /// many: their tiles are multiplied nearly empty, but hardly slower than their keys are read.
    fn on_hopper(problem: &Problem, spans: &[Span]) -> impl Iterator<Item = Self> + use<> {
        // Of small heads the softmax is most of the work, which a third warpgroup hides better: 427 TFLOP/s over 8192
        // tokens against 400 (H200).
        let row_planes = if problem.dims.qk.max(problem.dims.vo) <= 64 { 12 } else { 8 };
        let tiled = move |keys| Self {
            unit: Unit::Wgmma,
            row_tiles: 1,
            row_planes,
            keys,
            key_planes: 1,
            stages: 2,
            resident: false,
        };
        // The more, the less often sums are rescaled and warpgroups wait for each other: 8192 keys, all seen, at 600
        // TFLOP/s with 176, 590 with 160, 579 with 128. Behind a causal mask the last tile is a loss, 585, 589 and 572, which
        // weighs more with 1024 keys, 272 with 128 and 259 with 160.
        let longest = spans.iter().map(|span| span.kv_len).max().unwrap_or(0);
        let most = match (problem.causal, longest) {
            (false, _) => 176,
            (true, 0..=1024) => 128,
            (true, _) => 160,
        };
        [most, 128, 112, 96, 80, 64].into_iter().map(tiled)
    }

    /// Whether warpgroups would leave most cores without work, and have little of it each: 128 tokens in 11.8 µs, with
    /// `mma.sync` in 8.9, 256 in 12.8 and 11.7, but 512 in 17.7 and 24.5 (H200, 32/8 heads).
    fn is_short(device: &DeviceProfile, problem: &Problem, spans: &[Span]) -> bool {
        let rows: usize = spans.iter().map(|span| span.qo_len * problem.group()).sum();
        let items = rows.div_ceil(128) * problem.kv_heads;
        2 * items <= device.cores.unwrap_or(1) && spans.iter().all(|span| span.kv_len <= 256)
    }

    fn on_nvidia(device: &DeviceProfile, problem: &Problem, rows: usize) -> Mixed {
        let dim = problem.dims.qk.max(problem.dims.vo);
        let few = Self {
            unit: Unit::MmaSync,
            row_tiles: 1,
            row_planes: 1,
            keys: 16,
            key_planes: 4,
            stages: if dim <= 128 { 3 } else { 2 },
            resident: dim <= 128,
        };
        let many = Self { row_planes: 4, keys: 64, key_planes: 1, stages: 2, ..few };
        let many = if dim > 128 {
            // The accumulators of 32 rows would not fit into registers.
            Self { row_planes: 8, keys: 32, resident: false, ..many }
        } else {
            // 32 rows a plane halve the reads of keys and values: 349 against 320 TFLOP/s over 8192 tokens. But 64 rows
            // spread over the machine where 128 leave it half empty: 231 against 166 over 1024 (H200, 32/8 heads).
            let large = Self { row_tiles: 2, resident: dim <= 64, ..many };
            let tiles = rows.div_ceil(large.rows()) * problem.kv_heads;
            if tiles < SMALL_WAVES * device.cores.unwrap_or(1) { many } else { large }
        };
        Mixed { many, few }
    }

    fn on_cdna(problem: &Problem) -> Mixed {
        let dim = problem.dims.qk.max(problem.dims.vo);
        let many = Self {
            unit: Unit::Mfma32,
            row_tiles: 1,
            row_planes: 4,
            keys: if dim <= 128 { 64 } else { 32 },
            key_planes: 1,
            stages: 1,
            resident: true,
        };
        let few = Self {
            unit: Unit::Mfma16,
            row_planes: 1,
            keys: 32,
            key_planes: if dim <= 128 { 4 } else { 2 },
            ..many
        };
        Mixed { many, few }
    }

    /// Without matrix cores, on GPUs alone: on a CPU planes are threads, which would wait for each other at every tile, and
    /// the rows of the portable kernel need not.
    fn on_plain(device: &DeviceProfile, problem: &Problem, rows: usize) -> Result<Self> {
        let unit = match (device.arch, device.plane) {
            (Arch::Sm(_) | Arch::Gfx(_), 32) => Unit::Scalar32,
            (Arch::Sm(_) | Arch::Gfx(_), 64) => Unit::Scalar64,
            (_, plane) => {
                return Err(Refusal::Blueprint {
                    kernel: KERNEL,
                    setting: "plane",
                    got: plane as usize,
                    expected: "32 or 64 lanes of an NVIDIA or AMD GPU".into(),
                });
            }
        };
        let one =
            Self { unit, row_tiles: 1, row_planes: 1, keys: 16, key_planes: 1, stages: 1, resident: false };
        let rows = rows.div_ceil(unit.machine().rows);
        let mut candidates = vec![];
        for planes in [4, 2, 1] {
            if rows <= 4 {
                candidates.push(Self { row_tiles: rows.max(1), key_planes: planes, ..one });
            } else {
                candidates.extend([4, 2, 1].map(|row_tiles| Self { row_tiles, row_planes: planes, ..one }));
            }
        }
        // The first that leaves shared memory for a second cube, or that has room at all.
        let can = |tiled: &&Self| tiled.check(device, problem).is_ok();
        let shares = |tiled: &&Self| can(tiled) && 2 * tiled.shared_memory(problem) <= device.shared_memory;
        Ok(*candidates.iter().find(shares).or_else(|| candidates.iter().find(can)).unwrap_or(&one))
    }

    /// Whether the blueprint can run, or why not.
    pub(crate) fn check(&self, device: &DeviceProfile, problem: &Problem) -> Result<()> {
        let refused = |setting, got, expected: String| {
            Err(Refusal::Blueprint { kernel: KERNEL, setting, got, expected })
        };
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

    /// Rows of a cube.
    pub(crate) fn rows(&self) -> usize {
        self.row_planes * self.row_tiles * self.unit.machine().rows
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

    fn shared_memory(&self, problem: &Problem) -> usize {
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
            return Err(Refusal::Blueprint { kernel: KERNEL, setting: "key_planes", got, expected });
        }
        let units = (self.many.unit, self.few.unit);
        if units.0 == Unit::Wgmma {
            let expected = "planes that multiply alone: warpgroups have tiles of one size".into();
            return Err(Refusal::Blueprint { kernel: KERNEL, setting: "unit", got: 0, expected });
        }
        if units.0 != units.1 && units != (Unit::Mfma32, Unit::Mfma16) {
            let expected = format!("{:?}, as tiles of many rows have, not {:?}", units.0, units.1);
            return Err(Refusal::Blueprint { kernel: KERNEL, setting: "unit", got: 0, expected });
        }
        Ok(())
    }
}

impl fmt::Display for Tiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unit, row_planes, row_tiles, key_planes, keys, stages, resident } = self;
        write!(
            f,
            "tiled on {unit:?}: {} rows ({row_planes} planes of {row_tiles} tiles), {} keys ({key_planes} planes of \
             {keys}), {stages} stages, queries in {}",
            self.rows(),
            self.cube_keys(),
            if *resident { "registers" } else { "shared memory" },
        )
    }
}
