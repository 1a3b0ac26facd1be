//! The largest scores of each row as slots of a page pool, or as rows of a ragged tensor.

use burn::backend::Dispatch;
use burn::tensor::{Bool, DType, Device, Int, Tensor};

use super::sample::rows;
use crate::check::{Floats, most_top_k, same_device, shape, wide_integers};
use crate::dispatch::IntoBackend;
use crate::error::{Error, Result};
use crate::extension::FlashInferBackend;
use crate::indptr::index;
use crate::ints::saturated;
use crate::memory;

/// The slots of the `k` keys of each row with the largest scores, for [`TokenSparsePlan`](crate::TokenSparsePlan):
/// `[rows, k]` of type i32, with -1 behind the last.
///
/// `scores`: `[rows, max_len]`, of f32, f16 or bf16; those of row `r` end at `lengths[r]`, and what is behind them counts for
/// nothing. Key `j` of row `r` is in slot `page_table[b, j / page_size] · page_size + j % page_size`, with `b =
/// row_to_request[r]`, or `b = r` without that. `page_table`: `[requests, max_pages]`; `lengths`, `row_to_request`: `[rows]`.
///
/// The keys of the largest scores come first, in the order of [`top_k`](super::top_k). A row of up to `k` keys has all of
/// them, in their own order. A length beyond the scores or the pages is cut to them, one below 0 is 0, and a row of a request
/// that there is not has no keys. (FlashInfer's `top_k_page_table_transform`.)
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use burn_flashinfer::sampling::top_k_page_table_transform;
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let scores = Tensor::<2>::from_data([[0.5, 2.0, 1.0, 9.0], [1.0, 2.0, 9.0, 9.0]], &device);
/// let page_table = Tensor::<2, Int>::from_data([[7, 3], [4, -1]], &device);
/// let lengths = Tensor::<1, Int>::from_data([3, 2], &device);
/// let slots = top_k_page_table_transform(scores, page_table, lengths, 2, None, 2)?;
/// // Key 1 is in page 7, key 2 in page 3; the other row has no more than two.
/// assert_eq!(slots.into_data().iter::<i32>().collect::<Vec<_>>(), [15, 6, 8, 9]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// If shapes or devices do not fit together; if `k` or `page_size` is 0, or `k` more than the device can sort (2048 on CubeCL
/// devices) and fewer than the scores of a row; if the type is none of these, or the device has no integers of 64 bits; if a
/// gradient is required.
pub fn top_k_page_table_transform(
    scores: Tensor<2>,
    page_table: Tensor<2, Int>,
    lengths: Tensor<1, Int>,
    k: usize,
    row_to_request: Option<Tensor<1, Int>>,
    page_size: usize,
) -> Result<Tensor<2, Int>> {
    const OP: &str = "top_k_page_table_transform";
    let floats = check_scores(OP, &scores, k)?;
    let device = scores.device().inner();
    let [row_count, max_len] = scores.dims();
    let [requests, max_pages] = page_table.dims();
    if page_size == 0 {
        let (got, expected) = ("0".into(), "at least 1".into());
        return Err(Error::Value { op: OP, argument: "page_size", got, expected });
    }
    same_device(OP, "page_table", &page_table.device(), &device)?;
    let entries = index(OP, "page_table", 0, requests.saturating_mul(max_pages))?;
    if entries == 0 {
        return Err(shape(OP, "page_table", &[requests, max_pages], "at least one request and one page"));
    }
    let page_size_i32 = index(OP, "page_size", 0, page_size)?;
    let lengths = per_row(OP, "lengths", lengths, row_count, &device)?;
    let of_rows = match row_to_request {
        Some(requests) => per_row(OP, "row_to_request", requests, row_count, &device)?,
        None if requests != row_count => {
            let expected = format!("a row for each of the {row_count} rows of `scores`");
            return Err(shape(OP, "page_table", &[requests, max_pages], expected));
        }
        None => counted(row_count, &device),
    };
    let room = max_len.min(max_pages.saturating_mul(page_size));
    // The lengths of rows without a request are 0, so that their places may be any.
    let nobody = of_rows.clone().lower_elem(0).bool_or(of_rows.clone().greater_equal_elem(requests as i32));
    let lengths = lengths.mask_fill(nobody, 0).clamp(0, room as i32);
    let Chosen { ids, found } = chosen(scores.without_autodiff(), lengths, k);
    let [_, width] = ids.dims();
    // A place that is not found is not looked up beyond the table.
    let ids = ids.mask_fill(found.clone().bool_not(), 0);
    let first = of_rows.clamp(0, requests as i32 - 1).mul_scalar(max_pages as i32).reshape([row_count, 1]);
    let places = first.expand([row_count, width]) + ids.clone().div_scalar(page_size_i32);
    let pages = saturated(page_table.without_autodiff())
        .reshape([requests * max_pages])
        .gather(0, places.reshape([row_count * width]));
    let slots =
        pages.reshape([row_count, width]).mul_scalar(page_size_i32) + ids.remainder_scalar(page_size_i32);
    Ok(floats.origin.tensor(padded(slots, found, k).into_backend()))
}

/// The rows of the `k` keys of each row of `scores` with the largest scores in a tensor of keys one request after the other:
/// `[rows, k]` of type i32, with -1 behind the last.
///
/// Key `j` of row `r` is in row `offsets[r] + j`; `offsets`: `[rows]`. All else is as
/// [`top_k_page_table_transform`] has it. (FlashInfer's `top_k_ragged_transform`.)
///
/// # Errors
///
/// As [`top_k_page_table_transform`].
pub fn top_k_ragged_transform(
    scores: Tensor<2>,
    offsets: Tensor<1, Int>,
    lengths: Tensor<1, Int>,
    k: usize,
) -> Result<Tensor<2, Int>> {
    const OP: &str = "top_k_ragged_transform";
    let floats = check_scores(OP, &scores, k)?;
    let device = scores.device().inner();
    let [row_count, max_len] = scores.dims();
    let offsets = per_row(OP, "offsets", offsets, row_count, &device)?;
    let lengths = per_row(OP, "lengths", lengths, row_count, &device)?.clamp(0, max_len as i32);
    let Chosen { ids, found } = chosen(scores.without_autodiff(), lengths, k);
    let [_, width] = ids.dims();
    let rows = offsets.reshape([row_count, 1]).expand([row_count, width]) + ids;
    Ok(floats.origin.tensor(padded(rows, found, k).into_backend()))
}

/// Checks the scores, and that the device can choose `k` of them.
fn check_scores(op: &'static str, scores: &Tensor<2>, k: usize) -> Result<Floats> {
    let floats = Floats::first(op, "scores", scores)?;
    rows(op, "scores", scores)?;
    let device = scores.device();
    wide_integers(op, "scores", &device)?;
    let [row_count, max_len] = scores.dims();
    let refuse = |expected| Err(Error::Value { op, argument: "k", got: k.to_string(), expected });
    if k == 0 {
        return refuse("at least 1".into());
    }
    if let Some(most) = most_top_k(&device)
        && k > most
        && k < max_len
    {
        return refuse(format!("at most {most} on {device:?}, or {max_len} for all scores"));
    }
    memory::on_device(op, "k", [1, memory::bytes([row_count, k, size_of::<i32>()])], &device)?;
    Ok(floats)
}

/// Keys of each row, at most `k`, and true for those that there are.
struct Chosen {
    ids: Tensor<2, Int>,
    found: Tensor<2, Bool>,
}

/// The keys of the largest scores. `lengths` are within the rows.
fn chosen(scores: Tensor<2>, lengths: Tensor<1, Int>, k: usize) -> Chosen {
    let device = scores.device();
    let [row_count, max_len] = scores.dims();
    let width = k.min(max_len);
    if row_count == 0 {
        let ids = Tensor::empty([0, width], (&device, DType::I32));
        return Chosen { found: ids.clone().bool(), ids };
    }
    let place = |len: usize| counted(len, &device).reshape([1, len]).expand([row_count, len]);
    let lengths = |len: usize| lengths.clone().reshape([row_count, 1]).expand([row_count, len]);
    let own_order = place(width);
    let ids = if k >= max_len {
        own_order
    } else {
        // NaN comes after all scores, and after those that are NaN as well.
        let behind = place(max_len).greater_equal(lengths(max_len));
        let scores = scores.mask_fill(behind, f32::NAN);
        let (_, ids) = Dispatch::top_k(scores.into_backend(), k);
        let all = lengths(width).lower_equal_elem(k as i32);
        Tensor::<2, Int>::from_dispatch(ids).mask_where(all, own_order)
    };
    let found = ids.clone().lower(lengths(width));
    Chosen { ids, found }
}

/// Rows of `k` numbers, -1 where none was found.
fn padded(numbers: Tensor<2, Int>, found: Tensor<2, Bool>, k: usize) -> Tensor<2, Int> {
    let [row_count, width] = numbers.dims();
    let numbers = numbers.mask_fill(found.bool_not(), -1);
    if width == k {
        return numbers;
    }
    let none = Tensor::full([row_count, k - width], -1, (&numbers.device(), DType::I32));
    Tensor::cat(vec![numbers, none], 1)
}

/// 0, 1, 2 and so on.
fn counted(len: usize, device: &Device) -> Tensor<1, Int> {
    Tensor::arange(0..len as i64, (device, DType::I32))
}

/// A number for each row.
fn per_row(
    op: &'static str,
    argument: &'static str,
    numbers: Tensor<1, Int>,
    row_count: usize,
    device: &Device,
) -> Result<Tensor<1, Int>> {
    same_device(op, argument, &numbers.device(), device)?;
    if numbers.dims() != [row_count] {
        let expected = format!("[{row_count}], one for each row of `scores`");
        return Err(shape(op, argument, &numbers.dims(), expected));
    }
    Ok(saturated(numbers.without_autodiff()))
}
