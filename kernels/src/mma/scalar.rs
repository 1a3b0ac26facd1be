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

use super::{FragmentLayout, Mma, TileShape, Vec16, clear_absent_values, copy_of, swizzle_period};
use crate::math::{Exact, Math};
use crate::request::TileRows;

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
    const KEYS: usize = RUN * across::<P>();
    const SAME_COPIES: bool = true;
    const VALUE_COPIES: usize = 1;
    const ASYNC: bool = false;

    fn shared_vecs(tiles: TileShape) -> usize {
        tiles.stage_vecs() + tiles.rows(Self::ROWS) * tiles.qk_vecs()
    }

    fn staged_vecs(tiles: TileShape) -> usize {
        Self::key_copies(tiles) + tiles.copies(tiles.vo_vecs(), P::PLANE, 1)
    }

    fn lane_row(_e: usize) -> usize {
        0
    }

    fn step(tile: usize, e: usize) -> usize {
        Self::COLUMNS * tile + e
    }
}

/// Position of vec16 `vec` of a key or query in rows of `vecs`. `turn` differs for those that are read
/// together.
#[cube]
pub(super) fn turned(vec: usize, turn: usize, #[comptime] vecs: usize) -> usize {
    vec ^ (turn % comptime!(swizzle_period(vecs)))
}

#[cube]
impl<P: Lanes> Mma for Scalar<P> {
    type Acc = Const<4>;
    type Run = Const<4>;

    fn row(lane: usize, #[comptime] _i: usize) -> usize {
        lane / comptime!(across::<P>())
    }

    fn column(lane: usize) -> usize {
        lane % comptime!(across::<P>()) * RUN
    }

    fn key_copy(unit: usize, #[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize) {
        copy_of::<Self>(unit, i, tiles.qk_vecs(), tiles)
    }

    fn value_copy(unit: usize, #[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize) {
        copy_of::<Self>(unit, i, tiles.vo_vecs(), tiles)
    }

    fn copy(
        from: &Tensor<Vec16>,
        at: usize,
        _valid: bool,
        _shared: &mut [Vec16],
        _stage: usize,
        _row: usize,
        _vec: usize,
        #[comptime] _first: usize,
        #[comptime] _vecs: usize,
        staged: &mut Array<Vec16>,
        #[comptime] slot: usize,
    ) {
        staged[slot] = from[at];
    }

    fn commit_stage() {}

    fn wait_stage(
        shared: &mut [Vec16],
        stage: usize,
        unit: usize,
        staged: &mut Array<Vec16>,
        left: usize,
        #[comptime] tiles: TileShape,
    ) {
        let copies = comptime!(Self::key_copies(tiles));
        clear_absent_values::<Self>(staged, copies, unit, left, tiles);
        // Every plane has read the last tile.
        sync_cube();
        let vecs = comptime!(tiles.qk_vecs());
        let even = comptime!(Self::even_keys(tiles));
        #[unroll]
        for i in 0..copies {
            let (row, vec) = Self::key_copy(unit, i, tiles);
            if comptime!(even) || row < tiles.cube_keys() {
                shared[stage + row * vecs + turned(vec, row / RUN, vecs)] = staged[i];
            }
        }
        let vecs = comptime!(tiles.vo_vecs());
        let even = comptime!(tiles.even(tiles.vo_vecs(), P::PLANE, 1));
        #[unroll]
        for i in 0..comptime!(tiles.copies(tiles.vo_vecs(), P::PLANE, 1)) {
            let (row, vec) = Self::value_copy(unit, i, tiles);
            if comptime!(even) || row < tiles.cube_keys() {
                shared[stage + comptime!(tiles.key_vecs()) + row * vecs + vec] =
                    staged[comptime!(copies + i)];
            }
        }
        sync_cube();
    }

    fn wait_all_stages() {
        sync_cube();
    }

    fn fetch_queries(
        from: &Tensor<Vec16>,
        rows: &TileRows,
        shared: &mut [Vec16],
        unit: usize,
        #[comptime] tiles: TileShape,
    ) {
        let vecs = comptime!(tiles.qk_vecs());
        let mut at = unit;
        while at < comptime!(tiles.rows(Self::ROWS) * vecs) {
            let (row, vec) = (at / vecs, at % vecs);
            let (token, head, valid) = rows.place(row);
            let first = (token * from.stride(0) + head * from.stride(1)) / tiles.per_vec();
            shared[comptime!(tiles.stage_vecs()) + row * vecs + turned(vec, row, vecs)] =
                select(valid, from[first + vec], Vec16::new(0u32));
            at += comptime!(tiles.planes() * P::PLANE);
        }
    }

    fn load_queries(
        _from: &Tensor<Vec16>,
        _rows: &TileRows,
        _shared: &[Vec16],
        _lane: usize,
        _plane: usize,
        #[comptime] _tiles: TileShape,
    ) -> Array<Vec16> {
        Array::new(1usize)
    }

    fn qk<E: Float>(
        _queries: &Array<Vec16>,
        _staged: &Array<Vec16>,
        shared: &[Vec16],
        stage: usize,
        lane: usize,
        plane: usize,
        scores: &mut Array<Vector<f32, Const<4>>>,
        #[comptime] tiles: TileShape,
    ) {
        let vecs = comptime!(tiles.qk_vecs());
        let columns = comptime!(tiles.keys / Self::COLUMNS);
        #[unroll]
        for i in 0..comptime!(tiles.q_tiles * columns) {
            scores[i] = Vector::new(0.0f32);
        }
        let first_key = plane / tiles.q_planes * tiles.keys + Self::column(lane);
        let first_row =
            plane % tiles.q_planes * comptime!(tiles.q_tiles * Self::ROWS) + Self::row(lane, 0usize);
        for vec in 0..vecs {
            let mut queries = Array::<Vector<f32, Const<8>>>::new(tiles.q_tiles);
            #[unroll]
            for m in 0..tiles.q_tiles {
                let row = first_row + comptime!(m * Self::ROWS);
                let at = comptime!(tiles.stage_vecs()) + row * vecs + turned(vec, row, vecs);
                queries[m] = floats::<E>(shared[at], comptime!(tiles.per_vec()));
            }
            #[unroll]
            for n in 0..columns {
                let mut keys = Array::<Vector<f32, Const<8>>>::new(RUN);
                #[unroll]
                for j in 0..RUN {
                    let row = first_key + comptime!(n * Self::COLUMNS + j);
                    let at = stage + row * vecs + turned(vec, row / RUN, vecs);
                    keys[j] = floats::<E>(shared[at], comptime!(tiles.per_vec()));
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
                        scores[tile] = fma(Vector::new(queries[m].extract(x)), of_keys, scores[tile]);
                    }
                }
            }
        }
    }

    fn pv<E: Float>(
        weights: &Array<Vector<f32, Const<4>>>,
        shared: &[Vec16],
        stage: usize,
        lane: usize,
        plane: usize,
        output: &mut Array<Vector<f32, Const<4>>>,
        #[comptime] tiles: TileShape,
    ) {
        let columns = comptime!(tiles.keys / Self::COLUMNS);
        let elements = comptime!(tiles.dims.vo.div_ceil(Self::COLUMNS));
        let values = stage + comptime!(tiles.key_vecs());
        let first_key = plane / tiles.q_planes * tiles.keys;
        #[unroll]
        for n in 0..columns {
            // The keys of each lane of a row in turn.
            for c in 0..comptime!(across::<P>()) {
                #[unroll]
                for j in 0..RUN {
                    let mut rows = Array::<Vector<f32, Const<4>>>::new(tiles.q_tiles);
                    #[unroll]
                    for m in 0..tiles.q_tiles {
                        let mine = weights[comptime!(m * columns + n)].extract(j);
                        rows[m] = Vector::new(from_lane::<P>(mine, lane, c));
                    }
                    let key = first_key + comptime!(n * Self::COLUMNS + j) + c * RUN;
                    // A lane alone has all elements; its output is in memory.
                    #[unroll(P::PLANE > 1)]
                    for t in 0..elements {
                        let mut element = Self::column(lane) + t * Self::COLUMNS;
                        if comptime!(!tiles.dims.vo.is_multiple_of(Self::COLUMNS)) {
                            // Missing elements repeat the last ones; no lane stores them.
                            element = min(element, comptime!(tiles.dims.vo - RUN));
                        }
                        let four = four_values::<E>(
                            shared,
                            values,
                            key,
                            element,
                            comptime!(tiles.vo_vecs()),
                            comptime!(tiles.per_vec()),
                        );
                        #[unroll]
                        for m in 0..tiles.q_tiles {
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
fn from_lane<P: Lanes>(mine: f32, lane: usize, column: usize) -> f32 {
    if comptime!(P::PLANE == 1) {
        mine
    } else {
        plane_shuffle(mine, (lane - lane % comptime!(across::<P>()) + column) as u32)
    }
}
