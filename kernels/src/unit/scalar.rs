//! Plain multiplications, in f32, f16 and bf16: for types and machines without matrix cores, CubeCL's CPU runtime among
//! them.
//!
//! The lanes of a plane stand in a grid, up to 4 of them side by side. In a tile each holds a row of 4 columns, so that
//! with 4 tiles of rows a lane reads 4 queries and 4 keys, 16 bytes of each, for 64 multiplications of f32. Queries, keys
//! and values lie in shared memory row by row, queries and keys swizzled such that the lanes that read a column of them
//! differ in banks. In the second product a lane asks its neighbours for the weights of its rows.
//!
//! While a tile is worked on, the next one is on its way into registers.

use std::marker::PhantomData;

use cubecl::prelude::*;

use super::{Layout, MatrixUnit, Quad, Tiles, clear_absent_values, copy_of, swizzle_period};
use crate::attention::TileRows;
use crate::math::{Exact, Math};

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

/// See the module.
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

impl<P: Lanes> Layout for Scalar<P> {
    const PLANE: usize = P::PLANE;
    const ROWS: usize = down::<P>();
    const COLUMNS: usize = RUN * across::<P>();
    const ACC: usize = RUN;
    const LANE_ROWS: usize = 1;
    const RUN: usize = RUN;
    const KEYS: usize = RUN * across::<P>();
    const SAME_COPIES: bool = true;
    const VALUE_COPIES: usize = 1;
    const ASYNC: bool = false;

    fn shared_quads(tiles: Tiles) -> usize {
        tiles.stage_quads() + tiles.rows(Self::ROWS) * tiles.qk_quads()
    }

    fn staged_quads(tiles: Tiles) -> usize {
        Self::key_copies(tiles) + tiles.copies(tiles.vo_quads(), P::PLANE, 1)
    }

    fn lane_row(_e: usize) -> usize {
        0
    }

    fn step(tile: usize, e: usize) -> usize {
        Self::COLUMNS * tile + e
    }
}

/// Quad `quad` of a key or query in rows of `quads`, where `turn` tells those apart that are read together.
#[cube]
pub(super) fn turned(quad: usize, turn: usize, #[comptime] quads: usize) -> usize {
    quad ^ (turn % comptime!(swizzle_period(quads)))
}

#[cube]
impl<P: Lanes> MatrixUnit for Scalar<P> {
    type Acc = Const<4>;
    type Run = Const<4>;

    fn row(lane: usize, #[comptime] _i: usize) -> usize {
        lane / comptime!(across::<P>())
    }

    fn column(lane: usize) -> usize {
        lane % comptime!(across::<P>()) * RUN
    }

    fn key_copy(unit: usize, #[comptime] i: usize, #[comptime] tiles: Tiles) -> (usize, usize) {
        copy_of::<Self>(unit, i, tiles.qk_quads(), tiles)
    }

    fn value_copy(unit: usize, #[comptime] i: usize, #[comptime] tiles: Tiles) -> (usize, usize) {
        copy_of::<Self>(unit, i, tiles.vo_quads(), tiles)
    }

    fn copy(
        from: &Tensor<Quad>,
        at: usize,
        _valid: bool,
        _shared: &mut [Quad],
        _stage: usize,
        _row: usize,
        _quad: usize,
        #[comptime] _first: usize,
        #[comptime] _quads: usize,
        staged: &mut Array<Quad>,
        #[comptime] slot: usize,
    ) {
        staged[slot] = from[at];
    }

    fn copied() {}

    fn arrive(
        shared: &mut [Quad],
        stage: usize,
        unit: usize,
        staged: &mut Array<Quad>,
        left: usize,
        #[comptime] tiles: Tiles,
    ) {
        let copies = comptime!(Self::key_copies(tiles));
        clear_absent_values::<Self>(staged, copies, unit, left, tiles);
        // Every plane has read the last tile.
        sync_cube();
        let quads = comptime!(tiles.qk_quads());
        let even = comptime!(Self::even_keys(tiles));
        #[unroll]
        for i in 0..copies {
            let (row, quad) = Self::key_copy(unit, i, tiles);
            if comptime!(even) || row < tiles.cube_keys() {
                shared[stage + row * quads + turned(quad, row / RUN, quads)] = staged[i];
            }
        }
        let quads = comptime!(tiles.vo_quads());
        let even = comptime!(tiles.even(tiles.vo_quads(), P::PLANE, 1));
        #[unroll]
        for i in 0..comptime!(tiles.copies(tiles.vo_quads(), P::PLANE, 1)) {
            let (row, quad) = Self::value_copy(unit, i, tiles);
            if comptime!(even) || row < tiles.cube_keys() {
                shared[stage + comptime!(tiles.key_quads()) + row * quads + quad] =
                    staged[comptime!(copies + i)];
            }
        }
        sync_cube();
    }

    fn settle() {
        sync_cube();
    }

    fn fetch_queries(
        from: &Tensor<Quad>,
        rows: &TileRows,
        shared: &mut [Quad],
        unit: usize,
        #[comptime] tiles: Tiles,
    ) {
        let quads = comptime!(tiles.qk_quads());
        let mut at = unit;
        while at < comptime!(tiles.rows(Self::ROWS) * quads) {
            let (row, quad) = (at / quads, at % quads);
            let (token, head, valid) = rows.place(row);
            let first = (token * from.stride(0) + head * from.stride(1)) / tiles.per_quad();
            shared[comptime!(tiles.stage_quads()) + row * quads + turned(quad, row, quads)] =
                select(valid, from[first + quad], Quad::new(0u32));
            at += comptime!(tiles.planes() * P::PLANE);
        }
    }

    fn load_queries(
        _from: &Tensor<Quad>,
        _rows: &TileRows,
        _shared: &[Quad],
        _lane: usize,
        _plane: usize,
        #[comptime] _tiles: Tiles,
    ) -> Array<Quad> {
        Array::new(1usize)
    }

    fn scores<E: Float>(
        _queries: &Array<Quad>,
        _staged: &Array<Quad>,
        shared: &[Quad],
        stage: usize,
        lane: usize,
        plane: usize,
        scores: &mut Array<Vector<f32, Const<4>>>,
        #[comptime] tiles: Tiles,
    ) {
        let quads = comptime!(tiles.qk_quads());
        let columns = comptime!(tiles.keys / Self::COLUMNS);
        #[unroll]
        for i in 0..comptime!(tiles.row_tiles * columns) {
            scores[i] = Vector::new(0.0f32);
        }
        let first_key = plane / tiles.row_planes * tiles.keys + Self::column(lane);
        let first_row =
            plane % tiles.row_planes * comptime!(tiles.row_tiles * Self::ROWS) + Self::row(lane, 0usize);
        for quad in 0..quads {
            let mut queries = Array::<Vector<f32, Const<8>>>::new(tiles.row_tiles);
            #[unroll]
            for m in 0..tiles.row_tiles {
                let row = first_row + comptime!(m * Self::ROWS);
                let at = comptime!(tiles.stage_quads()) + row * quads + turned(quad, row, quads);
                queries[m] = floats::<E>(shared[at], comptime!(tiles.per_quad()));
            }
            #[unroll]
            for n in 0..columns {
                let mut keys = Array::<Vector<f32, Const<8>>>::new(RUN);
                #[unroll]
                for j in 0..RUN {
                    let row = first_key + comptime!(n * Self::COLUMNS + j);
                    let at = stage + row * quads + turned(quad, row / RUN, quads);
                    keys[j] = floats::<E>(shared[at], comptime!(tiles.per_quad()));
                }
                #[unroll]
                for x in 0..comptime!(tiles.per_quad()) {
                    let mut of_keys = Vector::<f32, Const<4>>::empty();
                    #[unroll]
                    for j in 0..RUN {
                        of_keys.insert(j, keys[j].extract(x));
                    }
                    #[unroll]
                    for m in 0..tiles.row_tiles {
                        let tile = comptime!(m * columns + n);
                        scores[tile] = fma(Vector::new(queries[m].extract(x)), of_keys, scores[tile]);
                    }
                }
            }
        }
    }

    fn weigh<E: Float>(
        weights: &Array<Vector<f32, Const<4>>>,
        shared: &[Quad],
        stage: usize,
        lane: usize,
        plane: usize,
        output: &mut Array<Vector<f32, Const<4>>>,
        #[comptime] tiles: Tiles,
    ) {
        let columns = comptime!(tiles.keys / Self::COLUMNS);
        let elements = comptime!(tiles.dims.vo.div_ceil(Self::COLUMNS));
        let values = stage + comptime!(tiles.key_quads());
        let first_key = plane / tiles.row_planes * tiles.keys;
        #[unroll]
        for n in 0..columns {
            // The keys of each lane of a row in turn.
            for c in 0..comptime!(across::<P>()) {
                #[unroll]
                for j in 0..RUN {
                    let mut rows = Array::<Vector<f32, Const<4>>>::new(tiles.row_tiles);
                    #[unroll]
                    for m in 0..tiles.row_tiles {
                        let mine = weights[comptime!(m * columns + n)].extract(j);
                        rows[m] = Vector::new(from_lane::<P>(mine, lane, c));
                    }
                    let key = first_key + comptime!(n * Self::COLUMNS + j) + c * RUN;
                    // A lane alone has all elements; its sums are in memory.
                    #[unroll(P::PLANE > 1)]
                    for t in 0..elements {
                        let mut element = Self::column(lane) + t * Self::COLUMNS;
                        if comptime!(!tiles.dims.vo.is_multiple_of(Self::COLUMNS)) {
                            // Elements that are not there repeat the last ones; nobody stores them.
                            element = min(element, comptime!(tiles.dims.vo - RUN));
                        }
                        let four = four_values::<E>(
                            shared,
                            values,
                            key,
                            element,
                            comptime!(tiles.vo_quads()),
                            comptime!(tiles.per_quad()),
                        );
                        #[unroll]
                        for m in 0..tiles.row_tiles {
                            output[m * elements + t] = fma(rows[m], four, output[m * elements + t]);
                        }
                    }
                }
            }
        }
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

    fn spread(rows: &Array<f32>, #[comptime] tile: usize) -> Vector<f32, Const<4>> {
        Vector::new(rows[tile])
    }
}

#[cube]
impl<P: Lanes> Math for Scalar<P> {
    fn exp2(x: f32) -> f32 {
        Exact::exp2(x)
    }

    fn tanh(x: f32) -> f32 {
        Exact::tanh(x)
    }
}

/// The floats of a quad, the first `count` of 8.
#[cube]
pub(super) fn floats<E: Float>(quad: Quad, #[comptime] count: usize) -> Vector<f32, Const<8>> {
    if comptime!(count == 4) {
        let mut floats = Vector::<f32, Const<8>>::empty();
        #[unroll]
        for i in 0..4usize {
            floats.insert(i, f32::reinterpret(quad.extract(i)));
        }
        floats
    } else {
        Vector::cast_from(Vector::<E, Const<8>>::reinterpret(quad))
    }
}

/// Elements `element..element + 4` of row `row`, the rows of `quads` beginning at `first`.
#[cube]
pub(super) fn four_values<E: Float>(
    shared: &[Quad],
    first: usize,
    row: usize,
    element: usize,
    #[comptime] quads: usize,
    #[comptime] per_quad: usize,
) -> Vector<f32, Const<4>> {
    if comptime!(per_quad == 4) {
        Vector::reinterpret(shared[first + row * quads + element / 4])
    } else {
        let pairs = shared.with_vector_size::<Const<2>>();
        let at = 2 * (first + row * quads) + element / 4;
        Vector::cast_from(Vector::<E, Const<4>>::reinterpret(pairs[at]))
    }
}

/// What lane `column` of this lane's row has as `mine`.
#[cube]
fn from_lane<P: Lanes>(mine: f32, lane: usize, column: usize) -> f32 {
    if comptime!(P::PLANE == 1) {
        mine
    } else {
        plane_shuffle(mine, (lane - lane % comptime!(across::<P>()) + column) as u32)
    }
}
