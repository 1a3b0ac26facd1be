//! Few rows of `x`, bound by one read of the codes, which are the wide operand of the matrix unit.
//!
//! ```text
//! yᵀ = (codes · scale) · xᵀ
//! ```
//! As [`skinny`](super::super::skinny), whose planes and clusters these are. The products of a group of inputs are summed up
//! as they are, without its scale. That multiplies the sum, in f32: so weights are exact.

use std::marker::PhantomData;

use cubecl::{ir::ElemType, prelude::*};

use super::super::epilogue::{EpilogueArgs, Steps};
use super::super::normed::NormArgs;
use super::super::settings::SkinnySettings;
use super::super::skinny::{add_parts, store_part};
use super::super::stage::Place;
use super::tiles::{CodeTiles, Inputs, fetch_codes, place, wait_codes};
use crate::isa::nvidia::{form_clusters, sync_cluster};
use crate::mma::{BLOCK, CodeMma, Fragment, Scales, WeightFormat, four_codes, prepared_zero};
use crate::staging::{Ring, Staging, Vec16, stages_ahead};

/// Steps of a block.
const STEPS: usize = 8;
/// Sums of a group that do not wait for each other: more for a plane of few tiles. Many tiles are enough, and need registers.
fn chains(tiles: CodeTiles) -> usize {
    if tiles.tiles.row_tiles * tiles.tiles.column_tiles <= 4 { 2 } else { 1 }
}

/// `codes`: `[d_out, bytes]`, `x`: `[rows, d_in]`, in vec16s but with strides in elements; `y`: `[rows, d_out]`. `scales` and
/// `words` are the same buffer: that of e4m3 in floats, that of int4 in vec16s.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
pub(super) fn few_rows<U: CodeMma, E: Float, N: Size>(
    codes: &Tensor<Vec16>,
    scales: &[f32],
    words: &Tensor<Vec16>,
    x: &Tensor<Vec16>,
    y: &mut [Vector<E, N>],
    epilogue: &EpilogueArgs<E>,
    norm: &NormArgs,
    d_in: usize,
    #[comptime] tiles: CodeTiles,
    #[comptime] steps: Steps,
    #[comptime] cluster: usize,
    #[define(E)] _dtype: ElemType,
) {
    let gemm = comptime!(tiles.tiles);
    let shared_vecs = comptime!(tiles.shared_vecs::<U>());
    U::launch_bounds(shared_vecs);
    let shared = Shared::<[Vec16]>::new_aligned_slice(shared_vecs, 128usize);
    let staged = comptime!(tiles.staged_vecs::<U>());
    let mut ring = Ring::new(shared, staged, comptime!(tiles.stage_vecs::<U>()), gemm.stages);
    if comptime!(cluster > 1) {
        form_clusters(cluster);
    }
    let rank = CUBE_POS % cluster;
    let part = d_in.div_ceil(gemm.depth).div_ceil(cluster) * gemm.depth;
    let mut at = rank * part;
    let inputs = Inputs {
        first_output: CUBE_POS / cluster * comptime!(gemm.rows::<U>()),
        end_output: codes.shape(0),
        rows: x.shape(0),
        end: min(d_in, at + part),
    };
    let ahead = comptime!(stages_ahead(gemm.stages));
    #[unroll]
    for i in 0..ahead {
        fetch_codes::<U>(&mut ring, codes, x, words, &inputs, at + comptime!(i * gemm.depth), i, tiles);
    }
    let mut acc = Fragment::<U>::new(gemm.row_tiles, gemm.column_tiles);
    acc.clear();
    while at < inputs.end {
        wait_codes::<U>(&mut ring, inputs.end - at, tiles);
        fetch_codes::<U>(
            &mut ring,
            codes,
            x,
            words,
            &inputs,
            at + comptime!(ahead * gemm.depth),
            ahead,
            tiles,
        );
        multiply::<U, E>(&ring, scales, &inputs, at, d_in, &mut acc, tiles);
        ring.advance();
        at += gemm.depth;
    }
    U::Staging::wait(0usize);
    if comptime!(tiles.format.group().is_none()) {
        scale_outputs::<U>(scales, &inputs, &mut acc, tiles);
    }
    store_part::<U>(&mut ring, &acc, gemm);
    if comptime!(cluster > 1) {
        sync_cluster();
    } else {
        sync_cube();
    }
    let place = Place {
        first_row: inputs.first_output,
        end_row: inputs.end_output,
        first_column: 0usize.runtime(),
        matrix: 0usize.runtime(),
        d_in,
        d_out: inputs.rows,
    };
    let config = comptime!(SkinnySettings { tiles: gemm, cluster, steps, norm: None });
    add_parts::<U, E, E, N>(y, epilogue, norm, &ring, &place, d_in, config);
    // A cube must not exit while a peer may still read its shared memory.
    if comptime!(cluster > 1) {
        sync_cluster();
    }
}

/// First output of the plane, counted from that of the cube.
#[cube]
fn plane_output<U: CodeMma>(#[comptime] tiles: CodeTiles) -> usize {
    UNIT_POS_Y as usize % tiles.tiles.row_planes * comptime!(tiles.tiles.row_tiles * U::ROWS)
}

/// Registers of the plane's part of a block.
#[derive(CubeType)]
struct Block<U: CodeMma> {
    /// Step by step, for each of the lane's outputs of a tile.
    codes: Array<Vector<u32, Const<2>>>,
    /// Scales of the groups, in the order of [`Accumulator::spread`](crate::mma::Accumulator).
    factors: Array<f32>,
    /// Four vec16s for each tile of rows.
    x: Array<Vec16>,
    #[cube(comptime)]
    tiles: CodeTiles,
    #[cube(comptime)]
    _unit: PhantomData<U>,
}

/// `acc += codes · scale · x` over the plane's inputs of the current stage, which begins at input `at`.
///
/// All tiles of the smaller operand are held in registers, and the larger one a tile at a time.
#[cube]
#[allow(clippy::too_many_arguments, reason = "operands, and where they are")]
fn multiply<U: CodeMma, E: Float>(
    ring: &Ring,
    scales: &[f32],
    inputs: &Inputs,
    at: usize,
    d_in: usize,
    acc: &mut Fragment<U>,
    #[comptime] tiles: CodeTiles,
) {
    let gemm = comptime!(tiles.tiles);
    let blocks = comptime!(gemm.depth / gemm.depth_planes / BLOCK);
    let first_block = UNIT_POS_Y as usize / gemm.row_planes * blocks;
    // A tile of `x` takes 16 registers, one of codes 16 for each of the lane's outputs.
    let holds_x = comptime!(gemm.column_tiles <= gemm.row_tiles * U::LANE_ROWS);
    let (code_tiles, x_tiles) = comptime!(if holds_x { (1, gemm.column_tiles) } else { (gemm.row_tiles, 1) });
    // Many tiles leave no registers for a second block.
    #[unroll(gemm.column_tiles <= 2)]
    for b in 0..blocks {
        let block = first_block + b;
        let mut held = Block::<U> {
            codes: Array::new(comptime!(code_tiles * STEPS * U::LANE_ROWS)),
            factors: Array::new(comptime!(code_tiles * tiles.groups() * U::LANE_ROWS)),
            x: Array::new(comptime!(x_tiles * STEPS / 2)),
            tiles,
            _unit: PhantomData,
        };
        if comptime!(holds_x) {
            #[unroll]
            for n in 0..gemm.column_tiles {
                held.load_x(ring, block, n, n);
            }
            #[unroll]
            for m in 0..gemm.row_tiles {
                held.load_codes::<E>(ring, scales, inputs, at, block, d_in, m, 0usize);
                #[unroll]
                for n in 0..gemm.column_tiles {
                    held.add_products::<E>(acc, comptime!(m * gemm.column_tiles + n), 0usize, n);
                }
            }
        } else {
            #[unroll]
            for m in 0..gemm.row_tiles {
                held.load_codes::<E>(ring, scales, inputs, at, block, d_in, m, m);
            }
            #[unroll]
            for n in 0..gemm.column_tiles {
                held.load_x(ring, block, n, 0usize);
                #[unroll]
                for m in 0..gemm.row_tiles {
                    held.add_products::<E>(acc, comptime!(m * gemm.column_tiles + n), m, 0usize);
                }
            }
        }
    }
}

#[cube]
impl<U: CodeMma> Block<U> {
    /// Converts the codes of tile `m` of the plane's outputs, and keeps them as tile `slot`.
    #[allow(clippy::too_many_arguments, reason = "operands, and where they are")]
    fn load_codes<E: Float>(
        &mut self,
        ring: &Ring,
        scales: &[f32],
        inputs: &Inputs,
        at: usize,
        block: usize,
        d_in: usize,
        #[comptime] m: usize,
        #[comptime] slot: usize,
    ) {
        let tiles = comptime!(self.tiles);
        let format = comptime!(tiles.format);
        let vecs = comptime!(BLOCK / format.per_vec());
        let groups = comptime!(tiles.groups());
        #[unroll]
        for r in 0..comptime!(U::LANE_ROWS) {
            let row = plane_output::<U>(tiles) + comptime!(m * U::ROWS) + U::row(r);
            let mut read = Array::<Vec16>::new(comptime!(vecs / 4));
            #[unroll]
            for i in 0..comptime!(vecs / 4) {
                let vec = block * vecs + U::quarter() + comptime!(4 * i);
                read[i] =
                    ring.shared[place::<U>(ring.stage, row, vec, true, comptime!(tiles.codes::<U>()), tiles)];
            }
            #[unroll]
            for g in 0..groups {
                let (factor, zero) =
                    group_scale::<U>(ring, scales, inputs, row, at, block * groups + g, d_in, tiles);
                self.factors[comptime!((slot * groups + g) * U::LANE_ROWS + r)] = factor;
                #[unroll]
                for i in 0..comptime!(STEPS / groups) {
                    let s = comptime!(g * STEPS / groups + i);
                    self.codes[comptime!((slot * STEPS + s) * U::LANE_ROWS + r)] =
                        four_codes::<E>(&read, zero, s, format, tiles.machine, comptime!(tiles.tiles.bf16()));
                }
            }
        }
    }

    /// Loads tile `n` of the rows of `x`, and keeps it as tile `slot`.
    fn load_x(&mut self, ring: &Ring, block: usize, #[comptime] n: usize, #[comptime] slot: usize) {
        let tiles = comptime!(self.tiles);
        let row = U::x_row() + comptime!(n * U::COLUMNS);
        #[unroll]
        for i in 0..comptime!(STEPS / 2) {
            // A lane has 16 inputs of each half of a block of e4m3, and 8 of each quarter of one of int4.
            let vec = if comptime!(matches!(tiles.format, WeightFormat::Int4 { .. })) {
                U::quarter() + comptime!(4 * i)
            } else {
                2 * U::quarter() + comptime!(i / 2 * 8 + i % 2)
            };
            let vec = block * comptime!(BLOCK / 8) + vec;
            self.x[comptime!(slot * STEPS / 2 + i)] =
                ring.shared[place::<U>(ring.stage, row, vec, false, comptime!(tiles.x::<U>()), tiles)];
        }
    }

    /// Adds the products of two tiles that are held to tile `tile` of the sums.
    fn add_products<E: Float>(
        &self,
        acc: &mut Fragment<U>,
        #[comptime] tile: usize,
        #[comptime] m: usize,
        #[comptime] n: usize,
    ) {
        let tiles = comptime!(self.tiles);
        let groups = comptime!(tiles.groups());
        #[unroll]
        for g in 0..groups {
            let sum = self.products::<E>(m, n, comptime!(g * STEPS / groups), comptime!(STEPS / groups));
            if comptime!(tiles.format.group().is_some()) {
                let factor = U::spread(&self.factors, comptime!(m * groups + g));
                acc.tiles[tile] = fma(factor, sum, acc.tiles[tile]);
            } else {
                acc.tiles[tile] += sum;
            }
        }
    }

    /// The sum of some steps of two tiles that are held.
    fn products<E: Float>(
        &self,
        #[comptime] m: usize,
        #[comptime] n: usize,
        #[comptime] first: usize,
        #[comptime] steps: usize,
    ) -> Vector<f32, U::Acc> {
        let chains = comptime!(chains(self.tiles));
        let mut sums = Array::<Vector<f32, U::Acc>>::new(chains);
        #[unroll]
        for c in 0..chains {
            sums[c] = Vector::new(0.0f32);
        }
        #[unroll]
        for i in 0..steps {
            let s = comptime!(first + i);
            let vec = self.x[comptime!((n * STEPS + s) / 2)];
            let mut half = Vector::<u32, Const<2>>::empty();
            half.insert(0usize, vec.extract(comptime!(s % 2 * 2)));
            half.insert(1usize, vec.extract(comptime!(s % 2 * 2 + 1)));
            let c = comptime!(s % chains);
            sums[c] = U::multiply_codes::<E>(
                &self.codes,
                half,
                sums[c],
                comptime!((m * STEPS + s) * U::LANE_ROWS),
                comptime!(self.tiles.tiles.bf16()),
            );
        }
        let mut sum = sums[0];
        #[unroll]
        for c in 1..chains {
            sum += sums[c];
        }
        sum
    }
}

/// Scale and prepared zero of group `group` of the stage that begins at input `at`, for output `row` of the cube.
#[cube]
#[allow(clippy::too_many_arguments, reason = "operands, and where they are")]
fn group_scale<U: CodeMma>(
    ring: &Ring,
    scales: &[f32],
    inputs: &Inputs,
    row: usize,
    at: usize,
    group: usize,
    d_in: usize,
    #[comptime] tiles: CodeTiles,
) -> (f32, u32) {
    #[comptime]
    match tiles.format {
        WeightFormat::Int4 { .. } => {
            let operand = comptime!(tiles.scales::<U>());
            let words = ring.shared.with_vector_size::<Const<1>>();
            let word = words[4 * (ring.stage + operand.first + group * operand.vecs) + row].extract(0usize);
            let zero = prepared_zero(word & 0x7fu32, tiles.machine, comptime!(tiles.tiles.bf16()));
            (f32::reinterpret(word & 0xffff_ff00u32), zero)
        }
        WeightFormat::E4m3(Scales::Block128) => {
            // Blocks beyond the last have no products but zeros.
            let columns = d_in.div_ceil(BLOCK);
            let column = min(at / BLOCK + group, columns - 1);
            let row = min(inputs.first_output + row, inputs.end_output - 1) / BLOCK;
            (scales[row * columns + column], 0u32.runtime())
        }
        WeightFormat::E4m3(_) => (1.0f32.runtime(), 0u32.runtime()),
    }
}

/// Multiplies the sums of each output by its scale.
#[cube]
fn scale_outputs<U: CodeMma>(
    scales: &[f32],
    inputs: &Inputs,
    acc: &mut Fragment<U>,
    #[comptime] tiles: CodeTiles,
) {
    let mut factors = Array::<f32>::new(comptime!(tiles.tiles.row_tiles * U::LANE_ROWS));
    let first = inputs.first_output + plane_output::<U>(tiles);
    #[unroll]
    for m in 0..tiles.tiles.row_tiles {
        #[unroll]
        for r in 0..comptime!(U::LANE_ROWS) {
            let output = min(first + comptime!(m * U::ROWS) + U::row(r), inputs.end_output - 1);
            factors[comptime!(m * U::LANE_ROWS + r)] =
                if comptime!(matches!(tiles.format, WeightFormat::E4m3(Scales::PerTensor))) {
                    scales[0]
                } else {
                    scales[output]
                };
        }
    }
    acc.mul_rows(&factors);
}
