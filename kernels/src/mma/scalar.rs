//! Plain multiplications, in f32, f16 and bf16: for types and devices without matrix cores, including
//! CubeCL's CPU runtime.
//!
//! The lanes of a plane form a grid, with up to 4 of them side by side. In a tile each holds a row of 4
//! columns. So with 4 tiles of rows a lane reads 4 queries and 4 keys, 16 bytes of each, for 64
//! multiplications of f32. Queries, keys and values are stored in shared memory row by row. Queries and keys
//! are swizzled such that the lanes that read a column of them differ in banks. In the second product a lane
//! reads the probabilities of its rows from its neighbours.
//!
//! While a tile is multiplied, the next one is copied into registers.

use std::marker::PhantomData;

use cubecl::prelude::*;

use super::codes::numbers;
use super::fragment::{Accumulator, Fragment, FragmentLayout, column_step};
use super::operands::{CopyShape, Operands, Queries, copy_of, first_key, first_row, store_keys};
use super::product::Mma;
use super::tile_shape::TileShape;
use crate::math::{Exact, Math};
use crate::request::TileRows;
use crate::staging::{Registers, Ring, Vec16, swizzle_period};

/// Lanes of a plane.
pub(crate) trait Lanes: Send + Sync + 'static {
    const PLANE: usize;
}

/// A CPU.
pub(crate) struct Lanes1;
/// NVIDIA, AMD's RDNA.
pub(crate) struct Lanes32;
/// AMD's CDNA.
pub(crate) struct Lanes64;

impl Lanes for Lanes1 {
    const PLANE: usize = 1;
}

impl Lanes for Lanes32 {
    const PLANE: usize = 32;
}

impl Lanes for Lanes64 {
    const PLANE: usize = 64;
}

/// Plain multiplications, see the module.
pub(crate) struct Scalar<P: Lanes>(PhantomData<P>);

/// One lane.
pub(crate) type Scalar1 = Scalar<Lanes1>;
/// 32 lanes.
pub(crate) type Scalar32 = Scalar<Lanes32>;
/// 64 lanes.
pub(crate) type Scalar64 = Scalar<Lanes64>;

/// Columns of a lane.
pub(super) const RUN: usize = 4;

/// Lanes side by side.
const fn across<P: Lanes>() -> usize {
    if P::PLANE < 4 { P::PLANE } else { 4 }
}

/// Rows of lanes.
const fn down<P: Lanes>() -> usize {
    P::PLANE / across::<P>()
}

impl<P: Lanes> FragmentLayout for Scalar<P> {
    const PLANE: usize = P::PLANE;
    const ROWS: usize = down::<P>();
    const COLUMNS: usize = RUN * across::<P>();
    const ACC: usize = RUN;
    const LANE_ROWS: usize = 1;
    const RUN: usize = RUN;

    fn lane_row(_e: usize) -> usize {
        0
    }

    fn step(tile: usize, e: usize) -> usize {
        Self::COLUMNS * tile + e
    }
}

impl<P: Lanes> CopyShape for Scalar<P> {
    const KEYS: usize = RUN * across::<P>();
    const SAME_COPIES: bool = true;
    const VALUE_COPIES: usize = 1;
    const ASYNC: bool = false;

    fn shared_vecs(tiles: TileShape) -> usize {
        tiles.stage_vecs() + tiles.rows(Self::ROWS) * tiles.q_vecs()
    }

    fn staged_vecs(tiles: TileShape) -> usize {
        Self::key_copies(tiles) + Self::value_copies(tiles)
    }
}

#[cube]
impl<P: Lanes> Operands for Scalar<P> {
    type Staging = Registers;

    // Queries and keys are read a column at a time: by lanes of adjacent rows, and of adjacent runs of rows.
    fn query_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
        first + row * vecs + (vec ^ (row % comptime!(swizzle_period(vecs))))
    }

    fn key_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
        first + row * vecs + (vec ^ (row / RUN % comptime!(swizzle_period(vecs))))
    }

    fn value_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
        first + row * vecs + vec
    }

    fn key_copy(#[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize) {
        copy_of::<Self>(i, tiles.k_vecs(), tiles)
    }

    fn value_copy(#[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize) {
        copy_of::<Self>(i, tiles.v_vecs(), tiles)
    }

    fn store_stage(ring: &mut Ring, #[comptime] tiles: TileShape) {
        store_keys::<Self>(ring, tiles);
        let (even, parts) = comptime!((Self::even_values(tiles), tiles.parts()));
        #[unroll]
        for i in 0..comptime!(Self::value_copies(tiles)) {
            let (row, vec) = Self::value_copy(i, tiles);
            if comptime!(even) || row < tiles.cube_keys() {
                let values = ring.stage + comptime!(tiles.key_vecs());
                #[unroll]
                for part in 0..parts {
                    let to = Self::value_at(values, row, vec * parts + part, tiles.value_row());
                    ring.shared[to] =
                        numbers(ring.staged[comptime!(Self::key_copies(tiles) + i)], part, tiles);
                }
            }
        }
    }

    fn fetch_queries(from: &Tensor<Vec16>, rows: &TileRows, ring: &mut Ring, #[comptime] tiles: TileShape) {
        let vecs = comptime!(tiles.q_vecs());
        let mut at = UNIT_POS as usize;
        while at < comptime!(tiles.rows(Self::ROWS) * vecs) {
            let (row, vec) = (at / vecs, at % vecs);
            let (token, head, valid) = rows.place(row);
            let first = (token * from.stride(0) + head * from.stride(1)) / tiles.per_vec();
            let to = Self::query_at(comptime!(tiles.stage_vecs()), row, vec, vecs);
            ring.shared[to] = select(valid, from[first + vec], Vec16::new(0u32));
            at += comptime!(tiles.planes() * P::PLANE);
        }
    }

    fn load_queries(
        _from: &Tensor<Vec16>,
        _rows: &TileRows,
        _ring: &mut Ring,
        #[comptime] _tiles: TileShape,
    ) -> Queries {
        Queries { vecs: Array::new(1usize), scales: ComptimeOption::new_None() }
    }
}

#[cube]
impl<P: Lanes> Accumulator for Scalar<P> {
    type Acc = Const<4>;
    type Run = Const<4>;

    fn row(#[comptime] _i: usize) -> usize {
        UNIT_POS_X as usize / comptime!(across::<P>())
    }

    fn column() -> usize {
        UNIT_POS_X as usize % comptime!(across::<P>()) * RUN
    }

    fn row_max(x: f32) -> f32 {
        let mut highest = x;
        #[unroll]
        for step in 0..comptime!(across::<P>().ilog2()) {
            highest = max(highest, plane_shuffle_xor(highest, comptime!(1u32 << step)));
        }
        highest
    }

    fn row_sum(x: f32) -> f32 {
        let mut sum = x;
        #[unroll]
        for step in 0..comptime!(across::<P>().ilog2()) {
            sum += plane_shuffle_xor(sum, comptime!(1u32 << step));
        }
        sum
    }

    fn spread(rows: &Array<f32>, #[comptime] m: usize) -> Vector<f32, Const<4>> {
        Vector::new(rows[m])
    }
}

#[cube]
impl<P: Lanes> Mma for Scalar<P> {
    fn launch_bounds(#[comptime] _shared_vecs: usize) {}

    fn qk<E: Float>(_q: &Queries, ring: &Ring, s: &mut Fragment<Self>, #[comptime] tiles: TileShape) {
        let vecs = comptime!(tiles.key_row());
        let columns = comptime!(tiles.keys / Self::COLUMNS);
        s.clear();
        let first_key = first_key(tiles) + Self::column();
        let first_row = first_row(tiles, Self::ROWS) + Self::row(0usize);
        for vec in 0..vecs {
            let mut queries = Array::<Vector<f32, Const<8>>>::new(tiles.q_tiles);
            #[unroll]
            for m in 0..tiles.q_tiles {
                let row = first_row + comptime!(m * Self::ROWS);
                let at = Self::query_at(comptime!(tiles.stage_vecs()), row, vec, vecs);
                queries[m] = floats::<E>(ring.shared[at], comptime!(tiles.per_vec()));
            }
            #[unroll]
            for n in 0..columns {
                let mut keys = Array::<Vector<f32, Const<8>>>::new(RUN);
                #[unroll]
                for j in 0..RUN {
                    let row = first_key + comptime!(n * Self::COLUMNS + j);
                    let at = Self::key_at(ring.stage, row, vec, vecs);
                    keys[j] = floats::<E>(ring.shared[at], comptime!(tiles.per_vec()));
                }
                #[unroll]
                for x in 0..comptime!(tiles.per_vec()) {
                    let mut of_keys = Vector::<f32, Const<4>>::empty();
                    #[unroll]
                    for j in 0..RUN {
                        of_keys.insert(j, keys[j].extract(x));
                    }
                    #[unroll]
                    for m in 0..tiles.q_tiles {
                        let tile = comptime!(m * columns + n);
                        s.tiles[tile] = fma(Vector::new(queries[m].extract(x)), of_keys, s.tiles[tile]);
                    }
                }
            }
        }
    }

    fn pv<E: Float>(p: &Fragment<Self>, ring: &Ring, o: &mut Fragment<Self>, #[comptime] tiles: TileShape) {
        let columns = comptime!(tiles.keys / Self::COLUMNS);
        let elements = comptime!(tiles.dims.vo.div_ceil(Self::COLUMNS));
        let values = ring.stage + comptime!(tiles.key_vecs());
        #[unroll]
        for n in 0..columns {
            // The keys of each lane of a row in turn.
            for c in 0..comptime!(across::<P>()) {
                #[unroll]
                for j in 0..RUN {
                    let mut rows = Array::<Vector<f32, Const<4>>>::new(tiles.q_tiles);
                    #[unroll]
                    for m in 0..tiles.q_tiles {
                        let mine = p.tiles[comptime!(m * columns + n)].extract(j);
                        rows[m] = Vector::new(from_lane::<P>(mine, c));
                    }
                    let key = first_key(tiles) + comptime!(n * Self::COLUMNS + j) + c * RUN;
                    // A lane alone has all elements; its output is in memory.
                    #[unroll(P::PLANE > 1)]
                    for t in 0..elements {
                        let mut element = Self::column() + t * Self::COLUMNS;
                        if comptime!(!tiles.dims.vo.is_multiple_of(Self::COLUMNS)) {
                            // Missing elements repeat the last ones; no lane stores them.
                            element = min(element, comptime!(tiles.dims.vo - RUN));
                        }
                        let four = four_values::<E>(
                            &ring.shared,
                            values,
                            key,
                            element,
                            comptime!(tiles.value_row()),
                            comptime!(tiles.per_vec()),
                        );
                        #[unroll]
                        for m in 0..tiles.q_tiles {
                            o.tiles[m * elements + t] = fma(rows[m], four, o.tiles[m * elements + t]);
                        }
                    }
                }
            }
        }
    }

    fn pair_outputs(_o: &mut Fragment<Self>, #[comptime] _tiles: TileShape) {}

    fn output_element(#[comptime] i: usize, #[comptime] _tiles: TileShape) -> usize {
        Self::column() + comptime!(column_step::<Self>(i * RUN))
    }
}

#[cube]
impl<P: Lanes> Math for Scalar<P> {
    fn exp2(x: f32) -> f32 {
        Exact::exp2(x)
    }

    fn reciprocal(x: f32) -> f32 {
        Exact::reciprocal(x)
    }

    fn tanh(x: f32) -> f32 {
        Exact::tanh(x)
    }
}

/// The floats of a vec16, the first `count` of 8.
#[cube]
pub(super) fn floats<E: Float>(vec: Vec16, #[comptime] count: usize) -> Vector<f32, Const<8>> {
    if comptime!(count == 4) {
        let mut floats = Vector::<f32, Const<8>>::empty();
        #[unroll]
        for i in 0..4usize {
            floats.insert(i, f32::reinterpret(vec.extract(i)));
        }
        floats
    } else {
        Vector::cast_from(Vector::<E, Const<8>>::reinterpret(vec))
    }
}

/// Elements `element..element + 4` of row `row`; the rows of `vecs` begin at `first`.
#[cube]
pub(super) fn four_values<E: Float>(
    shared: &[Vec16],
    first: usize,
    row: usize,
    element: usize,
    #[comptime] vecs: usize,
    #[comptime] per_vec: usize,
) -> Vector<f32, Const<4>> {
    if comptime!(per_vec == 4) {
        Vector::reinterpret(shared[first + row * vecs + element / 4])
    } else {
        let pairs = shared.with_vector_size::<Const<2>>();
        let at = 2 * (first + row * vecs) + element / 4;
        Vector::cast_from(Vector::<E, Const<4>>::reinterpret(pairs[at]))
    }
}

/// The value of `mine` in lane `column` of this lane's row.
#[cube]
fn from_lane<P: Lanes>(mine: f32, column: usize) -> f32 {
    if comptime!(P::PLANE == 1) {
        mine
    } else {
        let lane = UNIT_POS_X as usize;
        plane_shuffle(mine, (lane - lane % comptime!(across::<P>()) + column) as u32)
    }
}
