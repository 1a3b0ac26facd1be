use std::fmt;

use super::super::hopper;
use crate::code8::Code8;
use crate::device::{Instruction, Machine as Converter};
use crate::element::Element;
use crate::fp8::Fp8;
use crate::mma::{
    CopyShape, E4M3, Mfma16, Mfma32, MfmaFp8Of16, MfmaFp8Of32, MmaKind, MmaSync, Scalar1, Scalar32, Scalar64,
    TileShape, check_numbers, shared_vecs,
};
use crate::problem::Problem;
use crate::{DeviceProfile, Refusal, Result};

pub(super) const KERNEL: &str = "tiled attention";

/// The comptime settings of the tiled kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tiled {
    /// The instruction that multiplies tiles.
    pub unit: MmaKind,
    /// Tiles of rows that a plane owns.
    pub q_tiles: usize,
    /// Planes with different rows.
    pub q_planes: usize,
    /// Keys that a plane takes at a time.
    pub keys: usize,
    /// Planes with the same rows and different keys.
    pub kv_planes: usize,
    /// Tiles of keys and values in shared memory.
    pub stages: usize,
    /// The queries stay in registers.
    pub q_in_registers: bool,
    /// Cubes with different rows that share the reads of keys and values: a cluster. 1 for none.
    pub cluster: usize,
    /// Products are of codes: queries and probabilities become codes too.
    pub fp8_mma: bool,
}

/// Constants of a matrix unit from its `CopyShape`, as values.
struct Machine {
    plane: usize,
    rows: usize,
    columns: usize,
    keys: usize,
    acc: usize,
    is_async: bool,
    shared_vecs: fn(TileShape) -> usize,
    staged_vecs: fn(TileShape) -> usize,
}

impl Machine {
    fn of<L: CopyShape>() -> Self {
        Self {
            plane: L::PLANE,
            rows: L::ROWS,
            columns: L::COLUMNS,
            keys: L::KEYS,
            acc: L::ACC,
            is_async: L::ASYNC,
            shared_vecs: shared_vecs::<L>,
            staged_vecs: L::staged_vecs,
        }
    }
}

/// Tiles of two shapes in one launch: decode tiles read while prefill tiles multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mixed {
    /// For requests with more rows than `decode` has.
    pub prefill: Tiled,
    /// For requests whose rows fit into one tile of `decode`.
    pub decode: Tiled,
}

impl Machine {
    fn of_unit(tiled: &Tiled) -> Self {
        match tiled.unit {
            MmaKind::Mfma16 if tiled.fp8_mma => Self::of::<MfmaFp8Of16>(),
            MmaKind::Mfma32 if tiled.fp8_mma => Self::of::<MfmaFp8Of32>(),
            MmaKind::MmaSync => Self::of::<MmaSync>(),
            // A warp's part of the accumulators is the same.
            MmaKind::Wgmma => Self { shared_vecs: hopper::shared_vecs, ..Self::of::<MmaSync>() },
            MmaKind::Mfma16 => Self::of::<Mfma16>(),
            MmaKind::Mfma32 => Self::of::<Mfma32>(),
            MmaKind::Scalar1 => Self::of::<Scalar1>(),
            MmaKind::Scalar32 => Self::of::<Scalar32>(),
            MmaKind::Scalar64 => Self::of::<Scalar64>(),
        }
    }
}

impl Tiled {
    /// Checks that the blueprint can run on the device.
    pub(crate) fn check(&self, device: &DeviceProfile, problem: &Problem) -> Result<()> {
        let refused =
            |setting, got: usize, expected: String| Err(Refusal::blueprint(KERNEL, setting, got, expected));
        let same = problem.kv_dtype == Element::Number(problem.dtype);
        let takes_codes = self.unit != MmaKind::Wgmma;
        if !(same || takes_codes && problem.kv_dtype.is_code()) {
            let codes = if takes_codes { ", or codes" } else { "" };
            let expected = format!("{}, the type of the queries{codes}", problem.dtype);
            return Err(Refusal::blueprint(KERNEL, "kv_dtype", problem.kv_dtype, expected));
        }
        check_numbers(KERNEL, problem.dtype)?;
        let mut instruction = self.unit.instruction(KERNEL, problem.dtype)?;
        if self.fp8_mma {
            let takes =
                Self::takes_fp8_mma(problem) && matches!(self.unit, MmaKind::Mfma16 | MmaKind::Mfma32);
            if !takes {
                let (got, expected) =
                    (format!("{:?} over {}", self.unit, problem.kv_dtype), "MFMA over codes of e4m3");
                return Err(Refusal::blueprint(KERNEL, "fp8_mma", got, expected));
            }
            instruction = self.unit.instruction(KERNEL, E4M3)?;
        }
        if let Some(instruction) = instruction {
            instruction.check(KERNEL, device.arch)?;
        }
        let machine = Machine::of_unit(self);
        if machine.plane != device.plane as usize {
            return refused("plane", device.plane as usize, format!("{} lanes", machine.plane));
        }
        let per_vec = 16 / problem.kv_dtype.size();
        let whole = if instruction.is_some() { 16 } else { per_vec };
        for (setting, got) in [("head_dim", problem.dims.qk), ("head_dim_vo", problem.dims.vo)] {
            if got == 0 || got % whole != 0 || got > 256 {
                return refused(setting, got, format!("a multiple of {whole} up to 256"));
            }
        }
        for (setting, got) in [("stride of q or k", problem.align.qk), ("stride of v", problem.align.vo)] {
            if got % per_vec != 0 {
                return refused(setting, got, "rows aligned to 16 bytes".into());
            }
        }
        // A NaN is not positive.
        let positive = problem.scale > 0.0;
        if !positive {
            return Err(Refusal::blueprint(KERNEL, "scale", problem.scale, "a positive one"));
        }
        for (setting, got) in [
            ("q_tiles", self.q_tiles),
            ("q_planes", self.q_planes),
            ("kv_planes", self.kv_planes),
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
        if self.unit == MmaKind::Wgmma {
            hopper::check(tiles)?;
        } else if self.cluster != 1 {
            return refused("cluster", self.cluster, "1: no other unit shares what it copies".into());
        }
        let units = self.planes() * machine.plane;
        if units > device.max_units as usize {
            return refused("q_planes", self.q_planes, format!("at most {} units", device.max_units));
        }
        // Accumulators and copies in flight to shared memory; the rest is for queries and addresses.
        let registers = self.q_tiles
            * (problem.dims.vo.div_ceil(machine.columns) + self.keys / machine.columns)
            * machine.acc
            + 4 * (machine.staged_vecs)(tiles);
        let most = match device.plane {
            // A CPU has them in memory.
            1 => usize::MAX,
            // CDNA has 512.
            64 => 272,
            _ => 208,
        };
        if registers > most {
            let expected = format!("at most {most} registers, not {registers}");
            return refused("q_tiles", self.q_tiles, expected);
        }
        let shared = self.shared_memory(problem);
        if shared > device.shared_memory {
            let expected = format!("shared memory up to {}, not {shared} bytes", device.shared_memory);
            return refused("stages", self.stages, expected);
        }
        Ok(())
    }

    /// True if the codes of a problem can be multiplied as they are. (MFMA has no e5m2 with infinities.)
    pub(super) fn takes_fp8_mma(problem: &Problem) -> bool {
        matches!(problem.kv_dtype, Element::Code(Code8::Fp8(Fp8::E4m3 | Fp8::E4m3Fnuz)))
            && problem.dtype.size() == 2
    }

    /// True if prefill of a problem multiplies codes on a device: it may, and there is an instruction for them.
    pub fn multiplies_codes(device: &DeviceProfile, problem: &Problem) -> bool {
        problem.fp8_mma && Self::takes_fp8_mma(problem) && Instruction::MfmaFp8.exists_on(device.arch)
    }

    /// Rows of a cube, or of all cubes of a cluster.
    pub(crate) fn rows(&self) -> usize {
        self.cluster * self.q_planes * self.q_tiles * Machine::of_unit(self).rows
    }

    /// Planes of a cube.
    pub(super) fn planes(&self) -> usize {
        let copying = if self.unit == MmaKind::Wgmma { hopper::PRODUCERS } else { 0 };
        self.q_planes * self.kv_planes + copying
    }

    /// Keys of a cube at a time.
    pub(crate) fn cube_keys(&self) -> usize {
        self.keys * self.kv_planes
    }

    pub(super) fn shared_memory(&self, problem: &Problem) -> usize {
        (Machine::of_unit(self).shared_vecs)(self.tiles(problem)) * 16
    }

    pub(super) fn tiles(&self, problem: &Problem) -> TileShape {
        TileShape {
            dims: problem.dims,
            q_tiles: self.q_tiles,
            keys: self.keys,
            q_planes: self.q_planes,
            kv_planes: self.kv_planes,
            stages: self.stages,
            q_in_registers: self.q_in_registers,
            cluster: self.cluster,
            // On CDNA it halves the shared memory of a plane, and so doubles the planes of a core.
            direct_keys: self.q_planes == 1
                && !self.fp8_mma
                && matches!(self.unit, MmaKind::Mfma16 | MmaKind::Mfma32),
            dtype: problem.dtype,
            kv_dtype: problem.kv_dtype,
            shares_codes: self.fp8_mma || Machine::of_unit(self).is_async,
            machine: Converter::Portable,
            fp8_mma: self.fp8_mma,
        }
    }
}

impl Mixed {
    /// Checks that both can run on the device, and together.
    pub(crate) fn check(&self, device: &DeviceProfile, problem: &Problem) -> Result<()> {
        self.prefill.check(device, problem)?;
        self.decode.check(device, problem)?;
        let (got, wanted) = (self.decode.planes(), self.prefill.planes());
        if got != wanted {
            let expected = format!("{wanted} planes, as tiles of prefill rows have");
            return Err(Refusal::blueprint(KERNEL, "kv_planes", got, expected));
        }
        if self.decode.fp8_mma {
            let expected = "products of numbers, which read as fast";
            return Err(Refusal::blueprint(KERNEL, "fp8_mma", "decode tiles", expected));
        }
        let units = (self.prefill.unit, self.decode.unit);
        if units.0 == MmaKind::Wgmma {
            let expected = "planes that multiply alone: warpgroups have tiles of one size";
            return Err(Refusal::blueprint(KERNEL, "unit", "Wgmma", expected));
        }
        if units.0 != units.1 && units != (MmaKind::Mfma32, MmaKind::Mfma16) {
            let expected = format!("{:?}, as tiles of prefill rows have", units.0);
            return Err(Refusal::blueprint(KERNEL, "unit", format!("{:?}", units.1), expected));
        }
        Ok(())
    }
}

impl fmt::Display for Tiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unit, q_planes, q_tiles, kv_planes, keys, stages, q_in_registers, cluster, fp8_mma } =
            self;
        write!(
            f,
            "tiled on {unit:?}: {} rows ({q_planes} planes of {q_tiles} tiles), {} keys ({kv_planes} planes of \
             {keys}), {stages} stages, queries in {}",
            self.rows(),
            self.cube_keys(),
            if *q_in_registers { "registers" } else { "shared memory" },
        )?;
        if *fp8_mma {
            f.write_str(", products of codes")?;
        }
        if *cluster > 1 { write!(f, ", clusters of {cluster}") } else { Ok(()) }
    }
}
