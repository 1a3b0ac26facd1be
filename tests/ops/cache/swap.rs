//! Sequences that go to host memory and come back.

use burn::tensor::DType;
use burn_flashinfer::{
    CacheConfig, KvLayout, PagedKvCache, SequenceId, SlotMapping, append_paged_kv, reference,
};

use super::model::Model;
use super::text;
use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, refused};

device_tests!(bit_for_bit, shared_and_empty, under_pressure, refusals);

const HEADS: usize = 2;
const DIM: usize = 24;

/// The bits of what a sequence has in each layer, keys and values.
fn read(cache: &PagedKvCache, layers: usize, id: SequenceId) -> Vec<Vec<u64>> {
    let table = cache.page_table(&[id]).expect("alive");
    let len = cache.len(id).expect("alive");
    let last = if len == 0 { 0 } else { (len - 1) % cache.page_size() + 1 };
    let mut rows = Vec::new();
    for layer in 0..layers {
        let pages = cache.layer(layer).expect("a layer");
        for tensor in [pages.k().expect("numbers"), pages.v().expect("numbers")] {
            let pool = Host::of(tensor.clone());
            let pool = reference::Pages::new(pool.shape, pages.layout(), pool.f64()).expect("a pool");
            let got = reference::gather_pages(&pool, table.pages(0), last).expect("a valid table");
            rows.push(got.values().iter().map(|x| x.to_bits()).collect());
        }
    }
    rows
}

fn append(cache: &mut PagedKvCache, layers: usize, slots: &SlotMapping, rng: &mut Rng, target: &Target) {
    for layer in 0..layers {
        let pages = cache.layer_mut(layer).expect("a layer");
        let [k, v] = [0, 1].map(|_| {
            let mut rows = Host::random([slots.len(), HEADS, DIM], pages.dtype(), rng);
            rows.values[..3].copy_from_slice(&[f32::INFINITY, -0.0, f32::NAN]);
            rows.tensor(&target.device)
        });
        append_paged_kv(pages, k, v, slots).expect("it fits");
    }
}

/// Every type and layout: bit for bit, also into a cache whose pages are of another size and layout, and more than once.
fn bit_for_bit(target: Target) {
    let rng = &mut Rng::new("swap");
    let layers = 3;
    for dtype in target.dtypes() {
        for (layout, other) in [(KvLayout::Nhd, KvLayout::Hnd), (KvLayout::Hnd, KvLayout::Nhd)] {
            let config = |pages, page_size| {
                CacheConfig::new(layers, pages, page_size, HEADS, DIM).layout(layout).dtype(dtype)
            };
            let new = |config: CacheConfig| PagedKvCache::new(&config, &target.device).expect("valid");
            let mut cache = new(config(12, 5));
            let [id, neighbour] = [cache.create(), cache.create()];
            // Pages of both alternate.
            for tokens in [7, 6, 4] {
                let slots = cache.reserve(&[(id, tokens), (neighbour, 5)]).expect("room");
                append(&mut cache, layers, &slots, rng, &target);
            }
            let expected = [id, neighbour].map(|id| read(&cache, layers, id));
            let swapped = cache.swap_out(id).expect("alive");
            assert_eq!((swapped.len(), swapped.is_empty()), (17, false));
            assert_eq!(swapped.bytes(), 2 * layers * 17 * HEADS * DIM * dtype.size());
            assert_eq!(cache.free_pages(), 9);
            // Others write meanwhile where it was.
            let between = cache.create();
            let slots = cache.reserve(&[(between, 20)]).expect("room");
            append(&mut cache, layers, &slots, rng, &target);
            let back = cache.swap_in(&swapped).expect("room");
            assert_ne!(back, id);
            assert_eq!([back, neighbour].map(|id| read(&cache, layers, id)), expected, "{dtype:?}");
            // Into another cache, twice.
            let mut elsewhere = new(config(9, 4).layout(other));
            let copies = [0, 1].map(|_| elsewhere.swap_in(&swapped));
            assert_eq!(read(&elsewhere, layers, *copies[0].as_ref().expect("room")), expected[0]);
            refused(
                copies[1].clone(),
                "PagedKvCache::swap_in: `swapped` needs 5 more pages, but only 4 of 9 are free",
            );
        }
    }
}

/// A sequence without tokens, and one whose pages others share: those keep them.
fn shared_and_empty(target: Target) {
    let mut model = Model::new(&target, 4, 8, KvLayout::Nhd, DType::F32);
    let parent = model.create();
    model.append(&[(parent, text(0, 9))]);
    let fork = model.fork(parent);
    model.remember(parent);
    model.swap_out(parent);
    assert_eq!(model.cache.free_pages(), 5);
    model.append(&[(fork, text(1, 2))]);
    let back = model.swap_in(0).expect("room");
    assert_eq!(model.cache.stats().shared_pages, 2);
    model.append(&[(back, text(2, 3))]);
    let empty = model.create();
    model.swap_out(empty);
    model.swap_in(0).expect("it needs none");
    model.check_contents();
    model.check_accounts();
}

/// It evicts what is remembered, if it must; refusals change nothing.
fn under_pressure(target: Target) {
    let mut model = Model::new(&target, 4, 4, KvLayout::Nhd, DType::F32);
    let [waiting, other] = [model.create(), model.create()];
    model.append(&[(waiting, text(0, 8))]);
    model.swap_out(waiting);
    model.append(&[(other, text(1, 12))]);
    model.remember(other);
    assert!(model.swap_in(0).is_none());
    model.free(other);
    model.swap_in(0).expect("room, once a page is evicted");
    assert_eq!(model.cache.match_prefix(&[&text(1, 12)[..], &[0]].concat()), 8);
    model.check_contents();
    model.check_accounts();
}

/// Refusals, word for word.
fn refusals(target: Target) {
    let new = |layers, heads, dim, dtype| {
        let config = CacheConfig::new(layers, 4, 4, heads, dim).dtype(dtype);
        PagedKvCache::new(&config, &target.device).expect("a valid cache")
    };
    let mut cache = new(2, 2, 8, DType::F32);
    let id = cache.create();
    cache.reserve(&[(id, 6)]).expect("room");
    let swapped = cache.swap_out(id).expect("alive");
    refused(
        cache.swap_out(id),
        format!(
            "PagedKvCache::swap_out: `sequence` is {id:?}, expected a sequence of this cache that is not freed"
        ),
    );
    let refuse = |mut cache: PagedKvCache, what: &str| {
        refused(cache.swap_in(&swapped), format!("PagedKvCache::swap_in: `swapped` {what}"));
        assert!(cache.is_empty() && cache.free_pages() == 4);
    };
    refuse(new(3, 2, 8, DType::F32), "is of 2 layers, expected 3");
    refuse(new(2, 1, 8, DType::F32), "has shape [6, 2, 8], expected [6, 1, 8], as the cache has it");
    refuse(new(2, 2, 4, DType::F32), "has shape [6, 2, 8], expected [6, 2, 4], as the cache has it");
    if target.dtypes().contains(&DType::F16) {
        refuse(new(2, 2, 8, DType::F16), "is of type F32, expected F16, as the other arguments");
    }
}
