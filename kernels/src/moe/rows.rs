//! Rows on their way to their experts and back.

use cubecl::{client::Client, ir::ElemType, prelude::*, std::FastDivmod};

use crate::device::grid::elementwise;
use crate::device::tensor::{Result, addresses, alignment, offset_alignment, vector};
use crate::math::{narrow, widen};

const KERNEL: &str = "moe_rows";

/// Copies the row of each entry to its place. A unit copies a vector.
#[cube(launch_unchecked, address_type = "dynamic")]
fn gather<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    places: &[i32],
    gathered: &mut [Vector<F, N>],
    columns: FastDivmod<usize>,
    width: usize,
    top_k: usize,
    total: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let (entry, column) = columns.div_mod(ABSOLUTE_POS);
    let place = places[entry];
    if place >= 0 {
        let from = entry / top_k * x.stride(0) / N::value() + column;
        gathered[usize::cast_from(place) * width + column] = x[from];
    }
}

/// `y[t] = Σ_k weights[t, k] · rows[place of (t, k)]`, in the order of `k`. An entry without a place adds nothing. A unit
/// computes a vector.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn combine<F: Float, N: Size>(
    rows: &[Vector<F, N>],
    places: &[i32],
    weights: &[f32],
    y: &mut [Vector<F, N>],
    columns: FastDivmod<usize>,
    width: usize,
    top_k: usize,
    total: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let (token, column) = columns.div_mod(ABSOLUTE_POS);
    let mut sum = Vector::<f32, N>::new(0.0f32);
    for k in 0..top_k {
        let entry = token * top_k + k;
        let place = places[entry];
        if place >= 0 {
            let row = widen::<F, N>(rows[usize::cast_from(place) * width + column]);
            sum += row * Vector::new(weights[entry]);
        }
    }
    y[ABSOLUTE_POS] = narrow::<F, N>(sum);
}

/// Rows of tokens, and of their entries in the order of experts.
pub(super) struct Moved {
    /// `[tokens, width]`; contiguous, if it is written.
    pub tokens: TensorBinding,
    /// `[entries, width]`, contiguous.
    pub entries: TensorBinding,
    /// `[entries]` of i32: places, or -1.
    pub places: TensorBinding,
}

/// Copies rows of tokens to the places of their entries.
///
/// # Safety
///
/// `places` are at most -1, or below the entries. There are as many entries for each token.
pub(super) unsafe fn launch_gather(client: &Client, moved: Moved, dtype: ElemType) -> Result<()> {
    let Moved { tokens: x, entries, places } = moved;
    let [count, width] = [entries.shape[0], entries.shape[1]];
    let lanes = vector(client, dtype, &[width], alignment(&x).min(offset_alignment(&x, dtype.size())));
    let total = count * width / lanes;
    let (cubes, dim) = elementwise(KERNEL, client, total)?;
    let address = addresses(&[(&x, dtype.size()), (&entries, dtype.size()), (&places, 4)]);
    let (vectors, top_k) = (width / lanes, count / x.shape[0]);
    // SAFETY: a unit beyond `total` stops; below it are entries and vectors of a row. The token of an entry is within `x`,
    // and by the contract places are within the entries. The width of a vector divides rows, strides and offset.
    unsafe {
        gather::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            lanes,
            x.into_tensor_arg(),
            places.into_buffer_arg(),
            entries.into_buffer_arg(),
            vectors,
            vectors,
            top_k,
            total,
            dtype,
        );
    }
    Ok(())
}

/// Adds up the rows of each token's entries, times their `weights` (f32, contiguous, one for each entry).
///
/// # Safety
///
/// As [`launch_gather`].
pub(super) unsafe fn launch_combine(
    client: &Client,
    moved: Moved,
    weights: TensorBinding,
    dtype: ElemType,
) -> Result<()> {
    let Moved { tokens: y, entries, places } = moved;
    let [count, width] = [entries.shape[0], entries.shape[1]];
    let align = offset_alignment(&y, dtype.size()).min(offset_alignment(&entries, dtype.size()));
    let lanes = vector(client, dtype, &[width], align);
    let total = y.size() / lanes;
    let (cubes, dim) = elementwise(KERNEL, client, total)?;
    let address = addresses(&[(&y, dtype.size()), (&entries, dtype.size()), (&places, 4)]);
    let (vectors, top_k) = (width / lanes, count / y.shape[0]);
    // SAFETY: a unit beyond `total` stops; below it are tokens and vectors of a row. A token has `top_k` entries, and by the
    // contract places are within them.
    unsafe {
        combine::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            lanes,
            entries.into_buffer_arg(),
            places.into_buffer_arg(),
            weights.into_buffer_arg(),
            y.into_buffer_arg(),
            vectors,
            vectors,
            top_k,
            total,
            dtype,
        );
    }
    Ok(())
}
