//! A process with little memory: everything whose size a caller chooses is refused, and nothing is aborted.

use burn::tensor::{DType, Tensor};
use burn_flashinfer::sampling::Draws;
use burn_flashinfer::{
    AttentionOptions, CacheConfig, Cascade, DecodeStep, Indptr, KvLayout, KvPages, PageCopies, PageTable,
    PagedKvCache, PlanConfig, Positions, Rope, RopeConfig, SlotMapping, cascade_attention, gather_paged_kv,
    single_prefill,
};

use crate::memory::refused;

/// A process with 4 GB of addresses must refuse these. This test runs the case below in another process.
#[test]
fn in_little_memory() {
    let binary = std::env::current_exe().expect("the path of the tests");
    let done = std::process::Command::new("sh")
        .args(["-c", "ulimit -v 4000000 && exec \"$0\" \"$@\""])
        .arg(binary)
        .args(["--exact", "little_memory::all_that_a_caller_chooses", "--ignored", "--test-threads=1"])
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .expect("a shell");
    let output = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success() && output.contains("1 passed"),
        "{output}{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
#[ignore = "in_little_memory runs it, in a process of its own"]
fn all_that_a_caller_chooses() {
    let device = &burn::tensor::Device::flex();
    let large = i32::MAX as usize;
    let gib = 1 << 30;
    assert!(refused(PagedKvCache::new(&CacheConfig::new(2, 1 << 12, 1024, 1, 128), device)) == 8 * gib);
    assert!(refused(Rope::new(&RopeConfig::new(64), large / 64, device)) >= 8 * gib - 256);
    assert!(refused(Rope::new(&RopeConfig::new(large - 1), 1, device)) >= 8 * gib);
    assert!(refused(Draws::new(1, 2, large, device)) > 8 * gib);
    assert!(refused(PageCopies::new(&[0], &[1], gib - 1, 2, device)) >= 8 * gib - 8);

    let table = PageTable::new(&[0, 1], &[0], &[large], large, 1, device).expect("valid");
    let all = Indptr::from_lengths(&[large], device).expect("lengths");
    assert!(refused(SlotMapping::last(&table, &all)) > 8 * gib);
    assert!(refused(Positions::continuing(&all, &[0])) >= 4 * large);

    // Slots of 2^29 tokens, when the pool has 2 GiB already.
    let tokens = 1 << 29;
    let small = CacheConfig::new(1, 1, tokens, 1, 1).dtype(DType::F16);
    let mut cache = PagedKvCache::new(&small, device).expect("2 GiB");
    let id = cache.create();
    assert!(refused(cache.reserve(&[(id, tokens)])) == 4 * tokens);
    assert_eq!((cache.len(id), cache.free_pages()), (Ok(0), 1));
    let config = PlanConfig::new(1, 1, 1, DType::F16);
    assert!(
        refused(DecodeStep::new(
            &config,
            large,
            1,
            &PagedKvCache::new(&CacheConfig::new(1, 1, 1, 1, 1), device).expect("small")
        )) > 8 * gib
    );
    drop(cache);

    // A copy of a pool of 2.5 GiB.
    let config = CacheConfig::new(1, 5, 1 << 19, 1, 128);
    let mut cache = PagedKvCache::new(&config, device).expect("2.5 GiB");
    let id = cache.create();
    cache.reserve(&[(id, 5 << 19)]).expect("room");
    assert_eq!(refused(cache.swap_out(id)), config.bytes());
    assert_eq!(cache.len(id), Ok(5 << 19));
    let many = cache.page_table(&[id; 40]).expect("alive");
    assert!(
        refused(gather_paged_kv(cache.layer(0).expect("a layer"), &many, DType::F32)) == 40 * config.bytes()
    );
    drop(cache);

    // Outputs that are larger than what goes in.
    let ones = |shape: [usize; 3]| Tensor::<3>::ones(shape, (device, DType::F32));
    let attended =
        single_prefill(ones([1 << 21, 1, 1]), ones([1, 1, 1]), ones([1, 1, 1024]), &AttentionOptions::new());
    assert_eq!(refused(attended), 8 * gib);
    let levels = 600;
    let indptr: Vec<usize> = (0..=levels).map(|r| r * (r + 1) / 2).collect();
    let indices: Vec<usize> = (0..levels).flat_map(|r| 0..=r).collect();
    let table = PageTable::new(&indptr, &indices, &vec![1; levels], 1, levels, device).expect("valid");
    let one = Indptr::from_lengths(&vec![1; levels], device).expect("lengths");
    let cascade = Cascade::new(&table, &one, 1).expect("it fits");
    let pool = || Tensor::<4>::zeros([levels, 1, 1, 1024], (device, DType::F32));
    let pages = KvPages::new(pool(), pool(), KvLayout::Nhd).expect("pages");
    let q = ones([levels, 4, 1024]);
    assert!(refused(cascade_attention(q, &pages, &cascade, &AttentionOptions::new())) > 8 * gib);
}
