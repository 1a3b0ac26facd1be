#!/usr/bin/env bash
# Puts the LLVM that CubeCL links against (features `cpu`, `cuda`, `rocm`) where its build looks for it.
#
# CubeCL's crate `tracel-llvm-bundler` downloads a prebuilt LLVM from a release page while it compiles. A machine whose
# only way out is a package mirror cannot reach that page; this script makes the same folder from Debian's packages
# instead (15 seconds to a minute), and the build then connects to nothing. It does nothing where the folder exists.
#
# Wants Debian 12 or later, or a current Ubuntu, on x86-64, and root or sudo for apt.
set -euo pipefail

release=23.1.0-4 # of tracel-llvm-bundler, see Cargo.lock
target="${XDG_DATA_HOME:-$HOME/.local/share}/tracel/tracel-llvm-$release"
if [ -e "$target/.tracel-llvm-installed" ]; then
  echo "LLVM is already in $target"
  exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/debian-unstable.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# What the archives below, and programs that link them, need.
as_root apt-get -qq update
as_root apt-get -qq install -y g++ lld-19 libzstd-dev zlib1g-dev libxml2-dev libffi-dev libtinfo-dev >/dev/null

# LLVM 23 is only in Debian's unstable release.
unpack_from_unstable "$work/unpacked" llvm-23-dev liblld-23-dev
from="$work/unpacked/usr/lib/llvm-23"
into="$target.partial"
rm -rf "$into" "$target"
mkdir -p "$into"/bin "$into"/lib "$into"/include
cp -r "$work/unpacked/usr/include/llvm-23/llvm" "$work/unpacked/usr/include/llvm-c-23/llvm-c" "$from/include/lld" \
  "$into/include/"

# Headers that list LLVM's targets: only those that CubeCL initialises, so that only their archives are linked.
list_targets() { # file, macro, targets
  {
    printf '#ifndef %s\n#error "define %s"\n#endif\n' "$2" "$2"
    for name in $3; do echo "$2($name)"; done
    echo "#undef $2"
  } >"$into/include/llvm/Config/$1"
}
list_targets Targets.def LLVM_TARGET "AMDGPU NVPTX X86"
list_targets AsmPrinters.def LLVM_ASM_PRINTER "AMDGPU NVPTX X86"
list_targets AsmParsers.def LLVM_ASM_PARSER "AMDGPU X86"
list_targets Disassemblers.def LLVM_DISASSEMBLER "AMDGPU X86"

# The archives were built against a glibc whose strto* functions have new names; glibc before 2.38 lacks those.
cat >"$work/strto.c" <<'C'
#include <stdlib.h>
long __isoc23_strtol(const char *text, char **end, int base) { return strtol(text, end, base); }
long long __isoc23_strtoll(const char *text, char **end, int base) { return strtoll(text, end, base); }
unsigned long __isoc23_strtoul(const char *text, char **end, int base) { return strtoul(text, end, base); }
unsigned long long __isoc23_strtoull(const char *text, char **end, int base) { return strtoull(text, end, base); }
C
gcc -O2 -c "$work/strto.c" -o "$work/strto.o"

# One archive, so that the order of libraries on the linker's command line does not matter. Left out: targets and tools
# that CubeCL never asks for.
other_targets='AArch64|ARM|AVR|BPF|Hexagon|Lanai|LoongArch|Mips|MSP430|PowerPC|RISCV|Sparc|SPIRV|SystemZ|VE[A-Z]|WebAssembly|XCore|M68k|Xtensa'
tools='Exegesis|BOLT|Fuzz|LibDriver|Dlltool|WindowsManifest|Debuginfod|HTTP|LineEditor|SupportLSP|TableGen|MCA\.a|CFIVerify|Interpreter|XRay|LogicalView|Plugins|DTLTO|OptDriver|PerfJIT|Diff|DWP|CAS|Telemetry'
{
  echo "create $into/lib/libLLVMbundle.a"
  for archive in "$from"/lib/libLLVM*.a; do
    [[ ${archive##*/} =~ $other_targets|$tools ]] || echo "addlib $archive"
  done
  echo "addmod $work/strto.o"
  echo save
  echo end
} | ar -M

# CubeCL calls one function of LLD, to link code objects for AMD GPUs. Debian has no static LLD, so that function runs
# the program ld.lld. It spawns it: `fork` copied the page tables of a process that had grown to 1 GiB, which was 40% of
# the time of the tests on the simulated MI300X.
cat >"$work/lld.cpp" <<'C'
#include <cstdlib>
#include <llvm/ADT/ArrayRef.h>
#include <llvm/Support/raw_ostream.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>
namespace lld::elf {
bool link(llvm::ArrayRef<const char *> arguments, llvm::raw_ostream &, llvm::raw_ostream &, bool, bool) {
  const char *program = getenv("LLD_PATH");
  if (!program) program = "ld.lld-19";
  std::vector<char *> argv;
  for (const char *argument : arguments) argv.push_back(const_cast<char *>(argument));
  if (argv.empty()) return false;
  argv[0] = const_cast<char *>(program);
  argv.push_back(nullptr);
  pid_t child = 0;
  int status = 0;
  return posix_spawnp(&child, program, nullptr, nullptr, argv.data(), environ) == 0 &&
         waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}
} // namespace lld::elf
C
defines="-D_GNU_SOURCE -D__STDC_CONSTANT_MACROS -D__STDC_FORMAT_MACROS -D__STDC_LIMIT_MACROS"
g++ -O2 -std=c++17 -fno-rtti -fno-exceptions $defines -I"$into/include" -c "$work/lld.cpp" -o "$work/lld.o"
ar rcs "$into/lib/liblldELF.a" "$work/lld.o"
echo 'int burn_flashinfer_lld_common;' >"$work/common.c"
gcc -c "$work/common.c" -o "$work/common.o"
ar rcs "$into/lib/liblldCommon.a" "$work/common.o"

# What CubeCL's build asks llvm-config.
cat >"$into/bin/llvm-config" <<SH
#!/bin/sh
prefix=\$(cd "\$(dirname "\$0")/.." && pwd)
for flag in "\$@"; do
  case "\$flag" in
    --libs | --libnames) echo -lLLVMbundle ;;
    --system-libs) echo -lrt -ldl -lm -lz -lzstd -lxml2 -lffi -ltinfo ;;
    --libdir) echo "\$prefix/lib" ;;
    --includedir) echo "\$prefix/include" ;;
    --version) echo 23.1.4 ;;
    --cxxflags) echo "-I\$prefix/include -std=c++17 -fno-exceptions -fno-rtti $defines" ;;
    --cflags) echo "-I\$prefix/include $defines" ;;
  esac
done
SH
chmod +x "$into/bin/llvm-config"
touch "$into/.tracel-llvm-installed"
mv "$into" "$target"
echo "LLVM is ready in $target"
