//! The operations on each backend.

#[cfg(all(feature = "cpu", target_os = "linux"))]
mod compiler_runtime;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cube")]
pub(crate) use cube::{
    MAX_TOP_K, has_bytes, has_fnuz, has_wide_integers, memory, multiplies_e4m3, unsupported_dtype,
};
#[cfg(feature = "flex")]
mod flex;
