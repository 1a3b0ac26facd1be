//! [`PagedKvCache`] against a list of tokens for each sequence.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{DType, Device};
use burn_flashinfer::reference::{Pages, gather_pages};
use burn_flashinfer::{
    AttentionOptions, CacheConfig, Error, KvLayout, PagedKvCache, SequenceId, append_paged_kv,
    batch_decode_paged,
};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::support::{Host, Target, devices, seed};

const LAYERS: usize = 2;
const HEADS: usize = 2;
const DIM: usize = 3;

/// What one may do to a cache. Sequences are meant by their number among those alive.
#[derive(Debug, Clone)]
enum Action {
    Create,
    Fork(usize),
    Free(usize),
    Truncate(usize, usize),
    Append(Vec<(usize, usize)>),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => Just(Action::Create),
        2 => (0..8_usize).prop_map(Action::Fork),
        1 => (0..8_usize).prop_map(Action::Free),
        2 => (0..8_usize, 0..12_usize).prop_map(|(which, len)| Action::Truncate(which, len)),
        6 => prop::collection::vec((0..8_usize, 0..7_usize), 0..4).prop_map(Action::Append),
    ]
}

/// A cache, and the tokens that each of its sequences should have.
struct Model {
    cache: PagedKvCache,
    tokens: BTreeMap<SequenceId, Vec<u32>>,
    next_token: u32,
    page_size: usize,
    pages: usize,
    layout: KvLayout,
    device: Device,
}

/// Element of a token in the keys (`part` 0) or values (1) of a layer: small integers, different for each.
fn element(token: u32, layer: usize, part: usize, head: usize, d: usize) -> f32 {
    (token * 7 % 509) as f32 + (layer * 12 + part * 6 + head * 3 + d) as f32 * 512.0
}

impl Model {
    fn new(target: &Target, page_size: usize, pages: usize, layout: KvLayout, dtype: DType) -> Self {
        let config = CacheConfig::new(LAYERS, pages, page_size, HEADS, DIM).layout(layout).dtype(dtype);
        let cache = PagedKvCache::new(&config, &target.device).expect("a valid cache");
        let device = target.device.clone();
        Self { cache, tokens: BTreeMap::new(), next_token: 0, page_size, pages, layout, device }
    }

    fn id(&self, which: usize) -> Option<SequenceId> {
        let alive = self.tokens.len();
        self.tokens.keys().nth(which % alive.max(1)).copied()
    }

    fn owned(&self, id: SequenceId) -> Vec<usize> {
        self.cache.page_table(&[id]).expect("alive").pages(0).to_vec()
    }

    /// Pages that `growth` takes: new ones, and copies of last pages that another sequence uses as well.
    fn needed(&self, growth: &[(SequenceId, usize)]) -> usize {
        let mut owners: BTreeMap<usize, usize> = BTreeMap::new();
        self.tokens
            .keys()
            .flat_map(|&id| self.owned(id))
            .for_each(|page| *owners.entry(page).or_default() += 1);
        let mut needed = 0;
        for &(id, tokens) in growth {
            let len = self.tokens[&id].len();
            needed += (len + tokens).div_ceil(self.page_size) - len.div_ceil(self.page_size);
            if tokens > 0 && !len.is_multiple_of(self.page_size) {
                let tail = owners.get_mut(&self.owned(id)[len / self.page_size]).expect("owned");
                if *tail > 1 {
                    *tail -= 1;
                    needed += 1;
                }
            }
        }
        needed
    }

    fn apply(&mut self, action: &Action) {
        match action {
            Action::Create => {
                let id = self.cache.create();
                assert!(self.tokens.insert(id, Vec::new()).is_none(), "{id:?} is used twice");
            }
            Action::Fork(which) => {
                let Some(parent) = self.id(*which) else { return };
                let id = self.cache.fork(parent).expect("alive");
                let tokens = self.tokens[&parent].clone();
                assert!(self.tokens.insert(id, tokens).is_none(), "{id:?} is used twice");
                assert_eq!(self.owned(id), self.owned(parent), "a fork shares all pages");
            }
            Action::Free(which) => {
                let Some(id) = self.id(*which) else { return };
                self.cache.free(id).expect("alive");
                self.tokens.remove(&id);
                assert!(self.cache.free(id).is_err() && self.cache.len(id).is_err());
            }
            Action::Truncate(which, len) => {
                let Some(id) = self.id(*which) else { return };
                let tokens = self.tokens.get_mut(&id).expect("alive");
                assert_eq!(self.cache.truncate(id, *len).is_ok(), *len <= tokens.len());
                tokens.truncate(*len);
            }
            Action::Append(growth) => self.append(growth),
        }
    }

    fn append(&mut self, growth: &[(usize, usize)]) {
        let mut chosen: BTreeMap<SequenceId, usize> = BTreeMap::new();
        for &(which, tokens) in growth {
            chosen.extend(self.id(which).map(|id| (id, tokens)));
        }
        // The order of the call is not that of the identifiers.
        let growth: Vec<(SequenceId, usize)> = chosen.into_iter().rev().collect();
        let (needed, free) = (self.needed(&growth), self.cache.free_pages());
        let tables: Vec<_> = self.tokens.keys().map(|&id| self.owned(id)).collect();
        let slots = match self.cache.reserve(&growth) {
            Ok(slots) => slots,
            Err(error) => {
                let (op, argument, pages) = ("PagedKvCache::reserve", "growth", self.pages);
                assert_eq!(error, Error::PoolExhausted { op, argument, needed, free, pages });
                assert!(needed > free, "{needed} pages were refused with {free} free");
                let after: Vec<_> = self.tokens.keys().map(|&id| self.owned(id)).collect();
                assert_eq!(after, tables, "a refusal changed the tables");
                return;
            }
        };
        assert_eq!(self.cache.free_pages() + needed, free, "pages taken");
        let count: usize = growth.iter().map(|&(_, tokens)| tokens).sum();
        assert_eq!(slots.len(), count);
        assert_eq!(self.cache.last_positions(&growth).expect("alive").len(), count);
        let new: Vec<u32> = (self.next_token..).take(count).collect();
        self.next_token += count as u32;
        let mut rest = &new[..];
        for (id, tokens) in growth {
            let (mine, others) = rest.split_at(tokens);
            self.tokens.get_mut(&id).expect("alive").extend(mine);
            rest = others;
        }
        for layer in 0..LAYERS {
            let dtype = self.cache.layer(layer).expect("a layer").k().dtype();
            let [k, v] = [0, 1].map(|part| {
                let row = HEADS * DIM;
                let host = Host::from_fn([count, HEADS, DIM], dtype, |i| {
                    element(new[i / row], layer, part, i / DIM % HEADS, i % DIM)
                });
                host.tensor(&self.device)
            });
            append_paged_kv(self.cache.layer_mut(layer).expect("a layer"), k, v, &slots).expect("it fits");
        }
    }

    /// Lengths and pages add up.
    fn check_accounts(&self) {
        let mut used = BTreeSet::new();
        for (&id, tokens) in &self.tokens {
            assert_eq!(self.cache.len(id).expect("alive"), tokens.len());
            let owned = self.owned(id);
            assert_eq!(owned.len(), tokens.len().div_ceil(self.page_size), "pages of {id:?}");
            used.extend(owned);
        }
        assert_eq!(self.cache.free_pages(), self.pages - used.len(), "a page leaked or is free and in use");
        assert_eq!(self.cache.is_empty(), self.tokens.is_empty());
    }

    /// Every sequence reads back what was appended to it.
    fn check_tokens(&self) {
        for layer in 0..LAYERS {
            let pages = self.cache.layer(layer).expect("a layer");
            for (part, tensor) in [(0, pages.k()), (1, pages.v())] {
                let pool = Host::of(tensor.clone());
                let pool = Pages::new(pool.shape, self.layout, pool.f64()).expect("a pool");
                for (&id, tokens) in &self.tokens {
                    let last = if tokens.is_empty() { 0 } else { (tokens.len() - 1) % self.page_size + 1 };
                    let got = gather_pages(&pool, &self.owned(id), last).expect("a valid table");
                    let rows = HEADS * DIM;
                    for (i, &x) in got.values().iter().enumerate() {
                        let token = tokens[i / rows];
                        let expected = element(token, layer, part, i / DIM % HEADS, i % DIM);
                        assert_eq!(x, f64::from(expected), "{id:?}, layer {layer}, element {i}");
                    }
                    assert_eq!(got.values().len(), tokens.len() * rows);
                }
            }
        }
    }
}

#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn any_history() {
    for target in devices() {
        let cases = if target.is_slow() { 12 } else { 96 };
        let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed().to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let strategy = (
            1..6_usize,
            1..10_usize,
            prop_oneof![Just(KvLayout::Nhd), Just(KvLayout::Hnd)],
            prop::collection::vec(action(), 1..40),
        );
        let outcome =
            TestRunner::new_with_rng(config, rng).run(&strategy, |(page_size, pages, layout, actions)| {
                let mut model = Model::new(&target, page_size, pages, layout, DType::F32);
                for (at, action) in actions.iter().enumerate() {
                    model.apply(action);
                    model.check_accounts();
                    if at % 8 == 7 {
                        model.check_tokens();
                    }
                }
                model.check_tokens();
                // In the end every page comes back.
                for id in model.tokens.keys().copied().collect::<Vec<_>>() {
                    model.cache.free(id).expect("alive");
                }
                assert_eq!(model.cache.free_pages(), pages);
                Ok(())
            });
        if let Err(error) = outcome {
            panic!("{}, seed {}: {error}", target.name, seed());
        }
    }
}

/// A fork and its parent write into the same page: each has its own tokens afterwards, and the last owner keeps the page.
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn copy_on_write() {
    for target in devices() {
        for layout in [KvLayout::Nhd, KvLayout::Hnd] {
            let mut model = Model::new(&target, 4, 8, layout, DType::F32);
            model.apply(&Action::Create);
            model.apply(&Action::Append(vec![(0, 6)]));
            model.apply(&Action::Fork(0));
            model.apply(&Action::Fork(0));
            assert_eq!(model.cache.free_pages(), 6);
            // All three in one call: two copies.
            model.apply(&Action::Append(vec![(0, 1), (1, 1), (2, 1)]));
            assert_eq!(model.cache.free_pages(), 4);
            model.check_tokens();
            let tails: BTreeSet<usize> =
                (0..3).map(|i| model.owned(model.id(i).expect("alive"))[1]).collect();
            assert_eq!(tails.len(), 3);
            // A full page is never copied.
            model.apply(&Action::Append(vec![(0, 1)]));
            model.apply(&Action::Fork(0));
            let free = model.cache.free_pages();
            model.apply(&Action::Append(vec![(0, 1), (3, 1)]));
            assert_eq!(model.cache.free_pages(), free - 2);
            model.check_tokens();
            model.check_accounts();
        }
    }
}

/// After a fork was cut back into a shared page, what it appends does not reach its parent.
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn truncate_into_a_shared_page() {
    for target in devices() {
        let mut model = Model::new(&target, 4, 8, KvLayout::Nhd, DType::F32);
        model.apply(&Action::Create);
        model.apply(&Action::Append(vec![(0, 8)]));
        model.apply(&Action::Fork(0));
        model.apply(&Action::Truncate(1, 5));
        model.apply(&Action::Append(vec![(1, 4)]));
        model.check_tokens();
        model.check_accounts();
    }
}

/// The types of elements and what the extents say.
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn extents() {
    for target in devices() {
        for dtype in target.dtypes() {
            let config = CacheConfig::new(3, 5, 4, 2, 8).dtype(dtype).layout(KvLayout::Hnd);
            assert_eq!(config.bytes(), 2 * 3 * 5 * 4 * 2 * 8 * dtype.size());
            let cache = PagedKvCache::new(&config, &target.device).expect("a valid cache");
            assert_eq!((cache.free_pages(), cache.page_size()), (5, 4));
            for layer in 0..3 {
                let pages = cache.layer(layer).expect("a layer");
                assert_eq!((pages.k().dims(), pages.v().dims()), ([5, 2, 4, 8], [5, 2, 4, 8]));
                assert_eq!((pages.k().dtype(), pages.layout()), (dtype, KvLayout::Hnd));
                assert!(Host::of(pages.v().clone()).values.iter().all(|&x| x == 0.0));
            }
        }
    }
}

/// A step of a model on two sequences, one of them new: attention over a new page reads no uninitialised slot.
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn decode_step() {
    for target in devices() {
        for dtype in target.dtypes() {
            let config = CacheConfig::new(1, 4, 16, 2, 64).dtype(dtype);
            let mut cache = PagedKvCache::new(&config, &target.device).expect("a valid cache");
            let ids = [cache.create(), cache.create()];
            for step in 0..20 {
                let slots = cache.reserve(&ids.map(|id| (id, 1))).expect("room");
                let table = cache.page_table(&ids).expect("alive");
                assert_eq!(table.kv_lengths(), [step + 1, step + 1]);
                let row = |x: f32| Host::full([2, 2, 64], dtype, x).tensor(&target.device);
                append_paged_kv(cache.layer_mut(0).expect("a layer"), row(0.5), row(-2.0), &slots)
                    .expect("it fits");
                let q = Host::full([2, 8, 64], dtype, 0.25).tensor(&target.device);
                let pages = cache.layer(0).expect("a layer");
                let options = AttentionOptions::new().return_lse(true);
                let attended = batch_decode_paged(q, pages, &table, &options).expect("it fits");
                assert!(Host::of(attended.output).values.iter().all(|x| (x + 2.0).abs() < 1e-2));
                // Every logit is 64 · 0.125 / 8 = 1.
                let lse = std::f32::consts::LOG2_E + ((step + 1) as f32).log2();
                let got = Host::of(attended.lse.expect("asked for")).values;
                assert!(got.iter().all(|x| (x - lse).abs() < 1e-4), "{got:?}, expected {lse}");
            }
        }
    }
}
