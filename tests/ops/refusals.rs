//! Bad host-side arguments: row pointers, tables, slots, positions, caches, rotations. Word for word.

use burn::tensor::DType;
use burn_flashinfer::{
    CacheConfig, Indptr, PageTable, PagedKvCache, Positions, Rope, RopeConfig, RopeScaling, SequenceId,
    SlotMapping,
};

use crate::devices::{Target, device_tests};
use crate::support::{bits, refused};

device_tests!(indptr, page_table, slots, positions, cache_extents, cache, rope);

const PAST_I32: usize = i32::MAX as usize + 1;

fn indptr(target: Target) {
    let new = |indptr: &[usize]| Indptr::new(indptr, &target.device);
    let expected = "expected one entry more than there are requests, and at least one request";
    refused(new(&[]), format!("Indptr::new: `indptr` is of length 0, {expected}"));
    refused(new(&[0]), format!("Indptr::new: `indptr` is of length 1, {expected}"));
    refused(new(&[1, 2]), "Indptr::new: `indptr[0]` is 1, expected 0");
    refused(new(&[0, 5, 4, 9]), "Indptr::new: `indptr[2]` is 4, expected at least 5");
    refused(new(&[0, PAST_I32]), "Indptr::new: `indptr[1]` is 2147483648, expected at most 2147483647");
    let from = |lengths: &[usize]| Indptr::from_lengths(lengths, &target.device);
    refused(from(&[]), format!("Indptr::from_lengths: `lengths` is of length 1, {expected}"));
    refused(
        from(&[3, usize::MAX, usize::MAX]),
        "Indptr::from_lengths: `lengths[1]` is 18446744073709551615, expected at most 2147483647",
    );
    assert_eq!(new(&[0, i32::MAX as usize]).map(|indptr| indptr.total()), Ok(i32::MAX as usize));
}

fn page_table(target: Target) {
    let new = |indptr: &[usize], indices: &[usize], last: &[usize], page_size| {
        PageTable::new(indptr, indices, last, page_size, 8, &target.device)
    };
    refused(new(&[0, 1], &[0], &[0], 0), "PageTable::new: `page_size` is 0, expected at least 1");
    refused(
        new(&[0], &[], &[], 4),
        "PageTable::new: `indptr` is of length 1, expected one entry more than there are requests, and at least one \
         request",
    );
    refused(new(&[1, 2], &[0, 1], &[1], 4), "PageTable::new: `indptr[0]` is 1, expected 0");
    refused(new(&[0, 2, 1], &[0], &[1, 1], 4), "PageTable::new: `indptr[2]` is 1, expected at least 2");
    refused(
        new(&[0, 2], &[0, 1, 2], &[1], 4),
        "PageTable::new: `indptr[1]` is 2, expected 3, the length of `indices`",
    );
    refused(
        new(&[0, 2], &[0], &[1], 4),
        "PageTable::new: `indptr[1]` is 2, expected 1, the length of `indices`",
    );
    refused(
        new(&[0, 1], &[0], &[1, 1], 4),
        "PageTable::new: `last_page_len` is of length 2, expected one entry for each of 1 requests",
    );
    refused(
        new(&[0, 2], &[0, 8], &[1], 4),
        "PageTable::new: `indices[1]` is 8, expected a page of the pool, below 8",
    );
    refused(
        new(&[0, 1], &[usize::MAX], &[1], 4),
        "PageTable::new: `indices[0]` is 18446744073709551615, expected a page of the pool, below 8",
    );
    for last in ["0", "5"] {
        refused(
            new(&[0, 1], &[3], &[last.parse().expect("a number")], 4),
            format!("PageTable::new: `last_page_len[0]` is {last}, expected within 1..=4, the page size"),
        );
    }
    refused(
        new(&[0, 1, 1], &[3], &[4, 1], 4),
        "PageTable::new: `last_page_len[1]` is 1, expected 0 for a request without pages",
    );
    refused(
        new(&[0, 1, 4], &[1, 2, 1, 2], &[1, 1], 4),
        "PageTable::new: `indices[3]` is 2, expected a page that request 1 does not own already",
    );
    refused(
        new(&[0, 2], &[1, 2], &[1], i32::MAX as usize),
        "PageTable::new: `last_page_len[0]` is 2147483648, expected at most 2147483647",
    );
}

fn slots(target: Target) {
    // Request 0: 4 + 2 tokens in pages 3, 1. Request 1: 1 token in page 5. Request 2 begins with page 3, too.
    let table = PageTable::new(&[0, 2, 3, 4], &[3, 1, 5, 3], &[2, 1, 4], 4, 8, &target.device);
    let table = table.expect("a valid table");
    let new = |requests: &[Option<usize>], positions: &[usize]| SlotMapping::new(&table, requests, positions);
    refused(
        new(&[Some(0)], &[0, 1]),
        "SlotMapping::new: `positions` is of length 2, expected one for each of 1 tokens",
    );
    refused(
        new(&[None, Some(3)], &[0, 0]),
        "SlotMapping::new: `requests[1]` is 3, expected one of 3 requests",
    );
    refused(
        new(&[Some(0)], &[6]),
        "SlotMapping::new: `positions[0]` is 6, expected below 6, the length of request 0",
    );
    refused(
        new(&[Some(1)], &[usize::MAX]),
        "SlotMapping::new: `positions[0]` is 18446744073709551615, expected below 1, the length of request 1",
    );
    refused(
        new(&[Some(0), None, Some(0)], &[5, 0, 5]),
        "SlotMapping::new: `slots[2]` is page 1, offset 1, expected a slot that token 0 does not write already",
    );
    refused(
        new(&[Some(0), Some(2)], &[1, 1]),
        "SlotMapping::new: `slots[1]` is page 3, offset 1, expected a slot that token 0 does not write already",
    );
    let last = |lengths: &[usize]| {
        SlotMapping::last(&table, &Indptr::from_lengths(lengths, &target.device).expect("valid"))
    };
    refused(
        last(&[1, 1]),
        "SlotMapping::last: `append_indptr` is of 2 requests, expected of 3 requests, as the page table",
    );
    refused(
        last(&[1, 2, 0]),
        "SlotMapping::last: `append_indptr[2]` is 2 new tokens, expected at most 1, the length of request 1",
    );
    // Refused before memory for as many slots is asked for.
    refused(
        last(&[i32::MAX as usize, 0, 0]),
        "SlotMapping::last: `append_indptr[1]` is 2147483647 new tokens, expected at most 6, the length of request 0",
    );
}

fn positions(target: Target) {
    refused(
        Positions::new(&[0, PAST_I32], &target.device),
        "Positions::new: `positions[1]` is 2147483648, expected at most 2147483647",
    );
    let indptr = Indptr::new(&[0, 2, 3], &target.device).expect("valid");
    refused(
        Positions::continuing(&indptr, &[0]),
        "Positions::continuing: `offsets` is of length 1, expected one for each of 2 requests",
    );
    refused(
        Positions::continuing(&indptr, &[0, usize::MAX]),
        "Positions::new: `positions[2]` is 18446744073709551615, expected at most 2147483647",
    );
}

fn cache_extents(target: Target) {
    let new = |config: CacheConfig| PagedKvCache::new(&config, &target.device).map(|_| ());
    let extents = ["layers", "pages", "page_size", "kv_heads", "head_dim"];
    for (at, name) in extents.into_iter().enumerate() {
        let mut e = [1, 2, 4, 2, 8];
        e[at] = 0;
        refused(
            new(CacheConfig::new(e[0], e[1], e[2], e[3], e[4])),
            format!("PagedKvCache::new: `{name}` is 0, expected at least 1"),
        );
    }
    refused(
        new(CacheConfig::new(1, usize::MAX, 16, 2, 8)),
        "PagedKvCache::new: `pages` is 18446744073709551615, expected at most 134217727 pages of 16 tokens",
    );
    // More bytes than there are addresses: refused, not a panic of the allocator.
    let refusal = new(CacheConfig::new(1, 1, 1, usize::MAX, 2)).expect_err("no memory is that large");
    let expected = "PagedKvCache::new: `config` takes 18446744073709551615 bytes, expected at most ";
    assert!(refusal.to_string().starts_with(expected), "{refusal}");
    refused(
        new(CacheConfig::new(1, 1, 1, 1, 8).dtype(DType::F64)),
        "PagedKvCache::new: `dtype` is of type F64, expected F32, F16 or BF16",
    );
    refused(
        new(CacheConfig::new(1, 1, 1, 1, 8).dtype(DType::I32)),
        "PagedKvCache::new: `dtype` is of type I32, expected F32, F16 or BF16",
    );
}

/// Every refusal of a cache, which is the same before and after.
fn cache(target: Target) {
    let config = CacheConfig::new(2, 4, 4, 2, 8);
    let mut cache = PagedKvCache::new(&config, &target.device).expect("a valid cache");
    let [a, b, freed] = [cache.create(), cache.create(), cache.create()];
    cache.reserve(&[(a, 6), (b, 3)]).expect("room");
    cache.free(freed).expect("alive");
    let state = |cache: &PagedKvCache| {
        let table = cache.page_table(&[a, b]).expect("alive");
        let pages = [0, 1].map(|request| table.pages(request).to_vec());
        let layer = cache.layer(1).expect("a layer");
        (cache.free_pages(), table.kv_lengths().to_vec(), pages, bits(layer.k().expect("numbers").clone()))
    };
    let before = state(&cache);
    let unknown = |op: &str, argument: &str, id: SequenceId| {
        format!(
            "PagedKvCache::{op}: `{argument}` is {id:?}, expected a sequence of this cache that is not freed"
        )
    };
    refused(cache.fork(freed), unknown("fork", "parent", freed));
    refused(cache.free(freed), unknown("free", "sequence", freed));
    refused(cache.truncate(freed, 0), unknown("truncate", "sequence", freed));
    refused(cache.len(freed), unknown("len", "sequence", freed));
    refused(cache.reserve(&[(a, 1), (freed, 1)]), unknown("reserve", "growth", freed));
    refused(cache.page_table(&[a, freed]), unknown("page_table", "sequences", freed));
    refused(cache.last_positions(&[(freed, 0)]), unknown("last_positions", "growth", freed));
    refused(
        cache.truncate(a, 7),
        "PagedKvCache::truncate: `len` is 7, expected at most 6, the length of the sequence",
    );
    refused(
        cache.reserve(&[(a, 1), (b, 1), (a, 1)]),
        format!("PagedKvCache::reserve: `growth` is {a:?} twice, expected each sequence once"),
    );
    refused(
        cache.reserve(&[(a, 3), (b, 6)]),
        "PagedKvCache::reserve: `growth` needs 3 more pages, but only 1 of 4 are free",
    );
    for tokens in [usize::MAX, usize::MAX - 6, usize::MAX / 2] {
        let refusal = cache.reserve(&[(a, tokens), (b, tokens)]).expect_err("no pool is that large");
        assert!(refusal.to_string().ends_with("more pages, but only 1 of 4 are free"), "{refusal}");
    }
    refused(
        cache.page_table(&[]),
        "PagedKvCache::page_table: `sequences` is empty, expected at least one sequence",
    );
    refused(
        cache.last_positions(&[(b, 4)]),
        format!(
            "PagedKvCache::last_positions: `growth` is 4 tokens of {b:?}, expected at most 3, its length"
        ),
    );
    refused(cache.layer(2), "PagedKvCache::layer: `layer` is 2, expected below 2");
    refused(
        cache.layer_mut(usize::MAX),
        "PagedKvCache::layer_mut: `layer` is 18446744073709551615, expected below 2",
    );
    assert_eq!(state(&cache), before, "a refusal changed the cache");
    assert!(cache.reserve(&[]).expect("nothing").is_empty());
}

fn rope(target: Target) {
    let new = |config: RopeConfig, positions| Rope::new(&config, positions, &target.device);
    let good = RopeConfig::new(64);
    refused(new(good, 0), "Rope::new: `max_positions` is 0, expected at least 1");
    // More than a table can hold: refused before memory is asked for.
    refused(
        new(good, usize::MAX),
        "Rope::new: `max_positions` is 18446744073709551615, expected at most 33554431, for 64 elements each",
    );
    refused(
        new(RopeConfig::new(usize::MAX - 1), 1),
        "Rope::new: `max_positions` is 1, expected at most 0, for 18446744073709551614 elements each",
    );
    refused(new(RopeConfig::new(0), 8), "Rope::new: `rotary_dim` is 0, expected an even number above 0");
    refused(new(RopeConfig::new(7), 8), "Rope::new: `rotary_dim` is 7, expected an even number above 0");
    for (theta, got) in [(0.0, "0"), (-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        refused(
            new(good.theta(theta), 8),
            format!("Rope::new: `theta` is {got}, expected a finite number above 0"),
        );
    }
    let linear = |factor| good.scaling(RopeScaling::Linear { factor });
    refused(new(linear(0.0), 8), "Rope::new: `scaling.factor` is 0, expected a finite number above 0");
    let llama3 = |factor, low_freq_factor, high_freq_factor, original_max_positions| {
        let scaling =
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions };
        new(good.scaling(scaling), 8)
    };
    refused(
        llama3(f64::NAN, 1.0, 4.0, 8192),
        "Rope::new: `scaling.factor` is NaN, expected a finite number above 0",
    );
    for (low, high) in [(1.0, 1.0), (4.0, 1.0), (0.0, 1.0), (f64::NAN, 4.0), (1.0, f64::INFINITY)] {
        refused(
            llama3(8.0, low, high, 8192),
            format!(
                "Rope::new: `scaling.high_freq_factor` is {high}, expected a finite number above low_freq_factor, \
                 itself above 0"
            ),
        );
    }
    refused(
        llama3(8.0, 1.0, 4.0, 0),
        "Rope::new: `scaling.original_max_positions` is 0, expected at least 1",
    );
}
