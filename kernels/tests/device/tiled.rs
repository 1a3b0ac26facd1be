//! Attention on matrix cores. On a device that has none each blueprint is refused, by the name of the instruction.

use burn_flashinfer_kernels::{
    Arch, DeviceProfile, Instruction, KvLayout, MmaKind, Refusal,
    attention::{
        Attention, Batch, Blueprint, Choice, Inputs, Mixed, Plan, RequestShape, Split, Standard, Tiled,
        launch,
    },
};
use cubecl::client::Client;

use crate::case::{Case, Kind, MIXED};
use crate::host::{Device, Random, Type, binding, bytes_of, contiguous, device_tests, ints};

device_tests!(
    every_kind_and_mask,
    warpgroups_alone_and_in_pairs,
    a_work_item_for_each_cube,
    every_head_dimension_and_type,
    every_group_and_page,
    large_logits_neither_overflow_nor_leak,
    runs_agree_bit_for_bit,
    both_sizes_at_once,
    results_do_not_depend_on_the_batch,
    what_cannot_run_is_refused,
    #[ignore = "9 GB on the device and on the host"]
    pages_beyond_two_to_the_31
);

/// The units of this device.
pub fn units(client: &Client) -> Vec<MmaKind> {
    let matrix_units = match Arch::of(client) {
        arch if Instruction::Wgmma.exists_on(arch) => vec![MmaKind::MmaSync, MmaKind::Wgmma],
        arch if Instruction::MmaSync.exists_on(arch) => vec![MmaKind::MmaSync],
        arch if Instruction::MfmaBf16.exists_on(arch) => vec![MmaKind::Mfma16, MmaKind::Mfma32],
        _ => vec![],
    };
    let scalar = match DeviceProfile::of(client).plane {
        1 => MmaKind::Scalar1,
        32 => MmaKind::Scalar32,
        _ => MmaKind::Scalar64,
    };
    [vec![scalar], matrix_units].concat()
}

/// Planes that share rows, planes that share keys, and both with the keys split.
pub fn blueprints(unit: MmaKind) -> [(Tiled, Split); 3] {
    let (keys, stages) = match unit {
        MmaKind::MmaSync => (16, 3),
        MmaKind::Wgmma => (80, 2),
        MmaKind::Scalar32 | MmaKind::Scalar64 => (16, 1),
        MmaKind::Scalar1 => (4, 1),
        _ => (32, 1),
    };
    let decode = Tiled {
        unit,
        q_tiles: 1,
        q_planes: 1,
        keys,
        kv_planes: 4,
        stages,
        q_in_registers: true,
        cluster: 1,
        fp8_mma: false,
    };
    let prefill = Tiled { q_planes: 4, keys: 64, kv_planes: 1, ..decode };
    let both = Tiled { q_planes: 2, kv_planes: 2, ..decode };
    let [decode, prefill, both] = match unit {
        MmaKind::MmaSync => [decode, Tiled { q_tiles: 2, stages: 2, q_in_registers: false, ..prefill }, both],
        // Warpgroups share nothing but the copies.
        MmaKind::Wgmma => {
            let two = Tiled { q_planes: 8, kv_planes: 1, q_in_registers: false, ..decode };
            let pair = Tiled { cluster: 2, ..two };
            [Tiled { keys: 128, ..pair }, Tiled { q_planes: 12, keys: 64, stages: 3, ..two }, pair]
        }
        MmaKind::Mfma16 => [decode, Tiled { q_tiles: 2, ..prefill }, both],
        MmaKind::Mfma32 => [decode, prefill, both],
        // A plane is a thread: no more of them than cores.
        MmaKind::Scalar1 => [
            Tiled { q_tiles: 2, kv_planes: 2, ..decode },
            Tiled { q_tiles: 4, q_planes: 2, kv_planes: 1, ..decode },
            Tiled { q_tiles: 4, q_planes: 1, ..both },
        ],
        MmaKind::Scalar32 | MmaKind::Scalar64 => [
            Tiled { q_tiles: 4, ..decode },
            Tiled { q_tiles: 3, q_planes: 2, keys: 32, ..prefill },
            Tiled { q_tiles: 2, ..both },
        ],
    };
    [(decode, Split::Never), (prefill, Split::Never), (both, Split::Every(keys * 8))]
}

/// The types that a unit multiplies.
pub fn dtypes(unit: MmaKind) -> &'static [Type] {
    match unit {
        MmaKind::MmaSync | MmaKind::Wgmma | MmaKind::Mfma16 | MmaKind::Mfma32 => &[Type::F16, Type::BF16],
        MmaKind::Scalar1 | MmaKind::Scalar32 | MmaKind::Scalar64 => &[Type::F16, Type::BF16, Type::F32],
    }
}

pub fn case(kind: Kind, lengths: &[(usize, usize)], dtype: Type, (tiled, split): (Tiled, Split)) -> Case {
    // Compiling is most of the time on a CPU, and copies are unrolled.
    let (qk, vo) = if tiled.unit == MmaKind::Scalar1 { (24, 16) } else { (64, 64) };
    let choice = Choice::Exactly(Blueprint::Tiled(tiled));
    Case { dtype, qk, vo, spread: 1.5, choice, split, ..Case::new(kind, lengths) }
}

const PAGED: Kind = Kind::Paged(16, KvLayout::Nhd);

fn every_kind_and_mask(client: Client) {
    let mut random = Random::new(11);
    let mut masks = vec![];
    for kind in [Kind::Ragged, Kind::Paged(5, KvLayout::Hnd), PAGED] {
        for causal in [false, true] {
            for soft_cap in [None, Some(0.7)] {
                masks.extend(
                    [None, Some(0), Some(70)].map(|window_left| (kind, causal, soft_cap, window_left)),
                );
            }
        }
    }
    for unit in units(&client) {
        let blueprints = blueprints(unit);
        // Those that CI runs slowest are thinned out; 5 divides neither the masks nor the types nor the blueprints.
        let nth = match unit {
            MmaKind::Scalar1 | MmaKind::Mfma16 | MmaKind::Mfma32 => 5,
            MmaKind::Scalar32 | MmaKind::Scalar64 => 2,
            _ => 1,
        };
        for (i, &(kind, causal, soft_cap, window_left)) in masks.iter().enumerate().step_by(nth) {
            // Each blueprint meets each kind, each mask and each cap, though not all at once.
            let tiled = blueprints[(i + i / 3) % 3];
            let dtype = dtypes(unit)[i % dtypes(unit).len()];
            let lengths = [&MIXED[..], &[(70, 200), (2, 300), (1, 64), (130, 128)]].concat();
            let case = case(kind, &lengths, dtype, tiled);
            Case { causal, window_left, soft_cap, ..case }.check(&client, &mut random);
        }
        for tiled in blueprints {
            for (i, lengths) in
                [(1, 97), (17, 37), (37, 17), (3, 0), (0, 3), (1, 1), (129, 257)].iter().enumerate()
            {
                let dtype = dtypes(unit)[i % dtypes(unit).len()];
                let case = case(Kind::Ragged, &[*lengths], dtype, tiled);
                Case { causal: i % 2 == 0, gap: 8, ..case }.check(&client, &mut random);
            }
        }
    }
}

/// What long requests get on Hopper, by cubes alone and by pairs whose second cube has all of its rows, some, or none.
fn warpgroups_alone_and_in_pairs(client: Client) {
    let mut random = Random::new(20);
    let kinds = [PAGED, Kind::Ragged, Kind::Paged(5, KvLayout::Hnd)];
    let sizes = [(128, 128, 160), (128, 128, 176), (128, 128, 192), (192, 128, 128), (256, 256, 80)];
    for unit in units(&client).into_iter().filter(|&unit| unit == MmaKind::Wgmma) {
        for (i, (dim, vo, keys)) in sizes.into_iter().enumerate() {
            for (j, cluster) in [1, 2, 1, 2].into_iter().enumerate() {
                let tiled = Tiled { keys, cluster, ..blueprints(unit)[2].0 };
                let choice = Choice::Exactly(Blueprint::Tiled(tiled));
                let (kind, dtype) = (kinds[(i + j) % 3], dtypes(unit)[(i + j) % 2]);
                let split = [Split::Never, Split::Every(2 * keys)][j / 2];
                let window_left = [None, Some(150), None][(i + j / 2) % 3];
                let lengths = [(70, 700), (33, 457), (64, 640), (300, 555), (0, 9), (1, 5)];
                let case = Case { qk: dim, vo, choice, split, window_left, ..Case::new(kind, &lengths) };
                Case { dtype, causal: i % 2 == 0, ..case }.check(&client, &mut random);
            }
        }
    }
}

/// More work items than Hopper's cubes share among themselves: each cube has one, and they share their descriptors.
fn a_work_item_for_each_cube(client: Client) {
    let mut random = Random::new(21);
    let lengths: Vec<_> = (0..700).map(|i| (1 + i % 3, 60 + i % 71)).collect();
    for unit in units(&client).into_iter().filter(|&unit| unit == MmaKind::Wgmma) {
        for (tiled, kind) in blueprints(unit).into_iter().zip([PAGED, Kind::Ragged, PAGED]) {
            let case = case(kind, &lengths, Type::BF16, tiled);
            Case { causal: true, split: Split::Never, ..case }.check(&client, &mut random);
        }
    }
}

fn every_head_dimension_and_type(client: Client) {
    let mut random = Random::new(12);
    // With 192 and 160, keys and values are as many copies of a lane, but of other vecs.
    let dims = [(64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (192, 160), (256, 256), (40, 72)];
    for (nth, (qk, vo)) in dims.into_iter().enumerate() {
        // f32 on the scalar unit, once with odd head dimensions and once with the usual one.
        let f32 = [(40, 72), (128, 128)].contains(&(qk, vo)).then_some(Type::F32);
        for (of, dtype) in [Type::F16, Type::BF16].into_iter().chain(f32).enumerate() {
            // Decoding, a few tokens, and prefill: as the launcher chooses.
            for (at, lengths) in
                [[(1, 197), (1, 33)], [(9, 197), (2, 33)], [(140, 333), (70, 70)]].into_iter().enumerate()
            {
                // Every other one where CI simulates the device.
                if matches!(DeviceProfile::of(&client).arch, Arch::Gfx(_)) && (nth + of + at) % 2 == 1 {
                    continue;
                }
                let case = Case { qk, vo, dtype, causal: true, ..Case::new(PAGED, &lengths) };
                let case = Case { q_heads: 8, ..case };
                // The portable kernel has a test of its own.
                if !matches!(case.plan(&client).blueprint(), Blueprint::Portable(_)) {
                    case.check(&client, &mut random);
                }
            }
        }
    }
}

fn every_group_and_page(client: Client) {
    let mut random = Random::new(13);
    for (q_heads, kv_heads) in [(2, 2), (6, 2), (8, 2), (7, 1), (16, 2), (9, 1), (17, 1)] {
        for page_size in [1, 8, 16, 32, 64, 128, 7] {
            let kind = Kind::Paged(page_size, KvLayout::Nhd);
            let case = Case { qk: 64, vo: 64, dtype: Type::BF16, ..Case::new(kind, &[(4, 137), (1, 300)]) };
            Case { q_heads, kv_heads, causal: true, ..case }.check(&client, &mut random);
        }
    }
}

fn large_logits_neither_overflow_nor_leak(client: Client) {
    let mut random = Random::new(14);
    for spread in [60.0, 1e-3] {
        let case = Case { qk: 64, vo: 64, dtype: Type::BF16, spread, ..Case::new(PAGED, &MIXED) };
        Case { causal: true, ..case }.check(&client, &mut random);
    }
}

fn runs_agree_bit_for_bit(client: Client) {
    for unit in units(&client) {
        for tiled in blueprints(unit) {
            let case = Case { causal: true, ..case(PAGED, &[(3, 700), (1, 900)], Type::BF16, tiled) };
            let bits =
                || case.check(&client, &mut Random::new(15)).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let first = bits();
            for _ in 0..10 {
                assert_eq!(bits(), first);
            }
        }
    }
}

/// TileShape for many rows and tiles for few in one launch, as far as they go together.
fn both_sizes(client: &Client) -> Vec<Mixed> {
    let both = |unit| {
        let [(decode, _), (prefill, _), _] = blueprints(unit);
        match unit {
            // As many planes as the tiles for few have.
            MmaKind::Scalar1 => {
                Some(Mixed { prefill: Tiled { q_tiles: 4, q_planes: 2, kv_planes: 1, ..decode }, decode })
            }
            MmaKind::Scalar32 | MmaKind::Scalar64 => {
                Some(Mixed { prefill: Tiled { q_planes: 4, ..prefill }, decode })
            }
            MmaKind::Mfma16 | MmaKind::Wgmma => None,
            MmaKind::Mfma32 => Some(Mixed { prefill, decode: Tiled { unit: MmaKind::Mfma16, ..decode } }),
            MmaKind::MmaSync => Some(Mixed { prefill, decode }),
        }
    };
    units(client).into_iter().filter_map(both).collect()
}

fn both_sizes_at_once(client: Client) {
    let mut random = Random::new(17);
    for mixed in both_sizes(&client) {
        let choice = Choice::Exactly(Blueprint::Mixed(mixed));
        for (kind, split) in [(PAGED, Split::Auto), (Kind::Ragged, Split::Every(64)), (PAGED, Split::Never)] {
            let lengths = [&MIXED[..], &[(40, 100), (1, 300), (2, 70)]].concat();
            let case = case(kind, &lengths, dtypes(mixed.prefill.unit)[0], (mixed.decode, split));
            Case { choice, causal: split != Split::Never, ..case }.check(&client, &mut random);
        }
    }
}

/// With a fixed split a request gets the same bits, whatever stands beside it.
fn results_do_not_depend_on_the_batch(client: Client) {
    let (mut random, mut shuffles) = (Random::new(18), Random::new(19));
    let requests = [(1, 333), (37, 200), (2, 64)];
    // As the planner chooses, and where that is no tiles, with tiles.
    let choices = both_sizes(&client).into_iter().map(|mixed| (Choice::Exactly(Blueprint::Mixed(mixed)), 64));
    for (choice, split) in choices.chain([(Choice::Auto, 100)]) {
        let mut run = |lengths: &[(usize, usize)], seeds: &[u64]| {
            let case = Case { qk: 64, vo: 64, dtype: Type::BF16, causal: true, ..Case::new(PAGED, lengths) };
            let case = Case { split: Split::Every(split), choice, ..case };
            let output = case.check_seeded(&client, seeds, &mut shuffles);
            // The bits of each request.
            let mut rest = output.iter().map(|x| x.to_bits());
            lengths.iter().map(|l| rest.by_ref().take(l.0 * 4 * 64).collect()).collect::<Vec<Vec<u64>>>()
        };
        let alone: Vec<_> =
            (0..).zip(requests).map(|(seed, request)| run(&[request], &[seed]).remove(0)).collect();
        for _ in 0..3 {
            // Others before, between and behind.
            let (mut batch, mut seeds) = (vec![], vec![]);
            for (seed, request) in (0..).zip(requests) {
                for _ in 0..random.below(3) {
                    let queries = 1 + random.below(20);
                    batch.push((queries, queries + random.below(300)));
                    seeds.push(100 + random.next() % 100);
                }
                batch.push(request);
                seeds.push(seed);
            }
            let together = run(&batch, &seeds);
            for (request, seed) in seeds.iter().enumerate().filter(|(_, seed)| **seed < 100) {
                assert_eq!(together[request], alone[*seed as usize], "request {request} of {batch:?}");
            }
        }
    }
}

fn what_cannot_run_is_refused(client: Client) {
    let arch = Arch::of(&client);
    let device = DeviceProfile::of(&client);
    let [(decode, _), (prefill, _), _] = blueprints(MmaKind::MmaSync);
    let problem = Case { qk: 64, vo: 64, dtype: Type::F16, ..Case::new(PAGED, &MIXED) }.problem();
    let check = |tiled, problem| Blueprint::Tiled(tiled).check(&device, &problem);
    if !Instruction::MmaSync.exists_on(arch) {
        let refusal = check(decode, problem).expect_err("no such instruction");
        let wanted =
            Refusal::Instruction { kernel: "tiled attention", instruction: Instruction::MmaSync, arch };
        assert_eq!(refusal, wanted);
        return;
    }
    for (tiled, name) in [
        (Tiled { keys: 8, ..decode }, "keys"),
        (Tiled { stages: 1, ..decode }, "stages"),
        (Tiled { stages: 64, ..decode }, "stages"),
        (Tiled { q_planes: 64, ..prefill }, "q_planes"),
        (Tiled { q_tiles: 0, ..prefill }, "q_tiles"),
        (Tiled { q_tiles: 8, ..prefill }, "q_tiles"),
    ] {
        match check(tiled, problem) {
            Err(Refusal::Blueprint { setting, .. }) => assert_eq!(setting, name, "{tiled:?}"),
            other => panic!("{tiled:?}: {other:?}"),
        }
    }
}

/// The same keys at the front of a small pool and beyond element 2^31 of a large one.
fn pages_beyond_two_to_the_31(client: Client) {
    let (page_size, heads, dim, pages) = (16, 8, 128, 40);
    let page = page_size * heads * dim;
    let far = (1usize << 31) / page;
    let mut random = Random::new(16);
    let q = random.floats(2 * 32 * dim, Type::BF16, 2.0);
    let keys = [0, 1].map(|_| random.floats(pages * page, Type::BF16, 2.0));
    // In the large pool they lie on both sides of 2^31.
    let run = |first: usize| {
        let [k, v] = keys.each_ref().map(|data| {
            let mut pool = vec![half::bf16::NAN; (first + pages) * page];
            for (to, x) in pool[first * page..].iter_mut().zip(data) {
                *to = half::bf16::from_f64(*x);
            }
            let bytes: &[u8] = bytes_of(&pool);
            let shape = [first + pages, page_size, heads, dim];
            binding(&client.create_from_slice(bytes), &shape, &contiguous(&shape))
        });
        let output = Device::poisoned(&client, Type::BF16, &[2, 32, dim]);
        let indices: Vec<i32> = (0..pages).rev().map(|page| (first + page) as i32).collect();
        let problem = Attention {
            q: Device::new(&client, Type::BF16, &q, &[2, 32, dim]).binding(),
            k,
            v,
            output: output.binding(),
            lse: None,
            batch: Batch::Paged {
                qo_indptr: ints(&client, &[0, 1, 2]),
                kv_indptr: ints(&client, &[0, 15, 40]),
                indices: ints(&client, &indices),
                last_page_len: ints(&client, &[3, 16]),
                layout: KvLayout::Nhd,
            },
            scale: 0.1,
            dtype: Type::BF16.elem(),
            kv_dtype: Type::BF16.elem().into(),
            kv_scales: None,
            inputs: Inputs::default(),
            mask: None,
        };
        let variant = Standard::new(0.1);
        // 15 pages of 16 tokens, the last of 3, and 25.
        let spans = RequestShape::following([(1, 14 * 16 + 3), (1, 25 * 16)], page_size);
        let case = Case {
            q_heads: 32,
            kv_heads: heads,
            qk: dim,
            vo: dim,
            dtype: Type::BF16,
            ..Case::new(PAGED, &[])
        };
        let plan = Plan::new(
            &DeviceProfile::of(&client),
            &case.problem(),
            &variant,
            &spans,
            Choice::Auto,
            Split::Auto,
        );
        let planned = plan.expect("a plan").upload(&client);
        // SAFETY: the lists name pages of the pool, and the plan is of the same lengths.
        unsafe { launch(&client, problem, &variant, planned) }.expect("launches");
        output.read(&client)
    };
    let near = run(0);
    assert!(near.iter().all(|x| x.is_finite()));
    assert_eq!(run(far - pages / 2), near);
}
