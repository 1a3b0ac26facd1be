//! What the kernels become on machines that are not there.

use std::sync::Once;

use burn_flashinfer_kernels::attention::{
    Alignment, Blueprint, Choice, HeadDims, Mixed, Plan, Problem, RequestShape, Split, Standard, Tiled,
};
use burn_flashinfer_kernels::offline::{self, Artifact, Error, Kind, Lowered, Target};
use burn_flashinfer_kernels::sampling::{self, Filter, Limit, Output, SampleLogits, SampleProbs};
use burn_flashinfer_kernels::{Arch, Code8, DeviceProfile, Fp8, Instruction, MmaKind, Refusal};
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::TensorBinding;

const GFX942: Target = Target::Gfx(0x942);
const SM_90: Target = Target::Sm(90);
const TYPES: [(FloatKind, &str); 2] = [(FloatKind::F16, "f16"), (FloatKind::BF16, "bf16")];
const PAGED: Kind = Kind::Paged { page_size: 16 };
const KINDS: [Kind; 2] = [Kind::Ragged, PAGED];

/// Llama 3 8B's heads.
fn problem(dtype: FloatKind, dim: usize) -> Problem {
    Problem {
        dims: HeadDims { qk: dim, vo: dim },
        dtype: ElemType::Float(dtype),
        kv_dtype: ElemType::Float(dtype).into(),
        q_heads: 32,
        kv_heads: 8,
        scale: 0.1,
        align: Alignment { qk: 64, vo: 64 },
        fp8_mma: false,
    }
}

const CAUSAL: Standard = Standard { causal: true, ..Standard::new(0.1) };

/// 64 requests of these query tokens over 4096 keys; decoding if it is one.
fn requests(queries: usize) -> Vec<RequestShape> {
    RequestShape::following(vec![(queries, 4096); 64], 16)
}

fn keep_assembly() {
    static ASSEMBLY: Once = Once::new();
    // SAFETY: every test of this program calls this before it compiles, and nothing else in it reads the environment but
    // through `std`, so no other thread does before this is over.
    ASSEMBLY.call_once(|| unsafe { offline::keep_assembly() });
}

fn lower(
    target: Target,
    problem: &Problem,
    spans: &[RequestShape],
    kind: Kind,
    choice: Choice,
) -> Result<Lowered, Error> {
    keep_assembly();
    let plan = Plan::new(&target.profile(), problem, &CAUSAL, spans, choice, Split::Auto)?;
    offline::lower(target, problem, &CAUSAL, spans, kind, &plan)
}

fn tiled(target: Target, problem: &Problem, spans: &[RequestShape]) -> Tiled {
    match Plan::new(&target.profile(), problem, &CAUSAL, spans, Choice::Auto, Split::Auto)
        .map(|plan| plan.blueprint())
    {
        Ok(Blueprint::Tiled(tiled)) => tiled,
        other => panic!("{target}: {other:?}"),
    }
}

/// Decode and prefill of each kind, as the launcher chooses.
fn each(target: Target, dim: usize, check: impl Fn(&str, &str, Lowered)) {
    for (dtype, name) in TYPES {
        for (phase, queries) in [("decode", 1), ("prefill", 1024)] {
            // The type of the elements is nothing to a table of requests: all kinds once are enough.
            for kind in KINDS.into_iter().filter(|&kind| dtype == FloatKind::BF16 || kind == PAGED) {
                let what = format!("{phase} {kind:?} {name} on {target}");
                let lowered = lower(target, &problem(dtype, dim), &requests(queries), kind, Choice::Auto)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                check(&what, name, lowered);
            }
        }
    }
}

#[test]
fn cdna_computes_on_its_matrix_cores() {
    each(GFX942, 128, |what, dtype, lowered| {
        let listing = lowered.listing();
        let count = listing.count();
        assert!(count.matrix >= 32, "{what}: {count:?}");
        let of_type = listing.inner.iter().filter(|line| {
            line.starts_with(&format!("v_mfma_f32_16x16x16_{dtype}"))
                || line.starts_with(&format!("v_mfma_f32_32x32x8_{dtype}"))
        });
        assert_eq!(of_type.count(), count.matrix, "{what}");
        assert_eq!((listing.scratch, listing.spills, count.scratch), (Some(0), Some(0), 0), "{what}");
        // Quads of keys and values; words are entries of the page table. Nothing in between.
        assert!(count.loads.get(&16).is_some_and(|&loads| loads >= 8), "{what}: {:?}", count.loads);
        assert!(count.loads.keys().all(|&bytes| bytes == 16 || bytes == 4), "{what}: {:?}", count.loads);
        assert!(what.contains("Paged") || !count.loads.contains_key(&4), "{what}: {:?}", count.loads);
        assert!(count.shared_reads > 0 && count.barriers > 0, "{what}");
        assert!(lowered.shared_memory <= 64 * 1024, "{what}: {}", lowered.shared_memory);
        assert!(listing.vector.is_some_and(|vector| vector <= 256), "{what}: {:?}", listing.vector);
        let Artifact::CodeObject(object) = &lowered.artifact else { panic!("{what}: no code object") };
        assert!(object.starts_with(b"\x7fELF"));
        assert!(lowered.occupancy().is_some_and(|occupancy| occupancy.simd >= 1), "{what}");
    });
}

/// Codes become numbers by the instructions of the device, in registers, and nothing spills.
#[test]
fn codes_are_converted_by_instructions() {
    for (target, formats) in [
        (
            GFX942,
            [
                (Code8::Fp8(Fp8::E4m3), "v_cvt_pk_f32_fp8"),
                (Code8::Fp8(Fp8::E4m3Fnuz), "v_cvt_pk_f32_fp8"),
                (Code8::Fp8(Fp8::E5m2), "v_cvt_f32_f16"),
                // Its scales come from other lanes.
                (Code8::Int8, "ds_bpermute_b32"),
            ],
        ),
        (
            SM_90,
            [
                (Code8::Fp8(Fp8::E4m3), "cvt.rn.f16x2.e4m3x2"),
                (Code8::Fp8(Fp8::E4m3Fnuz), "mma.sync"),
                (Code8::Fp8(Fp8::E5m2), "cvt.rn.f16x2.e5m2x2"),
                (Code8::Int8, "shfl.sync.idx"),
            ],
        ),
    ] {
        for (format, instruction) in formats {
            // Each format once, and of one all sizes.
            let sizes = [(1, 128), (1024, 128), (1, 256), (1024, 64)];
            for (queries, dim) in sizes.into_iter().take(if format == Fp8::E4m3.into() { 4 } else { 1 }) {
                let problem = Problem { kv_dtype: format.into(), ..problem(FloatKind::BF16, dim) };
                let what = format!("{queries} queries over {format:?} of {dim} on {target}");
                let lowered = lower(target, &problem, &requests(queries), PAGED, Choice::Auto)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                let (listing, count) = (lowered.listing(), lowered.listing().count());
                assert!(count.matrix >= 16, "{what}: {count:?}");
                assert!(lowered.assembly.contains(instruction), "{what}: no {instruction}");
                assert_eq!(count.scratch, 0, "{what}");
                assert!(listing.spills.unwrap_or(0) == 0 && listing.scratch.unwrap_or(0) == 0, "{what}");
            }
        }
    }
}

#[test]
fn hopper_computes_on_its_tensor_cores() {
    each(SM_90, 128, |what, dtype, lowered| {
        let listing = lowered.listing();
        let count = listing.count();
        if what.starts_with("decode") {
            let mma = format!("mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32");
            assert!(count.matrix >= 32, "{what}: {count:?}");
            assert_eq!(listing.inner_count(&mma), count.matrix, "{what}");
            for name in ["ldmatrix.sync.aligned.m8n8.x4", "cp.async.cg", "ex2.approx"] {
                assert!(listing.inner_count(name) > 0, "{what}: no {name}");
            }
        } else {
            let of = |columns| {
                let wgmma = format!("wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{dtype}.{dtype}");
                lowered.assembly.matches(&wgmma).count()
            };
            // Of the first tile and of the loop 8 steps of the head, of the loop and of the last tile 10 of the keys.
            assert_eq!((of(160), of(128)), (2 * 8, 2 * 10), "{what}");
            for name in [
                "cp.async.bulk.tensor",
                "cp.async.cg",
                "ex2.approx",
                "setmaxnreg.inc",
                "setmaxnreg.dec",
                "mbarrier.try_wait",
            ] {
                assert!(lowered.assembly.contains(name), "{what}: no {name}");
            }
        }
        assert_eq!(count.scratch, 0, "{what}");
        assert!(lowered.shared_memory <= 227 * 1024, "{what}");
        assert!(lowered.assembly.contains(".target sm_90a"));
    });
}

/// A vote on each tile, and the product of its values behind a branch, of the first tile and of the loop.
#[test]
fn warpgroups_leave_out_negligible_tiles() {
    keep_assembly();
    let variant = Standard { skip_softmax: Some(1e-3), ..CAUSAL };
    let (problem, spans) = (problem(FloatKind::BF16, 128), requests(1024));
    let plan = Plan::new(&SM_90.profile(), &problem, &variant, &spans, Choice::Auto, Split::Auto);
    let lowered = offline::lower(SM_90, &problem, &variant, &spans, PAGED, &plan.expect("a plan"));
    let lowered = lowered.expect("lowers");
    assert_eq!(lowered.assembly.matches("bar.red.or.pred").count(), 2);
    assert_eq!(lowered.assembly.matches("bra.uni done; wgmma.fence").count(), 2);
    assert_eq!(lowered.listing().count().scratch, 0);
}

/// Whether a request has few rows or many: warpgroups, unless everyone decodes, and elsewhere never.
#[test]
fn who_gets_warpgroups() {
    let unit = |target: Target, dim, lengths: &[(usize, usize)]| {
        let spans = RequestShape::following(lengths.iter().copied(), 16);
        let plan = Plan::new(
            &target.profile(),
            &problem(FloatKind::BF16, dim),
            &CAUSAL,
            &spans,
            Choice::Auto,
            Split::Auto,
        );
        match plan.map(|plan| plan.blueprint()) {
            Ok(Blueprint::Tiled(tiled)) => tiled.unit,
            Ok(Blueprint::Mixed(mixed)) => mixed.prefill.unit,
            other => panic!("{target} {dim}: {other:?}"),
        }
    };
    let prefill = [(2048, 2048)];
    for dim in [64, 128, 192, 256] {
        assert_eq!(unit(SM_90, dim, &prefill), MmaKind::Wgmma, "{dim}");
    }
    assert_eq!(unit(SM_90, 128, &[(2048, 2048), (1, 4096)]), MmaKind::Wgmma);
    assert_eq!(unit(SM_90, 128, &[(1, 4096); 8]), MmaKind::MmaSync);
    assert_eq!(unit(SM_90, 128, &[(128, 128)]), MmaKind::MmaSync);
    assert_eq!(unit(SM_90, 96, &prefill), MmaKind::MmaSync);
    for other in [80, 89, 100] {
        assert_eq!(unit(Target::Sm(other), 128, &prefill), MmaKind::MmaSync, "{other}");
    }
}

#[test]
fn who_gets_clusters() {
    let cluster = |dim, lengths: &[(usize, usize)]| {
        let spans = RequestShape::following(lengths.iter().copied(), 16);
        tiled(SM_90, &problem(FloatKind::BF16, dim), &spans).cluster
    };
    for dim in [128, 192, 256] {
        assert_eq!(cluster(dim, &[(8192, 8192)]), 2, "{dim}");
    }
    assert_eq!(cluster(128, &[(2048, 16384), (8192, 8192)]), 2);
    // Smaller work items would leave cores idle, or half of a pair.
    assert_eq!(cluster(128, &[(4096, 4096)]), 1);
    assert_eq!(cluster(128, &[(8192, 8192), (17, 17)]), 1);
    assert_eq!(cluster(128, &[(256, 16384)]), 1);
    // Nor where three warpgroups multiply.
    assert_eq!(cluster(64, &[(8192, 8192)]), 1);
}

#[test]
fn what_warpgroups_cannot_do_is_refused() {
    let (problem, spans) = (problem(FloatKind::BF16, 128), requests(1024));
    let wgmma = tiled(SM_90, &problem, &spans);
    let refused = |blueprint, dim: usize| {
        let problem = Problem { dims: HeadDims { qk: dim, vo: dim }, ..problem };
        match Plan::new(&SM_90.profile(), &problem, &CAUSAL, &spans, Choice::Exactly(blueprint), Split::Auto)
        {
            Err(Refusal::Blueprint { setting, .. }) => setting,
            other => panic!("{other:?}"),
        }
    };
    for (tiled, setting) in [
        (Tiled { q_planes: 4, ..wgmma }, "q_planes"),
        (Tiled { q_planes: 16, ..wgmma }, "q_planes"),
        (Tiled { q_tiles: 2, ..wgmma }, "q_tiles"),
        (Tiled { kv_planes: 2, ..wgmma }, "q_tiles"),
        (Tiled { keys: 72, ..wgmma }, "keys"),
        (Tiled { keys: 208, ..wgmma }, "keys"),
        (Tiled { stages: 1, ..wgmma }, "stages"),
        (Tiled { stages: 4, ..wgmma }, "stages"),
        (Tiled { cluster: 0, ..wgmma }, "cluster"),
        (Tiled { cluster: 3, ..wgmma }, "cluster"),
        (Tiled { unit: MmaKind::MmaSync, cluster: 2, ..wgmma }, "cluster"),
    ] {
        assert_eq!(refused(Blueprint::Tiled(tiled), 128), setting, "{tiled:?}");
    }
    let of_codes = Problem { kv_dtype: Fp8::E4m3.into(), ..problem };
    let refusal = Blueprint::Tiled(wgmma).check(&SM_90.profile(), &of_codes);
    assert!(matches!(refusal, Err(Refusal::Blueprint { setting: "kv_dtype", .. })), "{refusal:?}");
    assert_eq!(refused(Blueprint::Tiled(wgmma), 96), "head_dim");
    assert_eq!(refused(Blueprint::Mixed(Mixed { prefill: wgmma, decode: wgmma }), 128), "unit");
}

#[test]
fn every_target_has_a_kernel() {
    for target in
        [0x908, 0x90a, 0x942, 0x1100].map(Target::Gfx).into_iter().chain([80, 89, 90].map(Target::Sm))
    {
        let result = lower(target, &problem(FloatKind::F16, 64), &requests(1), Kind::Ragged, Choice::Auto);
        assert!(result.is_ok(), "{target}: {:?}", result.err());
    }
}

/// f32, and the machines without matrix cores that these kernels know.
#[test]
fn plain_multiplications_stay_in_registers() {
    for (target, dtype) in [
        (GFX942, FloatKind::F32),
        (Target::Gfx(0x908), FloatKind::BF16),
        (Target::Gfx(0x1100), FloatKind::F16),
        (Target::Gfx(0x1100), FloatKind::F32),
    ] {
        for queries in [1, 1024] {
            let (problem, spans) = (problem(dtype, 128), requests(queries));
            let tiled = tiled(target, &problem, &spans);
            assert!(matches!(tiled.unit, MmaKind::Scalar32 | MmaKind::Scalar64), "{target}: {tiled:?}");
            let what = format!("{queries} queries of {dtype:?} on {target}");
            let lowered = lower(target, &problem, &spans, PAGED, Choice::Auto)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            let listing = lowered.listing();
            assert_eq!((listing.scratch, listing.spills), (Some(0), Some(0)), "{what}");
            assert!(lowered.shared_memory <= 64 * 1024, "{what}: {}", lowered.shared_memory);
            assert_eq!(listing.count().matrix, 0, "{what}");
        }
    }
}

#[test]
fn what_an_architecture_lacks_is_refused_by_name() {
    let (decode, spans) = (problem(FloatKind::F16, 64), requests(1));
    let (mma, mfma) = (tiled(SM_90, &decode, &spans), tiled(GFX942, &decode, &spans));
    let wgmma = tiled(SM_90, &decode, &requests(1024));
    assert_eq!((mma.unit, mfma.unit, wgmma.unit), (MmaKind::MmaSync, MmaKind::Mfma16, MmaKind::Wgmma));
    for (target, dtype, unit, instruction) in [
        (GFX942, FloatKind::F16, mma, Instruction::MmaSync),
        (Target::Sm(75), FloatKind::F16, mma, Instruction::MmaSync),
        (Target::Sm(80), FloatKind::F16, wgmma, Instruction::Wgmma),
        (Target::Sm(100), FloatKind::F16, wgmma, Instruction::Wgmma),
        (SM_90, FloatKind::F16, mfma, Instruction::MfmaF16),
        (Target::Gfx(0x908), FloatKind::BF16, mfma, Instruction::MfmaBf16),
        (Target::Gfx(0x1100), FloatKind::F16, mfma, Instruction::MfmaF16),
    ] {
        let choice = Choice::Exactly(Blueprint::Tiled(unit));
        let refusal = lower(target, &problem(dtype, 64), &spans, Kind::Ragged, choice);
        let Err(Error::Refused(refusal)) = refusal else { panic!("{target}: {:?}", refusal.is_ok()) };
        assert_eq!(
            refusal,
            Refusal::Instruction { kernel: "tiled attention", instruction, arch: target.arch() }
        );
    }
}

/// Both sizes of tiles in one kernel, no more registers than there are, and no more shared memory than the larger takes.
#[test]
fn prefill_and_decode_are_one_launch() {
    for (target, shared) in [(GFX942, 64 << 10), (Target::Sm(80), 227 << 10)] {
        let (problem, spans) =
            (problem(FloatKind::BF16, 128), RequestShape::following([(4096, 4096), (1, 8192), (1, 700)], 16));
        let plan = Plan::new(&target.profile(), &problem, &CAUSAL, &spans, Choice::Auto, Split::Never)
            .expect("a plan");
        let Blueprint::Mixed(mixed) = plan.blueprint() else { panic!("{target}: {plan}") };
        let lowered = lower(target, &problem, &spans, PAGED, Choice::Auto).expect("lowers");
        let alone = [mixed.prefill, mixed.decode].map(|tiled| {
            let choice = Choice::Exactly(Blueprint::Tiled(tiled));
            lower(target, &problem, &spans, PAGED, choice).expect("lowers").shared_memory
        });
        assert_eq!(lowered.shared_memory, alone[0].max(alone[1]), "{target}");
        assert!(lowered.shared_memory <= shared, "{target}");
        let listing = lowered.listing();
        assert_eq!(listing.count().scratch, 0, "{target}");
        assert!(listing.spills.unwrap_or(0) == 0 && listing.scratch.unwrap_or(0) == 0, "{target}");
    }
}

/// A split launches the kernel that merges as well.
#[test]
fn a_split_is_merged() {
    keep_assembly();
    let (problem, spans) = (problem(FloatKind::BF16, 128), RequestShape::following([(1, 4096)], 1));
    let profile: DeviceProfile = GFX942.profile();
    assert_eq!(profile.arch, Arch::Gfx(0x942));
    let plan = Plan::new(&profile, &problem, &CAUSAL, &spans, Choice::Auto, Split::Auto).expect("a plan");
    assert!(plan.partial_rows() > 0, "{plan}");
    let launches =
        offline::launches(GFX942, &problem, &CAUSAL, &spans, Kind::Ragged, &plan).expect("launches");
    assert_eq!(launches.len(), 2);
    let [first, merge] = [&launches[0], &launches[1]].map(|launch| launch.lower().expect("lowers"));
    // The partial results of the first are what the second reads.
    assert_eq!(first.writes.iter().filter(|&&writes| writes).count(), 2);
    assert_eq!(merge.writes.iter().filter(|&&writes| writes).count(), 1);
    let workspace = first.writes.iter().rposition(|&writes| writes).expect("it writes");
    assert_eq!(launches[1].buffers()[0].as_ref().err(), launches[0].buffers()[workspace].as_ref().err());
}

/// Sampling from a batch of Llama 3's rows: numbers stay in registers, and come in loads of 16 bytes.
#[test]
fn sampling_stays_in_registers() {
    const ROWS: usize = 64;
    const VOCAB: usize = 128_256;
    let bf16 = ElemType::Float(FloatKind::BF16);
    let f32 = ElemType::Float(FloatKind::F32);
    for target in [GFX942, SM_90] {
        keep_assembly();
        let device = offline::Device::new(target).expect("a device");
        let client = device.client();
        let tensor = |shape: &[usize], element: usize| {
            let strides: Vec<usize> =
                (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
            let handle = client.empty(shape.iter().product::<usize>() * element);
            // SAFETY: the buffer was made to hold this shape.
            unsafe { TensorBinding::from_raw_parts(handle, strides.into(), shape.to_vec().into()) }
        };
        let (rows, draws) = (|| tensor(&[ROWS], 4), || tensor(&[ROWS, sampling::DRAW_WORDS], 4));
        for filters in [0, 1, 2, 4, 7] {
            let of = |bit: usize| (filters & bit != 0).then(rows);
            let sample = SampleProbs {
                probs: tensor(&[ROWS, VOCAB], 4),
                top_k: of(1),
                top_p: of(2),
                min_p: of(4),
                draws: draws(),
                samples: rows(),
                valid: rows(),
            };
            // SAFETY: the recorder runs no kernel.
            unsafe { sampling::sample_probs(client, sample) }.expect("it fits");
        }
        for (dtype, size) in [(bf16, 2), (f32, 4)] {
            let sample = SampleLogits {
                logits: tensor(&[ROWS, VOCAB], size),
                temperature: rows(),
                draws: draws(),
                samples: rows(),
                valid: rows(),
            };
            // SAFETY: the recorder runs no kernel.
            unsafe { sampling::sample_logits(client, sample, dtype) }.expect("it fits");
            let filtered = Filter {
                x: tensor(&[ROWS, VOCAB], size),
                by: Limit::TopK(rows()),
                y: tensor(&[ROWS, VOCAB], size),
                output: Output::Masked,
            };
            sampling::filter(client, filtered, dtype).expect("it fits");
        }
        let filtered = Filter {
            x: tensor(&[ROWS, VOCAB], 4),
            by: Limit::TopP(rows()),
            y: tensor(&[ROWS, VOCAB], 4),
            output: Output::Renormalised,
        };
        sampling::filter(client, filtered, f32).expect("it fits");
        let launches = device.launches();
        // Sampling from logits launches two kernels.
        assert_eq!(launches.len(), 12, "{target}");
        for launch in launches {
            let lowered = launch.lower().unwrap_or_else(|error| panic!("{target}: {error}"));
            let what = format!("{} on {target}", lowered.entry);
            let listing = lowered.listing();
            assert_eq!(listing.count().scratch, 0, "{what}");
            assert_eq!([listing.scratch.unwrap_or(0), listing.spills.unwrap_or(0)], [0; 2], "{what}");
            assert!(lowered.shared_memory <= 64 << 10, "{what}: {}", lowered.shared_memory);
            // A chunk of bf16 has 4 loads for each of 128 units.
            assert!(lowered.block[0] >= 128, "{what}: {:?}", lowered.block);
            let wide = match target {
                Target::Gfx(_) => ["global_load_dwordx4", "buffer_load_dwordx4"].as_slice(),
                Target::Sm(_) => {
                    &["ld.global.v4", "ld.global.nc.v4", "ld.global.v2.b64", "ld.global.nc.v2.b64"]
                }
            };
            assert!(wide.iter().any(|load| lowered.assembly.contains(load)), "{what}: no load of 16 bytes");
        }
    }
}
