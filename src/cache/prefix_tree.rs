//! The pages of the cached prefixes of token sequences.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::iter;
use std::sync::Arc;

/// A radix tree of prefixes whose digits are pages: each node is the tokens of one full page, after those of
/// its parent. It holds no tensor and no owner: a page is a number, and the number of its node.
///
/// Matching hashes each token once. Time is a count of uses, so that one history always evicts the same pages.
#[derive(Debug)]
pub(crate) struct PrefixTree {
    page_size: usize,
    /// The first pages of all prefixes.
    roots: Children,
    nodes: BTreeMap<usize, Node>,
    /// Nodes without children, the least recently used first: all that may go, and some that may not.
    leaves: BTreeSet<(u64, usize)>,
    clock: u64,
}

/// Pages by their tokens.
type Children = HashMap<Arc<[u32]>, usize>;

#[derive(Debug)]
struct Node {
    tokens: Arc<[u32]>,
    parent: Option<usize>,
    children: Children,
    last_used: u64,
}

impl PrefixTree {
    pub(crate) fn new(page_size: usize) -> Self {
        let (roots, nodes, leaves) = Default::default();
        Self { page_size, roots, nodes, leaves, clock: 0 }
    }

    /// The number of pages.
    pub(crate) fn pages(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn contains(&self, page: usize) -> bool {
        self.nodes.contains_key(&page)
    }

    /// The pages of the longest prefix of `tokens` that it holds. This is no use of them.
    pub(crate) fn path(&self, tokens: &[u32]) -> Vec<usize> {
        let mut path = Vec::new();
        let mut children = &self.roots;
        for tokens in tokens.chunks_exact(self.page_size) {
            let Some((page, node)) = children.get(tokens).and_then(|page| self.nodes.get_key_value(page))
            else {
                break;
            };
            path.push(*page);
            children = &node.children;
        }
        path
    }

    /// Those of `pages`, from the first on, that it holds have been used now.
    pub(crate) fn touch(&mut self, pages: &[usize]) {
        self.clock += 1;
        for &page in pages {
            let Some(node) = self.nodes.get_mut(&page) else { break };
            if node.children.is_empty() {
                self.leaves.remove(&(node.last_used, page));
                self.leaves.insert((self.clock, page));
            }
            node.last_used = self.clock;
        }
    }

    /// Holds `tokens` from now on, in `pages`, one for each full page of tokens. Those of them that it has
    /// already must be the path of `tokens`.
    pub(crate) fn insert(&mut self, tokens: &[u32], pages: &[usize]) {
        let mut parent = None;
        for (tokens, &page) in tokens.chunks_exact(self.page_size).zip(pages) {
            if !self.contains(page) {
                let tokens: Arc<[u32]> = tokens.into();
                self.children(parent).insert(tokens.clone(), page);
                let node = Node { tokens, parent, children: Children::new(), last_used: 0 };
                self.nodes.insert(page, node);
            }
            parent = Some(page);
        }
        self.touch(pages);
    }

    /// Gives up the least recently used leaf for which `may_go` holds. It must be [touched](Self::touch) when
    /// that begins to hold: one for which it does not is looked at once, not each time that another is given
    /// up.
    pub(crate) fn evict(&mut self, may_go: impl Fn(usize) -> bool) -> Option<usize> {
        let (_, page) = iter::from_fn(|| self.leaves.pop_first()).find(|&(_, page)| may_go(page))?;
        let Node { tokens, parent, .. } = self.nodes.remove(&page)?;
        self.children(parent).remove(&tokens);
        if let Some((parent, node)) = parent.and_then(|parent| self.nodes.get_key_value(&parent))
            && node.children.is_empty()
        {
            self.leaves.insert((node.last_used, *parent));
        }
        Some(page)
    }

    /// Gives up all pages.
    pub(crate) fn clear(&mut self) -> impl Iterator<Item = usize> + use<> {
        self.roots.clear();
        self.leaves.clear();
        std::mem::take(&mut self.nodes).into_keys()
    }

    /// The children of `parent`, for a change: `parent` is no leaf meanwhile.
    fn children(&mut self, parent: Option<usize>) -> &mut Children {
        match parent.and_then(|parent| self.nodes.get_mut(&parent).map(|node| (parent, node))) {
            Some((parent, node)) => {
                self.leaves.remove(&(node.last_used, parent));
                &mut node.children
            }
            None => &mut self.roots,
        }
    }
}
