//! LLVM's tools, where they are installed. Tests that need one which is missing say so and pass.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// The newest tool of a name, which has its version behind it or none.
pub fn tool(name: &str) -> Option<String> {
    let names = [23, 22, 21, 20, 19].map(|version| format!("{name}-{version}"));
    let mut names = names.into_iter().chain([name.to_owned()]);
    let found = names.find(|name| Command::new(name).arg("--version").output().is_ok());
    if found.is_none() {
        println!("skipped: {name} is not installed");
    }
    found
}

/// A path for a temporary file that no other test has.
pub fn scratch_file(extension: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("hip-sim-{}-{count}.{extension}", std::process::id()))
}

pub fn call(command: &mut Command) {
    let output = command.output().expect("the tool was found");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What a tool wrote, whose file is taken away.
pub fn take(file: &Path) -> Vec<u8> {
    let content = std::fs::read(file).expect("just written");
    let _removed = std::fs::remove_file(file);
    content
}

/// The code object of a HIP source for an architecture, without a bundle around it.
pub fn code_object(source: &Path, arch: &str) -> Option<Vec<u8>> {
    let clang = tool("clang")?;
    let object = scratch_file("co");
    let flags = ["-x", "hip", "-nogpuinc", "-nogpulib", "--offload-device-only", "-O3"];
    call(
        Command::new(clang)
            .args(flags)
            .args(["--no-gpu-bundle-output", "-mcode-object-version=5"])
            .arg(format!("--offload-arch={arch}"))
            .arg(source)
            .arg("-o")
            .arg(&object),
    );
    Some(take(&object))
}
