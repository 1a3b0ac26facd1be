//! Properties of plans of random batches. The seed is printed; `BURN_FLASHINFER_TEST_SEED` sets it.

use cubecl::ir::{ElemType, FloatKind};

use super::super::standard::Standard;
use super::*;
use crate::device::Arch;
use crate::problem::{Alignment, HeadDims};

const H200: DeviceProfile = DeviceProfile {
    plane: 32,
    max_units: 1024,
    max_cubes: [i32::MAX as u32, 65535, 65535],
    shared_memory: 227 << 10,
    load_bytes: 16,
    max_vector: 16,
    arch: Arch::Sm(90),
    cores: Some(132),
    cpu_cores: None,
};

const MI300X: DeviceProfile =
    DeviceProfile { plane: 64, shared_memory: 64 << 10, arch: Arch::Gfx(0x942), cores: Some(304), ..H200 };

struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let seed = std::env::var("BURN_FLASHINFER_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = || std::time::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_nanos() as u64);
        let seed = seed.unwrap_or_else(now);
        println!("BURN_FLASHINFER_TEST_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }

    /// Mostly short, sometimes long, sometimes nothing.
    fn length(&mut self) -> usize {
        match self.below(8) {
            0 => 0,
            1 => 1,
            2..6 => self.below(300),
            6 => self.below(20_000),
            _ => self.below(2_000_000),
        }
    }
}

fn variant(random: &mut Random) -> Standard {
    let window_left = [None, Some(0), Some(100), Some(5000)][random.below(4)];
    Standard { causal: random.below(2) == 0, window_left, ..Standard::new(0.1) }
}

fn problem(random: &mut Random) -> Problem {
    let kv_heads = [1, 2, 8, 32][random.below(4)];
    let dim = [64, 128, 256][random.below(3)];
    let dtype = ElemType::Float([FloatKind::BF16, FloatKind::F32][random.below(2)]);
    Problem {
        dims: HeadDims { qk: dim, vo: dim },
        dtype,
        kv_dtype: dtype.into(),
        q_heads: kv_heads * [1, 4, 7, 16][random.below(4)],
        kv_heads,
        scale: 0.1,
        align: Alignment { qk: 64, vo: 64 },
        fp8_mma: false,
    }
}

fn batch(random: &mut Random) -> Vec<RequestShape> {
    let decoding = random.below(2) == 0;
    let lengths: Vec<_> = (0..1 + random.below(40))
        .map(|_| {
            let keys = random.length();
            let queries = if decoding { 1 } else { random.length() % 200 };
            (queries.min(keys), keys)
        })
        .collect();
    RequestShape::following(lengths, 16)
}

/// None if chunks of the caller's choice leave more partial results than a kernel addresses; others never do.
fn planned(
    device: &DeviceProfile,
    problem: &Problem,
    variant: &Standard,
    spans: &[RequestShape],
    split: Split,
) -> Option<Plan> {
    match Plan::new(device, problem, variant, spans, Choice::Auto, split) {
        Err(Refusal::Range { argument: "workspace", .. }) if matches!(split, Split::Every(_)) => None,
        plan => Some(plan.expect("a plan")),
    }
}

#[test]
fn every_key_of_every_row_is_in_one_work() {
    let mut random = Random::seeded();
    for _ in 0..300 {
        let (problem, variant, spans) = (problem(&mut random), variant(&mut random), batch(&mut random));
        let device = [H200, MI300X][random.below(2)];
        let split =
            [Split::Auto, Split::Never, Split::Every(10_000 + random.below(100_000))][random.below(3)];
        let Some(plan) = planned(&device, &problem, &variant, &spans, split) else { continue };
        // Its rows find their requests by themselves.
        if let Blueprint::Portable(_) = plan.blueprint() {
            assert!(plan.work_items().is_empty() && plan.partial_rows() == 0);
            continue;
        }
        let what = format!("{problem:?} {spans:?} {split:?}");
        let group = problem.group();
        // The tiles of each request: first row, and the ranges of keys of the work items with the rows of
        // their partial results.
        let mut tiles = std::collections::BTreeMap::<(usize, usize), Vec<(usize, usize, i32)>>::new();
        for item in plan.work_items() {
            let [index, first_token, qo_len, first, kv_len, row, start, end] = [
                item.request,
                item.first_token,
                item.qo_len,
                item.first,
                item.kv_len,
                item.first_row,
                item.start,
                item.end,
            ]
            .map(|word| word as usize);
            assert_eq!(spans[index], RequestShape { index, first_token, qo_len, first, kv_len });
            let chunks = tiles.entry((index, row)).or_default();
            chunks.push((start, end, item.partial));
            let tile_start = variant.keys(&spans[index], row / group).0;
            let is_first = start == tile_start.min(end);
            assert_eq!(item.flags == WorkItem::FIRST_CHUNK, is_first, "{what}: {item:?}");
        }
        let mut partial_rows = vec![];
        for (at, ((request, row), chunks)) in tiles.iter_mut().enumerate() {
            chunks.sort_unstable();
            let span = &spans[*request];
            let rows = span.qo_len * group;
            let next = tiles_after(&plan, span, *row, rows);
            let visible = (*row..next).map(|row| variant.keys(span, row / group));
            let start = visible.clone().map(|keys| keys.0).min().unwrap_or(0);
            let end = visible.map(|keys| keys.1).max().unwrap_or(0);
            assert_eq!(
                (chunks[0].0.min(end), chunks[chunks.len() - 1].1),
                (start.min(end), end),
                "{what}: tile {at}"
            );
            assert!(chunks.windows(2).all(|pair| pair[0].1 == pair[1].0), "{what}: {chunks:?}");
            assert_eq!(chunks.len() == 1, chunks[0].2 < 0, "{what}: {chunks:?}");
            for (chunk, work) in chunks.iter().enumerate().filter(|_| chunks.len() > 1) {
                let stored = (next - row) * problem.kv_heads;
                assert_eq!(work.2 as usize, chunks[0].2 as usize + chunk * stored, "{what}");
                partial_rows.push((work.2 as usize, stored));
            }
        }
        // Partial results fill the workspace without gap or overlap.
        partial_rows.sort_unstable();
        let end = partial_rows.iter().fold(0, |end, &(start, rows)| {
            assert_eq!(start, end, "{what}");
            end + rows
        });
        assert_eq!(end, plan.partial_rows(), "{what}");
        // Every row of a tile that was split is merged once, and no other.
        let merged: usize =
            plan.merges().iter().map(|merge| merge.rows as usize * merge.chunks as usize).sum();
        assert_eq!(merged * problem.kv_heads, plan.partial_rows(), "{what}");
        assert!(plan.merges().iter().all(|merge| merge.rows as usize <= plan.merge_rows()), "{what}");
        let covered: usize = tiles.len();
        let wanted: usize = spans.iter().filter(|span| span.qo_len > 0).count();
        assert!(covered >= wanted, "{what}");
    }
}

/// End of the tile that begins at `row`.
fn tiles_after(plan: &Plan, span: &RequestShape, row: usize, rows: usize) -> usize {
    let later = plan.work_items().iter().filter(|item| item.request as usize == span.index);
    later.map(|item| item.first_row as usize).filter(|&first| first > row).min().unwrap_or(rows)
}

#[test]
fn plans_stay_within_their_limits() {
    let mut random = Random::seeded();
    for _ in 0..300 {
        let (problem, variant, spans) = (problem(&mut random), variant(&mut random), batch(&mut random));
        let device = [H200, MI300X][random.below(2)];
        let split =
            [Split::Auto, Split::Never, Split::Every(10_000 + random.below(100_000))][random.below(3)];
        let Some(plan) = planned(&device, &problem, &variant, &spans, split) else { continue };
        let keys = spans.iter().map(|span| span.kv_len).sum();
        let limits = plan.limits(&device, &problem, &spans, keys, split);
        let needs = plan.needs();
        assert!(
            needs.work_items <= limits.work_items
                && needs.merges <= limits.merges
                && needs.partial_rows <= limits.partial_rows
                && needs.merge_rows <= limits.merge_rows,
            "{needs:?} of {limits:?}: {problem:?} {spans:?}"
        );
    }
}

/// A step of up to so many tokens of each request, the missing ones as requests without keys: its launch is made for all.
#[test]
fn steps_stay_within_the_limits_of_their_capacity() {
    let mut random = Random::seeded();
    for _ in 0..300 {
        let (problem, variant) = (problem(&mut random), variant(&mut random));
        let device = [H200, MI300X][random.below(2)];
        let split =
            [Split::Auto, Split::Never, Split::Every(10_000 + random.below(100_000))][random.below(3)];
        let (requests, queries, longest) = (1 + random.below(40), 1 + random.below(40), 1 + random.length());
        let largest = RequestShape::following((0..requests).map(|_| (queries, longest)), 1);
        let Some(plan) = planned(&device, &problem, &variant, &largest, split) else { continue };
        let capacity = (0..2 * requests).map(|at| (if at < requests { queries } else { 0 }, 0));
        let capacity = RequestShape::following(capacity, 1);
        let limits = plan.limits(&device, &problem, &capacity, requests * longest, split);
        let lengths = (0..requests).flat_map(|_| {
            let new = random.below(queries + 1);
            let keys = if new == 0 { 0 } else { random.below(longest + 1) };
            [(new, keys), (queries - new, 0)]
        });
        let step = RequestShape::following(lengths, 16);
        let choice = Choice::Exactly(plan.blueprint());
        let needs = match Plan::new(&device, &problem, &variant, &step, choice, split) {
            Err(Refusal::Range { argument: "workspace", .. }) => continue,
            step => step.expect("a plan").needs(),
        };
        assert!(
            needs.work_items <= limits.work_items
                && needs.merges <= limits.merges
                && needs.partial_rows <= limits.partial_rows
                && needs.merge_rows <= limits.merge_rows,
            "{needs:?} of {limits:?}: {problem:?} {step:?} {plan}"
        );
    }
}

/// Work items run in their order on cores that are all the same: how much later than on average the last one ends.
#[test]
fn skewed_lengths_are_balanced() {
    let problem = Problem {
        dims: HeadDims { qk: 128, vo: 128 },
        dtype: ElemType::Float(FloatKind::BF16),
        kv_dtype: ElemType::Float(FloatKind::BF16).into(),
        q_heads: 32,
        kv_heads: 8,
        scale: 0.1,
        align: Alignment { qk: 64, vo: 64 },
        fp8_mma: false,
    };
    let causal = Standard { causal: true, ..Standard::new(0.1) };
    // 64 requests by Zipf, of 4096 keys on average, and the longest 32768.
    let keys: Vec<usize> = (1..=64).map(|rank| (32768.0 / f64::from(rank).powf(0.66)) as usize).collect();
    let decode = RequestShape::following(keys.iter().map(|&keys| (1, keys)), 16);
    let prefill = RequestShape::following(keys.iter().map(|&keys| (keys / 8, keys / 8)), 16);
    for device in [H200, MI300X] {
        for spans in [&decode, &prefill] {
            let plan =
                Plan::new(&device, &problem, &causal, spans, Choice::Auto, Split::Auto).expect("a plan");
            assert!(100 * plan.mean >= 90 * plan.longest, "{plan}");
            let whole =
                Plan::new(&device, &problem, &causal, spans, Choice::Auto, Split::Never).expect("a plan");
            // A plan without a split is balanced enough; the time of its end is then a bound, not a schedule.
            assert!(plan.merges().is_empty() || plan.longest < whole.longest, "{plan} beside {whole}");
        }
    }
}

#[test]
fn a_fixed_split_does_not_depend_on_the_batch() {
    let mut random = Random::seeded();
    for _ in 0..100 {
        let (problem, variant, spans) = (problem(&mut random), variant(&mut random), batch(&mut random));
        let split = Split::Every(10_000 + random.below(100_000));
        let plan = |spans: &[RequestShape]| planned(&H200, &problem, &variant, spans, split);
        let Some(all) = plan(&spans) else { continue };
        for span in &spans {
            let alone = plan(std::slice::from_ref(span)).expect("less than all");
            assert_eq!(alone.blueprint(), all.blueprint());
            // The work items of this request, except for the rows of partial results and the order.
            let work_items = |plan: &Plan| {
                let own = plan.work_items().iter().filter(|item| item.request as usize == span.index);
                let mut work_items: Vec<_> =
                    own.map(|item| (item.first_row, item.start, item.end, item.partial < 0)).collect();
                work_items.sort_unstable();
                work_items
            };
            assert_eq!(work_items(&alone), work_items(&all), "{span:?} of {spans:?}");
        }
    }
}

#[test]
fn numbers_that_no_kernel_counts_are_refused() {
    let problem = problem(&mut Random(1));
    let spans = [RequestShape { qo_len: 1, kv_len: 1 << 31, ..RequestShape::default() }];
    let refusal = Plan::new(&H200, &problem, &Standard::new(0.1), &spans, Choice::Auto, Split::Auto);
    assert!(matches!(refusal, Err(Refusal::Range { argument: "keys", .. })), "{refusal:?}");
}
