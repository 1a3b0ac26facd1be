//! The problem of attention: keys, values and queries, and where those of a request are.

use std::ops::Range;

use burn_flex::FlexTensor;

use super::super::{
    float::{Float, Widen},
    simd,
    view::Rows,
};
use crate::types::{AttentionVariant, HostInputs, KvLayout, LogitTile, Request, Row, visible};

/// Keys or values.
#[derive(Clone, Copy)]
pub(super) struct Cache<'a, E> {
    pub data: &'a [E],
    pub start: isize,
    pub token: isize,
    pub head: isize,
    pub page: isize,
}

impl<'a, E: Widen> Cache<'a, E> {
    /// Pages have an order of axes, if they have an axis of their own, and hold `page_size` tokens each.
    pub(super) fn of(tensor: &'a FlexTensor, (layout, page_size): (Option<KvLayout>, usize)) -> Self {
        let strides = tensor.layout().strides();
        let (page, token, head) = match layout {
            None => (page_size as isize * strides[0], strides[0], strides[1]),
            Some(KvLayout::Nhd) => (strides[0], strides[1], strides[2]),
            Some(KvLayout::Hnd) => (strides[0], strides[2], strides[1]),
        };
        Self { data: E::of(tensor), start: tensor.layout().start_offset() as isize, token, head, page }
    }

    #[inline(always)]
    pub(super) fn row(&self, at: usize, len: usize) -> &'a [E] {
        &self.data[at..][..len]
    }

    #[inline(always)]
    pub(super) fn fetch(&self, at: usize, len: usize) {
        simd::fetch(self.row(at, len));
    }
}

/// The places of each request's tokens.
#[derive(Clone, Copy)]
pub(super) enum Index<'a> {
    Ragged { qo_indptr: &'a [i32], kv_indptr: &'a [i32] },
    Paged { qo_indptr: &'a [i32], kv_indptr: &'a [i32], pages: &'a [i32], last: &'a [i32], page_size: usize },
}

/// The place of one request's tokens.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    /// Its number in the batch.
    pub index: usize,
    /// Its first query token.
    pub token: usize,
    pub qo_len: usize,
    /// Its first key, or where its pages begin in the list of pages.
    pub first: usize,
    pub kv_len: usize,
}

impl Tokens {
    pub(super) fn shape(&self) -> Request {
        Request { index: self.index, qo_len: self.qo_len, kv_len: self.kv_len }
    }
}

impl Index<'_> {
    pub(super) fn requests(&self) -> usize {
        match self {
            Self::Ragged { qo_indptr, .. } | Self::Paged { qo_indptr, .. } => {
                qo_indptr.len().saturating_sub(1)
            }
        }
    }

    pub(super) fn request(&self, r: usize) -> Tokens {
        let (qo_indptr, kv_indptr) = match self {
            Self::Ragged { qo_indptr, kv_indptr } | Self::Paged { qo_indptr, kv_indptr, .. } => {
                (qo_indptr, kv_indptr)
            }
        };
        let [token, first] = [qo_indptr, kv_indptr].map(|rows| rows[r] as usize);
        let (qo_len, len) = (qo_indptr[r + 1] as usize - token, kv_indptr[r + 1] as usize - first);
        let kv_len = match self {
            Self::Paged { last, page_size, .. } if len > 0 => (len - 1) * page_size + last[r] as usize,
            _ => len,
        };
        Tokens { index: r, token, qo_len, first, kv_len }
    }

    /// The request that owns a query token, if one does.
    pub(super) fn owner(&self, token: usize) -> Option<Tokens> {
        let (mut low, mut high) = (0, self.requests());
        while low < high {
            let middle = (low + high) / 2;
            if self.request(middle).token <= token { low = middle + 1 } else { high = middle }
        }
        let request = self.request(low.checked_sub(1)?);
        (token < request.token + request.qo_len).then_some(request)
    }
}

/// The bytes of a custom mask, and the first bit of each request, low and high half.
#[derive(Clone, Copy)]
pub(super) struct Mask<'a> {
    pub bytes: &'a [u8],
    pub first_bits: &'a [i32],
}

impl Mask<'_> {
    fn keeps(&self, request: &Request, query: usize, key: usize) -> bool {
        let [low, high] = [0, 1].map(|half| u64::from(self.first_bits[2 * request.index + half] as u32));
        let bit = (low | high << 32) as usize + query * request.kv_len + key;
        self.bytes[bit / 8] >> (bit % 8) & 1 == 1
    }
}

/// The scales of codes, one for all key heads or one for each; none of numbers.
#[derive(Clone, Copy, Default)]
pub(super) struct Scales<'a> {
    pub k: &'a [f32],
    pub v: &'a [f32],
    /// Those of keys and of values for each token and head, as pages.
    pub of_tokens: Option<&'a [FlexTensor; 2]>,
}

/// An attention problem.
pub(super) struct Problem<'a, E, C> {
    pub q: Rows<'a, E, 2>,
    pub k: Cache<'a, C>,
    pub v: Cache<'a, C>,
    pub scales: Scales<'a>,
    /// The scales of each token's key and value.
    pub token_scales: Option<[Cache<'a, f32>; 2]>,
    pub index: Index<'a>,
    pub variant: &'a dyn AttentionVariant,
    /// False if scores are weights, not logits.
    pub softmax: bool,
    pub inputs: HostInputs<'a>,
    pub mask: Option<Mask<'a>>,
    pub kv_heads: usize,
    /// Query heads that share a key-value head.
    pub group: usize,
    pub head_dim: usize,
    pub head_dim_vo: usize,
}

/// Some consecutive queries of a request, for the query heads that share one key-value head.
#[derive(Clone, Copy)]
pub(super) struct Work {
    pub request: Tokens,
    pub kv_head: usize,
    pub queries: Queries,
}

/// Some consecutive queries of a request.
#[derive(Clone, Copy)]
pub(super) struct Queries {
    pub start: usize,
    pub end: usize,
}

impl<E: Float, C: Widen> Problem<'_, E, C> {
    /// The factor on products with the keys.
    pub(super) fn k_scale(&self, work: &Work) -> f32 {
        scale_of(self.scales.k, work.kv_head)
    }

    /// The factor on the sums of the values.
    pub(super) fn v_scale(&self, work: &Work) -> f32 {
        scale_of(self.scales.v, work.kv_head)
    }

    /// The scales of keys `from..`, and of their values; none if tokens have none of their own.
    #[inline(always)]
    pub(super) fn scales_of<const TILE: usize>(
        &self,
        work: &Work,
        from: usize,
        keys: usize,
    ) -> Option<[[f32; TILE]; 2]> {
        let caches = self.token_scales.as_ref()?;
        Some(caches.each_ref().map(|cache| {
            let (mut places, mut scales) = ([0; TILE], [0.0; TILE]);
            self.locate(cache, work, from, &mut places[..keys]);
            for (scale, place) in scales.iter_mut().zip(&places[..keys]) {
                *scale = cache.data[*place];
            }
            scales
        }))
    }

    /// The keys that query `i` of a request sees.
    pub(super) fn seen(&self, request: &Tokens, i: usize) -> Range<usize> {
        visible(self.variant, &request.shape(), i)
    }

    /// The keys that any of these queries sees. Both ends only ever grow from query to query.
    pub(super) fn seen_by_any(&self, work: &Work) -> Range<usize> {
        let Queries { start, end } = work.queries;
        let (first, last) = (self.seen(&work.request, start), self.seen(&work.request, end - 1));
        first.start.min(last.end)..last.end
    }

    /// The score of a key that a row does not see.
    pub(super) fn masked(&self) -> f32 {
        if self.softmax { f32::NEG_INFINITY } else { 0.0 }
    }

    /// A row of `work`, as the variant is told.
    pub(super) fn row(&self, work: &Work, row: usize) -> Row<'_> {
        Row {
            request: work.request.shape(),
            query: work.queries.start + row / self.group,
            q_head: work.kv_head * self.group + row % self.group,
            kv_head: work.kv_head,
            inputs: self.inputs,
        }
    }

    /// Turns products into logits: -inf for keys that a mask hides.
    pub(super) fn transform(&self, tile: &mut LogitTile<'_>) {
        self.variant.transform(tile);
        let masked = if self.softmax { f32::NEG_INFINITY } else { 0.0 };
        if let Some(mask) = &self.mask {
            tile.for_each(|logit, row, key| {
                if key < row.request.kv_len && !mask.keeps(&row.request, row.query, key) {
                    *logit = masked;
                }
            });
        }
    }

    /// Maximum of the scaled logits and sum of exponentials of a row before its first key.
    pub(super) fn start(&self, work: &Work, row: usize) -> (f32, f32) {
        if !self.softmax {
            return (f32::NEG_INFINITY, 0.0);
        }
        let (max, sum) = self.variant.start(&self.row(work, row));
        // A scale may be 0, and -inf times it is NaN.
        let max = if max == f64::NEG_INFINITY { max } else { max * f64::from(self.variant.scale()) };
        (max as f32, sum as f32)
    }

    pub(super) fn query(&self, work: &Work, row: usize) -> &[E] {
        let token = work.request.token + work.queries.start + row / self.group;
        self.q.row([token, work.kv_head * self.group + row % self.group])
    }

    /// Writes the offsets of keys `from..` of the request in the cache.
    #[inline(always)]
    pub(super) fn locate<T>(&self, cache: &Cache<'_, T>, work: &Work, from: usize, places: &mut [usize]) {
        let base = cache.start + work.kv_head as isize * cache.head;
        match self.index {
            Index::Paged { pages, page_size, .. } => {
                let mut page = work.request.first + from / page_size;
                let mut offset = from % page_size;
                let mut at = 0;
                while at < places.len() {
                    let here = (page_size - offset).min(places.len() - at);
                    let mut place = base + pages[page] as isize * cache.page + offset as isize * cache.token;
                    for slot in &mut places[at..at + here] {
                        *slot = place as usize;
                        place += cache.token;
                    }
                    (at, page, offset) = (at + here, page + 1, 0);
                }
            }
            _ => {
                let mut place = base + (work.request.first + from) as isize * cache.token;
                for slot in places {
                    *slot = place as usize;
                    place += cache.token;
                }
            }
        }
    }
}

/// The scale of a key head: 1 of numbers.
fn scale_of(scales: &[f32], kv_head: usize) -> f32 {
    scales.get(kv_head).or(scales.first()).copied().unwrap_or(1.0)
}

/// The factor on the output and the LSE of one query, from its row_sum and row_max.
///
/// The sum is 0 only if the query has seen no key, and NaN if it has seen a NaN.
#[inline(always)]
pub(super) fn finish(softmax: bool, sum: f32, max: f32) -> (f32, f32) {
    if !softmax {
        (1.0, f32::NAN)
    } else if sum == 0.0 {
        (0.0, f32::NEG_INFINITY)
    } else {
        (1.0 / sum, max * std::f32::consts::LOG2_E + sum.log2())
    }
}
