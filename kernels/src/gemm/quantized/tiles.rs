//! The tiles of a cube, and the copies of its operands.

use cubecl::prelude::*;

use super::super::skinny::part_vecs;
use crate::device::Machine;
use crate::mma::{BLOCK, CodeMma, GemmTileShape, WeightFormat};
use crate::staging::{Ring, Staging, Vec16};

/// The tiles of a cube: [`GemmTileShape`] with outputs as rows, and rows of `x` as columns. A *stage* has codes, then rows of
/// `x`, then the scales of int4. Comptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CodeTiles {
    pub tiles: GemmTileShape,
    pub format: WeightFormat,
    /// The machine that converts codes.
    pub machine: Machine,
}

/// One of the operands in a stage, in vec16s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Operand {
    /// First vec16 in a stage.
    pub first: usize,
    /// First of the copies of a unit.
    pub slot: usize,
    pub rows: usize,
    /// Vec16s of a row.
    pub vecs: usize,
    /// Inputs of a vec16; of a row, where rows are groups of inputs.
    pub inputs: usize,
    units: usize,
}

impl Operand {
    fn new(after: Option<Self>, rows: usize, vecs: usize, inputs: usize, units: usize) -> Self {
        let (first, slot) = after.map_or((0, 0), |after| (after.end(), after.slot + after.copies()));
        Self { first, slot, rows, vecs, inputs, units }
    }

    fn end(self) -> usize {
        self.first + self.rows * self.vecs
    }

    /// Copies of a unit.
    pub fn copies(self) -> usize {
        (self.rows * self.vecs).div_ceil(self.units)
    }

    /// All units have the same number of copies.
    pub fn even(self) -> bool {
        (self.rows * self.vecs).is_multiple_of(self.units)
    }
}

impl CodeTiles {
    /// Groups with scales of their own in a stage.
    fn stage_groups(self) -> usize {
        match self.format {
            WeightFormat::Int4 { group } => self.tiles.depth / group,
            WeightFormat::E4m3(_) => 0,
        }
    }

    /// Groups of a block; 1 if an output has one scale.
    pub fn groups(self) -> usize {
        BLOCK / self.format.group().unwrap_or(BLOCK)
    }

    fn units<U: CodeMma>(self) -> usize {
        self.tiles.planes() * U::PLANE
    }

    pub fn codes<U: CodeMma>(self) -> Operand {
        let per_vec = self.format.per_vec();
        Operand::new(None, self.tiles.rows::<U>(), self.tiles.depth / per_vec, per_vec, self.units::<U>())
    }

    pub fn x<U: CodeMma>(self) -> Operand {
        let vecs = self.tiles.depth_vecs();
        let units = self.units::<U>();
        Operand::new(Some(self.codes::<U>()), self.tiles.columns::<U>(), vecs, self.tiles.per_vec(), units)
    }

    /// The scales of int4, group by group.
    pub fn scales<U: CodeMma>(self) -> Operand {
        let inputs = self.format.group().unwrap_or(BLOCK);
        let vecs = self.tiles.rows::<U>() / 4;
        Operand::new(Some(self.x::<U>()), self.stage_groups(), vecs, inputs, self.units::<U>())
    }

    /// Vec16s of a stage.
    pub fn stage_vecs<U: CodeMma>(self) -> usize {
        self.scales::<U>().end()
    }

    /// Vec16s of a unit in flight through its registers; at least 1.
    pub fn staged_vecs<U: CodeMma>(self) -> usize {
        let scales = self.scales::<U>();
        if U::ASYNC { 1 } else { scales.slot + scales.copies() }
    }

    /// Vec16s of shared memory: the stages, and at the end the parts.
    pub fn shared_vecs<U: CodeMma>(self) -> usize {
        let stages = self.tiles.stages * self.stage_vecs::<U>();
        stages.max(self.tiles.depth_planes * part_vecs::<U>(self.tiles))
    }
}

/// The place of a stage's operands in memory.
#[derive(CubeType)]
pub(super) struct Inputs {
    /// First output of the cube, and end of the outputs.
    pub first_output: usize,
    pub end_output: usize,
    /// Rows of `x`.
    pub rows: usize,
    /// End of the cube's inputs.
    pub end: usize,
}

/// Row and vec16 of the unit's `i`-th copy of an operand.
#[cube]
fn copy_of(#[comptime] i: usize, #[comptime] operand: Operand) -> (usize, usize) {
    let at = UNIT_POS as usize + comptime!(i * operand.units);
    (at / operand.vecs, at % operand.vecs)
}

/// Begins to copy the stage with the inputs from `first` on, `ahead` of the current one. Beyond the last input there are
/// zeros, or [`wait_codes`] writes them. Missing outputs and rows are zeros or repeat the last ones; no lane stores them.
#[cube]
#[allow(clippy::too_many_arguments, reason = "three operands, and where they are")]
pub(super) fn fetch_codes<U: CodeMma>(
    ring: &mut Ring,
    codes: &Tensor<Vec16>,
    x: &Tensor<Vec16>,
    scales: &Tensor<Vec16>,
    inputs: &Inputs,
    first: usize,
    #[comptime] ahead: usize,
    #[comptime] tiles: CodeTiles,
) {
    if first < inputs.end {
        let stage = ring.after(ahead);
        // Strides count bytes of codes and elements of `x`.
        let operand = comptime!(tiles.codes::<U>());
        let end = inputs.end_output;
        fetch_rows::<U>(
            ring,
            codes,
            stage,
            inputs.first_output,
            end,
            first,
            inputs.end,
            true,
            16usize,
            operand,
            tiles,
        );
        let operand = comptime!(tiles.x::<U>());
        fetch_rows::<U>(
            ring,
            x,
            stage,
            0usize.runtime(),
            inputs.rows,
            first,
            inputs.end,
            false,
            8usize,
            operand,
            tiles,
        );
        if comptime!(matches!(tiles.format, WeightFormat::Int4 { .. })) {
            let operand = comptime!(tiles.scales::<U>());
            let last_group = inputs.end.div_ceil(operand.inputs) - 1;
            let last_vec = inputs.end_output / 4 - 1;
            #[unroll]
            for i in 0..comptime!(operand.copies()) {
                let (row, vec) = copy_of(i, operand);
                if comptime!(operand.even()) || row < operand.rows {
                    let (group, output) = (first / operand.inputs + row, inputs.first_output / 4 + vec);
                    let at = min(group, last_group) * (scales.stride(0) / 4) + min(output, last_vec);
                    let to = stage + operand.first + row * operand.vecs + vec;
                    let valid = group <= last_group && output <= last_vec;
                    U::Staging::copy(ring, scales, at, valid, to, comptime!(operand.slot + i));
                }
            }
        }
    }
    U::Staging::commit();
}

#[cube]
#[allow(clippy::too_many_arguments, reason = "an operand, and where it is")]
fn fetch_rows<U: CodeMma>(
    ring: &mut Ring,
    from: &Tensor<Vec16>,
    stage: usize,
    first_row: usize,
    end_row: usize,
    first: usize,
    end: usize,
    #[comptime] is_codes: bool,
    #[comptime] per_vec: usize,
    #[comptime] operand: Operand,
    #[comptime] tiles: CodeTiles,
) {
    let last_vec = end / operand.inputs - 1;
    #[unroll]
    for i in 0..comptime!(operand.copies()) {
        let (row, vec) = copy_of(i, operand);
        if comptime!(operand.even()) || row < operand.rows {
            let (from_row, from_vec) = (first_row + row, first / operand.inputs + vec);
            let at = min(from_row, end_row - 1) * (from.stride(0) / per_vec) + min(from_vec, last_vec);
            let to = place::<U>(stage, row, vec, is_codes, operand, tiles);
            let valid = from_vec <= last_vec && from_row < end_row;
            U::Staging::copy(ring, from, at, valid, to, comptime!(operand.slot + i));
        }
    }
}

/// Place of vec16 `vec` of row `row` of the codes of a stage, or of its `x`.
#[cube]
pub(super) fn place<U: CodeMma>(
    stage: usize,
    row: usize,
    vec: usize,
    #[comptime] is_codes: bool,
    #[comptime] operand: Operand,
    #[comptime] tiles: CodeTiles,
) -> usize {
    let first = stage + operand.first;
    if comptime!(is_codes) {
        U::code_at(first, row, vec, operand.vecs)
    } else {
        let side = comptime!(matches!(tiles.format, WeightFormat::Int4 { .. }));
        U::x_at(first, row, vec, operand.vecs, side)
    }
}

/// Waits for the copies of the current stage, of whose inputs the first `left` exist, and for every plane.
#[cube]
pub(super) fn wait_codes<U: CodeMma>(ring: &mut Ring, left: usize, #[comptime] tiles: CodeTiles) {
    if comptime!(U::ASYNC) {
        U::Staging::wait(comptime!(tiles.tiles.stages - 2));
    } else {
        // Every plane has read the last stage.
        sync_cube();
        let operand = comptime!(tiles.codes::<U>());
        store_rows::<U>(ring, left, true, operand, tiles);
        let operand = comptime!(tiles.x::<U>());
        store_rows::<U>(ring, left, false, operand, tiles);
        let operand = comptime!(tiles.scales::<U>());
        #[unroll]
        for i in 0..comptime!(operand.copies()) {
            let (row, vec) = copy_of(i, operand);
            if comptime!(operand.even()) || row < operand.rows {
                let to = ring.stage + operand.first + row * operand.vecs + vec;
                let arrived = ring.staged[comptime!(operand.slot + i)];
                ring.shared[to] = select(row * operand.inputs < left, arrived, Vec16::new(0u32));
            }
        }
        sync_cube();
    }
}

/// Stores what has arrived in registers, and zeros beyond the inputs: anything may be in memory there, and NaN times 0 is NaN.
#[cube]
fn store_rows<U: CodeMma>(
    ring: &mut Ring,
    left: usize,
    #[comptime] is_codes: bool,
    #[comptime] operand: Operand,
    #[comptime] tiles: CodeTiles,
) {
    #[unroll]
    for i in 0..comptime!(operand.copies()) {
        let (row, vec) = copy_of(i, operand);
        if comptime!(operand.even()) || row < operand.rows {
            let to = place::<U>(ring.stage, row, vec, is_codes, operand, tiles);
            let arrived = ring.staged[comptime!(operand.slot + i)];
            ring.shared[to] = select(vec * operand.inputs < left, arrived, Vec16::new(0u32));
        }
    }
}
