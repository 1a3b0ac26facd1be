//! Loads the library that was built, the way CubeCL does: from `lib` under `ROCM_PATH`.

#![allow(dead_code, unused_macros, unused_imports, reason = "every test binary uses another part")]

use std::path::PathBuf;
use std::process::Command;
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

/// A code object for an architecture, without a bundle around it. Where no compiler is installed the tests that need one
/// say so and pass.
pub fn compile(source: &str, arch: &str) -> Option<Vec<u8>> {
    let compilers = ["clang-23", "clang-22", "clang-21", "clang-20", "clang-19", "clang"];
    let found = compilers.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok());
    let Some(compiler) = found else {
        println!("skipped: none of {compilers:?} is installed");
        return None;
    };
    let directory = directory(arch);
    let (input, output) = (directory.join("kernel.hip"), directory.join("kernel.co"));
    std::fs::write(&input, source).expect("the source is written");
    let status = Command::new(compiler)
        .args(["-x", "hip", "-nogpuinc", "-nogpulib", "--offload-device-only", "-O3"])
        .args(["--no-gpu-bundle-output", "-mcode-object-version=5"])
        .arg(format!("--offload-arch={arch}"))
        .arg("-o")
        .args([&output, &input])
        .status();
    assert!(status.expect("the compiler starts").success());
    let image = std::fs::read(output).expect("the code object is there");
    std::fs::remove_dir_all(directory).expect("the folder is removed");
    Some(image)
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
