//! Random histories of a cache.

use std::cell::RefCell;

use burn_flashinfer::{CacheStats, Error, KvLayout, SequenceId, append_paged_kv};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::model::{Model, rows};
use crate::devices::{Target, device_tests};
use crate::support::seed;

device_tests!(any_history);

/// What one may do to a cache. Sequences, and those that wait in host memory, are meant by their number.
#[derive(Debug, Clone)]
enum Action {
    Create,
    Fork(usize),
    Free(usize),
    Truncate(usize, usize),
    Append(Vec<(usize, Vec<u32>)>),
    Remember(usize),
    /// Starts with the tokens that another sequence has up to some length, and others behind them.
    Prompt(usize, usize, Vec<u32>),
    /// The same with tokens that no sequence has any more: those of the last prompt.
    PromptAgain(Vec<u32>),
    Forget,
    SwapOut(usize),
    SwapIn(usize),
    /// Calls that must be refused.
    Wrong(usize),
}

/// Few different tokens: prefixes meet.
fn tokens(most: usize) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..2_u32, 0..most)
}

fn action() -> impl Strategy<Value = Action> {
    let which = 0..8_usize;
    prop_oneof![
        1 => Just(Action::Create),
        2 => which.clone().prop_map(Action::Fork),
        7 => which.clone().prop_map(Action::Free),
        2 => (which.clone(), 0..12_usize).prop_map(|(which, len)| Action::Truncate(which, len)),
        8 => prop::collection::vec((which.clone(), tokens(7)), 0..4).prop_map(Action::Append),
        4 => which.clone().prop_map(Action::Remember),
        3 => (which.clone(), 0..16_usize, tokens(8)).prop_map(|(a, b, c)| Action::Prompt(a, b, c)),
        3 => tokens(4).prop_map(Action::PromptAgain),
        1 => prop_oneof![4 => which.clone().prop_map(Action::Wrong), 1 => Just(Action::Forget)],
        1 => which.clone().prop_map(Action::SwapOut),
        1 => which.prop_map(Action::SwapIn),
    ]
}

/// A model, and the prompt it was given last.
struct History {
    model: Model,
    prompt: Vec<u32>,
}

impl History {
    fn id(&self, which: usize) -> Option<SequenceId> {
        let alive = self.model.sequences.len();
        self.model.sequences.keys().nth(which % alive.max(1)).copied()
    }

    fn apply(&mut self, action: &Action) {
        let id = |which: usize| self.id(which);
        match action {
            Action::Create => _ = self.model.create(),
            Action::Fork(which) => _ = id(*which).map(|parent| self.model.fork(parent)),
            Action::Free(which) => _ = id(*which).map(|id| self.model.free(id)),
            Action::Truncate(which, len) => _ = id(*which).map(|id| self.model.truncate(id, *len)),
            Action::Remember(which) => _ = id(*which).map(|id| self.model.remember(id)),
            Action::SwapOut(which) => _ = id(*which).map(|id| self.model.swap_out(id)),
            Action::Wrong(which) => _ = id(*which).map(|id| wrong(&mut self.model, id)),
            Action::Forget => self.model.forget(),
            Action::SwapIn(which) => {
                if let Some(which) = which.checked_rem(self.model.swapped.len()) {
                    self.model.swap_in(which);
                }
            }
            Action::Append(growth) => {
                let mut chosen: Vec<(SequenceId, Vec<u32>)> = Vec::new();
                for (which, tokens) in growth {
                    if let Some(id) = id(*which)
                        && chosen.iter().all(|&(other, _)| other != id)
                    {
                        chosen.push((id, tokens.clone()));
                    }
                }
                self.model.append(&chosen);
            }
            Action::Prompt(which, len, more) => {
                let like = id(*which).map_or(&[][..], |id| &self.model.sequences[&id]);
                let prompt = [&like[..like.len().min(*len)], more].concat();
                self.request(prompt);
            }
            Action::PromptAgain(more) => self.request([&self.prompt, &more[..]].concat()),
        }
    }

    /// A request as a server runs it: what is not remembered is computed and remembered, if there is room, else it is freed.
    fn request(&mut self, prompt: Vec<u32>) {
        let id = self.model.create_with_prefix(&prompt);
        let rest = prompt[self.model.sequences[&id].len()..].to_vec();
        if self.model.append(&[(id, rest)]) {
            self.model.remember(id);
        } else {
            self.model.free(id);
        }
        self.prompt = prompt;
        self.prompt.truncate(3 * self.model.page_size);
    }
}

/// Calls that are refused, and change nothing.
fn wrong(model: &mut Model, id: SequenceId) {
    let freed = model.fork(id);
    model.free(freed);
    let tokens = model.sequences[&id].clone();
    let before = model.state();
    let cache = &mut model.cache;
    assert!(matches!(cache.remember(id, &[&tokens[..], &[0]].concat()), Err(Error::Value { .. })));
    assert!(matches!(cache.remember(freed, &tokens), Err(Error::Value { .. })));
    assert!(matches!(cache.reserve(&[(id, 1), (id, 1)]), Err(Error::Value { .. })));
    assert!(matches!(cache.reserve(&[(id, 1), (freed, 1)]), Err(Error::Value { .. })));
    assert!(matches!(cache.reserve(&[(id, usize::MAX)]), Err(Error::PoolExhausted { .. })));
    assert!(matches!(cache.truncate(id, tokens.len() + 1), Err(Error::Value { .. })));
    assert!(matches!(cache.swap_out(freed), Err(Error::Value { .. })));
    if model.remembers(id) {
        let mut other = tokens;
        other[0] += 7;
        assert!(matches!(model.cache.remember(id, &other), Err(Error::Value { .. })));
    }
    // Nothing of another cache is taken, nor given to it.
    let mut other = model.another();
    let stranger = other.create();
    let cache = &mut model.cache;
    assert!(matches!(other.truncate(id, 0), Err(Error::Value { .. })));
    assert!(matches!(other.free(id), Err(Error::Value { .. })));
    assert!(matches!(cache.truncate(stranger, 0), Err(Error::Value { .. })));
    assert!(matches!(cache.fork(stranger), Err(Error::Value { .. })));
    assert!(matches!(cache.swap_out(stranger), Err(Error::Value { .. })));
    assert!(matches!(cache.page_table(&[id, stranger]), Err(Error::Value { .. })));
    assert!(matches!(cache.reserve(&[(id, 1), (stranger, 1)]), Err(Error::Value { .. })));
    let slots = other.reserve(&[(stranger, 1)]).expect("room for one");
    let pages = cache.layer_mut(0).expect("a layer");
    let [k, v] = rows(&[7], 0, pages.dtype(), &pages.device());
    assert!(matches!(append_paged_kv(pages, k, v, &slots), Err(Error::Value { .. })));
    assert_eq!(model.state(), before, "a refusal changed the cache");
    model.check_contents();
}

fn any_history(target: Target) {
    let cases = if target.is_slow() { 12 } else { 192 };
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed().to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let strategy = (
        1..6_usize,
        1..16_usize,
        prop_oneof![Just(KvLayout::Nhd), Just(KvLayout::Hnd)],
        prop::sample::select(target.dtypes()),
        prop::collection::vec(action(), 1..60),
    );
    let (done, judged) = (RefCell::new(CacheStats::default()), RefCell::new([0; 2]));
    let outcome =
        TestRunner::new_with_rng(config, rng).run(&strategy, |(page_size, pages, layout, dtype, actions)| {
            let model = Model::new(&target, page_size, pages, layout, dtype);
            let (stats, cases) = run(History { model, prompt: Vec::new() }, &actions);
            judged.borrow_mut().iter_mut().zip(cases).for_each(|(all, cases)| *all += cases);
            let mut done = done.borrow_mut();
            done.hit_tokens += stats.hit_tokens;
            done.evicted_pages += stats.evicted_pages;
            done.merged_pages += stats.merged_pages;
            done.copied_pages += stats.copied_pages;
            done.swapped_in_tokens += stats.swapped_in_tokens;
            Ok(())
        });
    if let Err(error) = outcome {
        panic!("{}, seed {}: {error}", target.name, seed());
    }
    let CacheStats { hit_tokens, evicted_pages, merged_pages, copied_pages, swapped_in_tokens, .. } =
        done.into_inner();
    let reached = [hit_tokens, evicted_pages, merged_pages, copied_pages, swapped_in_tokens];
    // Hundreds of each were counted.
    assert!(target.is_slow() || !reached.contains(&0), "{reached:?}; seed {}", seed());
    let judged = judged.into_inner();
    assert!(target.is_slow() || judged.iter().all(|&cases| cases > 1000), "{judged:?}; seed {}", seed());
}

/// All of a history: what the cache has done in it, and how many handles were refused and taken.
fn run(mut history: History, actions: &[Action]) -> (CacheStats, [usize; 2]) {
    for (at, action) in actions.iter().enumerate() {
        history.apply(action);
        history.model.check_accounts();
        if at % 4 == 3 {
            history.model.check_handles();
        }
        if at % 8 == 7 {
            history.model.check_contents();
        }
    }
    let mut model = history.model;
    model.check_contents();
    // In the end every page comes back.
    for id in model.sequences.keys().copied().collect::<Vec<_>>() {
        model.free(id);
    }
    model.check_accounts();
    model.forget();
    model.check_accounts();
    assert_eq!(model.cache.free_pages(), model.cache.pages());
    model.check_handles();
    (model.cache.stats(), model.judged)
}
