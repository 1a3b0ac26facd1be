//! The profile that `HIP_SIM_PROFILE` asks for.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::sync::Once;

use hip_sim::profile::{Class, Profile};

use crate::device::Device;

/// What all launches of each kernel did; written when the process ends.
#[derive(Default)]
pub(crate) struct Profiles {
    file: Option<PathBuf>,
    kernels: BTreeMap<String, (u64, Profile)>,
}

impl Profiles {
    /// With the file that the environment names, if it does.
    pub(crate) fn from_environment() -> Self {
        static AT_EXIT: Once = Once::new();
        // Of the system's C library, which the standard library links.
        unsafe extern "C" {
            fn atexit(function: extern "C" fn()) -> c_int;
        }
        extern "C" fn write() {
            Device::write_profiles();
        }
        let file = std::env::var_os("HIP_SIM_PROFILE").map(PathBuf::from);
        if file.is_some() {
            // SAFETY: the library stays loaded until the process ends: CubeCL never closes it.
            AT_EXIT.call_once(|| unsafe {
                atexit(write);
            });
        }
        Self { file, kernels: BTreeMap::new() }
    }

    pub(crate) fn are_wanted(&self) -> bool {
        self.file.is_some()
    }

    pub(crate) fn add(&mut self, kernel: &str, profile: Profile) {
        if !self.are_wanted() {
            return;
        }
        let (launches, sum) = self.kernels.entry(kernel.into()).or_default();
        *launches += 1;
        *sum = std::mem::take(sum).merge(profile);
    }

    pub(crate) fn write(&self) {
        let Some(file) = &self.file else { return };
        if let Err(error) = std::fs::write(file, self.to_string()) {
            eprintln!("hip-sim: {}: {error}", file.display());
        }
    }
}

type Column = (&'static str, fn(&Profile) -> u64);

const COLUMNS: [Column; 18] = [
    ("waves", |profile| profile.waves),
    ("instructions", Profile::total),
    ("scalar", |profile| profile.count(Class::Scalar)),
    ("scalar_memory", |profile| profile.count(Class::ScalarMemory)),
    ("branch", |profile| profile.count(Class::Branch)),
    ("vector", |profile| profile.count(Class::Vector)),
    ("matrix", |profile| profile.count(Class::Matrix)),
    ("lds", |profile| profile.count(Class::Lds)),
    ("global_load", |profile| profile.count(Class::GlobalLoad)),
    ("global_store", |profile| profile.count(Class::GlobalStore)),
    ("global_atomic", |profile| profile.count(Class::GlobalAtomic)),
    ("scratch", |profile| profile.count(Class::Scratch)),
    ("barriers", |profile| profile.barriers),
    ("global_bytes", |profile| profile.global_bytes),
    ("coalesced_bytes", |profile| profile.coalesced_bytes),
    ("global_segments", |profile| profile.global_segments),
    ("lds_accesses", |profile| profile.lds_accesses),
    ("lds_conflicts", |profile| profile.lds_conflicts),
];

/// One line per kernel, with tabs, the kernel with the most instructions first.
impl Display for Profiles {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "kernel\tlaunches")?;
        COLUMNS.iter().try_for_each(|(name, _)| write!(f, "\t{name}"))?;
        writeln!(f)?;
        let mut kernels: Vec<_> = self.kernels.iter().collect();
        kernels.sort_by_key(|(_, (_, profile))| std::cmp::Reverse(profile.total()));
        for (kernel, (launches, profile)) in kernels {
            write!(f, "{kernel}\t{launches}")?;
            COLUMNS.iter().try_for_each(|(_, count)| write!(f, "\t{}", count(profile)))?;
            writeln!(f)?;
        }
        Ok(())
    }
}
