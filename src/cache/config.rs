//! The extents of a cache.

use burn::tensor::{DType, Device, Int, Tensor};

use super::kv_pages::KvPages;
use crate::check;
use crate::error::{Error, Result};
use crate::memory;
use crate::types::{Code8, Fp8, KvLayout};

/// The extents of a [`PagedKvCache`](crate::PagedKvCache).
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct CacheConfig {
    pub(super) layers: usize,
    pub(super) pages: usize,
    pub(super) page_size: usize,
    kv_heads: usize,
    head_dim: usize,
    layout: KvLayout,
    dtype: DType,
    /// The format, if `dtype` is `U8`.
    code: Option<Code8>,
    /// Each token and head has a scale of its own.
    per_token: bool,
}

impl CacheConfig {
    /// `layers` layers, each with `pages` pages of `page_size` tokens of `kv_heads` heads of `head_dim` elements; in
    /// [`KvLayout::Nhd`] and f32 unless set otherwise.
    pub fn new(layers: usize, pages: usize, page_size: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            layers,
            pages,
            page_size,
            kv_heads,
            head_dim,
            layout: KvLayout::Nhd,
            dtype: DType::F32,
            code: None,
            per_token: false,
        }
    }

    /// The order of the axes of a page.
    pub fn layout(mut self, layout: KvLayout) -> Self {
        self.layout = layout;
        self
    }

    /// The type of an element: f32, f16 or bf16.
    pub fn dtype(mut self, dtype: DType) -> Self {
        (self.dtype, self.code, self.per_token) = (dtype, None, false);
        self
    }

    /// Codes of 8 bits instead of numbers, as [`KvPages::new_fp8`] has them. Their scales are 1 until each
    /// layer is given [others](KvPages::set_scales).
    pub fn fp8(mut self, format: Fp8) -> Self {
        (self.dtype, self.code, self.per_token) = (DType::U8, Some(format.into()), false);
        self
    }

    /// Codes of 8 bits with a scale for each token and head, as [`KvPages::new_fp8_per_token`] has them: nothing has to be set.
    pub fn fp8_per_token(self, format: Fp8) -> Self {
        Self { per_token: true, ..self.fp8(format) }
    }

    /// Integers of 8 bits with a scale for each token and head, as [`KvPages::new_int8`] has them: nothing has to be set.
    pub fn int8(mut self) -> Self {
        (self.dtype, self.code, self.per_token) = (DType::U8, Some(Code8::Int8), true);
        self
    }

    /// Bytes of a head of a token: of its elements, and of their scale if it has one.
    fn head_bytes(&self) -> usize {
        let scale = if self.per_token { size_of::<f32>() } else { 0 };
        memory::bytes([self.head_dim, self.dtype.size()]).saturating_add(scale)
    }

    /// Bytes that the keys and values of all layers take, or `usize::MAX` if that is more.
    pub fn bytes(&self) -> usize {
        let Self { layers, pages, page_size, kv_heads, .. } = *self;
        memory::bytes([2, layers, pages, page_size, kv_heads, self.head_bytes()])
    }

    /// Refuses extents that no pool on `device` can have.
    pub(super) fn check(&self, op: &'static str, device: &Device) -> Result<()> {
        let CacheConfig { layers, pages, page_size, kv_heads, head_dim, dtype, code, .. } = *self;
        let extents = [
            ("layers", layers),
            ("pages", pages),
            ("page_size", page_size),
            ("kv_heads", kv_heads),
            ("head_dim", head_dim),
        ];
        if let Some((argument, _)) = extents.into_iter().find(|&(_, extent)| extent == 0) {
            return Err(Error::Value { op, argument, got: "0".into(), expected: "at least 1".into() });
        }
        // A slot, `page * page_size + offset`, is an i32 on the device.
        if pages.saturating_mul(page_size) > i32::MAX as usize {
            return Err(Error::Value {
                op,
                argument: "pages",
                got: pages.to_string(),
                expected: format!("at most {} pages of {page_size} tokens", i32::MAX as usize / page_size),
            });
        }
        check::device(op, "device", device)?;
        match code {
            None => check::float(op, "dtype", dtype, device)?,
            Some(_) => check::bytes(op, "fp8", device)?,
        }
        let keys = memory::bytes([pages, page_size, kv_heads, self.head_bytes()]);
        memory::on_device(op, "config", [layers.saturating_mul(2), keys], device)
    }

    /// The pages of a layer, all 0. Not by `zeros`: on Flex that takes the memory twice, and copies.
    pub(super) fn new_layer(&self, device: &Device) -> Result<KvPages> {
        const OP: &str = "PagedKvCache::new";
        let CacheConfig { pages, page_size, kv_heads, head_dim, layout, dtype, code, .. } = *self;
        let shape = match layout {
            KvLayout::Nhd => [pages, page_size, kv_heads, head_dim],
            KvLayout::Hnd => [pages, kv_heads, page_size, head_dim],
        };
        if let Some(format) = code {
            let zeros = || Tensor::<4, Int>::full(shape, 0, (device, dtype));
            if self.per_token {
                let [pages, a, b, _] = shape;
                let ones = || Tensor::<3>::full([pages, a, b], 1.0, (device, DType::F32));
                return KvPages::per_token(OP, [zeros(), zeros()], [ones(), ones()], layout, format);
            }
            return KvPages::of_codes(OP, zeros(), zeros(), layout, format);
        }
        let zeros = || Tensor::<4>::full(shape, 0.0, (device, dtype));
        KvPages::new(zeros(), zeros(), layout)
    }
}
