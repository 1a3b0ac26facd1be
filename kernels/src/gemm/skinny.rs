//! Few rows of `x`, bound by one read of the weights: these are the wide operand of the matrix unit.
//!
//! ```text
//! yᵀ = weight · xᵀ
//! ```
//! A cube owns some outputs and all rows of `x`, and walks over the inputs. Where outputs are few, the inputs are split:
//! each plane has a part of every stage, and each cube of a cluster a part of all stages. The parts are f32 sums in
//! shared memory, which are added in the order of their inputs. So with
//! the same settings a row's result does not depend on other rows.

use cubecl::{ir::ElemType, prelude::*};

use super::stage::{Place, fetch_stage};
use crate::isa::nvidia::{form_clusters, load_shared_at, shared_address, sync_cluster};
use crate::math::narrow;
use crate::mma::{Fragment, GemmMma, GemmTileShape, column_step, product_vecs, wait_gemm_stage};
use crate::staging::{Ring, Staging, Vec16, stages_ahead};

/// Words between the outputs of two rows of `x`, so that the lanes of a plane write to different banks.
pub(super) fn row_words(outputs: usize) -> usize {
    outputs + 4
}

/// Vec16s of the sums of a part.
pub(super) fn part_vecs<U: GemmMma>(tiles: GemmTileShape) -> usize {
    tiles.columns::<U>() * row_words(tiles.rows::<U>()) / 4
}

/// Vec16s of shared memory: the stages, and at the end the parts.
pub(super) fn shared_vecs<U: GemmMma>(tiles: GemmTileShape) -> usize {
    product_vecs::<U>(tiles).max(tiles.depth_planes * part_vecs::<U>(tiles))
}

/// `x`: `[1, rows, d_in]`, `weight`: `[d_out, d_in]`, in vec16s but with strides in elements; `y`: `[rows, d_out]`. In
/// [`GemmTileShape`] the outputs are rows, and the rows of `x` are columns.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn skinny<U: GemmMma, E: Float, N: Size>(
    x: &Tensor<Vec16>,
    weight: &Tensor<Vec16>,
    y: &mut [Vector<E, N>],
    d_in: usize,
    #[comptime] tiles: GemmTileShape,
    #[comptime] cluster: usize,
    #[define(E)] _dtype: ElemType,
) {
    let shared = Shared::<[Vec16]>::new_aligned_slice(comptime!(shared_vecs::<U>(tiles)), 128usize);
    let staged = comptime!(tiles.staged_vecs::<U>());
    let mut ring = Ring::new(shared, staged, comptime!(tiles.stage_vecs::<U>()), tiles.stages);
    if comptime!(cluster > 1) {
        form_clusters(cluster);
    }
    let rank = CUBE_POS % cluster;
    let steps = d_in.div_ceil(tiles.depth).div_ceil(cluster);
    let mut at = rank * steps * tiles.depth;
    let place = Place {
        first_row: CUBE_POS / cluster * comptime!(tiles.rows::<U>()),
        end_row: weight.shape(0),
        first_column: 0usize.runtime(),
        matrix: 0usize.runtime(),
        d_in: min(d_in, at + steps * tiles.depth),
        d_out: x.shape(1),
    };
    let ahead = comptime!(stages_ahead(tiles.stages));
    #[unroll]
    for i in 0..ahead {
        fetch_stage::<U>(&mut ring, weight, x, &place, at + comptime!(i * tiles.depth), i, tiles);
    }
    let mut acc = Fragment::<U>::new(tiles.row_tiles, tiles.column_tiles);
    acc.clear();
    while at < place.d_in {
        wait_gemm_stage::<U>(&mut ring, place.d_in - at, tiles);
        fetch_stage::<U>(&mut ring, weight, x, &place, at + comptime!(ahead * tiles.depth), ahead, tiles);
        U::multiply::<E>(&ring, &mut acc, tiles);
        ring.advance();
        at += tiles.depth;
    }
    U::Staging::wait(0usize);
    store_part::<U>(&mut ring, &acc, tiles);
    if comptime!(cluster > 1) {
        sync_cluster();
    } else {
        sync_cube();
    }
    add_parts::<U, E, N>(y, &ring, &place, rank, tiles, cluster);
    // A cube must not exit while a peer may still read its shared memory.
    if comptime!(cluster > 1) {
        sync_cluster();
    }
}

/// Writes the plane's sums to shared memory, row of `x` by row of `x`.
#[cube]
pub(super) fn store_part<U: GemmMma>(ring: &mut Ring, acc: &Fragment<U>, #[comptime] tiles: GemmTileShape) {
    let plane = UNIT_POS_Y as usize;
    let outputs = plane % tiles.row_planes * comptime!(tiles.row_tiles * U::ROWS);
    let columns = plane / tiles.row_planes % tiles.column_planes * comptime!(tiles.column_tiles * U::COLUMNS);
    let part = plane / comptime!(tiles.row_planes * tiles.column_planes);
    let words = comptime!(row_words(tiles.rows::<U>()));
    let first = part * comptime!(4 * part_vecs::<U>(tiles)) + (columns + U::column()) * words + outputs;
    let sums = ring.shared.with_vector_size_mut::<Const<1>>();
    #[unroll]
    for r in 0..acc.lane_rows() {
        let output = first + comptime!(r / U::LANE_ROWS * U::ROWS) + U::row(comptime!(r % U::LANE_ROWS));
        #[unroll]
        for c in 0..acc.lane_columns() {
            let word = output + comptime!(column_step::<U>(c) * words);
            sums[word] = Vector::<u32, Const<1>>::new(u32::reinterpret(acc.get(r, c)));
        }
    }
}

/// Adds up the parts and stores the results, four outputs at a time. The cubes of a cluster share them.
#[cube]
pub(super) fn add_parts<U: GemmMma, E: Float, N: Size>(
    y: &mut [Vector<E, N>],
    ring: &Ring,
    place: &Place,
    rank: usize,
    #[comptime] tiles: GemmTileShape,
    #[comptime] cluster: usize,
) {
    let fours = comptime!(tiles.rows::<U>() / 4);
    let units = comptime!(tiles.planes() * U::PLANE * cluster);
    let base = shared_address_of(ring, cluster);
    // Whole planes go round together, as loads from peers want it.
    let rounds = (place.d_out * fours).div_ceil(units);
    for round in 0..rounds {
        let at =
            min(round * units + rank * comptime!(units / cluster) + UNIT_POS as usize, place.d_out * fours);
        let valid = at < place.d_out * fours;
        let at = select(valid, at, 0usize);
        let (row, four) = (at / fours, at % fours);
        let vec = row * comptime!(row_words(tiles.rows::<U>()) / 4) + four;
        let mut sum = Vector::<f32, Const<4>>::new(0.0f32);
        #[unroll]
        for peer in 0..cluster {
            #[unroll]
            for part in 0..tiles.depth_planes {
                let vec = vec + comptime!(part * part_vecs::<U>(tiles));
                sum += if comptime!(cluster > 1) {
                    load_shared_at(base + vec as u32 * 16u32, comptime!(peer as u32).runtime())
                } else {
                    Vector::<f32, Const<4>>::reinterpret(ring.shared[vec])
                };
            }
        }
        let output = place.first_row + four * 4;
        let width = N::value();
        #[unroll]
        for i in 0..comptime!(4 / width) {
            let column = output + comptime!(i * width);
            if valid && column < place.end_row {
                let mut few = Vector::<f32, N>::empty();
                #[unroll]
                for e in 0..width {
                    few.insert(e, sum.extract(comptime!(i * width + e)));
                }
                y[(row * place.end_row + column) / width] = narrow::<E, N>(few);
            }
        }
    }
}

/// The address of shared memory for loads from peers, if there are any.
#[cube]
fn shared_address_of(ring: &Ring, #[comptime] cluster: usize) -> u32 {
    if comptime!(cluster > 1) { shared_address(&ring.shared[0..1]) } else { 0u32.runtime() }
}
