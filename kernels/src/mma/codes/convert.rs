//! Codes as numbers of 16 bits, and of f32.

use cubecl::prelude::*;
use half::f16;

use super::super::tile_shape::TileShape;
use super::fnuz::to_fnuz;
use super::format::WeightFormat;
use crate::code8::{self, Code8};
use crate::device::Machine;
use crate::element::Element;
use crate::fp8::Fp8;
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
            four_numbers(word, comptime!(Code8::Fp8(Fp8::E4m3)), machine, bf16)
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

/// The four numbers of a word of codes of 8 bits, exactly but for their scale, two in a word.
#[cube]
pub(crate) fn four_numbers(
    word: u32,
    #[comptime] format: Code8,
    #[comptime] machine: Machine,
    #[comptime] bf16: bool,
) -> Vector<u32, Const<2>> {
    if comptime!(machine == Machine::Nvidia) {
        let halves = from_fp8(word, comptime!(matches!(format, Code8::Fp8(Fp8::E5m2))));
        if comptime!(bf16) {
            let mut words = Vector::<u32, Const<2>>::empty();
            words.insert(0usize, bf16_of_f16(halves.extract(0usize)));
            words.insert(1usize, bf16_of_f16(halves.extract(1usize)));
            words
        } else {
            halves
        }
    } else {
        packed::<f16>(floats(word, format, machine), bf16)
    }
}

/// The `part`-th vec16 of a stage in a stored one: itself, unless that has codes and the stage has numbers.
#[cube]
pub(crate) fn numbers(vec: Vec16, #[comptime] part: usize, #[comptime] tiles: TileShape) -> Vec16 {
    #[comptime]
    match tiles.kv_dtype {
        Element::Number(_) => vec,
        Element::Code(_) if tiles.shares_codes => vec,
        Element::Code(format) => {
            if comptime!(tiles.dtype.size() == 4) {
                Vec16::reinterpret(floats(vec.extract(part), format, tiles.machine))
            } else {
                let mut numbers = Vec16::empty();
                #[unroll]
                for i in 0..2usize {
                    let word = vec.extract(comptime!(2 * part + i));
                    let four = four_numbers(word, format, tiles.machine, comptime!(tiles.bf16()));
                    numbers.insert(comptime!(2 * i), four.extract(0usize));
                    numbers.insert(comptime!(2 * i + 1), four.extract(1usize));
                }
                numbers
            }
        }
    }
}

/// The four numbers of a word of codes.
#[cube]
fn floats(word: u32, #[comptime] format: Code8, #[comptime] machine: Machine) -> Vector<f32, Const<4>> {
    if comptime!(machine == Machine::Amd && !matches!(format, Code8::Fp8(Fp8::E5m2))) {
        let mut floats = Vector::<f32, Const<4>>::empty();
        let is_fnuz = comptime!(matches!(format, Code8::Fp8(Fp8::E4m3Fnuz)));
        let codes = if is_fnuz { word } else { to_fnuz(word) };
        #[unroll]
        for half in 0..2usize {
            let mut two = from_fnuz(codes, half, false);
            if comptime!(!is_fnuz) {
                two *= Vector::new(2.0f32);
            }
            floats.insert(comptime!(2 * half), two.extract(0usize));
            floats.insert(comptime!(2 * half + 1), two.extract(1usize));
        }
        floats
    } else if comptime!(machine == Machine::Amd) {
        // The upper halves of f16, whose subnormal numbers and infinities this device's own format does not have.
        let mut halves = Vector::<u32, Const<2>>::empty();
        halves.insert(0usize, ((word & 0xffu32) << 8u32) | ((word & 0xff00u32) << 16u32));
        halves.insert(1usize, ((word & 0xff_0000u32) >> 8u32) | (word & 0xff00_0000u32));
        Vector::cast_from(Vector::<f16, Const<4>>::reinterpret(halves))
    } else {
        let mut codes = Vector::<u32, Const<4>>::empty();
        #[unroll]
        for i in 0..4usize {
            codes.insert(i, (word >> comptime!(8 * i as u32)) & 0xffu32);
        }
        code8::floats::<Const<4>>(codes, format)
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
