//! Pages of each key head, and blocks of variable sizes of each.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use burn_flashinfer::{
    AttentionOptions, AttentionVariant, Fp8, HeadPageTable, HeadPagesPlan, Indptr, KvLayout, KvPages,
    PlanConfig, VariableBlockMask, VariableBlockSparsePlan,
};

use super::Chosen;
use crate::cached_codes::{Coded, codes_of};
use crate::devices::{Target, device_tests, devices};
use crate::problem::{Case, Got, Paging, Problem};
use crate::support::{Host, Rng, refused};

device_tests!(pages_of_each_head, pages_of_codes_of_each_head, blocks_of_variable_sizes);

const HEADS: usize = 2;

/// Rows `[tokens, heads, ..]` as `[heads, tokens, ..]`, or the other way round.
fn swapped(x: &[f32], [tokens, heads]: [usize; 2]) -> Vec<f32> {
    let width = x.len() / (tokens * heads).max(1);
    let rows = (0..heads).flat_map(|head| (0..tokens).map(move |token| token * heads + head));
    rows.flat_map(|row| x[row * width..][..width].iter().copied()).collect()
}

/// A pool of all heads with the tokens `x` of requests of one head each: those of head 0 come first.
fn pool(x: &Host<3>, paging: &Paging, layout: KvLayout) -> Host<4> {
    let (one, size, dim) = (paging.pool(x, KvLayout::Nhd), paging.page_size, x.shape[2]);
    let shape = match layout {
        KvLayout::Nhd => [paging.pages, size, HEADS, dim],
        KvLayout::Hnd => [paging.pages, HEADS, size, dim],
    };
    let mut pool = Host::full(shape, x.dtype, f32::NAN);
    let requests = paging.keys.len();
    for (request, owned) in paging.indptr.windows(2).enumerate() {
        let head = request * HEADS / requests;
        for (&page, offset) in
            paging.indices[owned[0]..owned[1]].iter().flat_map(|page| (0..size).map(move |at| (page, at)))
        {
            let slot = page * size + offset;
            let row = match layout {
                KvLayout::Nhd => slot * HEADS + head,
                KvLayout::Hnd => (page * HEADS + head) * size + offset,
            };
            pool.values[row * dim..][..dim].copy_from_slice(&one.values[slot * dim..][..dim]);
        }
    }
    pool
}

/// Decoding and appending, in both orders of axes. To the oracle each head of a request is a request.
fn pages_of_each_head(target: Target) {
    for (at, dtype) in target.dtypes().into_iter().enumerate() {
        for appends in 0..2 {
            check_pages(&target, dtype, appends, [KvLayout::Hnd, KvLayout::Nhd][(at + appends) % 2], None);
        }
    }
}

/// The same of codes.
fn pages_of_codes_of_each_head(target: Target) {
    let dtypes = target.dtypes();
    for (appends, format) in [Fp8::E4m3, Fp8::E5m2].into_iter().enumerate() {
        let layout = [KvLayout::Hnd, KvLayout::Nhd][appends];
        check_pages(&target, dtypes[appends % dtypes.len()], appends, layout, Some(format));
    }
}

fn check_pages(target: &Target, dtype: DType, appends: usize, layout: KvLayout, format: Option<Fp8>) {
    let device = &target.device;
    // The keys of each request for head 0, and then for head 1.
    let settings = [(&[1, 1, 1][..], [[17, 0, 40], [9, 5, 33]]), (&[2, 5, 1], [[6, 31, 1], [40, 8, 12]])];
    let (queries, keys) = settings[appends];
    let lengths: Vec<(usize, usize)> =
        keys.iter().flat_map(|keys| queries.iter().copied().zip(keys.iter().copied())).collect();
    let case = Case { causal: appends == 1, ..Case::new(dtype, 64, &lengths).heads(1, 4) };
    let problem = case.problem("pages of each head");
    let scale = 4.0 / format.map_or(1.0, Fp8::max);
    let problem = match format {
        Some(format) => Coded::of(problem, format, [vec![scale], vec![scale]]).problem,
        None => problem,
    };
    let paging = problem.paging(4);
    let tokens: usize = queries.iter().sum();
    let rows = paging.indptr.windows(2).flat_map(|rows| {
        let pages = paging.indices[rows[0]..rows[1]].iter().map(|&page| page as i32);
        pages.chain(std::iter::repeat(-1)).take(10)
    });
    let lens: Vec<i32> = paging.keys.iter().map(|&keys| keys as i32).collect();
    let table = HeadPageTable::new(&rows.collect::<Vec<_>>(), &lens, HEADS, 4, paging.pages, device)
        .expect("a table");
    assert_eq!((table.requests(), table.kv_heads()), (3, HEADS));
    let [k, v] = [&problem.k, &problem.v].map(|x| pool(x, &paging, layout));
    let pages = match format {
        Some(format) => {
            let codes = |mut x: Host<4>| {
                x.values.iter_mut().for_each(|x| *x /= scale);
                codes_of(&x, format, device)
            };
            let mut pages = KvPages::new_fp8(codes(k), codes(v), layout, format).expect("pages");
            let scales = |of: usize| Tensor::<1>::full([of], scale, (device, DType::F32));
            pages.set_scales(scales(1), scales(1)).expect("scales");
            pages
        }
        None => KvPages::new(k.tensor(device), v.tensor(device), layout).expect("pages"),
    };
    let options = AttentionOptions::new().causal(case.causal).return_lse(true).kv_layout(layout);
    let config = PlanConfig::for_pages(HEADS * 4, &pages).dtype(dtype).options(options);
    let qo = Indptr::from_lengths(queries, device).expect("valid");
    let plan = match appends {
        0 => HeadPagesPlan::decode(&config, &table),
        _ => HeadPagesPlan::new(&config, &qo, &table),
    };
    let q =
        Host { shape: [tokens, HEADS * 4, 64], values: swapped(&problem.q.values, [HEADS, tokens]), dtype };
    let attended = plan.expect("a plan").run(q.tensor(device), &pages).expect("runs");
    let got = Got::of(attended);
    let got = Got { output: swapped(&got.output, [tokens, HEADS]), lse: swapped(&got.lse, [tokens, HEADS]) };
    problem.check(&format!("pages of each head, {layout}"), target, &problem.expected(), &got);
}

/// The sizes of `parts` blocks of `all` in total, some of them 0.
fn sizes(all: usize, parts: usize, rng: &mut Rng) -> Vec<usize> {
    let mut ends: Vec<usize> = (1..parts).map(|_| rng.below(all + 1)).collect();
    ends.sort_unstable();
    ends.push(all);
    ends.iter().scan(0, |first, &end| Some(end - std::mem::replace(first, end))).collect()
}

/// Each head has blocks of its own, among them block rows without keys.
fn blocks_of_variable_sizes(target: Target) {
    for dtype in target.dtypes() {
        for (layout, heads) in
            target.thin(2, vec![(KvLayout::Nhd, 2), (KvLayout::Hnd, 3), (KvLayout::Nhd, 1)])
        {
            let case = Case::new(dtype, 64, &[(50, 120)]).heads(heads, 2);
            let rng = &mut Rng::new(&format!("variable blocks {case:?}"));
            let [rows, columns]: [Vec<Vec<usize>>; 2] =
                [(50, 4), (120, 7)].map(|(all, parts)| (0..heads).map(|_| sizes(all, parts, rng)).collect());
            let blocks: Vec<bool> =
                (0..heads * 28).map(|block| block % 28 / 7 != 1 && rng.below(2) == 0).collect();
            let mask =
                VariableBlockMask::new(&blocks, &rows.concat(), &columns.concat(), heads).expect("a mask");
            assert_eq!((mask.shape(), mask.kv_heads()), ([50, 120], heads));
            let block_of = |sizes: &[usize], at: usize| {
                let mut end = 0;
                sizes
                    .iter()
                    .take_while(|&&size| {
                        end += size;
                        end <= at
                    })
                    .count()
            };
            let seen = (0..heads).map(|head| {
                let pairs = (0..50).flat_map(|query| (0..120).map(move |key| (query, key)));
                let of_pair = |(query, key)| {
                    let block = block_of(&rows[head], query) * 7 + block_of(&columns[head], key);
                    blocks[head * 28 + block]
                };
                pairs.map(of_pair).collect()
            });
            let chosen = Chosen::new(&case, seen.collect());
            let problem = chosen.problem(&case, "variable blocks");
            let config = PlanConfig::new(heads * 2, heads, 64, dtype)
                .options(AttentionOptions::new().return_lse(true).kv_layout(layout));
            let plan = VariableBlockSparsePlan::new(&config, &mask, &target.device).expect("a plan");
            let Problem { q, k, v, .. } = &problem;
            let [k, v] = [k, v].map(|x| match layout {
                KvLayout::Nhd => x.tensor(&target.device),
                KvLayout::Hnd => x.swapped().tensor(&target.device),
            });
            let got = plan.run(q.tensor(&target.device), k, v);
            chosen.check(&format!("variable blocks, {layout}"), &target, &problem, got);
        }
    }
}

/// A variant that would be told other heads than there are.
#[derive(Debug)]
struct Plain;

impl AttentionVariant for Plain {
    fn scale(&self) -> f32 {
        1.0
    }

    fn keys(&self, request: &burn_flashinfer::Request, _query: usize) -> Range<usize> {
        0..request.kv_len
    }
}

#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn what_does_not_fit_is_refused() {
    let device = &devices()[0].device;
    let config = PlanConfig::new(4, 2, 32, DType::F32);
    let table = |kv_heads| HeadPageTable::new(&[1, 2, 3, 4], &[3, 4], kv_heads, 4, 8, device);
    refused(table(3), "HeadPageTable::new: `kv_heads` is 3, expected a divisor of the 2 lengths");
    refused(
        HeadPageTable::new(&[1, 9], &[3, 4], 2, 4, 8, device),
        "HeadPageTable::new: `block_tables[1]` is 9, expected a page of the pool, below 8",
    );
    let table = table(2).expect("a table");
    refused(
        HeadPagesPlan::decode(&PlanConfig::new(4, 1, 32, DType::F32), &table),
        "HeadPagesPlan::decode: `kv_heads` is 1, expected 2, as `table` has it",
    );
    refused(
        HeadPagesPlan::decode(&config.clone().options(AttentionOptions::new().variant(Plain)), &table),
        "HeadPagesPlan::decode: `variant` is Plain, expected none, as each key head is a request",
    );
    refused(
        HeadPagesPlan::new(&config, &Indptr::from_lengths(&[1, 1], device).expect("valid"), &table),
        "HeadPagesPlan::new: `qo_indptr` is of 2 requests, expected of 1 requests, as `table`",
    );
    let plan = HeadPagesPlan::decode(&config, &table).expect("a plan");
    let zeros = |shape: [usize; 4]| Tensor::<4>::zeros(shape, (device, DType::F32));
    let pages = |shape, layout| KvPages::new(zeros(shape), zeros(shape), layout).expect("pages");
    let q = || Tensor::<3>::zeros([1, 4, 32], (device, DType::F32));
    let expected =
        "expected NHD, at least 4 pages of 4 tokens, 2 heads of 32 elements (values of 32), as planned";
    refused(
        plan.run(q(), &pages([8, 2, 4, 32], KvLayout::Hnd)),
        format!("HeadPagesPlan::run: `pages` has shape [8, 2, 4, 32] HND and [8, 2, 4, 32], {expected}"),
    );
    refused(
        plan.run(q(), &pages([3, 4, 2, 32], KvLayout::Nhd)),
        format!("HeadPagesPlan::run: `pages` has shape [3, 4, 2, 32] NHD and [3, 4, 2, 32], {expected}"),
    );
    assert_eq!(plan.run(q(), &pages([4, 4, 2, 32], KvLayout::Nhd)).expect("runs").output.dims(), [1, 4, 32]);

    let mask =
        |blocks: &[bool], rows: &[usize], columns: &[usize]| VariableBlockMask::new(blocks, rows, columns, 2);
    for (refusal, message) in [
        (
            mask(&[true; 2], &[3], &[4, 4]),
            "`row_sizes` is of length 1, expected as many sizes, at least one, for each of 2 heads",
        ),
        (mask(&[true; 2], &[3, 4], &[4, 4]), "`row_sizes` is 4 of a head in total, expected 3, as of head 0"),
        (mask(&[true; 2], &[3, 3], &[0, 0]), "`column_sizes` is 0 in total, expected at least 1"),
        (mask(&[true; 3], &[3, 3], &[4, 4]), "`blocks` is of length 3, expected 2, a bool for each block"),
    ] {
        refused(refusal, format!("VariableBlockMask::new: {message}"));
    }
    let mask = mask(&[true, false], &[3, 3], &[4, 4]).expect("a mask");
    let plan = VariableBlockSparsePlan::new(&config, &mask, device).expect("a plan");
    let x = |tokens, heads| Tensor::<3>::ones([tokens, heads, 32], (device, DType::F32));
    refused(
        plan.run(x(3, 4), x(4, 1), x(4, 2)),
        "VariableBlockSparsePlan::run: `k` has shape [4, 1, 32], expected [4, 2, 32], as planned",
    );
    let output = plan.run(x(3, 4), x(4, 2), x(4, 2)).expect("runs").output;
    assert_eq!(output.into_data().iter::<f32>().sum::<f32>(), 3.0 * 2.0 * 32.0);
}
