//! Writing keys and values into pages, and reading them back.

use burn::tensor::{DType, Tensor};

use crate::cache::{KvPages, PageTable, Says, SlotMapping};
use crate::check::{self, Floats, shape};
use crate::dispatch::IntoBackend;
use crate::error::{Error, Result};
use crate::extension::KvTensors;
use crate::indptr::upload;
use crate::memory;

/// Writes the keys and values of new tokens to their slots in the pages of a layer.
///
/// `k`: `[tokens, kv_heads, head_dim]`, `v`: `[tokens, kv_heads, head_dim_v]`, `slots`: one for each token.
/// Pages of floats have the type of `k` and `v`, which are copied bit for bit. For [fp8
/// pages](KvPages::new_fp8) the floats are divided by the [scale](crate::Fp8) and rounded. Pages [per
/// token](KvPages::new_fp8_per_token) get a scale for each head of a token as well: `max |x| / largest code`, and 1 of zeros.
///
/// It happens in place: nothing but the new rows is written and no page is copied, as long as `pages` is the
/// only owner of its two tensors. (If a clone of one is alive, that tensor is copied first, as Burn does
/// everywhere; not so if its cache is [pinned](crate::PagedKvCache::pin).)
///
/// # Errors
///
/// If shapes, types or devices do not fit together, or a slot is outside the pool; if the slots are of
/// another cache, or a sequence of theirs was freed, lost tokens or got other pages since ([`Error::Stale`]).
/// Nothing has been written then.
pub fn append_paged_kv(pages: &mut KvPages, k: Tensor<3>, v: Tensor<3>, slots: &SlotMapping) -> Result<()> {
    const OP: &str = "append_paged_kv";
    fits(OP, pages, &k, &v, slots)?;
    if !slots.is_empty() {
        let tokens = KvTensors::Floats(k.into_backend(), v.into_backend());
        pages.write(tokens, slots);
    }
    Ok(())
}

/// Refuses keys and values that do not fit pages or slots.
pub(super) fn fits(
    op: &'static str,
    pages: &KvPages,
    k: &Tensor<3>,
    v: &Tensor<3>,
    slots: &SlotMapping,
) -> Result<()> {
    let (pool, device) = (pages.shape(), pages.device());
    pages.check(op, "pages", &device)?;
    check::same_device(op, "k", &k.device(), &device)?;
    if pages.code().is_none() {
        check::same_dtype(op, "k", k.dtype(), pages.dtype())?;
    }
    Floats::first(op, "k", k)?.like("v", v)?;
    check::same_device(op, "slots", &slots.tensor.device(), &device)?;
    let tokens = slots.len();
    for (argument, dims, dim) in [("k", k.dims(), pool.k_dim), ("v", v.dims(), pool.v_dim)] {
        let expected = [tokens, pool.kv_heads, dim];
        if dims != expected {
            return Err(shape(op, argument, &dims, format!("{expected:?}, as `slots` and `pages` have it")));
        }
    }
    pages.check_pool(op, "slots", slots.page_size(), slots.pages_needed())?;
    pages.check_current(op, "slots", Says::Some, slots.stamp())
}

/// The keys and values of all tokens of a page table, one request after the other: `[tokens, kv_heads, head_dim]` and
/// `[tokens, kv_heads, head_dim_v]`.
///
/// Floats are copied bit for bit, and `dtype` is theirs. [Fp8](KvPages::new_fp8) is converted to floats of
/// type `dtype`: `code * scale` in f32, rounded once more, and infinite beyond the largest of `dtype`.
///
/// # Errors
///
/// If the table was made for another device, another page size, a larger pool or another cache, or is older
/// than a change of its sequences; if there is no memory for all tokens; if `dtype` is not that of the
/// numbers, or not one that the device takes; if a gradient is required.
pub fn gather_paged_kv(pages: &KvPages, table: &PageTable, dtype: DType) -> Result<(Tensor<3>, Tensor<3>)> {
    const OP: &str = "gather_paged_kv";
    let pool = pages.shape();
    pages.check(OP, "pages", &pages.device())?;
    check::float(OP, "dtype", dtype, &pages.device())?;
    if pages.code().is_none() {
        check::same_dtype(OP, "dtype", dtype, pages.dtype())?;
    }
    check::same_device(OP, "table", &table.device(), &pages.device())?;
    pages.check_pool(OP, "table", table.page_size(), table.pages_needed())?;
    pages.check_current(OP, "table", Says::All, table.stamp())?;
    let rows = memory::bytes([table.tokens(), pool.kv_heads, pool.k_dim.max(pool.v_dim), dtype.size()]);
    memory::on_device(OP, "table", [2, rows], &pages.device())?;
    let slots = table.slots(OP)?;
    if slots.is_empty() {
        let rows = |dim| Tensor::<3>::empty([0, pool.kv_heads, dim], (&pages.device(), dtype));
        return Ok((rows(pool.k_dim), rows(pool.v_dim)));
    }
    match pages.read(upload(slots, &pages.device()), dtype) {
        KvTensors::Floats(k, v) => Ok((pages.origin().tensor(k), pages.origin().tensor(v))),
        // A backend makes numbers where numbers are asked for.
        KvTensors::Codes(..) | KvTensors::Scaled(..) => Err(Error::Read {
            op: OP,
            argument: "pages",
            got: "codes".into(),
            expected: format!("numbers of type {dtype:?}"),
        }),
    }
}
