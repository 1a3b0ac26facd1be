//! Memory, streams and events, called as CubeCL calls them.

mod support;

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::time::Duration;

use support::*;

fn allocate(size: usize) -> *mut c_void {
    let mut pointer = null_mut();
    ok!(hipMalloc(&mut pointer, size));
    pointer
}

fn upload<T: Copy>(values: &[T]) -> *mut c_void {
    let pointer = allocate(size_of_val(values));
    ok!(hipMemcpyHtoDAsync(pointer, values.as_ptr().cast(), size_of_val(values), null_mut()));
    pointer
}

fn download<T: Copy + Default>(pointer: *mut c_void, count: usize) -> Vec<T> {
    let mut values = vec![T::default(); count];
    ok!(hipMemcpyDtoHAsync(values.as_mut_ptr().cast(), pointer, count * size_of::<T>(), null_mut()));
    values
}

#[test]
fn the_device_is_an_mi300x() {
    let _device = device();
    let mut count = 0;
    ok!(hipGetDeviceCount(&mut count));
    assert_eq!(count, 1);
    let mut properties = std::mem::MaybeUninit::uninit();
    ok!(hipGetDevicePropertiesR0600(properties.as_mut_ptr(), 0));
    // SAFETY: written by the call.
    let properties: hipDeviceProp_tR0600 = unsafe { properties.assume_init() };
    // SAFETY: a string with its end.
    let arch = unsafe { CStr::from_ptr(properties.gcnArchName.as_ptr()) };
    assert_eq!(arch, c"gfx942:sramecc+:xnack-");
    assert_eq!((properties.warpSize, properties.multiProcessorCount), (64, 304));
    assert_eq!((properties.sharedMemPerBlock, properties.maxThreadsPerBlock), (65536, 1024));
    fails!(hipError_t_hipErrorInvalidDevice, hipSetDevice(1));
    ok!(hipSetDevice(0));
    let mut bus = [0; 32];
    ok!(hipDeviceGetPCIBusId(bus.as_mut_ptr(), 32, 0));
    // SAFETY: a string with its end.
    assert_eq!(unsafe { CStr::from_ptr(bus.as_ptr()) }, c"0000:03:00.0");
    fails!(hipError_t_hipErrorInvalidValue, hipDeviceGetPCIBusId(bus.as_mut_ptr(), 4, 0));
    let mut value = 0;
    ok!(hipDeviceGetAttribute(&mut value, hipDeviceAttribute_t_hipDeviceAttributeWarpSize, 0));
    assert_eq!(value, 64);
}

#[test]
fn memory_is_counted_and_limited() {
    let _device = device();
    let (mut before, mut after, mut total) = (0, 0, 0);
    ok!(hipMemGetInfo(&mut before, &mut total));
    assert_eq!(total, 192 << 30);
    let pointer = allocate(1 << 30);
    ok!(hipMemGetInfo(&mut after, &mut total));
    assert_eq!(before - after, 1 << 30);
    ok!(hipFree(pointer));
    let mut pinned = null_mut();
    ok!(hipHostMalloc(&mut pinned, 1 << 20, hipHostMallocMapped));
    ok!(hipMemGetInfo(&mut after, &mut total));
    assert_eq!(before, after, "pinned memory is the host's");
    fails!(hipError_t_hipErrorInvalidDevicePointer, hipFree(pinned));
    ok!(hipFreeHost(pinned));
    let mut pointer = null_mut();
    fails!(hipError_t_hipErrorOutOfMemory, hipMalloc(&mut pointer, 193 << 30));
    assert!(pointer.is_null());
    ok!(hipMalloc(&mut pointer, 0));
    ok!(hipFree(pointer));
    fails!(hipError_t_hipErrorInvalidValue, hipMalloc(null_mut(), 4));
}

#[test]
fn frees_of_what_is_not_allocated_are_errors() {
    let _device = device();
    let pointer = allocate(64);
    fails!(hipError_t_hipErrorInvalidDevicePointer, hipFree(pointer.wrapping_byte_add(4)));
    ok!(hipFree(pointer));
    fails!(hipError_t_hipErrorInvalidDevicePointer, hipFree(pointer));
    fails!(hipError_t_hipErrorInvalidValue, hipFreeHost(pointer));
    let mut host = 0_u32;
    fails!(hipError_t_hipErrorInvalidDevicePointer, hipFree((&raw mut host).cast()));
    // SAFETY: no pointers.
    assert_eq!(unsafe { hipGetLastError() }, hipError_t_hipErrorInvalidDevicePointer);
    // SAFETY: as above.
    assert_eq!(unsafe { hipGetLastError() }, 0);
    // SAFETY: a static string.
    let name = unsafe { CStr::from_ptr(hipGetErrorName(hipError_t_hipErrorInvalidDevicePointer)) };
    assert_eq!(name, c"hipErrorInvalidDevicePointer");
}

#[test]
fn bytes_survive_copies_in_every_direction() {
    let _device = device();
    let values: Vec<u32> = (0..1000).collect();
    let (first, second) = (upload(&values), allocate(4000));
    ok!(hipMemcpyDtoDAsync(second, first, 4000, null_mut()));
    assert_eq!(download::<u32>(second, 1000), values);
    let mut pinned = null_mut();
    ok!(hipHostMalloc(&mut pinned, 4000, 0));
    ok!(hipMemcpy(pinned, second, 4000, hipMemcpyKind_hipMemcpyDefault));
    // SAFETY: 1000 values were copied.
    assert_eq!(unsafe { std::slice::from_raw_parts(pinned.cast::<u32>(), 1000) }, values);

    let invalid = hipError_t_hipErrorInvalidValue;
    fails!(invalid, hipMemcpyHtoDAsync(second, values.as_ptr().cast(), 4001, null_mut()));
    let mut host = [0_u32; 4];
    fails!(invalid, hipMemcpyHtoDAsync(host.as_mut_ptr().cast(), values.as_ptr().cast(), 16, null_mut()));
    fails!(invalid, hipMemcpyDtoHAsync(host.as_mut_ptr().cast(), null_mut(), 16, null_mut()));
    fails!(
        hipError_t_hipErrorInvalidMemcpyDirection,
        hipMemcpy(second, first, 4, hipMemcpyKind_hipMemcpyDefault + 1)
    );
    ok!(hipFreeHost(pinned));
    ok!(hipFree(first));
    fails!(invalid, hipMemcpyDtoDAsync(second, first, 4, null_mut()));
    ok!(hipFree(second));
}

#[test]
fn rows_are_copied_at_their_pitch() {
    let _device = device();
    let values: Vec<u8> = (0..12).collect();
    let pitched = allocate(3 * 16);
    ok!(hipMemset(pitched, 0xff, 48));
    let (to, from) = (hipMemcpyKind_hipMemcpyHostToDevice, hipMemcpyKind_hipMemcpyDeviceToHost);
    ok!(hipMemcpy2DAsync(pitched, 16, values.as_ptr().cast(), 4, 4, 3, to, null_mut()));
    let bytes = download::<u8>(pitched, 48);
    assert_eq!(bytes[16..20], [4, 5, 6, 7]);
    assert_eq!(bytes[20..32], [0xff; 12]);
    let mut back = [0_u8; 12];
    ok!(hipMemcpy2DAsync(back.as_mut_ptr().cast(), 4, pitched, 16, 4, 3, from, null_mut()));
    assert_eq!(back, values[..]);
    let host = values.as_ptr().cast();
    fails!(hipError_t_hipErrorInvalidPitchValue, hipMemcpy2DAsync(pitched, 3, host, 4, 4, 3, to, null_mut()));
    fails!(hipError_t_hipErrorInvalidValue, hipMemcpy2DAsync(pitched, 24, host, 4, 4, 3, to, null_mut()));
    ok!(hipMemcpy2DAsync(pitched, 16, host, 4, 0, 3, to, null_mut()));
    ok!(hipFree(pitched));
}

#[test]
fn fills_repeat_their_value() {
    let _device = device();
    let pointer = allocate(16);
    ok!(hipMemset(pointer, 0x1ff, 16));
    assert_eq!(download::<u8>(pointer, 16), [0xff; 16]);
    ok!(hipMemsetD16(pointer, 0x1234, 4));
    assert_eq!(download::<u16>(pointer, 5), [0x1234, 0x1234, 0x1234, 0x1234, 0xffff]);
    ok!(hipMemsetD32Async(pointer, -2, 4, null_mut()));
    assert_eq!(download::<i32>(pointer, 4), [-2; 4]);
    ok!(hipMemset2DAsync(pointer, 8, 7, 2, 2, null_mut()));
    assert_eq!(download::<u8>(pointer, 11), [7, 7, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff, 7, 7, 0xff]);
    fails!(hipError_t_hipErrorInvalidValue, hipMemsetD32Async(pointer, 0, 5, null_mut()));
    fails!(hipError_t_hipErrorInvalidValue, hipMemsetD32Async(pointer, 0, usize::MAX, null_mut()));
    ok!(hipFree(pointer));
}

#[test]
fn host_memory_is_registered_and_pointers_are_known() {
    let _device = device();
    let mut host = vec![0_u8; 64];
    let pointer = host.as_mut_ptr().cast::<c_void>();
    let mut mapped = null_mut();
    fails!(hipError_t_hipErrorInvalidValue, hipHostGetDevicePointer(&mut mapped, pointer, 0));
    ok!(hipHostRegister(pointer, 64, 0));
    ok!(hipHostGetDevicePointer(&mut mapped, pointer, 0));
    assert_eq!(mapped, pointer);
    ok!(hipHostUnregister(pointer));
    fails!(hipError_t_hipErrorHostMemoryNotRegistered, hipHostUnregister(pointer));

    let block = allocate(100);
    let (mut base, mut size) = (null_mut(), 0);
    ok!(hipMemGetAddressRange(&mut base, &mut size, block.wrapping_byte_add(99)));
    assert_eq!((base, size), (block, 100));
    ok!(hipFree(block));
    fails!(hipError_t_hipErrorInvalidValue, hipMemGetAddressRange(&mut base, &mut size, block));
}

#[test]
fn events_measure_time() {
    let _device = device();
    let mut stream = null_mut();
    ok!(hipStreamCreateWithFlags(&mut stream, hipStreamNonBlocking));
    let (mut start, mut stop) = (null_mut(), null_mut());
    ok!(hipEventCreateWithFlags(&mut start, hipEventDefault));
    ok!(hipEventCreateWithFlags(&mut stop, hipEventDefault));
    let mut milliseconds = 0.0;
    fails!(hipError_t_hipErrorInvalidHandle, hipEventElapsedTime(&mut milliseconds, start, stop));
    ok!(hipEventQuery(start));
    ok!(hipEventRecord(start, stream));
    std::thread::sleep(Duration::from_millis(20));
    ok!(hipEventRecord(stop, stream));
    ok!(hipStreamWaitEvent(stream, stop, 0));
    ok!(hipEventSynchronize(stop));
    ok!(hipEventElapsedTime(&mut milliseconds, start, stop));
    assert!(milliseconds >= 20.0, "{milliseconds}");
    ok!(hipEventElapsedTime(&mut milliseconds, stop, start));
    assert!(milliseconds <= -20.0, "{milliseconds}");
    ok!(hipEventDestroy(start));
    fails!(hipError_t_hipErrorInvalidHandle, hipEventRecord(start, stream));
    ok!(hipEventDestroy(stop));
    ok!(hipStreamSynchronize(stream));
    ok!(hipStreamDestroy(stream));
    fails!(hipError_t_hipErrorInvalidHandle, hipStreamSynchronize(stream));
    fails!(hipError_t_hipErrorInvalidHandle, hipStreamSynchronize(start.cast()));
    ok!(hipStreamSynchronize(null_mut()));
    ok!(hipDeviceSynchronize());
}

#[test]
fn the_compiler_of_the_runtime_refuses_and_says_why() {
    let _device = device();
    let mut program = null_mut();
    let source = c"source".as_ptr();
    ok!(hiprtcCreateProgram(&mut program, source, std::ptr::null(), 0, null_mut(), null_mut()));
    fails!(hiprtcResult_HIPRTC_ERROR_COMPILATION, hiprtcCompileProgram(program, 0, null_mut()));
    let mut size = 0;
    ok!(hiprtcGetProgramLogSize(program, &mut size));
    let mut log = vec![0; size];
    ok!(hiprtcGetProgramLog(program, log.as_mut_ptr()));
    // SAFETY: a string with its end.
    let log = unsafe { CStr::from_ptr(log.as_ptr()) }.to_str().expect("UTF-8");
    assert!(log.contains("LLVM backend"), "{log}");
    ok!(hiprtcDestroyProgram(&mut program));
}
