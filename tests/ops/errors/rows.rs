//! Bad arguments of page pools and of the operations that go row by row.

use burn::tensor::{Bool, DType, Tensor};
use burn_flashinfer::{
    Activation, Indptr, KvLayout, KvPages, LinearOptions, PageTable, Positions, Rope, RopeConfig,
    SlotMapping, append_paged_kv, apply_rope, fused_add_rms_norm, gelu_and_mul, gelu_tanh_and_mul,
    gemma_fused_add_rms_norm, gemma_rms_norm, layer_norm, matmul_nt, merge_state, merge_state_in_place,
    merge_states, rms_norm, silu_and_mul, variable_length_merge_states,
};

use super::{Paged, halves, zeros};
use crate::devices::{Target, device_tests};
use crate::support::{bits, refused};

device_tests!(pages, append, merge, merge_many, rope, norm, activation, linear);

fn pages(target: Target) {
    let z = |shape: [usize; 4]| zeros(shape, &target.device);
    refused(
        KvPages::new(z([2, 4, 2, 8]), z([3, 4, 2, 8]), KvLayout::Nhd),
        "KvPages::new: `v` has shape [3, 4, 2, 8], expected [2, 4, 2, head_dim], as `k`",
    );
    refused(
        KvPages::new(z([2, 4, 2, 8]), z([2, 2, 4, 8]), KvLayout::Nhd),
        "KvPages::new: `v` has shape [2, 2, 4, 8], expected [2, 4, 2, head_dim], as `k`",
    );
    refused(
        KvPages::new(z([2, 0, 2, 8]), z([2, 0, 2, 8]), KvLayout::Nhd),
        "KvPages::new: `k` has shape [2, 0, 2, 8], expected no empty axis",
    );
}

fn append(target: Target) {
    let device = &target.device;
    let z = |shape: [usize; 3]| zeros(shape, device);
    let Paged { mut pages, slots, .. } = Paged::new(device);
    let before = [bits(pages.k().expect("numbers").clone()), bits(pages.v().expect("numbers").clone())];
    let good = [1, 2, 8];
    for (k, v, argument, shape) in [
        ([2, 2, 8], good, "k", "[2, 2, 8]"),
        (good, [1, 2, 4], "v", "[1, 2, 4]"),
        (good, [1, 1, 8], "v", "[1, 1, 8]"),
    ] {
        refused(
            append_paged_kv(&mut pages, z(k), z(v), &slots),
            format!(
                "append_paged_kv: `{argument}` has shape {shape}, expected [1, 2, 8], as `slots` and `pages` have it"
            ),
        );
    }
    refused(
        append_paged_kv(&mut pages, z(good), halves(good, device), &slots),
        "append_paged_kv: `v` is of type F16, expected F32, as the other arguments",
    );
    let table = PageTable::new(&[0, 1], &[0], &[1], 8, 6, device).expect("a valid table");
    let other = SlotMapping::new(&table, &[Some(0)], &[0]).expect("a slot");
    refused(
        append_paged_kv(&mut pages, z(good), z(good), &other),
        "append_paged_kv: `slots` is of pages of 8 tokens, expected pages of 4 tokens, as `pages`",
    );
    let table = PageTable::new(&[0, 1], &[6], &[1], 4, 7, device).expect("a valid table");
    let other = SlotMapping::new(&table, &[Some(0)], &[0]).expect("a slot");
    refused(
        append_paged_kv(&mut pages, z(good), z(good), &other),
        "append_paged_kv: `slots` is naming page 6, expected a page of the pool, below 6",
    );
    assert_eq!(
        [bits(pages.k().expect("numbers").clone()), bits(pages.v().expect("numbers").clone())],
        before,
        "a refused call wrote"
    );
}

fn merge(target: Target) {
    let z = |shape: [usize; 3]| zeros(shape, &target.device);
    let s = |shape: [usize; 2]| zeros(shape, &target.device);
    refused(
        merge_state(z([2, 3, 8]), s([2, 3]), z([2, 3, 4]), s([2, 3])),
        "merge_state: `v_b` has shape [2, 3, 4], expected [2, 3, 8], as `v_a`",
    );
    refused(
        merge_state(z([2, 3, 8]), s([3, 2]), z([2, 3, 8]), s([2, 3])),
        "merge_state: `s_a` has shape [3, 2], expected [2, 3], as `v_a`",
    );
    refused(
        merge_state(z([2, 3, 8]), s([2, 3]), z([2, 3, 8]), s([2, 1])),
        "merge_state: `s_b` has shape [2, 1], expected [2, 3], as `v_a`",
    );
    refused(
        merge_state(z([2, 3, 0]), s([2, 3]), z([2, 3, 0]), s([2, 3])),
        "merge_state: `v_a` has shape [2, 3, 0], expected a last axis that is not empty",
    );
    let into = |v_other, s_other, mask: Option<Tensor<1, Bool>>| {
        merge_state_in_place(z([2, 3, 8]), s([2, 3]), z(v_other), s(s_other), mask)
    };
    refused(
        into([3, 3, 8], [2, 3], None),
        "merge_state_in_place: `v_other` has shape [3, 3, 8], expected [2, 3, 8], as `v`",
    );
    refused(
        into([2, 3, 8], [3, 3], None),
        "merge_state_in_place: `s_other` has shape [3, 3], expected [2, 3], as `v`",
    );
    refused(
        into([2, 3, 8], [2, 3], Some(Tensor::from_data([true; 3], &target.device))),
        "merge_state_in_place: `mask` has shape [3], expected [2], the tokens of `v`",
    );
}

fn merge_many(target: Target) {
    let device = &target.device;
    refused(
        merge_states(zeros([2, 5, 3, 8], device), zeros([2, 3, 5], device)),
        "merge_states: `s` has shape [2, 3, 5], expected [2, 5, 3], as `v`",
    );
    refused(
        merge_states(zeros([2, 5, 3, 0], device), zeros([2, 5, 3], device)),
        "merge_states: `v` has shape [2, 5, 3, 0], expected a last axis that is not empty",
    );
    let rows = Indptr::new(&[0, 2, 4], device).expect("valid");
    refused(
        variable_length_merge_states(zeros([5, 3, 8], device), zeros([5, 3], device), &rows),
        "variable_length_merge_states: `indptr[2]` is 4, expected 5, the rows of `v`",
    );
    refused(
        variable_length_merge_states(zeros([4, 3, 8], device), zeros([3, 3], device), &rows),
        "variable_length_merge_states: `s` has shape [3, 3], expected [4, 3], as `v`",
    );
}

fn rope(target: Target) {
    let device = &target.device;
    let z = |shape: [usize; 3]| zeros(shape, device);
    let rope = Rope::new(&RopeConfig::new(8), 16, device).expect("valid");
    let positions = |at: &[usize]| Positions::new(at, device).expect("valid");
    for (q, k, at, message) in [
        (
            [2, 4, 8],
            [3, 2, 8],
            &[0, 1][..],
            "apply_rope: `k` has shape [3, 2, 8], expected [2, kv_heads, 8], as `q`",
        ),
        (
            [2, 4, 8],
            [2, 2, 16],
            &[0, 1],
            "apply_rope: `k` has shape [2, 2, 16], expected [2, kv_heads, 8], as `q`",
        ),
        (
            [2, 4, 6],
            [2, 2, 6],
            &[0, 1],
            "apply_rope: `q` has shape [2, 4, 6], expected a head dimension of at least 8, as `rope` rotates",
        ),
        (
            [2, 4, 8],
            [2, 2, 8],
            &[0, 1, 2],
            "apply_rope: `positions` is of length 3, expected one for each of 2 tokens",
        ),
        (
            [2, 4, 8],
            [2, 2, 8],
            &[16, 0],
            "apply_rope: `positions` is up to 16, expected below 16, the positions of `rope`",
        ),
    ] {
        refused(apply_rope(z(q), z(k), &rope, &positions(at)), message);
    }
}

fn norm(target: Target) {
    let device = &target.device;
    let (x, w) = (|| zeros([2, 8], device), || zeros([8], device));
    for (epsilon, got) in [(-1e-6, "-0.000001"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let message = |op: &str| format!("{op}: `epsilon` is {got}, expected a finite number, at least 0");
        refused(rms_norm(x(), w(), epsilon), message("rms_norm"));
        refused(gemma_rms_norm(x(), w(), epsilon), message("gemma_rms_norm"));
        refused(fused_add_rms_norm(x(), x(), w(), epsilon), message("fused_add_rms_norm"));
        refused(gemma_fused_add_rms_norm(x(), x(), w(), epsilon), message("gemma_fused_add_rms_norm"));
        refused(layer_norm(x(), w(), w(), epsilon), message("layer_norm"));
    }
    let short = || zeros([2], device);
    let message = |op: &str, argument: &str| {
        format!("{op}: `{argument}` has shape [2], expected [8], as the last axis of `x`")
    };
    refused(rms_norm(x(), short(), 1e-6), message("rms_norm", "weight"));
    refused(gemma_rms_norm(x(), short(), 1e-6), message("gemma_rms_norm", "weight"));
    refused(fused_add_rms_norm(x(), x(), short(), 1e-6), message("fused_add_rms_norm", "weight"));
    refused(layer_norm(x(), short(), w(), 1e-6), message("layer_norm", "gamma"));
    refused(layer_norm(x(), w(), short(), 1e-6), message("layer_norm", "beta"));
    refused(
        fused_add_rms_norm(x(), zeros([8, 2], device), w(), 1e-6),
        "fused_add_rms_norm: `residual` has shape [8, 2], expected [2, 8], as `x`",
    );
    refused(
        layer_norm(zeros([2, 0], device), zeros([0], device), zeros([0], device), 1e-6),
        "layer_norm: `x` has shape [2, 0], expected a last axis that is not empty",
    );
}

fn activation(target: Target) {
    let x = || zeros([2, 3, 7], &target.device);
    let message = |op: &str| format!("{op}: `x` has shape [2, 3, 7], expected an even last axis");
    refused(silu_and_mul(x()), message("silu_and_mul"));
    refused(gelu_and_mul(x()), message("gelu_and_mul"));
    refused(gelu_tanh_and_mul(x()), message("gelu_tanh_and_mul"));
}

fn linear(target: Target) {
    refused(
        matmul_nt(zeros([2, 3, 8], &target.device), zeros([8, 5], &target.device)),
        "matmul_nt: `x` has shape [2, 3, 8], expected […, 5], as `weight` [8, 5]",
    );
    refused(
        matmul_nt(zeros([2, 8], &target.device), zeros([0, 8], &target.device)),
        "matmul_nt: `weight` has shape [0, 8], expected no empty axis",
    );
    let bad = |weight: [usize; 2], epilogue: LinearOptions<2>, message: &str| {
        let weight = zeros(weight, &target.device);
        refused(burn_flashinfer::linear(zeros([2, 8], &target.device), weight, epilogue), message);
    };
    bad(
        [5, 8],
        LinearOptions::new().gate(Activation::Silu),
        "linear: `weight` has shape [5, 8], expected as many gates as ups",
    );
    bad(
        [6, 8],
        LinearOptions::new().bias(zeros([3], &target.device)).gate(Activation::Silu),
        "linear: `bias` has shape [3], expected [6], as rows of `weight`",
    );
    bad(
        [6, 8],
        LinearOptions::new().residual(zeros([2, 6], &target.device)).gate(Activation::Silu),
        "linear: `residual` has shape [2, 6], expected [2, 3], as the output",
    );
    for (cap, got) in [(0.0, "0"), (-1.0, "-1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let message = format!("linear: `soft_cap` is {got}, expected a positive, finite number");
        bad([6, 8], LinearOptions::new().soft_cap(cap), &message);
    }
    bad(
        [6, 8],
        LinearOptions::new().output_dtype(DType::F16),
        "linear: `output_dtype` is of type F16, expected F32, as `x`, or F32",
    );
}
