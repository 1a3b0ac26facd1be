//! Every bad argument of every operation on tensors: the refusal, word for word, and that nothing was written.

use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flashinfer::{
    AttentionOptions, Indptr, KvLayout, KvPages, PageTable, Positions, Rope, RopeConfig, SlotMapping,
    append_paged_kv, apply_rope, batch_decode_paged, batch_prefill_paged, batch_prefill_ragged, matmul_nt,
    merge_state, rms_norm, single_decode, single_prefill,
};

use crate::support::{Target, bits, devices, refused, say};

fn zeros<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::zeros(shape, (device, DType::F32))
}

fn f64s<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let data = TensorData::new(vec![0.0_f64; shape.iter().product()], shape);
    Tensor::from_data(data, (device, DType::F64))
}

fn halves<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::zeros(shape, (device, DType::F16))
}

/// Another device than that of `target`, if the build has one.
fn foreign(target: &Target) -> Option<Device> {
    let others: &[(&str, fn() -> Device)] = &[
        #[cfg(feature = "flex")]
        ("flex", Device::flex),
        #[cfg(feature = "cpu")]
        ("cpu", Device::cpu),
    ];
    let other = others.iter().find(|(name, _)| *name != target.name).map(|(_, device)| device());
    if other.is_none() {
        say(format!("{}: the build has no second device to mix it with", target.name));
    }
    other
}

/// What is wrong about an argument on another device.
fn elsewhere(op: &str, argument: &str, got: &Device, expected: &Device) -> String {
    format!("{op}: `{argument}` is on {got:?}, expected {expected:?}, as the other arguments")
}

const NO_OPTIONS: AttentionOptions = AttentionOptions::new();

/// What the three operations on contiguous keys have in common, seen through `single_prefill`.
#[test]
fn contiguous_shapes() {
    for target in devices() {
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
}

/// Axes without any extent, where a backend can make such a tensor at all.
#[test]
fn empty_axes() {
    for target in devices() {
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
}

#[test]
fn options() {
    for target in devices() {
        let z = |shape: [usize; 3]| zeros(shape, &target.device);
        for (options, message) in [
            (NO_OPTIONS.soft_cap(0.0), "single_prefill: `soft_cap` is 0, expected a finite number above 0"),
            (
                NO_OPTIONS.soft_cap(-30.0),
                "single_prefill: `soft_cap` is -30, expected a finite number above 0",
            ),
            (
                NO_OPTIONS.soft_cap(f32::NAN),
                "single_prefill: `soft_cap` is NaN, expected a finite number above 0",
            ),
            (
                NO_OPTIONS.soft_cap(f32::INFINITY),
                "single_prefill: `soft_cap` is inf, expected a finite number above 0",
            ),
            (NO_OPTIONS.scale(f32::NAN), "single_prefill: `scale` is NaN, expected a finite number"),
            (
                NO_OPTIONS.scale(f32::NEG_INFINITY),
                "single_prefill: `scale` is -inf, expected a finite number",
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
            single_decode(
                zeros([4, 8], &target.device),
                z([0, 2, 8]),
                z([0, 2, 8]),
                &NO_OPTIONS.causal(true),
            ),
            "single_decode: `causal` is true with 1 queries and 0 keys in request 0, expected at least as many keys as \
             queries",
        );
    }
}

#[test]
fn types() {
    for target in devices() {
        let device = &target.device;
        let z = |shape: [usize; 3]| zeros(shape, device);
        if target.device.supports_dtype(DType::F64) {
            let refusal = |op: &str, argument: &str| {
                format!("{op}: `{argument}` is of type F64, expected F32, F16 or BF16")
            };
            let d = |shape: [usize; 3]| f64s(shape, device);
            refused(
                single_prefill(d([1, 2, 8]), d([1, 2, 8]), d([1, 2, 8]), &NO_OPTIONS),
                refusal("single_prefill", "q"),
            );
            refused(rms_norm(d([1, 2, 8]), f64s([8], device), 0.0), refusal("rms_norm", "x"));
            refused(matmul_nt(d([1, 2, 8]), f64s([8, 8], device)), refusal("matmul_nt", "x"));
            let s = || zeros([1, 2], device);
            refused(merge_state(d([1, 2, 8]), s(), d([1, 2, 8]), s()), refusal("merge_state", "v_a"));
            let pool = || f64s([2, 2, 2, 8], device);
            refused(KvPages::new(pool(), pool(), KvLayout::Nhd), refusal("KvPages::new", "k"));
            refused(
                merge_state(z([1, 2, 8]), f64s([1, 2], device), z([1, 2, 8]), s()),
                "merge_state: `s_a` is of type F64, expected F32",
            );
        }
        let h = |shape: [usize; 3]| halves(shape, device);
        let other = |op: &str, argument: &str| {
            format!("{op}: `{argument}` is of type F16, expected F32, as the other arguments")
        };
        let shape = [1, 2, 8];
        refused(single_prefill(z(shape), h(shape), z(shape), &NO_OPTIONS), other("single_prefill", "k"));
        refused(single_prefill(z(shape), z(shape), h(shape), &NO_OPTIONS), other("single_prefill", "v"));
        refused(rms_norm(z(shape), halves([8], device), 0.0), other("rms_norm", "weight"));
        refused(matmul_nt(z(shape), halves([8, 8], device)), other("matmul_nt", "weight"));
        let s = || zeros([1, 2], device);
        refused(merge_state(z(shape), s(), h(shape), s()), other("merge_state", "v_b"));
        refused(
            merge_state(z(shape), s(), z(shape), halves([1, 2], device)),
            "merge_state: `s_b` is of type F16, expected F32",
        );
        let pool = || zeros([2, 2, 2, 8], device);
        refused(
            KvPages::new(pool(), halves([2, 2, 2, 8], device), KvLayout::Nhd),
            other("KvPages::new", "v"),
        );
        let rope = Rope::new(&RopeConfig::new(8), 4, device).expect("valid");
        let positions = Positions::new(&[0], device).expect("valid");
        refused(apply_rope(z(shape), h(shape), &rope, &positions), other("apply_rope", "k"));
        let Paged { pages, table, .. } = Paged::new(device);
        refused(batch_decode_paged(h([2, 4, 8]), &pages, &table, &NO_OPTIONS), {
            "batch_decode_paged: `pages` is of type F32, expected F16, as the other arguments"
        });
    }
}

#[test]
fn mixed_devices() {
    for target in devices() {
        let device = &target.device;
        let Some(other) = foreign(&target) else { continue };
        let z = |shape: [usize; 3]| zeros(shape, device);
        let far = |shape: [usize; 3]| zeros(shape, &other);
        let elsewhere = |op: &str, argument: &str| elsewhere(op, argument, &other, device);
        let shape = [1, 2, 8];
        refused(
            single_prefill(z(shape), far(shape), z(shape), &NO_OPTIONS),
            elsewhere("single_prefill", "k"),
        );
        refused(
            single_prefill(z(shape), z(shape), far(shape), &NO_OPTIONS),
            elsewhere("single_prefill", "v"),
        );
        refused(rms_norm(z(shape), zeros([8], &other), 0.0), elsewhere("rms_norm", "weight"));
        refused(matmul_nt(z(shape), zeros([8, 8], &other)), elsewhere("matmul_nt", "weight"));
        let s = || zeros([1, 2], device);
        refused(merge_state(z(shape), zeros([1, 2], &other), z(shape), s()), elsewhere("merge_state", "s_a"));
        refused(merge_state(z(shape), s(), far(shape), s()), elsewhere("merge_state", "v_b"));
        let near_indptr = Indptr::new(&[0, 1], device).expect("valid");
        let far_indptr = Indptr::new(&[0, 1], &other).expect("valid");
        for (qo, kv, argument) in
            [(&far_indptr, &near_indptr, "qo_indptr"), (&near_indptr, &far_indptr, "kv_indptr")]
        {
            refused(
                batch_prefill_ragged(z(shape), z(shape), z(shape), qo, kv, &NO_OPTIONS),
                elsewhere("batch_prefill_ragged", argument),
            );
        }
        let rope = |device| Rope::new(&RopeConfig::new(8), 4, device).expect("valid");
        let positions = |device| Positions::new(&[0], device).expect("valid");
        refused(
            apply_rope(z(shape), z(shape), &rope(&other), &positions(device)),
            elsewhere("apply_rope", "rope"),
        );
        refused(
            apply_rope(z(shape), z(shape), &rope(device), &positions(&other)),
            elsewhere("apply_rope", "positions"),
        );
        let pool = |device| zeros([2, 2, 2, 8], device);
        refused(KvPages::new(pool(device), pool(&other), KvLayout::Nhd), elsewhere("KvPages::new", "v"));
        let near = Paged::new(device);
        let far = Paged::new(&other);
        let q = || z([2, 4, 8]);
        refused(
            batch_decode_paged(q(), &far.pages, &near.table, &NO_OPTIONS),
            elsewhere("batch_decode_paged", "pages"),
        );
        refused(
            batch_decode_paged(q(), &near.pages, &far.table, &NO_OPTIONS),
            elsewhere("batch_decode_paged", "table"),
        );
        let mut pages = near.pages;
        refused(
            append_paged_kv(&mut pages, z([1, 2, 8]), z([1, 2, 8]), &far.slots),
            elsewhere("append_paged_kv", "slots"),
        );
        refused(
            append_paged_kv(&mut pages, zeros([1, 2, 8], &other), z([1, 2, 8]), &near.slots),
            elsewhere("append_paged_kv", "k"),
        );
    }
}

#[test]
fn ragged_rows() {
    for target in devices() {
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
}

/// A pool of 6 pages of 4 tokens, a table of two requests with 7 and 3 tokens, and the slot of one token.
struct Paged {
    pages: KvPages,
    table: PageTable,
    slots: SlotMapping,
}

impl Paged {
    fn new(device: &Device) -> Self {
        let pool = || Tensor::ones([6, 4, 2, 8], (device, DType::F32));
        let pages = KvPages::new(pool(), pool(), KvLayout::Nhd).expect("pages that fit");
        let table = PageTable::new(&[0, 2, 3], &[5, 0, 2], &[3, 3], 4, 6, device).expect("a valid table");
        let slots = SlotMapping::new(&table, &[Some(0)], &[0]).expect("a slot");
        Self { pages, table, slots }
    }
}

#[test]
fn paged_attention() {
    for target in devices() {
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
        prefill([5, 4, 8], &[0, 2, 5], NO_OPTIONS.causal(true)).expect("it fits");
    }
}

#[test]
fn pages() {
    for target in devices() {
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
}

#[test]
fn append() {
    for target in devices() {
        let device = &target.device;
        let z = |shape: [usize; 3]| zeros(shape, device);
        let Paged { mut pages, slots, .. } = Paged::new(device);
        let before = [bits(pages.k().clone()), bits(pages.v().clone())];
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
        assert_eq!([bits(pages.k().clone()), bits(pages.v().clone())], before, "a refused call wrote");
    }
}

#[test]
fn merge() {
    for target in devices() {
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
    }
}

#[test]
fn rope() {
    for target in devices() {
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
}

#[test]
fn norm() {
    for target in devices() {
        let device = &target.device;
        let run = |epsilon| rms_norm(zeros([2, 8], device), zeros([8], device), epsilon);
        refused(run(-1e-6), "rms_norm: `epsilon` is -0.000001, expected a finite number, at least 0");
        refused(run(f32::NAN), "rms_norm: `epsilon` is NaN, expected a finite number, at least 0");
        refused(run(f32::INFINITY), "rms_norm: `epsilon` is inf, expected a finite number, at least 0");
        refused(
            rms_norm(zeros([2, 8], device), zeros([2], device), 1e-6),
            "rms_norm: `weight` has shape [2], expected [8], as the last axis of `x`",
        );
    }
}

#[test]
fn linear() {
    for target in devices() {
        refused(
            matmul_nt(zeros([2, 3, 8], &target.device), zeros([8, 5], &target.device)),
            "matmul_nt: `x` has shape [2, 3, 8], expected […, 5], as `weight` [8, 5]",
        );
        refused(
            matmul_nt(zeros([2, 8], &target.device), zeros([0, 8], &target.device)),
            "matmul_nt: `weight` has shape [0, 8], expected no empty axis",
        );
    }
}
