//! Attention: the launch of a planned batch.

use std::ops::Range;

use burn::backend::{DType, cubecl::dtype_to_storage_type, tensor::FloatTensor};
use burn::tensor::Bytes;
use burn_cubecl::{CubeBackend, cubecl::prelude::TensorBinding, kernel::into_contiguous, tensor::CubeTensor};
use burn_flashinfer_kernels::attention::{
    self as kernels, Alignment, Attention, DevicePlan, Element, Inputs, KvScales, Mask, MaskBits, launch,
    map_tiles, mask_words,
};

use super::tensor::{dense, empty_like, in_rows, launched, layout_of};
use crate::extension::{
    Attended, Batch, KeysValues, KvTensors, Launch, MaskedBatch, MaybeMask, MaybeScales, PagesLayout,
    VariantTensors,
};
use crate::types::AttentionParams;

pub(super) fn batch_attention(
    q: FloatTensor<CubeBackend>,
    kv: KeysValues<CubeBackend>,
    batch: Batch<CubeBackend>,
    params: AttentionParams,
) -> Attended<CubeBackend> {
    let AttentionParams { variant, return_lse } = params;
    let KeysValues { tensors, scales, format } = kv;
    let (k, v, scales) = match (tensors, scales) {
        (KvTensors::Scaled(k, v, k_scales, v_scales), _) => (k, v, Some([k_scales, v_scales].map(in_rows))),
        (KvTensors::Floats(k, v) | KvTensors::Codes(k, v), MaybeScales::Some(k_scale, v_scale)) => {
            (k, v, Some([k_scale, v_scale].map(into_contiguous)))
        }
        (KvTensors::Floats(k, v) | KvTensors::Codes(k, v), MaybeScales::None) => (k, v, None),
    };
    let [tokens, heads] = [q.meta.shape()[0], q.meta.shape()[1]];
    let dim = v.meta.shape()[v.meta.num_dims() - 1];
    let output = empty_like(&q, [tokens, heads, dim].into(), q.dtype);
    let lse = return_lse.then(|| empty_like(&q, [tokens, heads].into(), DType::F32));
    let kernels = variant.kernels();
    let page_size = batch.layout.pages.as_ref().map(|pages| pages.page_size);
    if let (Some(Lists { requests, planned, inputs, mask }), Some(kernels)) = (lists(batch), kernels)
        && tokens > 0
    {
        let client = q.client.clone();
        let [dtype, stored] = [q.dtype, k.dtype].map(dtype_to_storage_type);
        let kv_dtype = format.map_or(Element::Number(stored), |format| Element::Code(format.into()));
        let kv_scales = scales.map(|[k, v]| KvScales { k: k.binding(), v: v.binding() });
        let planned = match kv_scales.as_ref() {
            // A plan does not know of scales for each token, with which products cannot be of codes.
            Some(scales) if scales.are_of_tokens() => {
                DevicePlan { blueprint: planned.blueprint.of_numbers(), ..planned }
            }
            _ => planned,
        };
        let loads = planned.blueprint.loads(kv_dtype);
        let attention = Attention {
            q: aligned(q, loads.qk).binding(),
            k: in_pages(aligned(k, loads.qk).binding(), page_size),
            v: in_pages(aligned(v, loads.vo).binding(), page_size),
            output: output.clone().binding(),
            lse: lse.clone().map(CubeTensor::binding),
            batch: requests,
            scale: variant.scale(),
            dtype,
            kv_dtype,
            kv_scales,
            inputs,
            mask,
        };
        // SAFETY: row pointers, page table and plan of a batch are made together on the host from lists that were
        // checked: `PageTable` and `Indptr` when they are made, their ends against the tensors in `ops`. Pages that the device
        // has chosen are within the pool, whatever was asked for: `TokenSparsePlan` sees to it.
        launched(unsafe { launch(&client, attention, kernels, planned) });
    }
    match lse {
        Some(lse) => Attended::WithLse(output, lse),
        None => Attended::WithoutLse(output),
    }
}

/// The tensor, or a copy whose rows are aligned as the plan assumed: the kernel is the planned one whatever
/// the strides.
fn aligned(tensor: CubeTensor, elements: usize) -> CubeTensor {
    let tensor = in_rows(tensor);
    let dtype = dtype_to_storage_type(tensor.dtype);
    let fits = |tensor: &CubeTensor| Alignment::of_rows(&tensor.clone().binding(), dtype) >= elements;
    if fits(&tensor) {
        return tensor;
    }
    let dense = into_contiguous(tensor);
    // A dense part of a tensor may begin anywhere.
    if fits(&dense) { dense } else { dense.copy() }
}

/// Tokens one after the other as pages, if there are to be pages; a view.
fn in_pages(tensor: TensorBinding, page_size: Option<usize>) -> TensorBinding {
    let (Some(page_size), &[tokens, heads, dim], &[token, head, element]) =
        (page_size, &tensor.shape[..], &tensor.strides[..])
    else {
        return tensor;
    };
    let shape = [tokens / page_size, page_size, heads, dim];
    let strides = [page_size * token, token, head, element];
    TensorBinding { shape: shape.into(), strides: strides.into(), ..tensor }
}

/// The lists of a batch on the device.
struct Lists {
    requests: kernels::Batch,
    planned: DevicePlan,
    inputs: Inputs,
    mask: Option<Mask>,
}

/// The lists of a batch, each as a part of the index tensor; none without a plan.
fn lists(batch: Batch<CubeBackend>) -> Option<Lists> {
    let Batch { index, workspace, inputs, mask, layout } = batch;
    let VariantTensors { sinks, slopes, floats, ints } = inputs;
    let list = |range: &Range<usize>| part(&index, range);
    let (qo_indptr, kv_indptr) = (list(&layout.qo_indptr), list(&layout.kv_indptr));
    let requests = match &layout.pages {
        None => kernels::Batch::Ragged { qo_indptr, kv_indptr },
        Some(PagesLayout { last_page_len, indices, layout, .. }) => kernels::Batch::Paged {
            qo_indptr,
            kv_indptr,
            indices: list(indices),
            last_page_len: list(last_page_len),
            layout: layout_of(*layout),
        },
    };
    // A larger workspace is as good.
    let planned = DevicePlan { workspace: dense(workspace), ..planned(&index, &layout.launch)? };
    let some = |range: &Range<usize>| (!range.is_empty()).then(|| part(&index, range));
    let ints = some(&layout.ranges).or_else(|| ints.into_option().map(super::tensor::index));
    let [sinks, slopes, floats] = [sinks, slopes, floats].map(dense);
    let mask = match mask {
        MaybeMask::None => None,
        MaybeMask::Some(words, tiles, first_bits) => Some(Mask {
            bits: MaskBits { words: words.binding(), first_bits: first_bits.binding() },
            tiles: Some(tiles.binding()),
        }),
    };
    Some(Lists { requests, planned, inputs: Inputs { sinks, slopes, floats, ints }, mask })
}

/// The plan of a launch, without a workspace; none without a blueprint.
fn planned(index: &CubeTensor, launch: &Launch) -> Option<DevicePlan> {
    let some = |range: &Range<usize>| (!range.is_empty()).then(|| part(index, range));
    Some(DevicePlan {
        blueprint: launch.blueprint?,
        work_items: some(&launch.work_items),
        merges: some(&launch.merges),
        merge_rows: launch.merge_rows,
        partial_rows: launch.partial_rows,
        mask_tiles: launch.mask_tiles,
        longest_walk: launch.longest_walk,
        workspace: None,
    })
}

/// The bits of a mask, and its tiles for the kernels of a batch.
pub(super) fn map_mask(
    bytes: CubeTensor,
    first_bits: CubeTensor,
    index: CubeTensor,
    batch: MaskedBatch,
) -> (CubeTensor, CubeTensor) {
    let ints = |len: usize| empty_like(&index, [len].into(), DType::I32);
    let words = ints(MaskedBatch::words(bytes.meta.shape()[0]));
    let tiles = ints(batch.tiles());
    let client = bytes.client.clone();
    launched(mask_words(&client, into_contiguous(bytes).binding(), words.clone().binding()));
    if let Some(planned) = planned(&index, &batch.launch) {
        let bits = MaskBits { words: words.clone().binding(), first_bits: first_bits.binding() };
        // SAFETY: the lists are those of a plan, and `attention::mask` has checked the bytes against its requests.
        launched(unsafe { map_tiles(&client, &planned, &bits, batch.group, tiles.clone().binding()) });
    }
    (words, tiles)
}

/// The numbers of `range`, where they are.
fn part(index: &CubeTensor, range: &Range<usize>) -> TensorBinding {
    let (size, len) = (index.dtype.size(), index.meta.shape()[0]);
    let bytes = |numbers: usize| (numbers * size) as u64;
    let handle = index.handle.clone().offset_start(bytes(range.start)).offset_end(bytes(len - range.end));
    let (client, device) = (index.client.clone(), index.device.clone());
    CubeTensor::new_contiguous(client, device, [range.len()].into(), handle, index.dtype).binding()
}

/// Overwrites the front of a buffer, even if it has other owners: a captured graph reads it at its address.
pub(super) fn write_ints(buffer: CubeTensor, values: Vec<i32>) -> CubeTensor {
    let behind = (buffer.meta.shape()[0] - values.len()) * size_of::<i32>();
    let handle = buffer.handle.clone().offset_end(behind as u64);
    buffer.client.write(&handle, Bytes::from_elems(values));
    buffer
}
