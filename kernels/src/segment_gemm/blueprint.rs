use cubecl::ir::ElemType;

use super::work::FEW_ROWS;
use crate::device::{DeviceProfile, Refusal, Result};
use crate::gemm::{self, ROWS, Tiled, WarpSpecialized};

const KERNEL: &str = "segment_gemm";

/// The inputs of the choice of a blueprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// Elements of a row of `x`.
    pub d_in: usize,
    /// Elements of a row of `y`: outputs of a matrix, or half of them if it is gated.
    pub d_out: usize,
    /// Type of `x`, `y` and the matrices.
    pub dtype: ElemType,
    /// Largest vector of one load of `x` or of a matrix, in elements.
    pub align: usize,
    /// The rows of a matrix are its inputs.
    pub by_input: bool,
    /// Largest number of rows of a work item.
    pub tile_rows: usize,
    /// Work items, empty ones among them.
    pub work_items: usize,
    /// Each output has two rows of its matrix, a gate and an up.
    pub gated: bool,
}

impl Problem {
    /// Outputs of a matrix.
    pub(super) fn outputs(&self) -> usize {
        self.d_out * if self.gated { 2 } else { 1 }
    }
}

/// The kernel that runs, and its comptime settings. Each distinct blueprint is a kernel to compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blueprint {
    /// Plain multiplications, on every device.
    Plain(Plain),
    /// Tiles in shared memory.
    Tiled(Tiled),
    /// Hopper's warpgroups.
    WarpSpecialized(WarpSpecialized),
}

/// The comptime settings of the plain kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plain {
    /// Rows that are multiplied with an element of the matrix once it is read.
    pub rows: usize,
    /// Columns, or vectors of them, of a cube.
    pub across: usize,
    /// Units that share a column, each with its part of the depth.
    pub parts: usize,
}

impl Blueprint {
    /// The blueprint for a problem on a device.
    pub fn auto(device: &DeviceProfile, problem: &Problem) -> Self {
        let specialized = specialized(device, problem).map(Self::WarpSpecialized);
        let tiled = || tiled(device, problem).map(Self::Tiled);
        specialized.or_else(|_| tiled()).unwrap_or_else(|_| Self::Plain(Plain::auto(device, problem)))
    }
}

impl Plain {
    pub(super) fn auto(device: &DeviceProfile, problem: &Problem) -> Self {
        let rows = if problem.tile_rows == 1 { 1 } else { FEW_ROWS };
        let vectors = |extent: usize| extent.div_ceil(device.widest(problem.dtype.size()));
        if let Some(cores) = device.cpu_cores {
            // On a CPU units are threads.
            return Self { rows, across: cores as usize, parts: 1 };
        }
        let most = device.max_units.min(256) as usize;
        let fitting = |wanted: usize, most: usize| wanted.next_power_of_two().min(most.max(1));
        // Neighbouring units read neighbouring elements: columns of a row of inputs, parts of a row of
        // outputs. A part has at least 8 elements.
        if problem.by_input {
            let across = fitting(vectors(problem.outputs()), 32);
            Self { rows, across, parts: fitting(problem.d_in / 8, most / across) }
        } else {
            let parts = fitting(vectors(problem.d_in), 32);
            Self { rows, across: fitting(problem.outputs(), most / parts), parts }
        }
    }
}

/// Refuses gates of matrices whose rows are inputs: tiles take gates and ups from different rows.
fn gates_by_output(problem: &Problem) -> Result<()> {
    if problem.gated && problem.by_input {
        return Err(Refusal::blueprint(KERNEL, "by_input", true, "outputs as rows, of gates"));
    }
    Ok(())
}

/// Tiles of [`ROWS`] for warpgroups, or why there are none.
fn specialized(device: &DeviceProfile, problem: &Problem) -> Result<WarpSpecialized> {
    let Problem { d_in, d_out, dtype, align, by_input, tile_rows, work_items, gated } = *problem;
    gates_by_output(problem)?;
    if tile_rows != ROWS {
        return Err(Refusal::blueprint(KERNEL, "tile_rows", tile_rows, ROWS.to_string()));
    }
    let product = gemm::Problem::product([work_items * ROWS, d_in, d_out], dtype, align);
    let product = gemm::Problem { gated, ..product };
    let specialized = WarpSpecialized::auto(device, &product, by_input);
    specialized.check(device, &product, by_input).map(|()| specialized)
}

/// The tiles for a problem, or why there are none.
fn tiled(device: &DeviceProfile, problem: &Problem) -> Result<Tiled> {
    let tile_rows = problem.tile_rows;
    if !(FEW_ROWS + 1..=128).contains(&tile_rows) {
        return Err(Refusal::blueprint(
            KERNEL,
            "tile_rows",
            tile_rows,
            format!("more than {FEW_ROWS}, up to 128"),
        ));
    }
    gates_by_output(problem)?;
    let tiled = Tiled::of(device, problem.dtype, tile_rows)?;
    let Problem { d_in, d_out, dtype, align, gated, .. } = *problem;
    let product = gemm::Problem::product([tile_rows, d_in, d_out], dtype, align);
    let product = gemm::Problem { gated, ..product };
    tiled.check(device, &product, problem.by_input)?;
    Ok(tiled)
}
