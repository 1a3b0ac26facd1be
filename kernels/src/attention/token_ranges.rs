//! A range of keys for each query token, in a tensor.
#![allow(missing_docs, reason = "the derived launch structs have none; what is written here does")]

use cubecl::prelude::*;

use super::launch::Call;
use crate::device::Result;

/// A range for each query token of each request.
#[derive(CubeType, CubeLaunch)]
pub struct TokenRanges {
    /// The first token of each request and their end, then start and end for each token. At least one token.
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

#[cube]
impl TokenRanges {
    /// The range of query `query` of request `request`. Whatever the table holds, nothing beyond it is read.
    pub fn at(&self, request: usize, query: usize) -> TokenRange {
        let request = min(request, self.requests - 1);
        let (first, end) = (self.values[request], self.values[request + 1]);
        let token = first + query as i32;
        let is_known = token < end;
        let at = self.requests + 1 + 2 * usize::cast_from(max(min(token, self.tokens as i32 - 1), 0i32));
        TokenRange { start: self.values[at], end: self.values[at + 1], is_known }
    }
}

/// The argument of each launch, from the call's integers.
///
/// # Errors
///
/// If there are none, or less than those of a token and of each request.
pub(super) fn token_ranges(call: &Call<'_>) -> Result<impl Fn() -> TokenRangesLaunch + use<>> {
    let requests = call.requests();
    let given = call.inputs().ints.as_ref().map_or(0, TensorBinding::size);
    let tokens = (given.saturating_sub(requests + 1) / 2).max(1);
    let values = call.int_input("ranges", &[requests + 1 + 2 * tokens])?;
    Ok(move || TokenRangesLaunch::new(values.clone().into_buffer_arg(), requests, tokens))
}
