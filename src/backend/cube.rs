//! Cube

use crate::extension::{Attended, AttentionParams, Batch, FlashInferBackend, RopeStyle};
use crate::options::KvLayout;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn_cubecl::CubeBackend;

impl FlashInferBackend for CubeBackend {
    fn batch_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        batch: Batch<Self>,
        params: AttentionParams,
    ) -> Attended<Self> {
        todo!()
    }
    fn append_paged_kv(
        k_pool: FloatTensor<Self>,
        v_pool: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        slots: IntTensor<Self>,
        layout: KvLayout,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        todo!()
    }
    fn apply_rope(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        cos_sin: FloatTensor<Self>,
        positions: IntTensor<Self>,
        style: RopeStyle,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        todo!()
    }
    fn merge_state(
        v_a: FloatTensor<Self>,
        s_a: FloatTensor<Self>,
        v_b: FloatTensor<Self>,
        s_b: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        todo!()
    }
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        todo!()
    }
    fn matmul_nt(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        todo!()
    }
}
