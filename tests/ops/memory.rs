//! More memory than there is: refused with the number of bytes, and nothing is aborted.

use burn::tensor::{DType, Tensor};
use burn_flashinfer::{CacheConfig, Error, Fp8, Indptr, PageCopies, PagedKvCache, SegmentGemm, matmul_nt};

use crate::devices::{Target, device_tests};

device_tests!(pools, copies, products);

const TIB: usize = 1 << 40;

/// The bytes that were refused.
pub fn refused<T>(result: Result<T, Error>) -> usize {
    match result {
        Err(Error::OutOfMemory { bytes, .. }) => bytes,
        Err(other) => panic!("another refusal: {other}"),
        Ok(_) => panic!("accepted"),
    }
}

/// Pools of terabytes, as one tensor or as many, and of more bytes than can be counted.
fn pools(target: Target) {
    let new = |config: CacheConfig| refused(PagedKvCache::new(&config, &target.device).map(|_| ()));
    assert_eq!(new(CacheConfig::new(1, 1 << 20, 1024, 8, 64)), 4 * TIB);
    assert_eq!(new(CacheConfig::new(1 << 30, 1 << 10, 16, 1, 64)), (1 << 30) * (8 << 20));
    assert_eq!(new(CacheConfig::new(1, 1 << 20, 1024, 8, 64).fp8(Fp8::e4m3_of(&target.device))), TIB);
    assert_eq!(new(CacheConfig::new(usize::MAX, 1, 1, 1, 1)), usize::MAX);
    assert_eq!(new(CacheConfig::new(1, 1, 1, usize::MAX, usize::MAX)), usize::MAX);
}

/// Copies are checked before their slots are listed, which took 8 GB and half a minute.
fn copies(target: Target) {
    let new = |page_size| PageCopies::new(&[0], &[1], page_size, 8, &target.device);
    for page_size in [usize::MAX, 1 << 40, 1 << 30] {
        assert!(matches!(new(page_size), Err(Error::Index { .. })), "{page_size}");
    }
    assert_eq!(new(1 << 10).map(|copies| copies.len()), Ok(1));
}

/// Products of two tensors that are small.
fn products(target: Target) {
    let device = &target.device;
    let tall = || Tensor::<2>::zeros([1 << 21, 1], (device, DType::F32));
    assert_eq!(refused(matmul_nt(tall(), tall())), 16 * TIB);
    let rows = Indptr::from_lengths(&[1 << 21], device).expect("lengths");
    let plan = SegmentGemm::new(&rows, None).expect("a plan");
    let wide = Tensor::<3>::zeros([1, 1, 1 << 21], (device, DType::F32));
    assert_eq!(refused(plan.run(tall(), wide)), 16 * TIB);
}
