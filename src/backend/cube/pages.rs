//! Launches of writes to pages, reads from them, and RoPE.

use burn::backend::{DType, cubecl::dtype_to_storage_type};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use burn_flashinfer_kernels::{
    Quantized,
    append::{Tokens, append, gather},
    append_scaled::{TokenScales, append_scaled, gather_scaled},
    pages::{KvQuantized, Pools},
    rope::{HeadNorm, Rope, Style, To, launch as rope},
};

use super::tensor::{empty_like, fresh, in_rows, index, launched, layout_of, owned};
use crate::extension::{KvTensors, MaybeHeadNorm, MaybeScales, Pages, Rotations};
use crate::types::{Fp8, KvLayout, RopeStyle};

type Cube = burn_cubecl::CubeBackend;

/// Pages to write to: themselves if they have no other owner, copies if they have.
fn writable(pages: Pages<Cube>) -> Pages<Cube> {
    let own = |pool: CubeTensor| if pages.pinned { in_rows(pool) } else { owned(pool) };
    let tensors = match pages.tensors {
        KvTensors::Floats(k, v) => KvTensors::Floats(own(k), own(v)),
        KvTensors::Codes(k, v) => KvTensors::Codes(own(k), own(v)),
        KvTensors::Scaled(k, v, k_scales, v_scales) => {
            KvTensors::Scaled(own(k), own(v), own(k_scales), own(v_scales))
        }
    };
    Pages { tensors, ..pages }
}

/// Pages as the kernels take them, without scales of tokens.
fn pools(pages: Pages<Cube>) -> Pools {
    let (KvTensors::Floats(k, v) | KvTensors::Codes(k, v) | KvTensors::Scaled(k, v, ..)) = pages.tensors;
    let quantized = match (pages.scales, pages.format) {
        (MaybeScales::Some(k_scale, v_scale), Some(format)) => {
            let [k_scale, v_scale] = [k_scale, v_scale].map(|scale| into_contiguous(scale).binding());
            Some(KvQuantized { format: format.into(), k_scale, v_scale })
        }
        _ => None,
    };
    let [k, v] = [k, v].map(|pool| in_rows(pool).binding());
    Pools { k, v, layout: layout_of(pages.layout), quantized }
}

/// These pages without their scales: codes are moved as they are.
fn raw(pages: Pages<Cube>) -> Pages<Cube> {
    Pages { scales: MaybeScales::None, format: None, ..pages }
}

/// The scales of tokens as kernels take them, and the same as pages of numbers.
fn token_scales(pages: &Pages<Cube>) -> Option<(TokenScales, Pages<Cube>)> {
    let (KvTensors::Scaled(_, _, k, v), Some(format)) = (&pages.tensors, pages.format) else { return None };
    let as_pages = Pages { tensors: KvTensors::Floats(k.clone(), v.clone()), ..raw(pages.clone()) };
    let [k, v] = [k, v].map(|scales| in_rows(scales.clone()).binding());
    Some((TokenScales { format: format.into(), k, v }, as_pages))
}

pub(super) fn append_paged_kv(
    pages: Pages<Cube>,
    tokens: KvTensors<Cube>,
    slots: CubeTensor,
) -> KvTensors<Cube> {
    if slots.meta.num_elements() == 0 {
        return pages.tensors;
    }
    let pages = writable(pages);
    let written = pages.tensors.clone();
    let scales = token_scales(&pages);
    let (k, v, pages) = match tokens {
        KvTensors::Floats(k, v) => {
            let (client, dtype) = (k.client.clone(), dtype_to_storage_type(k.dtype));
            let tokens = rows_of([k, v], pages, slots);
            launched(match scales {
                // SAFETY: a `SlotMapping` has no slot twice, and `ops` compares the pages that it needs with those of the
                // pool.
                Some((scales, _)) => unsafe { append_scaled(&client, tokens, scales, dtype) },
                // SAFETY: as above.
                None => unsafe { append(&client, tokens, dtype) },
            });
            return written;
        }
        KvTensors::Codes(k, v) => (k, v, pages),
        KvTensors::Scaled(k, v, k_scales, v_scales) => {
            if let Some((_, as_pages)) = scales {
                append_as_they_are([k_scales, v_scales], as_pages, slots.clone());
            }
            (k, v, pages)
        }
    };
    append_as_they_are([k, v], raw(pages), slots);
    written
}

fn rows_of([k, v]: [CubeTensor; 2], pages: Pages<Cube>, slots: CubeTensor) -> Tokens {
    let [k, v] = [k, v].map(|rows| in_rows(rows).binding());
    Tokens { pools: pools(pages), k, v, slots: index(slots) }
}

fn append_as_they_are([k, v]: [CubeTensor; 2], pages: Pages<Cube>, slots: CubeTensor) {
    let (client, dtype) = (k.client.clone(), dtype_to_storage_type(k.dtype));
    let tokens = rows_of([k, v], pages, slots);
    // SAFETY: as in `append_paged_kv`.
    launched(unsafe { append(&client, tokens, dtype) });
}

pub(super) fn gather_paged_kv(pages: Pages<Cube>, slots: CubeTensor, dtype: DType) -> KvTensors<Cube> {
    match (token_scales(&pages), dtype) {
        (Some((_, as_pages)), DType::U8) => {
            let [k, v] = gather_rows(raw(pages), slots.clone(), dtype, None);
            let [k_scales, v_scales] = gather_rows(as_pages, slots, DType::F32, None);
            KvTensors::Scaled(k, v, k_scales, v_scales)
        }
        (None, DType::U8) => {
            let [k, v] = gather_rows(raw(pages), slots, dtype, None);
            KvTensors::Codes(k, v)
        }
        (scales, _) => {
            let [k, v] = gather_rows(pages, slots, dtype, scales.map(|(scales, _)| scales));
            KvTensors::Floats(k, v)
        }
    }
}

fn gather_rows(
    pages: Pages<Cube>,
    slots: CubeTensor,
    dtype: DType,
    scales: Option<TokenScales>,
) -> [CubeTensor; 2] {
    let tokens = slots.meta.num_elements();
    let (KvTensors::Floats(k, v) | KvTensors::Codes(k, v) | KvTensors::Scaled(k, v, ..)) = &pages.tensors;
    let rows = [k, v].map(|pool| {
        let shape = pool.meta.shape();
        let heads = if pages.layout == KvLayout::Nhd { shape[2] } else { shape[1] };
        empty_like(pool, [tokens, heads, shape[3]].into(), dtype)
    });
    if tokens > 0 {
        let (client, element) = (rows[0].client.clone(), dtype_to_storage_type(dtype));
        let tokens = rows_of(rows.clone(), pages, slots);
        launched(match scales {
            // SAFETY: slots come from a `PageTable` or `PageCopies`, whose pages `ops` compares with those of the pool.
            Some(scales) => unsafe { gather_scaled(&client, tokens, scales, element) },
            // SAFETY: as above.
            None => unsafe { gather(&client, tokens, element) },
        });
    }
    rows
}

/// A launch of RoPE on queries and keys.
struct Rotation {
    q: CubeTensor,
    k: CubeTensor,
    by: Rotations<Cube>,
}

impl Rotation {
    fn launch(self, q_out: Option<CubeTensor>, q_quantized: Option<Quantized>, to: To) {
        let Self { q, k, by } = self;
        let (client, dtype) = (q.client.clone(), dtype_to_storage_type(q.dtype));
        let norm = match by.norm {
            MaybeHeadNorm::None => None,
            MaybeHeadNorm::Some(q_weight, k_weight, epsilon) => {
                let [q_weight, k_weight] =
                    [q_weight, k_weight].map(|weight| into_contiguous(weight).binding());
                Some(HeadNorm { q_weight, k_weight, epsilon })
            }
        };
        let launch = Rope {
            q: q.binding(),
            k: k.binding(),
            cos_sin: in_rows(by.cos_sin).binding(),
            positions: index(by.positions),
            style: match by.style {
                RopeStyle::Halves => Style::Halves,
                RopeStyle::Interleaved => Style::Interleaved,
            },
            norm,
            q_out: q_out.map(CubeTensor::binding),
            q_quantized,
            to,
        };
        // SAFETY: `Positions` are none below 0, and `ops::rope` compares their end with the table. Slots are as in
        // `append_paged_kv`.
        launched(unsafe { rope(&client, launch, dtype) });
    }
}

/// The quantisation to `format`.
fn quantized(format: Fp8, scale: CubeTensor) -> Option<Quantized> {
    Some(Quantized { format: format.into(), scale: into_contiguous(scale).binding() })
}

pub(super) fn apply_rope(q: CubeTensor, k: CubeTensor, by: Rotations<Cube>) -> (CubeTensor, CubeTensor) {
    let (q, k) = (in_rows(q), in_rows(k));
    // One that is copied leaves the other in place.
    let (q_out, k_out) = (fresh(&q), fresh(&k));
    let results = (q_out.clone().unwrap_or_else(|| q.clone()), k_out.clone().unwrap_or_else(|| k.clone()));
    if q.meta.shape()[0] > 0 {
        let to = k_out.map_or(To::InPlace, |k_out| To::Tensor(k_out.binding(), None));
        Rotation { q, k, by }.launch(q_out, None, to);
    }
    results
}

pub(super) fn rope_quantize_fp8(
    q: CubeTensor,
    k: CubeTensor,
    by: Rotations<Cube>,
    [q_scale, k_scale]: [CubeTensor; 2],
    format: Fp8,
) -> (CubeTensor, CubeTensor) {
    let (q, k) = (in_rows(q), in_rows(k));
    let [q_out, k_out] = [&q, &k].map(|x| empty_like(x, x.meta.shape().clone(), DType::U8));
    if q.meta.shape()[0] > 0 {
        let to = To::Tensor(k_out.clone().binding(), quantized(format, k_scale));
        Rotation { q, k, by }.launch(Some(q_out.clone()), quantized(format, q_scale), to);
    }
    (q_out, k_out)
}

pub(super) fn rope_append_paged_kv(
    pages: Pages<Cube>,
    [q, k, v]: [CubeTensor; 3],
    by: Rotations<Cube>,
    slots: CubeTensor,
) -> (CubeTensor, KvTensors<Cube>) {
    let (q, k, v) = (in_rows(q), in_rows(k), in_rows(v));
    if q.meta.shape()[0] == 0 {
        return (q, pages.tensors);
    }
    if let KvTensors::Scaled(..) = pages.tensors {
        // A scale must know all of a rotated key: that is one more launch.
        let (q, k) = apply_rope(q, k, by);
        return (q, append_paged_kv(pages, KvTensors::Floats(k, v), slots));
    }
    let pages = writable(pages);
    let written = pages.tensors.clone();
    let q_out = fresh(&q);
    let rotated = q_out.clone().unwrap_or_else(|| q.clone());
    let to = To::Pages { v: v.binding(), pools: pools(pages), slots: index(slots) };
    Rotation { q, k, by }.launch(q_out, None, to);
    (rotated, written)
}
