//! Every MFMA against a matrix product, with the layout of each lane and register as AMD documents it.

mod common;

use common::{Random, run_body};
use hip_sim::float::{self, Format, Rounding};

#[derive(Clone, Copy, PartialEq)]
enum Type {
    F16,
    Bf16,
    F32,
    F64,
    I8,
    Fp8,
    Bf8,
}
use Type::*;

impl Type {
    /// Small integers are exact in every type, so that sums do not depend on their order.
    fn value(self, random: &mut Random) -> f64 {
        (random.next() % 9) as f64 - 4.0
    }

    fn bytes(self) -> usize {
        match self {
            F16 | Bf16 => 2,
            F32 => 4,
            F64 => 8,
            I8 | Fp8 | Bf8 => 1,
        }
    }

    fn bits(self, value: f64) -> u64 {
        let small = |format: Format| format.encode(value, Rounding::NearestEven, false).into();
        match self {
            F16 => small(float::F16),
            Bf16 => small(float::BF16),
            Fp8 => small(float::FP8),
            Bf8 => small(float::BF8),
            F32 => (value as f32).to_bits().into(),
            F64 => value.to_bits(),
            I8 => value as i8 as u8 as u64,
        }
    }
}

/// Mnemonic, rows, depth, blocks, types of A and B.
type Shape = (&'static str, usize, usize, usize, Type, Type);

const SHAPES: [Shape; 32] = [
    ("f32_32x32x1_2b_f32", 32, 1, 2, F32, F32),
    ("f32_16x16x1_4b_f32", 16, 1, 4, F32, F32),
    ("f32_4x4x1_16b_f32", 4, 1, 16, F32, F32),
    ("f32_32x32x2_f32", 32, 2, 1, F32, F32),
    ("f32_16x16x4_f32", 16, 4, 1, F32, F32),
    ("f32_16x16x8_xf32", 16, 8, 1, F32, F32),
    ("f32_32x32x4_xf32", 32, 4, 1, F32, F32),
    ("f32_32x32x4_2b_f16", 32, 4, 2, F16, F16),
    ("f32_16x16x4_4b_f16", 16, 4, 4, F16, F16),
    ("f32_4x4x4_16b_f16", 4, 4, 16, F16, F16),
    ("f32_32x32x8_f16", 32, 8, 1, F16, F16),
    ("f32_16x16x16_f16", 16, 16, 1, F16, F16),
    ("f32_32x32x4_2b_bf16", 32, 4, 2, Bf16, Bf16),
    ("f32_16x16x4_4b_bf16", 16, 4, 4, Bf16, Bf16),
    ("f32_4x4x4_16b_bf16", 4, 4, 16, Bf16, Bf16),
    ("f32_32x32x8_bf16", 32, 8, 1, Bf16, Bf16),
    ("f32_16x16x16_bf16", 16, 16, 1, Bf16, Bf16),
    ("i32_32x32x4_2b_i8", 32, 4, 2, I8, I8),
    ("i32_16x16x4_4b_i8", 16, 4, 4, I8, I8),
    ("i32_4x4x4_16b_i8", 4, 4, 16, I8, I8),
    ("i32_32x32x16_i8", 32, 16, 1, I8, I8),
    ("i32_16x16x32_i8", 16, 32, 1, I8, I8),
    ("f64_16x16x4_f64", 16, 4, 1, F64, F64),
    ("f64_4x4x4_4b_f64", 4, 4, 4, F64, F64),
    ("f32_16x16x32_fp8_fp8", 16, 32, 1, Fp8, Fp8),
    ("f32_16x16x32_fp8_bf8", 16, 32, 1, Fp8, Bf8),
    ("f32_16x16x32_bf8_fp8", 16, 32, 1, Bf8, Fp8),
    ("f32_16x16x32_bf8_bf8", 16, 32, 1, Bf8, Bf8),
    ("f32_32x32x16_fp8_fp8", 32, 16, 1, Fp8, Fp8),
    ("f32_32x32x16_fp8_bf8", 32, 16, 1, Fp8, Bf8),
    ("f32_32x32x16_bf8_fp8", 32, 16, 1, Bf8, Fp8),
    ("f32_32x32x16_bf8_bf8", 32, 16, 1, Bf8, Bf8),
];

/// Row, column and block of element `register` of D in `lane`, as the layouts are tabled for each shape.
fn output(rows: usize, blocks: usize, double: bool, register: usize, lane: usize) -> (usize, usize, usize) {
    match (rows, blocks, double) {
        (16, 1, true) => (4 * register + lane / 16, lane % 16, 0),
        (4, 4, true) => (lane / 16, lane % 4, lane / 4 % 4),
        (32, _, _) => (8 * (register % 16 / 4) + 4 * (lane / 32) + register % 4, lane % 32, register / 16),
        (16, _, _) => (4 * (lane / 16) + register % 4, lane % 16, register / 4),
        _ => (register, lane % 4, lane / 4),
    }
}

/// Line, k and block of element `index` of A or B in `lane`.
fn input(rows: usize, depth: usize, blocks: usize, index: usize, lane: usize) -> (usize, usize, usize) {
    let run = rows * depth * blocks / 64;
    match (rows, blocks) {
        (4, 4) => (lane % 4, lane / 16, lane / 4 % 4),
        (_, 1) => (lane % rows, run * (lane / rows) + index, 0),
        _ => (lane % rows, index, lane / rows),
    }
}

/// Runs one MFMA with CBSZ, ABID and BLGP, C and D in VGPRs or accumulators.
fn check((name, rows, depth, blocks, a, b): Shape, modifiers: [usize; 3], acc: char) {
    let [cbsz, abid, blgp] = modifiers;
    let mut random = Random(9);
    let (double, integer) = (a == F64, a == I8);
    let words = if double { 2 } else { 1 };
    let outputs = rows * rows * blocks / 64;
    let run = rows * depth * blocks / 64;
    let registers = (run * a.bytes()).div_ceil(4);
    let mut memory = vec![0u32; 64 * (2 * registers + outputs * words)];
    let stride = 2 * registers + outputs * words;
    let lines =
        |random: &mut Random, kind: Type| -> Vec<f64> { (0..64 * run).map(|_| kind.value(random)).collect() };
    let (a_values, b_values) = (lines(&mut random, a), lines(&mut random, b));
    let mut c_values = vec![0.0; 64 * outputs];
    for lane in 0..64 {
        for index in 0..run {
            for (operand, kind, values) in [(0, a, &a_values), (1, b, &b_values)] {
                let byte = index * kind.bytes();
                let bits = kind.bits(values[lane * run + index]) << (8 * (byte % 4));
                let at = lane * stride + operand * registers + byte / 4;
                memory[at] |= bits as u32;
                if kind == F64 {
                    memory[at + 1] = (bits >> 32) as u32;
                }
            }
        }
        for register in 0..outputs {
            let value = (random.next() % 100) as f64;
            c_values[lane * outputs + register] = value;
            let at = lane * stride + 2 * registers + register * words;
            if double {
                memory[at] = value.to_bits() as u32;
                memory[at + 1] = (value.to_bits() >> 32) as u32;
            } else {
                memory[at] = if integer { value as u32 } else { (value as f32).to_bits() };
            }
        }
    }
    // a in v8.., b in v16.., c and d in v32.. or a32..
    let mut body = format!("v_mul_u32_u24 v1, {}, v0\n", 4 * stride);
    let mut offset = 0;
    let mut transfers = |verb: &str, kind: char, first: usize, count: usize| -> String {
        let text = (0..count)
            .map(|n| {
                let at = 4 * (offset + n);
                if verb == "load" {
                    format!("global_load_dword {kind}{}, v1, s[0:1] offset:{at}\n", first + n)
                } else {
                    format!("global_store_dword v1, {kind}{}, s[0:1] offset:{at}\n", first + n)
                }
            })
            .collect();
        offset += count;
        text
    };
    body += &transfers("load", 'v', 8, registers);
    body += &transfers("load", acc, 16, registers);
    body += &transfers("load", acc, 32, outputs * words);
    let range = |kind: char, first: usize, count: usize| {
        if count == 1 { format!("{kind}{first}") } else { format!("{kind}[{first}:{}]", first + count - 1) }
    };
    let d = range(acc, 32, outputs * words);
    body += &format!(
        "s_waitcnt vmcnt(0)\ns_mov_b64 exec, 1\nv_mfma_{name} {d}, {}, {}, {d}",
        range('v', 8, registers),
        range(acc, 16, registers)
    );
    let modifiers = [("cbsz", cbsz), ("abid", abid), ("blgp", blgp)];
    body +=
        &modifiers.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!(" {name}:{n}")).collect::<String>();
    body += "\ns_mov_b64 exec, -1\ns_nop 15\n";
    offset = 2 * registers;
    for n in 0..outputs * words {
        body += &format!("global_store_dword v1, {acc}{}, s[0:1] offset:{}\n", 32 + n, 4 * (offset + n));
    }
    let Some(result) = run_body(&body, &memory) else { return };
    let find = |values: &[f64], line: usize, k: usize, block: usize, from: &dyn Fn(usize) -> usize| -> f64 {
        (0..64)
            .flat_map(|lane| (0..run).map(move |index| (lane, index)))
            .find(|&(lane, index)| input(rows, depth, blocks, index, lane) == (line, k, block))
            .map(|(lane, index)| values[from(lane) * run + index])
            .expect("some lane holds it")
    };
    let broadcast = |lane: usize| match blgp {
        1 => lane % 32,
        2 => 32 + lane % 32,
        3 => (lane + 16) % 64,
        4..=7 => 16 * (blgp - 4) + lane % 16,
        _ => lane,
    };
    for lane in 0..64 {
        for register in 0..outputs {
            let (row, column, block) = output(rows, blocks, double, register, lane);
            let shared = if cbsz == 0 { block } else { (block >> cbsz << cbsz) + abid };
            let expected = (0..depth).fold(c_values[lane * outputs + register], |sum, k| {
                let a = find(&a_values, row, k, shared, &|lane| lane);
                sum + a * find(&b_values, column, k, block, &broadcast)
            });
            let at = lane * stride + 2 * registers + register * words;
            let got = if double {
                f64::from_bits(u64::from(result[at]) | u64::from(result[at + 1]) << 32)
            } else if integer {
                f64::from(result[at] as i32)
            } else {
                f64::from(f32::from_bits(result[at]))
            };
            assert_eq!(got, expected, "{name} {modifiers:?} row {row} column {column} block {block}");
        }
    }
}

#[test]
fn every_shape_multiplies_as_documented() {
    for shape in SHAPES {
        for acc in ['v', 'a'] {
            check(shape, [0; 3], acc);
        }
    }
}

#[test]
fn blocks_and_lanes_are_broadcast() {
    for modifiers in [[1, 1, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 0, 6]] {
        check(("f32_32x32x4_2b_f16", 32, 4, 2, F16, F16), modifiers, 'v');
    }
    for modifiers in [[1, 0, 0], [2, 3, 0], [0, 0, 3]] {
        check(("f32_16x16x4_4b_bf16", 16, 4, 4, Bf16, Bf16), modifiers, 'v');
    }
    for modifiers in [[3, 5, 0], [4, 9, 0]] {
        check(("f32_4x4x1_16b_f32", 4, 1, 16, F32, F32), modifiers, 'a');
    }
}
