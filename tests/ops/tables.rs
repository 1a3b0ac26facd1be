//! Host-side indices under any input: no panic, and exactly the valid ones are accepted.

use std::collections::BTreeSet;

use burn_flashinfer::{Error, Indptr, PageTable, Positions, SlotMapping};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::devices::{Target, device_tests, devices};
use crate::support::seed;

device_tests!(indptr, page_tables_and_slots);

const LIMIT: usize = i32::MAX as usize;

/// Small numbers, and those at the edges of i32 and usize.
fn number() -> impl Strategy<Value = usize> {
    prop_oneof![
        12 => 0..8_usize,
        1 => prop::sample::select(vec![LIMIT - 1, LIMIT, LIMIT + 1, u32::MAX as usize, usize::MAX / 2, usize::MAX]),
    ]
}

/// A row pointer, now and then with a wrong entry.
fn rows(requests: std::ops::Range<usize>) -> impl Strategy<Value = Vec<usize>> {
    let lengths = prop::collection::vec(0..4_usize, requests);
    (lengths, prop::option::weighted(0.3, (0..8_usize, number()))).prop_map(|(lengths, wrong)| {
        let mut rows = crate::problem::indptr(lengths.into_iter());
        if let Some((at, value)) = wrong {
            let at = at % rows.len();
            rows[at] = value;
        }
        rows
    })
}

/// How many inputs a property is tried on.
fn cases(target: &Target) -> u32 {
    if target.name == "flex" { 3000 } else { 200 }
}

fn run<S: Strategy>(target: &Target, strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config =
        ProptestConfig { cases: cases(target), failure_persistence: None, ..ProptestConfig::default() };
    let mut bytes = [1; 32];
    bytes[..8].copy_from_slice(&seed().to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    if let Err(error) = TestRunner::new_with_rng(config, rng).run(&strategy, test) {
        panic!("{}, seed {}: {error}", target.name, seed());
    }
}

fn is_row_pointer(rows: &[usize]) -> bool {
    rows.len() >= 2
        && rows[0] == 0
        && rows.windows(2).all(|pair| pair[0] <= pair[1])
        && rows.iter().all(|&row| row <= LIMIT)
}

fn indptr(target: Target) {
    let any = prop::collection::vec(number(), 0..6);
    run(&target, prop_oneof![rows(0..5), any], |values| {
        let made = Indptr::new(&values, &target.device);
        prop_assert_eq!(made.is_ok(), is_row_pointer(&values));
        if let Ok(made) = made {
            prop_assert_eq!(made.as_slice(), &values[..]);
            prop_assert_eq!(made.requests(), values.len() - 1);
            prop_assert_eq!(made.total(), values[values.len() - 1]);
            let lengths: Vec<usize> = made.lengths().collect();
            prop_assert_eq!(Indptr::from_lengths(&lengths, &target.device), Ok(made));
        }
        // Taken as lengths.
        let total: u128 = values.iter().map(|&x| x as u128).sum();
        let made = Indptr::from_lengths(&values, &target.device);
        prop_assert_eq!(made.is_ok(), !values.is_empty() && total <= LIMIT as u128);
        // Taken as positions.
        let made = Positions::new(&values, &target.device);
        prop_assert_eq!(made.is_ok(), values.iter().all(|&x| x <= LIMIT));
        Ok(())
    });
}

#[derive(Debug, Clone)]
struct Table {
    indptr: Vec<usize>,
    indices: Vec<usize>,
    last: Vec<usize>,
    page_size: usize,
    pages: usize,
}

impl Table {
    fn length(&self, request: usize) -> u128 {
        let owned = (self.indptr[request + 1] - self.indptr[request]) as u128;
        owned.saturating_sub(1) * self.page_size as u128 + self.last[request] as u128
    }

    fn owned(&self, request: usize) -> &[usize] {
        &self.indices[self.indptr[request]..self.indptr[request + 1]]
    }

    fn is_valid(&self) -> bool {
        let requests = self.indptr.len().saturating_sub(1);
        self.page_size > 0
            && is_row_pointer(&self.indptr)
            && self.indptr[requests] == self.indices.len()
            && self.last.len() == requests
            && self.indices.iter().all(|&page| page < self.pages && page <= LIMIT)
            && (0..requests).all(|r| {
                let (owned, last) = (self.owned(r), self.last[r]);
                let fits = if owned.is_empty() { last == 0 } else { (1..=self.page_size).contains(&last) };
                let distinct = owned.iter().collect::<BTreeSet<_>>().len() == owned.len();
                fits && distinct && self.length(r) <= LIMIT as u128
            })
    }
}

/// Mostly valid tables, and any others.
fn table() -> impl Strategy<Value = Table> {
    let pages = prop::collection::vec(number(), 16);
    let last = prop::collection::vec(number(), 8);
    let sizes = (number(), number());
    (rows(0..4), pages, last, sizes, any::<[bool; 4]>()).prop_map(|(indptr, pages, last, sizes, honest)| {
        let requests = indptr.len().saturating_sub(1);
        let end = indptr.last().copied().unwrap_or(0).min(12);
        let mut table = Table {
            // Honest pages differ from each other.
            indices: if honest[0] { (0..end).map(|i| i * 5 % 16).collect() } else { pages[..end].to_vec() },
            last: last[..requests].to_vec(),
            page_size: sizes.0,
            pages: if honest[1] { 16 } else { sizes.1 },
            indptr,
        };
        if honest[2] && is_row_pointer(&table.indptr) && table.page_size > 0 {
            for r in 0..requests {
                let none = table.indptr[r] == table.indptr[r + 1];
                table.last[r] = if none { 0 } else { table.last[r] % table.page_size + 1 };
            }
        }
        if !honest[3] && requests > 3 {
            table.last.pop();
        }
        table
    })
}

/// The largest page number is one; the next is refused where it stands.
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn the_last_page() {
    let Some(target) = devices().into_iter().next() else { return };
    let device = target.device;
    let made = |page: usize| PageTable::new(&[0, 3], &[0, page, 1], &[1], 1, usize::MAX, &device);
    assert_eq!(made(LIMIT).map(|table| table.pages(0).to_vec()), Ok(vec![0, LIMIT, 1]));
    assert_eq!(
        made(LIMIT + 1).map(|table| table.pages(0).to_vec()),
        Err(Error::Index {
            op: "PageTable::new",
            argument: "indices",
            at: 1,
            got: "2147483648".into(),
            expected: "at most 2147483647".into(),
        })
    );
}

fn page_tables_and_slots(target: Target) {
    let accepted = std::cell::Cell::new(0);
    let tokens = prop::collection::vec((prop::option::of(number()), number()), 0..5);
    run(&target, (table(), tokens, rows(1..4)), |(table, tokens, append)| {
        let made = PageTable::new(
            &table.indptr,
            &table.indices,
            &table.last,
            table.page_size,
            table.pages,
            &target.device,
        );
        prop_assert_eq!(made.is_ok(), table.is_valid(), "{:?}", made);
        let Ok(made) = made else { return Ok(()) };
        accepted.set(accepted.get() + 1);
        let requests = table.last.len();
        prop_assert_eq!(made.requests(), requests);
        for r in 0..requests {
            prop_assert_eq!(made.kv_lengths()[r] as u128, table.length(r));
            prop_assert_eq!(made.pages(r), table.owned(r));
        }
        for r in [requests, usize::MAX / 2] {
            prop_assert_eq!(made.pages(r), &[] as &[usize]);
        }

        let slot = |request: usize, position: usize| -> Option<u128> {
            let within = request < requests && (position as u128) < table.length(request);
            within.then(|| {
                let page = table.owned(request)[position / table.page_size] as u128;
                page * table.page_size as u128 + (position % table.page_size) as u128
            })
        };
        let distinct = |slots: &[u128]| slots.iter().collect::<BTreeSet<_>>().len() == slots.len();
        let (asked, positions): (Vec<Option<usize>>, Vec<usize>) = tokens.into_iter().unzip();
        let slots: Option<Vec<u128>> = asked
            .iter()
            .zip(&positions)
            .filter_map(|(request, &position)| request.map(|request| slot(request, position)))
            .collect();
        let valid = slots.is_some_and(|slots| distinct(&slots) && slots.iter().all(|&s| s <= LIMIT as u128));
        let mapping = SlotMapping::new(&made, &asked, &positions);
        prop_assert_eq!(mapping.is_ok(), valid, "{:?}", mapping);

        let Ok(append) = Indptr::new(&append, &target.device) else { return Ok(()) };
        let mut slots = Some(Vec::new());
        for (r, appended) in append.lengths().enumerate().take(requests) {
            let first = table.length(r).checked_sub(appended as u128);
            slots = slots.zip(first).map(|(mut slots, first)| {
                // A longer append is refused for its length, or has too many slots to list.
                slots.extend((0..appended.min(1000)).filter_map(|i| slot(r, first as usize + i)));
                slots
            });
        }
        let valid = slots.is_some_and(|slots| distinct(&slots) && slots.iter().all(|&s| s <= LIMIT as u128));
        prop_assume!(append.total() < 1000 || !valid);
        let mapping = SlotMapping::last(&made, &append);
        prop_assert_eq!(mapping.is_ok(), valid && append.requests() == requests, "{:?}", mapping);
        Ok(())
    });
    let (accepted, cases) = (accepted.get(), cases(&target));
    assert!(accepted > cases / 20, "only {accepted} of {cases} tables were valid: the property says little");
}
