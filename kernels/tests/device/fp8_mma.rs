//! Attention whose products are of codes of 8 bits.

use burn_flashinfer_kernels::{
    Arch, Code8, Fp8, Instruction, KvLayout, MmaKind, Refusal,
    attention::{Blueprint, Choice, Mixed, Plan, RequestShape, Split, Tiled},
};
use cubecl::client::Client;

use crate::case::{Case, Kind, MIXED};
use crate::host::{Random, Type, device_tests};

device_tests!(
    tiles_of_codes,
    every_number_of_vectors,
    beside_decode,
    the_choice,
    what_has_no_codes_is_refused
);

const PAGED: Kind = Kind::Paged(7, KvLayout::Hnd);
const UNITS: [MmaKind; 2] = [MmaKind::Mfma16, MmaKind::Mfma32];
const FORMATS: [Fp8; 2] = [Fp8::E4m3, Fp8::E4m3Fnuz];
const TYPES: [Type; 2] = [Type::BF16, Type::F16];

const TILED: Tiled = Tiled {
    unit: MmaKind::Mfma32,
    q_tiles: 1,
    q_planes: 4,
    keys: 64,
    kv_planes: 1,
    stages: 1,
    q_in_registers: true,
    cluster: 1,
    fp8_mma: true,
};

fn has_mfma(client: &Client) -> bool {
    Instruction::MfmaFp8.exists_on(Arch::of(client))
}

fn case(tiled: Tiled, dtype: Type, format: Fp8, dims: (usize, usize)) -> Case {
    let (qk, vo) = dims;
    let choice = Choice::Exactly(Blueprint::Tiled(tiled));
    Case {
        dtype,
        codes: Some(format.into()),
        qk,
        vo,
        causal: true,
        choice,
        spread: 1.5,
        ..Case::new(PAGED, &MIXED)
    }
}

/// Both units, formats and types; planes for rows and for keys, at once and in chunks, behind caps and windows.
fn tiles_of_codes(client: Client) {
    let mut random = Random::new(31);
    let planes = [(4, 1, 1), (1, 4, 1), (2, 2, 2)];
    let tiles = UNITS.into_iter().flat_map(|unit| planes.map(|planes| (unit, planes)));
    for (i, (unit, (q_planes, kv_planes, q_tiles))) in tiles.enumerate().filter(|_| has_mfma(&client)) {
        let tiled = Tiled { unit, q_planes, kv_planes, q_tiles, ..TILED };
        let (kind, split) =
            [(PAGED, Split::Never), (Kind::Ragged, Split::Every(64)), (PAGED, Split::Every(128))][i % 3];
        let case = case(tiled, TYPES[i % 2], FORMATS[i / 2 % 2], (64, 64));
        let (soft_cap, window_left) = [(None, None), (Some(2.0), None), (None, Some(19))][i / 2];
        Case { kind, split, soft_cap, window_left, ..case }.check(&client, &mut random);
    }
}

/// One vector, an odd number of them, more of a key than of a value, and the largest.
fn every_number_of_vectors(client: Client) {
    let mut random = Random::new(32);
    let dims = [(16, 16), (48, 80), (128, 128), (192, 64), (256, 256)];
    for (i, dims) in dims.into_iter().enumerate().filter(|_| has_mfma(&client)) {
        let keys = if dims.0 == 128 { 128 } else { 64 };
        let tiled = Tiled { unit: UNITS[(i + 1) % 2], keys, ..TILED };
        let case = case(tiled, TYPES[i % 2], FORMATS[i % 2], dims);
        Case { lengths: vec![(9, 137)], q_heads: 2, kv_heads: 1, ..case }.check(&client, &mut random);
    }
}

/// Decoding requests, whose products are of numbers, in the same launch.
fn beside_decode(client: Client) {
    let mut random = Random::new(33);
    let decode =
        Tiled { unit: MmaKind::Mfma16, q_planes: 1, kv_planes: 4, keys: 32, fp8_mma: false, ..TILED };
    for (format, dtype) in FORMATS.into_iter().zip(TYPES).filter(|_| has_mfma(&client)) {
        let choice = Choice::Exactly(Blueprint::Mixed(Mixed { prefill: TILED, decode }));
        let lengths = vec![(17, 60), (1, 150), (2, 64), (66, 65)];
        Case { choice, lengths, q_heads: 2, kv_heads: 1, ..case(TILED, dtype, format, (64, 64)) }
            .check(&client, &mut random);
    }
}

/// Where it may, an MI300X multiplies codes of e4m3 in prefill; nothing else does.
fn the_choice(client: Client) {
    let prefill = Case {
        fp8_mma: true,
        choice: Choice::Auto,
        lengths: vec![(40, 130)],
        ..case(TILED, Type::BF16, Fp8::E4m3, (64, 64))
    };
    let says = |case: &Case| case.plan(&client).to_string().contains("products of codes");
    assert_eq!(says(&prefill), has_mfma(&client));
    prefill.check(&client, &mut Random::new(34));
    for other in [
        Case { fp8_mma: false, ..prefill.clone() },
        Case { codes: Some(Fp8::E5m2.into()), ..prefill.clone() },
        Case { codes: None, ..prefill.clone() },
        Case { dtype: Type::F32, ..prefill.clone() },
        Case { lengths: vec![(1, 130)], ..prefill },
    ] {
        assert!(!says(&other), "{other:?}");
    }
}

/// Blueprints that multiply codes where there are none, or with units that cannot.
fn what_has_no_codes_is_refused(client: Client) {
    let mixed = Mixed { prefill: TILED, decode: TILED };
    for (blueprint, codes) in [
        (Blueprint::Tiled(TILED), None),
        (Blueprint::Tiled(TILED), Some(Fp8::E5m2)),
        (Blueprint::Tiled(Tiled { unit: MmaKind::MmaSync, ..TILED }), Some(Fp8::E4m3)),
        (Blueprint::Tiled(Tiled { unit: MmaKind::Scalar64, ..TILED }), Some(Fp8::E4m3)),
        (Blueprint::Mixed(mixed), Some(Fp8::E4m3)),
    ] {
        let case = Case { codes: codes.map(Code8::Fp8), ..case(TILED, Type::BF16, Fp8::E4m3, (64, 64)) };
        let spans = RequestShape::following([(64, 64)], 7);
        let device = burn_flashinfer_kernels::DeviceProfile::of(&client);
        let plan = Plan::new(
            &device,
            &case.problem(),
            &case.variant(),
            &spans,
            Choice::Exactly(blueprint),
            Split::Never,
        );
        match plan {
            Err(Refusal::Blueprint { setting: "fp8_mma", .. }) => {}
            // Prefill tiles are checked first, and another device has no MFMA.
            Err(Refusal::Instruction { .. })
                if blueprint == Blueprint::Mixed(mixed) && !has_mfma(&client) => {}
            other => panic!("{blueprint}: {other:?}"),
        }
    }
}
