//! Decoding steps in fixed buffers, run eagerly and as a captured graph.

use std::thread;

use burn::tensor::{DType, Device, Tensor};
use burn_flashinfer::{
    AttentionOptions, CacheConfig, DecodeGraph, DecodeStep, Error, PagedKvCache, PlanConfig, Result,
    SequenceId, append_paged_kv, batch_decode_paged,
};

use super::any_device;
use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, bits, check, read, refused, say};

device_tests!(replays_equal_eager_steps, another_cache_is_not_replayed);

const LAYERS: usize = 2;
const HEADS: [usize; 2] = [8, 2];
const DIM: usize = 64;
const VOCAB: usize = 32;
const PAGE: usize = 4;
const REQUESTS: usize = 4;
const MAX_LEN: usize = 1200;

/// A model: of each token the queries, keys and values of every layer.
struct Model {
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    dtype: DType,
}

impl Model {
    fn new(dtype: DType, device: &Device) -> Self {
        let mut rng = Rng::new("decode");
        let mut table = |heads: usize| Host::random([VOCAB, heads * DIM], dtype, &mut rng).tensor(device);
        let [q, kv] = HEADS;
        Self { q: table(q), k: table(kv), v: table(kv), dtype }
    }

    fn config(&self) -> PlanConfig {
        PlanConfig::new(HEADS[0], HEADS[1], DIM, self.dtype).options(AttentionOptions::new().causal(true))
    }

    fn cache(&self, device: &Device) -> PagedKvCache {
        let config = CacheConfig::new(LAYERS, 900, PAGE, HEADS[1], DIM).dtype(self.dtype);
        PagedKvCache::new(&config, device).expect("a cache")
    }

    /// Keys and values of a prompt.
    fn prefill(&self, cache: &mut PagedKvCache, sequence: SequenceId, tokens: usize) {
        let slots = cache.reserve(&[(sequence, tokens)]).expect("room");
        let mut rng = Rng::new(&format!("prompt {tokens}"));
        for layer in 0..LAYERS {
            let device = cache.device().clone();
            let mut rows = || Host::random([tokens, HEADS[1], DIM], self.dtype, &mut rng).tensor(&device);
            let (k, v) = (rows(), rows());
            append_paged_kv(cache.layer_mut(layer).expect("a layer"), k, v, &slots).expect("it fits");
        }
    }

    /// The outputs of the layers, one after the other.
    fn step(&self, cache: &mut PagedKvCache, step: &DecodeStep) -> Result<Tensor<4>> {
        let mut outputs = Vec::new();
        for layer in 0..LAYERS {
            let rows = |table: &Tensor<2>, heads: usize| -> Tensor<3> {
                table.clone().select(0, step.tokens()).reshape([REQUESTS, heads, DIM])
            };
            let (k, v) = (rows(&self.k, HEADS[1]), rows(&self.v, HEADS[1]));
            append_paged_kv(cache.layer_mut(layer)?, k, v, &step.slots())?;
            outputs.push(step.plan().run(rows(&self.q, HEADS[0]), cache.layer(layer)?)?.output);
        }
        Ok(Tensor::stack(outputs, 0))
    }

    /// The same by calls that plan for themselves.
    fn eager(&self, cache: &mut PagedKvCache, tokens: &[(SequenceId, u32)]) -> Vec<Tensor<3>> {
        let device = cache.device().clone();
        let growth: Vec<_> = tokens.iter().map(|&(sequence, _)| (sequence, 1)).collect();
        let slots = cache.reserve(&growth).expect("room");
        let sequences: Vec<_> = tokens.iter().map(|&(sequence, _)| sequence).collect();
        let table = cache.page_table(&sequences).expect("a table");
        let ids: Vec<i32> = tokens.iter().map(|&(_, token)| token as i32).collect();
        let ids =
            Tensor::from_data(burn::tensor::TensorData::new(ids, [tokens.len()]), (&device, DType::I32));
        let rows = |table: &Tensor<2>, heads: usize| -> Tensor<3> {
            table.clone().select(0, ids.clone()).reshape([tokens.len(), heads, DIM])
        };
        let options = AttentionOptions::new().causal(true);
        (0..LAYERS)
            .map(|layer| {
                let (k, v) = (rows(&self.k, HEADS[1]), rows(&self.v, HEADS[1]));
                append_paged_kv(cache.layer_mut(layer).expect("a layer"), k, v, &slots).expect("it fits");
                let pages = cache.layer(layer).expect("a layer");
                batch_decode_paged(rows(&self.q, HEADS[0]), pages, &table, &options).expect("it fits").output
            })
            .collect()
    }
}

/// Lengths grow over the ends of pages and of what one core reads; sequences come, fork and go. A replay gives the bits of
/// the same step run without a graph, and the numbers of calls that plan for themselves.
fn replays_equal_eager_steps(target: Target) {
    for dtype in target.dtypes() {
        let (device, mut rng) = (&target.device, Rng::new("replays"));
        let model = Model::new(dtype, device);
        let mut caches = [(); 3].map(|()| model.cache(device));
        // Each sequence in each of the caches.
        let mut running: Vec<[SequenceId; 3]> = Vec::new();
        let start = |cache: &mut PagedKvCache, tokens: usize| {
            let sequence = cache.create();
            model.prefill(cache, sequence, tokens);
            sequence
        };
        for tokens in [3, 250, 1019] {
            running.push(caches.each_mut().map(|cache| start(cache, tokens)));
        }
        let [mut captured, mut stepped, mut eager] = caches;
        let step = |cache: &PagedKvCache| {
            DecodeStep::new(&model.config(), REQUESTS, MAX_LEN, cache).expect("a step")
        };
        let fixed = step(&captured);
        let first: Vec<_> = running.iter().map(|&[sequence, ..]| (sequence, 1)).collect();
        let before = captured.len(first[0].0).expect("a sequence");
        let mut graph =
            DecodeGraph::capture(&mut captured, fixed, &first, |cache, step| model.step(cache, step))
                .expect("a graph");
        assert_eq!(captured.len(first[0].0).expect("a sequence"), before);
        // CUDA must capture. On HIP CubeCL 0.11.3 allocates 0 bytes within the capture, for which its pools have no room,
        // and so gives it up: steps are run anew there.
        match graph.run_anew_because() {
            None => assert!(["cuda", "rocm"].contains(&target.name), "{}", target.name),
            Some(why) if target.name == "rocm" => say(format!("rocm captures no graph: {why}")),
            Some(why) => assert_ne!(target.name, "cuda", "{why}"),
        }

        let mut fixed = step(&stepped);
        for round in 0..if target.is_slow() { 8 } else { 16 } {
            let [a, b, c] = [&mut captured, &mut stepped, &mut eager];
            match round {
                3 => {
                    let gone = running.remove(0);
                    [a, b, c].into_iter().zip(gone).for_each(|(cache, id)| cache.free(id).expect("alive"));
                }
                5 => {
                    let [x, y, z] = running[0];
                    running.push([(a, x), (b, y), (c, z)].map(|(cache, id)| cache.fork(id).expect("alive")));
                }
                6 => running.push([a, b, c].map(|cache| start(cache, 11))),
                _ => {}
            }
            let tokens: Vec<u32> = running.iter().map(|_| rng.below(VOCAB) as u32).collect();
            let tokens_of = |cache: usize| -> Vec<(SequenceId, u32)> {
                running.iter().map(|ids| ids[cache]).zip(tokens.iter().copied()).collect()
            };
            let replayed = graph.replay(&mut captured, &tokens_of(0)).expect("a step").clone();
            fixed.update(&mut stepped, &tokens_of(1)).expect("a step");
            let again = model.step(&mut stepped, &fixed).expect("a step");
            let what = format!("{} {dtype:?} round {round}", target.name);
            assert_eq!(bits(replayed.clone()), bits(again), "{what}");
            for (layer, wanted) in model.eager(&mut eager, &tokens_of(2)).into_iter().enumerate() {
                let got: Tensor<3> = replayed.clone().narrow(0, layer, 1).squeeze_dim(0);
                // Rows of sequences that are missing are 0.
                let mut got = read(got);
                let rest = got.split_off(tokens.len() * HEADS[0] * DIM);
                assert!(rest.iter().all(|&x| x == 0.0), "{what}");
                // Both are rounded: a unit in the last place of the largest number.
                let wanted = read(wanted);
                let oracle: Vec<f64> = wanted.iter().map(|&x| f64::from(x)).collect();
                let off: Vec<f32> = wanted
                    .iter()
                    .map(|x| x + x.abs() * crate::support::epsilon(dtype) as f32 / 2.0)
                    .collect();
                check(format!("{what}, layer {layer}"), &got, &off, &oracle, dtype);
            }
        }
    }
}

#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn what_does_not_fit_is_refused() {
    let device = any_device();
    let model = Model::new(DType::F32, &device);
    let mut cache = model.cache(&device);
    let new =
        |requests, max_len, cache: &PagedKvCache| DecodeStep::new(&model.config(), requests, max_len, cache);
    refused(new(0, 10, &cache), "DecodeStep::new: `requests` is 0, expected at least 1");
    refused(new(2, 0, &cache), "DecodeStep::new: `max_len` is 0, expected at least 1");
    let mut step = new(2, 5, &cache).expect("a step");
    assert_eq!((step.requests(), step.max_len()), (2, 5));
    let sequences = [(); 3].map(|()| cache.create());
    refused(
        step.update::<u32>(&mut cache, &[]),
        "DecodeStep::update: `tokens` is of 0 sequences, expected 1 to 2, the capacity",
    );
    refused(
        step.update(&mut cache, &sequences.map(|sequence| (sequence, 1))),
        "DecodeStep::update: `tokens` is of 3 sequences, expected 1 to 2, the capacity",
    );
    model.prefill(&mut cache, sequences[0], 5);
    refused(
        step.update(&mut cache, &[(sequences[1], 0), (sequences[0], 0)]),
        "DecodeStep::update: `tokens` is 1 more of a sequence of 5 tokens, expected at most 5 in all, the capacity",
    );
    let twice = step.update(&mut cache, &[(sequences[1], 0), (sequences[1], 0)]);
    assert!(matches!(twice, Err(Error::Value { .. })), "{twice:?}");
    refused(
        step.update(&mut cache, &[(sequences[1], u32::MAX)]),
        "DecodeStep::update: `tokens[0]` is 4294967295, expected at most 2147483647",
    );
    // Nothing has grown.
    assert_eq!(cache.len(sequences[1]).expect("alive"), 0);
    let mut other = model.cache(&device);
    let stranger = other.create();
    refused(
        step.update(&mut other, &[(stranger, 0)]),
        "DecodeStep::update: `cache` is another cache, expected the one that the step was made for",
    );
    assert_eq!(other.len(stranger).expect("alive"), 0);
}

/// An error of the step comes out of the capture, and leaves the cache as it was.
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn a_failing_step_is_not_captured() {
    let device = any_device();
    let model = Model::new(DType::F32, &device);
    let mut cache = model.cache(&device);
    let sequence = cache.create();
    let step = DecodeStep::new(&model.config(), 1, 10, &cache).expect("a step");
    let graph =
        DecodeGraph::capture(&mut cache, step, &[(sequence, 1)], |cache, _| cache.layer(99).map(|_| ()));
    refused(graph.map(|_| ()), format!("PagedKvCache::layer: `layer` is 99, expected below {LAYERS}"));
    assert_eq!(cache.len(sequence).expect("alive"), 0);
}

/// A replay wants the cache of the capture, on every device.
fn another_cache_is_not_replayed(target: Target) {
    let model = Model::new(DType::F32, &target.device);
    let [mut cache, mut other] = [(); 2].map(|()| model.cache(&target.device));
    let [sequence, stranger] = [&mut cache, &mut other].map(PagedKvCache::create);
    let step = DecodeStep::new(&model.config(), REQUESTS, 10, &cache).expect("a step");
    let run = |cache: &mut _, step: &_| model.step(cache, step);
    let mut graph =
        DecodeGraph::<_, Error>::capture(&mut cache, step, &[(sequence, 1)], run).expect("a graph");
    other.pin();
    refused(
        graph.replay(&mut other, &[(stranger, 1)]).map(|_| ()),
        "DecodeGraph::replay: `cache` is another cache, expected the one that the step was made for",
    );
    assert_eq!(other.len(stranger).expect("alive"), 0);
    graph.replay(&mut cache, &[(sequence, 1)]).expect("its cache");
    // The replayed launches are ordered in the stream of the thread that captured them.
    let captured = graph.run_anew_because().is_none();
    let elsewhere = |cache: &mut PagedKvCache| {
        thread::scope(|scope| scope.spawn(|| cache.swap_out(sequence)).join().expect("no panic"))
    };
    if captured {
        let expected = "`layer` is of a graph of another thread, expected used by that thread alone";
        refused(elsewhere(&mut cache), format!("PagedKvCache::swap_out: {expected}"));
    }
    assert!(format!("{graph:?}").starts_with("DecodeGraph"), "{graph:?}");
    drop(graph);
    elsewhere(&mut cache).expect("no graph is left");
}
