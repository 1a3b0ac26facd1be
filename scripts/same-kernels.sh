#!/usr/bin/env bash
# Proves that a move or a rename changed no kernel: compiles a fixed list of kernels for GPUs that need not be there,
# before and after, and compares the assembly byte by byte. `lower --dump-list` names the kernels.
#
#     scripts/same-kernels.sh [REVISION]     the working tree against a revision, by default where it left main
#     scripts/same-kernels.sh record DIR     keeps the code of the working tree
#     scripts/same-kernels.sh check DIR      the working tree against what was kept
#
# A revision whose `lower` has no `--dump` is compared by `record`, with this list of kernels laid over it, and `check`.
# The name of a kernel does not count. What is not compiled here, for it needs libraries of CUDA or ROCm, is the same if
# it is refused for the same reason; CUDA_PATH and ROCM_PATH say where they are.
#
# TARGETS: the architectures, by default sm_90a sm_80 gfx942.
# FEATURES: features of the build, by default compilers. KEEP: a folder for both dumps, which are else deleted.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
targets=()
for target in ${TARGETS:-sm_90a sm_80 gfx942}; do targets+=(--target "$target"); done

# Functions of ROCm as test-on-simulated-mi300x.sh unpacks them; a build that sees ROCM_PATH change builds CubeCL anew.
run=(env)
rocm=$CARGO_TARGET_DIR/simulated-rocm
if [ -z "${ROCM_PATH:-}" ] && [ -e "$rocm/amdgcn/bitcode" ]; then run+=("ROCM_PATH=$rocm"); fi

work=$(mktemp -d)
clean() {
  if [ -e "$work/tree" ]; then git -C "$root" worktree remove --force "$work/tree"; fi
  rm -rf "$work"
}
trap clean EXIT

# Builds `lower` in a tree and writes the code of its kernels to a folder.
dump() { # TREE DIR
  # Cargo takes a build of one tree for one of the other unless the sources are newer.
  touch "$1/kernels/src/lib.rs" "$1/examples/lower.rs"
  cargo build --quiet --locked --manifest-path "$1/Cargo.toml" --package burn-flashinfer-kernels \
    --no-default-features --features "${FEATURES:-compilers}" --example lower
  rm -rf "$2"
  mkdir -p "$2"
  "${run[@]}" "$CARGO_TARGET_DIR/debug/examples/lower" "${targets[@]}" --dump "$2" >/dev/null
}

compare() { # BEFORE AFTER
  if diff -rq "$1" "$2"; then
    total=$(find "$2" -type f | wc -l)
    # grep's status says whether a file is listed, which is no failure.
    compiled=$({ find "$2" -type f -exec grep -L '^not compiled' {} + || true; } | wc -l)
    echo "same: $compiled kernels compiled, $((total - compiled)) refused for the same reason"
  else
    echo "different: kernels of the files above" >&2
    return 1
  fi
}

dumps=${KEEP:-$work}
case ${1:-} in
  record)
    dump "$root" "${2:?a folder to write to}"
    ;;
  check)
    [ -d "${2:?a folder that record wrote}" ] || { echo "$2: no such folder" >&2; exit 2; }
    dump "$root" "$dumps/after"
    compare "$2" "$dumps/after"
    ;;
  *)
    revision=${1:-$(git -C "$root" merge-base HEAD main)}
    if [ "$(git -C "$root" rev-parse "$revision^{commit}")" = "$(git -C "$root" rev-parse HEAD)" ] &&
      [ $# = 0 ] && git -C "$root" diff --quiet HEAD; then
      revision=HEAD~1
    fi
    git -C "$root" worktree add --quiet --detach "$work/tree" "$revision"
    if [ ! -e "$work/tree/examples/lower/dump.rs" ]; then
      echo "$revision cannot write its kernels: see record and check" >&2
      exit 2
    fi
    dump "$work/tree" "$dumps/before"
    dump "$root" "$dumps/after"
    compare "$dumps/before" "$dumps/after"
    ;;
esac
