//! From accumulators to rows of `y`.

use cubecl::prelude::*;

use super::super::epilogue::EpilogueArgs;
use super::tiles::WarpgroupTiles;
use crate::isa::nvidia::{pack, shuffle_word_xor};
use crate::math::unpack;
use crate::mma::{Accumulator, Fragment, MmaSync};
use crate::staging::Vec16;

/// The first row and column of a tile, the end of its rows, and its matrix.
#[derive(CubeType)]
pub(super) struct TilePlace {
    pub row: usize,
    pub end: usize,
    pub column: usize,
    pub matrix: usize,
}

#[cube]
impl TilePlace {
    /// The end of the inputs from `first` on: none of an empty work item, of which nothing is stored either. Such items
    /// fill up a list that was made on the device.
    pub fn end_of(&self, first: usize, end: usize) -> usize {
        select(self.row < self.end, end, first)
    }
}

/// Stores the 16 rows of a warp; those, and the columns, that `y` has. Outputs of 16 bits go in vectors of 16 bytes, 32
/// columns together. The last 16 columns, and f32, go as they lie in the accumulator: two outputs of a lane.
#[cube]
pub(super) fn store<E: Float>(
    y: &mut [Vec16],
    epilogue: &EpilogueArgs<E>,
    acc: &Fragment<MmaSync>,
    plane: usize,
    place: &TilePlace,
    #[comptime] tiles: WarpgroupTiles,
) {
    let lane = UNIT_POS_X as usize;
    #[unroll]
    for r in 0..2usize {
        let row = place.row + plane * 16 + MmaSync::row(r);
        let at = row * epilogue.d_out;
        let of_row = epilogue.of_row(row);
        #[unroll]
        for four in 0..comptime!(if tiles.wide() { 0 } else { tiles.columns() / 32 }) {
            let first = place.column + comptime!(32 * four);
            let column = first + lane % 4 * 8;
            let valid = row < place.end && column < epilogue.d_out;
            let mut old = Vec16::new(0u32);
            if comptime!(tiles.steps.add) {
                if valid {
                    old = y[(at + column) / 8];
                }
                old = transpose(&old);
            }
            let mut pairs = Vec16::empty();
            #[unroll]
            for i in 0..4usize {
                // Columns beyond the last one have no bias, and are not stored.
                let column = min(first + comptime!(8 * i) + lane % 4 * 2, epilogue.d_out - 2);
                let mut run = finished(epilogue, acc, of_row, r, comptime!(4 * four + i), column, tiles);
                if comptime!(tiles.steps.add) {
                    run += unpack::<E>(old.extract(i));
                }
                pairs.insert(i, pack(run.extract(0usize), run.extract(1usize), comptime!(tiles.bf16())));
            }
            let eight = transpose(&pairs);
            if valid {
                y[(at + column) / 8] = eight;
            }
        }
        #[unroll]
        for i in
            comptime!(if tiles.wide() { 0 } else { tiles.columns() / 32 * 4 })..comptime!(tiles.columns() / 8)
        {
            let column = place.column + comptime!(8 * i) + lane % 4 * 2;
            if row < place.end && column < epilogue.d_out {
                let run = finished(epilogue, acc, of_row, r, i, column, tiles);
                store_pair::<E>(y, run, (at + column) / 2, tiles);
            }
        }
    }
}

/// Stores two outputs at `at`, in twos.
#[cube]
fn store_pair<E: Float>(
    y: &mut [Vec16],
    run: Vector<f32, Const<2>>,
    at: usize,
    #[comptime] tiles: WarpgroupTiles,
) {
    let mut run = run;
    if comptime!(tiles.wide()) {
        let y = y.with_vector_size_mut::<Const<2>>();
        if comptime!(tiles.steps.add) {
            run += Vector::<f32, Const<2>>::reinterpret(y[at]);
        }
        y[at] = Vector::reinterpret(run);
    } else {
        let y = y.with_vector_size_mut::<Const<1>>();
        if comptime!(tiles.steps.add) {
            run += unpack::<E>(y[at].extract(0usize));
        }
        y[at] = Vector::new(pack(run.extract(0usize), run.extract(1usize), comptime!(tiles.bf16())));
    }
}

/// Run `i` of row `r` of the tile of `y`, whose first column is `column`.
#[cube]
fn finished<E: Float>(
    epilogue: &EpilogueArgs<E>,
    acc: &Fragment<MmaSync>,
    of_row: f32,
    #[comptime] r: usize,
    #[comptime] i: usize,
    column: usize,
    #[comptime] tiles: WarpgroupTiles,
) -> Vector<f32, Const<2>> {
    let up = comptime!(i + (tiles.outputs - tiles.columns()) / 8);
    epilogue.finish_scaled::<Const<2>>(acc.run(r, i), acc.run(r, up), of_row, column, tiles.steps)
}

/// Stores four outputs at `at`, in fours.
#[cube]
pub(super) fn store_four<E: Float>(
    y: &mut [Vec16],
    four: Vector<f32, Const<4>>,
    at: usize,
    #[comptime] tiles: WarpgroupTiles,
) {
    if comptime!(tiles.wide()) {
        let mut four = four;
        if comptime!(tiles.steps.add) {
            four += Vector::<f32, Const<4>>::reinterpret(y[at]);
        }
        y[at] = Vector::reinterpret(four);
    } else {
        let y = y.with_vector_size_mut::<Const<2>>();
        let mut words = Vector::<u32, Const<2>>::empty();
        let old = if comptime!(tiles.steps.add) { y[at] } else { Vector::<u32, Const<2>>::new(0u32) };
        #[unroll]
        for i in 0..2usize {
            let (a, b) = (comptime!(2 * i), comptime!(2 * i + 1));
            let mut run = Vector::<f32, Const<2>>::empty();
            run.insert(0usize, four.extract(a));
            run.insert(1usize, four.extract(b));
            if comptime!(tiles.steps.add) {
                run += unpack::<E>(old.extract(i));
            }
            words.insert(i, pack(run.extract(0usize), run.extract(1usize), comptime!(tiles.bf16())));
        }
        y[at] = words;
    }
}

/// Word `i` of lane `j` of four adjacent lanes becomes word `j` of lane `i`.
#[cube]
fn transpose(words: &Vec16) -> Vec16 {
    let odd = UNIT_POS_X % 2 == 1;
    let mut twos = Array::<u32>::new(4usize);
    #[unroll]
    for i in 0..2usize {
        let (even_word, odd_word) = (words.extract(comptime!(2 * i)), words.extract(comptime!(2 * i + 1)));
        let other = shuffle_word_xor(select(odd, even_word, odd_word), 1usize);
        twos[comptime!(2 * i)] = select(odd, other, even_word);
        twos[comptime!(2 * i + 1)] = select(odd, odd_word, other);
    }
    let upper = UNIT_POS_X / 2 % 2 == 1;
    let mut four = Vec16::empty();
    #[unroll]
    for i in 0..2usize {
        let (low, high) = (twos[i], twos[comptime!(2 + i)]);
        let other = shuffle_word_xor(select(upper, low, high), 2usize);
        four.insert(i, select(upper, other, low));
        four.insert(comptime!(2 + i), select(upper, high, other));
    }
    four
}
