//! Loads the library that was built, the way CubeCL does: from `lib` under `ROCM_PATH`.

#![allow(dead_code, unused_macros, unused_imports, reason = "every test binary uses another part")]

#[path = "../../../tests/common/llvm.rs"]
mod llvm;

use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

pub use cubecl_hip_sys::*;

/// The device, for one test at a time: a capture of one forbids calls to the others, as on a real one.
pub fn device() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    static LOADED: LazyLock<()> = LazyLock::new(|| {
        let root = directory("rocm");
        let executable = std::env::current_exe().expect("the test knows itself");
        let built = executable.parent().expect("it lies in a folder").join("libamdhip64.so");
        std::fs::create_dir_all(root.join("lib")).expect("the folder is made");
        for name in ["libamdhip64.so", "libhiprtc.so"] {
            std::os::unix::fs::symlink(&built, root.join("lib").join(name)).expect("the link is made");
        }
        // SAFETY: the other threads of the tests wait for this lock.
        unsafe { std::env::set_var("ROCM_PATH", &root) };
        assert!(is_available(), "{} cannot be loaded", built.display());
        std::fs::remove_dir_all(root).expect("the folder is removed");
    });
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    LazyLock::force(&LOADED);
    guard
}

/// A new folder for temporary files.
pub fn directory(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("hip-sim-runtime-{}-{name}", std::process::id()));
    let _absent = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).expect("the folder is made");
    directory
}

/// The code object of a source for an architecture.
pub fn compile(source: &str, arch: &str) -> Option<Vec<u8>> {
    let input = llvm::scratch_file("hip");
    std::fs::write(&input, source).expect("the source is written");
    let image = llvm::code_object(&input, arch);
    let _removed = std::fs::remove_file(input);
    image
}

/// Requires success of a call.
macro_rules! ok {
    ($($call:tt)*) => {
        assert_eq!(
            {
                #[allow(unused_unsafe, reason = "some calls have their unsafe block inside")]
                // SAFETY: what the test passes is what the function asks for, or refused.
                unsafe {
                    $($call)*
                }
            },
            0,
            stringify!($($call)*)
        )
    };
}

/// Requires an error of a call.
macro_rules! fails {
    ($error:ident, $($call:tt)*) => {
        assert_eq!(
            // SAFETY: what the test passes is what the function asks for, or refused.
            unsafe { $($call)* },
            $error,
            stringify!($($call)*)
        )
    };
}

pub(crate) use {fails, ok};
