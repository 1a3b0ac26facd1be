//! The operations on each backend.

mod autodiff;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cube")]
pub(crate) use cube::unsupported_dtype;
#[cfg(feature = "flex")]
mod flex;
