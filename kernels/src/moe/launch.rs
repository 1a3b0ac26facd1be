use cubecl::{client::Client, ir::ElemType, prelude::*};

use super::rows::{Moved, launch_combine, launch_gather};
use super::sort::{Sort, sort};
use crate::activation::Activation;
use crate::device::tensor::{Result, buffer, contiguous, rows, shape, with_shape};
use crate::gemm::Epilogue;
use crate::segment_gemm::{self, FEW_ROWS, SegmentGemm};

const KERNEL: &str = "fused_moe";

/// Tokens, the feed-forward layers of experts, and the choice of experts for each token. All floats but the weights are of
/// one type.
pub struct FusedMoe {
    /// `[tokens, hidden]`.
    pub x: TensorBinding,
    /// `[experts, 2 · inter, hidden]`: the gates of an expert, then its ups.
    pub gate_up: TensorBinding,
    /// `[experts, hidden, inter]`.
    pub down: TensorBinding,
    /// `[tokens, top_k]` of f32, contiguous.
    pub weights: TensorBinding,
    /// `[tokens, top_k]` of i32, contiguous. A number that is no expert's has no share.
    pub experts: TensorBinding,
    /// `[tokens, hidden]`, contiguous.
    pub y: TensorBinding,
    /// The function of the gates.
    pub activation: Activation,
}

/// `y[t] = Σ_k weights[t, k] · down[e] · (act(gate[e] · x[t]) · (up[e] · x[t]))` with `e = experts[t, k]`.
///
/// The activated products and the rows of `down` are rounded to the type of `x`; all sums are f32.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, moe: FusedMoe, dtype: ElemType) -> Result<()> {
    let FusedMoe { x, gate_up, down, weights, experts: entries, y, activation } = moe;
    rows(KERNEL, "x", &x, 2)?;
    rows(KERNEL, "gate_up", &gate_up, 3)?;
    rows(KERNEL, "down", &down, 3)?;
    let [tokens, hidden] = [x.shape[0], x.shape[1]];
    let [experts, inter] = [down.shape[0], down.shape[2]];
    if gate_up.shape[..] != [experts, 2 * inter, hidden] {
        let expected = format!("[{experts}, {}, {hidden}], as `x` and `down`", 2 * inter);
        return Err(shape(KERNEL, "gate_up", &gate_up, expected));
    }
    if down.shape[1] != hidden || down.size() == 0 {
        return Err(shape(KERNEL, "down", &down, format!("rows for {hidden} outputs, and no empty axis")));
    }
    contiguous(KERNEL, "y", &y, &[tokens, hidden])?;
    let top_k = entries.shape.last().copied().unwrap_or(0);
    contiguous(KERNEL, "experts", &entries, &[tokens, top_k])?;
    contiguous(KERNEL, "weights", &weights, &[tokens, top_k])?;
    if top_k == 0 {
        return Err(shape(KERNEL, "experts", &entries, "at least one expert for each token"));
    }
    if tokens == 0 {
        return Ok(());
    }
    let count = tokens * top_k;
    let tile_rows = tile_rows(tokens, top_k, experts);
    let sorted = sort(client, Sort { entries, experts, tile_rows })?;
    let matrix = |width: usize| with_shape(buffer(client, count * width, dtype.size()), [count, width]);
    let (gathered, activated) = (matrix(hidden), matrix(inter));
    let moved = |tokens| Moved { tokens, entries: gathered.clone(), places: sorted.places.clone() };
    let product = |x: TensorBinding, weights: TensorBinding, y: TensorBinding, epilogue: Epilogue| {
        let work_items = sorted.work_items.clone();
        let gemm = SegmentGemm { x, weights, y, work_items, tile_rows, by_input: false, epilogue };
        // SAFETY: work items divide the places of entries that have an expert, of which there is a row each. Matrices are
        // those of experts.
        unsafe { segment_gemm::launch(client, gemm, dtype) }
    };
    // SAFETY: places are those of `sort`: -1, or below the entries, of which each token has `top_k`.
    unsafe { launch_gather(client, moved(x), dtype) }?;
    let gated = Epilogue { gate: Some(activation), ..Epilogue::default() };
    product(gathered.clone(), gate_up, activated.clone(), gated)?;
    // The rows of tokens are not needed any more.
    product(activated, down, gathered.clone(), Epilogue::default())?;
    // SAFETY: as above.
    unsafe { launch_combine(client, moved(y), weights, dtype) }
}

/// Rows of a tile for the mean number of rows of an expert. One token has a row for each.
fn tile_rows(tokens: usize, top_k: usize, experts: usize) -> usize {
    match (tokens, (tokens * top_k).div_ceil(experts)) {
        (1, _) => 1,
        (_, ..=FEW_ROWS) => FEW_ROWS,
        (_, ..=16) => 16,
        (_, ..=64) => 64,
        _ => 128,
    }
}
