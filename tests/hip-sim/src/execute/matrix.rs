//! MFMA. EXEC does not matter to it: all lanes take part.
//!
//! A lane holds one row of A, or column of B, and a run of the depth: lane = row + rows * (block + blocks *
//! run). Of D it holds one column: with 32-bit elements rows come in fours, lane = column + rows * g where
//! g counts the fours, round and round over the registers; with 64-bit elements they come one by one.

use super::{Outcome, unsupported};
use crate::decode::{Element, Instruction, Matrix, Operand};
use crate::float::{BF8, FP8, bf16_to_f32, f16_to_f32, fma_f32};
use crate::wave::{LANES, Wave, float64};

/// Most elements of A or B, over all blocks, and of D.
const INPUT: usize = 512;
const OUTPUT: usize = 2048;

/// Where an element of D lies: register (counted in elements) and lane.
fn place(matrix: &Matrix, block: usize, row: usize, column: usize) -> (usize, usize) {
    let rows = usize::from(matrix.rows);
    if matrix.accumulator == Element::F64 {
        let lanes = LANES / (rows * usize::from(matrix.blocks));
        return (row / lanes, column + rows * (block + usize::from(matrix.blocks) * (row % lanes)));
    }
    if rows == 4 {
        return (row, column + rows * block);
    }
    let lanes = LANES / rows;
    let four = row / 4;
    (rows * rows / LANES * block + four / lanes * 4 + row % 4, column + rows * (four % lanes))
}

impl Wave {
    pub(super) fn matrix(&mut self, i: &Instruction, matrix: Matrix) -> Outcome {
        if matrix.sparse {
            return Err(unsupported("sparse matrix products"));
        }
        let Some(target) = self.register(i.destination) else { return Err(unsupported("MFMA")) };
        let (rows, depth, blocks) =
            (usize::from(matrix.rows), usize::from(matrix.depth), usize::from(matrix.blocks));
        let double = matrix.accumulator == Element::F64;
        let [control, id, permutation] = i.broadcast;
        // For f64 the permutation bits negate A, B and C instead.
        let negate = if double { permutation } else { 0 };
        let permutation = if double { 0 } else { permutation };
        let (mut a, mut b) = ([0.0; INPUT], [0.0; INPUT]);
        let put = |block, row, k, value| a[(block * rows + row) * depth + k] = value;
        self.gather(i.source[0], matrix.a, &matrix, put, |lane| lane);
        let put = |block, column, k, value| b[(block * depth + k) * rows + column] = value;
        self.gather(i.source[1], matrix.b, &matrix, put, |lane| match permutation {
            1 => lane % 32,
            2 => lane % 32 + 32,
            3 => (lane + 16) % 64,
            4..=7 => lane % 16 + 16 * usize::from(permutation - 4),
            _ => lane,
        });
        if negate & 1 == 1 {
            a = a.map(|value| -value);
        }
        if negate & 2 == 2 {
            b = b.map(|value| -value);
        }
        let group = 1usize << control;
        let mut sums = [0.0; OUTPUT];
        for block in 0..blocks {
            for row in 0..rows {
                for column in 0..rows {
                    let (register, lane) = place(&matrix, block, row, column);
                    let value = self.accumulator(i.source[2], matrix.accumulator, register, lane);
                    sums[(block * rows + row) * rows + column] = if negate & 4 == 4 { -value } else { value };
                }
            }
            // Blocks in groups of 2^CBSZ may share the A of block ABID of their group.
            let shared = if control == 0 { block } else { block / group * group + usize::from(id) % group };
            for row in 0..rows {
                let sums = &mut sums[(block * rows + row) * rows..][..rows];
                let a = &a[(shared % blocks * rows + row) * depth..][..depth];
                for (k, &a) in a.iter().enumerate() {
                    let b = &b[(block * depth + k) * rows..][..rows];
                    match matrix.a {
                        // f32 is a chain of fused multiply-adds; the narrower types are summed wider and
                        // rounded at the end, like the integers, which f64 holds exactly.
                        Element::F32 => {
                            for (sum, &b) in sums.iter_mut().zip(b) {
                                *sum = fma_f32(a as f32, b as f32, *sum as f32).into();
                            }
                        }
                        Element::F64 => {
                            for (sum, &b) in sums.iter_mut().zip(b) {
                                *sum = a.mul_add(b, *sum);
                            }
                        }
                        _ => {
                            for (sum, &b) in sums.iter_mut().zip(b) {
                                *sum += a * b;
                            }
                        }
                    }
                }
            }
        }
        for block in 0..blocks {
            for row in 0..rows {
                for column in 0..rows {
                    let (register, lane) = place(&matrix, block, row, column);
                    let sum = sums[(block * rows + row) * rows + column];
                    match matrix.accumulator {
                        Element::F64 => {
                            let bits = sum.to_bits();
                            self.lanes_mut(target + 2 * register)[lane] = bits as u32;
                            self.lanes_mut(target + 2 * register + 1)[lane] = (bits >> 32) as u32;
                        }
                        Element::I32 => self.lanes_mut(target + register)[lane] = sum as i64 as u32,
                        _ => self.lanes_mut(target + register)[lane] = (sum as f32).to_bits(),
                    }
                }
            }
        }
        Ok(())
    }

    /// An element of C.
    fn accumulator(&self, operand: Operand, element: Element, register: usize, lane: usize) -> f64 {
        let word = |offset: usize| match self.register(operand) {
            Some(first) => self.lanes(first + offset)[lane],
            None => self.uniform32(operand),
        };
        match (element, operand) {
            (Element::F64, Operand::Float(code)) => f64::from_bits(float64(code)),
            (Element::F64, Operand::Integer(value)) => f64::from_bits(value as i64 as u64),
            (Element::F64, _) => {
                f64::from_bits(u64::from(word(2 * register)) | u64::from(word(2 * register + 1)) << 32)
            }
            (Element::I32, _) => f64::from(word(register) as i32),
            _ => f64::from(f32::from_bits(word(register))),
        }
    }

    /// The elements of A or B as \[block\]\[line\]\[k\], lane `l` read from lane `from(l)`.
    fn gather(
        &self,
        operand: Operand,
        element: Element,
        matrix: &Matrix,
        mut put: impl FnMut(usize, usize, usize, f64),
        from: impl Fn(usize) -> usize,
    ) {
        let (rows, depth, blocks) =
            (usize::from(matrix.rows), usize::from(matrix.depth), usize::from(matrix.blocks));
        let run = depth * rows * blocks / LANES;
        for lane in 0..LANES {
            let (line, block, start) = (lane % rows, lane / rows % blocks, lane / (rows * blocks) * run);
            for offset in 0..run {
                put(block, line, start + offset, self.element(operand, element, offset, from(lane)));
            }
        }
    }

    /// Element `index` of the ones a lane holds.
    fn element(&self, operand: Operand, element: Element, index: usize, lane: usize) -> f64 {
        let word = |offset: usize| match self.register(operand) {
            Some(first) => self.lanes(first + offset)[lane],
            None => self.uniform32(operand),
        };
        let half = || (word(index / 2) >> (16 * (index % 2))) as u16;
        let byte = || word(index / 4) >> (8 * (index % 4)) & 0xff;
        match element {
            Element::F16 => f16_to_f32(half()).into(),
            Element::Bf16 => bf16_to_f32(half()).into(),
            Element::F32 => f32::from_bits(word(index)).into(),
            Element::Xf32 => {
                // 10 bits of mantissa, to nearest even.
                let bits = word(index);
                let rounded = bits.wrapping_add(0xfff + (bits >> 13 & 1)) & !0x1fff;
                let finite = bits & 0x7f80_0000 != 0x7f80_0000;
                f32::from_bits(if finite { rounded } else { bits }).into()
            }
            Element::F64 => f64::from_bits(u64::from(word(2 * index)) | u64::from(word(2 * index + 1)) << 32),
            Element::I8 | Element::I32 => f64::from(byte() as i8),
            Element::Fp8 => FP8.decode(byte()),
            Element::Bf8 => BF8.decode(byte()),
        }
    }
}
