//! Trees of new tokens: what each of them sees, and where it sits.

use std::ops::Range;
use std::sync::Arc;

use super::variant::Request;
use crate::error::{Error, Result};

#[cfg(feature = "cube")]
use burn_flashinfer_kernels::attention as kernels;

/// A tree of new tokens of a sequence, as speculative decoding drafts them: each sees what was there before, its ancestors
/// and itself.
///
/// Row `i` of the queries is token `i` of the tree, and parents come before their children. A token sits at its depth
/// behind what was there before: siblings have the same position, for RoPE and for windows. There may be several
/// tokens without a parent.
///
/// ```
/// use burn_flashinfer::TokenTree;
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// // The last sampled token, two guesses of the next one, and one more behind the second.
/// let tree = TokenTree::new(&[None, Some(0), Some(0), Some(2)])?;
/// assert_eq!(tree.depths().collect::<Vec<_>>(), [0, 1, 1, 2]);
/// assert_eq!(tree.path(3), Some(vec![0, 2, 3]));
/// let rows = [[true, false, false, false], [true, true, false, false], [true, false, true, false], [true, false, true, true]];
/// assert_eq!(TokenTree::from_mask(rows.as_flattened())?, tree);
/// # Ok(())
/// # }
/// ```
///
/// Source: the draft trees of SpecInfer (<https://arxiv.org/abs/2305.09781>) and EAGLE-2 (<https://arxiv.org/abs/2406.16858>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenTree(Arc<[u64]>);

impl TokenTree {
    /// Most tokens of a tree.
    pub const MAX_TOKENS: usize = 64;

    /// The tree of tokens with these parents.
    ///
    /// # Errors
    ///
    /// If there is no token, or there are more than [`MAX_TOKENS`](Self::MAX_TOKENS); if a parent does not come before its
    /// child.
    pub fn new(parents: &[Option<usize>]) -> Result<Self> {
        const OP: &str = "TokenTree::new";
        check_count(OP, "parents", parents.len())?;
        let mut seen = Vec::with_capacity(parents.len());
        for (at, parent) in parents.iter().enumerate() {
            let of_parent = match parent {
                None => 0,
                Some(parent) => *seen.get(*parent).ok_or_else(|| Error::Index {
                    op: OP,
                    argument: "parents",
                    at,
                    got: parent.to_string(),
                    expected: format!("a token before it, below {at}"),
                })?,
            };
            seen.push(of_parent | 1 << at);
        }
        Ok(Self(seen.into()))
    }

    /// The tree whose tokens see each other as `mask` says, `[tokens, tokens]` row by row: token `i` sees token `j` if
    /// `mask[i * tokens + j]`.
    ///
    /// # Errors
    ///
    /// If it is not square, or of too many tokens; if it is no tree's: a row is that of an earlier token, or none, and
    /// the token itself.
    pub fn from_mask(mask: &[bool]) -> Result<Self> {
        const OP: &str = "TokenTree::from_mask";
        let tokens = mask.len().isqrt();
        if tokens * tokens != mask.len() {
            let (got, expected) = (format!("of length {}", mask.len()), "a square number".into());
            return Err(Error::Value { op: OP, argument: "mask", got, expected });
        }
        check_count(OP, "mask", tokens)?;
        let mut seen: Vec<u64> = Vec::with_capacity(tokens);
        for (at, row) in mask.chunks_exact(tokens).enumerate() {
            let bits = row.iter().rev().fold(0, |bits, &sees| bits << 1 | u64::from(sees));
            let others = bits & !(1 << at);
            let of_parent = others.checked_ilog2().map_or(Some(0), |last| seen.get(last as usize).copied());
            if bits == others || of_parent != Some(others) {
                let expected = "what an earlier token sees, or nothing, and itself".into();
                let got = format!("{:?}", (0..tokens).filter(|&key| row[key]).collect::<Vec<_>>());
                return Err(Error::Index { op: OP, argument: "mask", at, got, expected });
            }
            seen.push(bits);
        }
        Ok(Self(seen.into()))
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// False: a tree has a token.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of ancestors of each token: its position behind what was there before.
    pub fn depths(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.0.iter().map(|seen| seen.count_ones() as usize - 1)
    }

    /// The tokens from the first ancestor of token `last` to itself, if there is such a token: what
    /// [`PagedKvCache::keep`](crate::PagedKvCache::keep) takes, if `last` is the last one accepted.
    pub fn path(&self, last: usize) -> Option<Vec<usize>> {
        let seen = *self.0.get(last)?;
        Some((0..self.len()).filter(|token| seen >> token & 1 == 1).collect())
    }

    /// The depth of a token, and the tokens that it sees within a window.
    fn branch(&self, token: usize, window: Option<usize>) -> Option<(usize, u64)> {
        let mut seen = *self.0.get(token)?;
        let depth = seen.count_ones() as usize - 1;
        for _ in 0..window.map_or(0, |window| depth.saturating_sub(window)) {
            // Without the first.
            seen &= seen - 1;
        }
        Some((depth, seen))
    }
}

#[cfg(feature = "cube")]
const _: () = assert!(TokenTree::MAX_TOKENS == kernels::TREE_TOKENS);

fn check_count(op: &'static str, argument: &'static str, tokens: usize) -> Result<()> {
    if (1..=TokenTree::MAX_TOKENS).contains(&tokens) {
        return Ok(());
    }
    let expected = format!("1 to {}", TokenTree::MAX_TOKENS);
    Err(Error::Value { op, argument, got: format!("of {tokens} tokens"), expected })
}

/// The tree of each request, if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trees(pub Arc<[Option<TokenTree>]>);

impl Trees {
    /// The first key that a query sees of those before the new tokens, and which of these it sees: all those in order
    /// without a tree. None if the request has too few keys.
    pub fn branch(&self, request: &Request, query: usize, window: Option<usize>) -> Option<(usize, u64)> {
        let old = request.kv_len.checked_sub(request.qo_len)?;
        let tree = self.0.get(request.index).and_then(Option::as_ref);
        let (depth, seen) = tree.and_then(|tree| tree.branch(query, window)).unwrap_or((query, u64::MAX));
        Some((window.map_or(0, |window| (old + depth).saturating_sub(window)), seen))
    }

    /// False for a key that the tree or the window hides from a query.
    pub fn keeps(&self, request: &Request, query: usize, key: usize, window: Option<usize>) -> bool {
        self.branch(request, query, window).is_none_or(|(start, seen)| {
            let new = key.checked_sub(request.kv_len - request.qo_len);
            key >= start && new.is_none_or(|new| seen >> (new % TokenTree::MAX_TOKENS) & 1 == 1)
        })
    }

    /// The range of a query that includes what it sees, of the `range` of its row.
    pub fn widen(&self, range: Range<usize>, query: usize) -> Range<usize> {
        range.start.saturating_sub(query.min(TokenTree::MAX_TOKENS - 1))..range.end
    }

    /// True if every query of a request sees all of some keys.
    pub fn keep_all(&self, request: &Request, keys: Range<usize>, window: Option<usize>) -> bool {
        let old = request.kv_len.saturating_sub(request.qo_len);
        let start = window.map_or(0, |window| request.kv_len.saturating_sub(window));
        keys.start >= start && keys.end <= old
    }
}
