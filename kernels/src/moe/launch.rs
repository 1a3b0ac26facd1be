use cubecl::{client::Client, ir::ElemType, prelude::*};

use super::rows::{Moved, launch_combine, launch_gather};
use super::sort::{Sort, sort};
use crate::activation::Activation;
use crate::device::DeviceProfile;
use crate::device::tensor::{
    Result, alignment, buffer, contiguous, offset_alignment, rows, shape, with_shape,
};
use crate::gemm::{Epilogue, ROWS};
use crate::segment_gemm::{self, Blueprint, FEW_ROWS, SegmentGemm};

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
    let problem = segment_gemm::Problem {
        d_in: hidden,
        d_out: inter,
        dtype,
        // Rows of tokens are gathered into memory of their own.
        align: alignment(&gate_up).min(offset_alignment(&gate_up, dtype.size())),
        by_input: false,
        tile_rows: ROWS,
        work_items: count,
        gated: true,
    };
    let blueprint = Blueprint::auto(&DeviceProfile::of(client), &problem);
    let tile_rows = tile_rows(&blueprint, tokens, count.div_ceil(experts));
    let sorted = sort(client, Sort { entries, experts, tile_rows })?;
    let padded = count + padding(&blueprint);
    let matrix = |width: usize| with_shape(buffer(client, padded * width, dtype.size()), [padded, width]);
    let (gathered, activated) = (matrix(hidden), matrix(inter));
    let entries = with_shape(gathered.clone(), [count, hidden]);
    let moved = |tokens| Moved { tokens, entries: entries.clone(), places: sorted.places.clone() };
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

/// Rows of a tile, for the mean number of rows of an expert.
///
/// Few rows are bound by the experts' bytes, and warpgroups read them fastest: 2 tokens of Mixtral took 0.36 ms with their
/// tiles, 0.41 with 16 rows and 0.65 with plain multiplications, 256 tokens 0.77 and 1.01 with 64 rows (H200). Only one
/// or two rows an expert were faster with 16, by up to a tenth.
fn tile_rows(blueprint: &Blueprint, tokens: usize, mean: usize) -> usize {
    match (blueprint, tokens, mean) {
        (Blueprint::WarpSpecialized(_), 3.., ..=2) => 16,
        (Blueprint::WarpSpecialized(_), ..) => ROWS,
        (Blueprint::Plain(_), 1, _) => 1,
        (Blueprint::Plain(_), ..) => FEW_ROWS,
        (Blueprint::Tiled(_), _, ..=16) => 16,
        (Blueprint::Tiled(_), _, ..=64) => 64,
        (Blueprint::Tiled(_), ..) => 128,
    }
}

/// Rows behind the last one, so that no tile reads beyond the end: 2 tokens of Mixtral took 0.36 ms with them, and 0.50
/// without (H200).
fn padding(blueprint: &Blueprint) -> usize {
    if matches!(blueprint, Blueprint::WarpSpecialized(_)) { ROWS } else { 0 }
}
