//! The state of the simulated device, under one lock.

use std::collections::HashMap;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Instant;

use cubecl_hip_sys::{
    hipError_t, hipEvent_t, hipFunction_t, hipGraph_t, hipGraphExec_t, hipModule_t, hipStream_t,
};
use hip_sim::code_object::CodeObject;
use hip_sim::dispatch::Checks;
use hip_sim::memory::Memory;

use crate::error::{Error, Result, status};
use crate::graph::{Capture, Graph};
use crate::operation::Operation;
use crate::profile::Profiles;

/// Everything a program made, by handle.
pub(crate) struct Device {
    pub(crate) memory: Memory,
    /// Pinned host memory, which is not the device's.
    pub(crate) pinned: HashMap<u64, usize>,
    pub(crate) streams: Handles<hipStream_t, Stream>,
    pub(crate) events: Handles<hipEvent_t, Event>,
    pub(crate) modules: Handles<hipModule_t, Module>,
    pub(crate) functions: Handles<hipFunction_t, Function>,
    pub(crate) graphs: Handles<hipGraph_t, Graph>,
    pub(crate) executables: Handles<hipGraphExec_t, Arc<[Operation]>>,
    pub(crate) captures: HashMap<usize, Capture>,
    pub(crate) checks: Checks,
    pub(crate) profiles: Profiles,
    /// What every call fails with once a kernel has faulted.
    fault: Option<Error>,
}

#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) flags: u32,
    /// The capture that records what is submitted.
    pub(crate) capture: Option<usize>,
}

#[derive(Default)]
pub(crate) struct Event {
    pub(crate) untimed: bool,
    pub(crate) recorded: Option<Instant>,
    /// The capture during which it was recorded last.
    pub(crate) capture: Option<usize>,
}

pub(crate) struct Module {
    pub(crate) object: Arc<CodeObject>,
    /// Handles of its kernels that were asked for.
    pub(crate) functions: HashMap<String, usize>,
}

/// A kernel of a code object, which lives as long as a graph still launches it.
#[derive(Clone)]
pub(crate) struct Function {
    pub(crate) object: Arc<CodeObject>,
    pub(crate) kernel: usize,
}

static DEVICE: LazyLock<Mutex<Device>> = LazyLock::new(|| Mutex::new(Device::new()));

impl Device {
    fn new() -> Self {
        let names = std::env::var("HIP_SIM_CHECKS").unwrap_or_default();
        let (mut checks, mut memory) = (Checks::default(), Memory::new());
        for name in names.split(',').filter(|name| !name.is_empty()) {
            match name {
                "races" => checks.lds_races = true,
                "barriers" => checks.barriers = true,
                "lanes" => checks.lanes = true,
                "poison" => {
                    checks.lds_unwritten = true;
                    memory = Memory::watching_writes();
                }
                _ => eprintln!("hip-sim: HIP_SIM_CHECKS: no check is called {name}"),
            }
        }
        let profiles = Profiles::from_environment();
        checks.profile = profiles.are_wanted();
        Self {
            memory,
            pinned: HashMap::new(),
            streams: Handles::default(),
            events: Handles::default(),
            modules: Handles::default(),
            functions: Handles::default(),
            graphs: Handles::default(),
            executables: Handles::default(),
            captures: HashMap::new(),
            checks,
            profiles,
            fault: None,
        }
    }

    /// Forgets everything but the profile.
    pub(crate) fn reset(&mut self) {
        let profiles = std::mem::take(&mut self.profiles);
        *self = Self { profiles, ..Self::new() };
    }

    /// Marks the device as unusable: each call from here on fails.
    pub(crate) fn fail(&mut self, error: Error) {
        self.fault.get_or_insert(error);
    }

    /// Writes the profile that was asked for, at the end of the process.
    pub(crate) fn write_profiles() {
        DEVICE.lock().unwrap_or_else(PoisonError::into_inner).profiles.write();
    }

    /// Runs work, or records it if the stream captures.
    pub(crate) fn submit(&mut self, stream: hipStream_t, operation: Operation) -> Result {
        if let Some(capture) = self.capture_of(stream)? {
            return capture.record(operation);
        }
        operation.run(self);
        Ok(())
    }

    /// Frees the code of modules that were unloaded.
    pub(crate) fn release(&mut self, object: Arc<CodeObject>) {
        if let Ok(object) = Arc::try_unwrap(object) {
            let _freed = self.memory.free(object.base);
        }
    }
}

/// A call: takes the lock, fails if the device has failed, and turns a panic into an error, since none
/// may cross into the caller.
pub(crate) fn call(body: impl FnOnce(&mut Device) -> Result) -> hipError_t {
    call_even_failed(|device| match device.fault {
        Some(fault) => Err(fault),
        None => body(device),
    })
}

/// A call that a failed device still answers.
pub(crate) fn call_even_failed(body: impl FnOnce(&mut Device) -> Result) -> hipError_t {
    let mut device = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let result = catch_unwind(AssertUnwindSafe(|| body(&mut device)));
    status(result.unwrap_or_else(|_| {
        device.fail(Error::UNKNOWN);
        Err(Error::UNKNOWN)
    }))
}

/// Writes a result through a pointer of the caller.
///
/// # Safety
/// The pointer is null or valid for a write.
pub(crate) unsafe fn write<T>(target: *mut T, value: T) -> Result {
    if target.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: not null, so valid by the caller's promise.
    unsafe { target.write(value) };
    Ok(())
}

/// Things a program knows by an opaque pointer. No two have the same, of whatever kind.
pub(crate) struct Handles<H, T> {
    entries: HashMap<usize, T>,
    kind: PhantomData<fn(H)>,
}

impl<H, T> Default for Handles<H, T> {
    fn default() -> Self {
        Self { entries: HashMap::new(), kind: PhantomData }
    }
}

/// A number that no handle has had.
pub(crate) fn unique() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x1000);
    NEXT.fetch_add(16, Ordering::Relaxed)
}

impl<H, T> Handles<*mut H, T> {
    pub(crate) fn insert(&mut self, value: T) -> *mut H {
        let handle = unique();
        self.entries.insert(handle, value);
        std::ptr::without_provenance_mut(handle)
    }

    pub(crate) fn get(&mut self, handle: *mut H) -> Result<&mut T> {
        self.entries.get_mut(&handle.addr()).ok_or(Error::INVALID_HANDLE)
    }

    pub(crate) fn remove(&mut self, handle: *mut H) -> Result<T> {
        self.entries.remove(&handle.addr()).ok_or(Error::INVALID_HANDLE)
    }

    pub(crate) fn values(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.values_mut()
    }
}

/// The address a pointer of the interface stands for.
pub(crate) fn address(pointer: *const c_void) -> u64 {
    pointer.expose_provenance() as u64
}

/// The pointer of the interface for an address.
pub(crate) fn pointer(address: u64) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(address as usize)
}
