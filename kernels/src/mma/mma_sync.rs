//! NVIDIA since Ampere: `mma.sync` m16n8k16, operands through `ldmatrix`, copies through `cp.async`.
//!
//! Keys, values and queries are stored in shared memory row by row, swizzled. Values are transposed by the
//! load.

use cubecl::prelude::*;

use super::fragment::{Accumulator, Fragment, FragmentLayout};
use super::operands::{CopyShape, Operands, Queries, copy_of, first_row};
use super::tile_shape::TileShape;
use crate::isa::nvidia::{
    OperandType, exp2, ldmatrix, mma, pack, reciprocal, shared_address, shuffle_xor, tanh,
};
use crate::math::Math;
use crate::request::TileRows;
use crate::staging::{CpAsync, Ring, Staging, Vec16, swizzled};

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
        ring: &mut Ring,
        #[comptime] tiles: TileShape,
    ) -> Queries {
        let depth = comptime!(tiles.dims.qk / 16);
        let shares_codes = comptime!(tiles.shared_codes().is_some());
        if shares_codes {
            CpAsync::wait(comptime!(tiles.stages - 1));
            permute_queries(ring, tiles);
            sync_cube();
        }
        let mut queries = Array::new(comptime!(if tiles.q_in_registers { tiles.q_tiles * depth } else { 1 }));
        if comptime!(tiles.q_in_registers) {
            if comptime!(!shares_codes) {
                CpAsync::wait(comptime!(tiles.stages - 1));
            }
            #[unroll]
            for k in 0..depth {
                #[unroll]
                for m in 0..tiles.q_tiles {
                    queries[m * depth + k] = query(&*ring, m, k, tiles);
                }
            }
        }
        Queries { vecs: queries, scales: ComptimeOption::new_None() }
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

/// Operands `a` of step `k` for the row tiles of the plane, from the probabilities of the step's 16 keys.
#[cube]
pub(super) fn p_operands(
    p: &Fragment<MmaSync>,
    #[comptime] k: usize,
    #[comptime] tiles: TileShape,
) -> Array<Vec16> {
    let columns = comptime!(tiles.keys / 8);
    let mut rows = Array::<Vec16>::new(tiles.q_tiles);
    #[unroll]
    for m in 0..tiles.q_tiles {
        let low = p.tiles[comptime!(m * columns + 2 * k)];
        let high = p.tiles[comptime!(m * columns + 2 * k + 1)];
        rows[m] = convert_p(low, high, comptime!(tiles.bf16()));
    }
    rows
}

/// Operand `a` of step `k` for row tile `m` of the plane, from registers if the queries are there.
#[cube]
pub(super) fn q_operand(
    q: &Array<Vec16>,
    ring: &Ring,
    #[comptime] m: usize,
    #[comptime] k: usize,
    #[comptime] tiles: TileShape,
) -> Vec16 {
    let depth = comptime!(tiles.dims.qk / 16);
    if comptime!(tiles.q_in_registers) { q[comptime!(m * depth + k)] } else { query(ring, m, k, tiles) }
}

/// First vec16 of the queries: behind the stages, or in the last stage if they go to registers before it is
/// used.
pub(super) fn queries_at(tiles: TileShape) -> usize {
    tiles.stage_vecs() * if shares_last_stage(tiles) { tiles.stages - 1 } else { tiles.stages }
}

fn shares_last_stage(tiles: TileShape) -> bool {
    tiles.q_in_registers && tiles.rows(MmaSync::ROWS) * tiles.q_vecs() <= tiles.stage_vecs()
}

/// [`q_operand`] from shared memory.
#[cube]
fn query(ring: &Ring, #[comptime] m: usize, #[comptime] k: usize, #[comptime] tiles: TileShape) -> Vec16 {
    let lane = UNIT_POS_X as usize;
    let start = comptime!(queries_at(tiles)).runtime();
    let vecs = comptime!(tiles.q_vecs());
    let row = first_row(tiles, MmaSync::ROWS) + lane % 16;
    let at = address(ring, start, row, lane / 16 + comptime!(2 * k), vecs);
    ldmatrix(at, comptime!(16 * m * vecs * 16), false)
}

/// Permutes each 16 elements of the queries, which have arrived in shared memory: a load of the operand gives a lane
/// `4t, 4t + 1` where it gave `2t, 2t + 1`, and `4t + 2, 4t + 3` where it gave `2t + 8, 2t + 9`.
#[cube]
fn permute_queries(ring: &mut Ring, #[comptime] tiles: TileShape) {
    let start = comptime!(queries_at(tiles)).runtime();
    let vecs = comptime!(tiles.q_vecs());
    let units = comptime!(tiles.planes() * MmaSync::PLANE);
    let total = comptime!(tiles.rows(MmaSync::ROWS) * vecs / 2);
    #[unroll]
    for i in 0..comptime!(total.div_ceil(units)) {
        let at = UNIT_POS as usize + comptime!(i * units);
        if comptime!(total.is_multiple_of(units)) || at < total {
            let (row, pair) = (at / comptime!(vecs / 2), at % comptime!(vecs / 2));
            let low_at = MmaSync::query_at(start, row, 2 * pair, vecs);
            let high_at = MmaSync::query_at(start, row, 2 * pair + 1, vecs);
            let (low, high) = (ring.shared[low_at], ring.shared[high_at]);
            let (mut even, mut odd) = (Vec16::empty(), Vec16::empty());
            #[unroll]
            for word in 0..2usize {
                even.insert(word, low.extract(comptime!(2 * word)));
                even.insert(comptime!(2 + word), high.extract(comptime!(2 * word)));
                odd.insert(word, low.extract(comptime!(2 * word + 1)));
                odd.insert(comptime!(2 + word), high.extract(comptime!(2 * word + 1)));
            }
            ring.shared[low_at] = even;
            ring.shared[high_at] = odd;
        }
    }
}
