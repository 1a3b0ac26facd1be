//! HIP's status codes.

use std::cell::Cell;
use std::ffi::{CStr, c_char};

use cubecl_hip_sys::hipError_t;

/// A status other than success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Error(pub(crate) hipError_t);

pub(crate) type Result<T = (), E = Error> = std::result::Result<T, E>;

macro_rules! errors {
    ($($constant:ident = $code:literal, $name:literal, $text:literal;)*) => {
        impl Error {
            $(pub(crate) const $constant: Self = Self($code);)*
        }

        fn name(code: hipError_t) -> &'static CStr {
            match code {
                0 => c"hipSuccess",
                $($code => $name,)*
                _ => c"hipErrorUnknown",
            }
        }

        fn text(code: hipError_t) -> &'static CStr {
            match code {
                0 => c"no error",
                $($code => $text,)*
                _ => c"unknown error",
            }
        }
    };
}

errors! {
    INVALID_VALUE = 1, c"hipErrorInvalidValue", c"invalid argument";
    OUT_OF_MEMORY = 2, c"hipErrorOutOfMemory", c"out of memory";
    INVALID_CONFIGURATION = 9, c"hipErrorInvalidConfiguration", c"invalid configuration argument";
    INVALID_PITCH_VALUE = 12, c"hipErrorInvalidPitchValue", c"invalid pitch argument";
    INVALID_DEVICE_POINTER = 17, c"hipErrorInvalidDevicePointer", c"invalid device pointer";
    INVALID_MEMCPY_DIRECTION = 21, c"hipErrorInvalidMemcpyDirection", c"invalid copy direction for memcpy";
    INVALID_DEVICE = 101, c"hipErrorInvalidDevice", c"invalid device ordinal";
    INVALID_IMAGE = 200, c"hipErrorInvalidImage", c"device kernel image is invalid";
    NO_BINARY_FOR_GPU = 209, c"hipErrorNoBinaryForGpu",
        c"no kernel image is available for execution on the device";
    FILE_NOT_FOUND = 301, c"hipErrorFileNotFound", c"file not found";
    INVALID_HANDLE = 400, c"hipErrorInvalidHandle", c"invalid resource handle";
    ILLEGAL_STATE = 401, c"hipErrorIllegalState", c"the operation cannot be performed in the present state";
    NOT_FOUND = 500, c"hipErrorNotFound", c"named symbol not found";
    ILLEGAL_ADDRESS = 700, c"hipErrorIllegalAddress", c"an illegal memory access was encountered";
    HOST_MEMORY_NOT_REGISTERED = 713, c"hipErrorHostMemoryNotRegistered",
        c"pointer does not correspond to a registered memory region";
    LAUNCH_FAILURE = 719, c"hipErrorLaunchFailure", c"unspecified launch failure";
    STREAM_CAPTURE_UNSUPPORTED = 900, c"hipErrorStreamCaptureUnsupported",
        c"operation not permitted when stream is capturing";
    STREAM_CAPTURE_INVALIDATED = 901, c"hipErrorStreamCaptureInvalidated",
        c"operation failed due to a previous error during capture";
    STREAM_CAPTURE_UNMATCHED = 903, c"hipErrorStreamCaptureUnmatched",
        c"capture was not initiated in this stream";
    CAPTURED_EVENT = 907, c"hipErrorCapturedEvent",
        c"operation not permitted on an event last recorded in a capturing stream";
    STREAM_CAPTURE_WRONG_THREAD = 908, c"hipErrorStreamCaptureWrongThread",
        c"attempt to terminate a thread-local capture sequence from another thread";
    UNKNOWN = 999, c"hipErrorUnknown", c"unknown error";
}

thread_local! {
    static LAST: Cell<hipError_t> = const { Cell::new(0) };
}

/// The status of a call, remembered for `hipGetLastError` if it is an error.
pub(crate) fn status(result: Result) -> hipError_t {
    match result {
        Ok(()) => 0,
        Err(Error(code)) => {
            LAST.set(code);
            code
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGetLastError() -> hipError_t {
    LAST.take()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipPeekAtLastError() -> hipError_t {
    LAST.get()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGetErrorName(error: hipError_t) -> *const c_char {
    name(error).as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGetErrorString(error: hipError_t) -> *const c_char {
    text(error).as_ptr()
}
