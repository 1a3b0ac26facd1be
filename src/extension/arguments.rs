//! Arguments and results of backends, besides tensors.
#![allow(
    clippy::large_enum_variant,
    reason = "an optional tensor is one a call and taken apart at once; so are those derived"
)]

use std::ops::Range;

use burn::backend::{
    Backend, ExtensionType,
    tensor::{FloatTensor, IntTensor},
};

use crate::types::{Code8, Fp8, KvLayout, RopeStyle};

#[cfg(feature = "cube")]
use burn_flashinfer_kernels::attention as kernels;

/// Words of a draw on the device: both halves of the seed, the stream, both halves of the offset, and the row.
pub(crate) const DRAW_WORDS: usize = 6;

/// Places of the queries and keys of each request, and the work partitioning.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub struct Batch<B: Backend> {
    /// `i32`: one list after the other, in the order of `layout`.
    pub index: IntTensor<B>,
    /// f32: room for partial results, if there are any. Written even if it has other owners.
    #[extension_type]
    pub workspace: MaybeFloats<B>,
    /// The tensors of the variant.
    #[extension_type]
    pub inputs: VariantTensors<B>,
    /// The mask, beside the variant's.
    #[extension_type]
    pub mask: MaybeMask<B>,
    /// The layout of the batch.
    pub layout: BatchLayout,
}

/// The tensors of a variant.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub struct VariantTensors<B: Backend> {
    /// `[q_heads]`, f32: logits without a value.
    #[extension_type]
    pub sinks: MaybeFloats<B>,
    /// `[q_heads]`, f32: growth of the logits from a key to the next.
    #[extension_type]
    pub slopes: MaybeFloats<B>,
    /// The variant's numbers, f32.
    #[extension_type]
    pub floats: MaybeFloats<B>,
    /// The variant's integers, `i32`.
    #[extension_type]
    pub ints: MaybeInts<B>,
}

/// The lists of a [`Batch`], as ranges of its `index`. Request `r` owns the query tokens
/// `qo_indptr[r]..qo_indptr[r + 1]`.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchLayout {
    /// `[requests + 1]`: first query token of each request.
    pub qo_indptr: Range<usize>,
    /// `[requests + 1]`: first key of each request; or where its pages begin in `indices`.
    pub kv_indptr: Range<usize>,
    /// The layout of pages, if keys and values are pages: `k`, `v` are
    /// `[pages, page_size, kv_heads, head_dim]`, or with heads before tokens, or `[pages * page_size, kv_heads, head_dim]`.
    /// Without it, `[kv_tokens, kv_heads, head_dim]`.
    pub pages: Option<PagesLayout>,
    /// The ranges of keys of the query tokens, for kernels: empty if there are none.
    pub ranges: Range<usize>,
    /// The launch of the kernels.
    pub launch: Launch,
}

/// The kernel launch of a [`Batch`], and its lists.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Launch {
    /// Ranges of the index tensor.
    pub(crate) work_items: Range<usize>,
    pub(crate) merges: Range<usize>,
    pub(crate) merge_rows: usize,
    pub(crate) partial_rows: usize,
    /// Entries of a custom mask's tile map, and most tiles of keys of a work item.
    pub(crate) mask_tiles: usize,
    pub(crate) longest_walk: usize,
    /// None on Flex, which needs no plan.
    #[cfg(feature = "cube")]
    pub(crate) blueprint: Option<kernels::Blueprint>,
}

/// A batch for whose kernels a custom mask is laid out.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskedBatch {
    pub(crate) launch: Launch,
    /// Query heads of a key head.
    pub(crate) group: usize,
}

impl MaskedBatch {
    /// Words behind the last bit of a mask, which kernels may read.
    const PADDING: usize = 64;

    /// Words of a mask of so many bytes.
    pub(crate) fn words(bytes: usize) -> usize {
        bytes.div_ceil(4) + Self::PADDING
    }

    /// Entries of the list of tiles.
    pub(crate) fn tiles(&self) -> usize {
        self.launch.mask_tiles.max(1)
    }
}

#[cfg(feature = "cube")]
const _: () = assert!(MaskedBatch::PADDING == kernels::MaskBits::PADDING);

/// The lists of a batch whose keys and values lie in pages.
#[derive(Debug, Clone, PartialEq)]
pub struct PagesLayout {
    /// `[requests]`: tokens in the last page of each request, 0 for a request without pages.
    pub last_page_len: Range<usize>,
    /// `[kv_indptr[requests]]`: pages, in the order of the tokens they hold. Never empty: padded with one 0.
    pub indices: Range<usize>,
    /// Tokens a page holds.
    pub page_size: usize,
    /// Order of the axes of a page.
    pub layout: KvLayout,
}

/// The results of attention: `output` `[tokens, q_heads, head_dim_vo]` of the type of the queries, and `lse`
/// `[tokens, q_heads]` in f32 if it was requested.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub enum Attended<B: Backend> {
    /// The output alone.
    WithoutLse(FloatTensor<B>),
    /// The output and the base-2 log-sum-exp.
    WithLse(FloatTensor<B>, FloatTensor<B>),
}

/// Rows of floats, or of fp8 (`U8`).
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub enum Rows<B: Backend> {
    /// Numbers.
    Floats(FloatTensor<B>),
    /// Codes.
    Codes(IntTensor<B>),
}

/// A residual stream that was added to, and its norms.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub struct NormedSum<B: Backend> {
    /// The norms.
    #[extension_type]
    pub normed: Rows<B>,
    /// The sums.
    pub sum: FloatTensor<B>,
}

/// Rows of fp8, each with a scale, or all with one.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub struct ScaledRows<B: Backend> {
    /// `[rows, width]` of `U8`.
    pub codes: IntTensor<B>,
    /// `[rows]` of f32, or `[1]`.
    pub scales: FloatTensor<B>,
}

/// The rounding of rows, if not to their own type: an fp8 format, and the scale `[1]` (f32) that they are
/// divided by.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub struct Rounding<B: Backend> {
    /// The scale, if there is one.
    #[extension_type]
    pub scale: MaybeFloats<B>,
    /// The format; there is one if there is a scale.
    pub format: Option<Fp8>,
}

impl<B: Backend> Rounding<B> {
    /// Rounding to the type of the rows.
    pub fn none() -> Self {
        Self { scale: MaybeFloats::None, format: None }
    }
}

/// Keys and values, or pages of them: floats, or fp8 (`U8`).
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub enum KvTensors<B: Backend> {
    /// Numbers.
    Floats(FloatTensor<B>, FloatTensor<B>),
    /// Codes.
    Codes(IntTensor<B>, IntTensor<B>),
    /// Codes, and the f32 scales of each token and head: as the codes, with one element in place of a head.
    Scaled(IntTensor<B>, IntTensor<B>, FloatTensor<B>, FloatTensor<B>),
}

/// Keys and values as attention reads them: floats, or fp8 (`U8`).
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub struct KeysValues<B: Backend> {
    /// The keys and values, in the layout of the batch.
    #[extension_type]
    pub tensors: KvTensors<B>,
    /// The scales of fp8 keys and values: f32, `[1]` or `[kv_heads]`; none if each token has its own.
    #[extension_type]
    pub scales: MaybeScales<B>,
    /// The format of codes.
    pub format: Option<Code8>,
}

impl<B: Backend> KeysValues<B> {
    /// Numbers.
    pub fn floats(k: FloatTensor<B>, v: FloatTensor<B>) -> Self {
        Self { tensors: KvTensors::Floats(k, v), scales: MaybeScales::None, format: None }
    }
}

/// The pages of a layer: `[pages, page_size, kv_heads, head_dim]`, or with heads before tokens.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub struct Pages<B: Backend> {
    /// The pages.
    #[extension_type]
    pub tensors: KvTensors<B>,
    /// The scales of fp8 keys and values: f32, `[1]` or `[kv_heads]`; none if each token has its own.
    #[extension_type]
    pub scales: MaybeScales<B>,
    /// The format of codes.
    pub format: Option<Code8>,
    /// Order of the axes of a page.
    pub layout: KvLayout,
    /// Pages are written in place even if they have other owners, on devices that capture graphs.
    pub pinned: bool,
}

/// Scales of keys and of values, or none.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub enum MaybeScales<B: Backend> {
    /// There are none.
    None,
    /// Those of keys, those of values.
    Some(FloatTensor<B>, FloatTensor<B>),
}

/// Root mean square norms of the heads of queries and of keys, or none.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub enum MaybeHeadNorm<B: Backend> {
    /// There is none.
    None,
    /// The weights `[head_dim]` of queries and of keys, and the epsilon of the mean of the squares.
    Some(FloatTensor<B>, FloatTensor<B>, f32),
}

/// The rotations of tokens.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub struct Rotations<B: Backend> {
    /// `[max_positions, rotary_dim]` (f32): the cosines of a position, then its sines.
    pub cos_sin: FloatTensor<B>,
    /// `[tokens]` (`i32`): rows of `cos_sin`.
    pub positions: IntTensor<B>,
    /// The norm of each head before it is rotated.
    #[extension_type]
    pub norm: MaybeHeadNorm<B>,
    /// The pairing.
    pub style: RopeStyle,
}

/// Rotated queries, and the pages that the rotated keys went to.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub struct RotatedAndAppended<B: Backend> {
    /// The queries.
    pub q: FloatTensor<B>,
    /// The pages.
    #[extension_type]
    pub pages: KvTensors<B>,
}

/// Segments of bits that each begin with a byte of their own.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub enum BitSegments<B: Backend> {
    /// All bits are one.
    One,
    /// `[segments + 1]` each (`i32`): the first bit of each, and the first byte.
    Many(IntTensor<B>, IntTensor<B>),
}

/// A float tensor, or none.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub enum MaybeFloats<B: Backend> {
    /// There is none.
    None,
    /// This one.
    Some(FloatTensor<B>),
}

impl<B: Backend> From<Option<FloatTensor<B>>> for MaybeFloats<B> {
    fn from(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::None, Self::Some)
    }
}

impl<B: Backend> MaybeFloats<B> {
    /// The tensor, if there is one.
    pub fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::None => None,
            Self::Some(tensor) => Some(tensor),
        }
    }
}

/// An integer tensor, or none.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub enum MaybeInts<B: Backend> {
    /// There is none.
    None,
    /// This one.
    Some(IntTensor<B>),
}

impl<B: Backend> From<Option<IntTensor<B>>> for MaybeInts<B> {
    fn from(tensor: Option<IntTensor<B>>) -> Self {
        tensor.map_or(Self::None, Self::Some)
    }
}

impl<B: Backend> MaybeInts<B> {
    /// The tensor, if there is one.
    pub fn into_option(self) -> Option<IntTensor<B>> {
        match self {
            Self::None => None,
            Self::Some(tensor) => Some(tensor),
        }
    }
}

/// A custom mask of a planned batch, or none.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub enum MaybeMask<B: Backend> {
    /// There is none.
    None,
    /// The bits and the tiles that `map_mask` returned, and `[2 * requests]` (`i32`): the first bit of each request, low and
    /// high half.
    Some(IntTensor<B>, IntTensor<B>, IntTensor<B>),
}

/// The filter of each row of probabilities.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub enum Limit<B: Backend> {
    /// `[rows]`: keeps a token if fewer than these are strictly more likely.
    TopK(IntTensor<B>),
    /// `[rows]` of f32: keeps a token if the strictly more likely ones have a total probability below this.
    TopP(FloatTensor<B>),
}
