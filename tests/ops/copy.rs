//! Copying pages: the right ones, no others, and in place.

use burn::tensor::DType;
use burn_flashinfer::{KvLayout, KvPages, PageCopies, copy_pages};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, address, refused};

device_tests!(bit_for_bit, in_place, refusals);

const PAGES: usize = 9;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Random copies of every type and layout, values wider than keys, NaN and infinities included.
fn bit_for_bit(target: Target) {
    let rng = &mut Rng::new("copy_pages");
    for dtype in target.dtypes() {
        for (page_size, layout) in
            [1, 5, 16].into_iter().flat_map(|s| [(s, KvLayout::Nhd), (s, KvLayout::Hnd)])
        {
            let pools = [40, 24].map(|dim| {
                let shape = match layout {
                    KvLayout::Nhd => [PAGES, page_size, 2, dim],
                    KvLayout::Hnd => [PAGES, 2, page_size, dim],
                };
                let mut pool = Host::random(shape, dtype, rng);
                let page = page_size * 2 * dim;
                for page in pool.values.chunks_exact_mut(page) {
                    page[..3].copy_from_slice(&[f32::INFINITY, -0.0, f32::NAN]);
                }
                pool
            });
            // Half of the pages are written, with copies of any of the others.
            let mut from = rng.shuffled(PAGES);
            let to = from.split_off(PAGES / 2);
            let from: Vec<usize> = to.iter().map(|_| from[rng.below(from.len())]).collect();
            let copies = PageCopies::new(&from, &to, page_size, PAGES, &target.device).expect("valid");
            assert_eq!((copies.len(), copies.is_empty()), (to.len(), false));
            let [k, v] = pools.each_ref().map(|pool| pool.tensor(&target.device));
            let mut pages = KvPages::new(k, v, layout).expect("pages that fit");
            copy_pages(&mut pages, &copies).expect("it fits");
            let (k, v) = pages.into_tensors().expect("numbers");
            for (got, mut expected) in [k, v].into_iter().zip(pools) {
                let page = expected.values.len() / PAGES;
                for (from, to) in from.iter().zip(&to) {
                    expected.values.copy_within(from * page..(from + 1) * page, to * page);
                }
                let what = format!("{} {dtype:?} {layout:?} {page_size}: {from:?} to {to:?}", target.name);
                assert!(bits(&Host::of(got).values) == bits(&expected.values), "{what}");
            }
        }
    }
}

/// The pool stays where it is, and no copies are none.
fn in_place(target: Target) {
    let tensor = || Host::full([4, 2, 1, 8], DType::F32, 1.5).tensor(&target.device);
    let mut pages = KvPages::new(tensor(), tensor(), KvLayout::Nhd).expect("pages that fit");
    let before = [address(pages.k().expect("numbers")), address(pages.v().expect("numbers"))];
    for (from, to) in [(&[0, 0][..], &[3, 1][..]), (&[], &[])] {
        let copies = PageCopies::new(from, to, 2, 4, &target.device).expect("valid");
        copy_pages(&mut pages, &copies).expect("it fits");
    }
    assert_eq!(
        [address(pages.k().expect("numbers")), address(pages.v().expect("numbers"))],
        before,
        "{}",
        target.name
    );
}

/// Refusals, word for word.
fn refusals(target: Target) {
    let new = |from: &[usize], to: &[usize], page_size, pages| {
        PageCopies::new(from, to, page_size, pages, &target.device)
    };
    for (from, to, message) in [
        (&[0][..], &[1, 2][..], "`to` is of length 2, expected 1, the length of `from`"),
        (&[0, 4], &[1, 2], "`from[1]` is 4, expected a page of the pool, below 4"),
        (&[0, 1], &[2, 9], "`to[1]` is 9, expected a page of the pool, below 4"),
        (&[0, 1], &[2, 2], "`to[1]` is 2, expected a page that is not copied to already"),
        (&[0, 1], &[2, 0], "`to[1]` is 0, expected a page that is not copied from as well"),
        (&[3], &[3], "`to[0]` is 3, expected a page that is not copied from as well"),
    ] {
        refused(new(from, to, 4, 4), format!("PageCopies::new: {message}"));
    }
    refused(new(&[], &[], 0, 4), "PageCopies::new: `page_size` is 0, expected at least 1");
    refused(
        new(&[usize::MAX - 1], &[0], 2, usize::MAX),
        "PageCopies::new: `from[0]` is 18446744073709551614, expected below 1073741823, as pages have 2 tokens",
    );

    let tensor = || Host::full([4, 2, 1, 8], DType::F32, 1.5).tensor(&target.device);
    let mut pages = KvPages::new(tensor(), tensor(), KvLayout::Nhd).expect("pages that fit");
    refused(
        copy_pages(&mut pages, &new(&[0], &[1], 4, 4).expect("valid")),
        "copy_pages: `copies` is of pages of 4 tokens, expected pages of 2 tokens, as `pages`",
    );
    refused(
        copy_pages(&mut pages, &new(&[4], &[1], 2, 5).expect("valid")),
        "copy_pages: `copies` is naming page 4, expected a page of the pool, below 4",
    );
}
