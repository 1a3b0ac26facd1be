//! Compiles or assembles device code and runs it. Where LLVM's tools are missing the tests say so and pass.
#![allow(dead_code, reason = "every test binary uses another part")]

mod llvm;

use std::path::Path;
use std::process::Command;

use hip_sim::code_object::CodeObject;
use hip_sim::dispatch::{Checks, Launch, launch};
use hip_sim::memory::Memory;
use hip_sim::profile::Profile;
use hip_sim::report::Fault;
use llvm::{call, code_object, scratch_file, take, tool};

/// A device with a code object.
pub struct Device {
    pub memory: Memory,
    pub object: CodeObject,
}

/// Compiles a HIP source of `tests/kernels`.
pub fn compile(source: &str) -> Option<Device> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    code_object(&folder.join(source), "gfx942").map(|image| load(&image))
}

fn load(image: &[u8]) -> Device {
    let memory = Memory::new();
    let object = CodeObject::load(image, &memory).expect("a code object");
    Device { memory, object }
}

/// Assembles the body of a kernel `test`: its only argument is a pointer, which it finds in `s[0:1]`
/// after the load that comes first; the work-item is in `v0`.
pub fn assemble(body: &str) -> Option<Device> {
    let assembler = tool("llvm-mc")?;
    let linker = tool("ld.lld")?;
    let text =
        format!("{HEAD}\ns_load_dwordx2 s[0:1], s[0:1], 0x0\ns_waitcnt lgkmcnt(0)\n{body}\ns_endpgm\n{TAIL}");
    let (source, relocatable, object) = (scratch_file("s"), scratch_file("o"), scratch_file("co"));
    std::fs::write(&source, text).expect("a writable temporary directory");
    let flags = ["-triple=amdgcn-amd-amdhsa", "-mcpu=gfx942", "-filetype=obj"];
    call(Command::new(assembler).args(flags).arg(&source).arg("-o").arg(&relocatable));
    call(Command::new(linker).arg("-shared").arg(&relocatable).arg("-o").arg(&object));
    let _removed = (std::fs::remove_file(source), std::fs::remove_file(relocatable));
    Some(load(&take(&object)))
}

const HEAD: &str = r#"
.amdgcn_target "amdgcn-amd-amdhsa--gfx942"
.amdhsa_code_object_version 5
.text
.globl test
.p2align 8
.type test,@function
test:
"#;

const TAIL: &str = r#"
.rodata
.p2align 6
.amdhsa_kernel test
  .amdhsa_next_free_vgpr 256
  .amdhsa_next_free_sgpr 96
  .amdhsa_accum_offset 128
  .amdhsa_group_segment_fixed_size 65536
  .amdhsa_private_segment_fixed_size 256
  .amdhsa_user_sgpr_kernarg_segment_ptr 1
  .amdhsa_system_sgpr_workgroup_id_x 1
  .amdhsa_system_vgpr_workitem_id 2
  .amdhsa_float_denorm_mode_32 3
.end_amdhsa_kernel
.amdgpu_metadata
---
amdhsa.version: [ 1, 2 ]
amdhsa.target: amdgcn-amd-amdhsa--gfx942
amdhsa.kernels:
  - .name: test
    .symbol: test.kd
    .kernarg_segment_size: 8
    .kernarg_segment_align: 8
    .group_segment_fixed_size: 65536
    .private_segment_fixed_size: 256
    .wavefront_size: 64
    .sgpr_count: 96
    .vgpr_count: 256
    .max_flat_workgroup_size: 1024
    .args:
      - .size: 8
        .offset: 0
        .value_kind: global_buffer
        .address_space: global
...
.end_amdgpu_metadata
"#;

impl Device {
    pub fn upload<T: Copy>(&self, values: &[T]) -> u64 {
        let size = size_of_val(values);
        let address = self.memory.allocate(size.max(1));
        let pointer = self.memory.resolve(address, size).expect("just allocated");
        // SAFETY: the allocation has this size.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast(), pointer, size) };
        address
    }

    pub fn download<T: Copy + Default>(&self, address: u64, count: usize) -> Vec<T> {
        let mut values = vec![T::default(); count];
        let size = size_of_val(values.as_slice());
        let pointer = self.memory.resolve(address, size).expect("an allocation of this size");
        // SAFETY: the allocation has this size, and `T` is a plain number.
        unsafe { std::ptr::copy_nonoverlapping(pointer, values.as_mut_ptr().cast(), size) };
        values
    }

    /// Runs a kernel whose arguments are all of 8 bytes, or smaller ones at the end.
    pub fn run(
        &self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        arguments: &[u64],
        checks: Checks,
    ) -> Result<Profile, Fault> {
        let kernel = self.object.kernel(kernel).expect("the kernel");
        let mut kernarg: Vec<u8> = arguments.iter().flat_map(|value| value.to_le_bytes()).collect();
        kernarg.truncate(kernel.kernarg_size as usize);
        launch(&Launch {
            memory: &self.memory,
            kernel,
            grid,
            block,
            dynamic_lds: 0,
            kernarg: &kernarg,
            checks,
        })
    }
}

/// Runs an assembled body on one wave over `words` of memory and returns them.
pub fn run_body(body: &str, words: &[u32]) -> Option<Vec<u32>> {
    let device = assemble(body)?;
    let address = device.upload(words);
    let done = device.run("test", [1; 3], [64, 1, 1], &[address], Checks::default());
    done.unwrap_or_else(|fault| panic!("{fault}"));
    Some(device.download(address, words.len()))
}

/// Runs code with each lane's inputs in v2..=v9, which are also its first words at `v1` behind `s[0:1]`; its
/// outputs are what it leaves in v10..=v17, which hold 0xcccccccc before.
pub fn run(code: &str, inputs: impl Fn(usize) -> [u32; 8]) -> Option<Vec<[u32; 8]>> {
    run_each(&[code.to_string()], inputs)?.pop()
}

/// Runs one code after the other as `run` does, each in memory of its own: the outputs of each.
pub fn run_each(codes: &[String], inputs: impl Fn(usize) -> [u32; 8]) -> Option<Vec<Vec<[u32; 8]>>> {
    const LANE: usize = 16;
    let mut memory = Vec::new();
    for lane in (0..codes.len()).flat_map(|_| 0..64) {
        memory.extend(inputs(lane));
        memory.extend([0xcccc_cccc; 8]);
    }
    let mut body = String::new();
    for code in codes {
        body += "v_lshlrev_b32 v1, 6, v0\n";
        for n in 0..4 {
            let first = 2 + 4 * n;
            body += &format!("global_load_dwordx4 v[{first}:{}], v1, s[0:1] offset:{}\n", first + 3, 16 * n);
        }
        body += &format!("s_waitcnt vmcnt(0)\n{code}\ns_mov_b64 exec, -1\n");
        body += "global_store_dwordx4 v1, v[10:13], s[0:1] offset:32\n";
        body += "global_store_dwordx4 v1, v[14:17], s[0:1] offset:48\n";
        body += "s_add_u32 s0, s0, 0x1000\ns_addc_u32 s1, s1, 0\n";
    }
    let lanes: Vec<[u32; 8]> = run_body(&body, &memory)?
        .chunks_exact(LANE)
        .map(|lane| lane[8..].try_into().expect("eight"))
        .collect();
    Some(lanes.chunks_exact(64).map(<[_]>::to_vec).collect())
}

/// Inputs without pattern.
pub fn random_lanes(seed: u64) -> Vec<[u32; 8]> {
    let mut random = Random(seed);
    (0..64).map(|_| std::array::from_fn(|_| random.next() as u32)).collect()
}

/// A sequence of bits without pattern, the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
