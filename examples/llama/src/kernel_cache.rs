//! Compiled kernels, kept on disk from one start to the next.
//!
//! CubeCL finds a kernel by its type and compile-time arguments, which say nothing of its body. So the identity of the
//! program is in the key, and a program that was built anew finds nothing of what the former one left.

use std::path::{Path, PathBuf};

use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};
use etcetera::BaseStrategy as _;

/// The folder in the user's cache folder, if there is one.
pub fn default_folder() -> Option<PathBuf> {
    etcetera::choose_base_strategy().ok().map(|user| user.cache_dir().join("burn-flashinfer"))
}

/// Keeps kernels in `folder`, with what was tuned, or without a folder nowhere. Only before the first device is opened.
pub fn keep_in(folder: Option<&Path>) {
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    config.compilation.cache = folder.is_some_and(|_| has_build_id());
    if let Some(folder) = folder {
        config.environment.path = CacheConfig::Directory(folder.to_path_buf());
    }
    tracing::debug!(?folder, on = config.compilation.cache, "kernel cache");
    if !CubeClRuntimeConfig::try_set(config) {
        tracing::warn!("kernels are not cached: a device was opened before");
    }
}

/// True if kernels of this program are told from those of another build.
fn has_build_id() -> bool {
    let has = buildid::build_id().is_some();
    if !has {
        tracing::warn!("kernels are not cached: the linker gave this program no build ID (`--build-id`)");
    }
    has
}
