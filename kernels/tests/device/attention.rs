use burn_flashinfer_kernels::{
    DeviceProfile, KvLayout, Refusal,
    attention::{Attention, Batch, Blueprint, Choice, Inputs, Plan, Portable, Split, Standard, launch},
};
use cubecl::client::Client;

use crate::case::{Case, Kind, MIXED};
use crate::host::{Device, Random, TYPES, Type, device_tests, ints};

device_tests!(
    every_kind_and_mask,
    every_head_dimension,
    every_group,
    every_type_page_and_layout,
    large_logits_neither_overflow_nor_leak,
    forced_blueprints_run,
    runs_agree_bit_for_bit,
    refuses_what_cannot_run
);

const PAGED: Kind = Kind::Paged(5, KvLayout::Nhd);
fn every_kind_and_mask(client: Client) {
    let mut random = Random::new(1);
    for kind in [Kind::Ragged, PAGED] {
        for causal in [false, true] {
            for window_left in [None, Some(0), Some(9), Some(usize::MAX)] {
                for soft_cap in [None, Some(0.7), Some(30.0)] {
                    let case = Case { causal, window_left, soft_cap, ..Case::new(kind, &MIXED) };
                    case.check(&client, &mut random);
                }
            }
        }
    }
    for (qo_len, kv_len) in [(1, 97), (17, 37), (37, 17), (3, 0), (0, 3), (1, 1)] {
        for causal in [false, true] {
            Case { causal, gap: 3, ..Case::new(Kind::Ragged, &[(qo_len, kv_len)]) }
                .check(&client, &mut random);
        }
    }
}

fn every_head_dimension(client: Client) {
    let mut random = Random::new(2);
    for (qk, vo) in [(40, 40), (64, 64), (80, 80), (128, 128), (256, 256), (192, 128), (7, 5)] {
        Case { qk, vo, causal: true, ..Case::new(PAGED, &[(4, 37), (1, 17)]) }.check(&client, &mut random);
    }
}

fn every_group(client: Client) {
    let mut random = Random::new(3);
    for (q_heads, kv_heads) in [(2, 2), (6, 2), (8, 2), (7, 1), (16, 2), (9, 1)] {
        Case { q_heads, kv_heads, causal: true, ..Case::new(PAGED, &[(4, 37), (1, 17)]) }
            .check(&client, &mut random);
    }
}

fn every_type_page_and_layout(client: Client) {
    let mut random = Random::new(4);
    for dtype in TYPES {
        for page_size in [1, 5, 16] {
            for layout in [KvLayout::Nhd, KvLayout::Hnd] {
                let kind = Kind::Paged(page_size, layout);
                Case { dtype, causal: true, qk: 64, vo: 64, ..Case::new(kind, &MIXED) }
                    .check(&client, &mut random);
            }
        }
    }
}

fn large_logits_neither_overflow_nor_leak(client: Client) {
    let mut random = Random::new(5);
    for spread in [100.0, 1e-4] {
        Case { spread, causal: true, ..Case::new(PAGED, &MIXED) }.check(&client, &mut random);
    }
}

fn forced_blueprints_run(client: Client) {
    // Threads that share a row meet in spin locks: the more threads, the smaller the problem.
    let (some, one) = ([(2, 37), (1, 5)].as_slice(), [(1, 37)].as_slice());
    for (lengths, rows, units, tile, vector) in
        [(some, 1, 1, 64, 4), (some, 7, 1, 16, 1), (some, 1, 4, 16, 2), (one, 1, 32, 64, 1)]
    {
        let choice = Choice::Exactly(Blueprint::Portable(Portable {
            rows,
            units,
            tile,
            qk_vector: vector,
            vo_vector: vector,
        }));
        let case = Case { choice, q_heads: 1, kv_heads: 1, causal: true, ..Case::new(PAGED, lengths) };
        case.check(&client, &mut Random::new(6));
    }
}

fn runs_agree_bit_for_bit(client: Client) {
    let case = Case { dtype: Type::BF16, causal: true, ..Case::new(PAGED, &MIXED) };
    let bits = || case.check(&client, &mut Random::new(7)).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let first = bits();
    for _ in 0..5 {
        assert_eq!(bits(), first);
    }
}

fn refuses_what_cannot_run(client: Client) {
    let tensor = |shape: &[usize]| Device::poisoned(&client, Type::F32, shape).binding();
    let problem = |k: &[usize], output: &[usize]| Attention {
        q: tensor(&[2, 4, 32]),
        k: tensor(k),
        v: tensor(&[5, 2, 32]),
        output: tensor(output),
        lse: None,
        batch: Batch::Ragged { qo_indptr: ints(&client, &[0, 2]), kv_indptr: ints(&client, &[0, 5]) },
        scale: 1.0,
        dtype: Type::F32.elem(),
        kv_dtype: Type::F32.elem().into(),
        kv_scales: None,
        inputs: Inputs::default(),
        mask: None,
    };
    let plan = Case { qk: 32, vo: 32, ..Case::new(Kind::Ragged, &[(2, 5)]) }.plan(&client);
    let run = |k: &[usize], output: &[usize]| {
        // SAFETY: the row pointers are those of `q` and `v`.
        unsafe { launch(&client, problem(k, output), &Standard::new(1.0), plan.upload(&client)) }
    };
    let argument = |result| match result {
        Err(Refusal::Shape { argument, .. }) => argument,
        other => panic!("{other:?}"),
    };
    assert_eq!(argument(run(&[5, 3, 32], &[2, 4, 32])), "k");
    assert_eq!(argument(run(&[5, 2, 32], &[2, 4, 31])), "output");
    let odd = Blueprint::Portable(Portable { rows: 1, units: 4, tile: 16, qk_vector: 3, vo_vector: 1 });
    let device = DeviceProfile::of(&client);
    let case = Case::new(Kind::Ragged, &[(2, 5)]);
    let refusal =
        Plan::new(&device, &case.problem(), &case.variant(), &[], Choice::Exactly(odd), Split::Auto);
    let refusal = refusal.expect_err("3 does not divide 32");
    assert!(refusal.to_string().contains("qk_vector of 3"), "{refusal}");
}
