//! The operations on CubeCL devices: allocates the outputs and launches the portable kernels.
//!
//! Nothing is copied but a tensor whose last axis has gaps, or a page pool that has another owner.

mod attention;
mod bits;
mod merge;
mod norm;
mod pages;
mod sampling;
mod segment_gemm;

use std::fmt::Debug;

use burn::backend::{
    DType,
    cubecl::dtype_to_storage_type,
    ops::FloatTensorOps,
    tensor::{BoolTensor, FloatTensor, IntTensor},
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
    self as kernels, Arch, Instruction, Quantized,
    activation::{self, ActAndMul},
    linear::{self, Linear},
};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::{launch::launch_ref, multi_level};
use cubek::std::InputBinding;

use crate::extension::{
    Activation, Attended, AttentionParams, Batch, BitOrder, BitSegments, FlashInferBackend, KvTensors, Limit,
    MaybeFloats, MaybeInts, NormedSum, Pages, RmsNormStyle, RotatedAndAppended, Rotations, Rounding, Rows,
    WeightLayout,
};
use crate::fp8::Fp8;
use crate::memory::DeviceMemory;
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
pub(crate) use kernels::sampling::MAX_TOP_K;

/// True if the fp8 formats of `device` are those without a negative zero.
pub(crate) fn has_fnuz(device: &CubeDevice) -> bool {
    Instruction::CvtFp8Fnuz.exists_on(Arch::of(&device.client()))
}

/// True if `device` has integers of 64 bits.
pub(crate) fn has_wide_integers(device: &CubeDevice) -> bool {
    let client = device.client();
    client.properties().type_usage(dtype_to_storage_type(DType::U64)).contains(TypeUsage::Arithmetic)
}

/// The memory of `device`.
pub(crate) fn memory(device: &CubeDevice) -> DeviceMemory {
    let client = device.client();
    let memory = &client.properties().memory;
    DeviceMemory { largest: memory.max_page_size, all: memory.max_memory() }
}

/// True if `device` has tensors of bytes.
pub(crate) fn has_bytes(device: &CubeDevice) -> bool {
    kernels::bits::has_bytes(&device.client())
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
        pages: Pages<Self>,
        tokens: KvTensors<Self>,
        slots: IntTensor<Self>,
    ) -> KvTensors<Self> {
        pages::append_paged_kv(pages, tokens, slots)
    }

    fn gather_paged_kv(pages: Pages<Self>, slots: IntTensor<Self>, dtype: DType) -> KvTensors<Self> {
        pages::gather_paged_kv(pages, slots, dtype)
    }

    fn apply_rope(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        rotations: Rotations<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        pages::apply_rope(q, k, rotations)
    }

    fn rope_quantize_fp8(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        rotations: Rotations<Self>,
        q_scale: FloatTensor<Self>,
        k_scale: FloatTensor<Self>,
        format: Fp8,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        pages::rope_quantize_fp8(q, k, rotations, [q_scale, k_scale], format)
    }

    fn rope_append_paged_kv(
        pages: Pages<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rotations: Rotations<Self>,
        slots: IntTensor<Self>,
    ) -> RotatedAndAppended<Self> {
        let (q, pages) = pages::rope_append_paged_kv(pages, [q, k, v], rotations, slots);
        RotatedAndAppended { q, pages }
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
        rounding: Rounding<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> Rows<Self> {
        norm::rms_norm(x, weight, rounding, epsilon, style)
    }

    fn fused_add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rounding: Rounding<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> NormedSum<Self> {
        norm::fused_add_rms_norm(x, residual, weight, rounding, epsilon, style)
    }

    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        rounding: Rounding<Self>,
        epsilon: f32,
    ) -> Rows<Self> {
        norm::layer_norm_rows(x, gamma, beta, rounding, epsilon)
    }

    fn act_and_mul(x: FloatTensor<Self>, rounding: Rounding<Self>, activation: Activation) -> Rows<Self> {
        let [rows, width] = [x.meta.shape()[0], x.meta.shape()[1] / 2];
        let y = rounded_like(&x, [rows, width].into(), &rounding);
        if y.meta.num_elements() > 0 {
            let (client, dtype) = (x.client.clone(), dtype_to_storage_type(x.dtype));
            let act = ActAndMul {
                x: in_rows(x).binding(),
                y: y.clone().binding(),
                quantized: quantized(rounding),
                activation: match activation {
                    Activation::Silu => activation::Activation::Silu,
                    Activation::Gelu => activation::Activation::Gelu,
                    Activation::GeluTanh => activation::Activation::GeluTanh,
                },
            };
            launched(activation::launch(&client, act, dtype));
        }
        rows_of(y)
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

    fn pack_bits(
        bits: BoolTensor<Self>,
        segments: BitSegments<Self>,
        bytes: usize,
        order: BitOrder,
    ) -> IntTensor<Self> {
        bits::pack(bits, segments, bytes, order)
    }

    fn unpack_bits(
        bytes: IntTensor<Self>,
        segments: BitSegments<Self>,
        bits: usize,
        order: BitOrder,
    ) -> IntTensor<Self> {
        bits::unpack(bytes, segments, bits, order)
    }

    fn segment_gemm(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        work_items: IntTensor<Self>,
        tile_rows: usize,
        layout: WeightLayout,
    ) -> FloatTensor<Self> {
        segment_gemm::segment_gemm(x, weights, work_items, tile_rows, layout)
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
        // On a CPU each unit of Burn's kernel is a thread that spins until the others have come: where these were 8 on 2 busy
        // cores, one product took 53 s.
        if !cfg!(feature = "autotune") && x.client.properties().hardware.num_cpu_cores.is_some() {
            return naive_matmul(x, weight, [rows, columns]);
        }
        matmul(x.clone(), weight.clone(), None, MatmulStrategy::default(), x.dtype)
            .unwrap_or_else(|_| naive_matmul(x, weight, [rows, columns]))
    }
}

/// A tensor for the result of an operation on `input`, unless it may be written to `input` itself.
fn fresh(input: &CubeTensor) -> Option<CubeTensor> {
    // CubeCL's CPU runtime fails to read an empty tensor that was uploaded.
    let in_place = input.meta.num_elements() > 0
        && input.is_contiguous()
        && input.can_mut()
        && input.is_nonoverlapping();
    (!in_place).then(|| empty_like(input, input.meta.shape().clone(), input.dtype))
}

/// `x · weight`, slowly, for shapes that Burn refuses. Without autotuning it has one kernel, which for most
/// shapes needs more shared memory than a cube has on AMD's devices (137 KB where there are 64 KiB) and on
/// the CPU (45 KB of 32 KiB).
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

/// A tensor for rows of floats like those of `tensor`, or of fp8.
fn rounded_like(tensor: &CubeTensor, shape: Shape, rounding: &Rounding<CubeBackend>) -> CubeTensor {
    empty_like(tensor, shape, rounding.format.map_or(tensor.dtype, |_| DType::U8))
}

/// Floats or fp8 rows, by the type of the tensor.
fn rows_of(tensor: CubeTensor) -> Rows<CubeBackend> {
    if tensor.dtype == DType::U8 { Rows::Codes(tensor) } else { Rows::Floats(tensor) }
}

/// Rounding as the kernels take it.
fn quantized(rounding: Rounding<CubeBackend>) -> Option<Quantized> {
    match (rounding.scale, rounding.format) {
        (MaybeFloats::Some(scale), Some(format)) => {
            Some(Quantized { format: fp8(format), scale: into_contiguous(scale).binding() })
        }
        _ => None,
    }
}

fn fp8(format: Fp8) -> kernels::Fp8 {
    match format {
        Fp8::E4m3 => kernels::Fp8::E4m3,
        Fp8::E4m3Fnuz => kernels::Fp8::E4m3Fnuz,
        Fp8::E5m2 => kernels::Fp8::E5m2,
    }
}

fn layout_of(layout: KvLayout) -> kernels::KvLayout {
    match layout {
        KvLayout::Nhd => kernels::KvLayout::Nhd,
        KvLayout::Hnd => kernels::KvLayout::Hnd,
    }
}
