//! The page pool of one layer.

use std::sync::Arc;

#[cfg(feature = "cube")]
use burn::tensor::Transaction;
use burn::tensor::{DType, Device, Int, Tensor};

use super::clock::Clock;
use super::slot_mapping::SlotMapping;
use crate::check;
use crate::dispatch::{IntoBackend, Origin};
use crate::error::{Error, Result};
use crate::extension::{FlashInferBackend, KeysValues, KvTensors, MaybeScales, Pages};
use crate::types::{Code8, Fp8, KvLayout};

/// The backend behind Burn's tensors.
type Dispatch = burn::backend::Dispatch;

/// The keys and values of one layer, in pages.
///
/// Both tensors are `[pages, page_size, kv_heads, head_dim]` ([`KvLayout::Nhd`]) or
/// `[pages, kv_heads, page_size, head_dim]` ([`KvLayout::Hnd`]), of the same type and on the same device;
/// their head dimensions may differ. They hold floats ([`new`](Self::new)), or codes of 8 bits, which take half the
/// memory ([`new_fp8`](Self::new_fp8), [`new_int8`](Self::new_int8)).
#[derive(Debug, Clone)]
pub struct KvPages {
    pub(super) pool: Pool,
    pub(super) layout: KvLayout,
    /// New tokens are written in place even while clones are alive.
    pub(super) pinned: bool,
    /// The clock of the cache whose layer this is.
    pub(super) clock: Option<Arc<Clock>>,
}

/// The tensors of the pages.
#[derive(Debug, Clone)]
pub(super) enum Pool {
    Floats(Tensor<4>, Tensor<4>),
    Codes { k: Tensor<4, Int>, v: Tensor<4, Int>, meaning: Box<Meaning> },
}

/// The format of codes and their scales.
#[derive(Debug, Clone)]
pub(super) struct Meaning {
    pub(super) format: Code8,
    pub(super) scales: Scales,
}

/// The scales of keys and of values.
#[derive(Debug, Clone)]
pub(super) enum Scales {
    OfAll(Tensor<1>, Tensor<1>),
    /// As the pages, with one element in place of a head.
    OfTokens(Tensor<4>, Tensor<4>),
}

/// The extents of a page pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageShape {
    pub pages: usize,
    pub page_size: usize,
    pub kv_heads: usize,
    pub k_dim: usize,
    pub v_dim: usize,
}

impl KvPages {
    /// Takes two tensors as the pages of a layer.
    ///
    /// To append in place the pages must be the only owner of both: keep no clone of them.
    ///
    /// # Errors
    ///
    /// If they differ in more than the last extent, in type or in device, or an extent is 0.
    pub fn new(k: Tensor<4>, v: Tensor<4>, layout: KvLayout) -> Result<Self> {
        const OP: &str = "KvPages::new";
        check::device(OP, "k", &k.device())?;
        check::same_device(OP, "v", &v.device(), &k.device())?;
        check::float(OP, "k", k.dtype(), &k.device())?;
        check::same_dtype(OP, "v", v.dtype(), k.dtype())?;
        pair(OP, k.dims(), v.dims())?;
        Ok(Self { pool: Pool::Floats(k, v), layout, pinned: false, clock: None })
    }

    pub(crate) fn of_cache(mut self, clock: Arc<Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    pub(crate) fn pin(&mut self) {
        self.pinned = true;
    }

    /// True if these are pages of the cache of `clock` that are [pinned](crate::PagedKvCache::pin).
    pub(crate) fn are_pinned_of(&self, clock: &Arc<Clock>) -> bool {
        self.pinned && self.clock.as_ref().is_some_and(|own| Arc::ptr_eq(own, clock))
    }

    /// With a read of one element of keys and of values: it fails if the device did not allocate them.
    #[cfg(feature = "cube")]
    pub(crate) fn read_first(&self, reading: Transaction) -> Transaction {
        let first = [0..1, 0..1, 0..1, 0..1];
        match &self.pool {
            Pool::Floats(k, v) => {
                reading.register(k.clone().slice(first.clone())).register(v.clone().slice(first))
            }
            Pool::Codes { k, v, .. } => {
                reading.register(k.clone().slice(first.clone())).register(v.clone().slice(first))
            }
        }
    }

    /// The keys, if they are numbers.
    pub fn k(&self) -> Option<&Tensor<4>> {
        self.floats().map(|(k, _)| k)
    }

    /// The values, if they are numbers.
    pub fn v(&self) -> Option<&Tensor<4>> {
        self.floats().map(|(_, v)| v)
    }

    /// The codes of keys and of values, if the pages are fp8.
    pub fn codes(&self) -> Option<(&Tensor<4, Int>, &Tensor<4, Int>)> {
        match &self.pool {
            Pool::Floats(..) => None,
            Pool::Codes { k, v, .. } => Some((k, v)),
        }
    }

    /// The fp8 format, if the pages are fp8.
    pub fn fp8(&self) -> Option<Fp8> {
        self.code().and_then(Code8::fp8)
    }

    /// The format, if the pages hold codes.
    pub(crate) fn code(&self) -> Option<Code8> {
        match &self.pool {
            Pool::Floats(..) => None,
            Pool::Codes { meaning, .. } => Some(meaning.format),
        }
    }

    /// The keys and values, if they are numbers.
    pub fn into_tensors(self) -> Option<(Tensor<4>, Tensor<4>)> {
        match self.pool {
            Pool::Floats(k, v) => Some((k, v)),
            Pool::Codes { .. } => None,
        }
    }

    /// The type of an element: of a number, or `U8`.
    pub fn dtype(&self) -> DType {
        match &self.pool {
            Pool::Floats(k, _) => k.dtype(),
            Pool::Codes { .. } => DType::U8,
        }
    }

    /// The device of the pages.
    pub fn device(&self) -> Device {
        match &self.pool {
            Pool::Floats(k, _) => k.device(),
            Pool::Codes { k, .. } => k.device(),
        }
    }

    /// The device and backend of tensors read from the pages.
    pub(crate) fn origin(&self) -> Origin {
        match &self.pool {
            Pool::Floats(k, _) => Origin::of(k),
            Pool::Codes { k, .. } => Origin::of(k),
        }
    }

    pub(super) fn floats(&self) -> Option<(&Tensor<4>, &Tensor<4>)> {
        match &self.pool {
            Pool::Floats(k, v) => Some((k, v)),
            Pool::Codes { .. } => None,
        }
    }

    /// Refuses pages on another device than these, and numbers of another type.
    pub(crate) fn check_beside(&self, floats: &check::Floats) -> Result<()> {
        match &self.pool {
            Pool::Floats(k, v) => floats.like("pages", k).and_then(|()| floats.like("pages", v)),
            Pool::Codes { k, .. } => floats.on_device("pages", &k.device()),
        }
    }

    /// The same elements as pages of another shape, up to their last axis: a view if the pool is contiguous, and else a copy.
    ///
    /// # Errors
    ///
    /// If these pages have other heads, and each head of the pool a scale of its own.
    pub(crate) fn viewed(&self, op: &'static str, [a, b, c]: [usize; 3], layout: KvLayout) -> Result<Self> {
        let (k_dim, v_dim) = (self.shape().k_dim, self.shape().v_dim);
        let pool = match &self.pool {
            Pool::Floats(k, v) => {
                Pool::Floats(k.clone().reshape([a, b, c, k_dim]), v.clone().reshape([a, b, c, v_dim]))
            }
            Pool::Codes { k, v, meaning } => {
                let scales = match &meaning.scales {
                    Scales::OfTokens(k, v) => {
                        let [k, v] = [k, v].map(|scales| scales.clone().reshape([a, b, c, 1]));
                        Scales::OfTokens(k, v)
                    }
                    scales => scales.clone(),
                };
                let meaning = Box::new(Meaning { format: meaning.format, scales });
                let (k, v) = (k.clone().reshape([a, b, c, k_dim]), v.clone().reshape([a, b, c, v_dim]));
                Pool::Codes { k, v, meaning }
            }
        };
        let viewed = Self { pool, layout, pinned: false, clock: None };
        if viewed.shape().kv_heads != self.shape().kv_heads && self.has_scales_of_heads() {
            let got = "codes with a scale for each key head".into();
            let expected = "one scale, or one for each token, as each key head is a request".into();
            return Err(Error::Value { op, argument: "pages", got, expected });
        }
        Ok(viewed)
    }

    /// True if key heads have scales of their own.
    fn has_scales_of_heads(&self) -> bool {
        match &self.pool {
            Pool::Codes { meaning, .. } => {
                matches!(&meaning.scales, Scales::OfAll(k, v) if k.dims()[0] > 1 || v.dims()[0] > 1)
            }
            Pool::Floats(..) => false,
        }
    }

    /// Keys and values for attention.
    pub(crate) fn stored(&self) -> KeysValues<Dispatch> {
        match self.pool.clone() {
            Pool::Floats(k, v) => KeysValues::floats(k.into_backend(), v.into_backend()),
            Pool::Codes { k, v, meaning } => {
                let (k, v, format) = (k.into_backend(), v.into_backend(), Some(meaning.format));
                match meaning.scales {
                    Scales::OfAll(k_scale, v_scale) => KeysValues {
                        tensors: KvTensors::Codes(k, v),
                        scales: MaybeScales::Some(k_scale.into_backend(), v_scale.into_backend()),
                        format,
                    },
                    Scales::OfTokens(k_scales, v_scales) => KeysValues {
                        tensors: KvTensors::Scaled(k, v, k_scales.into_backend(), v_scales.into_backend()),
                        scales: MaybeScales::None,
                        format,
                    },
                }
            }
        }
    }

    /// The order of the axes of a page.
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    pub(crate) fn shape(&self) -> PageShape {
        let ([pages, a, b, k_dim], [.., v_dim]) = self.dims();
        let (page_size, kv_heads) = match self.layout {
            KvLayout::Nhd => (a, b),
            KvLayout::Hnd => (b, a),
        };
        PageShape { pages, page_size, kv_heads, k_dim, v_dim }
    }

    /// The shapes of keys and values.
    pub(crate) fn dims(&self) -> ([usize; 4], [usize; 4]) {
        match &self.pool {
            Pool::Floats(k, v) => (k.dims(), v.dims()),
            Pool::Codes { k, v, .. } => (k.dims(), v.dims()),
        }
    }

    /// Writes tokens that fit, bit for bit.
    pub(crate) fn write(&mut self, tokens: KvTensors<Dispatch>, slots: &SlotMapping) {
        let slots = slots.tensor.clone().into_backend();
        self.update(|pages| Dispatch::append_paged_kv(pages, tokens, slots));
    }

    /// Reads slots, at least one: floats of type `dtype`, or fp8 if it is `U8`.
    pub(crate) fn read(&self, slots: Tensor<1, Int>, dtype: DType) -> KvTensors<Dispatch> {
        Dispatch::gather_paged_kv(self.to_dispatch(), slots.into_backend(), dtype)
    }

    /// Replaces both tensors by the result of `write`. They are moved out meanwhile, so that `write` is their
    /// only owner and can write in place.
    pub(crate) fn update(&mut self, write: impl FnOnce(Pages<Dispatch>) -> KvTensors<Dispatch>) {
        let (layout, pinned, origin) = (self.layout, self.pinned, self.origin());
        let (tensors, scales, format) = match &mut self.pool {
            Pool::Floats(k, v) => {
                let tensors = KvTensors::Floats(k.extract().into_backend(), v.extract().into_backend());
                (tensors, MaybeScales::None, None)
            }
            Pool::Codes { k, v, meaning } => {
                let (k, v) = (k.extract().into_backend(), v.extract().into_backend());
                match &mut meaning.scales {
                    Scales::OfAll(k_scale, v_scale) => {
                        let [k_scale, v_scale] = [k_scale, v_scale].map(|scale| scale.clone().into_backend());
                        let scales = MaybeScales::Some(k_scale, v_scale);
                        (KvTensors::Codes(k, v), scales, Some(meaning.format))
                    }
                    Scales::OfTokens(k_scales, v_scales) => {
                        let [k_scales, v_scales] =
                            [k_scales, v_scales].map(|scales| scales.extract().into_backend());
                        let tensors = KvTensors::Scaled(k, v, k_scales, v_scales);
                        (tensors, MaybeScales::None, Some(meaning.format))
                    }
                }
            }
        };
        match (write(Pages { tensors, scales, format, layout, pinned }), &mut self.pool) {
            (KvTensors::Floats(new_k, new_v), Pool::Floats(k, v)) => {
                (*k, *v) = (origin.tensor(new_k), origin.tensor(new_v));
            }
            (KvTensors::Codes(new_k, new_v), Pool::Codes { k, v, .. }) => {
                (*k, *v) = (origin.tensor(new_k), origin.tensor(new_v));
            }
            (KvTensors::Scaled(new_k, new_v, k_scales, v_scales), Pool::Codes { k, v, meaning }) => {
                (*k, *v) = (origin.tensor(new_k), origin.tensor(new_v));
                meaning.scales = Scales::OfTokens(origin.tensor(k_scales), origin.tensor(v_scales));
            }
            // `write` returns the kind that it got.
            _ => {}
        }
    }

    /// These pages as backends take them.
    fn to_dispatch(&self) -> Pages<Dispatch> {
        let (layout, pinned) = (self.layout, self.pinned);
        let KeysValues { tensors, scales, format } = self.stored();
        Pages { tensors, scales, format, layout, pinned }
    }
}

/// Refuses keys and values that are not of one shape but for the last extent.
pub(super) fn pair(op: &'static str, k: [usize; 4], v: [usize; 4]) -> Result<()> {
    if k.contains(&0) {
        return Err(check::shape(op, "k", &k, "no empty axis"));
    }
    if v[..3] != k[..3] || v[3] == 0 {
        let [pages, rows, heads, _] = k;
        return Err(check::shape(op, "v", &v, format!("[{pages}, {rows}, {heads}, head_dim], as `k`")));
    }
    Ok(())
}
