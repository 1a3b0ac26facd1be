#!/usr/bin/env bash
# Runs a command on a machine without an AMD GPU as if it had an MI300X: CubeCL's HIP runtime finds the
# libraries of tests/hip-sim where it looks for ROCm.
#
#     scripts/test-on-simulated-mi300x.sh cargo test --features rocm
#
# HIP_SIM_CHECKS and HIP_SIM_PROFILE are explained in tests/hip-sim/README.md.
set -euo pipefail

if (($# == 0)); then
    echo "usage: $0 COMMAND [ARGUMENT...]" >&2
    exit 2
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Apart from the project's own artifacts, which other profiles and features would rebuild.
target=${CARGO_TARGET_DIR:-$root/target}/hip-sim
mkdir -p "$target"
target=$(cd "$target" && pwd)

cargo build --release --package hip-sim-runtime --manifest-path "$root/Cargo.toml" \
    --target-dir "$target"

rocm=$target/rocm
mkdir -p "$rocm/lib"
# One library has the functions of both; only the names must be there.
for name in libamdhip64.so libhiprtc.so; do
    ln -sfn "$target/release/libamdhip64.so" "$rocm/lib/$name"
done

unset HIP_PATH
export ROCM_PATH=$rocm
exec "$@"
