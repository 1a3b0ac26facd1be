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
use crate::types::{Fp8, KvLayout};

/// The backend behind Burn's tensors.
type Dispatch = burn::backend::Dispatch;

/// The keys and values of one layer, in pages.
///
/// Both tensors are `[pages, page_size, kv_heads, head_dim]` ([`KvLayout::Nhd`]) or
/// `[pages, kv_heads, page_size, head_dim]` ([`KvLayout::Hnd`]), of the same type and on the same device;
/// their head dimensions may differ. They hold floats ([`new`](Self::new)), or fp8, which takes half the
/// memory ([`new_fp8`](Self::new_fp8)).
#[derive(Debug, Clone)]
pub struct KvPages {
    pool: Pool,
    layout: KvLayout,
    /// New tokens are written in place even while clones are alive.
    pinned: bool,
    /// The clock of the cache whose layer this is.
    pub(super) clock: Option<Arc<Clock>>,
}

/// The tensors of the pages.
#[derive(Debug, Clone)]
enum Pool {
    Floats(Tensor<4>, Tensor<4>),
    Codes { k: Tensor<4, Int>, v: Tensor<4, Int>, meaning: Box<Meaning> },
}

/// The fp8 format and the scales.
#[derive(Debug, Clone)]
struct Meaning {
    format: Fp8,
    scales: Scales,
}

/// The scales of keys and of values.
#[derive(Debug, Clone)]
enum Scales {
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

    /// Takes two fp8 tensors (`U8`) as the pages of a layer. A float is `code * scale`, with scale 1 until
    /// [`set_scales`](Self::set_scales).
    ///
    /// [`append_paged_kv`](crate::append_paged_kv) and [`rope_append_paged_kv`](crate::rope_append_paged_kv)
    /// round floats to fp8, [`gather_paged_kv`](crate::gather_paged_kv) converts fp8 to floats, and attention reads fp8 as
    /// it is: of queries of any type, in plans that know the [format](crate::PlanConfig::fp8).
    ///
    /// ```
    /// use burn::tensor::{DType, Device, Int, Tensor};
    /// use burn_flashinfer::{Fp8, KvLayout, KvPages, PageTable, SlotMapping, append_paged_kv, gather_paged_kv};
    ///
    /// # fn main() -> burn_flashinfer::Result<()> {
    /// let device = Device::default();
    /// // 8 pages of 16 tokens, 2 heads of 64 elements.
    /// let codes = || Tensor::<4, Int>::zeros([8, 16, 2, 64], (&device, DType::U8));
    /// let mut pages = KvPages::new_fp8(codes(), codes(), KvLayout::Nhd, Fp8::e4m3_of(&device))?;
    /// pages.set_scales(Tensor::from_floats([0.05], &device), Tensor::from_floats([0.01, 0.02], &device))?;
    ///
    /// let table = PageTable::new(&[0, 1], &[5], &[3], 16, 8, &device)?;
    /// let slots = SlotMapping::new(&table, &[Some(0); 3], &[0, 1, 2])?;
    /// let new = Tensor::<3>::full([3, 2, 64], 0.4, (&device, DType::F32));
    /// append_paged_kv(&mut pages, new.clone(), new, &slots)?;
    ///
    /// let (k, _v) = gather_paged_kv(&pages, &table, DType::F32)?;
    /// // 0.4 is 8 times 0.05.
    /// k.into_data().assert_approx_eq::<f32>(&Tensor::<3>::full([3, 2, 64], 0.4, &device).into_data(), Default::default());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If they are not `U8`, or as [`new`](Self::new).
    pub fn new_fp8(k: Tensor<4, Int>, v: Tensor<4, Int>, layout: KvLayout, format: Fp8) -> Result<Self> {
        Self::of_codes("KvPages::new_fp8", k, v, layout, format)
    }

    fn of_codes(
        op: &'static str,
        k: Tensor<4, Int>,
        v: Tensor<4, Int>,
        layout: KvLayout,
        format: Fp8,
    ) -> Result<Self> {
        check::codes(op, "k", &k)?;
        check::same_device(op, "v", &v.device(), &k.device())?;
        check::codes(op, "v", &v)?;
        pair(op, k.dims(), v.dims())?;
        let one = || Tensor::<1>::ones([1], (&k.device(), DType::F32));
        let meaning = Box::new(Meaning { format, scales: Scales::OfAll(one(), one()) });
        let pool = Pool::Codes { k, v, meaning };
        Ok(Self { pool, layout, pinned: false, clock: None })
    }

    /// [`new_fp8`](Self::new_fp8) with a scale for each token and head, which [`append_paged_kv`](crate::append_paged_kv)
    /// writes: f32, in the order of axes of the pages, without the last one.
    ///
    /// `[pages, page_size, kv_heads]` ([`KvLayout::Nhd`]) or `[pages, kv_heads, page_size]` ([`KvLayout::Hnd`]). No scale has to
    /// be known in advance then, and a token that is larger than others costs them no precision. A head of 128 elements takes
    /// 132 bytes instead of 128. [`rope_append_paged_kv`](crate::rope_append_paged_kv) rounds rotated keys to their own type
    /// before it rounds them to fp8.
    ///
    /// # Errors
    ///
    /// As [`new_fp8`](Self::new_fp8); if scales are not f32, of other shapes, on another device, or require a gradient.
    pub fn new_fp8_per_token(
        k: Tensor<4, Int>,
        v: Tensor<4, Int>,
        k_scales: Tensor<3>,
        v_scales: Tensor<3>,
        layout: KvLayout,
        format: Fp8,
    ) -> Result<Self> {
        const OP: &str = "KvPages::new_fp8_per_token";
        let mut pages = Self::of_codes(OP, k, v, layout, format)?;
        let ([pool, a, b, _], device) = (pages.dims().0, pages.device());
        let checked = |argument, scales: Tensor<3>| {
            check::same_device(OP, argument, &scales.device(), &device)?;
            check::f32s(OP, argument, &scales)?;
            if scales.dims() != [pool, a, b] {
                let expected = format!("[{pool}, {a}, {b}], as the pages");
                return Err(check::shape(OP, argument, &scales.dims(), expected));
            }
            Ok(scales.reshape([pool, a, b, 1]))
        };
        let scales = Scales::OfTokens(checked("k_scales", k_scales)?, checked("v_scales", v_scales)?);
        if let Pool::Codes { meaning, .. } = &mut pages.pool {
            meaning.scales = scales;
        }
        Ok(pages)
    }

    /// Sets the scales of fp8 keys and values: f32, `[1]` or one for each head. They also apply to the codes
    /// already in the pages. See [`Fp8`] on scales.
    ///
    /// # Errors
    ///
    /// If the pages hold no codes, or their tokens have [scales of their own](Self::new_fp8_per_token); if a scale is not f32, of another shape, on another device, or requires a gradient.
    pub fn set_scales(&mut self, k_scale: Tensor<1>, v_scale: Tensor<1>) -> Result<()> {
        const OP: &str = "KvPages::set_scales";
        let (heads, device) = (self.shape().kv_heads, self.device());
        let Pool::Codes { meaning, .. } = &mut self.pool else {
            let got = format!("{:?} pages", self.dtype());
            let expected = "pages of codes, of KvPages::new_fp8".into();
            return Err(Error::Dtype { op: OP, argument: "self", got, expected });
        };
        if let Scales::OfTokens(..) = meaning.scales {
            let got = "pages of codes with scales of their own for tokens".into();
            let expected = "pages of codes, of KvPages::new_fp8".into();
            return Err(Error::Dtype { op: OP, argument: "self", got, expected });
        }
        for (argument, scale) in [("k_scale", &k_scale), ("v_scale", &v_scale)] {
            check::same_device(OP, argument, &scale.device(), &device)?;
        }
        let k_scale = check::scales(OP, "k_scale", k_scale, heads)?;
        let v_scale = check::scales(OP, "v_scale", v_scale, heads)?;
        meaning.scales = Scales::OfAll(k_scale, v_scale);
        Ok(())
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

    /// The scales of each token's keys and of its values, if tokens [have some](Self::new_fp8_per_token): as they were given.
    pub fn token_scales(&self) -> Option<(Tensor<3>, Tensor<3>)> {
        let Pool::Codes { meaning, .. } = &self.pool else { return None };
        let Scales::OfTokens(k, v) = &meaning.scales else { return None };
        Some((k.clone().squeeze_dim(3), v.clone().squeeze_dim(3)))
    }

    /// Bytes of a token's scales, of its keys and values.
    pub(super) fn token_scale_bytes(&self) -> usize {
        match &self.pool {
            Pool::Codes { meaning, .. } if matches!(meaning.scales, Scales::OfTokens(..)) => {
                2 * size_of::<f32>() * self.shape().kv_heads
            }
            _ => 0,
        }
    }

    /// The fp8 format, if the pages are fp8.
    pub fn fp8(&self) -> Option<Fp8> {
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

    /// Keys and values, if they are numbers.
    ///
    /// # Errors
    ///
    /// If they are fp8.
    pub(crate) fn numbers(&self, op: &'static str) -> Result<(&Tensor<4>, &Tensor<4>)> {
        self.floats().ok_or_else(|| Error::Dtype {
            op,
            argument: "pages",
            got: self.fp8().map_or_else(String::new, |format| format!("codes of {format:?}")),
            expected: "F32, F16 or BF16 (gather_paged_kv makes them)".into(),
        })
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
fn pair(op: &'static str, k: [usize; 4], v: [usize; 4]) -> Result<()> {
    if k.contains(&0) {
        return Err(check::shape(op, "k", &k, "no empty axis"));
    }
    if v[..3] != k[..3] || v[3] == 0 {
        let [pages, rows, heads, _] = k;
        return Err(check::shape(op, "v", &v, format!("[{pages}, {rows}, {heads}, head_dim], as `k`")));
    }
    Ok(())
}
