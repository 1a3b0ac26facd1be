//! Sinks and ALiBi's slopes, with every mask, cap and scale, and with each other.

use burn::tensor::{DType, Device, Tensor};
use burn_flashinfer::reference::{self, Heads};
use burn_flashinfer::{
    AttentionOptions, CacheConfig, CascadePlan, DecodeGraph, DecodeStep, HostInputs, KvLayout, KvPages,
    KvSplit, PagedKvCache, PlanConfig, VariantInputs, alibi_slopes, append_paged_kv, batch_decode_paged,
    cascade_attention, single_decode, single_prefill,
};

use crate::cascade::{cascade, sharing};
use crate::devices::{Target, device_tests, devices};
use crate::problem::Case;
use crate::setting::{Setting, Tensors, got};
use crate::support::{Host, Rng, bits, read, refused};

device_tests!(
    every_option,
    scales_that_divide_nothing,
    long_requests_with_biases,
    skipped_tiles_with_biases,
    single_calls,
    a_cascade_counts_sinks_once,
    a_graph_takes_other_tensors,
    refuses_other_tensors
);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Given {
    Sinks,
    Slopes,
    Both,
}

/// Sinks around the largest logits, and slopes of a few heads.
fn tensors(given: Given, case: &Case) -> Tensors {
    let rng = &mut Rng::new(&format!("{given:?}"));
    let heads = case.kv_heads * case.group;
    let mut some = |wanted: bool, scale: f32| -> Vec<f32> {
        (0..if wanted { heads } else { 0 }).map(|_| scale * rng.normal()).collect()
    };
    let sinks = some(given != Given::Slopes, 2.0);
    let slopes =
        some(given != Given::Sinks, 1.0).into_iter().map(|slope| (slope / 3.0).exp2() / 4.0).collect();
    Tensors { sinks, slopes, ..Tensors::default() }
}

fn setting(given: Given, case: &Case) -> Setting {
    Setting { problem: case.problem("biases"), options: case.options(), tensors: tensors(given, case) }
}

/// Rows without any key, decoding and prefill, on matrix cores and for heads that none takes.
fn every_option(target: Target) {
    let mut cases = vec![];
    for dtype in target.dtypes() {
        for (at, (causal, window, soft_cap)) in [
            (true, None, None),
            (false, None, None),
            (true, Some(19), None),
            (false, Some(40), Some(5.0)),
            (true, None, Some(5.0)),
        ]
        .into_iter()
        .enumerate()
        {
            // A row without any key is refused under a causal mask.
            let few = if causal { (1, 1) } else { (2, 0) };
            let lengths = [(1, 70), (5, 5), few, (0, 9), (37, 150)];
            let dim = [64, 40, 128][at % 3];
            cases.push(Case { causal, window, soft_cap, ..Case::new(dtype, dim, &lengths).heads(2, 3) });
        }
    }
    for (at, case) in target.thin(7, cases).into_iter().enumerate() {
        let given = [Given::Both, Given::Sinks, Given::Slopes];
        for given in if target.name == "flex" { &given[..] } else { &given[at % 3..][..1] } {
            setting(*given, &case).check_plans(&target);
        }
    }
}

/// A scale of 0 or below is no divisor for a sink.
fn scales_that_divide_nothing(target: Target) {
    for scale in target.thin(5, vec![-0.5, 0.0, 1e-38]) {
        let case = Case { scale: Some(scale), ..Case::new(DType::F32, 64, &[(3, 40), (1, 70)]).causal() };
        setting(Given::Both, &case).check_plans(&target);
    }
}

/// Tiles far from the diagonal, whose bias is large, and warpgroups.
fn long_requests_with_biases(target: Target) {
    if target.is_slow() {
        return;
    }
    let lengths = if target.is_checked() { [(70, 400), (1, 300)] } else { [(300, 1900), (1, 1600)] };
    for (dtype, given) in [(DType::F16, Given::Both), (DType::BF16, Given::Slopes)] {
        let case = Case::new(dtype, 128, &lengths).heads(1, 4).causal();
        let setting = setting(given, &case);
        for split in target.thin(3, vec![KvSplit::Fixed(128), KvSplit::Never]) {
            setting.check("ragged", &target, &setting.ragged(split, &target.device));
        }
    }
}

/// Slopes by which keys far behind the first weigh nothing: their tiles are left out, with split keys too.
fn skipped_tiles_with_biases(target: Target) {
    let case = Case::new(target.dtypes()[0], 64, &[(1, 300), (20, 150), (3, 40)]).causal();
    let mut tensors = tensors(Given::Both, &case);
    tensors.slopes.iter_mut().for_each(|slope| *slope -= 1.5);
    let setting = Setting {
        problem: case.problem("skipped tiles"),
        options: case.options().skip_softmax(1e-9),
        tensors,
    };
    setting.check("ragged", &target, &setting.ragged(KvSplit::Never, &target.device));
    setting.check("paged", &target, &setting.paged(KvSplit::Fixed(128), &target.device));
}

fn single_calls(target: Target) {
    let case = Case::new(target.dtypes()[0], 64, &[(1, 50)]).causal();
    let setting = setting(Given::Both, &case);
    setting.check("single_prefill", &target, &setting.single(&target.device));
    let device = &target.device;
    let [q, k, v] = [&setting.problem.q, &setting.problem.k, &setting.problem.v].map(|x| x.tensor(device));
    let call = (&setting.options, setting.tensors.on(device));
    let decoded = single_decode(q.squeeze_dim::<2>(0), k, v, call).expect("runs").output;
    assert_eq!(bits(decoded), bits(Tensor::<1>::from_data(&setting.single(device).output[..], device)));
}

/// Over one level and over several, by plan and without. The positions of a group are not those of its requests.
fn a_cascade_counts_sinks_once(target: Target) {
    let cases = target.dtypes().into_iter().map(|dtype| {
        Case::new(dtype, 64, &[(1, 97), (3, 101), (1, 83), (2, 17), (1, 1)]).heads(2, 2).causal()
    });
    for case in target.thin(5, cases.collect()) {
        let (problem, paging) = sharing(&case, "cascade of biases", 5, &[0, 18, 12, 0, 0]);
        let setting = Setting { problem, options: case.options(), tensors: tensors(Given::Both, &case) };
        let device = &target.device;
        let found = cascade(&setting.problem, &paging, device, 1);
        assert_eq!(found.levels(), 3);
        let pool = |x| paging.pool(x, KvLayout::Nhd).tensor(device);
        let pages = KvPages::new(pool(&setting.problem.k), pool(&setting.problem.v), KvLayout::Nhd);
        let (pages, q) = (pages.expect("a pool"), setting.problem.q.tensor(device));
        let call = (&setting.options, setting.tensors.on(device));
        let attended = got(cascade_attention(q.clone(), &pages, &found, call).expect("it fits"));
        setting.check("cascade", &target, &attended);
        let plan = CascadePlan::new(&setting.config(), &found).expect("a plan");
        let planned = plan.run_with(q, &pages, setting.tensors.on(device)).expect("as planned");
        assert_eq!(got(planned).bits(), attended.bits());
    }
}

/// Each layer has sinks of its own, which a captured step reads where they are.
fn a_graph_takes_other_tensors(target: Target) {
    const LAYERS: usize = 2;
    let (device, dtype) = (&target.device, DType::F32);
    let config = CacheConfig::new(LAYERS, 16, 8, 2, 64).dtype(dtype);
    let mut cache = PagedKvCache::new(&config, device).expect("a cache");
    let rng = &mut Rng::new("graph");
    let mut table = |heads: usize| Host::random([10, heads * 64], dtype, rng).tensor(device);
    let (queries, keys) = (table(4), table(2));
    let plan = PlanConfig::new(4, 2, 64, dtype).options(AttentionOptions::new().causal(true));
    let step = DecodeStep::new(&plan, 1, 100, &cache).expect("a step");
    let slopes = alibi_slopes(4, device).expect("slopes");
    let sinks: [Tensor<1>; LAYERS] = [0.5, 2.0].map(|sink| Tensor::full([4], sink, (device, dtype)));
    let inputs = |layer: usize| VariantInputs::new().sinks(sinks[layer].clone()).slopes(slopes.clone());
    let sequence = cache.create();
    let mut graph = DecodeGraph::capture(&mut cache, step, &[(sequence, 3)], |cache, step| {
        let q = queries.clone().select(0, step.tokens()).reshape([1, 4, 64]);
        let k = keys.clone().select(0, step.tokens()).reshape([1, 2, 64]);
        let layers = (0..LAYERS).map(|layer| {
            append_paged_kv(cache.layer_mut(layer)?, k.clone(), k.clone(), &step.slots())?;
            Ok(step.plan().run_with(q.clone(), cache.layer(layer)?, inputs(layer))?.output)
        });
        layers.collect::<Result<Vec<_>, burn_flashinfer::Error>>()
    })
    .expect("captured");
    for (at, token) in [3, 1, 4, 1, 5].into_iter().enumerate() {
        let outputs = graph.replay(&mut cache, &[(sequence, token)]).expect("replayed").clone();
        let pages = cache.page_table(&[sequence]).expect("a table");
        let q = queries.clone().slice(token as usize..token as usize + 1).reshape([1, 4, 64]);
        for (layer, output) in outputs.into_iter().enumerate() {
            let options = AttentionOptions::new();
            let layer = (cache.layer(layer).expect("a layer"), (&options, inputs(layer)));
            let expected = batch_decode_paged(q.clone(), layer.0, &pages, layer.1).expect("runs").output;
            let most =
                |x: Vec<f32>, y: Vec<f32>| x.iter().zip(&y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(most(read(output), read(expected)) < 1e-5, "step {at} of {token}");
        }
    }
}

/// The formulas by hand, in f64.
#[test]
fn the_oracle_is_the_formula() {
    let rng = &mut Rng::new("formula");
    let mut heads = |tokens: usize, heads: usize| {
        let values = (0..tokens * heads * 4).map(|_| f64::from(rng.normal())).collect();
        Heads::new([tokens, heads, 4], values).expect("as many")
    };
    let (q, k, v) = (heads(3, 2), heads(7, 1), heads(7, 1));
    let row =
        |heads: &Heads, row: usize| -> [f64; 4] { std::array::from_fn(|e| heads.values()[4 * row + e]) };
    let (sinks, slopes) = ([0.25_f32, -1.5], [0.5_f32, 0.125]);
    let options = AttentionOptions::new().causal(true).scale(0.5).soft_cap(3.0);
    let inputs = HostInputs { sinks: &sinks, slopes: &slopes, ..HostInputs::default() };
    let found = reference::attention_of(&q, &k, &v, &*options.to_variant(4), 0, inputs).expect("it fits");
    for (i, h) in (0..3).flat_map(|i| (0..2).map(move |h| (i, h))) {
        let position = 4 + i;
        let (mut sum, mut output) = (f64::from(sinks[h]).exp(), [0.0; 4]);
        for j in 0..=position {
            let s: f64 = 0.5 * row(&q, 2 * i + h).iter().zip(row(&k, j)).map(|(q, k)| q * k).sum::<f64>();
            let s = 3.0 * (s / 3.0).tanh() + f64::from(slopes[h]) * (j as f64 - position as f64);
            sum += s.exp();
            output.iter_mut().zip(row(&v, j)).for_each(|(o, v)| *o += s.exp() * v);
        }
        assert!((found.lse[2 * i + h] - sum.log2()).abs() < 1e-12);
        for (o, found) in output.iter().zip(row(&found.output, 2 * i + h)) {
            assert!((o / sum - found).abs() < 1e-12);
        }
    }
}

/// Those of the paper for powers of two; between them every other one of twice as many heads.
#[test]
fn the_usual_slopes() {
    let device = &devices()[0].device;
    let slopes = |heads: usize| read(alibi_slopes(heads, device).expect("slopes"));
    assert_eq!(slopes(1), [0.003_906_25]);
    assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015_625, 0.007_812_5, 0.003_906_25]);
    let (six, eight) = (slopes(6), slopes(8));
    assert_eq!(six, [0.25, 0.0625, 0.015_625, 0.003_906_25, eight[0], eight[2]]);
    let most = i32::MAX;
    refused(alibi_slopes(0, device), format!("alibi_slopes: `heads` is 0, expected 1 to {most}"));
}

fn refuses_other_tensors(target: Target) {
    let device = &target.device;
    let zeros = |heads: usize| Tensor::<3>::zeros([2, heads, 8], (device, DType::F32));
    let options = AttentionOptions::new();
    let run = |inputs| single_prefill(zeros(4), zeros(2), zeros(2), (&options, inputs));
    let floats = |len: usize| Tensor::<1>::zeros([len], (device, DType::F32));
    let given = VariantInputs::new;
    for (inputs, message) in [
        (given().sinks(floats(2)), "`sinks` has shape [2], expected [4], one for each query head"),
        (given().slopes(floats(5)), "`slopes` has shape [5], expected [4], one for each query head"),
        (given().floats(floats(1)), "`floats` is given, expected none, as no variant reads it"),
        (given().ints(floats(1).int()), "`ints` is given, expected none, as no variant reads it"),
        (given().sinks(floats(4).cast(DType::F16)), "`sinks` is of type F16, expected F32"),
    ] {
        refused(run(inputs), format!("single_prefill: {message}"));
    }
    if target.name != "flex" {
        return;
    }
    for other in devices().into_iter().filter(|other| other.name != "flex") {
        let sinks = Tensor::<1>::zeros([4], (&other.device, DType::F32));
        let message = format!(
            "single_prefill: `sinks` is on {:?}, expected {:?}, as the other arguments",
            other.device,
            Device::flex()
        );
        refused(run(given().sinks(sinks)), message);
    }
}
