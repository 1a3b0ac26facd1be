//! The products of attention by `mma.sync`.

use cubecl::prelude::*;

use super::codes::{multiply_keys, multiply_values, pair_outputs};
use super::fragment::{Accumulator, Fragment, column_step};
use super::mma_sync::{MmaSync, address, p_operands, product, q_operand};
use super::operands::Queries;
use super::operands::first_key;
use super::product::Mma;
use super::tile_shape::TileShape;
use crate::isa::nvidia::{OperandType, ldmatrix, min_cubes_per_core};
use crate::staging::{Ring, Vec16};

/// A third of the shared memory of Hopper's cores, in vec16s. With more, a core has room for two cubes at most, which
/// then need not save registers: 168 of them where 214 are to be had cost 7% of decoding with split keys (H200).
const MANY_VECS: usize = (228 << 10) / 16 / 3;

#[cube]
impl Mma for MmaSync {
    fn launch_bounds(#[comptime] shared_vecs: usize) {
        if comptime!(shared_vecs > MANY_VECS) {
            min_cubes_per_core(1usize);
        }
    }

    fn qk<E: Float>(q: &Queries, ring: &Ring, s: &mut Fragment<Self>, #[comptime] tiles: TileShape) {
        #[comptime]
        match tiles.shared_codes() {
            Some(format) => multiply_keys(&q.vecs, ring, s, format, tiles),
            None => multiply_numbers(&q.vecs, ring, s, tiles),
        }
    }

    fn pv<E: Float>(p: &Fragment<Self>, ring: &Ring, o: &mut Fragment<Self>, #[comptime] tiles: TileShape) {
        #[comptime]
        match tiles.shared_codes() {
            Some(format) => multiply_values(p, ring, o, format, tiles),
            None => weigh_numbers(p, ring, o, tiles),
        }
    }

    fn pair_outputs(o: &mut Fragment<Self>, #[comptime] tiles: TileShape) {
        if comptime!(tiles.shared_codes().is_some()) {
            pair_outputs(o, tiles);
        }
    }

    fn output_element(#[comptime] i: usize, #[comptime] tiles: TileShape) -> usize {
        if comptime!(tiles.shared_codes().is_some()) {
            // Four elements of each 16.
            UNIT_POS_X as usize % 4 * 4 + comptime!(i / 2 * 16 + i % 2 * 2)
        } else {
            Self::column() + comptime!(column_step::<Self>(i * 2))
        }
    }
}

/// `S = Q Kᵀ`, of keys that are numbers.
#[cube]
fn multiply_numbers(q: &Array<Vec16>, ring: &Ring, s: &mut Fragment<MmaSync>, #[comptime] tiles: TileShape) {
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
            rows[m] = q_operand(q, ring, m, k, tiles);
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

/// `O += P V`, of values that are numbers.
#[cube]
fn weigh_numbers(
    p: &Fragment<MmaSync>,
    ring: &Ring,
    o: &mut Fragment<MmaSync>,
    #[comptime] tiles: TileShape,
) {
    let lane = UNIT_POS_X as usize;
    let vecs = comptime!(tiles.v_vecs());
    let columns = comptime!(tiles.keys / 8);
    let elements = comptime!(tiles.dims.vo / 8);
    // A matrix has 8 elements: low and high half of 16 keys, then the next 8 elements.
    let row = first_key(tiles) + lane % 16;
    let vec = lane / 16;
    #[unroll]
    for k in 0..comptime!(columns / 2) {
        let rows = p_operands(p, k, tiles);
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
