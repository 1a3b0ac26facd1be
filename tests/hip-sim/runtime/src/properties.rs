//! What the device says of itself: an MI300X.

use std::ffi::{c_char, c_int};

use cubecl_hip_sys::{hipDeviceArch_t, hipDeviceProp_tR0600};

use crate::error::{Error, Result};

/// Bytes of the real device. They take memory of the host only when touched.
pub(crate) const GLOBAL_MEMORY: usize = 192 << 30;
/// Bytes of local memory that a workgroup can have.
pub(crate) const LDS: u32 = 64 << 10;
pub(crate) const MAX_THREADS: u32 = 1024;
pub(crate) const NAME: &str = "AMD Instinct MI300X (simulated)";
pub(crate) const PCI_BUS_ID: &str = "0000:03:00.0";

/// Refuses every device but the only one.
pub(crate) fn check_device(device: c_int) -> Result {
    if device == 0 { Ok(()) } else { Err(Error::INVALID_DEVICE) }
}

pub(crate) fn properties() -> hipDeviceProp_tR0600 {
    // SAFETY: numbers, arrays of numbers and pointers: all may be zero.
    let mut properties: hipDeviceProp_tR0600 = unsafe { std::mem::zeroed() };
    set_text(&mut properties.name, NAME);
    set_text(&mut properties.gcnArchName, "gfx942:sramecc+:xnack-");
    let p = &mut properties;
    p.totalGlobalMem = GLOBAL_MEMORY;
    p.sharedMemPerBlock = LDS as usize;
    p.sharedMemPerBlockOptin = LDS as usize;
    p.sharedMemPerMultiprocessor = LDS as usize;
    p.maxSharedMemoryPerMultiProcessor = LDS as usize;
    p.regsPerBlock = 64 << 10;
    p.regsPerMultiprocessor = 64 << 10;
    p.warpSize = 64;
    p.memPitch = i32::MAX as usize;
    p.maxThreadsPerBlock = MAX_THREADS.cast_signed();
    p.maxThreadsDim = [MAX_THREADS.cast_signed(); 3];
    p.maxGridSize = [i32::MAX, 1 << 16, 1 << 16];
    p.maxThreadsPerMultiProcessor = 2048;
    p.maxBlocksPerMultiProcessor = 32;
    p.clockRate = 2_100_000;
    p.clockInstructionRate = 100_000;
    p.memoryClockRate = 1_300_000;
    p.memoryBusWidth = 8192;
    p.l2CacheSize = 4 << 20;
    p.totalConstMem = i32::MAX as usize;
    p.major = 9;
    p.minor = 4;
    p.textureAlignment = 256;
    p.texturePitchAlignment = 256;
    p.surfaceAlignment = 256;
    p.multiProcessorCount = 304;
    p.concurrentKernels = 1;
    p.asyncEngineCount = 1;
    p.canMapHostMemory = 1;
    p.unifiedAddressing = 1;
    p.managedMemory = 1;
    p.hostRegisterSupported = 1;
    p.memoryPoolsSupported = 1;
    p.ECCEnabled = 1;
    p.pciBusID = 3;
    p.isLargeBar = 1;
    p.arch = architecture();
    properties
}

/// The features of gfx9.
fn architecture() -> hipDeviceArch_t {
    // SAFETY: bits, which may be zero.
    let mut arch: hipDeviceArch_t = unsafe { std::mem::zeroed() };
    arch.set_hasGlobalInt32Atomics(1);
    arch.set_hasGlobalFloatAtomicExch(1);
    arch.set_hasSharedInt32Atomics(1);
    arch.set_hasSharedFloatAtomicExch(1);
    arch.set_hasFloatAtomicAdd(1);
    arch.set_hasGlobalInt64Atomics(1);
    arch.set_hasSharedInt64Atomics(1);
    arch.set_hasDoubles(1);
    arch.set_hasWarpVote(1);
    arch.set_hasWarpBallot(1);
    arch.set_hasWarpShuffle(1);
    arch.set_has3dGrid(1);
    arch
}

/// Writes a text with a zero byte behind it, cut off where the array ends.
pub(crate) fn set_text(target: &mut [c_char], text: &str) {
    let room = target.len().saturating_sub(1);
    target.fill(0);
    for (to, from) in target[..room].iter_mut().zip(text.bytes()) {
        *to = from.cast_signed();
    }
}
