//! OCP's e4m3 as AMD's CDNA3 reads it: FNUZ.
//!
//! A code means half of the number there, and NaN is the code of OCP's negative zero. So a conversion takes the sign from
//! zeros, makes both NaNs that code, and leaves a factor of 2 to the scales. Four codes are a word, and no byte carries into
//! the next.

use cubecl::prelude::*;

use crate::staging::Vec16;

/// Converts the first `count` vec16s.
///
/// NaN costs a look at every code and, as it is rare, no more: where a unit has found one, it converts those too.
#[cube]
pub(crate) fn to_fnuz_all(vecs: &mut Array<Vec16>, #[comptime] count: usize) {
    let mut nans = Vec16::new(0u32);
    #[unroll]
    for i in 0..count {
        nans |= nans_of::<Const<4>>(vecs[i]);
        vecs[i] = without_negative_zeros::<Const<4>>(vecs[i]);
    }
    let nans = nans.extract(0usize) | nans.extract(1usize) | nans.extract(2usize) | nans.extract(3usize);
    if nans & 0x8080_8080u32 != 0u32 {
        #[unroll]
        for i in 0..count {
            vecs[i] = with_nans::<Const<4>>(vecs[i]);
        }
    }
}

/// Converts words.
#[cube]
pub(super) fn to_fnuz<N: Size>(words: Vector<u32, N>) -> Vector<u32, N> {
    with_nans::<N>(without_negative_zeros::<N>(words))
}

/// Zeros without their signs.
#[cube]
fn without_negative_zeros<N: Size>(words: Vector<u32, N>) -> Vector<u32, N> {
    let sizes = words & Vector::new(0x7f7f_7f7fu32);
    // The uppermost bit of a byte tells that it is not zero.
    let not_zero = sizes + Vector::new(0x7f7f_7f7fu32);
    (not_zero & words) | sizes
}

/// The uppermost bit of a byte tells that it is OCP's NaN; the others tell nothing.
#[cube]
fn nans_of<N: Size>(words: Vector<u32, N>) -> Vector<u32, N> {
    (words & Vector::new(0x7f7f_7f7fu32)) + Vector::new(0x0101_0101u32)
}

/// FNUZ's NaN in place of OCP's.
#[cube]
fn with_nans<N: Size>(words: Vector<u32, N>) -> Vector<u32, N> {
    let nans = nans_of::<N>(words) & Vector::new(0x8080_8080u32);
    let sizes = nans - (nans >> Vector::new(7u32));
    (words & (sizes ^ Vector::new(0xffff_ffffu32))) | nans
}
