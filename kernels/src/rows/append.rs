//! Writes of new keys and values into pages, and reads of them.

use cubecl::{client::Client, ir::ElemType, prelude::*, std::FastDivmod};

use crate::code8::{Code, decode, divisor, element_type, encode, scale_of};
use crate::device::grid::elementwise;
use crate::device::tensor::{Result, addresses, alignment, contiguous, rows, shape, vector};
use crate::math::{narrow, widen};
use crate::rows::pages::{Pools, row_of, unzip};

/// The direction of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    /// Into pages.
    Append,
    /// Out of pages.
    Gather,
}

/// `pool[slot(t) / page_size, slot(t) % page_size] = tokens[t]` for keys and values, or the reverse. A unit
/// copies one vector of each.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn move_tokens<F: Numeric, E: Numeric, N: Size>(
    k_pool: &mut Tensor<Vector<E, N>>,
    v_pool: &mut Tensor<Vector<E, N>>,
    k: &mut Tensor<Vector<F, N>>,
    v: &mut Tensor<Vector<F, N>>,
    slots: &[i32],
    k_scale: &ComptimeOption<Box<[f32]>>,
    v_scale: &ComptimeOption<Box<[f32]>>,
    page_size: FastDivmod<usize>,
    columns: FastDivmod<usize>,
    heads: FastDivmod<usize>,
    total: usize,
    #[comptime] way: Way,
    #[comptime] k_code: Option<Code>,
    #[comptime] v_code: Option<Code>,
    #[define(F, E)] _dtypes: [ElemType; 2],
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let (row, column) = columns.div_mod(ABSOLUTE_POS);
    let (token, head) = heads.div_mod(row);
    let column = column * N::value();
    // A negative slot pads the batch.
    if slots[token] >= 0 {
        let slot = usize::cast_from(slots[token]);
        let (k_scale, v_scale) = (scale_of(k_scale, head, k_code), scale_of(v_scale, head, v_code));
        move_vector::<F, E, N>(k_pool, k, slot, token, head, column, k_scale, page_size, way, k_code);
        move_vector::<F, E, N>(v_pool, v, slot, token, head, column, v_scale, page_size, way, v_code);
    }
}

#[allow(clippy::too_many_arguments, reason = "it stands for two lines of a kernel")]
#[cube]
fn move_vector<F: Numeric, E: Numeric, N: Size>(
    pool: &mut Tensor<Vector<E, N>>,
    tokens: &mut Tensor<Vector<F, N>>,
    slot: usize,
    token: usize,
    head: usize,
    column: usize,
    scale: f32,
    page_size: FastDivmod<usize>,
    #[comptime] way: Way,
    #[comptime] code: Option<Code>,
) {
    // The widths of keys and values may differ.
    if column < tokens.shape(2) {
        let row = row_of(slot, head, page_size, pool.stride(0), pool.stride(1), pool.stride(2));
        let there = (row + column) / N::value();
        let here = (token * tokens.stride(0) + head * tokens.stride(1) + column) / N::value();
        #[comptime]
        match (way, code) {
            // A copy bit for bit.
            (Way::Append, None) => pool[there] = Vector::cast_from(tokens[here]),
            (Way::Gather, None) => tokens[here] = Vector::cast_from(pool[there]),
            (Way::Append, Some(_)) => {
                pool[there] = encode::<E, N>(widen::<F, N>(tokens[here]), &divisor(scale), code);
            }
            (Way::Gather, Some(_)) => {
                let x = decode::<E, N>(pool[there], code) * Vector::new(scale);
                tokens[here] = narrow::<F, N>(x);
            }
        }
    }
}

/// Keys and values of tokens, and the pages that hold them.
pub struct Tokens {
    /// The pages.
    pub pools: Pools,
    /// `[tokens, kv_heads, k_dim]`.
    pub k: TensorBinding,
    /// `[tokens, kv_heads, v_dim]`.
    pub v: TensorBinding,
    /// `[tokens]` of `i32`, contiguous: `page * page_size + offset` for each token, negative to skip it.
    pub slots: TensorBinding,
}

impl Tokens {
    /// These tokens, and the pages by slot, if they fit each other.
    pub(crate) fn checked(self, kernel: &'static str) -> Result<Self> {
        let Self { pools, k, v, slots } = self;
        rows(kernel, "k", &k, 3)?;
        rows(kernel, "v", &v, 3)?;
        let [count, heads, k_dim] = [k.shape[0], k.shape[1], k.shape[2]];
        let v_dim = v.shape[2];
        if v.shape.to_vec() != [count, heads, v_dim] {
            return Err(shape(kernel, "v", &v, format!("[{count}, {heads}, v_dim], as `k`")));
        }
        let pools = pools.by_slot(kernel, heads, [k_dim, v_dim])?;
        contiguous(kernel, "slots", &slots, &[count])?;
        Ok(Self { pools, k, v, slots })
    }
}

/// Writes token `t` of `k` and `v` to slot `slots[t]` of the pages: rounded if the pages are fp8, else bit
/// for bit.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
///
/// # Safety
///
/// Each of `slots` is negative or below pages times slots of a page, and no two from 0 on are the same.
pub unsafe fn append(client: &Client, tokens: Tokens, dtype: ElemType) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { launch("append_paged_kv", Way::Append, client, tokens, dtype) }
}

/// Reads slot `slots[t]` of the pages into token `t` of `k` and `v`, which are of type `dtype`.
///
/// # Errors
///
/// As [`append`].
///
/// # Safety
///
/// Each of `slots` is negative or below pages times slots of a page.
pub unsafe fn gather(client: &Client, tokens: Tokens, dtype: ElemType) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { launch("gather_paged_kv", Way::Gather, client, tokens, dtype) }
}

/// # Safety
///
/// As [`append`] or [`gather`], by the way.
unsafe fn launch(
    kernel: &'static str,
    way: Way,
    client: &Client,
    tokens: Tokens,
    dtype: ElemType,
) -> Result<()> {
    let Tokens { pools, k, v, slots } = tokens.checked(kernel)?;
    let [count, heads, k_dim, v_dim] = [k.shape[0], k.shape[1], k.shape[2], v.shape[2]];
    // The sizes, not their product, which can wrap to 0.
    if [count, heads, k_dim, v_dim, pools.k.size()].contains(&0) {
        return Ok(());
    }

    let align = [&pools.k, &pools.v, &k, &v].map(alignment).into_iter().min().unwrap_or(1);
    let width = vector(client, dtype, &[k_dim, v_dim], align);
    let columns = k_dim.max(v_dim) / width;
    let total = count * heads * columns;
    let (cubes, dim) = elementwise(kernel, client, total)?;
    let element = element_type(pools.quantized.is_some(), dtype);
    let [size, page_element] = [dtype.size(), element.size()];
    let address = addresses(&[(&pools.k, page_element), (&pools.v, page_element), (&k, size), (&v, size)]);
    let page_size = pools.k.shape[1];
    let [(k_code, k_scale), (v_code, v_scale)] = unzip(pools.quantized, client);
    // SAFETY: a unit beyond `total` stops. Below it token, head and column are within `k` or `v`, by the
    // guards on the column. Page and offset are within the pools by the contract on slots. The width divides
    // every offset.
    unsafe {
        move_tokens::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            width,
            pools.k.into_tensor_arg(),
            pools.v.into_tensor_arg(),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            slots.into_buffer_arg(),
            k_scale.into(),
            v_scale.into(),
            page_size,
            columns,
            heads,
            total,
            way,
            k_code,
            v_code,
            [dtype, element],
        );
    }
    Ok(())
}
