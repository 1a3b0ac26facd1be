//! Writing tokens to pages and reading them back.

use burn::tensor::{DType, Element, Shape};
use burn_flex::{FlexTensor, Layout};

use super::float::Float;
use super::view::{self, Rows, dims, with_rows};
use crate::types::{Code8, KvLayout};

/// The fp8 format and scales of a pool: a float is `code * scale`, with a scale for all heads or one for
/// each.
pub(super) struct Codes {
    pub(super) format: Code8,
    pub(super) scales: Vec<f32>,
}

impl Codes {
    fn scale(&self, head: usize) -> f32 {
        self.scales[head.min(self.scales.len() - 1)]
    }

    /// Rounds the floats of a head to fp8.
    pub(super) fn encode<E: Float>(&self, numbers: &[E], codes: &mut [u8], head: usize) {
        let (factor, divisor) = match self.scale(head) {
            // The limit of small scales: all but 0 becomes infinite.
            scale if scale == 0.0 => (f32::MAX, f32::MIN_POSITIVE.copysign(scale)),
            scale if scale.is_finite() => (1.0, scale),
            _ => (f32::NAN, 1.0),
        };
        for (code, x) in codes.iter_mut().zip(numbers) {
            *code = self.format.encode(x.widen() * factor / divisor);
        }
    }

    /// And back.
    pub(super) fn decode<E: Float>(&self, codes: &[u8], numbers: &mut [E], head: usize) {
        let scale = self.scale(head);
        for (x, &code) in numbers.iter_mut().zip(codes) {
            *x = E::narrow(self.format.decode(code) * scale);
        }
    }
}

/// The places of a slot's heads in a pool.
struct Places {
    page_size: usize,
    heads: usize,
    width: usize,
    layout: KvLayout,
}

impl Places {
    fn of(pool: &FlexTensor, layout: KvLayout) -> Self {
        let [_, a, b, width] = dims(pool);
        let (page_size, heads) = if layout == KvLayout::Nhd { (a, b) } else { (b, a) };
        Self { page_size, heads, width, layout }
    }

    fn row(&self, slot: usize, head: usize) -> std::ops::Range<usize> {
        let (page, offset) = (slot / self.page_size, slot % self.page_size);
        let row = match self.layout {
            KvLayout::Nhd => slot * self.heads + head,
            KvLayout::Hnd => (page * self.heads + head) * self.page_size + offset,
        };
        row * self.width..(row + 1) * self.width
    }
}

/// Writes the rows of `new` to the slots of `pool`, as `write` makes them: in place if it has no other owner,
/// else in a copy of it.
pub(super) fn append<E, P>(
    pool: FlexTensor,
    new: FlexTensor,
    slots: &[i32],
    layout: KvLayout,
    write: impl Fn(&[E], &mut [P], usize),
) -> FlexTensor
where
    E: Element + bytemuck::Pod,
    P: Element + bytemuck::Pod,
{
    let mut pool = view::dense(pool);
    let places = Places::of(&pool, layout);
    let new = with_rows(new);
    let new: Rows<'_, E, 2> = Rows::of(&new);
    let rows: &mut [P] = pool.storage_mut();
    for (token, &slot) in slots.iter().enumerate() {
        let Ok(slot) = usize::try_from(slot) else { continue };
        for head in 0..places.heads {
            write(new.row([token, head]), &mut rows[places.row(slot, head)], head);
        }
    }
    pool
}

/// The rows at the slots of `pool`, as `read` makes them.
pub(super) fn gather<P, E>(
    pool: FlexTensor,
    slots: &[i32],
    layout: KvLayout,
    read: impl Fn(&[P], &mut [E], usize),
) -> FlexTensor
where
    P: Element + bytemuck::Pod,
    E: Element + bytemuck::Pod + Default,
{
    let pool = view::dense(pool);
    let places = Places::of(&pool, layout);
    let rows: &[P] = pool.storage();
    let mut gathered = vec![E::default(); slots.len() * places.heads * places.width];
    let mut heads = gathered.chunks_exact_mut(places.width);
    for &slot in slots {
        for (head, to) in (0..places.heads).zip(&mut heads) {
            if let Ok(slot) = usize::try_from(slot) {
                read(&rows[places.row(slot, head)], to, head);
            }
        }
    }
    let shape = Shape::from([slots.len(), places.heads, places.width]);
    FlexTensor::new(burn::tensor::Bytes::from_elems(gathered), Layout::contiguous(shape), E::dtype())
}

/// Copies elements as they are.
pub(super) fn copied<E: Copy>(from: &[E], to: &mut [E], _head: usize) {
    to.copy_from_slice(from);
}

/// Calls a function for the type of the elements that are copied.
macro_rules! by_element {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            DType::F16 => $function::<burn::tensor::f16, burn::tensor::f16>($($argument),*),
            DType::BF16 => $function::<burn::tensor::bf16, burn::tensor::bf16>($($argument),*),
            DType::U8 => $function::<u8, u8>($($argument),*),
            _ => $function::<f32, f32>($($argument),*),
        }
    };
}

/// Bit for bit.
pub(super) fn append_copies(
    pool: FlexTensor,
    new: FlexTensor,
    slots: &[i32],
    layout: KvLayout,
) -> FlexTensor {
    by_element!(new.dtype(), append(pool, new, slots, layout, copied))
}

/// Bit for bit.
pub(super) fn gather_copies(pool: FlexTensor, slots: &[i32], layout: KvLayout) -> FlexTensor {
    by_element!(pool.dtype(), gather(pool, slots, layout, copied))
}

/// Appends floats to fp8 pages.
pub(super) fn append_codes<E: Float>(
    pool: FlexTensor,
    new: FlexTensor,
    slots: &[i32],
    layout: KvLayout,
    codes: &Codes,
) -> FlexTensor {
    append::<E, u8>(pool, new, slots, layout, |from, to, head| codes.encode(from, to, head))
}

/// Appends floats to fp8 pages with a scale for each token and head. Returns pages and scales.
pub(super) fn append_scaled<E: Float>(
    pool: FlexTensor,
    scales: FlexTensor,
    new: FlexTensor,
    slots: &[i32],
    layout: KvLayout,
    format: Code8,
) -> (FlexTensor, FlexTensor) {
    let pool = append::<E, u8>(pool, new.clone(), slots, layout, |from, to, _| {
        Codes { format, scales: vec![scale_for(from, format)] }.encode(from, to, 0);
    });
    // The rows of scales have one element.
    let mut scales = view::dense(scales);
    let places = Places::of(&scales, layout);
    let new = with_rows(new);
    let new: Rows<'_, E, 2> = Rows::of(&new);
    let rows: &mut [f32] = scales.storage_mut();
    for (token, &slot) in slots.iter().enumerate() {
        let Ok(slot) = usize::try_from(slot) else { continue };
        for head in 0..places.heads {
            rows[places.row(slot, head)].fill(scale_for(new.row([token, head]), format));
        }
    }
    (pool, scales)
}

/// The least scale that reaches the largest of these numbers; 1 if that is 0, and NaN if one of them is.
fn scale_for<E: Float>(numbers: &[E], format: Code8) -> f32 {
    let largest = numbers.iter().map(|x| x.widen().to_bits() & 0x7fff_ffff).max().unwrap_or_default();
    let scale = f32::from_bits(largest) / format.max();
    if scale < f32::MIN_POSITIVE { 1.0 } else { scale }
}

/// Codes `[tokens, heads, dim]` times their scales `[tokens, heads, 1]`.
pub(super) fn rescaled<E: Float>(codes: FlexTensor, scales: FlexTensor, format: Code8) -> FlexTensor {
    let shape: [usize; 3] = dims(&codes);
    let width = shape[2].max(1);
    let rows = codes.storage::<u8>().chunks_exact(width).zip(scales.storage::<f32>());
    let numbers =
        rows.flat_map(|(row, &scale)| row.iter().map(move |&x| E::narrow(format.decode(x) * scale)));
    view::tensor(numbers.collect(), shape, E::dtype())
}

/// Codes, which become numbers.
pub(super) fn gather_codes<E: Float>(
    pool: FlexTensor,
    slots: &[i32],
    layout: KvLayout,
    codes: &Codes,
) -> FlexTensor {
    gather::<u8, E>(pool, slots, layout, |from, to, head| codes.decode(from, to, head))
}

/// Rounds a contiguous tensor of f32 to fp8, with a scale for each index of the axis before the last, or one
/// for all.
pub(super) fn quantized(wide: FlexTensor, codes: &Codes) -> FlexTensor {
    let shape = wide.layout().shape().clone();
    let [heads, dim] = [2, 1].map(|back| shape.as_slice()[shape.num_dims() - back]);
    let mut quantized = vec![0_u8; shape.num_elements()];
    if dim > 0 {
        let rows = wide.storage::<f32>().chunks_exact(dim).zip(quantized.chunks_exact_mut(dim));
        for (row, (numbers, to)) in rows.enumerate() {
            codes.encode(numbers, to, row % heads);
        }
    }
    FlexTensor::new(burn::tensor::Bytes::from_elems(quantized), Layout::contiguous(shape), DType::U8)
}
