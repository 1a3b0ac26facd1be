//! Codes as numbers of 16 bits.

use cubecl::prelude::*;

use super::fnuz::to_fnuz;
use super::format::WeightFormat;
use crate::device::Machine;
use crate::fp8;
use crate::isa::amd::from_fp8 as from_fnuz;
use crate::isa::nvidia::{bf16_of_f16, from_fp8, from_int4};
use crate::staging::Vec16;

/// The zero of a group of int4 as [`four_codes`] takes it: for NVIDIA `-(128 + zero)` in bf16, or `-(1024 + zero)` in f16, twice.
#[cube]
pub(crate) fn prepared_zero(zero: u32, #[comptime] machine: Machine, #[comptime] bf16: bool) -> u32 {
    if comptime!(machine == Machine::Nvidia) {
        (zero | (zero << 16u32)) | comptime!(if bf16 { 0xc300_c300u32 } else { 0xe400_e400u32 })
    } else {
        zero
    }
}

/// The four weights of step `s` of a block, exactly but for their scale, two in a word. `vecs` are the lane's codes, `zero` is a
/// [`prepared_zero`] of int4.
#[cube]
pub(crate) fn four_codes<E: Float>(
    vecs: &Array<Vec16>,
    zero: u32,
    #[comptime] s: usize,
    #[comptime] format: WeightFormat,
    #[comptime] machine: Machine,
    #[comptime] bf16: bool,
) -> Vector<u32, Const<2>> {
    #[comptime]
    match format {
        WeightFormat::E4m3(_) => {
            let word = vecs[comptime!(s / 4)].extract(comptime!(s % 4));
            if comptime!(machine == Machine::Nvidia) {
                let halves = from_fp8(word, false);
                if comptime!(bf16) {
                    let mut words = Vector::<u32, Const<2>>::empty();
                    words.insert(0usize, bf16_of_f16(halves.extract(0usize)));
                    words.insert(1usize, bf16_of_f16(halves.extract(1usize)));
                    words
                } else {
                    halves
                }
            } else {
                packed::<E>(floats(word, machine), bf16)
            }
        }
        WeightFormat::Int4 { .. } => {
            let word = vecs[0].extract(comptime!(s / 2));
            if comptime!(machine == Machine::Nvidia) {
                let mut words = Vector::<u32, Const<2>>::empty();
                #[unroll]
                for i in 0..2usize {
                    words.insert(i, from_int4(word, zero, comptime!(8 * (s % 2) + 4 * i), bf16));
                }
                words
            } else {
                let mut floats = Vector::<f32, Const<4>>::empty();
                #[unroll]
                for i in 0..4usize {
                    let shift = comptime!((8 * (s % 2) + 4 * (i / 2) + 16 * (i % 2)) as u32);
                    let code = (word >> shift) & 15u32;
                    floats.insert(i, f32::cast_from(code as i32 - zero as i32));
                }
                packed::<E>(floats, bf16)
            }
        }
    }
}

/// The four numbers of a word of e4m3.
#[cube]
fn floats(word: u32, #[comptime] machine: Machine) -> Vector<f32, Const<4>> {
    let mut floats = Vector::<f32, Const<4>>::empty();
    if comptime!(machine == Machine::Amd) {
        let codes = to_fnuz(word);
        #[unroll]
        for half in 0..2usize {
            let two = from_fnuz(codes, half, false) * Vector::new(2.0f32);
            floats.insert(comptime!(2 * half), two.extract(0usize));
            floats.insert(comptime!(2 * half + 1), two.extract(1usize));
        }
        floats
    } else {
        let mut codes = Vector::<u32, Const<4>>::empty();
        #[unroll]
        for i in 0..4usize {
            codes.insert(i, (word >> comptime!(8 * i as u32)) & 0xffu32);
        }
        fp8::e4m3::<Const<4>>(codes)
    }
}

/// Four floats that are numbers of the type.
#[cube]
fn packed<E: Float>(floats: Vector<f32, Const<4>>, #[comptime] bf16: bool) -> Vector<u32, Const<2>> {
    if comptime!(bf16) {
        // The lower half of the bits is 0.
        let bits = Vector::<u32, Const<4>>::reinterpret(floats);
        let mut words = Vector::<u32, Const<2>>::empty();
        #[unroll]
        for i in 0..2usize {
            let (low, high) = (bits.extract(comptime!(2 * i)), bits.extract(comptime!(2 * i + 1)));
            words.insert(i, (low >> 16u32) | (high & 0xffff_0000u32));
        }
        words
    } else {
        Vector::reinterpret(Vector::<E, Const<4>>::cast_from(floats))
    }
}
