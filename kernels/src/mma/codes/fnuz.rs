//! OCP's e4m3 as AMD's CDNA3 reads it: FNUZ.
//!
//! A code means half of the number there, and NaN is the code of OCP's negative zero. So a conversion takes the sign from
//! zeros, makes both NaNs that code, and leaves a factor of 2 to the scales. Four codes are a word.

use cubecl::prelude::*;

use crate::isa::amd::average_bytes;
use crate::staging::Vec16;

/// Converts the first `count` vec16s.
///
/// NaN costs a look at every code and, as it is rare, no more: where a unit has found one, it converts those too.
#[cube]
pub(crate) fn to_fnuz_all(vecs: &mut Array<Vec16>, #[comptime] count: usize) {
    let mut nans = 0u32;
    #[unroll]
    for i in 0..count {
        let mut vec = vecs[i];
        #[unroll]
        for word in 0..4usize {
            let codes = vec.extract(word);
            nans |= nans_of(codes);
            vec.insert(word, without_negative_zeros(codes));
        }
        vecs[i] = vec;
    }
    if nans & 0x8080_8080u32 != 0u32 {
        #[unroll]
        for i in 0..count {
            let mut vec = vecs[i];
            #[unroll]
            for word in 0..4usize {
                let codes = vec.extract(word);
                vec.insert(word, with_nans(codes));
            }
            vecs[i] = vec;
        }
    }
}

/// Converts four codes.
#[cube]
pub(super) fn to_fnuz(codes: u32) -> u32 {
    with_nans(without_negative_zeros(codes))
}

/// Zeros without their signs.
#[cube]
fn without_negative_zeros(codes: u32) -> u32 {
    // Half of a code and 127 has the uppermost bit from 0x81 on: negative, and not zero.
    let signs = average_bytes(codes, 0x7f7f_7f7fu32.runtime(), 0u32.runtime());
    (signs & 0x8080_8080u32) | (codes & 0x7f7f_7f7fu32)
}

/// The uppermost bit of a byte tells that it is OCP's NaN; the others tell nothing. No byte carries into the next.
#[cube]
fn nans_of(codes: u32) -> u32 {
    (codes & 0x7f7f_7f7fu32) + 0x0101_0101u32
}

/// FNUZ's NaN in place of OCP's.
#[cube]
fn with_nans(codes: u32) -> u32 {
    let nans = nans_of(codes) & 0x8080_8080u32;
    let sizes = nans - (nans >> 7u32);
    (codes & (sizes ^ 0xffff_ffffu32)) | nans
}
