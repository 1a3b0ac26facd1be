//! A function that CubeCL's CPU compiler expects of the runtime library, and that older systems lack.

use burn::tensor::bf16;

/// Rounds to bf16, ties to even; the result is in the lower half of the register that a float is returned in.
///
/// On a processor without bf16 instructions LLVM calls this in every kernel of Burn's that writes bf16, and
/// looks for it in the running program. libgcc has it since version 13; Debian 12 has version 12, and there
/// each such kernel would fail to load. `build.rs` exports it from the tests and examples of this crate; a
/// program that is to run bf16 on `Device::cpu()` on such a system passes the same linker arguments.
// SAFETY: the name is the compiler runtime's for exactly this function, so nothing else may have it.
#[unsafe(no_mangle)]
extern "C" fn __truncsfbf2(x: f32) -> f32 {
    f32::from_bits(u32::from(bf16::from_f32(x).to_bits()))
}
