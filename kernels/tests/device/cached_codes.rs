//! Attention over keys and values that are codes of 8 bits.

use burn_flashinfer_kernels::{
    Arch, Code8, DeviceProfile, Fp8, Instruction, KvLayout, MmaKind,
    attention::{Blueprint, Choice, Mixed, Portable, Split, Tiled},
};
use cubecl::client::Client;

use crate::case::{Case, Kind, MIXED};
use crate::host::{Random, Type, device_tests};

device_tests!(
    every_unit_reads_codes,
    every_number_of_vectors,
    decode_beside_prefill,
    scales_of_tokens,
    warpgroups_read_none
);

const FORMATS: [Fp8; 3] = [Fp8::E4m3, Fp8::E4m3Fnuz, Fp8::E5m2];
const PAGED: Kind = Kind::Paged(7, KvLayout::Hnd);

/// Tiles of a unit: of a few rows with planes for keys, and of many.
fn tiles(unit: MmaKind) -> [Tiled; 2] {
    let one = Tiled {
        unit,
        q_tiles: 1,
        q_planes: 1,
        keys: 32,
        kv_planes: 4,
        stages: 1,
        q_in_registers: true,
        cluster: 1,
        fp8_mma: false,
    };
    match unit {
        MmaKind::MmaSync => [
            Tiled { keys: 16, stages: 3, ..one },
            Tiled {
                q_tiles: 2,
                q_planes: 4,
                keys: 64,
                kv_planes: 1,
                stages: 2,
                q_in_registers: false,
                ..one
            },
        ],
        // A plane is a thread.
        MmaKind::Scalar1 => [
            Tiled { keys: 8, kv_planes: 2, q_in_registers: false, ..one },
            Tiled { keys: 8, q_planes: 2, kv_planes: 1, q_in_registers: false, ..one },
        ],
        MmaKind::Scalar32 | MmaKind::Scalar64 => [
            Tiled { keys: 16, q_in_registers: false, ..one },
            Tiled { q_planes: 2, kv_planes: 1, q_in_registers: false, ..one },
        ],
        _ => [one, Tiled { q_planes: 4, keys: 64, kv_planes: 1, ..one }],
    }
}

/// The units of this device, and the types that they multiply.
fn units(client: &Client) -> Vec<(MmaKind, &'static [Type])> {
    let matrix: &[MmaKind] = match Arch::of(client) {
        arch if Instruction::MmaSync.exists_on(arch) => &[MmaKind::MmaSync],
        arch if Instruction::MfmaBf16.exists_on(arch) => &[MmaKind::Mfma16, MmaKind::Mfma32],
        _ => &[],
    };
    let scalar = match DeviceProfile::of(client).plane {
        1 => MmaKind::Scalar1,
        32 => MmaKind::Scalar32,
        _ => MmaKind::Scalar64,
    };
    let halves = |&unit| (unit, &[Type::F16, Type::BF16][..]);
    [(scalar, &[Type::F32, Type::BF16, Type::F16][..])].into_iter().chain(matrix.iter().map(halves)).collect()
}

fn case(choice: Choice, dtype: Type, format: impl Into<Code8>, dims: (usize, usize)) -> Case {
    let (qk, vo) = dims;
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

/// Each unit with each format and type, over pages and one after the other, at once and in chunks; and no unit at all.
fn every_unit_reads_codes(client: Client) {
    let mut random = Random::new(21);
    for (unit, dtypes) in units(&client) {
        let cases = tiles(unit).into_iter().flat_map(|tiled| FORMATS.map(|format| (tiled, format)));
        // A CPU compiles each for seconds: it gets one of decode and one of prefill.
        let nth = if unit == MmaKind::Scalar1 { 4 } else { 1 };
        for (i, (tiled, format)) in cases.enumerate().step_by(nth) {
            let choice = Choice::Exactly(Blueprint::Tiled(tiled));
            let case = case(choice, dtypes[i % dtypes.len()], format, (64, 64));
            let (kind, split) =
                [(PAGED, Split::Never), (Kind::Ragged, Split::Every(64)), (PAGED, Split::Every(32))][i % 3];
            Case { kind, split, soft_cap: (i % 2 == 1).then_some(2.0), ..case }.check(&client, &mut random);
        }
    }
    let portable = Portable { rows: 1, units: 1, tile: 16, qk_vector: 4, vo_vector: 2 };
    for (format, dtype) in FORMATS.into_iter().zip([Type::F32, Type::BF16, Type::F16]) {
        let choice = Choice::Exactly(Blueprint::Portable(portable));
        case(choice, dtype, format, (20, 6)).check(&client, &mut random);
    }
}

/// One vector, an odd number of them, and more of a key than of a value.
fn every_number_of_vectors(client: Client) {
    let mut random = Random::new(22);
    for (unit, dtypes) in units(&client).into_iter().filter(|(unit, _)| *unit != MmaKind::Scalar1) {
        for (i, dims) in [(16, 16), (48, 80), (128, 128), (192, 64), (256, 256)].into_iter().enumerate() {
            let [decode, prefill] = tiles(unit);
            let tiled = match i % 2 {
                0 => Tiled { kv_planes: if i == 4 { 1 } else { 2 }, stages: decode.stages.min(2), ..decode },
                _ => Tiled { q_tiles: 1, keys: 32, ..prefill },
            };
            let case = case(
                Choice::Exactly(Blueprint::Tiled(tiled)),
                dtypes[i % dtypes.len()],
                FORMATS[i % 3],
                dims,
            );
            Case { lengths: vec![(17, 54), (1, 97)], ..case }.check(&client, &mut random);
        }
    }
}

/// Both sizes in one launch.
fn decode_beside_prefill(client: Client) {
    let mut random = Random::new(23);
    for (unit, dtypes) in units(&client) {
        let [decode, prefill] = match unit {
            MmaKind::Mfma32 => [tiles(MmaKind::Mfma16)[0], tiles(unit)[1]],
            MmaKind::MmaSync => tiles(unit),
            _ => continue,
        };
        let prefill = Tiled { stages: decode.stages, ..prefill };
        let choice = Choice::Exactly(Blueprint::Mixed(Mixed { prefill, decode }));
        for (format, dtype) in FORMATS.into_iter().zip(dtypes.iter().cycle()) {
            let case = case(choice, *dtype, format, (64, 64));
            Case { lengths: vec![(17, 60), (1, 150), (2, 64), (66, 65)], ..case }.check(&client, &mut random);
        }
    }
}

/// Each unit, of few rows and of many, and no unit at all.
fn scales_of_tokens(client: Client) {
    let mut random = Random::new(24);
    for (unit, dtypes) in units(&client) {
        // A CPU compiles each for seconds.
        let kinds = if unit == MmaKind::Scalar1 { 1 } else { 2 };
        for (i, tiled) in tiles(unit).into_iter().enumerate().take(kinds) {
            let choice = Choice::Exactly(Blueprint::Tiled(tiled));
            let format = if i == 0 { Code8::Int8 } else { FORMATS[dtypes.len() % 3].into() };
            let dtype = dtypes[i % dtypes.len()];
            let lengths = vec![(17, 37), (1, 97), (0, 5), (3, 0), (2, 40)];
            let case = Case { token_scales: true, lengths, ..case(choice, dtype, format, (64, 32)) };
            let (kind, split) = [(PAGED, Split::Every(64)), (Kind::Ragged, Split::Never)][i];
            Case { kind, split, soft_cap: (i == 1).then_some(2.0), ..case }.check(&client, &mut random);
        }
    }
    let portable = Portable { rows: 1, units: 1, tile: 16, qk_vector: 4, vo_vector: 2 };
    let case = case(Choice::Exactly(Blueprint::Portable(portable)), Type::F16, Fp8::E4m3, (20, 6));
    Case { token_scales: true, ..case.clone() }.check(&client, &mut random);
    Case { codes: Some(Code8::Int8), dtype: Type::F32, ..case }.check(&client, &mut random);
}

/// Where there are warpgroups, the automatic choice is another unit.
fn warpgroups_read_none(client: Client) {
    let case = Case { lengths: vec![(1024, 1024)], ..case(Choice::Auto, Type::BF16, Fp8::E4m3, (128, 128)) };
    let plan = case.plan(&client).to_string();
    assert!(!plan.contains("Wgmma"), "{plan}");
    if Instruction::Wgmma.exists_on(Arch::of(&client)) {
        assert!(plan.contains("MmaSync"), "{plan}");
    }
}
