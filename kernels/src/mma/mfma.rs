//! AMD's CDNA: MFMA on tiles of 16 or 32, for waves of 64 lanes.
//!
//! The products are transposed: `Sᵀ = K Qᵀ`, `Oᵀ = Vᵀ Pᵀ`. A lane then holds one query of `S`, and its part
//! of `P` is operand `b` of the second product without a change.
//!
//! A vec16 of a key or a query is two steps of the instruction. The elements that a step sums up are free as
//! long as both operands agree, so lanes read 16 bytes at a time. Values are transposed during the copy to
//! shared memory, where the keys of two steps are adjacent for each element.
//!
//! Codes of 8 bits become numbers between registers and shared memory, each of them once. Keys that stay in registers
//! become numbers there: a vec16 of codes is multiplied with two vec16s of a query, which a lane has side by side.
//!
//! While a tile is multiplied, the next one is copied into registers. Where each plane has keys of its own
//! (decoding), they stay there: in the layout of the operand, 16 bytes a lane, so that only values take
//! shared memory.

use std::marker::PhantomData;

use cubecl::prelude::*;

use super::codes::numbers;
use super::fragment::{Accumulator, Fragment, FragmentLayout, column_step};
use super::operands::{
    CopyShape, Operands, Queries, copy_of, first_key, first_row, plane_of_keys, store_keys,
};
use super::product::Mma;
use super::tile_shape::TileShape;
use crate::isa::amd::{exp2, mfma, mfma_e4m3, reciprocal};
use crate::math::{Math, tanh_by_exp2};
use crate::request::TileRows;
use crate::staging::{Registers, Ring, Vec16, swizzle, swizzled};

/// Size of a tile.
pub(crate) trait Side: Send + Sync + 'static {
    /// 16 or 32.
    const SIDE: usize;
    /// Elements of a tile in a lane.
    type Acc: Size;
}

/// `v_mfma_f32_16x16x16_*`.
pub(crate) struct Side16;
/// `v_mfma_f32_32x32x8_*`.
pub(crate) struct Side32;

impl Side for Side16 {
    const SIDE: usize = 16;
    type Acc = Const<4>;
}

impl Side for Side32 {
    const SIDE: usize = 32;
    type Acc = Const<16>;
}

/// MFMA, see the module.
pub(crate) struct Mfma<S: Side>(PhantomData<S>);

/// Tiles of 16.
pub(crate) type Mfma16 = Mfma<Side16>;
/// Tiles of 32.
pub(crate) type Mfma32 = Mfma<Side32>;

/// Keys in a vec16 of transposed values.
const PER_QUAD: usize = 8;

/// Lanes with the same column.
pub(super) const fn groups<S: Side>() -> usize {
    64 / S::SIDE
}

/// Vec16s in a row of the transposed values.
fn turned_vecs(tiles: TileShape) -> usize {
    tiles.cube_keys() / PER_QUAD
}

/// Reads of a row of `vecs`; each group of lanes takes one vec16.
pub(super) const fn reads<S: Side>(vecs: usize) -> usize {
    vecs.div_ceil(groups::<S>())
}

/// Vec16s of a query for one of a key, as a lane reads it.
fn query_parts(tiles: TileShape) -> usize {
    if tiles.direct_keys || tiles.fp8_mma { tiles.vecs_of_numbers() } else { 1 }
}

/// Vec16s of a key, as lanes read them.
fn read_vecs(tiles: TileShape) -> usize {
    tiles.q_vecs() / query_parts(tiles)
}

/// Index of the current keys in the staged vec16s.
fn held_at<S: Side>(tiles: TileShape) -> usize {
    Mfma::<S>::key_copies(tiles) + Mfma::<S>::value_copies(tiles)
}

impl<S: Side> FragmentLayout for Mfma<S> {
    const PLANE: usize = 64;
    const ROWS: usize = S::SIDE;
    const COLUMNS: usize = S::SIDE;
    const ACC: usize = S::SIDE * S::SIDE / 64;
    const LANE_ROWS: usize = 1;
    const RUN: usize = 4;

    fn lane_row(_e: usize) -> usize {
        0
    }

    fn step(tile: usize, e: usize) -> usize {
        S::SIDE * tile + 4 * groups::<S>() * (e / 4) + e % 4
    }
}

impl<S: Side> CopyShape for Mfma<S> {
    const KEYS: usize = 32;
    const SAME_COPIES: bool = false;
    const VALUE_COPIES: usize = 4;
    const ASYNC: bool = false;

    fn shared_vecs(tiles: TileShape) -> usize {
        tiles.stage_vecs()
    }

    fn staged_vecs(tiles: TileShape) -> usize {
        let held = if tiles.direct_keys { Self::key_copies(tiles) } else { 0 };
        held_at::<S>(tiles) + held
    }

    fn key_copies(tiles: TileShape) -> usize {
        if tiles.direct_keys {
            tiles.keys / S::SIDE * reads::<S>(tiles.k_vecs())
        } else {
            tiles.copies(tiles.k_vecs(), 64, 1)
        }
    }

    fn even_keys(tiles: TileShape) -> bool {
        tiles.direct_keys || tiles.even(tiles.k_vecs(), 64, 1)
    }
}

#[cube]
impl<S: Side> Operands for Mfma<S> {
    type Staging = Registers;

    fn query_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
        Self::key_at(first, row, vec, vecs)
    }

    fn key_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
        swizzled(first, row, vec, vecs)
    }

    fn value_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
        first + row * vecs + (vec ^ turn(row, vecs))
    }

    fn key_copy(#[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize) {
        let vecs = comptime!(tiles.k_vecs());
        if comptime!(tiles.direct_keys) {
            let reads = comptime!(reads::<S>(vecs));
            let (lane, plane) = (UNIT_POS as usize % 64, UNIT_POS as usize / 64);
            let vec = lane / S::SIDE + comptime!(i % reads * groups::<S>());
            let row = plane * tiles.keys + lane % S::SIDE + comptime!(i / reads * S::SIDE);
            (row, min(vec, comptime!(vecs - 1)))
        } else {
            copy_of::<Self>(i, vecs, tiles)
        }
    }

    fn value_copy(#[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize) {
        // Four keys of one vec16 are copied by one lane, which transposes them.
        let at = UNIT_POS as usize + comptime!(i / 4 * tiles.planes() * 64);
        let vecs = comptime!(tiles.v_vecs());
        (at / vecs * 4 + comptime!(i % 4), at % vecs)
    }

    fn store_stage(ring: &mut Ring, #[comptime] tiles: TileShape) {
        if comptime!(tiles.direct_keys) {
            #[unroll]
            for i in 0..comptime!(Self::key_copies(tiles)) {
                ring.staged[comptime!(held_at::<S>(tiles) + i)] = ring.staged[i];
            }
        } else {
            store_keys::<Self>(ring, tiles);
        }
        let groups = comptime!(groups::<S>());
        let turned = comptime!(turned_vecs(tiles));
        let (even, parts) = comptime!((Self::even_values(tiles), tiles.parts()));
        let is_code = comptime!(tiles.kv_dtype.is_code());
        #[unroll]
        for i in 0..comptime!(Self::value_copies(tiles) / 4) {
            let (key, vec) = Self::value_copy(comptime!(4 * i), tiles);
            // Keys of a plane in fours: step, and group of lanes within it. Two steps share a vec16.
            let four = key / 4 % comptime!(tiles.keys / 4);
            let (step, group) = (four / groups, four % groups);
            let to = key / tiles.keys * comptime!(tiles.keys / PER_QUAD) + step / 2 * groups + group;
            #[unroll]
            for part in 0..parts {
                let first = comptime!(Self::key_copies(tiles) + 4 * i);
                let mut rows = Array::<Vec16>::new(comptime!(if is_code { 4usize } else { 1 }));
                if is_code {
                    #[unroll]
                    for row in 0..4usize {
                        rows[row] = numbers(ring.staged[comptime!(first + row)], part, tiles);
                    }
                }
                #[unroll]
                for e in 0..8usize {
                    let four = if is_code {
                        column_of_four(&rows, 0usize, e)
                    } else {
                        column_of_four(&ring.staged, first, e)
                    };
                    let values = ring.stage + comptime!(tiles.key_vecs());
                    let at = Self::value_at(values, (vec * parts + part) * 8 + e, to, turned);
                    if comptime!(even) || key < tiles.cube_keys() {
                        let halves = ring.shared.with_vector_size_mut::<Const<2>>();
                        halves[2 * at + step % 2] = four;
                    }
                }
            }
        }
    }

    fn fetch_queries(
        _from: &Tensor<Vec16>,
        _rows: &TileRows,
        _ring: &mut Ring,
        #[comptime] _tiles: TileShape,
    ) {
    }

    fn load_queries(
        from: &Tensor<Vec16>,
        rows: &TileRows,
        _ring: &mut Ring,
        #[comptime] tiles: TileShape,
    ) -> Queries {
        let lane = UNIT_POS_X as usize;
        let (vecs, parts) = comptime!((tiles.q_vecs(), query_parts(tiles)));
        let reads = comptime!(reads::<S>(read_vecs(tiles)));
        let mut queries = Array::new(comptime!(tiles.q_tiles * reads * parts));
        #[unroll]
        for m in 0..tiles.q_tiles {
            let row = first_row(tiles, S::SIDE) + comptime!(m * S::SIDE) + lane % S::SIDE;
            let (token, head, valid) = rows.place(row);
            let first = (token * from.stride(0) + head * from.stride(1)) / 8;
            #[unroll]
            for i in 0..reads {
                let of_key = lane / S::SIDE + comptime!(i * groups::<S>());
                #[unroll]
                for part in 0..parts {
                    let vec = of_key * parts + part;
                    let valid = valid && vec < vecs;
                    queries[comptime!((m * reads + i) * parts + part)] =
                        select(valid, from[first + min(vec, comptime!(vecs - 1))], Vec16::new(0u32));
                }
            }
        }
        Queries { vecs: queries, scales: ComptimeOption::new_None() }
    }
}

#[cube]
impl<S: Side> Accumulator for Mfma<S> {
    type Acc = S::Acc;
    type Run = Const<4>;

    fn row(#[comptime] _i: usize) -> usize {
        UNIT_POS_X as usize % S::SIDE
    }

    fn column() -> usize {
        UNIT_POS_X as usize / S::SIDE * 4
    }

    fn row_max(x: f32) -> f32 {
        let x = max(x, plane_shuffle_xor(x, 32u32));
        if comptime!(S::SIDE == 16) { max(x, plane_shuffle_xor(x, 16u32)) } else { x }
    }

    fn row_sum(x: f32) -> f32 {
        let x = x + plane_shuffle_xor(x, 32u32);
        if comptime!(S::SIDE == 16) { x + plane_shuffle_xor(x, 16u32) } else { x }
    }

    fn spread(rows: &Array<f32>, #[comptime] m: usize) -> Vector<f32, S::Acc> {
        Vector::new(rows[m])
    }
}

#[cube]
impl<S: Side> Mma for Mfma<S> {
    fn launch_bounds(#[comptime] _shared_vecs: usize) {}

    fn qk<E: Float>(q: &Queries, ring: &Ring, s: &mut Fragment<Self>, #[comptime] tiles: TileShape) {
        let lane = UNIT_POS_X as usize;
        let (vecs, parts) = comptime!((read_vecs(tiles), query_parts(tiles)));
        let reads = comptime!(reads::<S>(vecs));
        let columns = comptime!(tiles.keys / S::SIDE);
        s.clear();
        let row = first_key(tiles) + lane % S::SIDE;
        #[unroll]
        for i in 0..reads {
            let vec = lane / S::SIDE + comptime!(i * groups::<S>());
            let whole = comptime!((i + 1) * groups::<S>() <= vecs);
            let at = Self::key_at(ring.stage, row, min(vec, comptime!(vecs - 1)), vecs);
            #[unroll]
            for n in 0..columns {
                let mut keys = if comptime!(tiles.direct_keys) {
                    ring.staged[comptime!(held_at::<S>(tiles) + n * reads + i)]
                } else {
                    ring.shared[at + comptime!(n * S::SIDE * vecs)]
                };
                if comptime!(!whole) {
                    keys = select(vec < vecs, keys, Vec16::new(0u32));
                }
                #[unroll]
                for part in 0..parts {
                    let keys = if comptime!(tiles.direct_keys) { numbers(keys, part, tiles) } else { keys };
                    #[unroll]
                    for m in 0..tiles.q_tiles {
                        let query = q.vecs[comptime!((m * reads + i) * parts + part)];
                        let tile = comptime!(m * columns + n);
                        s.tiles[tile] = product::<E, S>(
                            keys,
                            half::<E>(query, 0usize),
                            half::<E>(query, 1usize),
                            s.tiles[tile],
                            comptime!(tiles.bf16()),
                        );
                    }
                }
            }
        }
    }

    fn pv<E: Float>(p: &Fragment<Self>, ring: &Ring, o: &mut Fragment<Self>, #[comptime] tiles: TileShape) {
        let lane = UNIT_POS_X as usize;
        let turned = comptime!(turned_vecs(tiles));
        let columns = comptime!(tiles.keys / S::SIDE);
        let elements = comptime!(tiles.dims.vo.div_ceil(S::SIDE));
        let steps_of_tile = comptime!(S::SIDE / 4 / groups::<S>());
        #[unroll]
        for i in 0..comptime!(tiles.keys / PER_QUAD / groups::<S>()) {
            let mut rows = Array::<Vector<E, Const<4>>>::new(comptime!(2 * tiles.q_tiles));
            #[unroll]
            for m in 0..tiles.q_tiles {
                #[unroll]
                for h in 0..2usize {
                    let step = comptime!(2 * i + h);
                    rows[comptime!(2 * m + h)] = convert_p::<E, S::Acc>(
                        p.tiles[comptime!(m * columns + step / steps_of_tile)],
                        comptime!(step % steps_of_tile * 4),
                        comptime!(tiles.bf16()),
                    );
                }
            }
            let vec = plane_of_keys(tiles) * comptime!(tiles.keys / PER_QUAD)
                + comptime!(i * groups::<S>())
                + lane / S::SIDE;
            #[unroll]
            for n in 0..elements {
                let mut element = lane % S::SIDE + comptime!(n * S::SIDE);
                if comptime!((n + 1) * S::SIDE > tiles.dims.vo) {
                    // Missing elements repeat the last one; no lane stores them.
                    element = min(element, comptime!(tiles.dims.vo - 1));
                }
                let values = ring.stage + comptime!(tiles.key_vecs());
                let at = Self::value_at(values, element, vec, turned);
                let values = ring.shared[at];
                #[unroll]
                for m in 0..tiles.q_tiles {
                    let tile = comptime!(m * elements + n);
                    o.tiles[tile] = product::<E, S>(
                        values,
                        rows[comptime!(2 * m)],
                        rows[comptime!(2 * m + 1)],
                        o.tiles[tile],
                        comptime!(tiles.bf16()),
                    );
                }
            }
        }
    }

    fn pair_outputs(_o: &mut Fragment<Self>, #[comptime] _tiles: TileShape) {}

    fn output_element(#[comptime] i: usize, #[comptime] _tiles: TileShape) -> usize {
        Self::column() + comptime!(column_step::<Self>(i * 4))
    }
}

#[cube]
impl<S: Side> Math for Mfma<S> {
    fn exp2(x: f32) -> f32 {
        exp2(x)
    }

    fn reciprocal(x: f32) -> f32 {
        reciprocal(x)
    }

    fn tanh(x: f32) -> f32 {
        tanh_by_exp2::<Self>(x)
    }
}

/// `acc + a · b` over the two steps of a vec16 of `a`; `low` and `high` are those of `b`.
#[cube]
pub(super) fn product<E: Float, S: Side>(
    a: Vec16,
    low: Vector<E, Const<4>>,
    high: Vector<E, Const<4>>,
    acc: Vector<f32, S::Acc>,
    #[comptime] bf16: bool,
) -> Vector<f32, S::Acc> {
    let acc = mfma::<E, S::Acc>(half::<E>(a, 0usize), low, acc, S::SIDE, bf16);
    mfma::<E, S::Acc>(half::<E>(a, 1usize), high, acc, S::SIDE, bf16)
}

/// `acc + a · b` over the two steps of vec16s of e4m3 FNUZ.
#[cube]
pub(super) fn product_of_codes<S: Side>(a: Vec16, b: Vec16, acc: Vector<f32, S::Acc>) -> Vector<f32, S::Acc> {
    let acc = mfma_e4m3::<S::Acc>(words(a, 0usize), words(b, 0usize), acc, S::SIDE);
    mfma_e4m3::<S::Acc>(words(a, 1usize), words(b, 1usize), acc, S::SIDE)
}

/// Element `e` of four vec16s of 16-bit elements, from `first` on: a column of four rows.
#[cube]
pub(super) fn column_of_four(
    staged: &Array<Vec16>,
    #[comptime] first: usize,
    #[comptime] e: usize,
) -> Vector<u32, Const<2>> {
    let mut column = Vector::<u32, Const<2>>::empty();
    #[unroll]
    for pair in 0..2usize {
        let a = staged[comptime!(first + 2 * pair)].extract(comptime!(e / 2));
        let b = staged[comptime!(first + 2 * pair + 1)].extract(comptime!(e / 2));
        if comptime!(e.is_multiple_of(2)) {
            column.insert(pair, (a & 0xffffu32) | (b << 16u32));
        } else {
            column.insert(pair, (a >> 16u32) | (b & 0xffff_0000u32));
        }
    }
    column
}

/// [`swizzle`] of the transposed values: the elements of lanes that write differ by 8.
#[cube]
pub(super) fn turn(element: usize, #[comptime] vecs: usize) -> usize {
    swizzle(element + element / 8, vecs)
}

/// Four elements of a vec16.
#[cube]
pub(super) fn half<E: Float>(vec: Vec16, #[comptime] half: usize) -> Vector<E, Const<4>> {
    Vector::reinterpret(words(vec, half))
}

/// Two words of a vec16.
#[cube]
fn words(vec: Vec16, #[comptime] half: usize) -> Vector<u32, Const<2>> {
    let mut words = Vector::<u32, Const<2>>::empty();
    words.insert(0usize, vec.extract(comptime!(2 * half)));
    words.insert(1usize, vec.extract(comptime!(2 * half + 1)));
    words
}

/// Four probabilities, from element `first` of a tile on, rounded to the type of the values.
///
/// gfx942 has no instruction that rounds to bf16, and LLVM's code for it checks each element for NaN. A
/// probability is NaN only where its row_sum is too, so here a carry out of a NaN does no harm.
#[cube]
fn convert_p<E: Float, Acc: Size>(
    tile: Vector<f32, Acc>,
    #[comptime] first: usize,
    #[comptime] bf16: bool,
) -> Vector<E, Const<4>> {
    if comptime!(bf16) {
        let mut words = Vector::<u32, Const<2>>::empty();
        #[unroll]
        for i in 0..2usize {
            let low = rounded(tile.extract(comptime!(first + 2 * i)));
            let high = rounded(tile.extract(comptime!(first + 2 * i + 1)));
            words.insert(i, (low >> 16u32) | (high & 0xffff_0000u32));
        }
        Vector::reinterpret(words)
    } else {
        let mut floats = Vector::<f32, Const<4>>::empty();
        #[unroll]
        for i in 0..4usize {
            floats.insert(i, tile.extract(comptime!(first + i)));
        }
        Vector::cast_from(floats)
    }
}

/// The bits of `x`, rounded to bf16 in the upper half; the lower half is undefined.
#[cube]
fn rounded(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    bits + 0x7fffu32 + (bits >> 16u32 & 1u32)
}
