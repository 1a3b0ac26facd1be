//! Autodiff devices: inference runs as on the device inside, a gradient is refused.

use burn::tensor::{Bool, DType, Device, Distribution, Tensor};
use burn_flashinfer::{
    AttentionOptions, Indptr, KvLayout, KvPages, PageTable, Positions, QuantizedWeight, Rope, RopeConfig,
    SlotMapping, VariantInputs, WeightFormat, WeightScales, append_paged_kv, apply_rope, batch_decode_paged,
    batch_prefill_paged, batch_prefill_ragged, fused_add_rms_norm, gelu_and_mul, gelu_tanh_and_mul,
    gemma_fused_add_rms_norm, gemma_rms_norm, layer_norm, matmul_nt, matmul_nt_quantized, merge_state,
    merge_state_in_place, merge_states, rms_norm, silu_and_mul, single_decode, single_prefill,
    variable_length_merge_states,
};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, bits, refused};

device_tests!(
    inference_passes_through,
    gradients_are_refused,
    mixed_with_the_device_inside,
    checkpointing_strategies_are_kept
);

/// Inputs of every operation on a device.
struct Inputs {
    x: Tensor<3>,
    s: Tensor<2>,
    weight: Tensor<1>,
    matrix: Tensor<2>,
    codes: QuantizedWeight,
    k: Tensor<3>,
    pool: Tensor<4>,
    rope: Rope,
    positions: Positions,
    qo: Indptr,
    table: PageTable,
    slots: SlotMapping,
}

impl Inputs {
    fn new(device: &Device, dtype: DType) -> Self {
        let rng = &mut Rng::new("autodiff");
        let table = PageTable::new(&[0, 2, 3], &[3, 0, 2], &[2, 4], 4, 4, device).expect("valid");
        let format = WeightFormat::E4m3(WeightScales::PerChannel);
        let matrix = Host::random([5, 8], DType::F32, rng).tensor(device);
        Self {
            codes: QuantizedWeight::quantize(matrix, format).expect("it fits"),
            x: Host::random([3, 4, 8], dtype, rng).tensor(device),
            s: Host::random([3, 4], DType::F32, rng).tensor(device),
            weight: Host::random([8], dtype, rng).tensor(device),
            matrix: Host::random([5, 8], dtype, rng).tensor(device),
            k: Host::random([3, 2, 8], dtype, rng).tensor(device),
            pool: Host::random([4, 4, 2, 8], dtype, rng).tensor(device),
            rope: Rope::new(&RopeConfig::new(8), 16, device).expect("valid"),
            positions: Positions::new(&[4, 0, 9], device).expect("valid"),
            qo: Indptr::new(&[0, 2, 3], device).expect("valid"),
            slots: SlotMapping::new(&table, &[Some(0), None, Some(1)], &[5, 0, 0]).expect("valid"),
            table,
        }
    }

    /// The bits of what every operation returns.
    fn run(&self, device: &Device) -> Vec<Vec<u32>> {
        let options = AttentionOptions::new().return_lse(true);
        let (x, k) = (|| self.x.clone(), || self.k.clone());
        let mut results = Vec::new();
        let mut keep = |three: Tensor<3>, two: Option<Tensor<2>>| {
            assert_eq!(
                (three.device(), three.device().is_autodiff()),
                (device.clone(), device.is_autodiff())
            );
            assert!(!three.is_require_grad());
            results.push(bits(three));
            results.extend(two.map(bits));
        };
        let attended = single_prefill(x(), k(), k(), &options).expect("it fits");
        keep(attended.output, attended.lse);
        let attended = single_decode(x().slice(0..1).squeeze_dim(0), k(), k(), &options).expect("it fits");
        keep(attended.output.unsqueeze_dim(0), attended.lse.map(|lse| lse.unsqueeze_dim(0)));
        let attended = batch_prefill_ragged(x(), k(), k(), &self.qo, &self.qo, &options).expect("it fits");
        keep(attended.output, attended.lse);
        let mut pages = KvPages::new(self.pool.clone(), self.pool.clone(), KvLayout::Nhd).expect("it fits");
        append_paged_kv(&mut pages, k(), k(), &self.slots).expect("it fits");
        let attended = batch_prefill_paged(x(), &self.qo, &pages, &self.table, &options).expect("it fits");
        keep(attended.output, attended.lse);
        let q = x().slice(0..2);
        let attended = batch_decode_paged(q, &pages, &self.table, &options).expect("it fits");
        keep(attended.output, attended.lse);
        keep(pages.into_tensors().expect("numbers").0.flatten(0, 1), None);
        let (v, s) = merge_state(x(), self.s.clone(), x().neg(), self.s.clone().neg()).expect("it fits");
        keep(v, Some(s));
        let s = || self.s.clone();
        let mask = Tensor::<1, Bool>::from_data([true, false, true], device);
        let (v, s_new) = merge_state_in_place(x(), s(), x().neg(), s().neg(), Some(mask)).expect("it fits");
        keep(v, Some(s_new));
        let (v, s_new) = merge_states(x().unsqueeze_dim(1), s().unsqueeze_dim(1)).expect("it fits");
        keep(v, Some(s_new));
        let (v, s_new) = variable_length_merge_states(x(), s(), &self.qo).expect("it fits");
        keep(v, Some(s_new));
        let (q, k) = apply_rope(x(), k(), &self.rope, &self.positions).expect("it fits");
        keep(q, None);
        keep(k, None);
        let w = || self.weight.clone();
        for norm in [rms_norm, gemma_rms_norm] {
            keep(norm(x(), w(), 1e-6).expect("it fits"), None);
        }
        for norm in [fused_add_rms_norm, gemma_fused_add_rms_norm] {
            let (y, sum) = norm(x(), x().neg().mul_scalar(0.5), w(), 1e-6).expect("it fits");
            keep(y, None);
            keep(sum, None);
        }
        keep(layer_norm(x(), w(), w().neg(), 1e-6).expect("it fits"), None);
        for act in [silu_and_mul, gelu_and_mul, gelu_tanh_and_mul] {
            keep(act(x()).expect("it fits"), None);
        }
        keep(matmul_nt(x(), self.matrix.clone()).expect("it fits"), None);
        keep(matmul_nt_quantized(x(), &self.codes).expect("it fits"), None);
        results
    }
}

/// The same bits as on the device inside.
fn inference_passes_through(target: Target) {
    for dtype in target.dtypes() {
        let plain = Inputs::new(&target.device, dtype).run(&target.device);
        let autodiff = target.device.clone().autodiff();
        assert!(autodiff.is_autodiff());
        let through = Inputs::new(&autodiff, dtype).run(&autodiff);
        assert_eq!(through, plain, "{} {dtype:?}", target.name);
    }
}

/// Results and pages keep the strategy of the device that they belong to.
fn checkpointing_strategies_are_kept(target: Target) {
    let device = target.device.clone().autodiff().gradient_checkpointing();
    let inputs = Inputs::new(&device, DType::F32);
    let strategy = inputs.x.gradient_checkpointing_strategy();
    assert_eq!(strategy, device.gradient_checkpointing_strategy());
    let y = silu_and_mul(inputs.x.clone()).expect("it fits");
    assert_eq!(y.gradient_checkpointing_strategy(), strategy);
    let mut pages = KvPages::new(inputs.pool.clone(), inputs.pool.clone(), KvLayout::Nhd).expect("it fits");
    append_paged_kv(&mut pages, inputs.k.clone(), inputs.k.clone(), &inputs.slots).expect("it fits");
    assert_eq!(pages.k().and_then(Tensor::gradient_checkpointing_strategy), strategy);
}

fn refusal(op: &str, argument: &str) -> String {
    format!(
        "{op}: `{argument}` requires a gradient, expected a tensor without one: this operation has no backward pass (call \
         `.inner()` for inference)"
    )
}

/// Every float argument of every operation, as a leaf that requires a gradient and as something computed from one.
fn gradients_are_refused(target: Target) {
    let device = target.device.clone().autodiff();
    let i = Inputs::new(&device, DType::F32);
    let options = AttentionOptions::new();
    for computed in [false, true] {
        fn track<const D: usize>(tensor: &Tensor<D>, computed: bool) -> Tensor<D> {
            let leaf = tensor.clone().require_grad();
            if computed { leaf.mul_scalar(2.0) } else { leaf }
        }
        let (x, k, s) = (|| i.x.clone(), || i.k.clone(), || i.s.clone());
        let (gx, gk, gs) = (|| track(&i.x, computed), || track(&i.k, computed), || track(&i.s, computed));
        refused(single_prefill(gx(), k(), k(), &options), refusal("single_prefill", "q"));
        refused(single_prefill(x(), gk(), k(), &options), refusal("single_prefill", "k"));
        refused(single_prefill(x(), k(), gk(), &options), refusal("single_prefill", "v"));
        for argument in ["sinks", "slopes"] {
            let (inputs, tracked) = (VariantInputs::new(), track(&i.weight, computed));
            let inputs = if argument == "sinks" { inputs.sinks(tracked) } else { inputs.slopes(tracked) };
            refused(single_prefill(x(), k(), k(), (&options, inputs)), refusal("single_prefill", argument));
        }
        let q = track(&i.x.clone().slice(0..1).squeeze_dim(0), computed);
        refused(single_decode(q, k(), k(), &options), refusal("single_decode", "q"));
        refused(
            batch_prefill_ragged(x(), gk(), k(), &i.qo, &i.qo, &options),
            refusal("batch_prefill_ragged", "k"),
        );
        let pages = |k, v| KvPages::new(k, v, KvLayout::Nhd).expect("it fits");
        let (pool, gpool) = (|| i.pool.clone(), || track(&i.pool, computed));
        for pages in [pages(gpool(), pool()), pages(pool(), gpool())] {
            refused(
                batch_prefill_paged(x(), &i.qo, &pages, &i.table, &options),
                refusal("batch_prefill_paged", "pages"),
            );
        }
        let mut plain = pages(pool(), pool());
        let q = track(&i.x.clone().slice(0..2), computed);
        refused(batch_decode_paged(q, &plain, &i.table, &options), refusal("batch_decode_paged", "q"));
        refused(append_paged_kv(&mut plain, gk(), k(), &i.slots), refusal("append_paged_kv", "k"));
        refused(append_paged_kv(&mut plain, k(), gk(), &i.slots), refusal("append_paged_kv", "v"));
        assert_eq!(bits(plain.k().expect("numbers").clone()), bits(pool()), "a refused call wrote");
        for mut pages in [pages(gpool(), pool()), pages(pool(), gpool())] {
            refused(append_paged_kv(&mut pages, k(), k(), &i.slots), refusal("append_paged_kv", "pages"));
        }
        refused(merge_state(gx(), s(), x(), s()), refusal("merge_state", "v_a"));
        refused(merge_state(x(), gs(), x(), s()), refusal("merge_state", "s_a"));
        refused(merge_state(x(), s(), gx(), s()), refusal("merge_state", "v_b"));
        refused(merge_state(x(), s(), x(), gs()), refusal("merge_state", "s_b"));
        let into = |v, s, v_other, s_other| merge_state_in_place(v, s, v_other, s_other, None);
        let op = "merge_state_in_place";
        refused(into(gx(), s(), x(), s()), refusal(op, "v"));
        refused(into(x(), gs(), x(), s()), refusal(op, "s"));
        refused(into(x(), s(), gx(), s()), refusal(op, "v_other"));
        refused(into(x(), s(), x(), gs()), refusal(op, "s_other"));
        let many = |v: Tensor<3>, s: Tensor<2>| merge_states(v.unsqueeze_dim(1), s.unsqueeze_dim(1));
        refused(many(gx(), s()), refusal("merge_states", "v"));
        refused(many(x(), gs()), refusal("merge_states", "s"));
        let ragged = |v, s| variable_length_merge_states(v, s, &i.qo);
        refused(ragged(gx(), s()), refusal("variable_length_merge_states", "v"));
        refused(ragged(x(), gs()), refusal("variable_length_merge_states", "s"));
        refused(apply_rope(gx(), k(), &i.rope, &i.positions), refusal("apply_rope", "q"));
        refused(apply_rope(x(), gk(), &i.rope, &i.positions), refusal("apply_rope", "k"));
        let (gweight, gmatrix) = (track(&i.weight, computed), track(&i.matrix, computed));
        let (w, gw) = (|| i.weight.clone(), || gweight.clone());
        for (norm, op) in [(rms_norm as fn(_, _, _) -> _, "rms_norm"), (gemma_rms_norm, "gemma_rms_norm")] {
            refused(norm(gx(), w(), 1e-6), refusal(op, "x"));
            refused(norm(x(), gw(), 1e-6), refusal(op, "weight"));
        }
        for (norm, op) in [
            (fused_add_rms_norm as fn(_, _, _, _) -> _, "fused_add_rms_norm"),
            (gemma_fused_add_rms_norm, "gemma_fused_add_rms_norm"),
        ] {
            refused(norm(gx(), x(), w(), 1e-6), refusal(op, "x"));
            refused(norm(x(), gx(), w(), 1e-6), refusal(op, "residual"));
            refused(norm(x(), x(), gw(), 1e-6), refusal(op, "weight"));
        }
        refused(layer_norm(gx(), w(), w(), 1e-6), refusal("layer_norm", "x"));
        refused(layer_norm(x(), gw(), w(), 1e-6), refusal("layer_norm", "gamma"));
        refused(layer_norm(x(), w(), gw(), 1e-6), refusal("layer_norm", "beta"));
        refused(silu_and_mul(gx()), refusal("silu_and_mul", "x"));
        refused(gelu_and_mul(gx()), refusal("gelu_and_mul", "x"));
        refused(gelu_tanh_and_mul(gx()), refusal("gelu_tanh_and_mul", "x"));
        refused(matmul_nt(gx(), i.matrix.clone()), refusal("matmul_nt", "x"));
        refused(matmul_nt_quantized(gx(), &i.codes), refusal("matmul_nt_quantized", "x"));
        let op = "QuantizedWeight::quantize";
        refused(QuantizedWeight::quantize(gmatrix.clone(), i.codes.format()), refusal(op, "weight"));
        refused(matmul_nt(x(), gmatrix), refusal("matmul_nt", "weight"));
        // Taken out of the graph, it runs.
        let _ = single_prefill(gx().inner(), gk().inner(), k(), &options).expect("no gradient");
    }
}

/// An autodiff tensor beside a plain one of the same device: never a panic. Row pointers, tables and rotations made on
/// the plain device serve both.
fn mixed_with_the_device_inside(target: Target) {
    let Target { device: plain, .. } = &target;
    let autodiff = plain.clone().autodiff();
    let outside = Inputs::new(&autodiff, DType::F32);
    let inside = Inputs::new(plain, DType::F32);
    let random = |device: &Device| Tensor::<3>::random([3, 2, 8], Distribution::Default, device);
    for (q, k, v) in [
        (random(&autodiff), random(plain), random(plain)),
        (random(plain), random(&autodiff), random(plain)),
        (random(plain), random(plain), random(&autodiff)),
    ] {
        mixed(single_prefill(q, k, v, &AttentionOptions::new()).map(|attended| drop(attended.output)));
    }
    mixed(rms_norm(outside.x.clone(), inside.weight.clone(), 1e-6).map(drop));
    let (x, w) = (|| outside.x.clone(), || inside.weight.clone());
    mixed(fused_add_rms_norm(x(), inside.x.clone(), w(), 1e-6).map(drop));
    mixed(layer_norm(x(), outside.weight.clone(), w(), 1e-6).map(drop));
    let s = || inside.s.clone();
    mixed(merge_state_in_place(x(), s(), inside.x.clone(), s(), None).map(drop));
    let mask = Tensor::<1, Bool>::full([3], true, plain);
    let s = || outside.s.clone();
    mixed(merge_state_in_place(x(), s(), x(), s(), Some(mask)).map(drop));
    mixed(variable_length_merge_states(x(), s(), &inside.qo).map(drop));
    mixed(matmul_nt(inside.x.clone(), outside.matrix.clone()).map(drop));
    mixed(apply_rope(outside.x.clone(), outside.k.clone(), &inside.rope, &inside.positions).map(drop));
    let options = AttentionOptions::new();
    let (k, qo) = (&outside.k, &inside.qo);
    mixed(batch_prefill_ragged(outside.x.clone(), k.clone(), k.clone(), qo, qo, &options).map(drop));
    let mut pages = KvPages::new(inside.pool.clone(), inside.pool.clone(), KvLayout::Nhd).expect("it fits");
    mixed(append_paged_kv(&mut pages, outside.k.clone(), outside.k.clone(), &inside.slots));
    mixed(KvPages::new(inside.pool.clone(), outside.pool.clone(), KvLayout::Nhd).map(drop));
}

/// Accepted, or refused because of the device.
fn mixed(result: burn_flashinfer::Result<()>) {
    if let Err(error) = result {
        assert!(matches!(error, burn_flashinfer::Error::Device { .. }), "{error}");
    }
}
