//! `libhiprtc.so`: a compiler that refuses every program, since the simulator has none. CubeCL's LLVM
//! backend compiles in process and needs the library only to be there.

use std::ffi::{CStr, c_char, c_int};

use cubecl_hip_sys::*;

const LOG: &CStr = c"the simulator has no HIP RTC; compile with CubeCL's LLVM backend";

/// All programs are this one, since none has a state.
const PROGRAM: hiprtcProgram = std::ptr::without_provenance_mut(16);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hiprtcCreateProgram(
    program: *mut hiprtcProgram,
    source: *const c_char,
    _name: *const c_char,
    _header_count: c_int,
    _headers: *const *const c_char,
    _include_names: *const *const c_char,
) -> hiprtcResult {
    if program.is_null() || source.is_null() {
        return hiprtcResult_HIPRTC_ERROR_INVALID_INPUT;
    }
    // SAFETY: the caller's pointer.
    unsafe { program.write(PROGRAM) };
    hiprtcResult_HIPRTC_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hiprtcCompileProgram(
    _program: hiprtcProgram,
    _option_count: c_int,
    _options: *const *const c_char,
) -> hiprtcResult {
    hiprtcResult_HIPRTC_ERROR_COMPILATION
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hiprtcDestroyProgram(program: *mut hiprtcProgram) -> hiprtcResult {
    if program.is_null() {
        return hiprtcResult_HIPRTC_ERROR_INVALID_INPUT;
    }
    // SAFETY: the caller's pointer.
    unsafe { program.write(std::ptr::null_mut()) };
    hiprtcResult_HIPRTC_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hiprtcGetCodeSize(_program: hiprtcProgram, _size: *mut usize) -> hiprtcResult {
    hiprtcResult_HIPRTC_ERROR_INVALID_PROGRAM
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hiprtcGetCode(_program: hiprtcProgram, _code: *mut c_char) -> hiprtcResult {
    hiprtcResult_HIPRTC_ERROR_INVALID_PROGRAM
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hiprtcGetProgramLogSize(_program: hiprtcProgram, size: *mut usize) -> hiprtcResult {
    if size.is_null() {
        return hiprtcResult_HIPRTC_ERROR_INVALID_INPUT;
    }
    // SAFETY: the caller's pointer.
    unsafe { size.write(LOG.count_bytes() + 1) };
    hiprtcResult_HIPRTC_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hiprtcGetProgramLog(_program: hiprtcProgram, log: *mut c_char) -> hiprtcResult {
    if log.is_null() {
        return hiprtcResult_HIPRTC_ERROR_INVALID_INPUT;
    }
    // SAFETY: the caller made room for as many bytes as it was told.
    unsafe { log.copy_from_nonoverlapping(LOG.as_ptr(), LOG.count_bytes() + 1) };
    hiprtcResult_HIPRTC_SUCCESS
}
