//! The devices of the build, and a test for each of them.

use std::sync::OnceLock;

use burn::tensor::{DType, Device};
use burn_flashinfer::{CacheConfig, Error, PagedKvCache};

use crate::support::{DTYPES, say};

/// A device of this build.
#[derive(Debug, Clone)]
pub struct Target {
    pub name: &'static str,
    pub device: Device,
}

type Open = fn() -> Device;

const OF_BUILD: &[(&str, Open)] = &[
    #[cfg(feature = "flex")]
    ("flex", Device::flex),
    #[cfg(feature = "cpu")]
    ("cpu", Device::cpu),
    #[cfg(feature = "cuda")]
    ("cuda", || Device::cuda(0)),
    #[cfg(feature = "rocm")]
    ("rocm", || Device::rocm(0)),
    #[cfg(feature = "vulkan")]
    ("vulkan", || Device::vulkan(Default::default())),
];

/// `device_tests!(zeros, views)` makes a test of each function for each device of the build: `zeros::flex`, `zeros::cpu`
/// and so on. A function that is missing in the list is dead code, which the compiler reports.
macro_rules! device_tests {
    ($($test:ident),+ $(,)?) => {$(
        mod $test {
            #[cfg(feature = "flex")]
            #[test]
            fn flex() {
                crate::devices::run("flex", module_path!(), super::$test);
            }

            // One after the other: with Fusion nothing is written in place while another test computes.
            #[cfg(feature = "cpu")]
            #[serial_test::serial(device)]
            #[test]
            fn cpu() {
                crate::devices::run("cpu", module_path!(), super::$test);
            }

            // One after the other: what another test does meanwhile spoils a captured graph.
            #[cfg(feature = "cuda")]
            #[serial_test::serial(device)]
            #[test]
            fn cuda() {
                crate::devices::run("cuda", module_path!(), super::$test);
            }

            // As on CUDA.
            #[cfg(feature = "rocm")]
            #[serial_test::serial(device)]
            #[test]
            fn rocm() {
                crate::devices::run("rocm", module_path!(), super::$test);
            }

            #[cfg(feature = "vulkan")]
            #[test]
            fn vulkan() {
                crate::devices::run("vulkan", module_path!(), super::$test);
            }

            #[cfg(not(any(feature = "flex", feature = "cube")))]
            #[test]
            fn no_device() {
                crate::devices::run("no_device", module_path!(), super::$test);
            }
        }
    )+};
}
pub(crate) use device_tests;

/// Runs a test on a device, unless `BURN_FLASHINFER_TEST_DEVICES` leaves that out: then the test says so.
pub fn run(name: &'static str, test: &str, body: fn(Target)) {
    let asked = devices_asked_for();
    match asked.iter().find(|(asked, _)| *asked == name) {
        Some(&(name, open)) => body(Target { name, device: open() }),
        None => say(format!("{test}::{name} did nothing: BURN_FLASHINFER_TEST_DEVICES leaves {name} out")),
    }
}

/// The devices of this build, or those of them that `BURN_FLASHINFER_TEST_DEVICES` names: for tests that compare them.
pub fn devices() -> Vec<Target> {
    devices_asked_for().iter().map(|&(name, open)| Target { name, device: open() }).collect()
}

fn devices_asked_for() -> &'static [(&'static str, Open)] {
    static ASKED: OnceLock<Vec<(&str, Open)>> = OnceLock::new();
    ASKED.get_or_init(|| {
        #[cfg(feature = "cube")]
        if allocates_exactly() {
            allocate_exactly();
        }
        let asked = std::env::var("BURN_FLASHINFER_TEST_DEVICES").ok();
        let is_asked = |name: &str| {
            asked.as_ref().is_none_or(|asked| asked.split(',').any(|asked| asked.trim() == name))
        };
        let left: Vec<_> = OF_BUILD.iter().copied().filter(|(name, _)| is_asked(name)).collect();
        assert!(
            !left.is_empty(),
            "no device to test: neither in this build, nor left by BURN_FLASHINFER_TEST_DEVICES"
        );
        left
    })
}

/// True if a checker of accesses is there that wants to see where tensors end.
fn allocates_exactly() -> bool {
    std::env::var_os("BURN_FLASHINFER_TEST_EXACT_ALLOCATIONS").is_some()
}

/// Gives each tensor an allocation of its own, where CubeCL cuts many out of a large one: a device that checks accesses
/// (the simulated MI300X, or a GPU under compute-sanitizer) then finds those that leave the tensor.
#[cfg(feature = "cube")]
fn allocate_exactly() {
    use burn_cubecl::cubecl::config::memory::PersistentMemory;
    use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    config.memory.persistent_memory = PersistentMemory::Enforced;
    CubeClRuntimeConfig::set(config);
}

impl Target {
    /// CubeCL on a CPU compiles every variant of a kernel for seconds: it gets a part of each grid.
    pub fn is_slow(&self) -> bool {
        self.name == "cpu"
    }

    /// True if probabilities are rounded to the type of the values before `P V`.
    pub fn has_matrix_cores(&self) -> bool {
        ["cuda", "rocm"].contains(&self.name)
    }

    /// The element types the device takes. A refusal is printed; flex, cpu and cuda may not refuse any.
    pub fn dtypes(&self) -> Vec<DType> {
        let takes = |dtype: &DType| {
            let config = CacheConfig::new(1, 1, 1, 1, 1).dtype(*dtype);
            match PagedKvCache::new(&config, &self.device) {
                Ok(_) => true,
                Err(refusal @ Error::Dtype { .. }) => {
                    say(format!("{} refuses {dtype:?}: {refusal}", self.name));
                    assert!(!["flex", "cpu", "cuda"].contains(&self.name), "{refusal}");
                    false
                }
                Err(other) => panic!("{}: {other}", self.name),
            }
        };
        DTYPES.into_iter().filter(takes).collect()
    }

    /// A GPU, simulated or with a checker, each of whose accesses is checked: it gets a larger part of each grid than a slow one.
    pub fn is_checked(&self) -> bool {
        self.has_matrix_cores() && allocates_exactly()
    }

    /// `count`, or a fifth of it on a device that is slow or checked.
    pub fn fewer(&self, count: usize) -> usize {
        if self.is_slow() || self.is_checked() { count / 5 } else { count }
    }

    /// All of `cases`, every `nth` of them on a slow device, and twice as many on one that is checked.
    pub fn thin<T>(&self, nth: usize, cases: Vec<T>) -> Vec<T> {
        let step = match (self.is_slow(), self.is_checked()) {
            (true, _) => nth,
            (false, true) => nth.div_ceil(2),
            (false, false) => 1,
        };
        cases.into_iter().step_by(step).collect()
    }
}
