//! Handles of a cache are refused once they are wrong, and by every other cache.

use burn::tensor::{DType, Tensor};
use burn_flashinfer::{
    AttentionOptions, CacheConfig, Cascade, CascadePlan, DecodeStep, Error, Indptr, KvLayout, KvPages,
    PageTable, PagedKvCache, PagedPlan, PlanConfig, Positions, Qkv, Rope, RopeConfig, SequenceId,
    SlotMapping, append_paged_kv, batch_decode_paged, batch_prefill_paged, cascade_attention,
    gather_paged_kv, rope_append_paged_kv,
};

use crate::devices::{Target, device_tests};
use crate::support::{Host, bits, refused};

device_tests!(
    of_a_sequence_that_lost_tokens,
    of_a_sequence_whose_pages_changed,
    of_another_cache,
    of_an_earlier_step,
    of_no_cache
);

const HEADS: usize = 2;
const DIM: usize = 16;

/// 8 pages of 4 tokens.
fn cache(target: &Target) -> PagedKvCache {
    PagedKvCache::new(&CacheConfig::new(1, 8, 4, HEADS, DIM), &target.device).expect("a valid cache")
}

fn rows(tokens: usize, value: f32, target: &Target) -> Tensor<3> {
    Host::full([tokens, HEADS, DIM], DType::F32, value).tensor(&target.device)
}

fn append(cache: &mut PagedKvCache, slots: &SlotMapping, value: f32, target: &Target) -> Result<(), Error> {
    let [k, v] = [(); 2].map(|()| rows(slots.len(), value, target));
    append_paged_kv(cache.layer_mut(0)?, k, v, slots)
}

fn rope_append(
    cache: &mut PagedKvCache,
    slots: &SlotMapping,
    positions: &Positions,
    target: &Target,
) -> Result<(), Error> {
    let rope = Rope::new(&RopeConfig::new(DIM), 64, &target.device)?;
    let [q, k, v] = [(); 3].map(|()| rows(slots.len(), 9.0, target));
    rope_append_paged_kv(cache.layer_mut(0)?, Qkv { q, k, v }, None, &rope, positions, slots).map(|_| ())
}

fn contents(cache: &PagedKvCache) -> Vec<Vec<u32>> {
    let layer = cache.layer(0).expect("a layer");
    [layer.k(), layer.v()].map(|tensor| bits(tensor.expect("numbers").clone())).to_vec()
}

fn older(op: &str, argument: &str, id: SequenceId) -> String {
    format!("{op}: `{argument}` is older than a change of {id:?}, expected one made or updated after it")
}

/// The next owner of the pages keeps what it has.
fn of_a_sequence_that_lost_tokens(target: Target) {
    for freed in [true, false] {
        let mut cache = cache(&target);
        let first = cache.create();
        let slots = cache.reserve(&[(first, 8)]).expect("room");
        let positions = cache.last_positions(&[(first, 8)]).expect("alive");
        append(&mut cache, &slots, 1.0, &target).expect("it fits");
        rope_append(&mut cache, &slots, &positions, &target).expect("it fits");
        if freed { cache.free(first) } else { cache.truncate(first, 3) }.expect("alive");
        let next = cache.create();
        let own = cache.reserve(&[(next, 28)]).expect("room");
        append(&mut cache, &own, 2.0, &target).expect("it fits");
        let before = contents(&cache);
        refused(append(&mut cache, &slots, 3.0, &target), older("append_paged_kv", "slots", first));
        let rope = "rope_append_paged_kv";
        refused(rope_append(&mut cache, &slots, &positions, &target), older(rope, "slots", first));
        // Right slots do not make up for positions of a time before.
        let mine = cache.last_positions(&[(next, 8)]).expect("alive");
        let table = cache.page_table(&[next]).expect("alive");
        let last = Indptr::from_lengths(&[8], &target.device).expect("lengths");
        let last = SlotMapping::last(&table, &last).expect("its last tokens");
        refused(rope_append(&mut cache, &last, &positions, &target), older(rope, "positions", first));
        assert_eq!(contents(&cache), before, "a refusal wrote");
        rope_append(&mut cache, &last, &mine, &target).expect("it fits");
    }
}

/// Growth, forks and being remembered leave tokens where they are; a copy on write and a merge do not.
fn of_a_sequence_whose_pages_changed(target: Target) {
    let mut cache = cache(&target);
    let parent = cache.create();
    let slots = cache.reserve(&[(parent, 6)]).expect("room");
    let table = cache.page_table(&[parent]).expect("alive");
    let of_table = SlotMapping::new(&table, &[Some(0); 2], &[0, 5]).expect("tokens of it");
    // A prompt that is computed once for all forks.
    let fork = cache.fork(parent).expect("alive");
    append(&mut cache, &slots, 1.0, &target).expect("where they were");
    cache.truncate(parent, 6).expect("as long as it is");
    append(&mut cache, &slots, 1.0, &target).expect("nothing was lost");
    // The fork writes into a copy of the shared page, then the parent into its own.
    cache.reserve(&[(fork, 1)]).expect("room");
    append(&mut cache, &slots, 1.0, &target).expect("the fork has moved");
    cache.reserve(&[(parent, 3)]).expect("room");
    append(&mut cache, &slots, 1.0, &target).expect("it has more tokens, no others");
    append(&mut cache, &of_table, 1.0, &target).expect("the same");
    let gathered = gather_paged_kv(cache.layer(0).expect("a layer"), &table, DType::F32);
    refused(gathered, older("gather_paged_kv", "table", parent));
    // Now it is the parent that copies.
    let second = cache.fork(parent).expect("alive");
    let tail = cache.reserve(&[(second, 1)]).expect("room");
    cache.free(fork).expect("alive");
    let third = cache.fork(second).expect("alive");
    cache.reserve(&[(second, 1)]).expect("room");
    refused(append(&mut cache, &tail, 1.0, &target), older("append_paged_kv", "slots", second));
    cache.free(third).expect("alive");
    append(&mut cache, &slots, 1.0, &target).expect("not of the parent");

    // The second of two that computed the same gets the pages of the first.
    let mut cache = self::cache(&target);
    let twins = [cache.create(), cache.create()];
    let [a, b] = twins.map(|id| cache.reserve(&[(id, 5)]).expect("room"));
    for (id, slots) in twins.into_iter().zip([&a, &b]) {
        append(&mut cache, slots, 1.0, &target).expect("it fits");
        cache.remember(id, &[1, 2, 3, 4, 5]).expect("its tokens");
    }
    append(&mut cache, &a, 1.0, &target).expect("they are still its pages");
    refused(append(&mut cache, &b, 1.0, &target), older("append_paged_kv", "slots", twins[1]));
    // Out and in again it is another sequence.
    let swapped = cache.swap_out(twins[0]).expect("alive");
    let back = cache.swap_in(&swapped).expect("room");
    assert_ne!(back, twins[0]);
    refused(append(&mut cache, &a, 1.0, &target), older("append_paged_kv", "slots", twins[0]));
}

/// Every operation, and every call of a cache, on what another cache has made. Nothing has changed then.
fn of_another_cache(target: Target) {
    let device = &target.device;
    let [mut target_model, mut draft] = [cache(&target), cache(&target)];
    let [id, other] = [target_model.create(), draft.create()];
    assert_ne!(id, other);
    let slots = target_model.reserve(&[(id, 6)]).expect("room");
    let positions = target_model.last_positions(&[(id, 6)]).expect("alive");
    let own = draft.reserve(&[(other, 6)]).expect("room");
    append(&mut draft, &own, 1.0, &target).expect("its own");
    let before = (contents(&draft), draft.stats());

    let unknown = |op: &str, argument: &str| {
        format!(
            "PagedKvCache::{op}: `{argument}` is {id:?}, expected a sequence of this cache that is not freed"
        )
    };
    refused(draft.truncate(id, 0), unknown("truncate", "sequence"));
    refused(draft.free(id), unknown("free", "sequence"));
    refused(draft.fork(id), unknown("fork", "parent"));
    refused(draft.len(id), unknown("len", "sequence"));
    refused(draft.remember(id, &[0; 6]), unknown("remember", "sequence"));
    refused(draft.swap_out(id), unknown("swap_out", "sequence"));
    refused(draft.reserve(&[(other, 1), (id, 1)]), unknown("reserve", "growth"));
    refused(draft.page_table(&[other, id]), unknown("page_table", "sequences"));
    refused(draft.last_positions(&[(id, 1)]), unknown("last_positions", "growth"));

    let foreign = |op: &str, argument: &str| {
        format!("{op}: `{argument}` is of another cache, expected of the cache of `pages`")
    };
    refused(append(&mut draft, &slots, 3.0, &target), foreign("append_paged_kv", "slots"));
    let rope = "rope_append_paged_kv";
    refused(rope_append(&mut draft, &slots, &positions, &target), foreign(rope, "slots"));
    refused(rope_append(&mut draft, &own, &positions, &target), foreign(rope, "positions"));
    let table = target_model.page_table(&[id]).expect("alive");
    let one = Indptr::from_lengths(&[1], device).expect("lengths");
    let last = SlotMapping::last(&table, &one).expect("its last token");
    refused(append(&mut draft, &last, 3.0, &target), foreign("append_paged_kv", "slots"));

    let (options, config) = (AttentionOptions::new(), PlanConfig::new(HEADS, HEADS, DIM, DType::F32));
    let q = || rows(1, 1.0, &target);
    let pages = draft.layer(0).expect("a layer");
    refused(gather_paged_kv(pages, &table, DType::F32), foreign("gather_paged_kv", "table"));
    refused(batch_decode_paged(q(), pages, &table, &options), foreign("batch_decode_paged", "table"));
    refused(batch_prefill_paged(q(), &one, pages, &table, &options), foreign("batch_prefill_paged", "table"));
    let cascade = Cascade::new(&table, &one, 1).expect("it fits");
    refused(cascade_attention(q(), pages, &cascade, &options), foreign("cascade_attention", "cascade"));
    let plan = CascadePlan::new(&config, &cascade).expect("a plan");
    refused(plan.run(q(), pages), foreign("PagedPlan::run", "plan"));
    let plan = PagedPlan::decode(&config, &table).expect("a plan");
    refused(plan.run(q(), pages), foreign("PagedPlan::run", "plan"));
    let mut step = DecodeStep::new(&config, 1, 20, &target_model).expect("a step");
    refused(step.plan().run(q(), pages), foreign("PagedPlan::run", "plan"));
    refused(append(&mut draft, &step.slots(), 3.0, &target), foreign("append_paged_kv", "slots"));
    refused(
        step.update(&mut draft, &[(other, 0)]),
        "DecodeStep::update: `cache` is another cache, expected the one that the step was made for",
    );
    assert_eq!((contents(&draft), draft.stats()), before, "a refusal changed the cache");
    let _ = plan.run(q(), target_model.layer(0).expect("a layer")).expect("its own");
}

/// The buffer of a step is rewritten in place: what was taken of it says something else afterwards. Before the first update
/// it says that nothing is written.
fn of_an_earlier_step(target: Target) {
    let mut cache = cache(&target);
    let ids = [cache.create(), cache.create()];
    let config = PlanConfig::new(HEADS, HEADS, DIM, DType::F32);
    let mut step = DecodeStep::new(&config, 2, 20, &cache).expect("a step");
    let before = contents(&cache);
    let blank = step.slots();
    append(&mut cache, &blank, 3.0, &target).expect("it fits");
    assert_eq!(contents(&cache), before, "a step without sequences wrote");
    let q = || rows(2, 1.0, &target);
    let attended = step.plan().run(q(), cache.layer(0).expect("a layer")).expect("it fits");
    assert!(Host::of(attended.output).values.iter().all(|&x| x == 0.0));

    step.update(&mut cache, &ids.map(|id| (id, 1))).expect("room");
    let (slots, positions) = (step.slots(), step.positions());
    append(&mut cache, &slots, 3.0, &target).expect("of this step");
    let rewritten = |op: &str, argument: &str| {
        format!("{op}: `{argument}` is of an earlier step, expected taken from the step again")
    };
    refused(append(&mut cache, &blank, 3.0, &target), rewritten("append_paged_kv", "slots"));
    // A refused update rewrites nothing.
    assert!(step.update(&mut cache, &[(ids[0], 1), (ids[0], 1)]).is_err());
    rope_append(&mut cache, &slots, &positions, &target).expect("of this step");
    step.update(&mut cache, &[(ids[1], 1)]).expect("room");
    refused(append(&mut cache, &slots, 3.0, &target), rewritten("append_paged_kv", "slots"));
    refused(
        rope_append(&mut cache, &step.slots(), &positions, &target),
        rewritten("rope_append_paged_kv", "positions"),
    );
    append(&mut cache, &step.slots(), 3.0, &target).expect("of this step");
    cache.free(ids[1]).expect("alive");
    refused(append(&mut cache, &step.slots(), 3.0, &target), older("append_paged_kv", "slots", ids[1]));
    refused(step.plan().run(q(), cache.layer(0).expect("a layer")), older("PagedPlan::run", "plan", ids[1]));
}

/// Page tables and slots that a program makes itself belong to no cache and fit all of them, and pages that a program made
/// are foreign to nobody.
fn of_no_cache(target: Target) {
    let device = &target.device;
    let mut cache = cache(&target);
    let table = PageTable::new(&[0, 2], &[5, 1], &[3], 4, 8, device).expect("valid");
    let slots = SlotMapping::new(&table, &[Some(0); 3], &[4, 5, 6]).expect("tokens of it");
    append(&mut cache, &slots, 2.0, &target).expect("no cache says otherwise");
    let positions = Positions::new(&[4, 5, 6], device).expect("positions");
    rope_append(&mut cache, &slots, &positions, &target).expect("no cache says otherwise");

    let id = cache.create();
    let slots = cache.reserve(&[(id, 3)]).expect("room");
    let tensor = || Host::full([8, 4, HEADS, DIM], DType::F32, 0.0).tensor(device);
    let mut pages = KvPages::new(tensor(), tensor(), KvLayout::Nhd).expect("pages that fit");
    let append =
        |pages: &mut KvPages| append_paged_kv(pages, rows(3, 1.0, &target), rows(3, 1.0, &target), &slots);
    append(&mut pages).expect("pages of the program");
    // The sequence is gone all the same.
    cache.free(id).expect("alive");
    refused(append(&mut pages), older("append_paged_kv", "slots", id));
}
