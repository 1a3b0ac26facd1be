//! Settings of a plan.

use std::fmt;

use burn::tensor::{DType, Device};

use crate::cache::{KvPages, PageShape};
use crate::check;
use crate::error::{Error, Result};
use crate::types::{AttentionOptions, AttentionParams, Code8, Fp8, Request, visible};

/// The largest head dimension of queries, keys and values that every kernel can hold in registers and shared
/// memory.
pub(crate) const MAX_HEAD_DIM: usize = 1024;

/// The split of a request's keys among the cores of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum KvSplit {
    /// Ends the batch soonest: the split depends on all requests.
    #[default]
    Auto,
    /// Chunks of so many keys, rounded up to the keys of a cube at a time (at most 128), whatever else is in
    /// the batch. So a request gets the same bits in every batch, alone or with others, with less balance.
    /// (FlashInfer's `fixed_split_size`, with tiles of queries that do not depend on the batch either.)
    Fixed(usize),
    /// No split.
    Never,
}

/// The moment when cached codes become numbers of the queries' type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Dequantize {
    /// First, where many queries see each key, and the kernels over numbers are faster by more than a conversion takes: on
    /// Hopper and CDNA, from some 64 queries of a request on with four query heads to a key head. Else in the kernel.
    #[default]
    Auto,
    /// In the kernel: each time that a tile of queries reads a key. Nothing but codes is in memory.
    InKernel,
    /// First, by [`gather_paged_kv`](crate::gather_paged_kv) in each run: each key once. The numbers of a layer take `tokens ·
    /// kv_heads · (head_dim + head_dim_v)` elements for as long as it runs.
    First,
}

/// `auto`, `fixed` with its keys, or `never`.
impl fmt::Display for KvSplit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Fixed(keys) => write!(f, "fixed ({keys} keys)"),
            Self::Never => f.pad("never"),
        }
    }
}

/// Settings of a plan besides the batch: heads, element type, options.
///
/// ```
/// use burn::tensor::DType;
/// use burn_flashinfer::{AttentionOptions, KvSplit, PlanConfig};
///
/// // Llama 3 8B.
/// let config = PlanConfig::new(32, 8, 128, DType::BF16).options(AttentionOptions::new().causal(true));
/// let reproducible = config.split(KvSplit::Fixed(512));
/// # let _ = reproducible;
/// ```
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct PlanConfig {
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) head_dim_v: usize,
    pub(crate) dtype: DType,
    pub(crate) code: Option<Code8>,
    pub(crate) options: AttentionOptions,
    pub(crate) split: KvSplit,
    pub(crate) dequantize: Dequantize,
}

impl PlanConfig {
    /// Attention of `q_heads` heads of `head_dim` elements of type `dtype` over `kv_heads` heads of keys and values.
    pub const fn new(q_heads: usize, kv_heads: usize, head_dim: usize, dtype: DType) -> Self {
        Self {
            q_heads,
            kv_heads,
            head_dim,
            head_dim_v: head_dim,
            dtype,
            code: None,
            options: AttentionOptions::new(),
            split: KvSplit::Auto,
            dequantize: Dequantize::Auto,
        }
    }

    /// Attention of `q_heads` heads over pages such as these: key heads, head dimensions and element type are theirs.
    ///
    /// Queries over pages of codes are bf16 unless [another type](Self::dtype) is set.
    pub fn for_pages(q_heads: usize, pages: &KvPages) -> Self {
        let PageShape { kv_heads, k_dim, v_dim, .. } = pages.shape();
        let dtype = if pages.code().is_some() { DType::BF16 } else { pages.dtype() };
        Self { code: pages.code(), ..Self::new(q_heads, kv_heads, k_dim, dtype).head_dim_v(v_dim) }
    }

    /// The type of queries and outputs.
    pub const fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Plans for [fp8 pages](crate::KvPages::new_fp8) of this format, or [such tensors](crate::KvTensor::fp8), whatever the type
    /// of the queries.
    pub const fn fp8(mut self, format: Fp8) -> Self {
        self.code = Some(Code8::Fp8(format));
        self
    }

    /// Plans for [int8 pages](crate::KvPages::new_int8), whatever the type of the queries.
    pub const fn int8(mut self) -> Self {
        self.code = Some(Code8::Int8);
        self
    }

    /// The head dimension of values and outputs, if it is not that of queries and keys.
    pub const fn head_dim_v(mut self, head_dim_v: usize) -> Self {
        self.head_dim_v = head_dim_v;
        self
    }

    /// Mask, scale, soft cap, and whether to return the LSE.
    pub fn options(mut self, options: AttentionOptions) -> Self {
        self.options = options;
        self
    }

    /// Sets when cached codes become numbers, for plans over pages of codes. A step always has its kernels do it, since its
    /// launches are fixed.
    pub const fn dequantize(mut self, dequantize: Dequantize) -> Self {
        self.dequantize = dequantize;
        self
    }

    /// Sets the split of keys among cores.
    pub const fn split(mut self, split: KvSplit) -> Self {
        self.split = split;
        self
    }

    pub(crate) fn check(&self, op: &'static str, device: &Device) -> Result<()> {
        let refuse = |argument, got: usize, expected: String| {
            Err(Error::Value { op, argument, got: got.to_string(), expected })
        };
        self.options.check(op)?;
        check::device(op, "device", device)?;
        self.check_variant(op, device)?;
        check::float(op, "dtype", self.dtype, device)?;
        if self.code.is_some() {
            check::bytes(op, "fp8", device)?;
        }
        for (argument, dim) in [("head_dim", self.head_dim), ("head_dim_v", self.head_dim_v)] {
            if !(1..=MAX_HEAD_DIM).contains(&dim) {
                return refuse(argument, dim, format!("1 to {MAX_HEAD_DIM}"));
            }
        }
        if self.q_heads == 0 || self.q_heads > i32::MAX as usize {
            return refuse("q_heads", self.q_heads, format!("1 to {}", i32::MAX));
        }
        if self.kv_heads == 0 || !self.q_heads.is_multiple_of(self.kv_heads) {
            return refuse(
                "kv_heads",
                self.kv_heads,
                format!("a divisor of the {} query heads", self.q_heads),
            );
        }
        if self.split == KvSplit::Fixed(0) {
            return refuse("split", 0, "at least 1 key".into());
        }
        Ok(())
    }

    /// [`check`](Self::check) of a plan that does not read codes.
    pub(crate) fn check_numbers(&self, op: &'static str, device: &Device) -> Result<()> {
        if let Some(format) = self.code {
            let expected = "not to be set, as this plan is of numbers".into();
            return Err(Error::Value { op, argument: "fp8", got: format!("{format:?}"), expected });
        }
        self.check(op, device)
    }

    /// Refuses a variant without kernels, unless the device is Flex.
    pub(crate) fn check_variant(&self, op: &'static str, device: &Device) -> Result<()> {
        #[cfg(feature = "cube")]
        if let Some(variant) = &self.options.variant
            && variant.kernels().is_none()
            && check::is_cube(device)
        {
            let got = format!("{variant:?} without kernels on {device:?}");
            let expected = "a variant with kernels, or the device of Flex".into();
            return Err(Error::Value { op, argument: "variant", got, expected });
        }
        let _ = (op, device);
        Ok(())
    }

    /// A right-aligned causal mask would leave the first queries without any key.
    pub(crate) fn check_causal(
        &self,
        op: &'static str,
        request: usize,
        queries: usize,
        keys: usize,
    ) -> Result<()> {
        if self.options.causal && queries > keys {
            return Err(Error::Value {
                op,
                argument: "causal",
                got: format!("true with {queries} queries and {keys} keys in request {request}"),
                expected: "at least as many keys as queries".into(),
            });
        }
        Ok(())
    }

    /// Refuses a request that sees keys before `first`, which it gave back.
    pub(crate) fn check_kept(
        &self,
        op: &'static str,
        argument: &'static str,
        request: &Request,
        first: usize,
    ) -> Result<()> {
        if first == 0 || request.qo_len == 0 {
            return Ok(());
        }
        // Neither end of what queries see decreases from one to the next.
        let seen = visible(&*self.params().variant, request, 0);
        if seen.start >= first {
            return Ok(());
        }
        let got = format!("of a request of {} keys that gave back those before {first}", request.kv_len);
        let expected = format!("one that has all from {} on, which it sees", seen.start);
        Err(Error::Value { op, argument, got, expected })
    }

    /// Spans, items and trees are those of the requests of the batch, which have so many `queries` each.
    pub(crate) fn check_ranges(
        &self,
        op: &'static str,
        queries: impl ExactSizeIterator<Item = usize>,
    ) -> Result<()> {
        let Some(ranges) = &self.options.ranges else { return Ok(()) };
        let (argument, requests) = (ranges.name(), queries.len());
        if ranges.requests() != requests {
            let got = format!("of {} requests", ranges.requests());
            let expected = format!("of {requests} requests, as the batch");
            return Err(Error::Value { op, argument, got, expected });
        }
        for (request, queries) in queries.enumerate() {
            if let Some(tokens) = ranges.tokens(request).filter(|&tokens| tokens != queries) {
                let got = format!("of {tokens} tokens in request {request}");
                let expected = format!("{queries} tokens, as many as queries");
                return Err(Error::Value { op, argument, got, expected });
            }
        }
        Ok(())
    }

    pub(crate) fn params(&self) -> AttentionParams {
        self.options.params(self.head_dim)
    }
}
