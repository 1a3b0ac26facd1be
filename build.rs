//! Shows a function of this crate to CubeCL's CPU compiler in the tests and programs, see `src/backend/compiler_runtime.rs`.

fn main() {
    // Two packages share this script, so it has no path of its own to name. It reads features and target alone.
    println!("cargo::rerun-if-env-changed=CARGO_FEATURE_CPU");
    let is_set = |name: &str| std::env::var_os(name).is_some();
    if is_set("CARGO_FEATURE_CPU") && std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-link-arg=-Wl,--undefined=__truncsfbf2,--export-dynamic-symbol=__truncsfbf2");
    }
}
