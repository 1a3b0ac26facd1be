//! Prefixes that are remembered, found, merged, evicted and forgotten, by hand.

use burn::tensor::DType;
use burn_flashinfer::{CacheConfig, KvLayout, KvPages, PagedKvCache, SequenceId};

use super::model::Model;
use super::text;
use crate::devices::{Target, device_tests};
use crate::support::{Host, refused};

device_tests!(
    longest_prefix,
    computed_twice,
    least_recently_used,
    remembered_pages_are_not_written,
    refusals,
    replaced_layers
);

/// Pages of 4 tokens.
fn model(target: &Target, pages: usize) -> Model {
    Model::new(target, 4, pages, KvLayout::Nhd, DType::F32)
}

/// A request whose every token is computed or found, and that is remembered.
fn request(model: &mut Model, tokens: &[u32]) -> SequenceId {
    let id = model.create_with_prefix(tokens);
    let rest = tokens[model.sequences[&id].len()..].to_vec();
    assert!(model.append(&[(id, rest)]));
    model.remember(id);
    id
}

/// Requests that share a system prompt and part ways: pages are shared as far as they agree in whole pages, and never with
/// the last token.
fn longest_prefix(target: Target) {
    let mut model = model(&target, 16);
    let system = text(0, 10);
    let [a, b] = [1, 2].map(|first| [&system[..], &text(first, 6)].concat());
    let first = request(&mut model, &a);
    let second = request(&mut model, &b);
    assert_eq!(model.owned(first)[..2], model.owned(second)[..2]);
    // 4 pages of each, 2 of them the same.
    assert_eq!(model.cache.stats().remembered_pages, 6);
    assert_eq!((model.cache.stats().hit_tokens, model.cache.stats().missed_tokens), (8, 24));
    for (tokens, matched) in
        [(&a[..], 12), (&a[..13], 12), (&a[..12], 8), (&a[4..], 0), (&a[..1], 0), (&[], 0)]
    {
        assert_eq!(model.cache.match_prefix(tokens), matched, "{tokens:?}");
    }
    // A found prefix reads back when nobody else uses it any more.
    model.free(first);
    model.free(second);
    let again = model.create_with_prefix(&[&b[..], &[7]].concat());
    assert_eq!(model.sequences[&again].len(), 16);
    model.check_contents();
    model.check_accounts();
}

/// Two requests that computed the same at the same time: the second gives its pages back, and so do its forks.
fn computed_twice(target: Target) {
    let mut model = model(&target, 16);
    let tokens = text(0, 9);
    let twins = [model.create(), model.create()];
    model.append(&twins.map(|id| (id, tokens.clone())));
    let fork = model.fork(twins[1]);
    let longer = [&tokens[..], &text(1, 5)].concat();
    model.append(&[(twins[1], text(1, 5))]);
    model.remember(twins[0]);
    let free = model.cache.free_pages();
    model.remember(twins[1]);
    assert_eq!((model.cache.free_pages(), model.cache.stats().merged_pages), (free + 2, 2));
    assert_eq!(model.owned(fork)[..2], model.owned(twins[0])[..2]);
    // The page behind them is remembered as well.
    assert_eq!(model.cache.match_prefix(&longer), 12);
    model.check_contents();
    model.check_accounts();
    // With the second gone the fork alone uses the first two pages: they stay, the page behind them may go.
    model.free(twins[0]);
    model.free(twins[1]);
    assert_eq!(model.cache.stats().evictable_pages, 1);
    model.check_accounts();
}

/// Under pressure the prefix goes that was not used for longest, from its end, and none that a sequence uses.
fn least_recently_used(target: Target) {
    let mut model = model(&target, 8);
    let texts = [0, 1, 2].map(|first| text(first, 8));
    let ids = texts.each_ref().map(|tokens| request(&mut model, tokens));
    // The oldest is given up last.
    [1, 2, 0].into_iter().for_each(|which| model.free(ids[which]));
    assert_eq!((model.cache.free_pages(), model.cache.available_pages()), (2, 8));
    let matched = |model: &Model| {
        texts.each_ref().map(|tokens| model.cache.match_prefix(&[&tokens[..], &[0]].concat()))
    };
    // Looking is no use.
    assert_eq!(matched(&model), [8, 8, 8]);
    let growing = model.create();
    model.append(&[(growing, text(3, 12))]);
    assert_eq!(matched(&model), [8, 4, 8]);
    model.append(&[(growing, text(4, 12))]);
    assert_eq!(matched(&model), [8, 0, 0]);
    // A sequence uses the pages that are left.
    let holder = model.create_with_prefix(&[&texts[0][..], &[0]].concat());
    assert!(!model.append(&[(growing, text(5, 1))]));
    assert_eq!(matched(&model), [8, 0, 0]);
    model.free(holder);
    assert!(model.append(&[(growing, text(5, 1))]));
    assert_eq!(matched(&model), [4, 0, 0]);
    assert_eq!(model.cache.stats().evicted_pages, 5);
    model.check_contents();
    model.check_accounts();
}

/// A sequence that was cut back into a page that is remembered writes into a copy of it.
fn remembered_pages_are_not_written(target: Target) {
    for (dtype, layout) in
        target.dtypes().into_iter().flat_map(|d| [KvLayout::Nhd, KvLayout::Hnd].map(|l| (d, l)))
    {
        let mut model = Model::new(&target, 4, 4, layout, dtype);
        let tokens = text(0, 8);
        let id = request(&mut model, &tokens);
        model.truncate(id, 6);
        model.append(&[(id, text(1, 2))]);
        assert_eq!(model.cache.stats().copied_pages, 1);
        assert_eq!(model.cache.match_prefix(&[&tokens[..], &[0]].concat()), 8);
        model.remember(id);
        assert_eq!(model.cache.stats().remembered_pages, 3);
        model.check_contents();
        model.check_accounts();
        model.forget();
        assert_eq!(model.cache.match_prefix(&tokens), 0);
        model.check_accounts();
    }
}

/// Refusals, word for word.
fn refusals(target: Target) {
    let mut model = model(&target, 4);
    let tokens = text(0, 8);
    let id = request(&mut model, &tokens);
    let before = model.state();
    refused(
        model.cache.remember(id, &tokens[1..]),
        format!("PagedKvCache::remember: `tokens` is of length 7, expected 8, one for each token of {id:?}"),
    );
    let page = model.owned(id)[1];
    let mut other = tokens.clone();
    other[5] = 99;
    refused(
        model.cache.remember(id, &other),
        format!(
            "PagedKvCache::remember: `tokens` is other tokens than page {page} is remembered with, expected what {id:?} \
             has before token 8"
        ),
    );
    let growing = model.cache.create();
    refused(
        model.cache.reserve(&[(growing, 12)]),
        "PagedKvCache::reserve: `growth` needs 3 more pages, but only 2 of 4 are free",
    );
    model.cache.free(growing).expect("alive");
    assert_eq!(model.state(), before, "a refusal changed the cache");
    let freed = model.fork(id);
    model.free(freed);
    refused(
        model.cache.remember(freed, &tokens),
        format!(
            "PagedKvCache::remember: `sequence` is {freed:?}, expected a sequence of this cache that is not freed"
        ),
    );
}

/// A layer that a program replaced by one of other pages is refused before anything is copied, evicted or read.
fn replaced_layers(target: Target) {
    let config = CacheConfig::new(1, 4, 4, 2, 8);
    let mut cache = PagedKvCache::new(&config, &target.device).expect("a valid cache");
    let id = cache.create();
    cache.reserve(&[(id, 6)]).expect("room");
    let fork = cache.fork(id).expect("alive");
    let tensor = || Host::full([2, 4, 2, 8], DType::F32, 0.0).tensor(&target.device);
    *cache.layer_mut(0).expect("a layer") =
        KvPages::new(tensor(), tensor(), KvLayout::Nhd).expect("pages that fit");
    let before = cache.stats();
    let message =
        |op| format!("PagedKvCache::{op}: `layer` has shape [2, 4, 2, 8], expected 4 pages of 4 tokens");
    refused(cache.reserve(&[(fork, 1)]), message("reserve"));
    refused(cache.swap_out(id), message("swap_out"));
    assert_eq!(cache.stats(), before);
}
