//! Masks of a few numbers for each token: spans that see themselves, items that see a prefix and themselves, trees.

use std::ops::Range;
use std::sync::Arc;

use super::token_tree::Trees;
use super::variant::Request;
use crate::error::{Error, Result};

/// Spans of tokens that see each other in both directions, behind a causal mask: the tokens of an image.
///
/// A token at a position of span `start..end` sees the keys of its span besides those that mask and window let it see.
///
/// ```
/// use burn_flashinfer::{AttentionOptions, Spans};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// // Two requests; tokens 4 to 259 of the first are an image.
/// let spans = Spans::new(&[vec![4..260], vec![]])?;
/// let options = AttentionOptions::new().causal(true).spans(spans);
/// # let _ = options;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spans(Arc<[Vec<Range<usize>>]>);

impl Spans {
    /// The spans of each request, as positions among its keys.
    ///
    /// # Errors
    ///
    /// If a span is empty, or begins before the one before it ends.
    pub fn new(requests: &[Vec<Range<usize>>]) -> Result<Self> {
        for (request, spans) in requests.iter().enumerate() {
            let mut end = 0;
            for span in spans {
                if span.is_empty() || span.start < end {
                    let got = format!("{span:?} in request {request}");
                    let expected = format!("a span from {end} on that is not empty");
                    return Err(Error::Value { op: "Spans::new", argument: "requests", got, expected });
                }
                end = span.end;
            }
        }
        Ok(Self(requests.into()))
    }

    /// The span of the token at a position, if it is in one.
    fn of(&self, request: usize, position: usize) -> Option<&Range<usize>> {
        let spans = self.0.get(request)?;
        spans.get(spans.partition_point(|span| span.end <= position)).filter(|span| span.contains(&position))
    }
}

/// Items behind a prefix that do not see each other, for multi-item scoring: many documents for one query.
///
/// The keys of a request are its prefix, a delimiter, the first item, a delimiter, the next item and so on; a delimiter
/// ends the last one. With a causal mask a token of an item sees the prefix and its own item up to itself; a delimiter sees
/// the prefix alone, and nothing but the prefix sees what is in it.
///
/// ```
/// use burn_flashinfer::{AttentionOptions, Items};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// // A prefix of 20 tokens, and items of 3, 2 and 4: 33 keys.
/// let items = Items::new(&[(20, vec![3, 2, 4])])?;
/// let options = AttentionOptions::new().causal(true).items(items);
/// # let _ = options;
/// # Ok(())
/// # }
/// ```
///
/// Source: FlashInfer's multi-item scoring (`prefix_len_ptr`, `token_pos_in_items_ptr`), <https://docs.flashinfer.ai>.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Items(Arc<[Vec<usize>]>);

impl Items {
    /// The tokens of the prefix, and of each item, of each request.
    ///
    /// # Errors
    ///
    /// If a request has more tokens than can be counted.
    pub fn new(requests: &[(usize, Vec<usize>)]) -> Result<Self> {
        let delimiters = |(request, (prefix, items)): (usize, &(usize, Vec<usize>))| {
            let mut delimiters = vec![*prefix];
            for item in items {
                let next = delimiters.last().and_then(|last| last.checked_add(item.checked_add(1)?));
                delimiters.push(next.ok_or_else(|| Error::Value {
                    op: "Items::new",
                    argument: "requests",
                    got: format!("an item of {item} tokens in request {request}"),
                    expected: format!("at most {} tokens in a request", usize::MAX),
                })?);
            }
            Ok(delimiters)
        };
        requests.iter().enumerate().map(delimiters).collect::<Result<Vec<_>>>().map(|all| Self(all.into()))
    }

    /// The keys before a position that its token does not see.
    fn hidden(&self, request: usize, position: usize) -> Range<usize> {
        let Some(delimiters) = self.0.get(request) else {
            return 0..0;
        };
        match delimiters[..delimiters.partition_point(|&delimiter| delimiter <= position)] {
            [] => 0..0,
            [prefix, ..] if delimiters.binary_search(&position).is_ok() => prefix..position + 1,
            [prefix, .., last] => prefix..last + 1,
            [prefix] => prefix..prefix + 1,
        }
    }
}

/// A mask of a range of keys, or of a branch of a tree, for each token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TokenRanges {
    Spans(Spans),
    Items(Items),
    Trees(Trees),
}

impl TokenRanges {
    /// The name of the option.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Spans(_) => "spans",
            Self::Items(_) => "items",
            Self::Trees(_) => "trees",
        }
    }

    pub fn requests(&self) -> usize {
        match self {
            Self::Spans(Spans(requests)) => requests.len(),
            Self::Items(Items(requests)) => requests.len(),
            Self::Trees(Trees(requests)) => requests.len(),
        }
    }

    /// The tokens that request `request` must have, if its tree says so.
    pub fn tokens(&self, request: usize) -> Option<usize> {
        match self {
            Self::Trees(Trees(requests)) => Some(requests.get(request)?.as_ref()?.len()),
            Self::Spans(_) | Self::Items(_) => None,
        }
    }

    /// Numbers of a token in the table.
    pub fn words(&self) -> usize {
        if let Self::Trees(_) = self { 3 } else { 2 }
    }

    /// The keys that a query sees: those of `range`, and of its span; with a tree, those that it may see.
    pub fn widen(&self, range: Range<usize>, request: &Request, query: usize) -> Range<usize> {
        match (self, position(request, query)) {
            (Self::Spans(spans), Some(position)) => match spans.of(request.index, position) {
                Some(span) => range.start.min(span.start)..range.end.max(span.end).min(request.kv_len),
                None => range,
            },
            (Self::Trees(trees), _) => trees.widen(range, query),
            _ => range,
        }
    }

    /// False for a key that the items, or a tree with the window, hide from a query.
    pub fn keeps(&self, request: &Request, query: usize, key: usize, window: Option<usize>) -> bool {
        match (self, position(request, query)) {
            (Self::Items(items), Some(position)) => !items.hidden(request.index, position).contains(&key),
            (Self::Trees(trees), _) => trees.keeps(request, query, key, window),
            _ => true,
        }
    }

    /// True if no query of a request misses any of some keys that are in its range.
    pub fn keep_all(&self, request: &Request, keys: Range<usize>, window: Option<usize>) -> bool {
        match self {
            Self::Spans(_) => true,
            Self::Items(_) => false,
            Self::Trees(trees) => trees.keep_all(request, keys, window),
        }
    }

    /// The table of the kernels: the first query token of each request and their end, then the numbers of each token.
    pub fn table(&self, lengths: impl Iterator<Item = (usize, usize)>, window: Option<usize>) -> Vec<i32> {
        let words = self.words();
        let (mut offsets, mut numbers) = (vec![0], vec![]);
        for (index, (qo_len, kv_len)) in lengths.enumerate() {
            let request = Request { index, qo_len, kv_len };
            for query in 0..qo_len {
                numbers.extend_from_slice(&self.numbers(&request, query, window)[..words]);
            }
            offsets.push((numbers.len() / words) as i32);
        }
        // Never without a token: a kernel reads one whatever it does.
        numbers.resize(numbers.len().max(words), 0);
        offsets.into_iter().chain(numbers).collect()
    }

    /// The numbers of a token, and zeros: a range, or the first key and the bits of a branch.
    fn numbers(&self, request: &Request, query: usize, window: Option<usize>) -> [i32; 3] {
        let range = match (self, position(request, query)) {
            (Self::Spans(spans), Some(position)) => {
                spans.of(request.index, position).cloned().unwrap_or(position..position + 1)
            }
            (Self::Items(items), Some(position)) => items.hidden(request.index, position),
            (Self::Trees(trees), _) => {
                let (start, seen) = trees.branch(request, query, window).unwrap_or_default();
                return [within(start), seen as i32, (seen >> 32) as i32];
            }
            (_, None) => 0..0,
        };
        [within(range.start), within(range.end), 0]
    }
}

/// Beyond all keys is beyond the keys of the request.
fn within(key: usize) -> i32 {
    i32::try_from(key).unwrap_or(i32::MAX)
}

/// Position of a query among the keys, unless the request has too few.
fn position(request: &Request, query: usize) -> Option<usize> {
    (request.kv_len + query).checked_sub(request.qo_len)
}
