//! NVIDIA since Ampere: `mma.sync` m16n8k16, operands through `ldmatrix`, copies through `cp.async`.
//!
//! Keys, values and queries are stored in shared memory row by row, swizzled. Values are transposed by the
//! load.

use cubecl::prelude::*;

use super::fragment::{Accumulator, Fragment, FragmentLayout};
use super::operands::{CopyShape, Operands, copy_of, first_key, first_row};
use super::product::Mma;
use super::tile_shape::TileShape;
use crate::isa::nvidia::{
    OperandType, exp2, ldmatrix, min_cubes_per_core, mma, pack, reciprocal, shared_address, shuffle_xor, tanh,
};
use crate::math::Math;
use crate::request::TileRows;
use crate::staging::{CpAsync, Ring, Staging, Vec16, swizzled};

/// A third of the shared memory of Hopper's cores, in vec16s. With more, a core has room for two cubes at most, which
/// then need not save registers: 168 of them where 214 are to be had cost 7% of decoding with split keys (H200).
const MANY_VECS: usize = (228 << 10) / 16 / 3;

/// `mma.sync`, see the module.
pub(crate) struct MmaSync;

impl FragmentLayout for MmaSync {
    const PLANE: usize = 32;
    const ROWS: usize = 16;
    const COLUMNS: usize = 8;
    const ACC: usize = 4;
    const LANE_ROWS: usize = 2;
    const RUN: usize = 2;

    fn lane_row(e: usize) -> usize {
        e / 2
    }

    fn step(tile: usize, e: usize) -> usize {
        8 * tile + e % 2
    }
}

impl CopyShape for MmaSync {
    const KEYS: usize = 16;
    const SAME_COPIES: bool = true;
    const VALUE_COPIES: usize = 1;
    const ASYNC: bool = true;

    fn shared_vecs(tiles: TileShape) -> usize {
        let queries = tiles.rows(Self::ROWS) * tiles.q_vecs();
        tiles.stages * tiles.stage_vecs() + if shares_last_stage(tiles) { 0 } else { queries }
    }

    fn staged_vecs(_tiles: TileShape) -> usize {
        1
    }
}

/// Address of vec16 `vec` of row `row` of a matrix that begins at vec16 `first`.
#[cube]
pub(super) fn address(ring: &Ring, first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> u32 {
    shared_address(&ring.shared[0..1]) + (MmaSync::key_at(first, row, vec, vecs) as u32) * 16u32
}

/// Two tiles side by side of `acc += a · b`, of which `b` has the four matrices of a load.
#[cube]
pub(super) fn product(
    a: Vec16,
    b: Vec16,
    acc: &mut Fragment<MmaSync>,
    #[comptime] tile: usize,
    #[comptime] ty: OperandType,
) {
    #[unroll]
    for i in 0..2usize {
        let tile = comptime!(tile + i);
        acc.tiles[tile] =
            mma(a, b.extract(comptime!(2 * i)), b.extract(comptime!(2 * i + 1)), acc.tiles[tile], ty);
    }
}

#[cube]
impl Operands for MmaSync {
    type Staging = CpAsync;

    fn query_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
        Self::key_at(first, row, vec, vecs)
    }

    fn key_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
        swizzled(first, row, vec, vecs)
    }

    fn value_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
        Self::key_at(first, row, vec, vecs)
    }

    fn key_copy(#[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize) {
        copy_of::<Self>(i, tiles.k_vecs(), tiles)
    }

    fn value_copy(#[comptime] i: usize, #[comptime] tiles: TileShape) -> (usize, usize) {
        copy_of::<Self>(i, tiles.v_vecs(), tiles)
    }

    fn store_stage(_ring: &mut Ring, #[comptime] _tiles: TileShape) {}

    fn fetch_queries(from: &Tensor<Vec16>, rows: &TileRows, ring: &mut Ring, #[comptime] tiles: TileShape) {
        let start = comptime!(queries_at(tiles)).runtime();
        let vecs = comptime!(tiles.q_vecs());
        let units = comptime!(tiles.planes() * MmaSync::PLANE);
        let total = comptime!(tiles.rows(MmaSync::ROWS) * vecs);
        #[unroll]
        for i in 0..comptime!(total.div_ceil(units)) {
            let at = UNIT_POS as usize + comptime!(i * units);
            if comptime!(total % units == 0) || at < total {
                let (row, vec) = (at / vecs, at % vecs);
                let (token, head, valid) = rows.place(row);
                let from_vec = (token * from.stride(0) + head * from.stride(1)) / 8 + vec;
                let to = Self::query_at(start, row, vec, vecs);
                CpAsync::copy(ring, from, from_vec, valid, to, 0usize);
            }
        }
        CpAsync::commit();
    }

    fn load_queries(
        _from: &Tensor<Vec16>,
        _rows: &TileRows,
        ring: &Ring,
        #[comptime] tiles: TileShape,
    ) -> Array<Vec16> {
        let depth = comptime!(tiles.dims.qk / 16);
        let mut queries = Array::new(comptime!(if tiles.q_in_registers { tiles.q_tiles * depth } else { 1 }));
        if comptime!(tiles.q_in_registers) {
            CpAsync::wait(comptime!(tiles.stages - 1));
            #[unroll]
            for k in 0..depth {
                #[unroll]
                for m in 0..tiles.q_tiles {
                    queries[m * depth + k] = query(ring, m, k, tiles);
                }
            }
        }
        queries
    }
}

#[cube]
impl Accumulator for MmaSync {
    type Acc = Const<4>;
    type Run = Const<2>;

    fn row(#[comptime] i: usize) -> usize {
        UNIT_POS_X as usize / 4 + comptime!(8 * i)
    }

    fn column() -> usize {
        UNIT_POS_X as usize % 4 * 2
    }

    fn row_max(x: f32) -> f32 {
        let x = max(x, shuffle_xor(x, 1usize));
        max(x, shuffle_xor(x, 2usize))
    }

    fn row_sum(x: f32) -> f32 {
        let x = x + shuffle_xor(x, 1usize);
        x + shuffle_xor(x, 2usize)
    }

    fn spread(rows: &Array<f32>, #[comptime] m: usize) -> Vector<f32, Const<4>> {
        let (low, high) = (rows[comptime!(2 * m)], rows[comptime!(2 * m + 1)]);
        let mut spread = Vector::<f32, Const<4>>::new(low);
        spread.insert(2usize, high);
        spread.insert(3usize, high);
        spread
    }
}

#[cube]
impl Mma for MmaSync {
    fn launch_bounds(#[comptime] shared_vecs: usize) {
        if comptime!(shared_vecs > MANY_VECS) {
            min_cubes_per_core(1usize);
        }
    }

    fn qk<E: Float>(q: &Array<Vec16>, ring: &Ring, s: &mut Fragment<Self>, #[comptime] tiles: TileShape) {
        let lane = UNIT_POS_X as usize;
        let depth = comptime!(tiles.dims.qk / 16);
        let vecs = comptime!(tiles.k_vecs());
        let columns = comptime!(tiles.keys / 8);
        s.clear();
        // A matrix has 8 keys: low and high half of the depth, then the next 8 keys.
        let row = first_key(tiles) + lane / 16 * 8 + lane % 8;
        let vec = lane / 8 % 2;
        #[unroll]
        for k in 0..depth {
            let mut rows = Array::<Vec16>::new(tiles.q_tiles);
            #[unroll]
            for m in 0..tiles.q_tiles {
                rows[m] =
                    if comptime!(tiles.q_in_registers) { q[m * depth + k] } else { query(ring, m, k, tiles) };
            }
            let at = address(ring, ring.stage, row, vec + comptime!(2 * k), vecs);
            #[unroll]
            for n in 0..comptime!(columns / 2) {
                let keys = ldmatrix(at, comptime!(16 * n * vecs * 16), false);
                #[unroll]
                for m in 0..tiles.q_tiles {
                    product(
                        rows[m],
                        keys,
                        s,
                        comptime!(m * columns + 2 * n),
                        comptime!(OperandType::of(tiles.dtype)),
                    );
                }
            }
        }
    }

    fn pv<E: Float>(p: &Fragment<Self>, ring: &Ring, o: &mut Fragment<Self>, #[comptime] tiles: TileShape) {
        let lane = UNIT_POS_X as usize;
        let vecs = comptime!(tiles.v_vecs());
        let columns = comptime!(tiles.keys / 8);
        let elements = comptime!(tiles.dims.vo / 8);
        // A matrix has 8 elements: low and high half of 16 keys, then the next 8 elements.
        let row = first_key(tiles) + lane % 16;
        let vec = lane / 16;
        #[unroll]
        for k in 0..comptime!(columns / 2) {
            let mut rows = Array::<Vec16>::new(tiles.q_tiles);
            #[unroll]
            for m in 0..tiles.q_tiles {
                let low = p.tiles[comptime!(m * columns + 2 * k)];
                let high = p.tiles[comptime!(m * columns + 2 * k + 1)];
                rows[m] = convert_p(low, high, comptime!(tiles.bf16()));
            }
            let values = ring.stage + comptime!(tiles.key_vecs());
            #[unroll]
            for n in 0..comptime!(elements / 2) {
                let at = address(ring, values, row, vec + comptime!(2 * n), vecs);
                let values = ldmatrix(at, comptime!(16 * k * vecs * 16), true);
                #[unroll]
                for m in 0..tiles.q_tiles {
                    product(
                        rows[m],
                        values,
                        o,
                        comptime!(m * elements + 2 * n),
                        comptime!(OperandType::of(tiles.dtype)),
                    );
                }
            }
        }
    }
}

#[cube]
impl Math for MmaSync {
    fn exp2(x: f32) -> f32 {
        exp2(x)
    }

    fn reciprocal(x: f32) -> f32 {
        reciprocal(x)
    }

    fn tanh(x: f32) -> f32 {
        tanh(x)
    }
}

/// Operand `a` of 16 keys, from the probabilities of the first 8 and the last 8 in the layout of a product.
#[cube]
pub(crate) fn convert_p(
    low: Vector<f32, Const<4>>,
    high: Vector<f32, Const<4>>,
    #[comptime] bf16: bool,
) -> Vec16 {
    let mut a = Vec16::empty();
    a.insert(0usize, pack(low.extract(0usize), low.extract(1usize), bf16));
    a.insert(1usize, pack(low.extract(2usize), low.extract(3usize), bf16));
    a.insert(2usize, pack(high.extract(0usize), high.extract(1usize), bf16));
    a.insert(3usize, pack(high.extract(2usize), high.extract(3usize), bf16));
    a
}

/// First vec16 of the queries: behind the stages, or in the last stage if they go to registers before it is
/// used.
pub(super) fn queries_at(tiles: TileShape) -> usize {
    tiles.stage_vecs() * if shares_last_stage(tiles) { tiles.stages - 1 } else { tiles.stages }
}

fn shares_last_stage(tiles: TileShape) -> bool {
    tiles.q_in_registers && tiles.rows(MmaSync::ROWS) * tiles.q_vecs() <= tiles.stage_vecs()
}

/// Operand `a` of step `k` for row tile `m` of the plane.
#[cube]
fn query(ring: &Ring, #[comptime] m: usize, #[comptime] k: usize, #[comptime] tiles: TileShape) -> Vec16 {
    let lane = UNIT_POS_X as usize;
    let start = comptime!(queries_at(tiles)).runtime();
    let vecs = comptime!(tiles.q_vecs());
    let row = first_row(tiles, MmaSync::ROWS) + lane % 16;
    let at = address(ring, start, row, lane / 16 + comptime!(2 * k), vecs);
    ldmatrix(at, comptime!(16 * m * vecs * 16), false)
}
