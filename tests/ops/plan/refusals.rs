//! What plans refuse, and in which words.

use burn::tensor::{DType, Tensor};
use burn_flashinfer::{
    AttentionOptions, CacheConfig, Indptr, KvLayout, KvPages, KvSplit, PageTable, PagedKvCache, PagedPlan,
    PlanConfig, RaggedPlan, batch_decode_paged,
};

use super::any_device;
use crate::support::refused;

fn tensor<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::zeros(shape, &any_device())
}

fn config() -> PlanConfig {
    PlanConfig::new(8, 2, 64, DType::F32).options(AttentionOptions::new().causal(true))
}

fn rows(lengths: &[usize]) -> Indptr {
    Indptr::from_lengths(lengths, &any_device()).expect("a row pointer")
}

/// Requests of 7 and 3 tokens in pages of 4.
fn table() -> PageTable {
    PageTable::new(&[0, 2, 3], &[5, 1, 2], &[3, 3], 4, 8, &any_device()).expect("a table")
}

fn pages(shape: [usize; 4], layout: KvLayout) -> KvPages {
    KvPages::new(tensor(shape), tensor(shape), layout).expect("pages")
}

#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn configurations() {
    let plan = |config: PlanConfig| PagedPlan::new(&config, &rows(&[7, 3]), &table());
    refused(
        plan(PlanConfig::new(0, 2, 64, DType::F32)),
        "PagedPlan::new: `q_heads` is 0, expected 1 to 2147483647",
    );
    refused(
        plan(PlanConfig::new(8, 3, 64, DType::F32)),
        "PagedPlan::new: `kv_heads` is 3, expected a divisor of the 8 query heads",
    );
    refused(
        plan(PlanConfig::new(8, 2, 0, DType::F32)),
        "PagedPlan::new: `head_dim` is 0, expected 1 to 1024",
    );
    refused(
        plan(PlanConfig::new(8, 2, 64, DType::F32).head_dim_v(2000)),
        "PagedPlan::new: `head_dim_v` is 2000, expected 1 to 1024",
    );
    refused(
        plan(PlanConfig::new(8, 2, 64, DType::F64)),
        "PagedPlan::new: `dtype` is of type F64, expected F32, F16 or BF16",
    );
    refused(plan(config().split(KvSplit::Fixed(0))), "PagedPlan::new: `split` is 0, expected at least 1 key");
    refused(
        plan(config().options(AttentionOptions::new().soft_cap(-1.0))),
        "PagedPlan::new: `soft_cap` is -1, expected a finite number above 0",
    );
    refused(
        RaggedPlan::new(&PlanConfig::new(8, 2, 0, DType::F32), &rows(&[1]), &rows(&[1])),
        "RaggedPlan::new: `head_dim` is 0, expected 1 to 1024",
    );
}

#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn batches() {
    refused(
        PagedPlan::new(&config(), &rows(&[7]), &table()),
        "PagedPlan::new: `qo_indptr` is of 1 requests, expected of 2 requests, as `table`",
    );
    refused(
        PagedPlan::new(&config(), &rows(&[7, 4]), &table()),
        "PagedPlan::new: `causal` is true with 4 queries and 3 keys in request 1, expected at least as many keys as queries",
    );
    refused(
        RaggedPlan::new(&config(), &rows(&[7, 4]), &rows(&[7])),
        "RaggedPlan::new: `kv_indptr` is of 1 requests, expected of 2 requests, as `qo_indptr`",
    );
    refused(
        RaggedPlan::new(&config(), &rows(&[2]), &rows(&[1])),
        "RaggedPlan::new: `causal` is true with 2 queries and 1 keys in request 0, expected at least as many keys as queries",
    );
}

/// Tensors that a plan was not made for.
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn runs() {
    let plan = PagedPlan::new(&config(), &rows(&[7, 3]), &table()).expect("a plan");
    let pool = || pages([8, 4, 2, 64], KvLayout::Nhd);
    assert_eq!(plan.run(tensor([10, 8, 64]), &pool()).expect("as planned").output.dims(), [10, 8, 64]);
    for (q, message) in [
        ([11, 8, 64], "PagedPlan::run: `q` has shape [11, 8, 64], expected [10, 8, 64], as planned"),
        ([10, 4, 64], "PagedPlan::run: `q` has shape [10, 4, 64], expected [10, 8, 64], as planned"),
        ([10, 8, 32], "PagedPlan::run: `q` has shape [10, 8, 32], expected [10, 8, 64], as planned"),
    ] {
        refused(plan.run(tensor(q), &pool()), message);
    }
    let half = |x: Tensor<3>| x.cast(DType::F16);
    refused(
        plan.run(half(tensor([10, 8, 64])), &pool()),
        "PagedPlan::run: `pages` is of type F32, expected F16, as the other arguments",
    );
    let [k, v] = [(); 2].map(|()| tensor([8, 4, 2, 64]).cast(DType::F16));
    refused(
        plan.run(half(tensor([10, 8, 64])), &KvPages::new(k, v, KvLayout::Nhd).expect("pages")),
        "PagedPlan::run: `q` is of type F16, expected F32, as planned",
    );
    for (shape, layout, message) in [
        (
            [8, 4, 1, 64],
            KvLayout::Nhd,
            "PagedPlan::run: `pages` has shape [8, 4, 1, 64], expected 2 heads of 64 elements (values of 64), as planned",
        ),
        (
            [8, 8, 2, 64],
            KvLayout::Nhd,
            "PagedPlan::run: `pages` is of pages of 8 tokens, expected pages of 4 tokens, as planned",
        ),
        (
            [5, 4, 2, 64],
            KvLayout::Nhd,
            "PagedPlan::run: `pages` is a pool of 5 pages, expected at least 6 pages, as planned",
        ),
    ] {
        refused(plan.run(tensor([10, 8, 64]), &pages(shape, layout)), message);
    }
    let ordered = config().options(AttentionOptions::new().kv_layout(KvLayout::Hnd));
    let plan = PagedPlan::decode(&ordered, &table()).expect("a plan");
    refused(
        plan.run(tensor([2, 8, 64]), &pool()),
        "PagedPlan::run: `pages` is Nhd, expected Hnd, as planned",
    );

    let plan = RaggedPlan::new(&config(), &rows(&[2, 3]), &rows(&[4, 3])).expect("a plan");
    let kv = || tensor([7, 2, 64]);
    assert_eq!(plan.run(tensor([5, 8, 64]), kv(), kv()).expect("as planned").output.dims(), [5, 8, 64]);
    refused(
        plan.run(tensor([4, 8, 64]), kv(), kv()),
        "RaggedPlan::run: `q` has shape [4, 8, 64], expected [5, 8, 64], as planned",
    );
    refused(
        plan.run(tensor([5, 8, 64]), tensor([8, 2, 64]), kv()),
        "RaggedPlan::run: `k` has shape [8, 2, 64], expected [7, 2, 64], as planned",
    );
    refused(
        plan.run(tensor([5, 8, 64]), kv(), tensor([7, 2, 32])),
        "RaggedPlan::run: `v` has shape [7, 2, 32], expected [7, 2, 64], as planned",
    );
    let [q, k, v] = [tensor([5, 8, 64]), kv(), kv()].map(half);
    refused(plan.run(q, k, v), "RaggedPlan::run: `q` is of type F16, expected F32, as planned");
}

/// A page table, and a plan of it, are of the moment when the table was made.
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn stale_plans() {
    let device = any_device();
    let mut cache = PagedKvCache::new(&CacheConfig::new(1, 8, 4, 2, 64), &device).expect("a cache");
    let [one, other] = [(); 2].map(|()| cache.create());
    cache.reserve(&[(one, 3), (other, 5)]).expect("room");
    let table = cache.page_table(&[one]).expect("a table");
    let mut plan = PagedPlan::decode(&config(), &table).expect("a plan");
    let q = || tensor([1, 8, 64]);
    let options = AttentionOptions::new();
    let _ = plan.run(q(), cache.layer(0).expect("a layer")).expect("as it was");
    // What happens to others does not matter, nor that somebody shares the pages.
    cache.reserve(&[(other, 1)]).expect("room");
    let fork = cache.fork(one).expect("alive");
    let _ = plan.run(q(), cache.layer(0).expect("a layer")).expect("as it was");
    cache.free(fork).expect("alive");
    cache.reserve(&[(one, 0)]).expect("nothing");
    let _ = plan.run(q(), cache.layer(0).expect("a layer")).expect("as it was");

    cache.reserve(&[(one, 1)]).expect("room");
    refused(
        plan.run(q(), cache.layer(0).expect("a layer")),
        format!(
            "PagedPlan::run: `plan` is older than a change of {one:?}, expected one made or updated after it"
        ),
    );
    refused(
        batch_decode_paged(q(), cache.layer(0).expect("a layer"), &table, &options),
        format!(
            "batch_decode_paged: `table` is older than a change of {one:?}, expected one made or updated after it"
        ),
    );
    plan.update_decode(&cache.page_table(&[one]).expect("a table")).expect("an update");
    let _ = plan.run(q(), cache.layer(0).expect("a layer")).expect("up to date");
    // Shrinking, and going.
    cache.truncate(one, 2).expect("alive");
    assert!(plan.run(q(), cache.layer(0).expect("a layer")).is_err());
    plan.update_decode(&cache.page_table(&[one]).expect("a table")).expect("an update");
    cache.free(one).expect("alive");
    assert!(plan.run(q(), cache.layer(0).expect("a layer")).is_err());
}

/// A plan that refused an update is the plan that it was.
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn updates() {
    let mut plan = PagedPlan::new(&config(), &rows(&[7, 3]), &table()).expect("a plan");
    refused(
        plan.update(&rows(&[7, 4]), &table()),
        "PagedPlan::update: `causal` is true with 4 queries and 3 keys in request 1, expected at least as many keys as queries",
    );
    assert_eq!(plan.tokens(), 10);
    let _ = plan.run(tensor([10, 8, 64]), &pages([8, 4, 2, 64], KvLayout::Nhd)).expect("as planned");
    plan.update_decode(&table()).expect("an update");
    assert_eq!(plan.tokens(), 2);
}
