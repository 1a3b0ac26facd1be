//! Writing into pages: the right rows, no others, and in place.

use burn::tensor::{DType, Device, Tensor};
use burn_flashinfer::{
    AttentionOptions, KvLayout, KvPages, PageTable, SlotMapping, append_paged_kv, batch_decode_paged,
    reference,
};

use crate::devices::{Target, device_tests};
use crate::support::{DTYPES, Host, Rng, VIEWS, View, address};

device_tests!(writes_nothing_else, last_tokens_bit_for_bit, clones_keep_their_numbers, no_tokens, in_place);

const LAYOUTS: [KvLayout; 2] = [KvLayout::Nhd, KvLayout::Hnd];

/// A pool of 9 pages of `page_size` tokens, 2 heads of 40 (values: `v_dim`) elements.
fn pools(page_size: usize, v_dim: usize, layout: KvLayout, dtype: DType, rng: &mut Rng) -> [Host<4>; 2] {
    [40, v_dim].map(|dim| match layout {
        KvLayout::Nhd => Host::random([9, page_size, 2, dim], dtype, rng),
        KvLayout::Hnd => Host::random([9, 2, page_size, dim], dtype, rng),
    })
}

/// Two requests of pages 7, 0, 3 and 5, 2 that are full.
fn table(page_size: usize, device: &Device) -> PageTable {
    let last = [page_size, page_size];
    PageTable::new(&[0, 3, 5], &[7, 0, 3, 5, 2], &last, page_size, 9, device).expect("a valid table")
}

/// What the reference makes of a pool, as numbers of the type of the pool.
fn expected(pool: &Host<4>, layout: KvLayout, new: &Host<3>, slots: &[Option<usize>]) -> Vec<f32> {
    let mut pages = reference::Pages::new(pool.shape, layout, pool.f64()).expect("a valid pool");
    reference::append_paged_kv(&mut pages, &new.heads(), slots).expect("it fits");
    pages.values().iter().map(|&x| x as f32).collect()
}

/// Every page size, layout and type: the new rows are written, padding is left out, nothing else changes by a bit.
fn writes_nothing_else(target: Target) {
    let rng = &mut Rng::new("append");
    for dtype in target.dtypes() {
        for (page_size, layout) in [1, 5, 16, 64].into_iter().flat_map(|s| LAYOUTS.map(|l| (s, l))) {
            for v_dim in [40, 96] {
                let view = VIEWS[rng.below(4)];
                scattered(&target, page_size, v_dim, layout, dtype, view, rng);
            }
        }
    }
}

fn scattered(
    target: &Target,
    page_size: usize,
    v_dim: usize,
    layout: KvLayout,
    dtype: DType,
    view: View,
    rng: &mut Rng,
) {
    let table = table(page_size, &target.device);
    // Some tokens of both requests in random order, every third of them padding.
    let lengths = [3 * page_size, 2 * page_size];
    let all: Vec<(usize, usize)> = (0..2).flat_map(|r| (0..lengths[r]).map(move |at| (r, at))).collect();
    let chosen: Vec<(usize, usize)> =
        rng.shuffled(all.len()).into_iter().take(1 + all.len() / 2).map(|i| all[i]).collect();
    let requests: Vec<Option<usize>> =
        chosen.iter().enumerate().map(|(t, &(r, _))| (t % 3 != 2).then_some(r)).collect();
    let positions: Vec<usize> = chosen.iter().map(|&(_, at)| at).collect();
    let mapping = SlotMapping::new(&table, &requests, &positions).expect("distinct slots");
    assert_eq!(mapping.len(), chosen.len());
    let slots: Vec<Option<usize>> = requests
        .iter()
        .zip(&positions)
        .map(|(request, at)| Some(table.pages((*request)?)[at / page_size] * page_size + at % page_size))
        .collect();

    let [k_pool, v_pool] = pools(page_size, v_dim, layout, dtype, rng);
    let [k, v] = [40, v_dim].map(|dim| Host::random([chosen.len(), 2, dim], dtype, rng));
    let [k_tensor, v_tensor] = [&k_pool, &v_pool].map(|pool| pool.tensor(&target.device));
    let mut pages = KvPages::new(k_tensor, v_tensor, layout).expect("pages that fit");
    append_paged_kv(&mut pages, k.view(view, &target.device), v.view(view, &target.device), &mapping)
        .expect("it fits");
    let (got_k, got_v) = pages.into_tensors().expect("numbers");
    let what = format!("{} {dtype:?} {layout:?} pages of {page_size} {view:?}", target.name);
    assert!(Host::of(got_k).values == expected(&k_pool, layout, &k, &slots), "keys, {what}");
    assert!(Host::of(got_v).values == expected(&v_pool, layout, &v, &slots), "values, {what}");
}

/// The last tokens of each request, NaN and infinities included: bits are copied, not computed with.
fn last_tokens_bit_for_bit(target: Target) {
    let rng = &mut Rng::new("append last");
    for dtype in target.dtypes() {
        let table = table(5, &target.device);
        let indptr = burn_flashinfer::Indptr::new(&[0, 7, 8], &target.device).expect("valid");
        let mapping = SlotMapping::last(&table, &indptr).expect("it fits");
        // Request 0 has 15 tokens in pages 7, 0, 3; request 1 has 10 in 5, 2.
        let slots: Vec<Option<usize>> = [3, 4, 15, 16, 17, 18, 19, 14].into_iter().map(Some).collect();
        let [k_pool, v_pool] = pools(5, 40, KvLayout::Nhd, dtype, rng);
        let mut k = Host::random([8, 2, 40], dtype, rng);
        k.values[3] = f32::INFINITY;
        k.values[4] = -0.0;
        k.values[5] = f32::NAN;
        let v = Host::random([8, 2, 40], dtype, rng);
        let [k_tensor, v_tensor] = [&k_pool, &v_pool].map(|pool| pool.tensor(&target.device));
        let mut pages = KvPages::new(k_tensor, v_tensor, KvLayout::Nhd).expect("pages that fit");
        append_paged_kv(&mut pages, k.tensor(&target.device), v.tensor(&target.device), &mapping)
            .expect("it fits");
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let (got_k, got_v) = pages.into_tensors().expect("numbers");
        assert_eq!(bits(Host::of(got_k).values), bits(expected(&k_pool, KvLayout::Nhd, &k, &slots)));
        assert_eq!(bits(Host::of(got_v).values), bits(expected(&v_pool, KvLayout::Nhd, &v, &slots)));
    }
}

/// A pool that is a view of a larger tensor is not written through: the larger tensor has another owner.
fn clones_keep_their_numbers(target: Target) {
    let rng = &mut Rng::new("append clones");
    for dtype in target.dtypes() {
        let [k_pool, v_pool] = pools(5, 40, KvLayout::Nhd, dtype, rng);
        let table = table(5, &target.device);
        let mapping = SlotMapping::new(&table, &[Some(0)], &[0]).expect("a slot");
        let new = Host::random([1, 2, 40], dtype, rng);
        let both = [&k_pool, &v_pool].map(|pool| pool.tensor(&target.device));
        let whole: Tensor<4> = Tensor::cat(both.to_vec(), 0);
        let before = Host::of(whole.clone()).values;
        let half = |first: usize| whole.clone().slice(first..first + 9);
        let mut pages = KvPages::new(half(0), half(9), KvLayout::Nhd).expect("pages that fit");
        let clone = pages.k().expect("numbers").clone();
        append_paged_kv(&mut pages, new.tensor(&target.device), new.tensor(&target.device), &mapping)
            .expect("it fits");
        let slots = [Some(35)];
        let (got_k, got_v) = pages.into_tensors().expect("numbers");
        // Not `assert_eq`, which would print thousands of numbers.
        let same = |what, got: &Host<4>, wanted: &[f32]| {
            assert!(got.values == wanted, "{what} on {}, {dtype:?}", target.name);
        };
        same("new keys", &Host::of(got_k), &expected(&k_pool, KvLayout::Nhd, &new, &slots));
        same("new values", &Host::of(got_v), &expected(&v_pool, KvLayout::Nhd, &new, &slots));
        same("keys of the clone", &Host::of(clone), &k_pool.values);
        same("the larger tensor", &Host::of(whole), &before);
    }
}

/// No tokens: nothing happens.
fn no_tokens(target: Target) {
    let rng = &mut Rng::new("append nothing");
    let [k_pool, v_pool] = pools(5, 40, KvLayout::Nhd, DTYPES[0], rng);
    let [k, v] = [&k_pool, &v_pool].map(|pool| pool.tensor(&target.device));
    let mut pages = KvPages::new(k, v, KvLayout::Nhd).expect("pages that fit");
    let mapping = SlotMapping::new(&table(5, &target.device), &[], &[]).expect("no slots");
    assert!(mapping.is_empty());
    let nothing = || Host::full([0, 2, 40], DTYPES[0], 0.0).tensor(&target.device);
    append_paged_kv(&mut pages, nothing(), nothing(), &mapping).expect("it fits");
    // Only padding: likewise.
    let mapping = SlotMapping::new(&table(5, &target.device), &[None, None], &[0, 0]).expect("no slots");
    let padding = || Host::full([2, 2, 40], DTYPES[0], 1.0).tensor(&target.device);
    append_paged_kv(&mut pages, padding(), padding(), &mapping).expect("it fits");
    let (k, v) = pages.into_tensors().expect("numbers");
    assert_eq!((Host::of(k).values, Host::of(v).values), (k_pool.values, v_pool.values));
}

/// A hundred steps of a decode loop, attention reading the pages between two appends, never copy a page: the elements
/// stay where they are.
fn in_place(target: Target) {
    for dtype in target.dtypes() {
        for layout in LAYOUTS {
            let shape = match layout {
                KvLayout::Nhd => [128, 16, 8, 64],
                KvLayout::Hnd => [128, 8, 16, 64],
            };
            let zeros = || Tensor::<4>::zeros(shape, (&target.device, dtype));
            let mut pages = KvPages::new(zeros(), zeros(), layout).expect("pages that fit");
            step(&target, &mut pages, dtype, 0);
            let before = [pages.k().expect("numbers"), pages.v().expect("numbers")].map(address);
            for at in 1..100 {
                step(&target, &mut pages, dtype, at);
                // Not after every step, so that a lazy backend may gather some.
                if at % 7 == 1 {
                    let after = [pages.k().expect("numbers"), pages.v().expect("numbers")].map(address);
                    assert_eq!(after, before, "step {at} moved the pages on {}", target.name);
                }
            }
            // The measure sees a copy when there is one: a clone of the pages is alive.
            let clone = pages.clone();
            step(&target, &mut pages, dtype, 100);
            let after = [pages.k().expect("numbers"), pages.v().expect("numbers")].map(address);
            assert!(after[0] != before[0] && after[1] != before[1], "{}: {after:?}", target.name);
            drop(clone);
        }
    }
}

/// Appends token `at` to a sequence whose pages are 100, 101, … and attends to it.
fn step(target: &Target, pages: &mut KvPages, dtype: DType, at: usize) {
    let owned: Vec<usize> = (100..=100 + at / 16).collect();
    let table = PageTable::new(&[0, owned.len()], &owned, &[at % 16 + 1], 16, 128, &target.device);
    let table = table.expect("a valid table");
    let slots = SlotMapping::new(&table, &[Some(0)], &[at]).expect("a slot");
    let row = |x: f32| Host::full([1, 8, 64], dtype, x).tensor(&target.device);
    // Every value is the same number, and so is every average of them.
    append_paged_kv(pages, row(at as f32 / 128.0), row(3.0), &slots).expect("it fits");
    let attended = batch_decode_paged(row(1.0), pages, &table, &AttentionOptions::new()).expect("it fits");
    let output = Host::of(attended.output).values;
    assert!(output.iter().all(|x| (x - 3.0).abs() < 0.02), "{}: step {at}: {:?}", target.name, &output[..4]);
}
