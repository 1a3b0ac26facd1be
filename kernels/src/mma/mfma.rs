//! AMD's CDNA: MFMA on tiles of 16 or 32, for waves of 64 lanes.
//!
//! The products are transposed: `Sᵀ = K Qᵀ`, `Oᵀ = Vᵀ Pᵀ`. A lane then holds one query of `S`, and its part
//! of `P` is operand `b` of the second product without a change.
//!
//! A vec16 of a key or a query is two steps of the instruction. The elements that a step sums up are free as
//! long as both operands agree, so lanes read 16 bytes at a time. Values are transposed during the copy to
//! shared memory, where the keys of two steps are adjacent for each element.
//!
//! While a tile is multiplied, the next one is copied into registers. Where each plane has keys of its own
//! (decoding), they stay there: in the layout of the operand, 16 bytes a lane, so that only values take
//! shared memory.

use std::marker::PhantomData;

use cubecl::prelude::*;

use super::{FragmentLayout, Mma, TileShape, Vec16, clear_absent_values, copy_of, swizzle};
use crate::isa::amd::{exp2, mfma};
use crate::math::{Math, tanh_by_exp2};
use crate::request::TileRows;

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
const fn reads<S: Side>(vecs: usize) -> usize {
    vecs.div_ceil(groups::<S>())
}

/// Index of the current keys in the staged vec16s.
fn held_at<S: Side>(tiles: TileShape) -> usize {
    Mfma::<S>::key_copies(tiles) + tiles.copies(tiles.vo_vecs(), 64, 4)
}

impl<S: Side> FragmentLayout for Mfma<S> {
    const PLANE: usize = 64;
    const ROWS: usize = S::SIDE;
    const COLUMNS: usize = S::SIDE;
    const ACC: usize = S::SIDE * S::SIDE / 64;
    const LANE_ROWS: usize = 1;
    const RUN: usize = 4;
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
            tiles.keys / S::SIDE * reads::<S>(tiles.qk_vecs())
        } else {
            tiles.copies(tiles.qk_vecs(), 64, 1)
        }
    }

    fn even_keys(tiles: TileShape) -> bool {
        tiles.direct_keys || tiles.even(tiles.qk_vecs(), 64, 1)
    }

    fn lane_row(_e: usize) -> usize {
        0
    }

    fn step(tile: usize, e: usize) -> usize {
        S::SIDE * tile + 4 * groups::<S>() * (e / 4) + e % 4
    }
}

#[cube]
impl<S: Side> Mma for Mfma<S> {
    type Acc = S::Acc;
    type Run = Const<4>;

    fn row(lane: usize, #[comptime] _i: usize) -> usize {
        lane % S::SIDE
    }

    fn column(lane: usize) -> usize {
        lane / S::SIDE * 4
    }

    fn key_copy(unit: usize, #[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize) {
        let vecs = comptime!(tiles.qk_vecs());
        if comptime!(tiles.direct_keys) {
            let reads = comptime!(reads::<S>(vecs));
            let (lane, plane) = (unit % 64, unit / 64);
            let vec = lane / S::SIDE + comptime!(i % reads * groups::<S>());
            let row = plane * tiles.keys + lane % S::SIDE + comptime!(i / reads * S::SIDE);
            (row, min(vec, comptime!(vecs - 1)))
        } else {
            copy_of::<Self>(unit, i, vecs, tiles)
        }
    }

    fn value_copy(unit: usize, #[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize) {
        // Four keys of one vec16 are copied by one lane, which transposes them.
        let at = unit + comptime!(i / 4 * tiles.planes() * 64);
        let vecs = comptime!(tiles.vo_vecs());
        (at / vecs * 4 + comptime!(i % 4), at % vecs)
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
        // The validity is checked after arrival: a check here would be a wait.
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
        let vecs = comptime!(tiles.qk_vecs());
        let copies = comptime!(Self::key_copies(tiles));
        clear_absent_values::<Self>(staged, copies, unit, left, tiles);
        // Every plane has read the last tile.
        sync_cube();
        let even = comptime!(Self::even_keys(tiles));
        #[unroll]
        for i in 0..copies {
            if comptime!(tiles.direct_keys) {
                staged[comptime!(held_at::<S>(tiles) + i)] = staged[i];
            } else {
                let (row, vec) = Self::key_copy(unit, i, tiles);
                if comptime!(even) || row < tiles.cube_keys() {
                    shared[stage + row * vecs + (vec ^ swizzle(row, vecs))] = staged[i];
                }
            }
        }
        let pairs = shared.with_vector_size_mut::<Const<2>>();
        let groups = comptime!(groups::<S>());
        let turned = comptime!(turned_vecs(tiles));
        let even = comptime!(tiles.even(tiles.vo_vecs(), 64, 4));
        #[unroll]
        for i in 0..comptime!(tiles.copies(tiles.vo_vecs(), 64, 4) / 4) {
            let (key, vec) = Self::value_copy(unit, comptime!(4 * i), tiles);
            // Keys of a plane in fours: step, and group of lanes within it. Two steps share a vec16.
            let four = key / 4 % comptime!(tiles.keys / 4);
            let (step, group) = (four / groups, four % groups);
            let to = key / tiles.keys * comptime!(tiles.keys / PER_QUAD) + step / 2 * groups + group;
            #[unroll]
            for word in 0..4usize {
                let a = staged[comptime!(copies + 4 * i)].extract(word);
                let b = staged[comptime!(copies + 4 * i + 1)].extract(word);
                let c = staged[comptime!(copies + 4 * i + 2)].extract(word);
                let d = staged[comptime!(copies + 4 * i + 3)].extract(word);
                #[unroll]
                for half in 0..2usize {
                    let element = vec * 8 + comptime!(2 * word + half);
                    let mut pair = Vector::<u32, Const<2>>::empty();
                    if comptime!(half == 0) {
                        pair.insert(0usize, (a & 0xffffu32) | (b << 16u32));
                        pair.insert(1usize, (c & 0xffffu32) | (d << 16u32));
                    } else {
                        pair.insert(0usize, (a >> 16u32) | (b & 0xffff_0000u32));
                        pair.insert(1usize, (c >> 16u32) | (d & 0xffff_0000u32));
                    }
                    let at =
                        stage + comptime!(tiles.key_vecs()) + element * turned + (to ^ turn(element, turned));
                    if comptime!(even) || key < tiles.cube_keys() {
                        pairs[2 * at + step % 2] = pair;
                    }
                }
            }
        }
        sync_cube();
    }

    fn wait_all_stages() {
        sync_cube();
    }

    fn fetch_queries(
        _from: &Tensor<Vec16>,
        _rows: &TileRows,
        _shared: &mut [Vec16],
        _unit: usize,
        #[comptime] _tiles: TileShape,
    ) {
    }

    fn load_queries(
        from: &Tensor<Vec16>,
        rows: &TileRows,
        _shared: &[Vec16],
        lane: usize,
        plane: usize,
        #[comptime] tiles: TileShape,
    ) -> Array<Vec16> {
        let vecs = comptime!(tiles.qk_vecs());
        let reads = comptime!(reads::<S>(vecs));
        let mut queries = Array::new(comptime!(tiles.q_tiles * reads));
        #[unroll]
        for m in 0..tiles.q_tiles {
            let row = plane % tiles.q_planes * comptime!(tiles.q_tiles * S::SIDE)
                + comptime!(m * S::SIDE)
                + lane % S::SIDE;
            let (token, head, valid) = rows.place(row);
            let first = (token * from.stride(0) + head * from.stride(1)) / 8;
            #[unroll]
            for i in 0..reads {
                let vec = lane / S::SIDE + comptime!(i * groups::<S>());
                let valid = valid && vec < vecs;
                queries[comptime!(m * reads + i)] =
                    select(valid, from[first + min(vec, comptime!(vecs - 1))], Vec16::new(0u32));
            }
        }
        queries
    }

    fn qk<E: Float>(
        queries: &Array<Vec16>,
        staged: &Array<Vec16>,
        shared: &[Vec16],
        stage: usize,
        lane: usize,
        plane: usize,
        scores: &mut Array<Vector<f32, S::Acc>>,
        #[comptime] tiles: TileShape,
    ) {
        let vecs = comptime!(tiles.qk_vecs());
        let reads = comptime!(reads::<S>(vecs));
        let columns = comptime!(tiles.keys / S::SIDE);
        #[unroll]
        for i in 0..comptime!(tiles.q_tiles * columns) {
            scores[i] = Vector::new(0.0f32);
        }
        let row = plane / tiles.q_planes * tiles.keys + lane % S::SIDE;
        #[unroll]
        for i in 0..reads {
            let vec = lane / S::SIDE + comptime!(i * groups::<S>());
            let whole = comptime!((i + 1) * groups::<S>() <= vecs);
            let at = stage + row * vecs + (min(vec, comptime!(vecs - 1)) ^ swizzle(row, vecs));
            #[unroll]
            for n in 0..columns {
                let mut keys = if comptime!(tiles.direct_keys) {
                    staged[comptime!(held_at::<S>(tiles) + n * reads + i)]
                } else {
                    shared[at + comptime!(n * S::SIDE * vecs)]
                };
                if comptime!(!whole) {
                    keys = select(vec < vecs, keys, Vec16::new(0u32));
                }
                #[unroll]
                for m in 0..tiles.q_tiles {
                    let query = queries[comptime!(m * reads + i)];
                    let tile = comptime!(m * columns + n);
                    let sum = mfma::<E, S::Acc>(
                        half::<E>(keys, 0usize),
                        half::<E>(query, 0usize),
                        scores[tile],
                        S::SIDE,
                        comptime!(tiles.bf16()),
                    );
                    scores[tile] = mfma::<E, S::Acc>(
                        half::<E>(keys, 1usize),
                        half::<E>(query, 1usize),
                        sum,
                        S::SIDE,
                        comptime!(tiles.bf16()),
                    );
                }
            }
        }
    }

    fn pv<E: Float>(
        weights: &Array<Vector<f32, S::Acc>>,
        shared: &[Vec16],
        stage: usize,
        lane: usize,
        plane: usize,
        output: &mut Array<Vector<f32, S::Acc>>,
        #[comptime] tiles: TileShape,
    ) {
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
                    let tile = weights[comptime!(m * columns + step / steps_of_tile)];
                    rows[comptime!(2 * m + h)] = narrow_weights::<E, S::Acc>(
                        tile,
                        comptime!(step % steps_of_tile * 4),
                        comptime!(tiles.bf16()),
                    );
                }
            }
            let vec = plane / tiles.q_planes * comptime!(tiles.keys / PER_QUAD)
                + comptime!(i * groups::<S>())
                + lane / S::SIDE;
            #[unroll]
            for n in 0..elements {
                let mut element = lane % S::SIDE + comptime!(n * S::SIDE);
                if comptime!((n + 1) * S::SIDE > tiles.dims.vo) {
                    // Missing elements repeat the last one; no lane stores them.
                    element = min(element, comptime!(tiles.dims.vo - 1));
                }
                let at =
                    stage + comptime!(tiles.key_vecs()) + element * turned + (vec ^ turn(element, turned));
                let values = shared[at];
                #[unroll]
                for m in 0..tiles.q_tiles {
                    let tile = comptime!(m * elements + n);
                    let sum = mfma::<E, S::Acc>(
                        half::<E>(values, 0usize),
                        rows[comptime!(2 * m)],
                        output[tile],
                        S::SIDE,
                        comptime!(tiles.bf16()),
                    );
                    output[tile] = mfma::<E, S::Acc>(
                        half::<E>(values, 1usize),
                        rows[comptime!(2 * m + 1)],
                        sum,
                        S::SIDE,
                        comptime!(tiles.bf16()),
                    );
                }
            }
        }
    }

    fn row_max(x: f32) -> f32 {
        let x = max(x, plane_shuffle_xor(x, 32u32));
        if comptime!(S::SIDE == 16) { max(x, plane_shuffle_xor(x, 16u32)) } else { x }
    }

    fn row_sum(x: f32) -> f32 {
        let x = x + plane_shuffle_xor(x, 32u32);
        if comptime!(S::SIDE == 16) { x + plane_shuffle_xor(x, 16u32) } else { x }
    }

    fn spread(rows: &Array<f32>, #[comptime] tile: usize) -> Vector<f32, S::Acc> {
        Vector::new(rows[tile])
    }
}

#[cube]
impl<S: Side> Math for Mfma<S> {
    fn exp2(x: f32) -> f32 {
        exp2(x)
    }

    fn tanh(x: f32) -> f32 {
        tanh_by_exp2::<Self>(x)
    }
}

/// [`swizzle`] of the transposed values: the elements of lanes that write differ by 8.
#[cube]
pub(super) fn turn(element: usize, #[comptime] vecs: usize) -> usize {
    swizzle(element + element / 8, vecs)
}

/// Four elements of a vec16.
#[cube]
pub(super) fn half<E: Float>(vec: Vec16, #[comptime] half: usize) -> Vector<E, Const<4>> {
    let mut words = Vector::<u32, Const<2>>::empty();
    words.insert(0usize, vec.extract(comptime!(2 * half)));
    words.insert(1usize, vec.extract(comptime!(2 * half + 1)));
    Vector::reinterpret(words)
}

/// Four probabilities, from element `first` of a tile on, rounded to the type of the values.
///
/// gfx942 has no instruction that rounds to bf16, and LLVM's code for it checks each element for NaN. A
/// probability is NaN only where its row_sum is too, so here a carry out of a NaN does no harm.
#[cube]
fn narrow_weights<E: Float, Acc: Size>(
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
