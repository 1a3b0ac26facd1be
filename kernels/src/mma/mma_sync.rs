//! NVIDIA since Ampere: `mma.sync` m16n8k16, operands through `ldmatrix`, copies through `cp.async`.
//!
//! Keys, values and queries are stored in shared memory row by row, swizzled. Values are transposed by the
//! load.

use cubecl::prelude::*;

use super::{FragmentLayout, Mma, TileShape, Vec16, copy_of, swizzle};
use crate::isa::nvidia::{
    cp_async, cp_async_commit, cp_async_wait, exp2, ldmatrix, mma, pack, shared_address, shuffle_xor,
};
use crate::math::{Math, tanh_by_exp2};
use crate::request::TileRows;

/// `mma.sync`, see the module.
pub(crate) struct MmaSync;

impl FragmentLayout for MmaSync {
    const PLANE: usize = 32;
    const ROWS: usize = 16;
    const COLUMNS: usize = 8;
    const ACC: usize = 4;
    const LANE_ROWS: usize = 2;
    const RUN: usize = 2;
    const KEYS: usize = 16;
    const SAME_COPIES: bool = true;
    const VALUE_COPIES: usize = 1;
    const ASYNC: bool = true;

    fn shared_vecs(tiles: TileShape) -> usize {
        let queries = tiles.rows(Self::ROWS) * tiles.qk_vecs();
        tiles.stages * tiles.stage_vecs() + if shares_last_stage(tiles) { 0 } else { queries }
    }

    fn staged_vecs(_tiles: TileShape) -> usize {
        1
    }

    fn lane_row(e: usize) -> usize {
        e / 2
    }

    fn step(tile: usize, e: usize) -> usize {
        8 * tile + e % 2
    }
}

/// Byte of vec16 `vec` of row `row` of a matrix that begins at vec16 `first` of the stage.
#[cube]
pub(super) fn address(base: u32, start: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> u32 {
    base + ((start + row * vecs + (vec ^ swizzle(row, vecs))) as u32) * 16u32
}

#[cube]
impl Mma for MmaSync {
    type Acc = Const<4>;
    type Run = Const<2>;

    fn row(lane: usize, #[comptime] i: usize) -> usize {
        lane / 4 + comptime!(8 * i)
    }

    fn column(lane: usize) -> usize {
        lane % 4 * 2
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
        valid: bool,
        shared: &mut [Vec16],
        stage: usize,
        row: usize,
        vec: usize,
        #[comptime] first: usize,
        #[comptime] vecs: usize,
        _staged: &mut Array<Vec16>,
        #[comptime] _slot: usize,
    ) {
        cp_async(
            address(shared_address(&shared[0..1]), stage + first, row, vec, vecs),
            0usize,
            &from[at..at + 1],
            valid,
        );
    }

    fn commit_stage() {
        cp_async_commit();
    }

    fn wait_stage(
        _shared: &mut [Vec16],
        _stage: usize,
        _unit: usize,
        _staged: &mut Array<Vec16>,
        _left: usize,
        #[comptime] tiles: TileShape,
    ) {
        cp_async_wait(comptime!(tiles.stages - 2));
        sync_cube();
    }

    fn wait_all_stages() {
        cp_async_wait(0usize);
        sync_cube();
    }

    fn fetch_queries(
        from: &Tensor<Vec16>,
        rows: &TileRows,
        shared: &mut [Vec16],
        unit: usize,
        #[comptime] tiles: TileShape,
    ) {
        let start = comptime!(queries_at(tiles)).runtime();
        let vecs = comptime!(tiles.qk_vecs());
        let units = comptime!(tiles.planes() * MmaSync::PLANE);
        let total = comptime!(tiles.rows(MmaSync::ROWS) * vecs);
        #[unroll]
        for i in 0..comptime!(total.div_ceil(units)) {
            let at = unit + comptime!(i * units);
            if comptime!(total % units == 0) || at < total {
                let (row, vec) = (at / vecs, at % vecs);
                let (token, head, valid) = rows.place(row);
                let from_vec = (token * from.stride(0) + head * from.stride(1)) / 8 + vec;
                cp_async(
                    address(shared_address(&shared[0..1]), start, row, vec, vecs),
                    0usize,
                    &from[from_vec..from_vec + 1],
                    valid,
                );
            }
        }
        cp_async_commit();
    }

    fn load_queries(
        _from: &Tensor<Vec16>,
        _rows: &TileRows,
        shared: &[Vec16],
        lane: usize,
        plane: usize,
        #[comptime] tiles: TileShape,
    ) -> Array<Vec16> {
        let depth = comptime!(tiles.dims.qk / 16);
        let mut queries = Array::new(comptime!(if tiles.q_in_registers { tiles.q_tiles * depth } else { 1 }));
        if comptime!(tiles.q_in_registers) {
            cp_async_wait(comptime!(tiles.stages - 1));
            sync_cube();
            #[unroll]
            for k in 0..depth {
                #[unroll]
                for m in 0..tiles.q_tiles {
                    queries[m * depth + k] = query(shared, lane, plane, m, k, tiles);
                }
            }
        }
        queries
    }

    fn qk<E: Float>(
        queries: &Array<Vec16>,
        _staged: &Array<Vec16>,
        shared: &[Vec16],
        stage: usize,
        lane: usize,
        plane: usize,
        scores: &mut Array<Vector<f32, Const<4>>>,
        #[comptime] tiles: TileShape,
    ) {
        let depth = comptime!(tiles.dims.qk / 16);
        let vecs = comptime!(tiles.qk_vecs());
        let columns = comptime!(tiles.keys / 8);
        #[unroll]
        for i in 0..comptime!(tiles.q_tiles * columns) {
            scores[i] = Vector::new(0.0f32);
        }
        // A matrix has 8 keys: low and high half of the depth, then the next 8 keys.
        let row = plane / tiles.q_planes * tiles.keys + lane / 16 * 8 + lane % 8;
        let vec = lane / 8 % 2;
        #[unroll]
        for k in 0..depth {
            let mut rows = Array::<Vec16>::new(tiles.q_tiles);
            #[unroll]
            for m in 0..tiles.q_tiles {
                rows[m] = if comptime!(tiles.q_in_registers) {
                    queries[m * depth + k]
                } else {
                    query(shared, lane, plane, m, k, tiles)
                };
            }
            let at = address(shared_address(&shared[0..1]), stage, row, vec + comptime!(2 * k), vecs);
            #[unroll]
            for n in 0..comptime!(columns / 2) {
                let keys = ldmatrix(at, comptime!(16 * n * vecs * 16), false);
                #[unroll]
                for m in 0..tiles.q_tiles {
                    let low = comptime!(m * columns + 2 * n);
                    let high = comptime!(m * columns + 2 * n + 1);
                    let a = rows[m];
                    scores[low] = mma(
                        a,
                        keys.extract(0usize),
                        keys.extract(1usize),
                        scores[low],
                        comptime!(tiles.bf16()),
                    );
                    scores[high] = mma(
                        a,
                        keys.extract(2usize),
                        keys.extract(3usize),
                        scores[high],
                        comptime!(tiles.bf16()),
                    );
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
        let vecs = comptime!(tiles.vo_vecs());
        let columns = comptime!(tiles.keys / 8);
        let elements = comptime!(tiles.dims.vo / 8);
        // A matrix has 8 elements: low and high half of 16 keys, then the next 8 elements.
        let row = plane / tiles.q_planes * tiles.keys + lane % 16;
        let vec = lane / 16;
        #[unroll]
        for k in 0..comptime!(columns / 2) {
            let mut rows = Array::<Vec16>::new(tiles.q_tiles);
            #[unroll]
            for m in 0..tiles.q_tiles {
                let low = weights[comptime!(m * columns + 2 * k)];
                let high = weights[comptime!(m * columns + 2 * k + 1)];
                rows[m] = p_operand(low, high, comptime!(tiles.bf16()));
            }
            #[unroll]
            for n in 0..comptime!(elements / 2) {
                let at = address(
                    shared_address(&shared[0..1]),
                    stage + comptime!(tiles.key_vecs()),
                    row,
                    vec + comptime!(2 * n),
                    vecs,
                );
                let values = ldmatrix(at, comptime!(16 * k * vecs * 16), true);
                #[unroll]
                for m in 0..tiles.q_tiles {
                    let low = comptime!(m * elements + 2 * n);
                    let high = comptime!(m * elements + 2 * n + 1);
                    let a = rows[m];
                    output[low] = mma(
                        a,
                        values.extract(0usize),
                        values.extract(1usize),
                        output[low],
                        comptime!(tiles.bf16()),
                    );
                    output[high] = mma(
                        a,
                        values.extract(2usize),
                        values.extract(3usize),
                        output[high],
                        comptime!(tiles.bf16()),
                    );
                }
            }
        }
    }

    fn row_max(x: f32) -> f32 {
        let x = max(x, shuffle_xor(x, 1usize));
        max(x, shuffle_xor(x, 2usize))
    }

    fn row_sum(x: f32) -> f32 {
        let x = x + shuffle_xor(x, 1usize);
        x + shuffle_xor(x, 2usize)
    }

    fn spread(rows: &Array<f32>, #[comptime] tile: usize) -> Vector<f32, Const<4>> {
        let (low, high) = (rows[comptime!(2 * tile)], rows[comptime!(2 * tile + 1)]);
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

    fn tanh(x: f32) -> f32 {
        tanh_by_exp2::<Self>(x)
    }
}

/// Operand `a` of 16 keys, from the probabilities of the first 8 and the last 8 in the layout of a product.
#[cube]
pub(crate) fn p_operand(
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
    tiles.q_in_registers && tiles.rows(MmaSync::ROWS) * tiles.qk_vecs() <= tiles.stage_vecs()
}

/// Operand `a` of step `k` for row tile `m` of the plane.
#[cube]
fn query(
    shared: &[Vec16],
    lane: usize,
    plane: usize,
    #[comptime] m: usize,
    #[comptime] k: usize,
    #[comptime] tiles: TileShape,
) -> Vec16 {
    let start = comptime!(queries_at(tiles)).runtime();
    let vecs = comptime!(tiles.qk_vecs());
    let row = plane % tiles.q_planes * comptime!(tiles.q_tiles * 16) + lane % 16;
    let at = address(shared_address(&shared[0..1]), start, row, lane / 16 + comptime!(2 * k), vecs);
    ldmatrix(at, comptime!(16 * m * vecs * 16), false)
}
