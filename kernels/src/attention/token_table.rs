//! Numbers for each query token, in a tensor: a range of keys, or a branch of a tree.
#![allow(missing_docs, reason = "the derived launch structs have none; what is written here does")]

use cubecl::prelude::*;

use super::launch::Call;
use crate::device::Result;

/// Most tokens of a tree: one for each bit of a token's branch.
pub const TREE_TOKENS: usize = 64;

/// Numbers for each query token of each request.
#[derive(CubeType, CubeLaunch)]
pub struct TokenTable {
    /// The first token of each request and their end, then the numbers of each token. At least one token.
    pub values: Box<[i32]>,
    /// Requests.
    pub requests: usize,
    /// Tokens of all requests.
    pub tokens: usize,
}

/// The range of a token, if the table has the token.
#[derive(CubeType)]
pub struct TokenRange {
    pub start: i32,
    pub end: i32,
    pub is_known: bool,
}

/// The keys that a token of a tree sees: those from `start` on before the tree, and those of its bits within the tree.
#[derive(CubeType)]
pub struct Branch {
    pub start: i32,
    pub low: u32,
    pub high: u32,
}

/// The place of a token's numbers.
#[derive(CubeType)]
struct Entry {
    at: usize,
    is_known: bool,
}

#[cube]
impl TokenTable {
    /// The range of query `query` of request `request`.
    pub fn range(&self, request: usize, query: usize) -> TokenRange {
        let entry = self.entry(request, query, 2usize);
        TokenRange { start: self.values[entry.at], end: self.values[entry.at + 1], is_known: entry.is_known }
    }

    /// The branch of query `query` of request `request`.
    pub fn branch(&self, request: usize, query: usize) -> Branch {
        let entry = self.entry(request, query, 3usize);
        Branch {
            start: self.values[entry.at],
            low: u32::reinterpret(self.values[entry.at + 1]),
            high: u32::reinterpret(self.values[entry.at + 2]),
        }
    }

    /// Whatever the table holds, nothing beyond it is read.
    fn entry(&self, request: usize, query: usize, #[comptime] words: usize) -> Entry {
        let request = min(request, self.requests - 1);
        let (first, end) = (self.values[request], self.values[request + 1]);
        let token = first + query as i32;
        let is_known = token < end;
        let token = usize::cast_from(max(min(token, self.tokens as i32 - 1), 0i32));
        Entry { at: self.requests + 1 + words * token, is_known }
    }
}

#[cube]
impl Branch {
    /// True if the token sees key `key` of a request that had `old` keys before the tree.
    pub fn sees(&self, key: usize, old: usize) -> bool {
        let new = (key - min(key, old)) as u32;
        let word = select(new < 32u32, self.low, self.high);
        let is_new = (word >> (new & 31u32)) & 1u32 == 1u32;
        key as i32 >= self.start && (key < old || is_new)
    }
}

/// The argument of each launch, from the call's integers, of `words` for each token.
///
/// # Errors
///
/// If there are none, or less than those of a token and of each request.
pub(super) fn token_table(call: &Call<'_>, words: usize) -> Result<impl Fn() -> TokenTableLaunch + use<>> {
    let requests = call.requests();
    let given = call.inputs().ints.as_ref().map_or(0, TensorBinding::size);
    let tokens = (given.saturating_sub(requests + 1) / words).max(1);
    let values = call.int_input("ranges", &[requests + 1 + words * tokens])?;
    Ok(move || TokenTableLaunch::new(values.clone().into_buffer_arg(), requests, tokens))
}
