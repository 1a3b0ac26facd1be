//! The operations on CubeCL devices: allocates the outputs and launches the portable kernels.
//!
//! Nothing is copied but a tensor whose last axis has gaps, or a page pool that has another owner.

mod attention;
mod merge;
mod norm;
mod sampling;

use std::fmt::Debug;

use burn::backend::{
    DType,
    cubecl::dtype_to_storage_type,
    ops::FloatTensorOps,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::Shape;
use burn_cubecl::{
    CubeBackend, CubeDevice,
    cubecl::{ir::features::TypeUsage, prelude::TensorBinding},
    kernel::{
        into_contiguous,
        matmul::{MatmulStrategy, matmul},
    },
    tensor::CubeTensor,
};
use burn_flashinfer_kernels::{
    self as kernels,
    activation::{self, ActAndMul},
    append::{self, Append},
    linear::{self, Linear},
    rope::{self, Rope},
};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::{launch::launch_ref, multi_level};
use cubek::std::InputBinding;

use crate::extension::{
    Activation, Attended, AttentionParams, Batch, FlashInferBackend, Limit, MaybeFloats, MaybeInts,
    RmsNormStyle, RopeStyle,
};
use crate::options::KvLayout;

/// The element types that `device` takes instead, if it cannot take `dtype`.
///
/// The kernels load and store elements and convert them to f32, no more: so a device may take bf16 here although it has
/// no bf16 arithmetic.
pub(crate) fn unsupported_dtype(device: &CubeDevice, dtype: DType) -> Option<String> {
    let client = device.client();
    let takes = |dtype| {
        let usage = client.properties().type_usage(dtype_to_storage_type(dtype));
        usage.is_superset(TypeUsage::Buffer | TypeUsage::Conversion)
    };
    if takes(dtype) {
        return None;
    }
    let others: Vec<_> = [DType::F32, DType::F16, DType::BF16]
        .into_iter()
        .filter(|&other| takes(other))
        .map(|dtype| format!("{dtype:?}"))
        .collect();
    Some(format!("{} on {device:?}", others.join(" or ")))
}

pub(crate) use attention::plan;
pub(crate) use kernels::sampling::MOST_TOP_K;

/// Whether `device` computes with integers of 64 bits.
pub(crate) fn has_wide_integers(device: &CubeDevice) -> bool {
    let client = device.client();
    client.properties().type_usage(dtype_to_storage_type(DType::U64)).contains(TypeUsage::Arithmetic)
}

impl FlashInferBackend for CubeBackend {
    fn batch_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        batch: Batch<Self>,
        params: AttentionParams,
    ) -> Attended<Self> {
        attention::batch_attention(q, k, v, batch, params)
    }

    fn write_ints(buffer: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self> {
        attention::write_ints(buffer, values)
    }

    fn append_paged_kv(
        k_pool: FloatTensor<Self>,
        v_pool: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        slots: IntTensor<Self>,
        layout: KvLayout,
        pinned: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if slots.meta.num_elements() == 0 {
            return (k_pool, v_pool);
        }
        let writable = |pool| if pinned { in_rows(pool) } else { owned(pool) };
        let (k_pool, v_pool) = (writable(k_pool), writable(v_pool));
        let (client, dtype) = (k_pool.client.clone(), dtype_to_storage_type(k_pool.dtype));
        let append = Append {
            k_pool: k_pool.clone().binding(),
            v_pool: v_pool.clone().binding(),
            k: in_rows(k).binding(),
            v: in_rows(v).binding(),
            slots: index(slots),
            layout: layout_of(layout),
        };
        launched(append::launch(&client, append, dtype));
        (k_pool, v_pool)
    }

    fn apply_rope(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        cos_sin: FloatTensor<Self>,
        positions: IntTensor<Self>,
        style: RopeStyle,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k) = (in_rows(q), in_rows(k));
        let q_out = empty_like(&q, q.meta.shape().clone(), q.dtype);
        let k_out = empty_like(&k, k.meta.shape().clone(), k.dtype);
        if q.meta.shape()[0] > 0 {
            let (client, dtype) = (q.client.clone(), dtype_to_storage_type(q.dtype));
            let rope = Rope {
                q: q.binding(),
                k: k.binding(),
                cos_sin: in_rows(cos_sin).binding(),
                positions: index(positions),
                q_out: q_out.clone().binding(),
                k_out: k_out.clone().binding(),
                style: match style {
                    RopeStyle::Halves => rope::Style::Halves,
                    RopeStyle::Interleaved => rope::Style::Interleaved,
                },
            };
            launched(rope::launch(&client, rope, dtype));
        }
        (q_out, k_out)
    }

    fn merge_state(
        v_a: FloatTensor<Self>,
        s_a: FloatTensor<Self>,
        v_b: FloatTensor<Self>,
        s_b: FloatTensor<Self>,
        mask: MaybeInts<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        merge::merge_state(v_a, s_a, v_b, s_b, mask)
    }

    fn merge_states(
        v: FloatTensor<Self>,
        s: FloatTensor<Self>,
        indptr: MaybeInts<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        merge::merge_states(v, s, indptr)
    }

    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> FloatTensor<Self> {
        norm::rms_norm(x, weight, epsilon, style)
    }

    fn fused_add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        norm::fused_add_rms_norm(x, residual, weight, epsilon, style)
    }

    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        norm::layer_norm_rows(x, gamma, beta, epsilon)
    }

    fn act_and_mul(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let [rows, width] = [x.meta.shape()[0], x.meta.shape()[1] / 2];
        let y = empty_like(&x, [rows, width].into(), x.dtype);
        if y.meta.num_elements() > 0 {
            let (client, dtype) = (x.client.clone(), dtype_to_storage_type(x.dtype));
            let act = ActAndMul {
                x: in_rows(x).binding(),
                y: y.clone().binding(),
                activation: match activation {
                    Activation::Silu => activation::Activation::Silu,
                    Activation::Gelu => activation::Activation::Gelu,
                    Activation::GeluTanh => activation::Activation::GeluTanh,
                },
            };
            launched(activation::launch(&client, act, dtype));
        }
        y
    }

    fn softmax_with_temperature(
        logits: FloatTensor<Self>,
        temperature: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        sampling::softmax_with_temperature(logits, temperature)
    }

    fn apply_penalties(
        logits: FloatTensor<Self>,
        prompt: IntTensor<Self>,
        output: IntTensor<Self>,
        repetition: FloatTensor<Self>,
        frequency: FloatTensor<Self>,
        presence: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        sampling::apply_penalties(logits, prompt, output, repetition, frequency, presence)
    }

    fn renorm_probs(probs: FloatTensor<Self>, by: Limit<Self>) -> FloatTensor<Self> {
        sampling::renorm_probs(probs, by)
    }

    fn top_k_mask_logits(logits: FloatTensor<Self>, top_k: IntTensor<Self>) -> FloatTensor<Self> {
        sampling::top_k_mask_logits(logits, top_k)
    }

    fn top_k(x: FloatTensor<Self>, k: usize) -> (FloatTensor<Self>, IntTensor<Self>) {
        sampling::top_k(x, k)
    }

    fn sample_logits(
        logits: FloatTensor<Self>,
        temperature: FloatTensor<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        sampling::sample_logits(logits, temperature, draws)
    }

    fn chain_speculative_sampling(
        draft_probs: FloatTensor<Self>,
        draft_ids: IntTensor<Self>,
        target_probs: FloatTensor<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        sampling::chain_speculative_sampling(draft_probs, draft_ids, target_probs, draws)
    }

    fn sample_probs(
        probs: FloatTensor<Self>,
        top_k: MaybeInts<Self>,
        top_p: MaybeFloats<Self>,
        min_p: MaybeFloats<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        sampling::sample_probs(probs, top_k, top_p, min_p, draws)
    }

    fn matmul_nt(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let [rows, columns] = [x.meta.shape()[0], weight.meta.shape()[0]];
        if rows == 0 {
            return empty_like(&x, [rows, columns].into(), x.dtype);
        }
        if linear::is_for(&x.client, rows) && weight.meta.strides()[1] == 1 {
            let y = empty_like(&x, [rows, columns].into(), x.dtype);
            let (client, dtype) = (x.client.clone(), dtype_to_storage_type(x.dtype));
            let (x, weight) = (in_rows(x).binding(), in_rows(weight).binding());
            launched(linear::launch(&client, Linear { x, weight, y: y.clone().binding() }, dtype));
            return y;
        }
        // A view: Burn's product reads the weight column by column and accumulates f16 and bf16 in f32.
        let weight = Self::float_swap_dims(weight, 0, 1);
        matmul(x.clone(), weight.clone(), None, MatmulStrategy::default(), x.dtype)
            .unwrap_or_else(|_| naive_matmul(x, weight, [rows, columns]))
    }
}

/// Where to write what is made of `input`, unless that may be `input` itself.
fn fresh(input: &CubeTensor) -> Option<CubeTensor> {
    // CubeCL's CPU runtime fails to read an empty tensor that was uploaded.
    let in_place = input.meta.num_elements() > 0
        && input.is_contiguous()
        && input.can_mut()
        && input.is_nonoverlapping();
    (!in_place).then(|| empty_like(input, input.meta.shape().clone(), input.dtype))
}

/// `x · weight`, slowly, for what Burn refuses: without autotuning it has one kernel, which for most shapes wants more
/// shared memory than a cube has on AMD's devices (137 KB where there are 64 KiB) and on the CPU (45 KB of 32 KiB).
fn naive_matmul(x: CubeTensor, weight: CubeTensor, shape: [usize; 2]) -> CubeTensor {
    let product = empty_like(&x, shape.into(), x.dtype);
    let element = dtype_to_storage_type(x.dtype);
    let [lhs, rhs, out] = [element; 3];
    let launched = launch_ref(
        &multi_level::Strategy::Naive.into(),
        &product.client,
        InputBinding::new(x.binding(), lhs),
        InputBinding::new(weight.binding(), rhs),
        product.clone().binding(),
        &mut MatmulElems::from_globals(&MatmulGlobalElems { lhs, rhs, out }),
    );
    if let Err(refusal) = launched {
        refused(&refusal)
    }
    product
}

/// Ends a launch that the caller has checked already.
///
/// A refusal here is a bug of this crate, not bad input: `ops` checks shapes, and blueprints are chosen to fit.
fn launched(result: kernels::Result<()>) {
    if let Err(refusal) = result {
        refused(&refusal)
    }
}

#[cold]
#[allow(clippy::panic, reason = "see `launched`")]
fn refused(refusal: &impl Debug) -> ! {
    panic!("a checked problem was refused: {refusal:?}")
}

/// The tensor with the elements of its last axis side by side.
fn in_rows(tensor: CubeTensor) -> CubeTensor {
    let last = tensor.meta.num_dims() - 1;
    let dense = tensor.meta.shape()[last] <= 1 || tensor.meta.strides()[last] == 1;
    if dense && !tensor.meta.is_tiled() { tensor } else { into_contiguous(tensor) }
}

/// The tensor to write in place: itself if it has no other owner, a copy if it has.
fn owned(pool: CubeTensor) -> CubeTensor {
    let pool = in_rows(pool);
    if pool.can_mut() && pool.is_nonoverlapping() { pool } else { into_contiguous(pool).copy() }
}

/// An index tensor as the kernels read it: `i32`, contiguous.
fn index(tensor: CubeTensor) -> TensorBinding {
    let tensor =
        if tensor.dtype == DType::I32 { tensor } else { burn_cubecl::kernel::cast(tensor, DType::I32) };
    into_contiguous(tensor).binding()
}

fn empty_like(tensor: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    let bytes = shape.num_elements() * dtype.size();
    let handle = tensor.client.empty(bytes);
    CubeTensor::new_contiguous(tensor.client.clone(), tensor.device.clone(), shape, handle, dtype)
}

fn layout_of(layout: KvLayout) -> kernels::KvLayout {
    match layout {
        KvLayout::Nhd => kernels::KvLayout::Nhd,
        KvLayout::Hnd => kernels::KvLayout::Hnd,
    }
}
