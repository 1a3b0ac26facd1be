//! [`PagedKvCache::keep`]: the accepted tokens of a tree move together, and nobody else's do.

use burn::tensor::{DType, Device};
use burn_flashinfer::{
    CacheConfig, KvLayout, PagedKvCache, SequenceId, TokenTree, append_paged_kv, gather_paged_kv,
};

use crate::devices::{Target, device_tests};
use crate::support::{Host, refused};

device_tests!(accepted_tokens_move_together, refusals_keep_all);

const HEADS: usize = 2;
const DIM: usize = 4;

/// Appends tokens with these numbers: element `i` of the keys of layer `l` is `number + 64 l`, the values are their negatives.
fn append(cache: &mut PagedKvCache, sequence: SequenceId, numbers: &[usize], dtype: DType) {
    let slots = cache.reserve(&[(sequence, numbers.len())]).expect("room");
    for layer in 0..2 {
        let device = cache.device().clone();
        let rows = |sign: f32| {
            let value = |i| sign * (numbers[i / (HEADS * DIM)] + 64 * layer) as f32;
            Host::from_fn([numbers.len(), HEADS, DIM], dtype, value).tensor(&device)
        };
        append_paged_kv(cache.layer_mut(layer).expect("a layer"), rows(1.0), rows(-1.0), &slots)
            .expect("fits");
    }
}

/// The numbers of a sequence's tokens, the same in all elements.
fn numbers(cache: &PagedKvCache, sequence: SequenceId) -> Vec<usize> {
    let table = cache.page_table(&[sequence]).expect("alive");
    let [first, second] = [0, 1].map(|layer| {
        let pages = cache.layer(layer).expect("a layer");
        let (k, v) = gather_paged_kv(pages, &table, pages.dtype()).expect("fits");
        let (k, v) = (Host::of(k).values, Host::of(v).values);
        let tokens = k.chunks_exact(HEADS * DIM).zip(v.chunks_exact(HEADS * DIM));
        let number = |(k, v): (&[f32], &[f32])| {
            assert!(k.iter().all(|&x| x == k[0]) && v.iter().all(|&x| x == -k[0]), "{k:?} {v:?}");
            k[0] as usize - 64 * layer
        };
        tokens.map(number).collect::<Vec<_>>()
    });
    assert_eq!(first, second);
    assert_eq!(cache.len(sequence), Ok(first.len()));
    first
}

fn cache(device: &Device, layout: KvLayout, dtype: DType) -> PagedKvCache {
    let config = CacheConfig::new(2, 12, 4, HEADS, DIM).layout(layout).dtype(dtype);
    PagedKvCache::new(&config, device).expect("a cache")
}

fn accepted_tokens_move_together(target: Target) {
    let cases =
        target.dtypes().into_iter().flat_map(|dtype| [(KvLayout::Nhd, dtype), (KvLayout::Hnd, dtype)]);
    for (layout, dtype) in target.thin(3, cases.collect()) {
        let mut cache = cache(&target.device, layout, dtype);
        let all: Vec<usize> = (0..13).collect();
        let (sequence, other) = (cache.create(), cache.create());
        append(&mut cache, other, &[40, 41, 42], dtype);
        append(&mut cache, sequence, &all, dtype);
        // Tokens 6 to 12 are a tree, of which rows 0, 2 and 5 are accepted: one moves within its page, one between pages.
        let tree =
            TokenTree::new(&[None, Some(0), Some(0), None, Some(1), Some(2), Some(3)]).expect("a tree");
        let path = tree.path(5).expect("a token");
        // A fork keeps what it has, as do the pages that are remembered.
        let text: Vec<u32> = (0..13).collect();
        cache.remember(sequence, &text).expect("its tokens");
        let fork = cache.fork(sequence).expect("alive");
        let before = (cache.free_pages(), cache.stats().copied_pages);
        cache.keep(sequence, 6, &path).expect("accepted");
        // The last page is given up; two are written to, of which each is another's too.
        assert_eq!((cache.free_pages(), cache.stats().copied_pages), (before.0 - 2, before.1 + 2));
        assert_eq!(numbers(&cache, sequence), [0, 1, 2, 3, 4, 5, 6, 8, 11]);
        assert_eq!(numbers(&cache, fork), all);
        let (prefix, found) = cache.create_with_prefix(&text);
        assert_eq!((found, numbers(&cache, prefix)), (12, all[..12].to_vec()));
        assert_eq!(numbers(&cache, other), [40, 41, 42]);

        // It goes on, in pages of its own: nothing is copied any more.
        append(&mut cache, sequence, &[20, 21, 22, 23], dtype);
        cache.keep(sequence, 9, &[0, 3]).expect("accepted");
        assert_eq!(numbers(&cache, sequence), [0, 1, 2, 3, 4, 5, 6, 8, 11, 20, 23]);
        assert_eq!(cache.stats().copied_pages, before.1 + 2);
        // The first tokens stay where they are. None of them may be kept, and all.
        cache.keep(sequence, 8, &[0, 1]).expect("accepted");
        cache.keep(sequence, 10, &[]).expect("accepted");
        cache.keep(sequence, 0, &(0..10).collect::<Vec<_>>()).expect("accepted");
        assert_eq!(numbers(&cache, sequence), [0, 1, 2, 3, 4, 5, 6, 8, 11, 20]);
    }
}

fn refusals_keep_all(target: Target) {
    let mut cache = cache(&target.device, KvLayout::Nhd, DType::F32);
    let sequence = cache.create();
    append(&mut cache, sequence, &[0, 1, 2, 3, 4, 5, 6, 7], DType::F32);
    let keep = |cache: &mut PagedKvCache, first, kept: &[usize]| cache.keep(sequence, first, kept);
    let op = "PagedKvCache::keep:";
    refused(
        keep(&mut cache, 9, &[]),
        format!("{op} `first` is 9, expected 0 to 8, tokens that the sequence has"),
    );
    refused(keep(&mut cache, 2, &[0, 6]), format!("{op} `kept[1]` is 6, expected at least 1, and below 6"));
    refused(keep(&mut cache, 2, &[3, 3]), format!("{op} `kept[1]` is 3, expected at least 4, and below 6"));
    // All pages are taken, and a fork has those of the sequence.
    let (fork, rest) = (cache.fork(sequence).expect("alive"), cache.create());
    cache.reserve(&[(rest, 40)]).expect("room");
    refused(
        keep(&mut cache, 2, &[1, 2]),
        format!("{op} `sequence` needs 1 more pages, but only 0 of 12 are free"),
    );
    assert_eq!(numbers(&cache, sequence), numbers(&cache, fork));
    cache.free(fork).expect("alive");
    keep(&mut cache, 2, &[1, 2]).expect("accepted");
    assert_eq!(numbers(&cache, sequence), [0, 1, 3, 4]);
    cache.release_before(sequence, 4).expect("alive");
    refused(
        keep(&mut cache, 2, &[1]),
        format!("{op} `first` is 2, expected 4 to 4, tokens that the sequence has"),
    );
}
