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

use super::epilogue::{EpilogueArgs, store_at};
use super::normed::{NormArgs, Normed, row_scale, square_vecs};
use super::settings::SkinnySettings;
use super::stage::{Place, fetch_stage};
use crate::isa::nvidia::{form_clusters, load_shared_at, shared_address, sync_cluster};
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

/// Vec16s of shared memory: the stages, and at the end the parts and the squares of a norm.
pub(super) fn shared_vecs<U: GemmMma>(tiles: GemmTileShape, normed: bool) -> usize {
    let squares = if normed { square_vecs::<U>(tiles) } else { 0 };
    product_vecs::<U>(tiles).max(tiles.depth_planes * part_vecs::<U>(tiles) + squares)
}

/// `x`: `[1, rows, d_in]`, `weight`: `[d_out, d_in]`, in vec16s but with strides in elements; `y`: `[rows, d_out]`. In
/// [`GemmTileShape`] the rows of the weight are rows, and the rows of `x` are columns.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn skinny<U: GemmMma, E: Float, Y: Float, N: Size>(
    x: &Tensor<Vec16>,
    weight: &Tensor<Vec16>,
    y: &mut [Vector<Y, N>],
    epilogue: &EpilogueArgs<E>,
    norm: &NormArgs,
    d_in: usize,
    #[comptime] config: SkinnySettings,
    #[define(E, Y)] _dtypes: [ElemType; 2],
) {
    let tiles = comptime!(config.tiles);
    let cluster = comptime!(config.cluster);
    let vecs = comptime!(shared_vecs::<U>(tiles, config.norm.is_some()));
    let shared = Shared::<[Vec16]>::new_aligned_slice(vecs, 128usize);
    let staged = comptime!(tiles.staged_vecs::<U>());
    let mut ring = Ring::new(shared, staged, comptime!(tiles.stage_vecs::<U>()), tiles.stages);
    if comptime!(cluster > 1) {
        form_clusters(cluster);
    }
    let rank = CUBE_POS % cluster;
    let part = d_in.div_ceil(tiles.depth).div_ceil(cluster) * tiles.depth;
    let mut at = rank * part;
    let place = Place {
        first_row: CUBE_POS / cluster * comptime!(tiles.rows::<U>() / config.steps.halves()),
        end_row: epilogue.d_out,
        first_column: 0usize.runtime(),
        matrix: 0usize.runtime(),
        d_in: min(d_in, at + part),
        d_out: x.shape(1),
    };
    let ahead = comptime!(stages_ahead(tiles.stages));
    #[unroll]
    for i in 0..ahead {
        fetch_stage::<U>(&mut ring, weight, x, &place, at + comptime!(i * tiles.depth), i, tiles);
    }
    let mut acc = Fragment::<U>::new(tiles.row_tiles, tiles.column_tiles);
    acc.clear();
    let mut normed = Normed::new::<U>(config);
    normed.load::<U>(norm, at, &place, tiles);
    while at < place.d_in {
        wait_gemm_stage::<U>(&mut ring, place.d_in - at, tiles);
        fetch_stage::<U>(&mut ring, weight, x, &place, at + comptime!(ahead * tiles.depth), ahead, tiles);
        #[comptime]
        if let Some(style) = config.norm {
            normed.apply::<U, E>(&mut ring, &place, style, tiles);
            // A stage before they are needed: loads take as long as a stage.
            normed.load::<U>(norm, at + tiles.depth, &place, tiles);
            sync_cube();
        }
        U::multiply::<E>(&ring, &mut acc, tiles);
        ring.advance();
        at += tiles.depth;
    }
    U::Staging::wait(0usize);
    store_part::<U>(&mut ring, &acc, tiles);
    if comptime!(config.norm.is_some()) {
        normed.store::<U>(&mut ring, comptime!(tiles.depth_planes * part_vecs::<U>(tiles)), tiles);
    }
    if comptime!(cluster > 1) {
        sync_cluster();
    } else {
        sync_cube();
    }
    add_parts::<U, E, Y, N>(y, epilogue, norm, &ring, &place, d_in, config);
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
pub(super) fn add_parts<U: GemmMma, E: Float, Y: Float, N: Size>(
    y: &mut [Vector<Y, N>],
    epilogue: &EpilogueArgs<E>,
    norm: &NormArgs,
    ring: &Ring,
    place: &Place,
    d_in: usize,
    #[comptime] config: SkinnySettings,
) {
    let tiles = comptime!(config.tiles);
    let cluster = comptime!(config.cluster);
    let rank = CUBE_POS % cluster;
    let halves = comptime!(config.steps.halves());
    let fours = comptime!(tiles.rows::<U>() / 4 / halves);
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
        let mut sum = sum_parts::<U>(ring, base, vec, tiles, cluster);
        let mut up = sum;
        if comptime!(halves > 1) {
            up = sum_parts::<U>(ring, base, vec + fours, tiles, cluster);
        }
        if comptime!(config.norm.is_some()) {
            let first = comptime!(tiles.depth_planes * part_vecs::<U>(tiles));
            let scale = row_scale(norm, ring, base, row, d_in, first, config);
            sum *= Vector::new(scale);
            up *= Vector::new(scale);
        }
        let output = place.first_row + four * 4;
        let width = N::value();
        #[unroll]
        for i in 0..comptime!(4 / width) {
            let column = output + comptime!(i * width);
            if valid && column < place.end_row {
                let mut few = Vector::<f32, N>::empty();
                let mut few_up = Vector::<f32, N>::empty();
                #[unroll]
                for e in 0..width {
                    few.insert(e, sum.extract(comptime!(i * width + e)));
                    few_up.insert(e, up.extract(comptime!(i * width + e)));
                }
                let few = epilogue.finish::<N>(few, few_up, column, config.steps);
                store_at::<Y, N>(y, (row * place.end_row + column) / width, few, config.steps);
            }
        }
    }
}

/// Four adjacent sums, at vec16 `vec` of each part, in the order of their inputs.
#[cube]
fn sum_parts<U: GemmMma>(
    ring: &Ring,
    base: u32,
    vec: usize,
    #[comptime] tiles: GemmTileShape,
    #[comptime] cluster: usize,
) -> Vector<f32, Const<4>> {
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
    sum
}

/// The address of shared memory for loads from peers, if there are any.
#[cube]
fn shared_address_of(ring: &Ring, #[comptime] cluster: usize) -> u32 {
    if comptime!(cluster > 1) { shared_address(&ring.shared[0..1]) } else { 0u32.runtime() }
}
