use std::fmt::Debug;

use cubecl::{client::Client, ir::ElemType, prelude::*};

use super::blueprint::Blueprint;
use super::checked::{KvScales, Operands, check_scales};
use super::kv_table::{PagedLaunch, RaggedLaunch, TableArgs};
use super::mask::Mask;
use super::plan::DevicePlan;
use super::variant::Variant;
use super::{portable, tiled};
use crate::device::tensor::{KvLayout, Result, by_slot, contiguous, one_page, rows, shape};
use crate::device::{DeviceProfile, Refusal};
use crate::element::Element;
use crate::problem::{Alignment, HeadDims, Problem};

pub(super) const KERNEL: &str = "attention";

/// Places of the queries and keys of each request. Index tensors are contiguous, of `i32`.
#[allow(clippy::large_enum_variant, reason = "one a launch, taken apart at once")]
pub enum Batch {
    /// Requests one after the other.
    Ragged {
        /// `[requests + 1]`: first query of each request.
        qo_indptr: TensorBinding,
        /// `[requests + 1]`: first key of each request.
        kv_indptr: TensorBinding,
    },
    /// Keys and values in pages.
    Paged {
        /// `[requests + 1]`: first query of each request.
        qo_indptr: TensorBinding,
        /// `[requests + 1]`: begin of each request's pages in `indices`.
        kv_indptr: TensorBinding,
        /// The pages of every request. Not empty.
        indices: TensorBinding,
        /// `[requests]`: tokens in the last page of each request.
        last_page_len: TensorBinding,
        /// The order of the axes of a page.
        layout: KvLayout,
    },
}

impl Batch {
    /// Requests.
    fn requests(&self) -> usize {
        let (Self::Ragged { qo_indptr, .. } | Self::Paged { qo_indptr, .. }) = self;
        qo_indptr.size().saturating_sub(1)
    }
}

/// The tensors of an attention problem.
pub struct Attention {
    /// `[tokens, q_heads, qk]`.
    pub q: TensorBinding,
    /// `[keys, kv_heads, qk]`, or pages.
    pub k: TensorBinding,
    /// `[keys, kv_heads, vo]`, or pages.
    pub v: TensorBinding,
    /// `[tokens, q_heads, vo]`, contiguous.
    pub output: TensorBinding,
    /// `[tokens, q_heads]` of f32, contiguous: the base-2 log-sum-exp, if it is wanted.
    pub lse: Option<TensorBinding>,
    /// The requests of the batch.
    pub batch: Batch,
    /// Factor on the logits, the same as that of the variant's kernels.
    pub scale: f32,
    /// Type of `q` and `output`.
    pub dtype: ElemType,
    /// Stored type of `k` and `v`.
    pub kv_dtype: Element,
    /// The scales of codes.
    pub kv_scales: Option<KvScales>,
    /// The variant's own tensors.
    pub inputs: Inputs,
    /// The keys that each query sees, if there is a mask beside the variant's.
    pub mask: Option<Mask>,
}

/// Tensors of a variant, which change from call to call: slopes, sinks, masks.
#[derive(Clone, Default)]
pub struct Inputs {
    /// `[q_heads]` of f32, contiguous: logits without a value.
    pub sinks: Option<TensorBinding>,
    /// `[q_heads]` of f32, contiguous: growth of the logits from a key to the next.
    pub slopes: Option<TensorBinding>,
    /// An f32 tensor, contiguous.
    pub floats: Option<TensorBinding>,
    /// An i32 tensor, contiguous.
    pub ints: Option<TensorBinding>,
}

/// A variant of any type, with its arguments: launches the kernels that are generic over it.
pub trait Kernels: Debug + Send + Sync {
    /// Calls [`Call::run`] with the variant's type and arguments.
    ///
    /// # Errors
    ///
    /// As [`launch`].
    fn launch(&self, call: Call<'_>) -> Result<()>;
}

/// A launch that is generic over the variant. There is none but by [`launch`], whose contract holds for it.
pub struct Call<'a> {
    client: &'a Client,
    attention: Attention,
    planned: DevicePlan,
}

/// Runs attention as planned.
///
/// # Errors
///
/// If the shapes do not fit, or if the blueprint cannot run. Nothing is launched then.
///
/// # Safety
///
/// - `qo_indptr` and `kv_indptr` begin with 0 and never fall.
/// - `qo_indptr` ends with the number of query tokens, `kv_indptr` with at most that of keys, or of `indices`.
/// - Each of `indices` before that end is from 0 to below the number of pages.
/// - Each of `last_page_len` is from 1 to the page size, unless the request has no page.
/// - The lists of the plan are those of a [`Plan`](super::Plan) for these requests and this variant.
/// - A mask has a bit for each query and key of each request, and the tiles that [`map_tiles`](super::map_tiles) made for
///   the plan.
pub unsafe fn launch(
    client: &Client,
    attention: Attention,
    variant: &dyn Kernels,
    planned: DevicePlan,
) -> Result<()> {
    variant.launch(Call { client, attention, planned })
}

impl Call<'_> {
    /// The variant's own tensors.
    pub fn inputs(&self) -> &Inputs {
        &self.attention.inputs
    }

    /// Query heads.
    pub fn q_heads(&self) -> usize {
        self.attention.q.shape.get(1).copied().unwrap_or(0)
    }

    /// Requests of the batch.
    pub fn requests(&self) -> usize {
        self.attention.batch.requests()
    }

    /// [`Inputs::floats`], contiguous and of this shape.
    ///
    /// # Errors
    ///
    /// If there are none, or of another shape: `argument`.
    pub fn float_input(&self, argument: &'static str, wanted: &[usize]) -> Result<TensorBinding> {
        given(argument, &self.attention.inputs.floats, wanted)
    }

    /// [`Inputs::ints`], contiguous and of this shape.
    ///
    /// # Errors
    ///
    /// As [`float_input`](Self::float_input).
    pub fn int_input(&self, argument: &'static str, wanted: &[usize]) -> Result<TensorBinding> {
        given(argument, &self.attention.inputs.ints, wanted)
    }

    /// Launches the kernels of a variant. `args` makes the arguments once for each of them.
    ///
    /// # Errors
    ///
    /// As [`launch`].
    ///
    /// # Safety
    ///
    /// Kernels do not check indices: no hook of `V` reads beyond the tensors of its arguments, which `args` makes.
    pub unsafe fn run<V: Variant>(self, args: impl Fn() -> <V::Args as LaunchArg>::RuntimeArg) -> Result<()> {
        let Self { client, attention, planned } = self;
        let Attention { q, k, v, output, lse, batch, scale, dtype, kv_dtype, kv_scales, inputs: _, mask } =
            attention;
        if output.size() == 0 {
            return Ok(());
        }
        if let Some(lse) = lse.as_ref().filter(|_| !V::SOFTMAX) {
            return Err(shape(KERNEL, "lse", lse, "none, without a softmax"));
        }
        let (k, v) = match &batch {
            Batch::Paged { layout, .. } => {
                rows(KERNEL, "k", &k, 4)?;
                rows(KERNEL, "v", &v, 4)?;
                (by_slot(k, *layout), by_slot(v, *layout))
            }
            Batch::Ragged { .. } => {
                rows(KERNEL, "k", &k, 3)?;
                rows(KERNEL, "v", &v, 3)?;
                (one_page(k), one_page(v))
            }
        };
        let dims = check(&q, &k, &v, &output, lse.as_ref(), &batch)?;
        // Without keys nothing is read, but a buffer must be bound, and an empty one cannot be.
        let (k, v) = (or_bound(k, &q), or_bound(v, &q));

        if let Some(KvScales { k, v }) = &kv_scales {
            let rank = if matches!(batch, Batch::Paged { .. }) { 4 } else { 3 };
            for (argument, scale) in [("k_scale", k), ("v_scale", v)] {
                if scale.shape.len() != 1 {
                    rows(KERNEL, argument, scale, rank)?;
                }
            }
        }
        let kv_scales = kv_scales.map(|scales| {
            scales.of_tokens(|scale| match &batch {
                Batch::Paged { layout, .. } => by_slot(scale, *layout),
                Batch::Ragged { .. } => one_page(scale),
            })
        });
        check_scales(kv_dtype, kv_scales.as_ref(), &k)?;
        let kv_scales = kv_scales.map(|scales| scales.of_tokens(|scale| or_bound(scale, &q)));
        let stored = kv_dtype.storage();
        let qk = Alignment::of_rows(&q, dtype).min(Alignment::of_rows(&k, stored));
        let align = Alignment { qk, vo: Alignment::of_rows(&v, stored) };
        let (q_heads, kv_heads, fp8_mma) = (q.shape[1], k.shape[2], planned.blueprint.fp8_mma());
        let problem = Problem { dims, dtype, kv_dtype, q_heads, kv_heads, scale, align, fp8_mma };
        let limit = i32::MAX as usize;
        let got = q.shape[0] * q.shape[1];
        if got > limit {
            return Err(Refusal::Range { kernel: KERNEL, argument: "rows", got, limit });
        }
        planned.blueprint.check(&DeviceProfile::of(client), &problem)?;
        if let Some(mask) = &mask {
            mask.check(batch.requests(), !matches!(planned.blueprint, Blueprint::Portable(_)))?;
        }
        let table = table_args(&batch, k.shape[1]);
        let operands = Operands { q, k, v, output, lse, scales: kv_scales };
        let tiles = match planned.blueprint {
            Blueprint::Portable(portable) => {
                return portable::launch::<V>(client, operands, table, mask, args(), &problem, portable);
            }
            Blueprint::Tiled(tiled) => (tiled, None),
            Blueprint::Mixed(mixed) => (mixed.prefill, Some(mixed.decode)),
        };
        tiled::launch::<V>(client, operands, (table, mask), args, &problem, tiles, planned)
    }
}

/// An input that must be there.
fn given(argument: &'static str, input: &Option<TensorBinding>, wanted: &[usize]) -> Result<TensorBinding> {
    let none = || Refusal::Shape {
        kernel: KERNEL,
        argument,
        shape: vec![],
        strides: vec![],
        expected: format!("{wanted:?}, to be given"),
    };
    let tensor = input.clone().ok_or_else(none)?;
    contiguous(KERNEL, argument, &tensor, wanted)?;
    Ok(tensor)
}

fn check(
    q: &TensorBinding,
    k: &TensorBinding,
    v: &TensorBinding,
    output: &TensorBinding,
    lse: Option<&TensorBinding>,
    batch: &Batch,
) -> Result<HeadDims> {
    rows(KERNEL, "q", q, 3)?;
    let [tokens, q_heads, qk] = [q.shape[0], q.shape[1], q.shape[2]];
    let [pages, slots, kv_heads, vo] = [v.shape[0], v.shape[1], v.shape[2], v.shape[3]];
    if qk == 0 || vo == 0 || kv_heads == 0 || q_heads % kv_heads != 0 {
        return Err(shape(
            KERNEL,
            "q",
            q,
            format!("a multiple of the {kv_heads} key heads, and no empty head"),
        ));
    }
    if k.shape.to_vec() != [pages, slots, kv_heads, qk] {
        return Err(shape(KERNEL, "k", k, format!("[{pages}, {slots}, {kv_heads}, {qk}] as `v` and `q`")));
    }
    contiguous(KERNEL, "output", output, &[tokens, q_heads, vo])?;
    if let Some(lse) = lse {
        contiguous(KERNEL, "lse", lse, &[tokens, q_heads])?;
    }
    let limit = i32::MAX as usize;
    for (argument, got) in [("tokens", tokens), ("keys", slots)] {
        if got > limit {
            return Err(Refusal::Range { kernel: KERNEL, argument, got, limit });
        }
    }
    match batch {
        Batch::Ragged { qo_indptr, kv_indptr } => indptrs(qo_indptr, kv_indptr)?,
        Batch::Paged { qo_indptr, kv_indptr, indices, last_page_len, .. } => {
            indptrs(qo_indptr, kv_indptr)?;
            contiguous(KERNEL, "last_page_len", last_page_len, &[qo_indptr.shape[0] - 1])?;
            contiguous(KERNEL, "indices", indices, &[indices.size()])?;
            if indices.size() == 0 || slots == 0 {
                return Err(shape(KERNEL, "indices", indices, "at least one entry, and slots in a page"));
            }
        }
    }
    Ok(HeadDims { qk, vo })
}

fn indptrs(qo_indptr: &TensorBinding, kv_indptr: &TensorBinding) -> Result<()> {
    contiguous(KERNEL, "qo_indptr", qo_indptr, &[qo_indptr.size()])?;
    contiguous(KERNEL, "kv_indptr", kv_indptr, &[qo_indptr.size()])?;
    if qo_indptr.size() < 2 {
        return Err(shape(KERNEL, "qo_indptr", qo_indptr, "[requests + 1] with a request"));
    }
    Ok(())
}

/// `tensor`, or `bound` in its place if it has no element.
fn or_bound(tensor: TensorBinding, bound: &TensorBinding) -> TensorBinding {
    if tensor.size() == 0 { TensorBinding { handle: bound.handle.clone(), ..tensor } } else { tensor }
}

fn table_args(batch: &Batch, page_size: usize) -> TableArgs {
    let buffer = |tensor: &TensorBinding| tensor.clone().into_buffer_arg();
    match batch {
        Batch::Ragged { qo_indptr, kv_indptr } => {
            TableArgs::Ragged(RaggedLaunch::new(buffer(qo_indptr), buffer(kv_indptr), qo_indptr.size() - 1))
        }
        Batch::Paged { qo_indptr, kv_indptr, indices, last_page_len, .. } => {
            TableArgs::Paged(PagedLaunch::new(
                buffer(qo_indptr),
                buffer(kv_indptr),
                buffer(indices),
                buffer(last_page_len),
                qo_indptr.size() - 1,
                page_size,
                page_size as u32,
            ))
        }
    }
}
