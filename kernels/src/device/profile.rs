use std::any::TypeId;
use std::collections::HashMap;
use std::sync::{LazyLock, PoisonError, RwLock};

use cubecl::device::DeviceId;
use cubecl::{client::Client, ir::DeviceProperties};

use super::arch::{Arch, Instruction};

/// Limits of a device, without the device: inputs of the choice of a blueprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceProfile {
    /// Units that run in lockstep; 1 on a CPU.
    pub plane: u32,
    /// Most units in a cube.
    pub max_units: u32,
    /// Most cubes on each axis of a launch.
    pub max_cubes: [u32; 3],
    /// Bytes of shared memory a cube can have.
    pub shared_memory: usize,
    /// Bytes of the widest load worth issuing.
    pub load_bytes: usize,
    /// Most elements in a vector.
    pub max_vector: usize,
    /// Instruction set.
    pub arch: Arch,
    /// Multiprocessors or compute units, if the device tells.
    pub cores: Option<usize>,
    /// Cores, if the device is a CPU.
    pub cpu_cores: Option<u32>,
}

impl DeviceProfile {
    /// Cubes of a cluster, at most: 1 on a device without clusters.
    pub(crate) fn max_cluster(&self) -> usize {
        if Instruction::Wgmma.exists_on(self.arch) { 8 } else { 1 }
    }

    /// The limits of a device, which are read once.
    pub fn of(client: &Client) -> Self {
        static PROFILES: LazyLock<RwLock<HashMap<(DeviceId, TypeId), DeviceProfile>>> =
            LazyLock::new(Default::default);
        let id = client.service_id();
        let id = (id.device, id.service);
        // A panic cannot leave half a profile behind.
        let known = PROFILES.read().unwrap_or_else(PoisonError::into_inner).get(&id).copied();
        known.unwrap_or_else(|| {
            let profile = Self::from_properties(client.properties());
            PROFILES.write().unwrap_or_else(PoisonError::into_inner).insert(id, profile);
            profile
        })
    }

    /// The limits from a device's properties, which may be of a device that is not present.
    pub(crate) fn from_properties(properties: &DeviceProperties) -> Self {
        let hardware = &properties.hardware;
        let (x, y, z) = hardware.max_cube_count;
        Self {
            plane: hardware.plane_size_max,
            max_units: match hardware.num_cpu_cores {
                // The CPU runtime reports its cores here, but starts as many threads as a cube has units.
                Some(_) => 1024,
                None => hardware.max_units_per_cube.min(hardware.max_cube_dim.0),
            },
            max_cubes: [x, y, z],
            // On a CPU this is the first-level cache of one core.
            shared_memory: hardware.max_shared_memory_size * hardware.num_cpu_cores.unwrap_or(1) as usize,
            load_bytes: (hardware.load_width as usize / 8).clamp(4, 16),
            max_vector: hardware.max_vector_size.max(1),
            arch: Arch::named(&properties.identity.fingerprint),
            cores: hardware.num_streaming_multiprocessors.map(|cores| cores as usize),
            cpu_cores: hardware.num_cpu_cores,
        }
    }

    /// Largest number of elements of `elem_size` bytes in one load.
    pub(crate) fn widest(&self, elem_size: usize) -> usize {
        (self.load_bytes / elem_size).min(self.max_vector).max(1)
    }
}
