//! A step of decoding on the CPU allocates its output and next to nothing else: no copy of the cache, in any type.
#![cfg(feature = "flex")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use burn::tensor::{DType, Device, Tensor};
use burn_flashinfer::{AttentionOptions, KvLayout, KvPages, PageTable, batch_decode_paged};

/// Counts what it hands out.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all of it is left to the allocator of the system.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of this very function.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_decode_step_allocates_its_output_only() -> burn_flashinfer::Result<()> {
    let device = Device::flex();
    let (requests, keys, page_size, kv_heads, q_heads, dim) = (1, 2048, 16, 4, 16, 64);
    let pages = requests * keys / page_size;
    let indices: Vec<usize> = (0..pages).rev().collect();
    let table = PageTable::new(&[0, pages], &indices, &[page_size], page_size, pages, &device)?;
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let pool = || Tensor::<4>::ones([pages, page_size, kv_heads, dim], &device).cast(dtype);
        let cache = KvPages::new(pool(), pool(), KvLayout::Nhd)?;
        let q = Tensor::<3>::ones([requests, q_heads, dim], &device).cast(dtype);
        let mut least = usize::MAX;
        for _ in 0..10 {
            let q = q.clone();
            let before = BYTES.load(Relaxed);
            let step = batch_decode_paged(q, &cache, &table, &AttentionOptions::new())?;
            least = least.min(BYTES.load(Relaxed) - before);
            drop(step);
        }
        // Shapes, strides and what wakes the threads; the cache is 100 times as large.
        let bound = requests * q_heads * dim * dtype.size() + 8 * 1024;
        assert!(least <= bound, "{dtype:?}: {least} bytes, at most {bound}");
        println!("{dtype:?}: {least} bytes");
    }
    Ok(())
}
