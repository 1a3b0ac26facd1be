//! The most likely tokens of each row: their probabilities made a distribution, or the logits of all others masked.
//!
//! A token passes if fewer than `top_k` tokens, or tokens of less than `top_p` probability, are more likely.
//! The threshold comes from a [radix select](super::radix_select), which reads the row twice. A third pass
//! writes.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use super::fixed_point::top_p_mass;
use super::radix_select::{IN_FLIGHT, Limits, Memory, Row, SelectConfig, load, select_row};
use crate::device::DeviceProfile;
use crate::device::tensor::{Result, addresses, alignment, contiguous, rows, shape, vector};
use crate::math::{narrow, widen};
use crate::rows::row_group::RowGroup;

const KERNEL: &str = "filter";

/// The values that a filter writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// Probabilities, divided by their sum; of the others 0.
    Renormalised,
    /// Logits; of the others `-inf`.
    Masked,
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn filter_row<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    top_k: &ComptimeOption<Box<[i32]>>,
    top_p: &ComptimeOption<Box<[f32]>>,
    y: &mut Tensor<Vector<F, N>>,
    #[comptime] config: SelectConfig,
    #[comptime] output: Output,
    #[define(F)] _dtype: ElemType,
) {
    let (rows, units) = comptime!((config.row_group.rows, config.row_group.units));
    let unit = UNIT_POS as usize % units;
    let part = UNIT_POS as usize / units;
    let at = CUBE_POS * rows + part;
    if at >= x.shape(0) {
        terminate!();
    }
    let vectors = x.shape(1) / config.lanes;
    let row = Row::new(at * x.stride(0) / config.lanes, vectors);
    let mut limits = Limits::none();
    #[comptime]
    match top_k {
        ComptimeOption::Some(top_k) => {
            limits.count = u64::cast_from(max(top_k[at], 1i32));
        }
        ComptimeOption::None => {}
    }
    #[comptime]
    match top_p {
        ComptimeOption::Some(top_p) => {
            limits.mass = top_p_mass(top_p[at]);
        }
        ComptimeOption::None => {}
    }

    let mut memory = Memory::new(part, unit, config);
    let threshold = select_row::<F, N>(x, &row, &limits, &mut memory, config);
    let is_masked = comptime!(output == Output::Masked);
    // 2^-40
    let sum = if comptime!(is_masked) { 0u64.runtime() } else { memory.total(0usize, config) };
    let factor = 1.0f32 / (f32::cast_from(sum) * 9.094_947e-13_f32);
    let mut first = unit;
    while first < vectors {
        let read = load(x, &row, first, units);
        #[unroll]
        for f in 0..IN_FLIGHT {
            let i = first + comptime!(f * units);
            if i < vectors {
                let vector = widen::<F, N>(read[f]);
                let mut changed = Vector::<f32, N>::new(0.0f32);
                #[unroll]
                for lane in 0..config.lanes {
                    let value = vector.extract(lane);
                    // NaN is not less, and remains.
                    let is_less = value < threshold.value;
                    let of_value = if comptime!(is_masked) {
                        select(is_less, f32::NEG_INFINITY, value)
                    } else {
                        select(is_less, 0.0f32, value * factor)
                    };
                    changed.insert(lane, of_value);
                }
                y[at * vectors + i] = narrow::<F, N>(changed);
            }
        }
        first += comptime!(IN_FLIGHT * units);
    }
}

/// Rows, their limits, and where the results go.
pub struct Filter {
    /// `[rows, vocab]`.
    pub x: TensorBinding,
    /// The limit of a row.
    pub by: Limit,
    /// As `x`, contiguous.
    pub y: TensorBinding,
    /// The values to write.
    pub output: Output,
}

/// The limit that decides which tokens of a row pass.
pub enum Limit {
    /// `[rows]` of i32: a token passes if fewer tokens are more likely. Below 1 it counts as 1.
    TopK(TensorBinding),
    /// `[rows]` of f32: a token passes if more likely ones have less probability; from 1 on, all do.
    TopP(TensorBinding),
}

/// Keeps the tokens of each row that pass.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, filter: Filter, dtype: ElemType) -> Result<()> {
    let Filter { x, by, y, output } = filter;
    rows(KERNEL, "x", &x, 2)?;
    let [row_count, vocab] = [x.shape[0], x.shape[1]];
    let (by_count, argument, limit) = match by {
        Limit::TopK(limit) => (true, "top_k", limit),
        Limit::TopP(limit) => (false, "top_p", limit),
    };
    contiguous(KERNEL, argument, &limit, &[row_count])?;
    contiguous(KERNEL, "y", &y, &[row_count, vocab])?;
    if vocab == 0 {
        return Err(shape(KERNEL, "x", &x, "rows that are not empty"));
    }
    if row_count == 0 {
        return Ok(());
    }

    let lanes = vector(client, dtype, &[vocab], alignment(&x));
    let vectors = vocab / lanes;
    let device = DeviceProfile::of(client);
    let units = SelectConfig::units(&device, row_count, vectors);
    let (row_group, cubes, dim) = RowGroup::of(KERNEL, client, row_count, vectors, units)?;
    let address = addresses(&[(&x, dtype.size()), (&y, dtype.size())]);
    let config = SelectConfig {
        by_count,
        by_mass: !by_count,
        of_probs: output == Output::Renormalised,
        segments: usize::from(output == Output::Renormalised),
        ..SelectConfig::new(&device, row_group, lanes, vocab)
    };
    let limit = limit.into_buffer_arg();
    let (top_k, top_p) = if by_count { (Some(limit), None) } else { (None, Some(limit)) };
    // SAFETY: a unit beyond the last row stops; a vector is below those of a row, which x and y share, as
    // limits are one for each row. Shared memory has a place for each group, bucket and candidate of each row
    // of the cube, and no bucket or candidate beyond is written.
    unsafe {
        filter_row::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            lanes,
            x.into_tensor_arg(),
            top_k.into(),
            top_p.into(),
            y.into_tensor_arg(),
            config,
            output,
            dtype,
        );
    }
    Ok(())
}
