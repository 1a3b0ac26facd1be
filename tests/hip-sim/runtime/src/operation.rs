//! Work for the device: what a stream runs, and what a graph records and runs again.

use std::ptr;

use hip_sim::code_object::Kernel;
use hip_sim::dispatch::{self, Launch};
use hip_sim::memory::{AccessError, Memory};
use hip_sim::report::Cause;

use crate::device::{Device, Function};
use crate::error::{Error, Result};

#[derive(Clone)]
pub(crate) enum Operation {
    Launch(Dispatch),
    Copy(Copy),
    Fill(Fill),
}

/// A kernel with its arguments.
#[derive(Clone)]
pub(crate) struct Dispatch {
    pub(crate) function: Function,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_lds: u32,
    pub(crate) kernarg: Vec<u8>,
}

/// Rows of bytes from one place to another.
#[derive(Clone, Copy)]
pub(crate) struct Copy {
    pub(crate) target: Rows,
    pub(crate) source: Rows,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// Rows of repetitions of a value of 1, 2 or 4 bytes.
#[derive(Clone, Copy)]
pub(crate) struct Fill {
    pub(crate) target: Rows,
    pub(crate) value: [u8; 4],
    pub(crate) value_size: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// Where rows lie.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) address: u64,
    /// From the start of one row to that of the next.
    pub(crate) pitch: usize,
    /// Must be known to the device, rather than any memory of the host.
    pub(crate) on_device: bool,
}

impl Rows {
    /// Pointer to the first byte, if all rows are accessible.
    fn resolve(&self, memory: &Memory, width: usize, height: usize) -> Result<*mut u8, AccessError> {
        let len =
            self.pitch.checked_mul(height - 1).and_then(|rows| rows.checked_add(width)).unwrap_or(usize::MAX);
        match memory.resolve(self.address, len) {
            // The host's own memory is its own affair.
            Err(AccessError::Unmapped) if !self.on_device && !memory.owns(self.address) => {
                Ok(ptr::with_exposed_provenance_mut(self.address as usize))
            }
            resolved => resolved,
        }
    }

    fn check(&self, memory: &Memory, width: usize, height: usize, what: &str) -> Result {
        if width == 0 || height == 0 {
            return Ok(());
        }
        if height > 1 && self.pitch < width {
            return Err(Error::INVALID_PITCH_VALUE);
        }
        self.resolve(memory, width, height).map(drop).map_err(|error| {
            let Self { address, pitch, .. } = self;
            eprintln!("hip-sim: {what} {address:#x}, {height} rows of {width} bytes every {pitch}: {error}");
            Error::INVALID_VALUE
        })
    }
}

impl Copy {
    /// Whether both sides are accessible.
    pub(crate) fn check(&self, memory: &Memory) -> Result {
        self.target.check(memory, self.width, self.height, "copy to")?;
        self.source.check(memory, self.width, self.height, "copy from")
    }

    fn run(&self, memory: &Memory) -> Result {
        self.check(memory)?;
        if self.width == 0 || self.height == 0 {
            return Ok(());
        }
        let resolve =
            |rows: &Rows| rows.resolve(memory, self.width, self.height).map_err(|_| Error::INVALID_VALUE);
        let (target, source) = (resolve(&self.target)?, resolve(&self.source)?);
        for row in 0..self.height {
            // SAFETY: resolved, or memory of the host that the caller vouches for; they may overlap.
            unsafe {
                ptr::copy(
                    source.add(row * self.source.pitch),
                    target.add(row * self.target.pitch),
                    self.width,
                )
            };
            memory.mark_written(self.target.address + (row * self.target.pitch) as u64, self.width);
        }
        Ok(())
    }
}

impl Fill {
    /// Whether the target is accessible.
    pub(crate) fn check(&self, memory: &Memory) -> Result {
        self.target.check(memory, self.width, self.height, "fill of")
    }

    fn run(&self, memory: &Memory) -> Result {
        self.check(memory)?;
        if self.width == 0 || self.height == 0 {
            return Ok(());
        }
        let target =
            self.target.resolve(memory, self.width, self.height).map_err(|_| Error::INVALID_VALUE)?;
        let value = &self.value[..self.value_size];
        for row in 0..self.height {
            // SAFETY: resolved, and nothing else touches it while the device is locked.
            let row_bytes =
                unsafe { std::slice::from_raw_parts_mut(target.add(row * self.target.pitch), self.width) };
            for place in row_bytes.chunks_exact_mut(value.len()) {
                place.copy_from_slice(value);
            }
            memory.mark_written(self.target.address + (row * self.target.pitch) as u64, self.width);
        }
        Ok(())
    }
}

impl Dispatch {
    pub(crate) fn kernel(&self) -> &Kernel {
        &self.function.object.kernels[self.function.kernel]
    }

    fn run(&self, device: &mut Device) -> Result {
        let kernel = self.kernel();
        let launch = Launch {
            memory: &device.memory,
            kernel,
            grid: self.grid,
            block: self.block,
            dynamic_lds: self.dynamic_lds,
            kernarg: &self.kernarg,
            checks: device.checks,
        };
        match dispatch::launch(&launch) {
            Ok(profile) => {
                device.profiles.add(&kernel.name, profile);
                Ok(())
            }
            Err(fault) => {
                eprintln!("hip-sim: {fault}");
                Err(match fault.cause {
                    Cause::Memory { .. } => Error::ILLEGAL_ADDRESS,
                    _ => Error::LAUNCH_FAILURE,
                })
            }
        }
    }
}

impl Operation {
    /// Runs to the end. A failure is the device's, not the caller's: it was accepted long before, as far
    /// as the program knows.
    pub(crate) fn run(&self, device: &mut Device) {
        let done = match self {
            Self::Launch(dispatch) => dispatch.run(device),
            Self::Copy(copy) => copy.run(&device.memory),
            Self::Fill(fill) => fill.run(&device.memory),
        };
        if let Err(error) = done {
            // An address that was valid on submission and no longer is on replay is the device's fault.
            device.fail(if error == Error::INVALID_VALUE { Error::LAUNCH_FAILURE } else { error });
        }
    }
}
