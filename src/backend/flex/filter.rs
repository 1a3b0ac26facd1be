//! The most likely tokens of each row, by a quickselect over tokens or a radix select over their masses.

use std::array::from_fn;
use std::borrow::Cow;

use burn_flex::FlexTensor;

use super::draw::mass;
use super::float::{Float, widen_row};
use super::output::by_rows;
use super::scratch::with_scratch;
use super::simd::per_instruction_set;
use super::view::{Rows, dims, with_rows};

/// The filter of each row.
pub(super) enum Limit {
    /// Keeps a token if fewer than `top_k` tokens are strictly more likely.
    TopK(Vec<i32>),
    /// Keeps a token if the strictly more likely ones have a total probability below `top_p`.
    TopP(Vec<f32>),
}

/// The probabilities that count divided by their sum, and 0 for the others.
pub(super) fn renorm_probs(probs: FlexTensor, by: &Limit) -> FlexTensor {
    each_row::<f32>(probs, |row, probs| {
        let (least, above) = match by {
            Limit::TopK(top_k) => {
                let least = kth_largest(probs, most(top_k[row]));
                (least, probs.iter().filter(|p| **p >= least).map(|&p| mass(p)).sum::<u64>())
            }
            Limit::TopP(top_p) => threshold(probs, limit(top_p[row])),
        };
        let sum = above as f32 / (1_u64 << 40) as f32;
        for p in probs {
            if !p.is_nan() {
                *p = if *p >= least && *p > 0.0 { *p / sum } else { 0.0 };
            }
        }
    })
}

/// The logits that count, and `-inf` for the others.
pub(super) fn top_k_mask_logits<E: Float>(logits: FlexTensor, top_k: &[i32]) -> FlexTensor {
    each_row::<E>(logits, |row, logits| {
        let least = kth_largest(logits, most(top_k[row]));
        for x in logits {
            if *x < least {
                *x = f32::NEG_INFINITY;
            }
        }
    })
}

/// The bound of the number of tokens above one that is kept.
pub(super) fn most(top_k: i32) -> usize {
    top_k.max(1) as usize
}

/// The bound of the fixed-point probability above a token that is kept. Probabilities are rounded, so that
/// they may add up to more than 1: from 1 on there is no limit, nor with NaN.
pub(super) fn limit(top_p: f32) -> u64 {
    if top_p < 1.0 { mass(top_p).max(1) } else { u64::MAX }
}

/// The smallest number above which there are fewer than `k`, `-inf` if there are not as many.
///
/// Few numbers pass the `k`th largest of those before them, so that the row is hardly more than read. Its
/// blocks are visited in an order of their own: in a row that rises all would pass.
pub(super) fn kth_largest(row: &[f32], k: usize) -> f32 {
    let room = k.saturating_mul(2).max(128).min(row.len());
    let mut kept = Vec::with_capacity(room);
    let select = |kept: &mut Vec<f32>| *kept.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
    let mut least = f32::NEG_INFINITY;
    passing(
        row,
        scattered(row.len().div_ceil(BLOCK)),
        least,
        |x, least| x > least,
        |_, x| {
            kept.push(x);
            if kept.len() == room && k < room {
                least = select(&mut kept);
                kept.truncate(k);
            }
            least
        },
    );
    if kept.len() < k { f32::NEG_INFINITY } else { select(&mut kept) }
}

/// Numbers that are compared at once.
const BLOCK: usize = 64;

/// All of so many blocks, neighbours far from each other: steps of the golden ratio.
fn scattered(blocks: usize) -> impl Iterator<Item = usize> {
    let common = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let golden = (blocks as f64 * 0.618_033_988_75) as usize;
    let step = (golden.max(1)..).find(|&step| common(step, blocks.max(1)) == 1).unwrap_or(1);
    (0..blocks).scan(0, move |at, _| {
        let block = *at;
        *at = (block + step) % blocks;
        Some(block)
    })
}

/// [`passing`] in the order of the row.
pub(super) fn passing_in_order(
    row: &[f32],
    bar: f32,
    passes: impl Fn(f32, f32) -> bool,
    each: impl FnMut(usize, f32) -> f32,
) {
    passing(row, 0..row.len().div_ceil(BLOCK), bar, passes, each);
}

per_instruction_set! {
    /// Calls `each` with the place of every number that passes `bar`, and the number, block by block; it
    /// returns the bar for the next. Where few pass, the row is hardly more than read: a block of which none
    /// does is left at once.
    fn passing<B: Iterator<Item = usize>, P: Fn(f32, f32) -> bool, F: FnMut(usize, f32) -> f32>(
        row: &[f32],
        blocks: B,
        bar: f32,
        passes: P,
        each: F,
    ) {
        let (mut bar, mut each) = (bar, each);
        for block in blocks {
            let numbers = &row[block * BLOCK..row.len().min((block + 1) * BLOCK)];
            if numbers.iter().fold(false, |any, &x| any | passes(x, bar)) {
                for (at, &x) in numbers.iter().enumerate() {
                    if passes(x, bar) {
                        bar = each(block * BLOCK + at, x);
                    }
                }
            }
        }
    }
}

/// The smallest probability above which there is less mass than `limit`, `-inf` if there is nowhere as much,
/// and how much there is from it on.
///
/// Positive numbers are in the order of their bits, of which each pass settles eight: the exponent, then
/// those below it. Four passes over ever fewer numbers, whatever their order.
pub(super) fn threshold(row: &[f32], limit: u64) -> (f32, u64) {
    // The mass of the numbers larger than all candidates, and the bits that the candidates share.
    let (mut above, mut least) = (0, 0);
    let mut candidates = Cow::Borrowed(row);
    for shift in [23, 15, 7, 0] {
        let masses = masses_by_digit(&candidates, shift);
        let reaches = |&digit: &usize| {
            let is_here = above + masses[digit] >= limit;
            above += if is_here { 0 } else { masses[digit] };
            is_here
        };
        let Some(digit) = (0..masses.len()).rev().find(reaches) else { return (f32::NEG_INFINITY, above) };
        least |= (digit as u32) << shift;
        if shift == 0 {
            above += masses[digit];
        } else {
            let shares = |x: &f32| *x > 0.0 && x.to_bits() >> shift == least >> shift;
            candidates = Cow::Owned(candidates.iter().copied().filter(shares).collect());
        }
    }
    (f32::from_bits(least), above)
}

/// The mass of the numbers with each value of the eight bits from `shift` on.
fn masses_by_digit(numbers: &[f32], shift: u32) -> [u64; 256] {
    // Neighbours often have the same digit, and a sum has to wait for the one before it.
    const PARTS: usize = 4;
    let mut parts = [[0; 256]; PARTS];
    let mut add = |part: usize, x: f32| parts[part][(x.to_bits() >> shift & 0xff) as usize] += mass(x);
    let (blocks, rest) = numbers.as_chunks::<PARTS>();
    for block in blocks {
        for (part, &x) in block.iter().enumerate() {
            add(part, x);
        }
    }
    rest.iter().for_each(|&x| add(0, x));
    from_fn(|digit| parts.iter().map(|part| part[digit]).sum())
}

/// The rows of `x`, each changed by `change`.
fn each_row<E: Float>(x: FlexTensor, change: impl Fn(usize, &mut [f32]) + Sync) -> FlexTensor {
    let x = with_rows(x);
    let [rows, width] = dims(&x);
    let source: Rows<'_, E, 1> = Rows::of(&x);
    by_rows([rows, width], 0, |row, changed: &mut [E]| {
        with_scratch(width, |wide| {
            widen_row(source.row([row]), wide);
            change(row, wide);
            changed.iter_mut().zip(wide).for_each(|(to, from)| *to = E::narrow(*from));
        });
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Numbers that are as random as a test needs.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u32 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as u32
        }

        /// A random probability, at times an invalid one.
        fn probability(&mut self) -> f32 {
            match self.next() % 40 {
                0 => 0.0,
                1 => -0.25,
                2 => f32::NAN,
                3 => f32::from_bits(self.next() % 100),
                4 => 0.125,
                5 => f32::INFINITY,
                _ => f32::from_bits(0x3f00_0000 - self.next() % (40 << 23)),
            }
        }
    }

    #[test]
    fn thresholds_are_those_of_a_sorted_row() {
        let mut random = Random(7);
        for round in 0..3000 {
            let row: Vec<f32> = (0..1 + random.next() % 200).map(|_| random.probability()).collect();
            let total: u64 = row.iter().map(|&p| mass(p)).sum();
            let limit = match round % 4 {
                0 => u64::MAX,
                1 => 1,
                2 => total.max(1),
                _ => 1 + (f64::from(random.next()) / f64::from(1_u32 << 31) * total as f64) as u64,
            };
            let from = |least: f32| row.iter().filter(|p| **p >= least).map(|&p| mass(p)).sum::<u64>();
            let mut sorted: Vec<f32> = row.iter().copied().filter(|p| *p > 0.0).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let least = sorted.into_iter().find(|&p| from(p) >= limit);
            let want = least.map_or((f32::NEG_INFINITY, total), |least| (least, from(least)));
            assert_eq!(threshold(&row, limit), want, "{row:?}, {limit}");
        }
    }

    #[test]
    fn blocks_are_visited_once_each() {
        for blocks in (0..70).chain([512, 1000, 2003, 2004]) {
            let mut visited: Vec<usize> = scattered(blocks).collect();
            visited.sort_unstable();
            assert_eq!(visited, (0..blocks).collect::<Vec<_>>());
        }
    }

    /// The orders in which a search from one place in a row, or by the numbers before, does the most work.
    #[test]
    fn no_order_of_a_row_takes_long() {
        const TOKENS: usize = 1 << 15;
        let mut random = Random(9);
        let shuffled: Vec<f32> = (0..TOKENS)
            .map(|_| (f64::from(random.next() % 30_000) / -2000.0).exp() as f32 / 4000.0)
            .collect();
        let mut rising = shuffled.clone();
        rising.sort_by(f32::total_cmp);
        let falling: Vec<f32> = rising.iter().rev().copied().collect();
        let halves = |even: &[f32], odd: &[f32]| -> Vec<f32> {
            even.iter().step_by(2).chain(odd.iter().skip(1).step_by(2)).copied().collect()
        };
        let bell = halves(&rising, &falling);
        let valley = halves(&falling, &rising);
        let teeth: Vec<f32> =
            (0..181).flat_map(|tooth| rising.iter().skip(tooth).step_by(181)).copied().collect();
        let most = shuffled.iter().map(|&p| mass(p)).sum::<u64>() / 10 * 9;
        let time = |row: &[f32]| {
            let run = |_| {
                let start = Instant::now();
                let found = (threshold(row, most).0, kth_largest(row, 50), kth_largest(row, TOKENS / 3));
                assert!(found.0 > 0.0 && found.1 > found.2);
                start.elapsed()
            };
            (0..9).map(run).min().unwrap_or(Duration::MAX)
        };
        let usual = time(&shuffled);
        for (name, row) in
            [("rising", rising), ("falling", falling), ("bell", bell), ("valley", valley), ("teeth", teeth)]
        {
            let took = time(&row);
            eprintln!("{name}: {took:?}, shuffled: {usual:?}");
            // The aim is twice the time; quadratic growth takes a hundred times as long.
            assert!(took < 4 * usual, "{name}: {took:?}, shuffled {usual:?}");
        }
    }
}
