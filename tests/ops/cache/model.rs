//! What a [`PagedKvCache`] should have: the tokens and contents of each sequence, in lists.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use burn::tensor::{DType, Device, Tensor};
use burn_flashinfer::reference::{Pages, gather_pages};
use burn_flashinfer::{
    CacheConfig, CacheStats, Error, KvLayout, PageTable, PagedKvCache, Result, SequenceId, SlotMapping,
    SwappedSequence, append_paged_kv, gather_paged_kv,
};

use crate::devices::Target;
use crate::support::Host;

pub const LAYERS: usize = 2;
const HEADS: usize = 2;
const DIM: usize = 3;
const ROW: usize = HEADS * DIM;

/// A page that is remembered.
#[derive(Debug, Clone, PartialEq)]
struct Remembered {
    page: usize,
    used: u64,
}

/// Remembered pages by all tokens up to their last.
type Tree = BTreeMap<Vec<u32>, Remembered>;

/// All that a refusal must leave as it was.
#[derive(Debug, PartialEq)]
pub struct State {
    stats: CacheStats,
    tables: Vec<Vec<usize>>,
    matched: Vec<usize>,
}

/// A cache, and what it should have.
pub struct Model {
    pub cache: PagedKvCache,
    pub sequences: BTreeMap<SequenceId, Vec<u32>>,
    pub swapped: Vec<(SwappedSequence, Vec<u32>)>,
    pub page_size: usize,
    pages: usize,
    tree: Tree,
    clock: u64,
    counted: CacheStats,
    layout: KvLayout,
    device: Device,
    config: CacheConfig,
    changes: BTreeMap<SequenceId, Changes>,
    /// The last few.
    handles: Vec<Handles>,
    /// The number of handles that did not fit any more, and of those that did.
    pub judged: [usize; 2],
}

/// What a token is to the layers: it depends on all tokens before it, so that no page of another prefix can pass for it.
pub fn contents(tokens: &[u32]) -> Vec<u64> {
    let grow = |state: &mut u64, &token: &u32| {
        *state = (*state ^ u64::from(token + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *state ^= *state >> 29;
        Some(*state)
    };
    tokens.iter().scan(0, grow).collect()
}

/// Element of a token in the keys (`part` 0) or values (1) of a layer: an integer that every type holds.
fn element(content: u64, layer: usize, part: usize, at: usize) -> f32 {
    let which = (layer * 2 + part) * ROW + at;
    let mixed = (content ^ which as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40;
    (mixed % 251) as f32 - 125.0
}

/// Keys and values of tokens of these contents.
pub fn rows(contents: &[u64], layer: usize, dtype: DType, device: &Device) -> [Tensor<3>; 2] {
    [0, 1].map(|part| {
        let value = |i| element(contents[i / ROW], layer, part, i % ROW);
        Host::from_fn([contents.len(), HEADS, DIM], dtype, value).tensor(device)
    })
}

impl Model {
    pub fn new(target: &Target, page_size: usize, pages: usize, layout: KvLayout, dtype: DType) -> Self {
        let config = CacheConfig::new(LAYERS, pages, page_size, HEADS, DIM).layout(layout).dtype(dtype);
        Self {
            cache: PagedKvCache::new(&config, &target.device).expect("a valid cache"),
            sequences: BTreeMap::new(),
            swapped: Vec::new(),
            page_size,
            pages,
            tree: Tree::new(),
            clock: 0,
            counted: CacheStats::default(),
            layout,
            device: target.device.clone(),
            config,
            changes: BTreeMap::new(),
            handles: Vec::new(),
            judged: [0; 2],
        }
    }

    /// Another cache of the same extents.
    pub fn another(&self) -> PagedKvCache {
        PagedKvCache::new(&self.config, &self.device).expect("a valid cache")
    }

    fn changed(&mut self, id: SequenceId, moved: bool) {
        let changes = self.changes.entry(id).or_default();
        changes.any += 1;
        changes.moved += u64::from(moved);
    }

    /// Slots are taken as long as what they say is right, and write what is there already; later they are refused. Page tables
    /// as long as nothing of theirs has changed.
    pub fn check_handles(&mut self) {
        for Handles { slots, table, tokens, changes } in &self.handles {
            let now: Vec<_> = tokens.iter().map(|(id, _)| self.changes.get(id)).collect();
            let pairs = || now.iter().zip(changes);
            let all = pairs().all(|(now, then)| now.is_some_and(|now| now == then));
            let some = pairs().all(|(now, then)| now.is_some_and(|now| now.moved == then.moved));
            let written: Vec<u64> = if some {
                tokens
                    .iter()
                    .flat_map(|(id, range)| contents(&self.sequences[id])[range.clone()].to_vec())
                    .collect()
            } else {
                vec![7; slots.len()]
            };
            for layer in 0..LAYERS {
                let pages = self.cache.layer_mut(layer).expect("a layer");
                let dtype = pages.dtype();
                let [k, v] = rows(&written, layer, dtype, &self.device);
                for (fits, done) in [
                    (some, append_paged_kv(pages, k, v, slots)),
                    (all, gather_paged_kv(pages, table, dtype).map(|_| ())),
                ] {
                    match done {
                        Ok(()) => assert!(fits, "{tokens:?}: {changes:?}, now {now:?}"),
                        Err(Error::Stale { .. }) => assert!(!fits, "{tokens:?}: {changes:?}, now {now:?}"),
                        Err(other) => panic!("{other}"),
                    }
                    self.judged[usize::from(fits)] += 1;
                }
            }
        }
    }

    /// The pages of a sequence.
    pub fn owned(&self, id: SequenceId) -> Vec<usize> {
        self.cache.page_table(&[id]).expect("alive").pages(0).to_vec()
    }

    /// How many sequences use each page that any uses.
    fn users(&self) -> BTreeMap<usize, usize> {
        let mut users = BTreeMap::new();
        let used = self.sequences.keys().flat_map(|&id| self.owned(id));
        used.for_each(|page| *users.entry(page).or_default() += 1);
        users
    }

    /// The sequences that use each page, and the tree if it remembers it.
    fn owners(&self) -> BTreeMap<usize, usize> {
        let mut owners = self.users();
        self.tree.values().for_each(|kept| *owners.entry(kept.page).or_default() += 1);
        owners
    }

    pub fn state(&self) -> State {
        State {
            stats: self.cache.stats(),
            tables: self.sequences.keys().map(|&id| self.owned(id)).collect(),
            matched: self.tree.keys().map(|tokens| self.cache.match_prefix(&followed(tokens))).collect(),
        }
    }

    /// Whether the first page of a sequence is remembered.
    pub fn remembers(&self, id: SequenceId) -> bool {
        let first = self.sequences[&id].get(..self.page_size).and_then(|tokens| self.tree.get(tokens));
        first.is_some_and(|kept| self.owned(id).first() == Some(&kept.page))
    }

    fn start(&mut self, id: SequenceId, tokens: Vec<u32>) -> SequenceId {
        assert!(self.sequences.insert(id, tokens).is_none(), "{id:?} is used twice");
        self.changes.insert(id, Changes::default());
        id
    }

    pub fn create(&mut self) -> SequenceId {
        let id = self.cache.create();
        self.start(id, Vec::new())
    }

    pub fn fork(&mut self, parent: SequenceId) -> SequenceId {
        let id = self.cache.fork(parent).expect("alive");
        self.start(id, self.sequences[&parent].clone());
        assert_eq!(self.owned(id), self.owned(parent), "a fork shares all pages");
        id
    }

    pub fn free(&mut self, id: SequenceId) {
        self.touch(&self.owned(id));
        self.cache.free(id).expect("alive");
        self.sequences.remove(&id);
        self.changes.remove(&id);
        assert!(self.cache.free(id).is_err() && self.cache.len(id).is_err());
    }

    pub fn truncate(&mut self, id: SequenceId, len: usize) {
        let before = self.owned(id);
        let tokens = self.sequences.get_mut(&id).expect("alive");
        assert_eq!(self.cache.truncate(id, len).is_ok(), len <= tokens.len());
        let shorter = len < tokens.len();
        tokens.truncate(len);
        let dropped = &before[tokens.len().div_ceil(self.page_size)..];
        if shorter {
            self.touch(dropped);
            self.changed(id, true);
        }
    }

    /// How many of the first of these tokens the tree has.
    fn matched(&self, tokens: &[u32]) -> usize {
        let usable = tokens.len().saturating_sub(1) / self.page_size;
        let has = |&pages: &usize| self.tree.contains_key(&tokens[..pages * self.page_size]);
        (1..=usable).take_while(has).count() * self.page_size
    }

    pub fn create_with_prefix(&mut self, tokens: &[u32]) -> SequenceId {
        let matched = self.matched(tokens);
        assert_eq!(self.cache.match_prefix(tokens), matched);
        let free = self.cache.free_pages();
        let (id, found) = self.cache.create_with_prefix(tokens);
        assert_eq!((found, self.cache.free_pages()), (matched, free));
        self.start(id, tokens[..matched].to_vec());
        let path: Vec<usize> = self.full_pages(&tokens[..matched]).map(|key| self.tree[key].page).collect();
        assert_eq!(self.owned(id), path, "a prefix in other pages than it is remembered in");
        self.counted.hit_tokens += matched as u64;
        self.counted.missed_tokens += (tokens.len() - matched) as u64;
        id
    }

    pub fn remember(&mut self, id: SequenceId) {
        let tokens = self.sequences[&id].clone();
        let before: BTreeMap<SequenceId, Vec<usize>> =
            self.sequences.keys().map(|&id| (id, self.owned(id))).collect();
        self.cache.remember(id, &tokens).expect("its tokens");
        let mut replaced = BTreeMap::new();
        let keys: Vec<Vec<u32>> = self.full_pages(&tokens).map(<[u32]>::to_vec).collect();
        for (key, &page) in keys.into_iter().zip(&before[&id]) {
            let kept = self.tree.entry(key).or_insert(Remembered { page, used: 0 });
            if kept.page != page {
                replaced.insert(page, kept.page);
            }
        }
        for (&id, pages) in &before {
            let expected: Vec<usize> = pages.iter().map(|page| *replaced.get(page).unwrap_or(page)).collect();
            assert_eq!(self.owned(id), expected, "{id:?} after what it shares was remembered");
            if expected != *pages {
                self.changed(id, true);
            }
        }
        self.counted.merged_pages += replaced.len() as u64;
        // A page that it has cut back is no part of what is remembered.
        self.touch(&self.owned(id)[..tokens.len() / self.page_size]);
    }

    pub fn forget(&mut self) {
        self.cache.forget();
        self.tree.clear();
    }

    pub fn swap_out(&mut self, id: SequenceId) {
        self.touch(&self.owned(id));
        let swapped = self.cache.swap_out(id).expect("alive");
        let tokens = self.sequences.remove(&id).expect("alive");
        self.changes.remove(&id);
        let dtype = self.cache.layer(0).expect("a layer").dtype();
        assert_eq!(swapped.len(), tokens.len());
        assert_eq!(swapped.bytes(), 2 * LAYERS * tokens.len() * ROW * dtype.size());
        self.counted.swapped_out_tokens += tokens.len() as u64;
        self.swapped.push((swapped, tokens));
    }

    /// Takes the sequence back, if there is room.
    pub fn swap_in(&mut self, which: usize) -> Option<SequenceId> {
        let needed = self.swapped[which].1.len().div_ceil(self.page_size);
        let before = self.state();
        let room = self.room(needed);
        let result = self.cache.swap_in(&self.swapped[which].0);
        let id = self.granted(result, ("PagedKvCache::swap_in", "swapped"), needed, room, before)?;
        let (_, tokens) = self.swapped.remove(which);
        self.counted.swapped_in_tokens += tokens.len() as u64;
        Some(self.start(id, tokens))
    }

    /// Appends tokens to each of these sequences, if there is room for all of them.
    pub fn append(&mut self, growth: &[(SequenceId, Vec<u32>)]) -> bool {
        let lengths: Vec<(SequenceId, usize)> = growth.iter().map(|(id, new)| (*id, new.len())).collect();
        let (needed, copied) = self.needed(&lengths);
        let before = self.state();
        let room = self.room(needed);
        let result = self.cache.reserve(&lengths);
        let granted = self.granted(result, ("PagedKvCache::reserve", "growth"), needed, room, before);
        let Some(slots) = granted else { return false };
        self.counted.copied_pages += copied.len() as u64;
        copied.values().for_each(|&page| self.touch(&[page]));
        for (id, _) in growth.iter().filter(|(_, new)| !new.is_empty()) {
            self.changed(*id, copied.contains_key(id));
        }

        let mut new = Vec::new();
        for (id, tokens) in growth {
            let sequence = self.sequences.get_mut(id).expect("alive");
            sequence.extend(tokens);
            new.extend(contents(sequence).split_off(sequence.len() - tokens.len()));
        }
        assert_eq!(slots.len(), new.len());
        assert_eq!(self.cache.last_positions(&lengths).expect("alive").len(), new.len());
        for layer in 0..LAYERS {
            let pages = self.cache.layer_mut(layer).expect("a layer");
            let [k, v] = rows(&new, layer, pages.dtype(), &self.device);
            append_paged_kv(pages, k, v, &slots).expect("it fits");
        }
        if !growth.is_empty() {
            let ids: Vec<SequenceId> = growth.iter().map(|&(id, _)| id).collect();
            let table = self.cache.page_table(&ids).expect("alive");
            let range = |(id, new): &(SequenceId, Vec<u32>)| {
                let len = self.sequences[id].len();
                (*id, len - new.len()..len)
            };
            let tokens = growth.iter().map(range).collect();
            let changes = ids.iter().map(|id| self.changes[id]).collect();
            self.handles.push(Handles { slots, table, tokens, changes });
            let old = self.handles.len().saturating_sub(10);
            self.handles.drain(..old);
        }
        true
    }

    /// The number of pages that `growth` takes, and the sequences whose shared last pages have to be copied.
    fn needed(&self, growth: &[(SequenceId, usize)]) -> (usize, BTreeMap<SequenceId, usize>) {
        let mut owners = self.owners();
        let (mut new, mut copied) = (0, BTreeMap::new());
        for &(id, tokens) in growth {
            let len = self.sequences[&id].len();
            new += (len + tokens).div_ceil(self.page_size) - len.div_ceil(self.page_size);
            if tokens > 0 && !len.is_multiple_of(self.page_size) {
                let tail = self.owned(id)[len / self.page_size];
                let owners = owners.get_mut(&tail).expect("owned");
                if *owners > 1 {
                    *owners -= 1;
                    copied.insert(id, tail);
                }
            }
        }
        (new + copied.len(), copied)
    }

    /// The tree once `needed` pages are free, and how many are: fewer, if everything that no sequence uses was evicted.
    fn room(&self, needed: usize) -> (Tree, usize) {
        let users = self.users();
        let (mut tree, mut free) = (self.tree.clone(), self.pages - self.owners().len());
        while free < needed {
            let leaf = |tokens: &[u32]| !tree.keys().any(|t| t.len() > tokens.len() && t.starts_with(tokens));
            let evictable =
                tree.iter().filter(|(tokens, kept)| !users.contains_key(&kept.page) && leaf(tokens));
            let Some((tokens, _)) = evictable.min_by_key(|(_, kept)| kept.used) else { break };
            let tokens = tokens.clone();
            tree.remove(&tokens);
            free += 1;
        }
        (tree, free)
    }

    /// What a call that needs pages gave, if there was room for it; else the refusal must be the right one and have changed
    /// nothing.
    fn granted<T>(
        &mut self,
        result: Result<T>,
        (op, argument): (&'static str, &'static str),
        needed: usize,
        (tree, free): (Tree, usize),
        before: State,
    ) -> Option<T> {
        if needed > free {
            let refusal = result.err().expect("there is no room");
            assert_eq!(refusal, Error::PoolExhausted { op, argument, needed, free, pages: self.pages });
            assert_eq!(self.state(), before, "a refusal changed the cache");
            return None;
        }
        self.counted.evicted_pages += (self.tree.len() - tree.len()) as u64;
        self.tree = tree;
        Some(result.expect("there is room"))
    }

    /// The tokens up to the end of each full page.
    fn full_pages<'a>(&self, tokens: &'a [u32]) -> impl Iterator<Item = &'a [u32]> + use<'a> {
        let page_size = self.page_size;
        (1..=tokens.len() / page_size).map(move |pages| &tokens[..pages * page_size])
    }

    fn touch(&mut self, pages: &[usize]) {
        self.clock += 1;
        let used = self.tree.values_mut().filter(|kept| pages.contains(&kept.page));
        used.for_each(|kept| kept.used = self.clock);
    }

    /// Every page is free or owned, by exactly those that should, and at one place of one prefix only.
    pub fn check_accounts(&self) {
        let (users, owners) = (self.users(), self.owners());
        let mut holds: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        let mut hold = |page: usize, tokens: &[u32]| {
            let known = holds.entry(page).or_default();
            let common = known.len().min(tokens.len());
            assert_eq!(known[..common], tokens[..common], "page {page} is shared by mistake");
            if tokens.len() > common {
                *known = tokens.to_vec();
            }
        };
        for (&id, tokens) in &self.sequences {
            assert_eq!(self.cache.len(id).expect("alive"), tokens.len());
            let owned = self.owned(id);
            assert_eq!(owned.len(), tokens.len().div_ceil(self.page_size), "pages of {id:?}");
            for (at, &page) in owned.iter().enumerate() {
                hold(page, &tokens[..tokens.len().min((at + 1) * self.page_size)]);
            }
        }
        self.tree.iter().for_each(|(tokens, kept)| hold(kept.page, tokens));
        let remembered: BTreeSet<usize> = self.tree.values().map(|kept| kept.page).collect();
        assert_eq!(remembered.len(), self.tree.len(), "a page is remembered twice");

        let mut expected = self.counted;
        expected.pages = self.pages;
        expected.used_pages = users.len();
        expected.evictable_pages = owners.len() - users.len();
        expected.free_pages = self.pages - owners.len();
        expected.remembered_pages = self.tree.len();
        expected.shared_pages = owners.values().filter(|&&owners| owners > 1).count();
        expected.sequences = self.sequences.len();
        expected.tokens = self.sequences.values().map(Vec::len).sum();
        assert_eq!(self.cache.stats(), expected);
        assert_eq!(self.cache.free_pages(), expected.free_pages);
        assert_eq!(self.cache.available_pages(), expected.free_pages + expected.evictable_pages);
        assert_eq!(self.cache.is_empty(), self.sequences.is_empty());
        for tokens in self.tree.keys() {
            assert_eq!(self.cache.match_prefix(&followed(tokens)), tokens.len());
            assert_eq!(self.cache.match_prefix(tokens), tokens.len() - self.page_size);
        }
    }

    /// Every sequence, and every prefix that is remembered, reads back what was appended for it.
    pub fn check_contents(&self) {
        let of_sequences = self.sequences.iter().map(|(&id, tokens)| (self.owned(id), &tokens[..]));
        let of_tree = self
            .tree
            .keys()
            .map(|tokens| (self.full_pages(tokens).map(|key| self.tree[key].page).collect(), &tokens[..]));
        let stored: Vec<(Vec<usize>, &[u32])> = of_sequences.chain(of_tree).collect();
        for layer in 0..LAYERS {
            let pages = self.cache.layer(layer).expect("a layer");
            for (part, tensor) in [(0, pages.k().expect("numbers")), (1, pages.v().expect("numbers"))] {
                let pool = Host::of(tensor.clone());
                let pool = Pages::new(pool.shape, self.layout, pool.f64()).expect("a pool");
                for (owned, tokens) in &stored {
                    let last = if tokens.is_empty() { 0 } else { (tokens.len() - 1) % self.page_size + 1 };
                    let got = gather_pages(&pool, owned, last).expect("a valid table");
                    let expected: Vec<f64> = contents(tokens)
                        .into_iter()
                        .flat_map(|content| (0..ROW).map(move |at| element(content, layer, part, at).into()))
                        .collect();
                    assert_eq!(got.values(), expected, "{tokens:?} in pages {owned:?}, layer {layer}");
                }
            }
        }
    }
}

/// Handles of some sequences, and what had happened to these until then.
struct Handles {
    slots: SlotMapping,
    table: PageTable,
    /// The tokens that have the slots.
    tokens: Vec<(SequenceId, Range<usize>)>,
    changes: Vec<Changes>,
}

/// The number of changes of a sequence, and of those by which it lost tokens or got other pages.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Changes {
    any: u64,
    moved: u64,
}

/// Tokens with one more behind them: what has all of `tokens` for a prefix.
fn followed(tokens: &[u32]) -> Vec<u32> {
    [tokens, &[0]].concat()
}
