//! The machine code of products of segments, and of those with weights of 8 and 4 bits, for devices that are not there: it
//! has matrix instructions, operands in loads of 16 bytes, and sums in registers.

use burn_flashinfer_kernels::activation::Activation;
use burn_flashinfer_kernels::gemm::Epilogue;
use burn_flashinfer_kernels::gemm::quantized::{
    self, QuantizedGemm, ScaledGemm, Scales, Weight, WeightFormat,
};
use burn_flashinfer_kernels::offline::{self, Lowered, Target, tensor};
use burn_flashinfer_kernels::segment_gemm::{SegmentGemm, launch};
use cubecl::ir::{ElemType, FloatKind};

const ROWS: usize = 256;
const WIDTH: usize = 4096;

/// The kernel for work items of so many rows.
fn lower(device: &offline::Device, dtype: FloatKind, tile_rows: usize, by_input: bool) -> Lowered {
    let client = device.client();
    let tensor = |shape: &[usize], element| tensor(client, shape, element);
    let dtype = ElemType::Float(dtype);
    let gemm = SegmentGemm {
        x: tensor(&[ROWS, WIDTH], dtype.size()),
        weights: tensor(&[8, WIDTH, WIDTH], dtype.size()),
        y: tensor(&[ROWS, WIDTH], dtype.size()),
        work_items: tensor(&[3 * ROWS.div_ceil(tile_rows)], 4),
        tile_rows,
        by_input,
        epilogue: Default::default(),
    };
    // SAFETY: the recorder runs no kernel.
    unsafe { launch(client, gemm, dtype) }.expect("it fits");
    let launches = device.launches();
    assert_eq!(launches.len(), 1);
    launches[0].lower().unwrap_or_else(|error| panic!("{dtype:?}, {tile_rows} rows: {error}"))
}

#[test]
fn products_stay_in_registers() {
    // SAFETY: this is the one test of the program; no other thread reads or writes the environment.
    unsafe { offline::keep_assembly() };
    for (target, shared) in [
        (Target::Gfx(0x942), 64 << 10),
        (Target::Gfx(0x908), 64 << 10),
        (Target::Gfx(0x1100), 64 << 10),
        (Target::Sm(90), 227 << 10),
    ] {
        let device = offline::Device::new(target).expect("a device");
        for (dtype, name) in [(FloatKind::F16, "f16"), (FloatKind::BF16, "bf16"), (FloatKind::F32, "f32")] {
            for (tile_rows, by_input) in [1, 4, 16, 64, 128].into_iter().flat_map(|r| [(r, true), (r, false)])
            {
                let what = format!("{tile_rows} rows of {name} on {target}, by input {by_input}");
                let lowered = lower(&device, dtype, tile_rows, by_input);
                let listing = lowered.listing();
                let count = listing.count();
                assert_eq!(count.scratch, 0, "{what}");
                assert!(listing.scratch.unwrap_or(0) == 0 && listing.spills.unwrap_or(0) == 0, "{what}");
                assert!(lowered.shared_memory <= shared, "{what}: {}", lowered.shared_memory);
                let (instruction, tiles) = match (target, name, tile_rows) {
                    (_, "f32", _) | (_, _, 1 | 4) | (Target::Gfx(0x1100), ..) => continue,
                    (Target::Gfx(0x908), "bf16", _) => continue,
                    (Target::Gfx(_), _, 16) => ("v_mfma_f32_16x16x16".into(), 8),
                    (Target::Gfx(_), _, 64) => ("v_mfma_f32_32x32x8".into(), 16),
                    (Target::Gfx(_), _, _) => ("v_mfma_f32_32x32x8".into(), 32),
                    (Target::Sm(_), _, 128) => {
                        // Warpgroups: the first stage, and the loop.
                        assert_eq!(count.matrix, 2, "{what}");
                        let product = format!("k16.f32.{name}.{name}");
                        assert!(lowered.assembly.contains("wgmma.mma_async.sync.aligned.m64n"), "{what}");
                        assert!(lowered.assembly.contains(&product), "{what}");
                        continue;
                    }
                    (Target::Sm(_), _, rows) => {
                        let tiles = if rows == 16 { 8 } else { 32 };
                        (format!("mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32"), tiles)
                    }
                };
                // All products of a stage stand in the loop. gfx942 writes `_f16` after the shape, those before it `f16`.
                let of_type = |line: &&String| {
                    let rest = line.strip_prefix(&instruction);
                    rest.is_some_and(|rest| {
                        matches!(target, Target::Sm(_)) || rest.trim_start_matches('_').starts_with(name)
                    })
                };
                let found = listing.inner.iter().filter(of_type).count();
                assert_eq!((found, count.matrix), (tiles, tiles), "{what}");
            }
        }
        if matches!(target, Target::Gfx(0x942) | Target::Sm(_)) {
            codes_become_operands(&device, target);
        }
        if target == Target::Gfx(0x942) {
            both_factors_stay_codes(&device);
        }
    }
}

/// Codes stay codes until a lane has them, and no load is narrower than 16 bytes but those of scales.
fn codes_become_operands(device: &offline::Device, target: Target) {
    const BF16: ElemType = ElemType::Float(FloatKind::BF16);
    for (rows, format) in [1, 16].into_iter().flat_map(|rows| {
        [
            WeightFormat::E4m3(Scales::PerChannel),
            WeightFormat::E4m3(Scales::Block128),
            WeightFormat::Int4 { group: 128 },
            WeightFormat::Int4 { group: 32 },
        ]
        .map(|format| (rows, format))
    }) {
        let client = device.client();
        let weight = Weight {
            codes: tensor(client, &[WIDTH, WIDTH * format.bits() / 8], 1),
            scales: tensor(client, &format.scales(WIDTH, WIDTH), 4),
            format,
        };
        let [x, y] = [(); 2].map(|()| tensor(client, &[rows, WIDTH], 2));
        quantized::launch(client, QuantizedGemm { x, weight, y }, BF16).expect("it fits");
        let launches = device.launches();
        assert_eq!(launches.len(), 1);
        let what = format!("{rows} rows of {format:?} on {target}");
        let lowered = launches[0].lower().unwrap_or_else(|error| panic!("{what}: {error}"));
        let listing = lowered.listing();
        let count = listing.count();
        assert!(listing.scratch.unwrap_or(0) == 0 && listing.spills.unwrap_or(0) == 0, "{what}");
        assert_eq!(count.scratch, 0, "{what}");
        assert!(count.matrix >= 8 && count.matrix.is_multiple_of(8), "{what}: {count:?}");
        let converted: &[&str] = match (target, format) {
            (Target::Sm(_), WeightFormat::E4m3(_)) => &["cvt.rn.f16x2.e4m3x2", "cp.async.cg"],
            (Target::Sm(_), WeightFormat::Int4 { .. }) => &["lop3.b32", "fma.rn.bf16x2", "cp.async.cg"],
            (Target::Gfx(_), WeightFormat::E4m3(_)) => &["v_cvt_pk_f32_fp8"],
            (Target::Gfx(_), WeightFormat::Int4 { .. }) => &[],
        };
        for name in converted {
            assert!(lowered.assembly.contains(name), "{what}: no {name}");
        }
    }
}

/// Codes of both factors are operands of CDNA3's matrix unit, and all products of a stage stand in the loop.
fn both_factors_stay_codes(device: &offline::Device) {
    const BF16: ElemType = ElemType::Float(FloatKind::BF16);
    let (small, large) = ("v_mfma_f32_16x16x32_fp8_fp8", "v_mfma_f32_32x32x16_fp8_fp8");
    for (rows, instruction, products, scales, gate) in [
        (16, small, 8, Scales::PerTensor, None),
        (64, large, 16, Scales::Block128, Some(Activation::Silu)),
        (256, large, 32, Scales::PerChannel, Some(Activation::Silu)),
        (256, large, 32, Scales::Block128, None),
    ] {
        let client = device.client();
        let format = WeightFormat::E4m3(scales);
        let weight = Weight {
            codes: tensor(client, &[WIDTH, WIDTH], 1),
            scales: tensor(client, &format.scales(WIDTH, WIDTH), 4),
            format,
        };
        let gemm = ScaledGemm {
            x: tensor(client, &[rows, WIDTH], 1),
            x_scales: tensor(client, &[rows], 4),
            weight,
            y: tensor(client, &[rows, if gate.is_some() { WIDTH / 2 } else { WIDTH }], 2),
            epilogue: Epilogue { gate, ..Epilogue::default() },
        };
        quantized::launch_scaled(client, gemm, BF16).expect("it fits");
        let launches = device.launches();
        assert_eq!(launches.len(), 1);
        let what = format!("{rows} rows, {scales:?}, {gate:?}");
        let lowered = launches[0].lower().unwrap_or_else(|error| panic!("{what}: {error}"));
        let listing = lowered.listing();
        let count = listing.count();
        assert!(listing.scratch.unwrap_or(0) == 0 && listing.spills.unwrap_or(0) == 0, "{what}");
        assert_eq!((count.scratch, count.matrix), (0, products), "{what}");
        let found = listing.inner.iter().filter(|line| line.starts_with(instruction)).count();
        assert_eq!(found, products, "{what}");
    }
}
