//! Keys and values in pages, as floats or as fp8.

use cubecl::{client::Client, prelude::*, std::FastDivmod};

use crate::code8::{Code, Code8};
use crate::device::tensor::{KvLayout, Result, by_slot, contiguous, rows, shape};

/// The pages of a layer, and their type.
pub struct Pools {
    /// Pages of keys.
    pub k: TensorBinding,
    /// Pages of values.
    pub v: TensorBinding,
    /// The order of the axes of a page.
    pub layout: KvLayout,
    /// The format of the pages if they are fp8; else they have the type of the other tensors.
    pub quantized: Option<KvQuantized>,
}

/// The format of pages, one byte an element, and their scales: a float is `code · scale`.
pub struct KvQuantized {
    /// The format.
    pub format: Code8,
    /// `[1]` or `[kv_heads]` of f32, contiguous.
    pub k_scale: TensorBinding,
    /// As `k_scale`.
    pub v_scale: TensorBinding,
}

impl Pools {
    /// These pages as `[pages, slots, kv_heads, head_dim]`, if they hold so many heads of so many elements.
    pub(crate) fn by_slot(
        self,
        kernel: &'static str,
        heads: usize,
        [k_dim, v_dim]: [usize; 2],
    ) -> Result<Self> {
        rows(kernel, "k_pool", &self.k, 4)?;
        rows(kernel, "v_pool", &self.v, 4)?;
        let (k, v) = (by_slot(self.k, self.layout), by_slot(self.v, self.layout));
        let [pages, page_size] = [k.shape[0], k.shape[1]];
        for (argument, pool, dim) in [("k_pool", &k, k_dim), ("v_pool", &v, v_dim)] {
            if pool.shape.to_vec() != [pages, page_size, heads, dim] {
                let expected = format!("{pages} pages of {page_size} slots of {heads} x {dim}");
                return Err(shape(kernel, argument, pool, expected));
            }
        }
        if let Some(KvQuantized { k_scale, v_scale, .. }) = &self.quantized {
            for (argument, scale) in [("k_scale", k_scale), ("v_scale", v_scale)] {
                let scales = if scale.size() == 1 { 1 } else { heads };
                contiguous(kernel, argument, scale, &[scales])?;
            }
        }
        Ok(Self { k, v, layout: KvLayout::Nhd, quantized: self.quantized })
    }
}

/// The fp8 formats of keys and of values, and their scales as arguments of a kernel.
pub(crate) fn unzip(
    quantized: Option<KvQuantized>,
    client: &Client,
) -> [(Option<Code>, Option<BufferArg>); 2] {
    match quantized {
        None => [(None, None), (None, None)],
        Some(KvQuantized { format, k_scale, v_scale }) => [k_scale, v_scale]
            .map(|scale| (Some(Code::of(format, &scale, client)), Some(scale.into_buffer_arg()))),
    }
}

/// Offset of a head's row in a slot, in elements of pages with these strides.
#[cube]
pub(crate) fn row_of(
    slot: usize,
    head: usize,
    page_size: FastDivmod<usize>,
    page_stride: usize,
    slot_stride: usize,
    head_stride: usize,
) -> usize {
    let (page, offset) = page_size.div_mod(slot);
    page * page_stride + offset * slot_stride + head * head_stride
}
