//! Products of `mma.sync` with cached keys and values that are codes in shared memory.
//!
//! `ldmatrix` takes two codes for one number of 16 bits. So a matrix has 8 keys of 16 elements, and a lane gets four codes in
//! a word, which become the two registers of an operand. What the instruction sums up is free as long as both operands
//! agree, and so is the order of its columns:
//!
//! | | a lane gets | and takes it for |
//! |---|---|---|
//! | keys | elements `4t` to `4t + 3` of a key | `2t, 2t + 1, 2t + 8, 2t + 9` of a step: queries are permuted alike, once |
//! | values, transposed | elements `2g` and `2g + 1` of keys `2t` and `2t + 1` | column `g` of two tiles, of even and of odd elements |
//!
//! `t` is the number of the lane among four, and `g` that of the four among eight.

use cubecl::prelude::*;

use super::super::fragment::Fragment;
use super::super::mma_sync::{MmaSync, address, p_operands, q_operand};
use super::super::operands::first_key;
use super::super::tile_shape::TileShape;
use super::convert::four_numbers;
use crate::code8::Code8;
use crate::isa::nvidia::{OperandType, ldmatrix, mma, swap_middle_bytes};
use crate::staging::{Ring, Vec16};

/// `S = Q Kᵀ`, of permuted queries.
#[cube]
pub(in super::super) fn multiply_keys(
    q: &Array<Vec16>,
    ring: &Ring,
    s: &mut Fragment<MmaSync>,
    #[comptime] format: Code8,
    #[comptime] tiles: TileShape,
) {
    let lane = UNIT_POS_X as usize;
    let vecs = comptime!(tiles.k_vecs());
    let columns = comptime!(tiles.keys / 8);
    let ty = comptime!(OperandType::of(tiles.dtype));
    s.clear();
    // Two matrices of 8 keys side by side, then those of the next 8 keys.
    let row = first_key(tiles) + lane / 16 * 8 + lane % 8;
    #[unroll]
    for pair in 0..comptime!(vecs.div_ceil(2)) {
        let steps = comptime!(if 2 * pair + 1 < vecs { 2 } else { 1 });
        let mut rows = Array::<Vec16>::new(comptime!(steps * tiles.q_tiles));
        #[unroll]
        for j in 0..steps {
            let step = comptime!(2 * pair + j);
            #[unroll]
            for m in 0..tiles.q_tiles {
                rows[comptime!(j * tiles.q_tiles + m)] = q_operand(q, ring, m, step, tiles);
            }
        }
        let at = address(ring, ring.stage, row, vec_of(lane / 8 % 2, pair, vecs), vecs);
        #[unroll]
        for n in 0..comptime!(columns / 2) {
            let codes = ldmatrix(at, comptime!(16 * n * vecs * 16), false);
            #[unroll]
            for j in 0..steps {
                #[unroll]
                for half in 0..2usize {
                    let word = codes.extract(comptime!(2 * half + j));
                    let keys = four_numbers(word, format, tiles.machine, comptime!(tiles.bf16()));
                    #[unroll]
                    for m in 0..tiles.q_tiles {
                        let tile = comptime!(m * columns + 2 * n + half);
                        let rows = rows[comptime!(j * tiles.q_tiles + m)];
                        s.tiles[tile] =
                            mma(rows, keys.extract(0usize), keys.extract(1usize), s.tiles[tile], ty);
                    }
                }
            }
        }
    }
}

/// `O += P V`, with the even and the odd ones of each 16 elements in a tile of their own.
#[cube]
pub(in super::super) fn multiply_values(
    p: &Fragment<MmaSync>,
    ring: &Ring,
    o: &mut Fragment<MmaSync>,
    #[comptime] format: Code8,
    #[comptime] tiles: TileShape,
) {
    let lane = UNIT_POS_X as usize;
    let vecs = comptime!(tiles.v_vecs());
    let columns = comptime!(tiles.keys / 8);
    let elements = comptime!(tiles.dims.vo / 8);
    let ty = comptime!(OperandType::of(tiles.dtype));
    // The matrices of the low and of the high half of 16 keys, then those of the next 16 elements.
    let row = first_key(tiles) + lane % 16;
    #[unroll]
    for k in 0..comptime!(columns / 2) {
        let rows = p_operands(p, k, tiles);
        let values = ring.stage + comptime!(tiles.key_vecs());
        #[unroll]
        for pair in 0..comptime!(vecs.div_ceil(2)) {
            let at = address(ring, values, row, vec_of(lane / 16, pair, vecs), vecs);
            let codes = ldmatrix(at, comptime!(16 * k * vecs * 16), true);
            #[unroll]
            for j in 0..comptime!(if 2 * pair + 1 < vecs { 2 } else { 1 }) {
                let mut halves = Array::<Vector<u32, Const<2>>>::new(2usize);
                #[unroll]
                for half in 0..2usize {
                    // The two keys of an element side by side.
                    let word = swap_middle_bytes(codes.extract(comptime!(2 * j + half)));
                    halves[half] = four_numbers(word, format, tiles.machine, comptime!(tiles.bf16()));
                }
                #[unroll]
                for odd in 0..2usize {
                    #[unroll]
                    for m in 0..tiles.q_tiles {
                        let tile = comptime!(m * elements + 2 * (2 * pair + j) + odd);
                        o.tiles[tile] =
                            mma(rows[m], halves[0].extract(odd), halves[1].extract(odd), o.tiles[tile], ty);
                    }
                }
            }
        }
    }
}

/// The vec16 of a pair that a lane reads in a row of `vecs`; the last of an odd number is read twice.
#[cube]
fn vec_of(which: usize, #[comptime] pair: usize, #[comptime] vecs: usize) -> usize {
    if comptime!(2 * pair + 1 < vecs) { which + comptime!(2 * pair) } else { comptime!(2 * pair).runtime() }
}

/// Elements `4t, 4t + 1` of each 16 in a tile, and `4t + 2, 4t + 3` in the next.
#[cube]
pub(in super::super) fn pair_outputs(o: &mut Fragment<MmaSync>, #[comptime] tiles: TileShape) {
    #[unroll]
    for pair in 0..comptime!(tiles.q_tiles * tiles.dims.vo / 16) {
        let (even, odd) = (o.tiles[comptime!(2 * pair)], o.tiles[comptime!(2 * pair + 1)]);
        #[unroll]
        for half in 0..2usize {
            let mut tile = Vector::<f32, Const<4>>::empty();
            #[unroll]
            for row in 0..2usize {
                tile.insert(comptime!(2 * row), even.extract(comptime!(2 * row + half)));
                tile.insert(comptime!(2 * row + 1), odd.extract(comptime!(2 * row + half)));
            }
            o.tiles[comptime!(2 * pair + half)] = tile;
        }
    }
}
