//! Every bad argument of every operation on tensors: the refusal, word for word, and that nothing was written.

mod attention;
mod bits;
mod moe;
mod rows;
mod sampling;
mod segment_gemm;

use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use burn_flashinfer::{
    AttentionOptions, Indptr, KvLayout, KvPages, PageTable, Positions, Rope, RopeConfig, SlotMapping,
    append_paged_kv, apply_rope, batch_decode_paged, batch_prefill_ragged, fused_add_rms_norm, layer_norm,
    matmul_nt, merge_state, merge_state_in_place, merge_states, rms_norm, silu_and_mul, single_prefill,
    variable_length_merge_states,
};

use crate::devices::{Target, device_tests};
use crate::support::{refused, say};

device_tests!(types, mixed_devices);

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
    type Open = fn() -> Device;
    let others: &[(&str, Open)] = &[
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

fn types(target: Target) {
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
        let d1 = || f64s([8], device);
        refused(rms_norm(d([1, 2, 8]), d1(), 0.0), refusal("rms_norm", "x"));
        refused(
            fused_add_rms_norm(d([1, 2, 8]), d([1, 2, 8]), d1(), 0.0),
            refusal("fused_add_rms_norm", "x"),
        );
        refused(layer_norm(d([1, 2, 8]), d1(), d1(), 0.0), refusal("layer_norm", "x"));
        refused(silu_and_mul(d([1, 2, 8])), refusal("silu_and_mul", "x"));
        refused(matmul_nt(d([1, 2, 8]), f64s([8, 8], device)), refusal("matmul_nt", "x"));
        let s = || zeros([1, 2], device);
        refused(merge_state(d([1, 2, 8]), s(), d([1, 2, 8]), s()), refusal("merge_state", "v_a"));
        refused(
            merge_state_in_place(d([1, 2, 8]), s(), d([1, 2, 8]), s(), None),
            refusal("merge_state_in_place", "v"),
        );
        refused(
            merge_states(f64s([1, 3, 2, 8], device), zeros([1, 3, 2], device)),
            refusal("merge_states", "v"),
        );
        let rows = Indptr::new(&[0, 1], device).expect("valid");
        refused(
            variable_length_merge_states(d([1, 2, 8]), s(), &rows),
            refusal("variable_length_merge_states", "v"),
        );
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
    let (z1, h1) = (|| zeros([8], device), || halves([8], device));
    refused(fused_add_rms_norm(z(shape), h(shape), z1(), 0.0), other("fused_add_rms_norm", "residual"));
    refused(fused_add_rms_norm(z(shape), z(shape), h1(), 0.0), other("fused_add_rms_norm", "weight"));
    refused(layer_norm(z(shape), h1(), h1(), 0.0), other("layer_norm", "gamma"));
    refused(layer_norm(h(shape), z1(), h1(), 0.0), "layer_norm: `beta` is of type F16, expected F32");
    refused(
        layer_norm(h(shape), h1(), z1(), 0.0),
        "layer_norm: `beta` is of type F32, expected F16, as the other arguments",
    );
    refused(matmul_nt(z(shape), halves([8, 8], device)), other("matmul_nt", "weight"));
    let s = || zeros([1, 2], device);
    refused(merge_state(z(shape), s(), h(shape), s()), other("merge_state", "v_b"));
    refused(
        merge_state(z(shape), s(), z(shape), halves([1, 2], device)),
        "merge_state: `s_b` is of type F16, expected F32",
    );
    refused(
        merge_state_in_place(z(shape), s(), h(shape), s(), None),
        other("merge_state_in_place", "v_other"),
    );
    refused(
        merge_state_in_place(z(shape), s(), z(shape), halves([1, 2], device), None),
        "merge_state_in_place: `s_other` is of type F16, expected F32",
    );
    refused(
        merge_states(zeros([1, 3, 2, 8], device), halves([1, 3, 2], device)),
        "merge_states: `s` is of type F16, expected F32",
    );
    let rows = Indptr::new(&[0, 1], device).expect("valid");
    refused(
        variable_length_merge_states(z(shape), halves([1, 2], device), &rows),
        "variable_length_merge_states: `s` is of type F16, expected F32",
    );
    let pool = || zeros([2, 2, 2, 8], device);
    refused(KvPages::new(pool(), halves([2, 2, 2, 8], device), KvLayout::Nhd), other("KvPages::new", "v"));
    let rope = Rope::new(&RopeConfig::new(8), 4, device).expect("valid");
    let positions = Positions::new(&[0], device).expect("valid");
    refused(apply_rope(z(shape), h(shape), &rope, &positions), other("apply_rope", "k"));
    let Paged { pages, table, .. } = Paged::new(device);
    refused(batch_decode_paged(h([2, 4, 8]), &pages, &table, &NO_OPTIONS), {
        "batch_decode_paged: `pages` is of type F32, expected F16, as the other arguments"
    });
}

fn mixed_devices(target: Target) {
    let device = &target.device;
    let Some(other) = foreign(&target) else { return };
    let z = |shape: [usize; 3]| zeros(shape, device);
    let far = |shape: [usize; 3]| zeros(shape, &other);
    let elsewhere = |op: &str, argument: &str| elsewhere(op, argument, &other, device);
    let shape = [1, 2, 8];
    refused(single_prefill(z(shape), far(shape), z(shape), &NO_OPTIONS), elsewhere("single_prefill", "k"));
    refused(single_prefill(z(shape), z(shape), far(shape), &NO_OPTIONS), elsewhere("single_prefill", "v"));
    refused(rms_norm(z(shape), zeros([8], &other), 0.0), elsewhere("rms_norm", "weight"));
    let (near, away) = (|| zeros([8], device), || zeros([8], &other));
    let op = "fused_add_rms_norm";
    refused(fused_add_rms_norm(z(shape), far(shape), near(), 0.0), elsewhere(op, "residual"));
    refused(fused_add_rms_norm(z(shape), z(shape), away(), 0.0), elsewhere(op, "weight"));
    refused(layer_norm(z(shape), away(), near(), 0.0), elsewhere("layer_norm", "gamma"));
    refused(layer_norm(z(shape), near(), away(), 0.0), elsewhere("layer_norm", "beta"));
    refused(matmul_nt(z(shape), zeros([8, 8], &other)), elsewhere("matmul_nt", "weight"));
    let s = || zeros([1, 2], device);
    refused(merge_state(z(shape), zeros([1, 2], &other), z(shape), s()), elsewhere("merge_state", "s_a"));
    refused(merge_state(z(shape), s(), far(shape), s()), elsewhere("merge_state", "v_b"));
    let op = "merge_state_in_place";
    refused(merge_state_in_place(z(shape), s(), far(shape), s(), None), elsewhere(op, "v_other"));
    let mask = Tensor::<1, Bool>::from_data([true], &other);
    refused(merge_state_in_place(z(shape), s(), z(shape), s(), Some(mask)), elsewhere(op, "mask"));
    refused(
        merge_states(zeros([1, 3, 2, 8], device), zeros([1, 3, 2], &other)),
        elsewhere("merge_states", "s"),
    );
    let near_indptr = Indptr::new(&[0, 1], device).expect("valid");
    let far_indptr = Indptr::new(&[0, 1], &other).expect("valid");
    refused(
        variable_length_merge_states(z(shape), s(), &far_indptr),
        elsewhere("variable_length_merge_states", "indptr"),
    );
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
