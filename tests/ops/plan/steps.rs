//! Steps for layers of several kinds, and of several tokens of each sequence.

use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flashinfer::{
    AttentionOptions, CacheConfig, DecodeGraph, DecodeStep, Indptr, PagedKvCache, PlanConfig, Result,
    SequenceId, StepConfig, append_paged_kv, batch_prefill_paged,
};

use super::any_device;
use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, bits, check, epsilon, read, refused};

device_tests!(kinds_and_tokens);

/// The kind of each layer: all keys with a soft cap, or a window.
pub(super) const LAYERS: [usize; 2] = [0, 1];
pub(super) const HEADS: [usize; 2] = [4, 2];
pub(super) const DIM: usize = 64;
pub(super) const VOCAB: usize = 32;
pub(super) const REQUESTS: usize = 3;
const MAX_LEN: usize = 300;

/// A model: the queries of each token, and its keys, which are the values as well.
pub(super) struct Model {
    pub q: Tensor<2>,
    pub kv: Tensor<2>,
    dtype: DType,
}

impl Model {
    pub fn new(dtype: DType, device: &Device) -> Self {
        let mut rng = Rng::new("kinds of layers");
        let [q, kv] = HEADS.map(|heads| Host::random([VOCAB, heads * DIM], dtype, &mut rng).tensor(device));
        Self { q, kv, dtype }
    }

    fn options(kind: usize) -> AttentionOptions {
        let options = AttentionOptions::new().causal(true);
        if kind == 0 { options.soft_cap(3.0) } else { options.window_left(21) }
    }

    pub fn config(&self, q_len: usize) -> StepConfig {
        let [full, local] = [0, 1]
            .map(|kind| PlanConfig::new(HEADS[0], HEADS[1], DIM, self.dtype).options(Self::options(kind)));
        StepConfig::new(full, REQUESTS, MAX_LEN).kind(local).q_len(q_len)
    }

    /// Pages of NaN: what no sequence has written must not be read.
    pub fn cache(&self, device: &Device) -> PagedKvCache {
        let config = CacheConfig::new(LAYERS.len(), 100, 4, HEADS[1], DIM).dtype(self.dtype);
        let mut cache = PagedKvCache::new(&config, device).expect("a cache");
        let all = cache.create();
        let slots = cache.reserve(&[(all, 400)]).expect("room");
        for layer in 0..LAYERS.len() {
            let nan = || Host::full([400, HEADS[1], DIM], self.dtype, f32::NAN).tensor(device);
            append_paged_kv(cache.layer_mut(layer).expect("a layer"), nan(), nan(), &slots).expect("it fits");
        }
        cache.free(all).expect("alive");
        cache
    }

    pub fn rows(&self, table: &Tensor<2>, ids: Tensor<1, burn::tensor::Int>, heads: usize) -> Tensor<3> {
        let rows = ids.dims()[0];
        table.clone().select(0, ids).reshape([rows, heads, DIM])
    }

    /// The outputs of the layers, one after the other.
    pub fn step(&self, cache: &mut PagedKvCache, step: &DecodeStep) -> Result<Tensor<4>> {
        let mut outputs = Vec::new();
        for (layer, kind) in LAYERS.into_iter().enumerate() {
            let kv = self.rows(&self.kv, step.tokens(), HEADS[1]);
            append_paged_kv(cache.layer_mut(layer)?, kv.clone(), kv, &step.slots())?;
            let q = self.rows(&self.q, step.tokens(), HEADS[0]);
            outputs.push(step.plan_of(kind)?.run(q, cache.layer(layer)?)?.output);
        }
        Ok(Tensor::stack(outputs, 0))
    }

    /// The same by calls that plan for themselves, without the rows of missing tokens.
    pub fn eager(&self, cache: &mut PagedKvCache, tokens: &[(SequenceId, Vec<u32>)]) -> Vec<Tensor<3>> {
        let device = cache.device().clone();
        let growth: Vec<_> = tokens.iter().map(|(sequence, tokens)| (*sequence, tokens.len())).collect();
        let step = cache.step(&growth).expect("room");
        let ids: Vec<i32> = tokens.iter().flat_map(|(_, tokens)| tokens).map(|&token| token as i32).collect();
        let ids = || {
            let len = ids.len();
            Tensor::from_data(TensorData::new(ids.clone(), [len]), (&device, DType::I32))
        };
        let rows = Indptr::new(step.qo_indptr(), &device).expect("a row pointer");
        LAYERS
            .into_iter()
            .enumerate()
            .map(|(layer, kind)| {
                let kv = self.rows(&self.kv, ids(), HEADS[1]);
                let pages = cache.layer_mut(layer).expect("a layer");
                append_paged_kv(pages, kv.clone(), kv, step.slots()).expect("it fits");
                let q = self.rows(&self.q, ids(), HEADS[0]);
                let options = Self::options(kind);
                batch_prefill_paged(q, &rows, pages, step.table(), &options).expect("it fits").output
            })
            .collect()
    }
}

/// Sequences come and go, go on with one token or several, and lose some again. A replay gives the bits of the same step run
/// without a graph, and the numbers of calls that plan for themselves; rows of missing tokens are 0.
fn kinds_and_tokens(target: Target) {
    let cases = target.dtypes().into_iter().flat_map(|dtype| [(dtype, 3), (dtype, 1), (dtype, 6)]);
    for (dtype, q_len) in target.thin(8, cases.collect()) {
        let (device, mut rng) = (&target.device, Rng::new(&format!("kinds {dtype:?} {q_len}")));
        let model = Model::new(dtype, device);
        let [mut captured, mut stepped, mut eager] = [(); 3].map(|()| model.cache(device));
        let mut running: Vec<[SequenceId; 3]> = Vec::new();
        let new =
            |cache: &PagedKvCache| DecodeStep::with_config(&model.config(q_len), cache).expect("a step");
        let (fixed, mut step) = (new(&captured), new(&stepped));
        assert_eq!((fixed.kinds(), fixed.q_len(), fixed.requests()), (2, q_len, REQUESTS));
        let first = captured.create();
        let start = [(first, vec![1; q_len])];
        let mut graph =
            DecodeGraph::capture(&mut captured, fixed, &start, |cache, step| model.step(cache, step))
                .expect("a graph");
        assert_eq!(captured.len(first), Ok(0));
        captured.free(first).expect("alive");
        for round in 0..if target.name == "flex" { 12 } else { 4 } {
            let [a, b, c] = [&mut captured, &mut stepped, &mut eager];
            if running.len() < REQUESTS && round != 1 {
                // A prompt, of the same tokens in each cache.
                let ids = [a, b, c].map(|cache| {
                    let prompt = (0..[5, 70, 1][round % 3]).map(|at| at % VOCAB as u32).collect();
                    let id = cache.create();
                    model.eager(cache, &[(id, prompt)]);
                    id
                });
                running.push(ids);
            } else if round == 3 {
                let gone = running.remove(0);
                [a, b, c].into_iter().zip(gone).for_each(|(cache, id)| cache.free(id).expect("alive"));
            }
            let tokens: Vec<Vec<u32>> = running
                .iter()
                .map(|_| (0..1 + rng.below(q_len)).map(|_| rng.below(VOCAB) as u32).collect())
                .collect();
            let of = |cache: usize| -> Vec<(SequenceId, Vec<u32>)> {
                running.iter().map(|ids| ids[cache]).zip(tokens.iter().cloned()).collect()
            };
            let replayed = graph.replay(&mut captured, &of(0)).expect("a step").clone();
            step.update(&mut stepped, &of(1)).expect("a step");
            let again = model.step(&mut stepped, &step).expect("a step");
            let what = format!("{} {dtype:?}, {q_len} tokens, round {round}", target.name);
            assert_eq!(bits(replayed.clone()), bits(again), "{what}");
            for (layer, wanted) in model.eager(&mut eager, &of(2)).into_iter().enumerate() {
                let got = read(replayed.clone().narrow(0, layer, 1).squeeze_dim::<3>(0));
                let (mut present, mut absent) = (Vec::new(), Vec::new());
                for (row, values) in got.chunks_exact(HEADS[0] * DIM).enumerate() {
                    let new = tokens.get(row / q_len).map_or(0, Vec::len);
                    let to = if row % q_len < new { &mut present } else { &mut absent };
                    to.extend_from_slice(values);
                }
                assert!(absent.iter().all(|&x| x == 0.0), "{what}");
                // Both are rounded: a unit in the last place of the largest number.
                let wanted = read(wanted);
                let oracle: Vec<f64> = wanted.iter().map(|&x| f64::from(x)).collect();
                let off: Vec<f32> =
                    wanted.iter().map(|x| x + x.abs() * epsilon(dtype) as f32 / 2.0).collect();
                check(format!("{what}, layer {layer}"), &present, &off, &oracle, dtype);
            }
            // Some of the tokens are rejected.
            for (ids, tokens) in running.iter().zip(&tokens) {
                let rejected = rng.below(tokens.len());
                for (cache, &id) in [&mut captured, &mut stepped, &mut eager].into_iter().zip(ids) {
                    let len = cache.len(id).expect("alive");
                    cache.truncate(id, len - rejected).expect("not shorter");
                }
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
    refused(
        DecodeStep::with_config(&model.config(0), &cache),
        "DecodeStep::with_config: `q_len` is 0, expected at least 1",
    );
    let none = PlanConfig::new(0, 2, DIM, DType::F32);
    refused(
        DecodeStep::with_config(&model.config(1).kind(none), &cache),
        "DecodeStep::with_config: `q_heads` is 0, expected 1 to 2147483647",
    );
    let mut step = DecodeStep::with_config(&model.config(3), &cache).expect("a step");
    refused(step.plan_of(2).map(|_| ()), "DecodeStep::plan_of: `kind` is 2, expected below 2");
    let sequence = cache.create();
    let mut update =
        |cache: &mut PagedKvCache, tokens: usize| step.update(cache, &[(sequence, &vec![1; tokens][..])]);
    let op = "DecodeStep::update: `tokens` is";
    refused(update(&mut cache, 0), format!("{op} 0 tokens of a sequence, expected 1 to 3, the capacity"));
    refused(update(&mut cache, 4), format!("{op} 4 tokens of a sequence, expected 1 to 3, the capacity"));
    assert_eq!(cache.len(sequence), Ok(0));
    cache.reserve(&[(sequence, MAX_LEN - 2)]).expect("room");
    refused(
        update(&mut cache, 3),
        format!("{op} 3 more of a sequence of 298 tokens, expected at most 300 in all, the capacity"),
    );
    update(&mut cache, 2).expect("they fit");
    assert_eq!(cache.len(sequence), Ok(MAX_LEN));
    cache.truncate(sequence, MAX_LEN - 1).expect("one was rejected");
}
