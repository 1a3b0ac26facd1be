//! Writing new keys and values into pages.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use crate::grid::elementwise;
use crate::tensor::{KvLayout, Result, addresses, alignment, by_slot, contiguous, rows, shape, vector};

const KERNEL: &str = "append_paged_kv";

/// `pool[slot(t) / page_size, slot(t) % page_size] = new[t]` for keys and values. A unit moves one vector of each.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn append_paged_kv<F: Float, N: Size>(
    k_pool: &mut Tensor<Vector<F, N>>,
    v_pool: &mut Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    slots: &[i32],
    page_size: usize,
    columns: usize,
    total: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let column = ABSOLUTE_POS % columns * N::value();
    let head = ABSOLUTE_POS / columns % k.shape(1);
    let token = ABSOLUTE_POS / columns / k.shape(1);
    // A negative slot pads the batch.
    if slots[token] >= 0 {
        let slot = usize::cast_from(slots[token]);
        let (page, offset) = (slot / page_size, slot % page_size);
        if column < k.shape(2) {
            let to = page * k_pool.stride(0) + offset * k_pool.stride(1) + head * k_pool.stride(2) + column;
            let from = token * k.stride(0) + head * k.stride(1) + column;
            k_pool[to / N::value()] = k[from / N::value()];
        }
        if column < v.shape(2) {
            let to = page * v_pool.stride(0) + offset * v_pool.stride(1) + head * v_pool.stride(2) + column;
            let from = token * v.stride(0) + head * v.stride(1) + column;
            v_pool[to / N::value()] = v[from / N::value()];
        }
    }
}

/// New keys and values, and the pools that take them.
pub struct Append {
    /// Pages of keys, written in place.
    pub k_pool: TensorBinding,
    /// Pages of values, written in place.
    pub v_pool: TensorBinding,
    /// `[tokens, kv_heads, k_dim]`.
    pub k: TensorBinding,
    /// `[tokens, kv_heads, v_dim]`.
    pub v: TensorBinding,
    /// `[tokens]` of `i32`, contiguous: `page * page_size + offset` for each token, negative to skip it.
    pub slots: TensorBinding,
    /// The order of the axes of a page.
    pub layout: KvLayout,
}

/// Writes token `t` to slot `slots[t]`. The slots are trusted to lie in the pools, no two being the same.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, append: Append, dtype: ElemType) -> Result<()> {
    let Append { k_pool, v_pool, k, v, slots, layout } = append;
    for (argument, tensor, rank) in
        [("k_pool", &k_pool, 4), ("v_pool", &v_pool, 4), ("k", &k, 3), ("v", &v, 3)]
    {
        rows(KERNEL, argument, tensor, rank)?;
    }
    let (k_pool, v_pool) = (by_slot(k_pool, layout), by_slot(v_pool, layout));
    let [tokens, heads, k_dim] = [k.shape[0], k.shape[1], k.shape[2]];
    let v_dim = v.shape[2];
    if v.shape.to_vec() != [tokens, heads, v_dim] {
        return Err(shape(KERNEL, "v", &v, format!("[{tokens}, {heads}, v_dim], as `k`")));
    }
    let page_size = k_pool.shape[1];
    for (argument, pool, dim) in [("k_pool", &k_pool, k_dim), ("v_pool", &v_pool, v_dim)] {
        if pool.shape.to_vec() != [k_pool.shape[0], page_size, heads, dim] {
            return Err(shape(
                KERNEL,
                argument,
                pool,
                format!("pages of {page_size} slots of {heads} x {dim}"),
            ));
        }
    }
    contiguous(KERNEL, "slots", &slots, &[tokens])?;
    if tokens * heads * k_dim * v_dim * k_pool.size() == 0 {
        return Ok(());
    }

    let align = [&k_pool, &v_pool, &k, &v].map(alignment).into_iter().min().unwrap_or(1);
    let width = vector(client, dtype, &[k_dim, v_dim], align);
    let columns = k_dim.max(v_dim) / width;
    let total = tokens * heads * columns;
    let (count, dim) = elementwise(KERNEL, client, total)?;
    let size = dtype.size();
    let address = addresses(&[(&k_pool, size), (&v_pool, size), (&k, size), (&v, size)]);
    // SAFETY: a unit beyond `total` stops; below it token, head and column are within `k` or `v`, as the guards on the
    // column see to. Page and offset are within the pools by the contract on slots. The width divides every offset.
    unsafe {
        append_paged_kv::launch_unchecked(
            client,
            count,
            dim,
            address,
            width,
            k_pool.into_tensor_arg(),
            v_pool.into_tensor_arg(),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            slots.into_buffer_arg(),
            page_size,
            columns,
            total,
            dtype,
        );
    }
    Ok(())
}
