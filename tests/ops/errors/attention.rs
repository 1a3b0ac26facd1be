//! Bad arguments of attention.

use burn_flashinfer::{
    Indptr, KvLayout, PageTable, batch_decode_paged, batch_prefill_paged, batch_prefill_ragged, matmul_nt,
    rms_norm, single_decode, single_prefill,
};

use super::{NO_OPTIONS, Paged, zeros};
use crate::devices::{Target, device_tests};
use crate::support::refused;

device_tests!(contiguous_shapes, empty_axes, options, ragged_rows, paged_attention);

/// What the three operations on contiguous keys have in common, seen through `single_prefill`.
fn contiguous_shapes(target: Target) {
    let z = |shape: [usize; 3]| zeros(shape, &target.device);
    let run = |q, k, v| single_prefill(z(q), z(k), z(v), &NO_OPTIONS);
    for (q, k, v, message) in [
        (
            [3, 4, 8],
            [5, 2, 8],
            [6, 2, 8],
            "single_prefill: `v` has shape [6, 2, 8], expected [5, 2, head_dim], as `k`",
        ),
        (
            [3, 4, 8],
            [5, 2, 8],
            [5, 4, 8],
            "single_prefill: `v` has shape [5, 4, 8], expected [5, 2, head_dim], as `k`",
        ),
        (
            [3, 4, 8],
            [5, 2, 16],
            [5, 2, 8],
            "single_prefill: `k` has shape [5, 2, 16], expected a head dimension of 8, as `q`",
        ),
        (
            [3, 4, 8],
            [5, 3, 8],
            [5, 3, 8],
            "single_prefill: `k` has shape [5, 3, 8], expected a number of heads that divides the 4 heads of `q`, not 3",
        ),
        (
            [3, 2, 8],
            [5, 4, 8],
            [5, 4, 8],
            "single_prefill: `k` has shape [5, 4, 8], expected a number of heads that divides the 2 heads of `q`, not 4",
        ),
    ] {
        refused(run(q, k, v), message);
    }
    // In the other layout the shapes are named as the operation sees them: by token.
    refused(
        single_prefill(z([3, 4, 8]), z([3, 5, 8]), z([3, 5, 8]), &NO_OPTIONS.kv_layout(KvLayout::Hnd)),
        "single_prefill: `k` has shape [5, 3, 8], expected a number of heads that divides the 4 heads of `q`, not 3",
    );
    refused(
        single_decode(zeros([4, 8], &target.device), z([5, 2, 7]), z([5, 2, 8]), &NO_OPTIONS),
        "single_decode: `k` has shape [5, 2, 7], expected a head dimension of 8, as `q`",
    );
}

/// Axes without any extent, where a backend can make such a tensor at all.
fn empty_axes(target: Target) {
    let z = |shape: [usize; 3]| zeros(shape, &target.device);
    refused(
        single_prefill(z([3, 0, 8]), z([5, 2, 8]), z([5, 2, 8]), &NO_OPTIONS),
        "single_prefill: `q` has shape [3, 0, 8], expected [tokens, q_heads, head_dim] with at least one head",
    );
    refused(
        single_prefill(z([3, 4, 8]), z([5, 0, 8]), z([5, 0, 8]), &NO_OPTIONS),
        "single_prefill: `k` has shape [5, 0, 8], expected a number of heads that divides the 4 heads of `q`, not 0",
    );
    refused(
        single_prefill(z([3, 4, 8]), z([5, 2, 8]), z([5, 2, 0]), &NO_OPTIONS),
        "single_prefill: `v` has shape [5, 2, 0], expected [5, 2, head_dim], as `k`",
    );
    refused(
        matmul_nt(zeros([2, 0], &target.device), zeros([3, 0], &target.device)),
        "matmul_nt: `weight` has shape [3, 0], expected no empty axis",
    );
    refused(
        rms_norm(zeros([2, 0], &target.device), zeros([0], &target.device), 1e-6),
        "rms_norm: `x` has shape [2, 0], expected a last axis that is not empty",
    );
}

fn options(target: Target) {
    let z = |shape: [usize; 3]| zeros(shape, &target.device);
    for (options, message) in [
        (NO_OPTIONS.soft_cap(0.0), "single_prefill: `soft_cap` is 0, expected a finite number above 0"),
        (NO_OPTIONS.soft_cap(-30.0), "single_prefill: `soft_cap` is -30, expected a finite number above 0"),
        (
            NO_OPTIONS.soft_cap(f32::NAN),
            "single_prefill: `soft_cap` is NaN, expected a finite number above 0",
        ),
        (
            NO_OPTIONS.soft_cap(f32::INFINITY),
            "single_prefill: `soft_cap` is inf, expected a finite number above 0",
        ),
        (NO_OPTIONS.scale(f32::NAN), "single_prefill: `scale` is NaN, expected a finite number"),
        (NO_OPTIONS.scale(f32::NEG_INFINITY), "single_prefill: `scale` is -inf, expected a finite number"),
        (
            NO_OPTIONS.skip_softmax(0.0),
            "single_prefill: `skip_softmax` is 0, expected a number above 0 and below 1",
        ),
        (
            NO_OPTIONS.skip_softmax(1.0),
            "single_prefill: `skip_softmax` is 1, expected a number above 0 and below 1",
        ),
        (
            NO_OPTIONS.skip_softmax(f32::NAN),
            "single_prefill: `skip_softmax` is NaN, expected a number above 0 and below 1",
        ),
        (
            NO_OPTIONS.causal(true),
            "single_prefill: `causal` is true with 6 queries and 5 keys in request 0, expected at least as many keys \
             as queries",
        ),
    ] {
        refused(single_prefill(z([6, 4, 8]), z([5, 2, 8]), z([5, 2, 8]), &options), message);
    }
    refused(
        single_decode(zeros([4, 8], &target.device), z([0, 2, 8]), z([0, 2, 8]), &NO_OPTIONS.causal(true)),
        "single_decode: `causal` is true with 1 queries and 0 keys in request 0, expected at least as many keys as \
         queries",
    );
}

fn ragged_rows(target: Target) {
    let device = &target.device;
    let z = |shape: [usize; 3]| zeros(shape, device);
    let run = |qo: &[usize], kv: &[usize], options| {
        let [qo, kv] = [qo, kv].map(|indptr| Indptr::new(indptr, device).expect("a row pointer"));
        batch_prefill_ragged(z([6, 4, 8]), z([9, 2, 8]), z([9, 2, 8]), &qo, &kv, &options)
    };
    refused(
        run(&[0, 5], &[0, 9], NO_OPTIONS),
        "batch_prefill_ragged: `qo_indptr[1]` is 5, expected 6, the tokens of `q`",
    );
    refused(
        run(&[0, 2, 6], &[0, 2, 10], NO_OPTIONS),
        "batch_prefill_ragged: `kv_indptr[2]` is 10, expected 9, the tokens of `k`",
    );
    refused(
        run(&[0, 2, 6], &[0, 9], NO_OPTIONS),
        "batch_prefill_ragged: `kv_indptr` is of 1 requests, expected of 2 requests, as `qo_indptr`",
    );
    refused(
        run(&[0, 2, 6], &[0, 6, 9], NO_OPTIONS.causal(true)),
        "batch_prefill_ragged: `causal` is true with 4 queries and 3 keys in request 1, expected at least as many keys \
         as queries",
    );
}

fn paged_attention(target: Target) {
    let device = &target.device;
    let z = |shape: [usize; 3]| zeros(shape, device);
    let Paged { pages, table, .. } = Paged::new(device);
    let decode = |q, table: &PageTable, options| batch_decode_paged(z(q), &pages, table, &options);
    let prefill = |q, qo: &[usize], options| {
        let qo = Indptr::new(qo, device).expect("a row pointer");
        batch_prefill_paged(z(q), &qo, &pages, &table, &options)
    };
    let good = [2, 4, 8];
    refused(
        decode(good, &table, NO_OPTIONS.kv_layout(KvLayout::Hnd)),
        "batch_decode_paged: `kv_layout` is Hnd, expected Nhd, as the pages (or leave it unset)",
    );
    refused(
        decode([2, 4, 16], &table, NO_OPTIONS),
        "batch_decode_paged: `pages` has shape [6, 4, 2, 8], expected a head dimension of 16, as `q`",
    );
    refused(
        decode([2, 5, 8], &table, NO_OPTIONS),
        "batch_decode_paged: `pages` has shape [6, 4, 2, 8], expected a number of heads that divides the 5 heads of \
         `q`, not 2",
    );
    refused(
        decode([3, 4, 8], &table, NO_OPTIONS),
        "batch_decode_paged: `qo_indptr[2]` is 2, expected 3, the tokens of `q`",
    );
    refused(
        decode(good, &table, NO_OPTIONS.soft_cap(-1.0)),
        "batch_decode_paged: `soft_cap` is -1, expected a finite number above 0",
    );
    let other = PageTable::new(&[0, 1], &[0], &[1], 8, 6, device).expect("a valid table");
    refused(
        decode([1, 4, 8], &other, NO_OPTIONS),
        "batch_decode_paged: `table` is of pages of 8 tokens, expected pages of 4 tokens, as `pages`",
    );
    let larger = PageTable::new(&[0, 1], &[6], &[1], 4, 7, device).expect("a valid table");
    refused(
        decode([1, 4, 8], &larger, NO_OPTIONS),
        "batch_decode_paged: `table` is naming page 6, expected a page of the pool, below 6",
    );
    refused(
        prefill([4, 4, 8], &[0, 4], NO_OPTIONS),
        "batch_prefill_paged: `qo_indptr` is of 1 requests, expected of 2 requests, as `table`",
    );
    refused(
        prefill([4, 4, 8], &[0, 1, 5], NO_OPTIONS),
        "batch_prefill_paged: `qo_indptr[2]` is 5, expected 4, the tokens of `q`",
    );
    refused(
        prefill([5, 4, 8], &[0, 1, 5], NO_OPTIONS.causal(true)),
        "batch_prefill_paged: `causal` is true with 4 queries and 3 keys in request 1, expected at least as many keys \
         as queries",
    );
    // A row pointer that does not fall out of step, with the same arguments, is accepted.
    let _ = prefill([5, 4, 8], &[0, 2, 5], NO_OPTIONS.causal(true)).expect("it fits");
}
