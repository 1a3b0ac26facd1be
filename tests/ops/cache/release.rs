//! Pages that a window has left behind are given back, and nobody reads them for the sequence any more.

use burn::tensor::{DType, Device};
use burn_flashinfer::{
    AttentionOptions, CacheConfig, Cascade, DecodeStep, Indptr, PagedKvCache, PagedPlan, PlanConfig, Result,
    SequenceId, SlotMapping, StepConfig, append_paged_kv, batch_decode_paged, gather_paged_kv,
};

use crate::devices::{Target, device_tests, devices};
use crate::support::{Host, Rng, bits, refused};

device_tests!(windows_read_on, what_would_read_them_is_refused);

const HEADS: [usize; 2] = [4, 2];
const DIM: usize = 64;
const WINDOW: usize = 9;

fn cache(pages: usize, page_size: usize, dtype: DType, device: &Device) -> PagedKvCache {
    let config = CacheConfig::new(1, pages, page_size, HEADS[1], DIM).dtype(dtype);
    PagedKvCache::new(&config, device).expect("a valid cache")
}

/// The settings of a plan over all keys, and of one with a window.
fn configs(dtype: DType) -> [PlanConfig; 2] {
    let options = AttentionOptions::new().causal(true);
    let windowed = options.clone().window_left(WINDOW);
    [options, windowed].map(|options| PlanConfig::new(HEADS[0], HEADS[1], DIM, dtype).options(options))
}

/// The bits of a step of so many tokens of a sequence, behind a window.
fn step(cache: &mut PagedKvCache, id: SequenceId, tokens: usize, what: &str) -> Result<Vec<u32>> {
    let (step, device) = (cache.step(&[(id, tokens)])?, cache.device().clone());
    let (dtype, mut rng) = (cache.layer(0)?.dtype(), Rng::new(what));
    let plan = PagedPlan::for_step(&configs(dtype)[1], &step)?;
    let [q, k, v] = [HEADS[0], HEADS[1], HEADS[1]]
        .map(|heads| Host::random([tokens, heads, DIM], dtype, &mut rng).tensor(&device));
    append_paged_kv(cache.layer_mut(0)?, k, v, step.slots())?;
    Ok(bits(plan.run(q, cache.layer(0)?)?.output))
}

/// NaN in every page that is free.
fn poison(cache: &mut PagedKvCache) -> Result<()> {
    let (id, tokens) = (cache.create(), cache.free_pages() * cache.page_size());
    let slots = cache.reserve(&[(id, tokens)])?;
    let (device, dtype) = (cache.device().clone(), cache.layer(0)?.dtype());
    let nan = || Host::full([tokens, HEADS[1], DIM], dtype, f32::NAN).tensor(&device);
    append_paged_kv(cache.layer_mut(0)?, nan(), nan(), &slots)?;
    cache.free(id)
}

/// Other tokens take the pages; attention gives the bits that it gives with all of them. Also in a fork, and after a time in
/// host memory and in pages of another size.
fn windows_read_on(target: Target) {
    for dtype in target.thin(2, target.dtypes()) {
        let device = &target.device;
        let mut caches = [cache(40, 4, dtype, device), cache(40, 4, dtype, device)];
        let mut ids = caches.each_mut().map(PagedKvCache::create);
        for (round, tokens) in [22, 1, 1, 7, 1, 30, 1, 2].into_iter().enumerate() {
            let what = format!("{} {dtype:?} round {round}", target.name);
            let [whole, released] = &mut caches;
            let expected = step(whole, ids[0], tokens, &what).expect("room");
            let got = step(released, ids[1], tokens, &what).expect("room");
            assert_eq!(got, expected, "{what}");
            let len = released.len(ids[1]).expect("alive");
            let first = released.first_token(ids[1]).expect("alive");
            let size = released.page_size();
            let given_back = released.release_before(ids[1], len - WINDOW).expect("so long");
            assert_eq!(given_back, (len - WINDOW) / size - first / size, "{what}");
            assert_eq!(released.release_before(ids[1], len - WINDOW), Ok(0), "{what}");
            if round == 2 {
                // The parent goes, the fork goes on.
                for (cache, id) in caches.iter_mut().zip(&mut ids) {
                    let fork = cache.fork(*id).expect("alive");
                    cache.free(*id).expect("alive");
                    *id = fork;
                }
            }
            if round == 4 {
                for (from, id) in caches.iter_mut().zip(&mut ids) {
                    let swapped = from.swap_out(*id).expect("host memory");
                    assert_eq!(from.free_pages(), from.pages());
                    *from = cache(40, 3, dtype, device);
                    *id = from.swap_in(&swapped).expect("room");
                }
            }
            let [whole, released] = &mut caches;
            for cache in [&mut *whole, released] {
                poison(cache).expect("it fits");
            }
            assert!(released.free_pages() > whole.free_pages(), "{what}");
        }
        for (cache, id) in caches.iter_mut().zip(ids) {
            cache.free(id).expect("alive");
            assert_eq!(cache.free_pages(), cache.pages());
        }
    }
}

/// In the words of each operation. Nothing has changed then.
fn what_would_read_them_is_refused(target: Target) {
    let (device, dtype) = (&target.device, DType::F32);
    let mut cache = cache(16, 4, dtype, device);
    let [id, other] = [(); 2].map(|()| cache.create());
    let slots = cache.reserve(&[(id, 30), (other, 3)]).expect("room");
    let op = "PagedKvCache";
    refused(
        cache.release_before(id, 31),
        format!("{op}::release_before: `position` is 31, expected at most 30, the length of the sequence"),
    );
    assert_eq!(cache.release_before(id, 22), Ok(5));
    assert_eq!((cache.first_token(id), cache.first_token(other)), (Ok(20), Ok(0)));
    let stats = cache.stats();

    let rows = |tokens, heads| Host::full([tokens, heads, DIM], dtype, 1.0).tensor(device);
    let (k, v) = (rows(33, HEADS[1]), rows(33, HEADS[1]));
    let stale = append_paged_kv(cache.layer_mut(0).expect("a layer"), k, v, &slots);
    refused(
        stale,
        format!(
            "append_paged_kv: `slots` is older than a change of {id:?}, expected one made or updated after it"
        ),
    );
    let table = cache.page_table(&[other, id]).expect("alive");
    assert_eq!((table.kv_lengths(), table.pages(1).len()), (&[3, 30][..], 8));
    let [full, windowed] = configs(dtype);
    let reads = |start| {
        format!(
            "is of a request of 30 keys that gave back those before 20, expected one that has all from {start} on, which it sees"
        )
    };
    refused(PagedPlan::decode(&full, &table), format!("PagedPlan::decode: `table` {}", reads(0)));
    let mut plan = PagedPlan::decode(&windowed, &table).expect("the window has them");
    let two = Indptr::from_lengths(&[1, 2], device).expect("lengths");
    refused(plan.update(&two, &table), format!("PagedPlan::update: `table` {}", reads(19)));
    let pages = cache.layer(0).expect("a layer");
    let _ = plan.run(rows(2, HEADS[0]), pages).expect("as it was");
    refused(
        batch_decode_paged(rows(2, HEADS[0]), pages, &table, &AttentionOptions::new()),
        format!("batch_decode_paged: `table` {}", reads(0)),
    );
    let lacks = "is of request 1 without its first 20 keys, expected of requests with all their keys";
    refused(gather_paged_kv(pages, &table, dtype), format!("gather_paged_kv: `table` {lacks}"));
    refused(Cascade::new(&table, &two, 1), format!("Cascade::new: `table` {lacks}"));
    refused(
        SlotMapping::new(&table, &[Some(1)], &[19]),
        "SlotMapping::new: `positions[0]` is 19, expected at least 20, as those before were given back",
    );
    let many = Indptr::from_lengths(&[1, 11], device).expect("lengths");
    refused(
        SlotMapping::last(&table, &many),
        "SlotMapping::last: `append_indptr[2]` is 11 new tokens, expected at most 10, as those before token 20 were given back",
    );
    refused(
        cache.truncate(id, 19),
        format!("{op}::truncate: `len` is 19, expected at least 20, as the tokens before were given back"),
    );
    refused(
        cache.remember(id, &[0; 30]),
        format!(
            "{op}::remember: `sequence` is {id:?}, which gave back its first 20 tokens, expected one with all its tokens"
        ),
    );
    let config = StepConfig::new(windowed.clone(), 2, 40).kind(full);
    let mut step = DecodeStep::with_config(&config, &cache).expect("a step");
    refused(
        step.update(&mut cache, &[(other, 1), (id, 1)]),
        "DecodeStep::update: `tokens` is of a request of 31 keys that gave back those before 20, expected one that has all from 0 on, which it sees",
    );
    assert_eq!((cache.len(id), cache.len(other), cache.stats()), (Ok(30), Ok(3), stats));
    let mut step = DecodeStep::new(&windowed, 2, 40, &cache).expect("a step");
    step.update(&mut cache, &[(other, 1), (id, 1)]).expect("the window has them");
    cache.truncate(id, 20).expect("what is left of it is nothing");
    let plan = cache.step(&[(id, 1)]).and_then(|step| PagedPlan::for_step(&windowed, &step));
    assert!(plan.is_err(), "a window over what is gone: {plan:?}");
}

/// The tree of prefixes has all that leads to a page of it, whoever gives back what: nothing blocks an eviction.
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn prefixes_stay_whole() {
    let device = &devices()[0].device;
    let mut cache = cache(12, 4, DType::F32, device);
    let tokens: Vec<u32> = (0..24).collect();
    let parent = cache.create();
    cache.reserve(&[(parent, 8)]).expect("room");
    cache.remember(parent, &tokens[..8]).expect("its tokens");
    // A remembered page behind the position needs those before it.
    assert_eq!(cache.release_before(parent, 4), Ok(0));
    cache.reserve(&[(parent, 16)]).expect("room");
    let fork = cache.fork(parent).expect("alive");
    assert_eq!(cache.release_before(parent, 12), Ok(3));
    // The fork has them; of what it remembers, nothing is behind what the parent has given back.
    assert_eq!((cache.free_pages(), cache.first_token(fork)), (6, Ok(0)));
    cache.remember(fork, &tokens).expect("its tokens");
    assert_eq!(cache.match_prefix(&[&tokens[..], &[99]].concat()), 12);
    cache.free(fork).expect("alive");
    // 3 pages are remembered alone, and 3 are the parent's.
    assert_eq!((cache.free_pages(), cache.available_pages()), (6, 9));
    let all = cache.create();
    cache.reserve(&[(all, 36)]).expect("all that is available");
    assert_eq!((cache.len(all), cache.available_pages()), (Ok(36), 0));
    cache.free(parent).expect("alive");
    cache.free(all).expect("alive");
    assert_eq!(cache.free_pages(), 12);
}
