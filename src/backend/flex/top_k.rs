//! The largest numbers of each row, by the order of integers.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::filter::{kth_largest, passing_in_order};
use super::float::{Float, with_wide};
use super::view::{self, Rows, dims, with_rows};

/// The `k` largest numbers of each row of `x`, in order, and where they are. `k` is from 1 to the width of a row.
pub(super) fn top_k<E: Float>(x: FlexTensor, k: usize) -> (FlexTensor, FlexTensor) {
    let dtype = x.dtype();
    let x = with_rows(x);
    let [rows, _] = dims(&x);
    let source: Rows<'_, E, 1> = Rows::of(&x);
    let mut values = vec![E::narrow(0.0); rows * k];
    let mut ids = vec![0; rows * k];
    values.par_chunks_exact_mut(k).zip(ids.par_chunks_exact_mut(k)).enumerate().for_each(
        |(row, (values, ids))| {
            let row = source.row([row]);
            // One integer says where a number comes: the largest first, of equals the first.
            let mut ranks = vec![];
            with_wide(row, |wide| {
                let least = kth_largest(wide, k);
                // NaN comes last, if there are not enough numbers.
                passing_in_order(
                    wide,
                    least,
                    |x, least| x >= least || least == f32::NEG_INFINITY,
                    |id, x| {
                        ranks.push(u64::from(!key(x)) << 32 | id as u64);
                        least
                    },
                );
            });
            if k < ranks.len() {
                ranks.select_nth_unstable(k);
                ranks.truncate(k);
            }
            ranks.sort_unstable();
            for ((value, id), rank) in values.iter_mut().zip(ids).zip(ranks) {
                *id = rank as u32 as i32;
                *value = row[rank as u32 as usize];
            }
        },
    );
    (view::tensor(values, [rows, k], dtype), view::ints(ids, [rows, k]))
}

/// An integer for each number, in the same order: 0 for NaN, the same for both zeros.
fn key(x: f32) -> u32 {
    const ZERO: u32 = 1 << 31;
    match x.to_bits() {
        _ if x.is_nan() => 0,
        _ if x == 0.0 => ZERO,
        bits if bits >= ZERO => !bits,
        bits => bits | ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_numbers() {
        let numbers = [f32::NEG_INFINITY, f32::MIN, -1.0, -1e-45, 0.0, 1e-45, 1.0, f32::MAX, f32::INFINITY];
        assert!(numbers.windows(2).all(|pair| key(pair[0]) < key(pair[1])));
        assert_eq!(key(-0.0), key(0.0));
        assert!(key(f32::NAN) < key(f32::NEG_INFINITY) && key(-f32::NAN) == key(f32::NAN));
    }
}
