use std::fmt;
use std::str::FromStr;

use cubecl::features::{Features, Plane};
use cubecl::ir::amd::GfxArch;
use cubecl::ir::nvidia::SmArch;
use cubecl::ir::{DeviceIdentity, DeviceProperties, HardwareProperties, MemoryDeviceProperties, VectorSize};
use cubecl_core::profile::TimingMethod;
use cubecl_llvm::shared::lowered_features::{GpuTarget, restrict_features};

use crate::device::Arch;

/// A name that is no architecture known here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no architecture that kernels can be compiled for here")]
pub struct UnknownTarget(String);

/// A device to compile for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// AMD, by the digits of its name: `0x942` is gfx942.
    Gfx(u32),
    /// NVIDIA, by compute capability.
    Sm(u32),
}

impl Target {
    /// The architecture, as kernels ask for it.
    pub fn arch(self) -> Arch {
        match self {
            Self::Gfx(name) => Arch::Gfx(name),
            Self::Sm(capability) => Arch::Sm(capability),
        }
    }

    pub(super) fn gfx(self) -> Option<GfxArch> {
        matches!(self, Self::Gfx(_)).then(|| GfxArch::parse(&self.to_string()))
    }

    pub(super) fn sm(self) -> Option<SmArch> {
        match self {
            Self::Sm(capability) => Some(SmArch::new(capability, capability >= 75)),
            Self::Gfx(_) => None,
        }
    }

    /// Lanes of a wave or warp.
    pub fn plane(self) -> u32 {
        // A name without a known width does not parse.
        self.gfx().map_or(32, |arch| arch.plane_dim().unwrap_or(64))
    }

    /// Compute units or multiprocessors of the largest common machine of the architecture: MI100, a die of MI250X,
    /// MI300X, RX 7900 XTX (in pairs, as HIP counts them), A100, L40S, H200.
    fn cores(self) -> Option<u32> {
        Some(match self {
            Self::Gfx(0x908) => 120,
            Self::Gfx(0x90a) => 110,
            Self::Gfx(0x942) => 304,
            Self::Gfx(0x1100) => 48,
            Self::Sm(80) => 108,
            Self::Sm(89) => 142,
            Self::Sm(90) => 132,
            _ => return None,
        })
    }

    /// Bytes that a cube can have.
    fn shared_memory(self) -> usize {
        let kib = match self {
            Self::Gfx(_) => 64,
            Self::Sm(80 | 87) => 163,
            Self::Sm(86 | 89 | 120) => 99,
            Self::Sm(90 | 100) => 227,
            Self::Sm(_) => 48,
        };
        kib * 1024
    }

    /// The properties of such a device in CubeCL's runtime, as far as these kernels need them.
    pub(super) fn properties(self) -> DeviceProperties {
        let fingerprint = match self {
            Self::Gfx(_) => format!("hip-kernel_{self}"),
            Self::Sm(capability) => format!("ptx_sm{capability}"),
        };
        let cubes = i32::MAX as u32;
        let hardware = HardwareProperties {
            load_width: 128,
            vector_register_count: None,
            plane_size_min: self.plane(),
            plane_size_max: self.plane(),
            max_bindings: 32,
            max_shared_memory_size: self.shared_memory(),
            max_cube_count: (cubes, u16::MAX as u32, u16::MAX as u32),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, if self.gfx().is_some() { 1024 } else { 64 }),
            num_streaming_multiprocessors: self.cores(),
            num_tensor_cores: None,
            min_tensor_cores_dim: None,
            num_cpu_cores: None,
            last_level_cache_size: None,
            max_vector_size: VectorSize::MAX,
            cube_mma_reserved_shared_memory: 0,
        };
        let mut properties = DeviceProperties::new(
            Features::default(),
            MemoryDeviceProperties::new(u64::MAX / 2, 256),
            hardware,
            TimingMethod::System,
            DeviceIdentity { name: self.to_string(), fingerprint, physical: None },
        );
        cubecl_cpp::register_supported_types(&mut properties);
        properties.features.memory_reinterpret = true;
        properties.features.alignment = true;
        properties.features.plane.insert(Plane::Ops);
        properties.features.plane.insert(Plane::NonUniformControlFlow);
        let target = match self.gfx() {
            Some(arch) => GpuTarget::AmdGpu { wmma: arch.wmma() },
            None => GpuTarget::Nvptx,
        };
        restrict_features(&mut properties, target);
        properties
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gfx(name) => write!(f, "gfx{name:x}"),
            Self::Sm(_) => f.write_str(&self.sm().map(|arch| arch.target_cpu()).unwrap_or_default()),
        }
    }
}

impl FromStr for Target {
    type Err = UnknownTarget;

    /// `gfx942`, `sm_80`, `sm_90a`; from sm_90 on the variant with the letter is meant either way.
    fn from_str(name: &str) -> Result<Self, UnknownTarget> {
        let unknown = || UnknownTarget(name.to_owned());
        let target = match Arch::named(name) {
            Arch::Gfx(digits) => Self::Gfx(digits),
            Arch::Sm(capability) if capability >= 70 => Self::Sm(capability),
            _ => return Err(unknown()),
        };
        let compiles = target.gfx().is_none_or(|arch| arch.plane_dim().is_some());
        let named = target.to_string();
        if compiles && (named == name || named.strip_suffix('a') == Some(name)) {
            Ok(target)
        } else {
            Err(unknown())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, target) in [
            ("gfx908", Target::Gfx(0x908)),
            ("gfx90a", Target::Gfx(0x90a)),
            ("gfx942", Target::Gfx(0x942)),
            ("gfx1100", Target::Gfx(0x1100)),
            ("sm_80", Target::Sm(80)),
            ("sm_90a", Target::Sm(90)),
            ("sm_90", Target::Sm(90)),
        ] {
            assert_eq!(name.parse::<Target>().ok(), Some(target));
        }
        for name in ["", "gfx", "gfx950", "gfx942x", "sm_10", "sm_80a", "cpu", "x86"] {
            assert!(name.parse::<Target>().is_err(), "{name}");
        }
    }

    #[test]
    fn limits() {
        let amd = Target::Gfx(0x942).profile();
        assert_eq!((amd.plane, amd.shared_memory, amd.cores), (64, 65536, Some(304)));
        let nvidia = Target::Sm(90).profile();
        assert_eq!((nvidia.plane, nvidia.shared_memory, nvidia.cores), (32, 232448, Some(132)));
        assert_eq!(nvidia.arch, Arch::Sm(90));
    }
}
