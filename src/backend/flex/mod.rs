//! Flex, Burn's CPU backend: native code over slices, with rayon and the vector units of the processor at hand.

mod attention;
mod float;
mod matmul;
mod rows;
mod scratch;
mod simd;
mod view;

use burn::backend::{
    Flex,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, bf16, f16};
use burn_flex::FlexTensor;

use crate::extension::{Attended, AttentionParams, Batch, FlashInferBackend, RopeStyle};
use crate::options::KvLayout;

/// Calls a function for the element type of a tensor. `check::float` lets no other type through.
macro_rules! by_dtype {
    ($dtype:expr, $module:ident::$function:ident($($argument:expr),*)) => {
        match $dtype {
            DType::F16 => $module::$function::<f16>($($argument),*),
            DType::BF16 => $module::$function::<bf16>($($argument),*),
            _ => $module::$function::<f32>($($argument),*),
        }
    };
}

impl FlashInferBackend for Flex {
    fn batch_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        batch: Batch<Self>,
        params: AttentionParams,
    ) -> Attended<Self> {
        by_dtype!(q.dtype(), attention::attention(q, k, v, batch, params))
    }

    fn append_paged_kv(
        k_pool: FloatTensor<Self>,
        v_pool: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        slots: IntTensor<Self>,
        layout: KvLayout,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let slots = view::indices(slots);
        // Of the index tensor only one entry for each token counts: an empty one is padded.
        let slots: &[i32] = &slots.storage()[..view::dims::<3>(&k)[0]];
        let write = |pool: FlexTensor, new: FlexTensor| {
            by_dtype!(new.dtype(), rows::append(pool, new, slots, layout))
        };
        (write(k_pool, k), write(v_pool, v))
    }

    fn apply_rope(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        cos_sin: FloatTensor<Self>,
        positions: IntTensor<Self>,
        style: RopeStyle,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let positions = view::indices(positions);
        let rotate =
            |x: FlexTensor| by_dtype!(x.dtype(), rows::rope(x, &cos_sin, positions.storage(), style));
        (rotate(q), rotate(k))
    }

    fn merge_state(
        v_a: FloatTensor<Self>,
        s_a: FloatTensor<Self>,
        v_b: FloatTensor<Self>,
        s_b: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        by_dtype!(v_a.dtype(), rows::merge(v_a, s_a, v_b, s_b))
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), rows::rms_norm(x, weight, epsilon))
    }

    fn matmul_nt(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), matmul::matmul_nt(x, weight))
    }
}
