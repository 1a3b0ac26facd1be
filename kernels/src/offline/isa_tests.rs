//! Each operation in a kernel of its own, compiled for the machines that have it.

use std::sync::Once;

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::{Device, Error, Lowered, Target};
use crate::device::{Arch, Instruction};
use crate::isa::{amd, nvidia};

const GFX908: Target = Target::Gfx(0x908);
const GFX90A: Target = Target::Gfx(0x90a);
const GFX942: Target = Target::Gfx(0x942);
const GFX1100: Target = Target::Gfx(0x1100);
const SM_80: Target = Target::Sm(80);
const SM_90: Target = Target::Sm(90);

/// Compiles what `launch` launches in one cube of a plane.
fn lower(target: Target, launch: impl Fn(&Client, CubeCount, CubeDim)) -> Result<Lowered, Error> {
    static ASSEMBLY: Once = Once::new();
    // SAFETY: the tests of this program that compile do so through here, and nothing else in it reads the environment
    // but through `std`, so no other thread does before this is over.
    ASSEMBLY.call_once(|| unsafe { super::keep_assembly() });
    let device = Device::new(target)?;
    launch(device.client(), CubeCount::Static(1, 1, 1), CubeDim::new_1d(target.plane()));
    device.launches().first().ok_or(Error::Nothing)?.lower()
}

/// The instructions of a target, each of which must begin with one of `expected`, somewhere.
fn assert_has(target: Target, expected: &[&str], launch: impl Fn(&Client, CubeCount, CubeDim)) {
    let lowered = lower(target, launch).unwrap_or_else(|error| panic!("{target}: {error}"));
    let lines = lowered.listing().lines;
    for name in expected {
        assert!(
            lines.iter().any(|line| line.starts_with(name)),
            "{target}, no {name}:\n{}",
            lowered.assembly
        );
    }
}

fn buffer(client: &Client) -> BufferArg {
    let handle = client.empty(1 << 16);
    // SAFETY: the shape is that of the buffer in the smallest elements there are.
    unsafe { TensorBinding::from_raw_parts(handle, [1usize].into(), [1usize << 16].into()) }.into_buffer_arg()
}

fn elem(bf16: bool) -> ElemType {
    ElemType::Float(if bf16 { FloatKind::BF16 } else { FloatKind::F16 })
}

#[cube(launch_unchecked)]
fn mfma_16<E: Float>(
    a: &[Vector<E, Const<4>>],
    c: &mut [Vector<f32, Const<4>>],
    #[comptime] bf16: bool,
    #[define(E)] _dtype: ElemType,
) {
    let at = UNIT_POS as usize;
    c[at] = amd::mfma::<E, Const<4>>(a[at], a[at + 64], c[at], 16usize, bf16);
}

#[cube(launch_unchecked)]
fn mfma_32<E: Float>(
    a: &[Vector<E, Const<4>>],
    c: &mut [Vector<f32, Const<16>>],
    #[comptime] bf16: bool,
    #[define(E)] _dtype: ElemType,
) {
    let at = UNIT_POS as usize;
    c[at] = amd::mfma::<E, Const<16>>(a[at], a[at + 64], c[at], 32usize, bf16);
}

fn launch_mfma(tile: usize, bf16: bool) -> impl Fn(&Client, CubeCount, CubeDim) {
    move |client, count, dim| {
        let (a, c) = (buffer(client), buffer(client));
        // SAFETY: never run.
        unsafe {
            match tile {
                16 => mfma_16::launch_unchecked(client, count, dim, a, c, bf16, elem(bf16)),
                _ => mfma_32::launch_unchecked(client, count, dim, a, c, bf16, elem(bf16)),
            }
        }
    }
}

#[test]
fn mfma() {
    for (target, bf16) in [(GFX908, false), (GFX90A, false), (GFX90A, true), (GFX942, false), (GFX942, true)]
    {
        // gfx90a's assembler writes the older names.
        let names = match (target, bf16) {
            (GFX942, false) => ["v_mfma_f32_16x16x16_f16", "v_mfma_f32_32x32x8_f16"],
            (GFX942, true) => ["v_mfma_f32_16x16x16_bf16", "v_mfma_f32_32x32x8_bf16"],
            (_, false) => ["v_mfma_f32_16x16x16f16", "v_mfma_f32_32x32x8f16"],
            (_, true) => ["v_mfma_f32_16x16x16bf16_1k", "v_mfma_f32_32x32x8bf16_1k"],
        };
        assert_has(target, &names[..1], launch_mfma(16, bf16));
        assert_has(target, &names[1..], launch_mfma(32, bf16));
    }
}

#[cube(launch_unchecked)]
fn mfma_of_codes(
    a: &[Vector<u32, Const<2>>],
    c16: &mut [Vector<f32, Const<4>>],
    c32: &mut [Vector<f32, Const<16>>],
) {
    let at = UNIT_POS as usize;
    c16[at] = amd::mfma_e4m3::<Const<4>>(a[at], a[at + 64], c16[at], 16usize);
    c32[at] = amd::mfma_e4m3::<Const<16>>(a[at], a[at + 64], c32[at], 32usize);
}

#[test]
fn mfma_of_e4m3() {
    let names = ["v_mfma_f32_16x16x32_fp8_fp8", "v_mfma_f32_32x32x16_fp8_fp8"];
    assert_has(GFX942, &names, |client, count, dim| {
        let [a, c16, c32] = [(); 3].map(|()| buffer(client));
        // SAFETY: never run.
        unsafe { mfma_of_codes::launch_unchecked(client, count, dim, a, c16, c32) }
    });
}

#[cube(launch_unchecked)]
fn averages(x: &mut [u32]) {
    let at = UNIT_POS as usize;
    x[at] = amd::average_bytes(x[at], x[at + 64], 0u32.runtime());
}

#[test]
fn averages_of_bytes() {
    assert_has(GFX942, &["v_lerp_u8"], |client, count, dim| {
        let x = buffer(client);
        // SAFETY: never run.
        unsafe { averages::launch_unchecked(client, count, dim, x) }
    });
}

#[cube(launch_unchecked)]
fn hints(x: &mut [f32]) {
    let at = UNIT_POS as usize;
    amd::set_priority(2usize);
    x[at] = amd::exp2(x[at]);
    amd::sched_barrier(0usize);
    x[at + 64] = amd::exp2(x[at + 64]);
    amd::sched_group_barrier(8usize, 1usize);
    amd::set_priority(0usize);
}

fn launch_hints(client: &Client, count: CubeCount, dim: CubeDim) {
    // SAFETY: never run.
    unsafe { hints::launch_unchecked(client, count, dim, buffer(client)) }
}

#[test]
fn exponential_and_hints_of_amd() {
    for target in [GFX908, GFX90A, GFX942, GFX1100] {
        assert_has(target, &["v_exp_f32", "s_setprio 2", "s_setprio 0"], launch_hints);
        // The scheduler's barriers are no instructions: they end with the compiler.
        let ir = lower(target, launch_hints).expect("lowers").ir;
        for barrier in
            ["llvm.amdgcn.sched.barrier(i32 0)", "llvm.amdgcn.sched.group.barrier(i32 8, i32 1, i32 0)"]
        {
            assert!(ir.contains(&format!("call void @{barrier}")), "{ir}");
        }
    }
}

#[cube(launch_unchecked)]
fn warp(
    from: &[Vector<u32, Const<4>>],
    to: &mut [Vector<f32, Const<4>>],
    #[comptime] ty: nvidia::OperandType,
) {
    let at = UNIT_POS as usize;
    let shared = Shared::<[Vector<u32, Const<4>>]>::new_aligned_slice(64usize, 128usize);
    let address = nvidia::shared_address::<Vector<u32, Const<4>>>(&shared);
    let row = address + UNIT_POS * 16u32;
    nvidia::cp_async::<Vector<u32, Const<4>>>(row, 512usize, &from[at..at + 1], at < 30usize);
    nvidia::cp_async_commit();
    nvidia::cp_async_wait(1usize);
    sync_cube();
    let a = nvidia::ldmatrix(row, 0usize, false);
    let b = nvidia::ldmatrix(row, 512usize, true);
    let mut c = nvidia::mma(a, b.extract(0usize), b.extract(1usize), to[at], ty);
    let x = nvidia::shuffle_xor(nvidia::exp2(c.extract(0usize)), 2usize);
    let packed = nvidia::pack(x, c.extract(1usize), comptime!(ty == nvidia::OperandType::Bf16));
    c.insert(0usize, f32::cast_from(packed));
    to[at] = c;
}

fn launch_warp(ty: nvidia::OperandType) -> impl Fn(&Client, CubeCount, CubeDim) {
    move |client, count, dim| {
        // SAFETY: never run.
        unsafe { warp::launch_unchecked(client, count, dim, buffer(client), buffer(client), ty) }
    }
}

#[test]
fn instructions_of_a_warp() {
    for target in [SM_80, SM_90] {
        use nvidia::OperandType::{Bf16, F16, Tf32};
        for (ty, names) in [
            (F16, ["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "cvt.rn.f16x2.f32"]),
            (Bf16, ["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "cvt.rn.bf16x2.f32"]),
            (Tf32, ["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "cvt.rn.f16x2.f32"]),
        ] {
            let others = [
                "cp.async.cg.shared.global.L2::128B",
                "cp.async.commit_group",
                "cp.async.wait_group 1",
                "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
                "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
                "ex2.approx.ftz.f32",
                "shfl.sync.bfly.b32",
            ];
            assert_has(target, &[&names[..], &others].concat(), launch_warp(ty));
        }
    }
}

#[cube(launch_unchecked)]
fn warpgroup(
    from: &[Vector<u32, Const<4>>],
    to: &mut [Vector<f32, Const<4>>],
    #[comptime] ty: nvidia::OperandType,
    #[comptime] columns: usize,
) {
    let at = UNIT_POS as usize;
    let shared = Shared::<[Vector<u32, Const<4>>]>::new_aligned_slice(4096usize, 1024usize);
    let address = nvidia::shared_address::<Vector<u32, Const<4>>>(&shared);
    let barrier = address + 65528;
    nvidia::barrier_init(barrier, 32usize);
    sync_cube();
    nvidia::set_registers(232usize, true);
    let row = nvidia::shuffle(at, UNIT_POS % 8);
    nvidia::cp_async_at::<Vector<u32, Const<4>>>(address, 512usize, &from[row..row + 1], 128usize, true);
    nvidia::barrier_wait(barrier, 0u32);
    nvidia::fence_proxy_async();
    nvidia::named_barrier(1u32, 32usize, true);
    let mut d = Array::<Vector<f32, Const<4>>>::new(comptime!(columns / 8));
    let mut a = Array::<Vector<u32, Const<4>>>::new(1usize);
    a[0] = from[at];
    let rows = comptime!(nvidia::Operand { rows: columns, transposed: false });
    let product = comptime!(nvidia::Product { ty, columns, steps: 1, fresh: true, b: rows });
    nvidia::wgmma_shared(&mut d, address, address + 1024, 64usize, product);
    // Only matrices of 16-bit types can be transposed.
    let values = comptime!(nvidia::Operand { rows: 16, transposed: ty.size() == 2 });
    let product = comptime!(nvidia::Product { fresh: false, b: values, ..product });
    nvidia::wgmma_registers(&mut d, &a, address + 2048, product);
    let any = nvidia::any_of(2u32, row as u32, 128usize);
    nvidia::wgmma_registers_if(any, &mut d, &a, address + 2048, product);
    nvidia::wgmma_wait(&mut d, columns, 0usize);
    nvidia::named_barrier(1u32, 32usize, false);
    nvidia::barrier_arrive(barrier);
    #[unroll]
    for i in 0..comptime!(columns / 8) {
        to[at + comptime!(i * 128)] = d[i];
    }
    nvidia::set_registers(24usize, false);
}

fn launch_warpgroup(ty: nvidia::OperandType, columns: usize) -> impl Fn(&Client, CubeCount, CubeDim) {
    move |client, count, _| {
        let (from, to) = (buffer(client), buffer(client));
        // SAFETY: never run.
        unsafe { warpgroup::launch_unchecked(client, count, CubeDim::new_1d(128), from, to, ty, columns) }
    }
}

#[test]
fn instructions_of_a_warpgroup() {
    use nvidia::OperandType::{Bf16, E4m3, F16, Tf32};
    for (ty, depth, name) in [(F16, 16, "f16"), (Bf16, 16, "bf16"), (Tf32, 8, "tf32"), (E4m3, 32, "e4m3")] {
        for columns in [8, 80, 128, 256] {
            let product = format!("wgmma.mma_async.sync.aligned.m64n{columns}k{depth}.f32.{name}.{name}");
            let lowered = lower(SM_90, launch_warpgroup(ty, columns)).expect("lowers");
            for name in [
                &product,
                "wgmma.fence.sync.aligned",
                "wgmma.commit_group.sync.aligned",
                "wgmma.wait_group.sync.aligned 0",
                "setmaxnreg.inc.sync.aligned.u32 232",
                "setmaxnreg.dec.sync.aligned.u32 24",
                "mbarrier.init.shared::cta.b64",
                "mbarrier.arrive.shared::cta.b64",
                "mbarrier.try_wait.parity.shared::cta.b64",
                "fence.proxy.async.shared::cta",
                "bar.sync",
                "bar.arrive",
                "bar.red.or.pred",
                "shfl.sync.idx.b32",
            ] {
                assert!(lowered.assembly.contains(name), "no {name}:\n{}", lowered.assembly);
            }
            // Once with the operand in shared memory, twice in registers: always, and behind a branch.
            assert_eq!(lowered.assembly.matches(&product).count(), 3);
            assert!(lowered.assembly.contains("bra.uni done; wgmma.fence"), "{}", lowered.assembly);
        }
    }
}

#[cube(launch_unchecked)]
fn boxes(map: &nvidia::TensorMap, #[comptime] cubes: usize) {
    let shared = Shared::<[Vector<u32, Const<4>>]>::new_aligned_slice(4096usize, 1024usize);
    let address = nvidia::shared_address::<Vector<u32, Const<4>>>(&shared);
    let barrier = address + 65528;
    if comptime!(cubes > 1) {
        nvidia::form_clusters(cubes);
        nvidia::sync_cluster();
    }
    if UNIT_POS == 0 {
        nvidia::prefetch_map(map.address());
        nvidia::barrier_expect(barrier, 2048usize);
        nvidia::copy_box(
            address,
            2048usize,
            map.address(),
            128usize,
            UNIT_POS,
            CUBE_POS as u32,
            0u32,
            barrier,
            cubes,
        );
        nvidia::barrier_arrive_at(barrier, 1u32);
    }
}

fn launch_boxes(cubes: usize) -> impl Fn(&Client, CubeCount, CubeDim) {
    move |client, count, dim| {
        // SAFETY: never run.
        unsafe {
            let from =
                TensorBinding::from_raw_parts(client.empty(4), [1, 1, 1, 64].into(), [1, 1, 1, 64].into());
            let from = nvidia::tensor_map(from, elem(false), &[1, 1, 1, 64]);
            boxes::launch_unchecked(client, count, dim, from, cubes);
        }
    }
}

#[test]
fn clusters() {
    let lowered = lower(SM_90, launch_boxes(2)).expect("lowers");
    for name in [
        ".reqnctapercluster 2, 1, 1",
        "fence.mbarrier_init.release.cluster",
        "barrier.cluster.arrive.release.aligned",
        "barrier.cluster.wait.acquire.aligned",
        "mapa.shared::cluster.u32",
        "mbarrier.arrive.shared::cluster.b64",
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster",
    ] {
        assert!(lowered.assembly.contains(name), "no {name}:\n{}", lowered.assembly);
    }
    assert!(lower(GFX942, launch_boxes(2)).is_err());
}

#[test]
fn tensor_maps() {
    let lowered = lower(SM_90, launch_boxes(1)).expect("lowers");
    for name in [
        ".version 8.7",
        ".param .align 128 .b8 boxes_",
        "_param_0; cvta.param.u64 %rd",
        "prefetch.tensormap [%rd",
        "mbarrier.expect_tx.relaxed.cta.shared::cta.b64",
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes",
    ] {
        assert!(lowered.assembly.contains(name), "no {name}:\n{}", lowered.assembly);
    }
}

#[cube(launch_unchecked)]
fn fp8_of_nvidia(x: &[Vector<f32, Const<4>>], y: &mut [Vector<u32, Const<2>>], #[comptime] e5m2: bool) {
    let at = UNIT_POS as usize;
    y[at] = nvidia::from_fp8(nvidia::to_fp8(x[at], e5m2), e5m2);
}

#[cube(launch_unchecked)]
fn fp8_of_amd(x: &[Vector<f32, Const<4>>], y: &mut [Vector<f32, Const<2>>], #[comptime] e5m2: bool) {
    let at = UNIT_POS as usize;
    let eight = amd::to_fp8(x[at], e5m2);
    y[at] = amd::from_fp8(eight, 0usize, e5m2);
    y[at + 64] = amd::from_fp8(eight, 1usize, e5m2);
}

#[test]
fn conversions_of_fp8() {
    for (e5m2, names) in [
        (false, ["cvt.rn.satfinite.e4m3x2.f32", "cvt.rn.f16x2.e4m3x2"]),
        (true, ["cvt.rn.satfinite.e5m2x2.f32", "cvt.rn.f16x2.e5m2x2"]),
    ] {
        let lowered = lower(SM_90, |client, count, dim| {
            // SAFETY: never run.
            unsafe {
                fp8_of_nvidia::launch_unchecked(client, count, dim, buffer(client), buffer(client), e5m2)
            }
        });
        let assembly = lowered.expect("lowers").assembly;
        for name in names {
            assert!(assembly.contains(name), "no {name}:\n{assembly}");
        }
    }
    for (e5m2, names) in
        [(false, ["v_cvt_pk_fp8_f32", "v_cvt_pk_f32_fp8"]), (true, ["v_cvt_pk_bf8_f32", "v_cvt_pk_f32_bf8"])]
    {
        assert_has(GFX942, &names, |client, count, dim| {
            // SAFETY: never run.
            unsafe { fp8_of_amd::launch_unchecked(client, count, dim, buffer(client), buffer(client), e5m2) }
        });
    }
}

/// The compiler for the other vendor says so instead of ending the process.
#[test]
fn a_foreign_instruction_is_refused_by_name() {
    let refused = |result: Result<Lowered, Error>, name: &str| match result {
        Err(Error::Compiler { reason, .. }) => assert!(reason.contains(name), "{reason}"),
        other => panic!("{:?}", other.map(|lowered| lowered.assembly)),
    };
    refused(lower(SM_90, launch_mfma(16, true)), "llvm.amdgcn.mfma.f32.16x16x16bf16.1k does not exist");
    refused(lower(SM_90, launch_hints), "llvm.amdgcn.");
    refused(lower(GFX942, launch_warp(nvidia::OperandType::F16)), "does not exist on this target");
    refused(lower(GFX942, launch_warpgroup(nvidia::OperandType::F16, 128)), "does not exist on this target");
}

/// On a device of the right vendor but too old, only the check refuses: LLVM would end the process.
#[test]
fn the_check_knows_what_compiles() {
    for (target, instruction, exists) in [
        (GFX908, Instruction::MfmaF16, true),
        (GFX908, Instruction::MfmaBf16, false),
        (GFX1100, Instruction::MfmaF16, false),
        (SM_80, Instruction::MmaSync, true),
        (Target::Sm(75), Instruction::MmaSync, false),
        (SM_90, Instruction::Wgmma, true),
        (Target::Sm(89), Instruction::Wgmma, false),
        (Target::Sm(100), Instruction::Wgmma, false),
    ] {
        let checked = instruction.check("test", target.arch());
        assert_eq!(checked.is_ok(), exists, "{target}");
        if let Err(refusal) = checked {
            assert_eq!(
                refusal.to_string(),
                format!("test: {instruction:?} does not exist on {}", target.arch())
            );
        }
    }
    assert_eq!(GFX908.arch(), Arch::Gfx(0x908));
}
