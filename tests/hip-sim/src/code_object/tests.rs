//! Loads what `clang-19` and `ld.lld-19` make of HIP sources.

use std::process::Command;

use super::*;

const SOURCE: &str = r#"
#define GLOBAL extern "C" __attribute__((global))
#define DEVICE __attribute__((device))
DEVICE float table[4] = {1, 2, 3, 4};
DEVICE float *pointer = &table[2];
GLOBAL __attribute__((amdgpu_flat_work_group_size(1, 256)))
void axpy(float a, const float *x, float *y, int n) {
    int i = __builtin_amdgcn_workgroup_id_x() * __builtin_amdgcn_workgroup_size_x() + __builtin_amdgcn_workitem_id_x();
    if (i < n) y[i] = a * x[i] + y[i] + table[i & 3] + *pointer;
}
GLOBAL void local(float *out) {
    __attribute__((shared)) static float values[64];
    int i = __builtin_amdgcn_workitem_id_x();
    values[i] = i;
    __builtin_amdgcn_s_barrier();
    out[i] = values[63 - i];
}
"#;

fn compile(name: &str, options: &[&str]) -> Vec<u8> {
    let directory = std::env::temp_dir().join(format!("hip-sim-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for temporary files");
    let (source, output) = (directory.join("kernel.hip"), directory.join("kernel.co"));
    std::fs::write(&source, SOURCE).expect("the source is written");
    let status = Command::new("clang-19")
        .args(["-x", "hip", "-nogpuinc", "-nogpulib", "--offload-device-only", "-O3"])
        .args(options)
        .arg("-o")
        .args([&output, &source])
        .status();
    assert!(status.expect("clang-19 is installed").success());
    let image = std::fs::read(output).expect("the code object is there");
    std::fs::remove_dir_all(directory).expect("the directory is removed");
    image
}

fn elf(name: &str) -> Vec<u8> {
    compile(name, &["--offload-arch=gfx942", "--no-gpu-bundle-output", "-mcode-object-version=5"])
}

fn read<T: Copy>(memory: &Memory, address: u64) -> T {
    let pointer = memory.resolve(address, size_of::<T>()).expect("mapped");
    // SAFETY: resolved.
    unsafe { pointer.cast::<T>().read_unaligned() }
}

#[test]
fn kernels_come_with_their_arguments_and_code() {
    let memory = Memory::new();
    let object = CodeObject::load(&elf("kernels"), &memory).expect("loads");
    let axpy = object.kernel("axpy").expect("there");
    let argument = |offset, size, kind| Argument { offset, size, kind };
    assert_eq!(
        axpy.arguments,
        [
            argument(0, 4, ArgumentKind::Value),
            argument(8, 8, ArgumentKind::Buffer),
            argument(16, 8, ArgumentKind::Buffer),
            argument(24, 4, ArgumentKind::Value),
        ]
    );
    assert_eq!((axpy.kernarg_size, axpy.group_segment_size, axpy.max_flat_workgroup_size), (288, 0, 256));
    assert_eq!(axpy.wavefront_size, 64);
    assert!(axpy.hidden.contains(&(HiddenKind::GroupSizeX, 44)));
    // Bit 3: the wave gets the address of its arguments.
    assert_eq!(axpy.descriptor.properties & 8, 8);
    // Workgroup ids are asked for in bits 7 to 9.
    assert_eq!(axpy.descriptor.rsrc2 >> 7 & 1, 1);
    let first = axpy.code.words[(axpy.entry - axpy.code.base) as usize / 4];
    assert_eq!(first >> 26, 0b11_0000, "the first instruction is a scalar load: {first:#x}");
    assert_eq!(read::<u32>(&memory, axpy.entry), first);

    assert_eq!(object.kernel("local").expect("there").group_segment_size, 256);
    assert!(object.kernel("axpy.kd").is_none());
}

#[test]
fn variables_are_placed_and_relocated() {
    let memory = Memory::new();
    let object = CodeObject::load(&elf("variables"), &memory).expect("loads");
    let variable = |name| object.variables.iter().find(|variable| variable.0 == name).expect("there").1;
    assert_eq!(read::<[f32; 4]>(&memory, variable("table")), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(read::<u64>(&memory, variable("pointer")), variable("table") + 8);
}

#[test]
fn a_bundle_is_unpacked() {
    let memory = Memory::new();
    let image = compile("bundle", &["--offload-arch=gfx90a", "--offload-arch=gfx942:sramecc+:xnack-"]);
    assert!(bundle::is_bundle(&image));
    assert!(CodeObject::load(&image, &memory).expect("loads").kernel("axpy").is_some());
    // SAFETY: a whole bundle.
    assert_eq!(unsafe { CodeObject::image(image.as_ptr()) }, Ok(&image[..]));
    let other = compile("other-bundle", &["--offload-arch=gfx90a"]);
    assert_eq!(CodeObject::load(&other, &memory).err(), Some(LoadError::NotInBundle));
}

#[test]
fn the_size_of_an_image_is_found_from_its_start() {
    let image = elf("size");
    // SAFETY: a whole file.
    assert_eq!(unsafe { CodeObject::image(image.as_ptr()) }, Ok(&image[..]));
    // SAFETY: 64 bytes.
    assert_eq!(unsafe { CodeObject::image([0; 64].as_ptr()) }, Err(LoadError::NotAnElf));
}

#[test]
fn another_target_is_refused() {
    let memory = Memory::new();
    for arch in ["gfx90a", "gfx942:xnack+", "gfx942:sramecc-"] {
        let arch = format!("--offload-arch={arch}");
        let image = compile("target", &[&arch, "--no-gpu-bundle-output"]);
        assert!(matches!(CodeObject::load(&image, &memory), Err(LoadError::WrongTarget { .. })), "{arch}");
    }
    let old = compile("old", &["--offload-arch=gfx942", "--no-gpu-bundle-output", "-mcode-object-version=4"]);
    assert!(CodeObject::load(&old, &memory).is_ok());
    assert_eq!(CodeObject::load(b"MZ", &memory).err(), Some(LoadError::NotAnElf));
}

#[test]
fn a_damaged_file_is_an_error_and_leaks_nothing() {
    let memory = Memory::new();
    let image = elf("damaged");
    for len in (0..image.len()).step_by(7) {
        assert!(CodeObject::load(&image[..len], &memory).is_err(), "{len} bytes");
    }
    // Whatever a damaged byte does, it neither panics nor leaks.
    for index in (0..image.len().min(0x1000)).step_by(3) {
        let mut damaged = image.clone();
        damaged[index] ^= 0xff;
        if let Ok(object) = CodeObject::load(&damaged, &memory) {
            memory.free(object.base).expect("live");
        }
    }
    assert_eq!(memory.used(), 0);
}

#[test]
fn an_object_without_metadata_is_refused() {
    let mut image = elf("metadata");
    let at = image.windows(7).position(|bytes| bytes == b"AMDGPU\0").expect("the owner of the note");
    image[at] = b'X';
    assert_eq!(CodeObject::load(&image, &Memory::new()).err(), Some(LoadError::NoMetadata));
}
