//! Attention over pages.

use burn::tensor::Tensor;
use burn_flashinfer::{KvLayout, KvPages, PageTable, batch_decode_paged};

use crate::attention::{DIMS, HEADS, on_device, option_cases};
use crate::devices::{Target, device_tests};
use crate::problem::{Case, Got, Paging};
use crate::support::{DTYPES, Host, View};

device_tests!(
    page_sizes,
    dims_and_groups,
    options,
    value_dims,
    strided_pools,
    decode,
    shared_pages,
    one_request_many_times,
    agrees_with_contiguous
);

const LAYOUTS: [KvLayout; 2] = [KvLayout::Nhd, KvLayout::Hnd];
/// Last pages of every kind for pages of 1, 5, 16 and 64: full, of one token, between; no page at all.
const LENGTHS: [(usize, usize); 9] =
    [(17, 65), (1, 1), (0, 16), (3, 64), (0, 0), (10, 97), (1, 5), (6, 6), (2, 80)];

/// Every page size and layout in every type, pages shuffled; NaN in every slot that no token owns.
fn page_sizes(target: Target) {
    let cases = DTYPES.map(|dtype| Case::new(dtype, 64, &LENGTHS).heads(2, 4).causal());
    on_device(&target, 1, &cases, |target, case| {
        let problem = case.problem("page_sizes");
        let expected = problem.expected();
        for (page_size, layout) in [1, 5, 16, 64].into_iter().flat_map(|size| LAYOUTS.map(|l| (size, l))) {
            let got = problem.paged(&target.device, page_size, layout);
            problem.check(&format!("pages of {page_size} {layout:?}"), target, &expected, &got);
        }
    });
}

fn dims_and_groups(target: Target) {
    let mut cases = Vec::new();
    for (at, dim) in DIMS.into_iter().enumerate() {
        for dtype in DTYPES {
            let (kv_heads, group) = HEADS[at % 6];
            cases.push(Case::new(dtype, dim, &[(17, 54), (1, 97)]).heads(kv_heads, group).causal());
        }
    }
    on_device(&target, 5, &cases, |target, case| {
        let problem = case.problem("paged dims");
        let got = problem.paged(&target.device, 16, LAYOUTS[case.dim / 8 % 2]);
        problem.check("paged", target, &problem.expected(), &got);
    });
}

fn options(target: Target) {
    on_device(&target, 11, &option_cases(&[(17, 37), (0, 3), (1, 54), (0, 0)]), |target, case| {
        let problem = case.problem("paged options");
        let got = problem.paged(&target.device, 5, KvLayout::Nhd);
        problem.check("paged options", target, &problem.expected(), &got);
    });
}

fn value_dims(target: Target) {
    let mut cases = Vec::new();
    for (dim, v_dim) in [(192, 128), (32, 96)] {
        cases.extend(DTYPES.map(|dtype| Case { v_dim, ..Case::new(dtype, dim, &[(4, 21), (1, 48)]) }));
    }
    on_device(&target, 1, &cases, |target, case| {
        let problem = case.problem("paged value dims");
        let got = problem.paged(&target.device, 16, KvLayout::Hnd);
        problem.check("paged", target, &problem.expected(), &got);
    });
}

/// A pool that is half of `[pages, 2, page_size, kv_heads, head_dim]`, as FlashInfer lays its cache out.
fn strided_pools(target: Target) {
    on_device(&target, 1, &DTYPES.map(|dtype| Case::new(dtype, 64, &LENGTHS)), |target, case| {
        let problem = case.problem("strided_pools");
        let expected = problem.expected();
        for layout in LAYOUTS {
            let paging = problem.paging(5);
            let [k, v] = [&problem.k, &problem.v].map(|x| paging.pool(x, layout).tensor(&target.device));
            let both: Tensor<5> = Tensor::stack(vec![k, v], 1);
            let half = |at: usize| -> Tensor<4> { both.clone().narrow(1, at, 1).squeeze_dim(1) };
            let got = problem.paged_in(&target.device, half(0), half(1), layout, &paging);
            problem.check(&format!("half of a pool {layout:?}"), target, &expected, &got);
        }
    });
}

/// One new token for each request: decode, against the oracle and bit for bit against prefill.
fn decode(target: Target) {
    let mut cases = Vec::new();
    for (at, dim) in [64, 128, 80].into_iter().enumerate() {
        for dtype in DTYPES {
            let lengths = [(1, 97), (1, 1), (1, 64), (1, 0), (1, 577), (1, 17)];
            cases.push(Case::new(dtype, dim, &lengths).heads(2, [4, 8, 1][at]));
        }
    }
    on_device(&target, 2, &cases, |target, case| {
        let problem = case.problem("paged decode");
        let expected = problem.expected();
        for (page_size, layout) in [(16, KvLayout::Nhd), (5, KvLayout::Hnd), (1, KvLayout::Nhd)] {
            let paging = problem.paging(page_size);
            let [k, v] = [&problem.k, &problem.v].map(|x| paging.pool(x, layout).tensor(&target.device));
            let pages = KvPages::new(k, v, layout).expect("pages that fit");
            let q = problem.q.tensor(&target.device);
            let attended = batch_decode_paged(q, &pages, &paging.table(&target.device), &case.options());
            let got = Got::of(attended.expect("a problem that fits"));
            problem.check(&format!("decode, pages of {page_size}"), target, &expected, &got);
            let prefill = problem.paged(&target.device, page_size, layout);
            assert_eq!(got.bits(), prefill.bits(), "decode is not prefill of one token: {case:?}");
        }
    });
}

/// Two requests whose first pages are the same pages.
fn shared_pages(target: Target) {
    let (page_size, shared) = (5, 4);
    for layout in LAYOUTS {
        on_device(
            &target,
            1,
            &DTYPES.map(|dtype| Case::new(dtype, 64, &[(7, 23), (2, 26)]).causal()),
            |target, case| {
                let mut problem = case.problem("shared_pages");
                // The second request begins with the tokens of the first.
                for x in [&mut problem.k, &mut problem.v] {
                    let row = x.shape[1] * x.shape[2];
                    x.values.copy_within(..shared * page_size * row, 23 * row);
                }
                let apart = problem.paging(page_size);
                let [first, second] =
                    [0, 1].map(|r| apart.indices[apart.indptr[r]..apart.indptr[r + 1]].to_vec());
                let indices = [&first[..], &first[..shared], &second[shared..]].concat();
                // The pages that the second request no longer owns are NaN, since no token is written there.
                let paging = Paging { indices, ..apart };
                let [k, v] = [&problem.k, &problem.v].map(|x| paging.pool(x, layout).tensor(&target.device));
                let got = problem.paged_in(&target.device, k, v, layout, &paging);
                problem.check("shared pages", target, &problem.expected(), &got);
            },
        );
    }
}

/// The same request several times: rows of one table, all with the same pages.
fn one_request_many_times(target: Target) {
    on_device(&target, 1, &DTYPES.map(|dtype| Case::new(dtype, 64, &[(1, 37)])), |target, case| {
        let problem = case.problem("one_request_many_times");
        let paging = problem.paging(16);
        let [k, v] = [&problem.k, &problem.v].map(|x| paging.pool(x, KvLayout::Nhd).tensor(&target.device));
        let pages = KvPages::new(k, v, KvLayout::Nhd).expect("pages that fit");
        let [indptr, indices, last] = [[0, 3, 6, 9, 12].to_vec(), paging.indices.repeat(4), vec![5; 4]];
        let table = PageTable::new(&indptr, &indices, &last, 16, paging.pages, &target.device);
        let q = Host { shape: [4, 4, 64], values: problem.q.values.repeat(4), dtype: case.dtype };
        let attended =
            batch_decode_paged(q.tensor(&target.device), &pages, &table.expect("valid"), &case.options());
        let got = Got::of(attended.expect("a problem that fits"));
        let once = problem.paged(&target.device, 16, KvLayout::Nhd);
        let four = Got { output: once.output.repeat(4), lse: once.lse.repeat(4) };
        problem.check("once", target, &problem.expected(), &once);
        assert_eq!(got.bits(), four.bits());
    });
}

/// Paged, ragged and single see the same keys and must agree, each with the same oracle.
fn agrees_with_contiguous(target: Target) {
    let cases = DTYPES.map(|dtype| Case::new(dtype, 128, &[(17, 54), (37, 97), (1, 127)]).causal());
    on_device(&target, 1, &cases, |target, case| {
        let problem = case.problem("agrees_with_contiguous");
        let expected = problem.expected();
        let single = problem.single(&target.device, View::Whole, KvLayout::Nhd);
        let ragged = problem.ragged(&target.device, View::Whole, KvLayout::Nhd);
        let paged = problem.paged(&target.device, 16, KvLayout::Nhd);
        for (what, got) in [("single", single), ("ragged", ragged), ("paged", paged)] {
            problem.check(what, target, &expected, &got);
        }
    });
}
