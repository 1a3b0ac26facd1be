//! The random numbers and the masses of a draw, as the kernels of the other devices have them.

use crate::extension::DRAW_WORDS;

/// A draw, read from its words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    seed: [u32; 2],
    stream: u32,
    offset: [u32; 2],
    pub(super) row: usize,
}

impl Draw {
    pub(super) fn of(words: [i32; DRAW_WORDS]) -> Self {
        let [seed_low, seed_high, stream, offset_low, offset_high, row] = words.map(|word| word as u32);
        Self { seed: [seed_low, seed_high], stream, offset: [offset_low, offset_high], row: row as usize }
    }

    /// Block `block` of the random words of this draw.
    #[inline(always)]
    pub(super) fn words(&self, block: u32) -> [u32; 4] {
        philox([block, self.stream, self.offset[0], self.offset[1]], self.seed)
    }
}

/// Philox 4x32 with 10 rounds.
#[inline(always)]
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let product = |a: u32, b: u32| {
        let product = u64::from(a) * u64::from(b);
        ((product >> 32) as u32, product as u32)
    };
    for _ in 0..10 {
        let (first_high, first_low) = product(counter[0], 0xd251_1f53);
        let (second_high, second_low) = product(counter[2], 0xcd9e_8d57);
        counter =
            [second_high ^ counter[1] ^ key[0], second_low, first_high ^ counter[3] ^ key[1], first_low];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// A probability as a multiple of 2^-40, rounded down, but at least 1 if it is positive; above 2 it counts as 2.
pub(super) fn mass(p: f32) -> u64 {
    if p > 0.0 { ((p.min(2.0) * (1_u64 << 40) as f32) as u64).max(1) } else { 0 }
}

/// A number below `total`, all of them as likely, from 64 random bits.
pub(super) fn below(total: u64, words: [u32; 4]) -> u64 {
    high_half(total, u64::from(words[0]) << 32 | u64::from(words[1]))
}

/// The upper half of a product.
pub(super) fn high_half(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_below_their_total() {
        assert_eq!(below(1, [u32::MAX; 4]), 0);
        assert_eq!(below(u64::MAX, [u32::MAX; 4]), u64::MAX - 1);
        assert_eq!(below(1 << 40, [1 << 31, 0, 0, 0]), 1 << 39);
    }

    /// The known answers that come with the authors' implementation, Random123.
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = u32::MAX;
        assert_eq!(philox([ones; 4], [ones; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn masses_of_special_values() {
        assert_eq!(mass(1.0), 1 << 40);
        assert_eq!(mass(0.5), 1 << 39);
        assert_eq!(mass(f32::from_bits(1)), 1);
        assert_eq!(mass(f32::INFINITY), 2 << 40);
        for p in [0.0, -0.0, -1.0, f32::NAN, f32::NEG_INFINITY] {
            assert_eq!(mass(p), 0, "{p}");
        }
    }
}
