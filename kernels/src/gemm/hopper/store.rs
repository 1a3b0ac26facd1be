//! From accumulators to rows of `y`.

use cubecl::prelude::*;

use crate::isa::nvidia::{pack, shuffle_word_xor};
use crate::mma::{Accumulator, Fragment, MmaSync};
use crate::staging::Vec16;

/// Stores 16 rows from `first_row` on, and `columns` columns from `first_column` on, in vectors of 16 bytes; those that
/// `y` has.
#[cube]
pub(super) fn store(
    y: &mut [Vec16],
    acc: &Fragment<MmaSync>,
    first_row: usize,
    first_column: usize,
    rows: usize,
    d_out: usize,
    #[comptime] columns: usize,
    #[comptime] bf16: bool,
) {
    let lane = UNIT_POS_X as usize;
    #[unroll]
    for r in 0..2usize {
        let row = first_row + MmaSync::row(r);
        #[unroll]
        for four in 0..comptime!(columns / 32) {
            let mut pairs = Array::<u32>::new(4usize);
            #[unroll]
            for i in 0..4usize {
                let run = acc.run(r, comptime!(4 * four + i));
                pairs[i] = pack(run.extract(0usize), run.extract(1usize), bf16);
            }
            let eight = transpose(&pairs);
            let column = first_column + comptime!(32 * four) + lane % 4 * 8;
            if row < rows && column < d_out {
                y[(row * d_out + column) / 8] = eight;
            }
        }
    }
}

/// Word `i` of lane `j` of four adjacent lanes becomes word `j` of lane `i`.
#[cube]
fn transpose(words: &Array<u32>) -> Vec16 {
    let odd = UNIT_POS_X % 2 == 1;
    let mut twos = Array::<u32>::new(4usize);
    #[unroll]
    for i in 0..2usize {
        let (even_word, odd_word) = (words[comptime!(2 * i)], words[comptime!(2 * i + 1)]);
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
