//! Writes of new keys and values into pages of codes with a scale for each token and head, and reads of them.

use cubecl::{client::Client, ir::ElemType, prelude::*, std::FastDivmod};

use crate::code8::{Code, Code8, decode, divisor, encode};
use crate::device::tensor::{Result, addresses, alignment, by_slot, rows, shape, vector};
use crate::math::{narrow, widen};
use crate::rows::append::{Tokens, Way};
use crate::rows::pages::row_of;
use crate::rows::quantize::{largest_of, scale_of_largest};
use crate::rows::row_group::{RowGroup, row_max};

/// Codes and scales of pages, by slot.
#[derive(CubeType, CubeLaunch)]
struct Scaled<N: Size> {
    /// `[pages, slots, kv_heads, head_dim]`.
    codes: OwnedTensor<Vector<u8, N>>,
    /// `[pages, slots, kv_heads, 1]`.
    scales: OwnedTensor<f32>,
}

/// The place of a head of a token.
#[derive(CubeType)]
struct Head {
    token: usize,
    head: usize,
    slot: usize,
    /// False for a unit without a row, and for a token without a slot.
    exists: bool,
}

/// `scale = max |x| / largest code`, `code = x / scale` to the nearest, for each head of each token; or the reverse. `U` units
/// own a head: unit `u` takes the vectors `u, u + U, ..` of keys and of values.
#[cube(launch_unchecked, address_type = "dynamic")]
fn move_scaled<F: Numeric, N: Size>(
    k_pool: &mut Scaled<N>,
    v_pool: &mut Scaled<N>,
    k: &mut Tensor<Vector<F, N>>,
    v: &mut Tensor<Vector<F, N>>,
    slots: &[i32],
    page_size: FastDivmod<usize>,
    heads: FastDivmod<usize>,
    row_count: usize,
    #[comptime] way: Way,
    #[comptime] row_group: RowGroup,
    #[comptime] code: Option<Code>,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS as usize % row_group.units;
    let row = CUBE_POS * row_group.rows + UNIT_POS as usize / row_group.units;
    // Units without a row take part in shuffles, as if they had the last.
    let (token, head) = heads.div_mod(min(row, row_count - 1));
    let slot = slots[token];
    // A negative slot pads the batch.
    let at = Head { token, head, slot: usize::cast_from(max(slot, 0)), exists: row < row_count && slot >= 0 };
    move_head::<F, N>(k_pool, k, &at, unit, page_size, way, row_group, code);
    move_head::<F, N>(v_pool, v, &at, unit, page_size, way, row_group, code);
}

#[allow(clippy::too_many_arguments, reason = "it stands for two lines of a kernel")]
#[cube]
fn move_head<F: Numeric, N: Size>(
    pool: &mut Scaled<N>,
    tokens: &mut Tensor<Vector<F, N>>,
    at: &Head,
    unit: usize,
    page_size: FastDivmod<usize>,
    #[comptime] way: Way,
    #[comptime] row_group: RowGroup,
    #[comptime] code: Option<Code>,
) {
    let (codes, scales) = (&mut pool.codes, &mut pool.scales);
    let here = (at.token * tokens.stride(0) + at.head * tokens.stride(1)) / N::value();
    let there = row_of(at.slot, at.head, page_size, codes.stride(0), codes.stride(1), codes.stride(2));
    let there = there / N::value();
    let of_scale = row_of(at.slot, at.head, page_size, scales.stride(0), scales.stride(1), scales.stride(2));
    let vectors = tokens.shape(2) / N::value();
    let turns = vectors.div_ceil(row_group.units);
    #[comptime]
    match way {
        Way::Append => {
            let mut largest = 0u32.runtime();
            for turn in 0..turns {
                let i = unit + turn * row_group.units;
                if i < vectors {
                    largest = largest_of::<N>(widen::<F, N>(tokens[here + i]), largest);
                }
            }
            let scale = scale_of_largest(row_max(largest, unit, row_group), code);
            let by = divisor(scale);
            if at.exists {
                if unit == 0 {
                    scales[of_scale] = scale;
                }
                for turn in 0..turns {
                    let i = unit + turn * row_group.units;
                    if i < vectors {
                        codes[there + i] = encode::<u8, N>(widen::<F, N>(tokens[here + i]), &by, code);
                    }
                }
            }
        }
        Way::Gather => {
            if at.exists {
                let scale = scales[of_scale];
                for turn in 0..turns {
                    let i = unit + turn * row_group.units;
                    if i < vectors {
                        let x = decode::<u8, N>(codes[there + i], code) * Vector::new(scale);
                        tokens[here + i] = narrow::<F, N>(x);
                    }
                }
            }
        }
    }
}

/// The scales of pages, `[pages, page_size, kv_heads, 1]` of f32 or in the other order of axes, and the format of the codes.
pub struct TokenScales {
    /// The format.
    pub format: Code8,
    /// Those of keys.
    pub k: TensorBinding,
    /// Those of values.
    pub v: TensorBinding,
}

/// Writes token `t` of `k` and `v` to slot `slots[t]` of the pages: each head rounded to codes with the least scale that
/// reaches its largest number, which is written as well.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
///
/// # Safety
///
/// Each of `slots` is negative or below pages times slots of a page, and no two from 0 on are the same.
pub unsafe fn append_scaled(
    client: &Client,
    tokens: Tokens,
    scales: TokenScales,
    dtype: ElemType,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { launch("append_paged_kv", Way::Append, client, tokens, scales, dtype) }
}

/// Reads slot `slots[t]` of the pages into token `t` of `k` and `v`, which are of type `dtype`.
///
/// # Errors
///
/// As [`append_scaled`].
///
/// # Safety
///
/// Each of `slots` is negative or below pages times slots of a page.
pub unsafe fn gather_scaled(
    client: &Client,
    tokens: Tokens,
    scales: TokenScales,
    dtype: ElemType,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { launch("gather_paged_kv", Way::Gather, client, tokens, scales, dtype) }
}

/// # Safety
///
/// As [`append_scaled`] or [`gather_scaled`], by the way.
unsafe fn launch(
    kernel: &'static str,
    way: Way,
    client: &Client,
    tokens: Tokens,
    scales: TokenScales,
    dtype: ElemType,
) -> Result<()> {
    let layout = tokens.pools.layout;
    let Tokens { pools, k, v, slots } = tokens.checked(kernel)?;
    let [count, heads, k_dim, v_dim] = [k.shape[0], k.shape[1], k.shape[2], v.shape[2]];
    if let Some(quantized) = pools.quantized {
        return Err(shape(kernel, "k_scale", &quantized.k_scale, "none, beside those of tokens"));
    }
    let TokenScales { format, k: k_scales, v: v_scales } = scales;
    let wanted = [pools.k.shape[0], pools.k.shape[1], heads, 1];
    let of_slots = |argument, scales: TensorBinding| {
        rows(kernel, argument, &scales, 4)?;
        let scales = by_slot(scales, layout);
        if scales.shape.to_vec() == wanted {
            Ok(scales)
        } else {
            Err(shape(kernel, argument, &scales, format!("{wanted:?}, as the pages")))
        }
    };
    let (k_scales, v_scales) = (of_slots("k_scales", k_scales)?, of_slots("v_scales", v_scales)?);
    // The sizes, not their product, which can wrap to 0.
    if [count, heads, k_dim, v_dim, pools.k.size()].contains(&0) {
        return Ok(());
    }

    let align = [&pools.k, &pools.v, &k, &v].map(alignment).into_iter().min().unwrap_or(1);
    let width = vector(client, dtype, &[k_dim, v_dim], align);
    let row_count = count * heads;
    let vectors = k_dim.max(v_dim) / width;
    let (row_group, cubes, dim) = RowGroup::of_neighbours(kernel, client, row_count, vectors)?;
    let size = dtype.size();
    let address =
        addresses(&[(&pools.k, 1), (&pools.v, 1), (&k_scales, 4), (&v_scales, 4), (&k, size), (&v, size)]);
    let page_size = pools.k.shape[1];
    let scaled = |pool: TensorBinding, scales: TensorBinding| {
        ScaledLaunch::new(pool.into_tensor_arg(), scales.into_tensor_arg())
    };
    // SAFETY: a unit without a row reads the last one and writes none. Token and head of a row are within `k` and `v`, and
    // vectors below their widths, which they divide, as they do the strides. Page and offset are within the pools by the contract
    // on slots, and the scales have the shape of the pools but for their last axis.
    unsafe {
        move_scaled::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            width,
            scaled(pools.k, k_scales),
            scaled(pools.v, v_scales),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            slots.into_buffer_arg(),
            page_size,
            heads,
            row_count,
            way,
            row_group,
            Some(Code::of_all(format, client)),
            dtype,
        );
    }
    Ok(())
}
