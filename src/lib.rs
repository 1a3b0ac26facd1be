//! burn-flashinfer
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod backend;
mod error;
pub mod extension;
mod options;
pub use error::{Error, Result};
pub use options::{AttentionOptions, KvLayout};
