//! Writing new keys and values into pages.

use burn::{backend::Dispatch, tensor::Tensor};

use crate::check::{Floats, shape};
use crate::error::{Error, Result};
use crate::extension::FlashInferBackend;
use crate::kv_pages::KvPages;
use crate::page_table::SlotMapping;

/// Writes the keys and values of new tokens to their slots in the pages of a layer.
///
/// `k`: `[tokens, kv_heads, head_dim]`, `v`: `[tokens, kv_heads, head_dim_v]`, `slots`: one for each token. It happens in
/// place: nothing but the new rows is written and no page is copied, as long as `pages` is the only owner of its two
/// tensors. (If a clone of one is alive, that tensor is copied first, as Burn does everywhere; not so if its cache is
/// [pinned](crate::PagedKvCache::pin).)
///
/// # Errors
///
/// If shapes, types or devices do not fit together, or a slot is outside the pool. Nothing has been written then.
pub fn append_paged_kv(pages: &mut KvPages, k: Tensor<3>, v: Tensor<3>, slots: &SlotMapping) -> Result<()> {
    const OP: &str = "append_paged_kv";
    let pool = pages.shape();
    let floats = Floats::first(OP, "pages", pages.k())?;
    floats.like("pages", pages.v())?;
    floats.like("k", &k)?;
    floats.like("v", &v)?;
    floats.on_device("slots", &slots.tensor.device())?;
    let tokens = slots.len();
    for (argument, dims, dim) in [("k", k.dims(), pool.k_dim), ("v", v.dims(), pool.v_dim)] {
        let expected = [tokens, pool.kv_heads, dim];
        if dims != expected {
            return Err(shape(OP, argument, &dims, format!("{expected:?}, as `slots` and `pages` have it")));
        }
    }
    if slots.page_size() != pool.page_size {
        return Err(Error::Value {
            op: OP,
            argument: "slots",
            got: format!("of pages of {} tokens", slots.page_size()),
            expected: format!("pages of {} tokens, as `pages`", pool.page_size),
        });
    }
    if slots.pages_needed() > pool.pages {
        return Err(Error::Value {
            op: OP,
            argument: "slots",
            got: format!("naming page {}", slots.pages_needed() - 1),
            expected: format!("a page of the pool, below {}", pool.pages),
        });
    }
    if tokens == 0 {
        return Ok(());
    }
    let (layout, pinned) = (pages.layout(), pages.is_pinned());
    let slots = slots.tensor.clone().into_dispatch();
    pages.update(|k_pool, v_pool| {
        let (k_pool, v_pool) = Dispatch::append_paged_kv(
            k_pool.into_dispatch(),
            v_pool.into_dispatch(),
            k.into_dispatch(),
            v.into_dispatch(),
            slots,
            layout,
            pinned,
        );
        (Tensor::from_dispatch(k_pool), Tensor::from_dispatch(v_pool))
    });
    Ok(())
}
