//! MFMA. EXEC does not matter to it: all lanes take part.
//!
//! A lane holds one row of A, or column of B, and a run of the depth: lane = row + rows * (block + blocks *
//! run). Of D it holds one column: with 32-bit elements rows come in fours, lane = column + rows * g where
//! g counts the fours, round and round over the registers; with 64-bit elements they come one by one.
//!
//! Rounding is to the nearest even whatever MODE says, and only f32 inputs lose denormals where MODE asks for
//! it. In which order, and with how many bits, the device adds the products of narrow types is not documented
//! in full: here they and C are added in f64, in the order of the depth, and rounded once.

use super::mode::INPUT_32;
use super::vector::flushed32;
use super::{Outcome, unsupported};
use crate::decode::{Element, Instruction, Matrix, Operand};
use crate::float::{BF8, F32, FP8, Rounding, bf16_to_f32, f16_to_f32, fma_f32};
use crate::wave::{LANES, Wave, float64};

/// Most elements of A or B, over all blocks.
const DENSE: usize = 512;
const SPARSE: usize = 1024;
/// Most elements of D, over all blocks.
const SUMS: usize = 2 * 32 * 32;

/// Where a row of D begins: register (counted in elements) and lane, from which its columns follow.
#[inline]
fn place(matrix: &Matrix, block: usize, row: usize) -> (usize, usize) {
    let (rows, blocks) = (usize::from(matrix.rows), usize::from(matrix.blocks));
    if matrix.accumulator == Element::F64 {
        let lanes = LANES / (rows * blocks);
        return (row / lanes, rows * (block + blocks * (row % lanes)));
    }
    if rows == 4 {
        return (row, rows * block);
    }
    let (lanes, four) = (LANES / rows, row / 4);
    (rows * rows / LANES * block + four / lanes * 4 + row % 4, rows * (four % lanes))
}

/// Adds the products of a row of A and the columns of B to a row of sums.
#[inline]
fn accumulate(sums: &mut [f64], a: &[f64], b: &[f64], f: impl Fn(f64, f64, f64) -> f64) {
    if sums.len() == 4 { columns::<4>(sums, a, b, f) } else { columns::<8>(sums, a, b, f) }
}

/// The same some columns at a time, whose sums stay in registers of the CPU.
#[inline]
fn columns<const N: usize>(sums: &mut [f64], a: &[f64], b: &[f64], f: impl Fn(f64, f64, f64) -> f64) {
    let width = sums.len();
    for (part, sums) in sums.chunks_exact_mut(N).enumerate() {
        let mut own: [f64; N] = std::array::from_fn(|column| sums[column]);
        for (a, b) in a.iter().zip(b.chunks_exact(width)) {
            let b = &b[part * N..][..N];
            own = std::array::from_fn(|column| f(*a, b[column], own[column]));
        }
        sums.copy_from_slice(&own);
    }
}

impl Wave {
    pub(super) fn matrix(&mut self, i: &Instruction, matrix: Matrix) -> Outcome {
        if matrix.sparse {
            self.product::<true, SPARSE>(i, matrix)
        } else {
            self.product::<false, DENSE>(i, matrix)
        }
    }

    // Large enough to be optimised for itself.
    #[inline(never)]
    fn product<const IS_SPARSE: bool, const INPUT: usize>(
        &mut self,
        i: &Instruction,
        matrix: Matrix,
    ) -> Outcome {
        let Some(target) = self.register(i.destination) else { return Err(unsupported("MFMA")) };
        let (rows, depth, blocks) =
            (usize::from(matrix.rows), usize::from(matrix.depth), usize::from(matrix.blocks));
        let double = matrix.accumulator == Element::F64;
        // Those of a sparse product choose among the indices instead.
        let [control, id, permutation] = if IS_SPARSE { [0; 3] } else { i.broadcast };
        let addend = if IS_SPARSE { i.destination } else { i.source[2] };
        // For f64 the permutation bits negate A, B and C instead.
        let negate = if double { permutation } else { 0 };
        let permutation = if double { 0 } else { permutation };
        let (mut a, mut b) = ([0.0; INPUT], [0.0; INPUT]);
        if IS_SPARSE {
            self.gather_sparse(i, &matrix, |row, k, value| a[row * depth + k] += value);
        } else {
            let put = |block, row, k, value| a[(block * rows + row) * depth + k] = value;
            self.gather(i.source[0], matrix.a, &matrix, put, |lane| lane);
        }
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
        // All of C before anything of D: with four registers they may overlap by a part, and LLVM lets them.
        let mut sums = [0.0; SUMS];
        for (at, sums) in sums.chunks_exact_mut(rows).take(blocks * rows).enumerate() {
            let (register, lane) = place(&matrix, at / rows, at % rows);
            self.load_row(addend, matrix.accumulator, register, lane, sums);
            if negate & 4 == 4 {
                sums.iter_mut().for_each(|sum| *sum = -*sum);
            }
        }
        let group = 1usize << control;
        for (at, sums) in sums.chunks_exact_mut(rows).take(blocks * rows).enumerate() {
            let (block, row) = (at / rows, at % rows);
            // Blocks in groups of 2^CBSZ may share the A of block ABID of their group.
            let shared = if control == 0 { block } else { block / group * group + usize::from(id) % group };
            let a = &a[(shared % blocks * rows + row) * depth..][..depth];
            let b = &b[block * depth * rows..][..depth * rows];
            match matrix.a {
                // f32 is a chain of fused multiply-adds; the narrower types are summed wider and
                // rounded at the end, like the integers, which f64 holds exactly.
                Element::F32 => {
                    accumulate(sums, a, b, |a, b, sum| fma_f32(a as f32, b as f32, sum as f32).into())
                }
                Element::F64 => accumulate(sums, a, b, f64::mul_add),
                _ => accumulate(sums, a, b, |a, b, sum| sum + a * b),
            }
            let (register, lane) = place(&matrix, block, row);
            self.store_row(target, matrix.accumulator, register, lane, sums);
        }
        Ok(())
    }

    /// A row of C, from `lane` on.
    fn load_row(&self, operand: Operand, element: Element, register: usize, lane: usize, row: &mut [f64]) {
        let constant = || [self.uniform32(operand); LANES];
        let lanes =
            |offset| self.register(operand).map_or_else(constant, |first| *self.lanes(first + offset));
        match (element, operand) {
            (Element::F64, Operand::Float(code)) => row.fill(f64::from_bits(float64(code))),
            (Element::F64, Operand::Integer(value)) => row.fill(f64::from_bits(value as i64 as u64)),
            (Element::F64, _) => {
                let (low, high) = (lanes(2 * register), lanes(2 * register + 1));
                for (column, value) in row.iter_mut().enumerate() {
                    let at = lane + column;
                    *value = f64::from_bits(u64::from(low[at]) | u64::from(high[at]) << 32);
                }
            }
            (Element::I32, _) => {
                let lanes = lanes(register);
                row.iter_mut().zip(&lanes[lane..]).for_each(|(value, &bits)| *value = f64::from(bits as i32));
            }
            _ => {
                let lanes = lanes(register);
                row.iter_mut()
                    .zip(&lanes[lane..])
                    .for_each(|(value, &bits)| *value = f32::from_bits(bits).into());
            }
        }
    }

    /// A row of D, from `lane` on.
    fn store_row(&mut self, target: usize, element: Element, register: usize, lane: usize, row: &[f64]) {
        let saturates = self.saturates();
        match element {
            Element::F64 => {
                for (column, sum) in row.iter().enumerate() {
                    self.lanes_mut(target + 2 * register)[lane + column] = sum.to_bits() as u32;
                    self.lanes_mut(target + 2 * register + 1)[lane + column] = (sum.to_bits() >> 32) as u32;
                }
            }
            Element::I32 => {
                let lanes = &mut self.lanes_mut(target + register)[lane..];
                if saturates {
                    lanes.iter_mut().zip(row).for_each(|(bits, &sum)| *bits = sum as i32 as u32);
                } else {
                    lanes.iter_mut().zip(row).for_each(|(bits, &sum)| *bits = sum as i64 as u32);
                }
            }
            _ => {
                let lanes = &mut self.lanes_mut(target + register)[lane..];
                lanes.iter_mut().zip(row).for_each(|(bits, &sum)| *bits = (sum as f32).to_bits());
                if saturates {
                    let finite = lanes.iter_mut().zip(row).filter(|(_, sum)| sum.is_finite());
                    finite.for_each(|(bits, &sum)| *bits = F32.encode(sum, Rounding::NearestEven, true));
                }
            }
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
        for offset in 0..run {
            let values = self.elements(operand, element, offset);
            for start in (0..LANES).step_by(rows) {
                let (block, k) = (start / rows % blocks, start / (rows * blocks) * run + offset);
                for line in 0..rows {
                    put(block, line, k, values[from(start + line)]);
                }
            }
        }
    }

    /// The elements of a sparse A. Each lane holds two of every four of its run, and their places in two bits
    /// each: one set of several in a register.
    fn gather_sparse(&self, i: &Instruction, matrix: &Matrix, mut put: impl FnMut(usize, usize, f64)) {
        let rows = usize::from(matrix.rows);
        let run = usize::from(matrix.depth) * rows / LANES;
        let [first, set, _] = i.broadcast.map(usize::from);
        let set = if first == 0 { set * run % 32 } else { 0 };
        let places = self.operand32(i.source[2]);
        for offset in 0..run / 2 {
            let values = self.elements(i.source[0], matrix.a, offset);
            for lane in 0..LANES {
                let place = (places[lane] >> (set + 2 * offset) & 3) as usize;
                put(lane % rows, lane / rows * run + offset / 2 * 4 + place, values[lane]);
            }
        }
    }

    /// Element `index` of the ones each lane holds.
    fn elements(&self, operand: Operand, element: Element, index: usize) -> [f64; LANES] {
        let constant = || [self.uniform32(operand); LANES];
        let word = |offset| self.register(operand).map_or_else(constant, |first| *self.lanes(first + offset));
        let halves = || word(index / 2).map(|bits| (bits >> (16 * (index % 2))) as u16);
        let bytes = || word(index / 4).map(|bits| bits >> (8 * (index % 4)) & 0xff);
        match element {
            Element::F16 => halves().map(|bits| f16_to_f32(bits).into()),
            Element::Bf16 => halves().map(|bits| bf16_to_f32(bits).into()),
            Element::F32 if !self.keeps(INPUT_32) => {
                word(index).map(|bits| f32::from_bits(flushed32(bits)).into())
            }
            Element::F32 => word(index).map(|bits| f32::from_bits(bits).into()),
            Element::Xf32 => word(index).map(|bits| {
                // 10 bits of mantissa, to nearest even.
                let rounded = bits.wrapping_add(0xfff + (bits >> 13 & 1)) & !0x1fff;
                let finite = bits & 0x7f80_0000 != 0x7f80_0000;
                f32::from_bits(if finite { rounded } else { bits }).into()
            }),
            Element::F64 => {
                let (low, high) = (word(2 * index), word(2 * index + 1));
                std::array::from_fn(|lane| f64::from_bits(u64::from(low[lane]) | u64::from(high[lane]) << 32))
            }
            Element::I8 | Element::I32 => bytes().map(|bits| f64::from(bits as i8)),
            Element::Fp8 => bytes().map(|bits| FP8.decode(bits)),
            Element::Bf8 => bytes().map(|bits| BF8.decode(bits)),
        }
    }
}
