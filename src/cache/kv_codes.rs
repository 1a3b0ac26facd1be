//! Pages of codes, and their scales.

use burn::tensor::{DType, Int, Tensor};

use super::kv_pages::{KvPages, Meaning, Pool, Scales, pair};
use crate::check;
use crate::error::{Error, Result};
use crate::types::{Code8, Fp8, KvLayout};

impl KvPages {
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
        Self::of_codes("KvPages::new_fp8", k, v, layout, format.into())
    }

    pub(super) fn of_codes(
        op: &'static str,
        k: Tensor<4, Int>,
        v: Tensor<4, Int>,
        layout: KvLayout,
        format: Code8,
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
        Self::per_token("KvPages::new_fp8_per_token", [k, v], [k_scales, v_scales], layout, format.into())
    }

    /// Pages of integers of 8 bits (`U8`, two's complement) with a scale for each token and head.
    ///
    /// Scales are those of [`new_fp8_per_token`](Self::new_fp8_per_token): `max |x| / 127`. Integers are rounded to the nearest,
    /// ties to even. That is nine times nearer than e4m3 comes to numbers near the largest, and farther from small ones.
    ///
    /// # Errors
    ///
    /// As [`new_fp8_per_token`](Self::new_fp8_per_token).
    pub fn new_int8(
        k: Tensor<4, Int>,
        v: Tensor<4, Int>,
        k_scales: Tensor<3>,
        v_scales: Tensor<3>,
        layout: KvLayout,
    ) -> Result<Self> {
        Self::per_token("KvPages::new_int8", [k, v], [k_scales, v_scales], layout, Code8::Int8)
    }

    pub(super) fn per_token(
        op: &'static str,
        [k, v]: [Tensor<4, Int>; 2],
        [k_scales, v_scales]: [Tensor<3>; 2],
        layout: KvLayout,
        format: Code8,
    ) -> Result<Self> {
        let mut pages = Self::of_codes(op, k, v, layout, format)?;
        let ([pool, a, b, _], device) = (pages.dims().0, pages.device());
        let checked = |argument, scales: Tensor<3>| {
            check::same_device(op, argument, &scales.device(), &device)?;
            check::f32s(op, argument, &scales)?;
            if scales.dims() != [pool, a, b] {
                let expected = format!("[{pool}, {a}, {b}], as the pages");
                return Err(check::shape(op, argument, &scales.dims(), expected));
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
    /// If the pages hold no codes, or their tokens have [scales of their own](Self::new_fp8_per_token); if a scale is not f32, of
    /// another shape, on another device, or requires a gradient.
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
}
