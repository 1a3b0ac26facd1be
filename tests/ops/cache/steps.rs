//! A step of a cache is what its parts are one by one, and is refused as they are.

use burn::tensor::{DType, Tensor};
use burn_flashinfer::{
    AttentionOptions, CacheConfig, Error, Indptr, PagedKvCache, PagedPlan, PagedStep, PlanConfig, Positions,
    Qkv, Result, Rope, RopeConfig, SequenceId, SlotMapping, rope_append_paged_kv,
};

use crate::devices::{Target, device_tests, devices};
use crate::support::{Host, Rng, bits, refused};

device_tests!(equal_their_parts, of_another_moment_are_refused);

const HEADS: [usize; 2] = [4, 2];
const DIM: usize = 16;

/// 8 pages of 4 tokens.
fn cache(target: &Target) -> PagedKvCache {
    PagedKvCache::new(&CacheConfig::new(1, 8, 4, HEADS[1], DIM), &target.device).expect("a valid cache")
}

fn config(cache: &PagedKvCache) -> PlanConfig {
    let pages = cache.layer(0).expect("a layer");
    PlanConfig::for_pages(HEADS[0], pages).options(AttentionOptions::new().causal(true))
}

/// A layer: the bits of what attention returns.
fn layer(
    cache: &mut PagedKvCache,
    plan: &PagedPlan,
    (positions, slots): (&Positions, &SlotMapping),
) -> Result<Vec<u32>> {
    let device = cache.device().clone();
    let rng = &mut Rng::new("a layer of a step");
    let mut rows =
        |heads| -> Tensor<3> { Host::random([slots.len(), heads, DIM], DType::F32, rng).tensor(&device) };
    let qkv = Qkv { q: rows(HEADS[0]), k: rows(HEADS[1]), v: rows(HEADS[1]) };
    let rope = Rope::new(&RopeConfig::new(DIM), 64, &device)?;
    let pages = cache.layer_mut(0)?;
    let q = rope_append_paged_kv(pages, qkv, None, &rope, positions, slots)?;
    Ok(bits(plan.run(q, pages)?.output))
}

fn by_step(cache: &mut PagedKvCache, plan: &PagedPlan, step: &PagedStep) -> Result<Vec<u32>> {
    layer(cache, plan, (step.positions(), step.slots()))
}

/// Prompts, a chunk beside a decoded token, a fork that copies its last page: planned anew and in place.
fn equal_their_parts(target: Target) {
    let mut caches = [cache(&target), cache(&target)];
    let start = |cache: &mut PagedKvCache| [cache.create(), cache.create()];
    let [a, b] = caches.each_mut().map(start);
    let (mut running, mut plan) = ([a.to_vec(), b.to_vec()], None);
    for growth in [&[6, 3][..], &[1, 5], &[1, 0, 2]] {
        if growth.len() > running[0].len() {
            for (cache, ids) in caches.iter_mut().zip(&mut running) {
                ids.push(cache.fork(ids[0]).expect("alive"));
            }
        }
        let [of_steps, of_parts] = &mut caches;
        let grown =
            |ids: &[SequenceId]| -> Vec<_> { ids.iter().copied().zip(growth.iter().copied()).collect() };
        let step = of_steps.step(&grown(&running[0])).expect("room");
        let slots = of_parts.reserve(&grown(&running[1])).expect("room");
        let positions = of_parts.last_positions(&grown(&running[1])).expect("as many");
        let table = of_parts.page_table(&running[1]).expect("alive");
        let rows = Indptr::from_lengths(growth, &target.device).expect("lengths");
        assert_eq!((step.qo_indptr(), step.tokens()), (rows.as_slice(), rows.total()));
        assert_eq!(step.table().kv_lengths(), table.kv_lengths());

        let config = config(of_parts);
        let parts = PagedPlan::new(&config, &rows, &table).expect("it fits");
        let expected = layer(of_parts, &parts, (&positions, &slots)).expect("it fits");
        let fresh = PagedPlan::for_step(&config, &step).expect("it fits");
        assert_eq!(by_step(of_steps, &fresh, &step).expect("it fits"), expected, "{}", target.name);
        let plan = plan.get_or_insert(fresh);
        plan.update_step(&step).expect("it fits");
        assert_eq!(by_step(of_steps, plan, &step).expect("it fits"), expected, "{}", target.name);
    }
}

/// Nothing has changed then.
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn without_room_are_refused() {
    let target = &devices()[0];
    let mut cache = cache(target);
    let [id, gone] = [cache.create(), cache.create()];
    cache.free(gone).expect("alive");
    let op = "PagedKvCache::step: `growth`";
    refused(cache.step(&[]), format!("{op} is empty, expected at least one sequence"));
    refused(cache.step(&[(id, 1), (id, 1)]), format!("{op} is {id:?} twice, expected each sequence once"));
    refused(
        cache.step(&[(id, 1), (gone, 1)]),
        format!("{op} is {gone:?}, expected a sequence of this cache that is not freed"),
    );
    refused(cache.step(&[(id, 33)]), format!("{op} needs 9 more pages, but only 8 of 8 are free"));
    let most = cache.step(&[(id, usize::MAX)]);
    assert!(matches!(most, Err(Error::OutOfMemory { .. } | Error::PoolExhausted { .. })), "{most:?}");
    assert_eq!((cache.len(id), cache.free_pages()), (Ok(0), 8));
}

/// Its plan once a sequence grew, its slots once one lost tokens, all of it by another cache.
fn of_another_moment_are_refused(target: Target) {
    let [mut cache, mut other] = [cache(&target), cache(&target)];
    let id = cache.create();
    let step = cache.step(&[(id, 6)]).expect("room");
    let plan = PagedPlan::for_step(&config(&cache), &step).expect("it fits");
    by_step(&mut cache, &plan, &step).expect("of this moment");
    let is = |error: Error, argument: &str| assert!(error.to_string().contains(argument), "{error}");
    is(by_step(&mut other, &plan, &step).expect_err("foreign"), "`slots` is of another cache");

    let _ = cache.step(&[(id, 1)]).expect("room");
    is(by_step(&mut cache, &plan, &step).expect_err("it grew"), "`plan` is older than a change");
    cache.truncate(id, 5).expect("shorter");
    is(by_step(&mut cache, &plan, &step).expect_err("it shrank"), "`slots` is older than a change");
}
