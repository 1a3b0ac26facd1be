#!/usr/bin/env bash
# Tests the ROCm build on a machine without an AMD GPU, as if it had an MI300X: CubeCL's HIP runtime finds the libraries
# of tests/hip-sim where it looks for ROCm, compiles each kernel to gfx942 machine code as always, and that code is
# simulated.
#
#     scripts/test-on-simulated-mi300x.sh                              the simulator's own tests, then the project's
#     scripts/test-on-simulated-mi300x.sh COMMAND [ARGUMENT...]        any other command, with the simulated device
#
# FEATURES: features of the build that is tested, by default flex,rocm,fusion. Not `autotune`: each kernel that it tries
# is compiled, which takes far longer than running it.
# HIP_SIM_CHECKS and HIP_SIM_PROFILE are explained in tests/hip-sim/README.md.
#
# Installs what is missing, like install-llvm.sh: LLVM, and clang for the kernels that the simulator's tests compile.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/debian-unstable.sh"

"$root/scripts/install-llvm.sh"
if ! { command -v clang-19 && command -v llvm-mc-19 && command -v ld.lld-19; } >/dev/null; then
  as_root apt-get -qq update
  as_root apt-get -qq install -y clang-19 llvm-19 lld-19 >/dev/null
fi

target=${CARGO_TARGET_DIR:-$root/target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
rocm=$target/simulated-rocm

# The simulator may use all instructions of the machine that it was built on: it runs there and nowhere else.
RUSTFLAGS="${RUSTFLAGS:-} -C target-cpu=native" cargo build --locked --release --package hip-sim-runtime \
  --manifest-path "$root/Cargo.toml" --target-dir "$target/hip-sim"
mkdir -p "$rocm/lib" "$rocm/amdgcn"
# One library has the functions of both; only the names must be there.
for name in libamdhip64.so libhiprtc.so; do
  ln -sfn "$target/hip-sim/release/libamdhip64.so" "$rocm/lib/$name"
done
# What ROCm brings along for kernels: functions like `log`.
if [ ! -e "$rocm/amdgcn/bitcode/ocml.bc" ]; then
  rm -rf "$rocm/device-libs"
  unpack_from_unstable "$rocm/device-libs" rocm-device-libs-21
  ln -sfn "$rocm/device-libs/usr/lib/llvm-21/lib/clang/21/amdgcn/bitcode" "$rocm/amdgcn/bitcode"
fi

unset HIP_PATH
export BURN_FLASHINFER_TEST_DEVICES=${BURN_FLASHINFER_TEST_DEVICES:-rocm}
# With an allocation for each tensor, the simulator sees where tensors end.
export BURN_FLASHINFER_TEST_EXACT_ALLOCATIONS=1
if (($# > 0)); then
  exec env ROCM_PATH="$rocm" "$@"
fi

cd "$root"
features=(--locked --package burn-flashinfer --package burn-flashinfer-kernels --package llama
  --no-default-features --features "${FEATURES:-flex,rocm,fusion}")
# Only what runs sees ROCM_PATH: a build that sees it change builds all of CubeCL anew.
host=$(rustc -vV | sed -n 's/^host: //p')
runner=(--config "target.$host.runner = ['env', 'ROCM_PATH=$rocm']")
cargo test --locked --package hip-sim --package hip-sim-runtime
cargo test "${runner[@]}" "${features[@]}" --test ops --test device -- --skip ::flex --skip ::cpu
cargo test "${runner[@]}" "${features[@]}" --test llama every_device_writes_the_same
