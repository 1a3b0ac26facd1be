//! AMD's CDNA3: MFMA of e4m3 FNUZ on tiles of 16 or 32, for waves of 64 lanes.
//!
//! As [`super::mfma`], but for the type: keys and values are codes up to the matrix unit, which multiplies them twice as
//! fast. A step sums up eight elements of a lane, the same that two steps of 16-bit numbers have. So a vec16 of transposed
//! values has 16 keys of an element.
//!
//! | operand | codes |
//! |---|---|
//! | queries | each row has a scale, by which its largest number becomes the largest code |
//! | keys, values | as they are stored; OCP's e4m3 as FNUZ, which halves them |
//! | probabilities | of `2^7 p`, so that small ones are not lost; [`TileShape::p_log2`] |
//!
//! The scales of codes multiply `S`, by a factor for each row, and the complete `O`.

use std::marker::PhantomData;

use cubecl::prelude::*;
use half::f16;

use super::codes::to_fnuz_all;
use super::fragment::{Accumulator, Fragment, FragmentLayout, column_step};
use super::mfma::{Mfma, Side, Side16, Side32, groups, product_of_codes, reads};
use super::operands::{CopyShape, Operands, Queries, copy_of, first_key, plane_of_keys, store_keys};
use super::product::Mma;
use super::tile_shape::TileShape;
use crate::fp8::Fp8;
use crate::isa::amd::to_fp8;
use crate::math::Math;
use crate::request::TileRows;
use crate::staging::{Registers, Ring, Vec16, swizzle, swizzled};

/// MFMA of codes, see the module.
pub(crate) struct MfmaFp8<S: Side>(PhantomData<S>);

/// Tiles of 16.
pub(crate) type MfmaFp8Of16 = MfmaFp8<Side16>;
/// Tiles of 32.
pub(crate) type MfmaFp8Of32 = MfmaFp8<Side32>;

/// Codes in a vec16: elements of a key or a query, or keys of transposed values.
const PER_VEC: usize = 16;

/// The least size of a row that is divided by: zeros stay zeros.
const LEAST: f32 = 1e-30;

/// Vec16s in a row of the transposed values.
fn turned_vecs(tiles: TileShape) -> usize {
    tiles.cube_keys() / PER_VEC
}

impl<S: Side> FragmentLayout for MfmaFp8<S> {
    const PLANE: usize = Mfma::<S>::PLANE;
    const ROWS: usize = Mfma::<S>::ROWS;
    const COLUMNS: usize = Mfma::<S>::COLUMNS;
    const ACC: usize = Mfma::<S>::ACC;
    const LANE_ROWS: usize = Mfma::<S>::LANE_ROWS;
    const RUN: usize = Mfma::<S>::RUN;

    fn lane_row(e: usize) -> usize {
        Mfma::<S>::lane_row(e)
    }

    fn step(tile: usize, e: usize) -> usize {
        Mfma::<S>::step(tile, e)
    }
}

impl<S: Side> CopyShape for MfmaFp8<S> {
    const KEYS: usize = PER_VEC * groups::<S>();
    const SAME_COPIES: bool = false;
    const VALUE_COPIES: usize = 4;
    const ASYNC: bool = false;

    fn shared_vecs(tiles: TileShape) -> usize {
        tiles.stage_vecs()
    }

    fn staged_vecs(tiles: TileShape) -> usize {
        Self::key_copies(tiles) + Self::value_copies(tiles)
    }
}

#[cube]
impl<S: Side> Operands for MfmaFp8<S> {
    type Staging = Registers;

    fn query_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
        Self::key_at(first, row, vec, vecs)
    }

    fn key_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
        swizzled(first, row, vec, vecs)
    }

    fn value_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
        // The elements of lanes that write differ by 16, those of lanes that read by 1.
        first + row * vecs + (vec ^ swizzle(row + row / PER_VEC, vecs))
    }

    fn key_copy(#[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize) {
        copy_of::<Self>(i, comptime!(tiles.k_vecs()), tiles)
    }

    fn value_copy(#[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize) {
        Mfma::<S>::value_copy(i, tiles)
    }

    fn store_stage(ring: &mut Ring, #[comptime] tiles: TileShape) {
        let key_copies = comptime!(Self::key_copies(tiles));
        if comptime!(tiles.kv_dtype == Fp8::E4m3.into()) {
            to_fnuz_all(&mut ring.staged, comptime!(key_copies + Self::value_copies(tiles)));
        }
        store_keys::<Self>(ring, tiles);
        let (groups, turned) = comptime!((groups::<S>(), turned_vecs(tiles)));
        let values = ring.stage + comptime!(tiles.key_vecs());
        #[unroll]
        for i in 0..comptime!(Self::value_copies(tiles) / 4) {
            let (key, vec) = Self::value_copy(comptime!(4 * i), tiles);
            // Keys of a plane in fours: word of a vec16, and vec16 among those of the lane groups.
            let four = key / 4 % comptime!(tiles.keys / 4);
            let (word, group) = (four / groups, four % groups);
            let to = key / tiles.keys * comptime!(tiles.keys / PER_VEC) + word / 4 * groups + group;
            if comptime!(Self::even_values(tiles)) || key < tiles.cube_keys() {
                #[unroll]
                for e in 0..4usize {
                    let columns = columns_of_four(&ring.staged, comptime!(key_copies + 4 * i), e);
                    #[unroll]
                    for c in 0..4usize {
                        let at = Self::value_at(values, vec * PER_VEC + comptime!(4 * e + c), to, turned);
                        let words = ring.shared.with_vector_size_mut::<Const<1>>();
                        words[4 * at + word % 4] = Vector::new(columns.extract(c));
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
        ring: &mut Ring,
        #[comptime] tiles: TileShape,
    ) -> Queries {
        let numbers = Mfma::<S>::load_queries(from, rows, ring, tiles).vecs;
        let reads = comptime!(reads::<S>(tiles.k_vecs()));
        let mut vecs = Array::<Vec16>::new(comptime!(tiles.q_tiles * reads));
        let mut scales = Array::<f32>::new(tiles.q_tiles);
        #[unroll]
        for m in 0..tiles.q_tiles {
            let mut size = LEAST.runtime();
            #[unroll]
            for i in 0..comptime!(2 * reads) {
                let vec = numbers[comptime!(2 * m * reads + i)];
                #[unroll]
                for half in 0..2usize {
                    let four = four_floats(vec, half, comptime!(tiles.bf16()));
                    #[unroll]
                    for e in 0..4usize {
                        size = max(size, four.extract(e).abs());
                    }
                }
            }
            let size = Self::row_max(size);
            let inverse = Vector::new(comptime!(Fp8::E4m3Fnuz.max()) / size);
            scales[m] = size * comptime!(tiles.code_factor() / Fp8::E4m3Fnuz.max());
            #[unroll]
            for i in 0..reads {
                let mut codes = Vec16::empty();
                #[unroll]
                for word in 0..4usize {
                    let vec = numbers[comptime!(2 * (m * reads + i) + word / 2)];
                    let four = four_floats(vec, comptime!(word % 2), comptime!(tiles.bf16()));
                    codes.insert(word, to_fp8(four * inverse, false));
                }
                vecs[comptime!(m * reads + i)] = codes;
            }
        }
        Queries { vecs, scales: ComptimeOption::new_Some(scales) }
    }
}

#[cube]
impl<S: Side> Accumulator for MfmaFp8<S> {
    type Acc = S::Acc;
    type Run = Const<4>;

    fn row(#[comptime] i: usize) -> usize {
        Mfma::<S>::row(i)
    }

    fn column() -> usize {
        Mfma::<S>::column()
    }

    fn row_max(x: f32) -> f32 {
        Mfma::<S>::row_max(x)
    }

    fn row_sum(x: f32) -> f32 {
        Mfma::<S>::row_sum(x)
    }

    fn spread(rows: &Array<f32>, #[comptime] m: usize) -> Vector<f32, S::Acc> {
        Mfma::<S>::spread(rows, m)
    }
}

#[cube]
impl<S: Side> Mma for MfmaFp8<S> {
    fn launch_bounds(#[comptime] _shared_vecs: usize) {}

    fn qk<E: Float>(q: &Queries, ring: &Ring, s: &mut Fragment<Self>, #[comptime] tiles: TileShape) {
        let lane = UNIT_POS_X as usize;
        let vecs = comptime!(tiles.k_vecs());
        let (reads, columns) = comptime!((reads::<S>(vecs), tiles.keys / S::SIDE));
        s.clear();
        let row = first_key(tiles) + lane % S::SIDE;
        #[unroll]
        for i in 0..reads {
            let vec = lane / S::SIDE + comptime!(i * groups::<S>());
            let whole = comptime!((i + 1) * groups::<S>() <= vecs);
            let at = Self::key_at(ring.stage, row, min(vec, comptime!(vecs - 1)), vecs);
            #[unroll]
            for n in 0..columns {
                let mut keys = ring.shared[at + comptime!(n * S::SIDE * vecs)];
                if comptime!(!whole) {
                    keys = select(vec < vecs, keys, Vec16::new(0u32));
                }
                #[unroll]
                for m in 0..tiles.q_tiles {
                    let tile = comptime!(m * columns + n);
                    s.tiles[tile] =
                        product_of_codes::<S>(keys, q.vecs[comptime!(m * reads + i)], s.tiles[tile]);
                }
            }
        }
    }

    fn pv<E: Float>(p: &Fragment<Self>, ring: &Ring, o: &mut Fragment<Self>, #[comptime] tiles: TileShape) {
        let lane = UNIT_POS_X as usize;
        let (turned, columns) = comptime!((turned_vecs(tiles), tiles.keys / S::SIDE));
        let elements = comptime!(tiles.dims.vo.div_ceil(S::SIDE));
        let values = ring.stage + comptime!(tiles.key_vecs());
        // Fours of keys of a lane in a tile of `S`.
        let fours = comptime!(Self::ACC / 4);
        #[unroll]
        for i in 0..comptime!(tiles.keys / PER_VEC / groups::<S>()) {
            let mut weights = Array::<Vec16>::new(tiles.q_tiles);
            #[unroll]
            for m in 0..tiles.q_tiles {
                let mut codes = Vec16::empty();
                #[unroll]
                for word in 0..4usize {
                    let four = comptime!(4 * i + word);
                    let tile = p.tiles[comptime!(m * columns + four / fours)];
                    let mut floats = Vector::<f32, Const<4>>::empty();
                    #[unroll]
                    for e in 0..4usize {
                        floats.insert(e, tile.extract(comptime!(four % fours * 4 + e)));
                    }
                    codes.insert(word, to_fp8(floats, false));
                }
                weights[m] = codes;
            }
            let vec = plane_of_keys(tiles) * comptime!(tiles.keys / PER_VEC)
                + comptime!(i * groups::<S>())
                + lane / S::SIDE;
            #[unroll]
            for n in 0..elements {
                let mut element = lane % S::SIDE + comptime!(n * S::SIDE);
                if comptime!((n + 1) * S::SIDE > tiles.dims.vo) {
                    // Missing elements repeat the last one; no lane stores them.
                    element = min(element, comptime!(tiles.dims.vo - 1));
                }
                let of_keys = ring.shared[Self::value_at(values, element, vec, turned)];
                #[unroll]
                for m in 0..tiles.q_tiles {
                    let tile = comptime!(m * elements + n);
                    o.tiles[tile] = product_of_codes::<S>(of_keys, weights[m], o.tiles[tile]);
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
impl<S: Side> Math for MfmaFp8<S> {
    fn exp2(x: f32) -> f32 {
        Mfma::<S>::exp2(x)
    }

    fn reciprocal(x: f32) -> f32 {
        Mfma::<S>::reciprocal(x)
    }

    fn tanh(x: f32) -> f32 {
        Mfma::<S>::tanh(x)
    }
}

/// Bytes `4 e` to `4 e + 3` of four vec16s from `first` on, transposed: word `c` has byte `4 e + c` of each.
#[cube]
fn columns_of_four(staged: &Array<Vec16>, #[comptime] first: usize, #[comptime] e: usize) -> Vec16 {
    let mut even = Array::<u32>::new(2usize);
    let mut odd = Array::<u32>::new(2usize);
    #[unroll]
    for pair in 0..2usize {
        let a = staged[comptime!(first + 2 * pair)].extract(e);
        let b = staged[comptime!(first + 2 * pair + 1)].extract(e);
        even[pair] = (a & 0x00ff_00ffu32) | ((b & 0x00ff_00ffu32) << 8u32);
        odd[pair] = ((a >> 8u32) & 0x00ff_00ffu32) | (b & 0xff00_ff00u32);
    }
    let mut columns = Vec16::empty();
    columns.insert(0usize, (even[0] & 0xffffu32) | (even[1] << 16u32));
    columns.insert(1usize, (odd[0] & 0xffffu32) | (odd[1] << 16u32));
    columns.insert(2usize, (even[0] >> 16u32) | (even[1] & 0xffff_0000u32));
    columns.insert(3usize, (odd[0] >> 16u32) | (odd[1] & 0xffff_0000u32));
    columns
}

/// Half of a vec16 of 16-bit numbers.
#[cube]
fn four_floats(vec: Vec16, #[comptime] half: usize, #[comptime] bf16: bool) -> Vector<f32, Const<4>> {
    let mut words = Vector::<u32, Const<2>>::empty();
    #[unroll]
    for i in 0..2usize {
        words.insert(i, vec.extract(comptime!(2 * half + i)));
    }
    if comptime!(bf16) {
        let mut bits = Vector::<u32, Const<4>>::empty();
        #[unroll]
        for i in 0..2usize {
            bits.insert(comptime!(2 * i), words.extract(i) << 16u32);
            bits.insert(comptime!(2 * i + 1), words.extract(i) & 0xffff_0000u32);
        }
        Vector::reinterpret(bits)
    } else {
        Vector::cast_from(Vector::<f16, Const<4>>::reinterpret(words))
    }
}
