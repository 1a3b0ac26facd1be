//! [`PagedKvCache`]: by hand, and against a list of tokens for each sequence.

mod handles;
mod history;
mod keep;
mod model;
mod prefixes;
mod release;
mod steps;
mod swap;

use std::collections::BTreeSet;

use burn::tensor::DType;
use burn_flashinfer::{
    AttentionOptions, CacheConfig, KvLayout, PagedKvCache, append_paged_kv, batch_decode_paged,
};

use self::model::Model;
use crate::devices::{Target, device_tests};
use crate::support::Host;

device_tests!(copy_on_write, truncate_into_a_shared_page, extents, decode_step);

/// Tokens that differ, and from those of any other `first`.
fn text(first: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|at| first * 1000 + at).collect()
}

/// A fork and its parent write into the same page: each has its own tokens afterwards, and the last owner keeps the page.
fn copy_on_write(target: Target) {
    for layout in [KvLayout::Nhd, KvLayout::Hnd] {
        let mut model = Model::new(&target, 4, 8, layout, DType::F32);
        let parent = model.create();
        model.append(&[(parent, text(0, 6))]);
        let forks = [parent, model.fork(parent), model.fork(parent)];
        assert_eq!(model.cache.free_pages(), 6);
        // All three in one call: two copies.
        let growth: Vec<_> = forks.into_iter().zip(1..).map(|(id, first)| (id, text(first, 1))).collect();
        model.append(&growth);
        assert_eq!(model.cache.free_pages(), 4);
        model.check_contents();
        let tails: BTreeSet<usize> = forks.iter().map(|&id| model.owned(id)[1]).collect();
        assert_eq!(tails.len(), 3);
        // A full page is never copied.
        model.append(&[(parent, text(4, 1))]);
        let fork = model.fork(parent);
        let free = model.cache.free_pages();
        model.append(&[(parent, text(5, 1)), (fork, text(6, 1))]);
        assert_eq!(model.cache.free_pages(), free - 2);
        model.check_contents();
        model.check_accounts();
    }
}

/// After a fork was cut back into a shared page, what it appends does not reach its parent.
fn truncate_into_a_shared_page(target: Target) {
    let mut model = Model::new(&target, 4, 8, KvLayout::Nhd, DType::F32);
    let parent = model.create();
    model.append(&[(parent, text(0, 8))]);
    let fork = model.fork(parent);
    model.truncate(fork, 5);
    model.append(&[(fork, text(1, 4))]);
    model.check_contents();
    model.check_accounts();
}

/// The types of elements and what the extents say.
fn extents(target: Target) {
    for dtype in target.dtypes() {
        let config = CacheConfig::new(3, 5, 4, 2, 8).dtype(dtype).layout(KvLayout::Hnd);
        assert_eq!(config.bytes(), 2 * 3 * 5 * 4 * 2 * 8 * dtype.size());
        let cache = PagedKvCache::new(&config, &target.device).expect("a valid cache");
        assert_eq!((cache.free_pages(), cache.page_size()), (5, 4));
        for layer in 0..3 {
            let pages = cache.layer(layer).expect("a layer");
            assert_eq!(
                (pages.k().expect("numbers").dims(), pages.v().expect("numbers").dims()),
                ([5, 2, 4, 8], [5, 2, 4, 8])
            );
            assert_eq!((pages.dtype(), pages.layout()), (dtype, KvLayout::Hnd));
            assert!(Host::of(pages.v().expect("numbers").clone()).values.iter().all(|&x| x == 0.0));
        }
    }
}

/// A step of a model on two sequences, one of them new: attention over a new page reads no uninitialised slot.
fn decode_step(target: Target) {
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
