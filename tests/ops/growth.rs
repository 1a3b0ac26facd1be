//! The host takes time for a batch as it has pages, not as their square. Times are compared with each other
//! in one run, the best of several each: those of the processor, whatever else runs on it.

use std::time::Duration;

use burn::tensor::Device;
use burn_flashinfer::{CacheConfig, Cascade, Indptr, PageTable, PagedKvCache, SequenceId};
use cpu_time::ThreadTime;

/// The least time of some runs.
fn best(mut run: impl FnMut() -> Duration) -> Duration {
    (0..5).map(|_| run()).min().unwrap_or_default()
}

fn time<T>(run: impl FnOnce() -> T) -> Duration {
    let start = ThreadTime::now();
    std::hint::black_box(run());
    start.elapsed()
}

/// Four times as much takes less than ten times as long: what grows as the square takes sixteen times.
fn grows_evenly(what: &str, size: usize, mut run: impl FnMut(usize) -> Duration) {
    let [small, large] = [size, 4 * size].map(|size| best(|| run(size)));
    let most = 10 * small + Duration::from_millis(1);
    assert!(large < most, "{what}: {size} in {small:?}, {} in {large:?}", 4 * size);
}

/// A batch of requests with these pages, one query each.
fn batch(requests: &[Vec<usize>], device: &Device) -> (PageTable, Duration, Indptr) {
    let mut indptr = vec![0];
    indptr.extend(requests.iter().scan(0, |end, pages| {
        *end += pages.len();
        Some(*end)
    }));
    let indices = requests.concat();
    let pool = indices.iter().max().map_or(0, |&page| page + 1);
    let last = vec![1; requests.len()];
    let make = || PageTable::new(&indptr, &indices, &last, 1, pool, device).expect("valid");
    let made = best(|| time(make));
    (make(), made, Indptr::from_lengths(&vec![1; requests.len()], device).expect("lengths"))
}

/// Taking a batch apart takes about as long as making its page table, which looks at each page once: less than three times,
/// where what grew with the square took fifty times.
#[test]
fn cascades() {
    let device = &Device::flex();
    let nested = |requests: usize| (0..requests).map(|request| (0..=request).collect()).collect();
    let falling = |requests: usize| (0..requests).rev().map(|request| (0..=request).collect()).collect();
    let own = |requests: usize, shared: usize| {
        let pages = |request: usize| (0..shared).chain([shared + request]).collect();
        (0..requests).map(pages).collect()
    };
    // One long prefix, of which request after request leaves, and many short requests behind.
    let comb = |teeth: usize| {
        let pages = |tooth: usize| (0..=tooth).chain([teeth + tooth]).collect();
        (0..teeth).map(pages).chain((0..8 * teeth).map(|request| vec![2 * teeth + request])).collect()
    };
    let cases: [(&str, Vec<Vec<usize>>); 6] = [
        ("nested", nested(1200)),
        ("nested, the longest first", falling(1200)),
        ("all the same", own(4000, 200)),
        ("nothing in common", own(100_000, 0)),
        ("one long among short ones", [nested(1), vec![(0..200_000).collect()], own(20_000, 0)].concat()),
        ("a comb", comb(600)),
    ];
    for (what, requests) in cases {
        let (table, made, qo) = batch(&requests, device);
        for least_saved in [0, 1, 100, usize::MAX] {
            let cut = best(|| time(|| Cascade::new(&table, &qo, least_saved).expect("it fits")));
            assert!(cut < 3 * made + Duration::from_millis(1), "{what}: {cut:?}, its page table in {made:?}");
        }
    }
}

/// Pages of 1 token.
fn cache(pages: usize) -> PagedKvCache {
    PagedKvCache::new(&CacheConfig::new(1, pages, 1, 1, 1), &Device::flex()).expect("a valid cache")
}

/// A sequence of these tokens, remembered.
fn remembered(cache: &mut PagedKvCache, tokens: &[u32]) -> SequenceId {
    let id = cache.create();
    cache.reserve(&[(id, tokens.len())]).expect("room");
    cache.remember(id, tokens).expect("its tokens");
    id
}

/// Pages are evicted one by one while as many older ones are in use, and while they hang on one another.
#[test]
fn eviction() {
    let evicted = |cache: &mut PagedKvCache, pages: usize| {
        let growing = cache.create();
        let took = time(|| (0..pages).for_each(|_| drop(cache.reserve(&[(growing, 1)]).expect("room"))));
        assert_eq!(cache.stats().evicted_pages, pages as u64);
        took
    };
    grows_evenly("evicting beside pages in use", 1000, |size| {
        let mut cache = cache(2 * size);
        for token in 0..size as u32 {
            remembered(&mut cache, &[token]);
        }
        for token in 0..size as u32 {
            let id = remembered(&mut cache, &[u32::MAX - token]);
            cache.free(id).expect("alive");
        }
        evicted(&mut cache, size)
    });
    grows_evenly("evicting a long prefix", 2000, |size| {
        let mut cache = cache(size);
        let id = remembered(&mut cache, &(0..size as u32).collect::<Vec<_>>());
        cache.free(id).expect("alive");
        evicted(&mut cache, size)
    });
}

/// Forks of forks, sequences that computed the same, and many of them in one call.
#[test]
fn sequences() {
    grows_evenly("a chain of forks", 2000, |size| {
        let mut cache = cache(size + 1);
        let mut last = cache.create();
        time(|| {
            for _ in 0..size {
                cache.reserve(&[(last, 1)]).expect("room");
                let fork = cache.fork(last).expect("alive");
                // One page each: the chain is as long as it is, not as its pages are many.
                cache.truncate(fork, 0).expect("alive");
                last = fork;
            }
        })
    });
    grows_evenly("the same by many", 200, |size| {
        let mut cache = cache(size * 100);
        let tokens: Vec<u32> = (0..100).collect();
        let ids: Vec<_> = (0..size).map(|_| cache.create()).collect();
        cache.reserve(&ids.iter().map(|&id| (id, 100)).collect::<Vec<_>>()).expect("room");
        let took = time(|| ids.iter().for_each(|&id| cache.remember(id, &tokens).expect("its tokens")));
        assert_eq!(cache.stats().merged_pages, (size as u64 - 1) * 100);
        took
    });
    grows_evenly("a long text that forks computed twice", 500, |size| {
        let mut cache = cache(2 * size);
        let tokens: Vec<u32> = (0..size as u32).collect();
        remembered(&mut cache, &tokens);
        let twin = cache.create();
        cache.reserve(&[(twin, size)]).expect("room");
        for _ in 0..20 {
            cache.fork(twin).expect("alive");
        }
        time(|| cache.remember(twin, &tokens).expect("its tokens"))
    });
    grows_evenly("steps of a batch", 1000, |size| {
        let mut cache = cache(2 * size);
        let growth: Vec<_> = (0..size).map(|_| (cache.create(), 1)).collect();
        let ids: Vec<_> = growth.iter().map(|&(id, _)| id).collect();
        time(|| {
            cache.reserve(&growth).expect("room");
            cache.page_table(&ids).expect("alive");
            cache.last_positions(&growth).expect("alive");
        })
    });
}
