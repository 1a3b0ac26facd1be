use crate::device::tensor::divisor;
use crate::device::{DeviceProfile, Refusal, Result};
use crate::problem::{Alignment, HeadDims};

/// The comptime settings of the portable kernel. Each distinct value is a kernel to compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Portable {
    /// Rows of a cube. A row is one query token of one query head. Several rows need one unit each.
    pub rows: u32,
    /// Units that share a row.
    pub units: u32,
    /// Keys between two barriers.
    pub tile: usize,
    /// Elements that a load of a query or key takes.
    pub qk_vector: usize,
    /// Elements that a load of a value takes.
    pub vo_vector: usize,
}

impl Portable {
    /// The choice for a device, elements of `elem_size` bytes, and loads aligned to `align` elements.
    pub(crate) fn auto(device: &DeviceProfile, dims: HeadDims, elem_size: usize, align: Alignment) -> Self {
        let widest = device.widest(elem_size);
        let qk_vector = divisor(dims.qk, widest.min(align.qk));
        if let Some(cores) = device.cpu_cores {
            // On a CPU units are threads and a barrier is a spin lock. One unit for each row needs no
            // barrier.
            let vo_vector = divisor(dims.vo, widest.min(align.vo));
            let one = Self { rows: 1, units: 1, tile: 64, qk_vector, vo_vector };
            let fitting = (device.shared_memory / one.shared_memory(dims)) as u32;
            return Self { rows: cores.min(device.max_units).min(fitting).max(1), ..one };
        }
        // Each unit has two columns; the number of units is a multiple of the plane.
        let units = (dims.vo.div_ceil(2) as u32).next_multiple_of(device.plane);
        let units = units.clamp(device.plane, 128.max(device.plane)).min(device.max_units);
        let vo_vector = divisor(dims.vo, dims.vo.div_ceil(units as usize).min(widest).min(align.vo));
        // Each unit has one key, and tiles are long enough to be worth two barriers.
        let tile = (units as usize).max(64);
        Self { rows: 1, units, tile, qk_vector, vo_vector }
    }

    /// Checks that the blueprint can run on the device.
    pub(crate) fn check(&self, device: &DeviceProfile, dims: HeadDims, align: Alignment) -> Result<()> {
        let refused = |setting, got: usize, expected: String| {
            Err(Refusal::blueprint("attention", setting, got, expected))
        };
        if self.units == 0 || self.units > device.max_units {
            return refused("units", self.units as usize, format!("1 to {}", device.max_units));
        }
        let rows = if self.units == 1 { device.max_units } else { 1 };
        if self.rows == 0 || self.rows > rows {
            return refused("rows", self.rows as usize, format!("1 to {rows} with {} units", self.units));
        }
        if self.tile == 0 {
            return refused("tile", 0, "at least 1".into());
        }
        for (setting, got, dim, align) in [
            ("qk_vector", self.qk_vector, dims.qk, align.qk),
            ("vo_vector", self.vo_vector, dims.vo, align.vo),
        ] {
            if !got.is_power_of_two() || got > device.max_vector || dim % got != 0 || align % got != 0 {
                let expected = format!(
                    "a power of 2 up to {} that divides the head dimension {dim} and every stride",
                    device.max_vector
                );
                return refused(setting, got, expected);
            }
        }
        let shared = self.shared_memory(dims);
        if shared > device.shared_memory {
            let expected = format!("shared memory up to {}, not {shared} bytes", device.shared_memory);
            return refused("tile", self.tile, expected);
        }
        Ok(())
    }

    /// Bytes of shared memory of a cube: for each row the query in f32, and for each key logit, probability
    /// and address.
    fn shared_memory(&self, dims: HeadDims) -> usize {
        self.rows as usize * (4 * dims.qk + self.tile * (4 + 4 + 8))
    }
}

impl std::fmt::Display for Portable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rows, units, tile, qk_vector, vo_vector } = self;
        write!(f, "portable: {rows} rows of {units} units, {tile} keys, loads of {qk_vector} and {vo_vector}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Arch;

    const GPU: DeviceProfile = DeviceProfile {
        arch: Arch::Other,
        cores: None,
        plane: 32,
        max_units: 1024,
        max_cubes: [u32::MAX >> 1, 65535, 65535],
        shared_memory: 48 << 10,
        load_bytes: 16,
        max_vector: 16,
        cpu_cores: None,
    };
    const DIMS: HeadDims = HeadDims { qk: 128, vo: 128 };
    const ALIGNED: Alignment = Alignment { qk: 64, vo: 64 };

    #[test]
    fn what_is_chosen_can_run() {
        let wave64 = DeviceProfile { plane: 64, ..GPU };
        let vulkan = DeviceProfile { max_units: 256, max_vector: 4, shared_memory: 16 << 10, ..GPU };
        let cpu = DeviceProfile { plane: 1, cpu_cores: Some(2), shared_memory: 32 << 10, ..GPU };
        let many_cores = DeviceProfile { cpu_cores: Some(384), ..cpu };
        for device in [GPU, wave64, vulkan, cpu, many_cores] {
            for dim in [1, 7, 32, 40, 64, 80, 128, 192, 256, 512, 1024] {
                for elem_size in [2, 4] {
                    for align in [1, 2, 8, 64] {
                        let (dims, align) =
                            (HeadDims { qk: dim, vo: dim }, Alignment { qk: align, vo: align });
                        let chosen = Portable::auto(&device, dims, elem_size, align);
                        assert_eq!(chosen.check(&device, dims, align), Ok(()), "{chosen:?} on {device:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn choice_is_known() {
        let chosen = Portable::auto(&GPU, DIMS, 2, ALIGNED);
        assert_eq!(chosen, Portable { rows: 1, units: 64, tile: 64, qk_vector: 8, vo_vector: 2 });
    }

    #[test]
    fn refuses_by_name() {
        let good = Portable { rows: 1, units: 32, tile: 64, qk_vector: 4, vo_vector: 2 };
        assert_eq!(good.check(&GPU, DIMS, ALIGNED), Ok(()));
        for (bad, setting) in [
            (Portable { units: 0, ..good }, "units"),
            (Portable { units: 2048, ..good }, "units"),
            (Portable { rows: 0, ..good }, "rows"),
            (Portable { rows: 2, ..good }, "rows"),
            (Portable { tile: 0, ..good }, "tile"),
            (Portable { tile: 4096, ..good }, "tile"),
            (Portable { qk_vector: 3, ..good }, "qk_vector"),
            (Portable { vo_vector: 32, ..good }, "vo_vector"),
        ] {
            match bad.check(&GPU, DIMS, ALIGNED) {
                Err(Refusal::Blueprint { setting: got, .. }) => assert_eq!(got, setting, "{bad:?}"),
                other => panic!("{bad:?}: {other:?}"),
            }
        }
        let odd = Alignment { qk: 1, vo: 1 };
        assert!(good.check(&GPU, DIMS, odd).is_err());
    }
}
