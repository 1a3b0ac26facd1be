//! Page tables as engines keep them, and prefill and decode side by side.

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_flashinfer::{
    AttentionOptions, Indptr, KvLayout, KvPages, PageTable, PagedPlan, PlanConfig, PodPlan,
    batch_prefill_paged,
};

use crate::devices::{Target, device_tests, devices};
use crate::problem::{Case, Got, Paging};
use crate::support::refused;

device_tests!(padded_rows, prefill_beside_decode);

/// The pages of each request and `behind` what is not read.
fn padded(paging: &Paging, max_pages: usize, behind: i32) -> Vec<i32> {
    let rows = paging.indptr.windows(2).flat_map(|rows| {
        let pages = paging.indices[rows[0]..rows[1]].iter().map(|&page| page as i32);
        pages.chain(std::iter::repeat(behind)).take(max_pages)
    });
    rows.collect()
}

/// From the host and from the device: the same tables, and a request without keys gets 0.
fn padded_rows(target: Target) {
    let device = &target.device;
    let case = Case::new(DType::F32, 64, &[(1, 17), (2, 0), (3, 40), (1, 1), (1, 0)]);
    let problem = case.problem("padded rows");
    let paging = problem.paging(4);
    let lens: Vec<i32> = paging.keys.iter().map(|&keys| keys as i32).collect();
    let k = paging.pool(&problem.k, KvLayout::Nhd).tensor(device);
    let v = paging.pool(&problem.v, KvLayout::Nhd).tensor(device);
    let pages = KvPages::new(k, v, KvLayout::Nhd).expect("pages");
    let qo = Indptr::new(&problem.qo_indptr(), device).expect("valid");
    for behind in [-1, i32::MAX] {
        let rows = padded(&paging, 11, behind);
        let host = PageTable::from_block_tables(&rows, &lens, 4, paging.pages, device).expect("a table");
        let rows = Tensor::<2, Int>::from_data(TensorData::new(rows, [5, 11]), (device, DType::I32));
        let lens = Tensor::<1, Int>::from_data(TensorData::from(&lens[..]), (device, DType::I32));
        let read = PageTable::read_block_tables(rows, lens, 4, paging.pages).expect("a table");
        for table in [&host, &read] {
            assert_eq!(table.kv_lengths(), paging.keys);
            for request in 0..5 {
                let owned = paging.indptr[request]..paging.indptr[request + 1];
                assert_eq!(table.pages(request), &paging.indices[owned]);
            }
        }
        let got = batch_prefill_paged(problem.q.tensor(device), &qo, &pages, &read, &case.options());
        problem.check("padded rows", &target, &problem.expected(), &Got::of(got.expect("runs")));
    }
    let ints = |shape: [usize; 2]| Tensor::<2, Int>::zeros(shape, (device, DType::I32));
    refused(
        PageTable::read_block_tables(ints([2, 3]), Tensor::zeros([3], (device, DType::I32)), 4, 8),
        "PageTable::read_block_tables: `seq_lens` has shape [3], expected [2], a length for each row of `block_tables`",
    );
}

/// The same bits as of one plan.
fn prefill_beside_decode(target: Target) {
    let device = &target.device;
    let dtype = target.dtypes()[target.dtypes().len() - 1];
    let case = Case::new(dtype, 64, &[(20, 33), (3, 3), (1, 40), (1, 1)]).causal();
    let problem = case.problem("prefill beside decode");
    let paging = problem.paging(16);
    let k = paging.pool(&problem.k, KvLayout::Nhd).tensor(device);
    let v = paging.pool(&problem.v, KvLayout::Nhd).tensor(device);
    let pages = KvPages::new(k, v, KvLayout::Nhd).expect("pages");
    let options = AttentionOptions::new().causal(true).return_lse(true);
    let config = PlanConfig::for_pages(4, &pages).options(options);
    let table = paging.table(device);
    let rows = |lengths: &[usize]| Indptr::from_lengths(lengths, device).expect("valid");
    let plan = PagedPlan::new(&config, &rows(&[20, 3, 1, 1]), &table).expect("a plan");
    let whole = Got::of(plan.run(problem.q.tensor(device), &pages).expect("runs"));
    let pod = PodPlan::new(&config, &rows(&[20, 3]), &table).expect("a plan");
    let [q_prefill, q_decode] = [0..23, 23..25].map(|tokens| problem.q.tokens(tokens).tensor(device));
    let (prefill, decode) = pod.run(q_prefill.clone(), q_decode.clone(), &pages).expect("runs");
    let [mut got, decode] = [prefill, decode].map(Got::of);
    got.output.extend(decode.output);
    got.lse.extend(decode.lse);
    assert_eq!(got.bits(), whole.bits());
    refused(
        pod.run(q_decode.clone(), q_prefill, &pages),
        "PodPlan::run: `q_prefill` has shape [2, 4, 64], expected [23, 4, 64], as planned",
    );
    refused(
        PodPlan::new(&config, &rows(&[20, 3, 1, 1]), &table),
        "PodPlan::new: `qo_indptr` is of 25 queries of 4 requests, expected of a query at least, and fewer than the 4 \
         requests of `table`",
    );
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let device = &devices()[0].device;
    let table = |rows: &[i32], lens: &[i32], page_size| {
        PageTable::from_block_tables(rows, lens, page_size, 8, device)
    };
    for (refusal, message) in [
        (table(&[1], &[1], 0), "`page_size` is 0, expected at least 1"),
        (table(&[], &[], 4), "`seq_lens` is empty, expected the length of each request, of at least one"),
        (table(&[1, 2, 3], &[1, 2], 4), "`block_tables` is of length 3, expected 2 rows of the same length"),
        (table(&[1, 2], &[9], 4), "`seq_lens[0]` is 9, expected 0 to 8, the room of 2 pages"),
        (table(&[1, 2], &[2, -1], 4), "`seq_lens[1]` is -1, expected 0 to 4, the room of 1 pages"),
        (table(&[1, -1], &[5], 4), "`block_tables[1]` is -1, expected a page of the pool, below 8"),
        (table(&[0, 0, 1, 8], &[1, 5], 4), "`block_tables[3]` is 8, expected a page of the pool, below 8"),
        (
            table(&[0, 0, 1, 1], &[4, 5], 4),
            "`block_tables[3]` is 1, expected a page that row 1 does not have already",
        ),
    ] {
        refused(refusal, format!("PageTable::from_block_tables: {message}"));
    }
    // One page for all: of different requests.
    assert_eq!(table(&[3, 3], &[4, 2], 4).expect("a table").kv_lengths(), [4, 2]);
}
