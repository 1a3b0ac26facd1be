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

/// Runs one MFMA with CBSZ, ABID and BLGP, C and D in VGPRs or accumulators, D so many registers `beyond` C.
fn check((name, rows, depth, blocks, a, b): Shape, modifiers: [usize; 3], acc: char, beyond: usize) {
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
    // a in v8.., b in v16.., c in v32.. or a32.., d there or a little later
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
    let [c, d] = [32, 32 + beyond].map(|first| range(acc, first, outputs * words));
    body += &format!(
        "s_waitcnt vmcnt(0)\ns_mov_b64 exec, 1\nv_mfma_{name} {d}, {}, {}, {c}",
        range('v', 8, registers),
        range(acc, 16, registers)
    );
    let modifiers = [("cbsz", cbsz), ("abid", abid), ("blgp", blgp)];
    body +=
        &modifiers.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!(" {name}:{n}")).collect::<String>();
    body += "\ns_mov_b64 exec, -1\ns_nop 15\n";
    offset = 2 * registers;
    for n in 0..outputs * words {
        body +=
            &format!("global_store_dword v1, {acc}{}, s[0:1] offset:{}\n", 32 + beyond + n, 4 * (offset + n));
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
            check(shape, [0; 3], acc, 0);
        }
    }
}

/// The assembler takes this of four registers and of no more.
#[test]
fn four_registers_may_overlap_a_part_of_the_addend() {
    for shape @ (_, rows, _, blocks, a, _) in SHAPES {
        if a != F64 && rows * rows * blocks / 64 == 4 {
            for acc in ['v', 'a'] {
                check(shape, [0; 3], acc, 2);
            }
        }
    }
}

#[test]
fn blocks_and_lanes_are_broadcast() {
    for modifiers in [[1, 1, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 0, 6]] {
        check(("f32_32x32x4_2b_f16", 32, 4, 2, F16, F16), modifiers, 'v', 0);
    }
    for modifiers in [[1, 0, 0], [2, 3, 0], [0, 0, 3]] {
        check(("f32_16x16x4_4b_bf16", 16, 4, 4, Bf16, Bf16), modifiers, 'v', 0);
    }
    for modifiers in [[3, 5, 0], [4, 9, 0]] {
        check(("f32_4x4x1_16b_f32", 4, 1, 16, F32, F32), modifiers, 'a', 0);
    }
}

/// Runs one sparse product, its indices in the set that CBSZ and ABID choose.
fn check_sparse((name, rows, depth, _, a, b): Shape, [cbsz, abid]: [usize; 2], acc: char) {
    let mut random = Random(10);
    let run = rows * depth / 64;
    let (kept, outputs) = (run / 2, rows * rows / 64);
    // Two registers of A, four of B, one of indices, and C.
    let stride = 7 + outputs;
    let mut memory: Vec<u32> = (0..64 * stride).map(|_| random.next() as u32).collect();
    let mut dense = vec![0.0; rows * depth];
    let mut b_values = vec![0.0; rows * depth];
    let sets = 32 / run;
    let set = if cbsz == 0 { abid % sets } else { 0 };
    for lane in 0..64 {
        let words = &mut memory[stride * lane..][..stride];
        let mut pack = |first: usize, n: usize, kind: Type, value: f64| {
            let byte = n * kind.bytes();
            let (mask, shift) = ((1u64 << (8 * kind.bytes())) - 1, 8 * (byte % 4));
            let word = &mut words[first + byte / 4];
            *word = *word & !((mask as u32) << shift) | (kind.bits(value) as u32) << shift;
        };
        let (line, first) = (lane % rows, lane / rows * run);
        let mut places = 0;
        for n in 0..kept {
            let value = a.value(&mut random);
            // Two different places of every four, in order.
            let place = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]][(lane + n / 2) % 6][n % 2];
            places |= (place as u32) << (2 * n);
            dense[line * depth + first + n / 2 * 4 + place] = value;
            pack(0, n, a, value);
        }
        for n in 0..run {
            let value = b.value(&mut random);
            b_values[line * depth + first + n] = value;
            pack(2, n, b, value);
        }
        let shift = set * run;
        words[6] = words[6] & !(((1 << run) - 1) << shift) | places << shift;
        for word in &mut words[7..] {
            let value = (random.next() % 100) as f64;
            *word = if a == I8 { value as u32 } else { (value as f32).to_bits() };
        }
    }
    let c = memory.clone();
    let mut body = format!("v_mul_u32_u24 v1, {}, v0\n", 4 * stride);
    let registers = (8..10).chain(16..20).chain(7..8).map(|n| format!("v{n}"));
    let registers: Vec<String> = registers.chain((32..32 + outputs).map(|n| format!("{acc}{n}"))).collect();
    for (n, register) in registers.iter().enumerate() {
        body += &format!("global_load_dword {register}, v1, s[0:1] offset:{}\n", 4 * n);
    }
    let d = format!("{acc}[32:{}]", 31 + outputs);
    body +=
        &format!("s_waitcnt vmcnt(0)\nv_smfmac_{name} {d}, v[8:9], v[16:19], v7 cbsz:{cbsz} abid:{abid}\n");
    for (n, register) in registers.iter().enumerate().skip(7) {
        body += &format!("global_store_dword v1, {register}, s[0:1] offset:{}\n", 4 * n);
    }
    let Some(result) = run_body(&body, &memory) else { return };
    let number = |bits: u32| if a == I8 { f64::from(bits as i32) } else { f64::from(f32::from_bits(bits)) };
    for lane in 0..64 {
        for register in 0..outputs {
            let (row, column, _) = output(rows, 1, false, register, lane);
            let products = (0..depth).map(|k| dense[row * depth + k] * b_values[column * depth + k]);
            let at = lane * stride + 7 + register;
            let expected = number(c[at]) + products.sum::<f64>();
            assert_eq!(number(result[at]), expected, "{name} {cbsz} {abid} row {row} column {column}");
        }
    }
}

#[test]
fn sparse_products_place_what_is_kept() {
    let shapes: [Shape; 14] = [
        ("f32_16x16x32_f16", 16, 32, 1, F16, F16),
        ("f32_32x32x16_f16", 32, 16, 1, F16, F16),
        ("f32_16x16x32_bf16", 16, 32, 1, Bf16, Bf16),
        ("f32_32x32x16_bf16", 32, 16, 1, Bf16, Bf16),
        ("i32_16x16x64_i8", 16, 64, 1, I8, I8),
        ("i32_32x32x32_i8", 32, 32, 1, I8, I8),
        ("f32_16x16x64_bf8_bf8", 16, 64, 1, Bf8, Bf8),
        ("f32_16x16x64_bf8_fp8", 16, 64, 1, Bf8, Fp8),
        ("f32_16x16x64_fp8_bf8", 16, 64, 1, Fp8, Bf8),
        ("f32_16x16x64_fp8_fp8", 16, 64, 1, Fp8, Fp8),
        ("f32_32x32x32_bf8_bf8", 32, 32, 1, Bf8, Bf8),
        ("f32_32x32x32_bf8_fp8", 32, 32, 1, Bf8, Fp8),
        ("f32_32x32x32_fp8_bf8", 32, 32, 1, Fp8, Bf8),
        ("f32_32x32x32_fp8_fp8", 32, 32, 1, Fp8, Fp8),
    ];
    for shape in shapes {
        check_sparse(shape, [0, 0], 'v');
        check_sparse(shape, [0, 1], 'a');
    }
    for sets in [[0, 2], [0, 3], [1, 3]] {
        check_sparse(shapes[0], sets, 'v');
        check_sparse(shapes[4], sets, 'a');
    }
}

/// A product of matrices that hold one value each, all of C another one: an element of the result.
fn uniform(name: &str, mode: u32, a: u32, c: u32) -> Option<u32> {
    let body = format!(
        "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), {}
        s_setreg_imm32_b32 hwreg(HW_REG_MODE, 0, 8), {}
        v_mov_b32 v8, {a:#x}\nv_mov_b32 v9, v8\nv_mov_b32 v2, {c:#x}\nv_mov_b32 v3, v2\nv_mov_b32 v4, v2\nv_mov_b32 v5, v2
        {name}
        v_lshlrev_b32 v1, 2, v0\nglobal_store_dword v1, v5, s[0:1]",
        mode >> 23,
        mode & 0xff
    );
    Some(run_body(&body, &[0; 64])?[37])
}

#[test]
fn products_obey_mode_in_what_is_documented() {
    let saturate = 1 << 23;
    let (i8, bf16, f16, f32) = (
        "v_mfma_i32_16x16x32_i8 v[2:5], v[8:9], v[8:9], v[2:5]",
        "v_mfma_f32_16x16x16_bf16 v[2:5], v[8:9], v[8:9], v[2:5]",
        "v_mfma_f32_16x16x16_f16 v[2:5], v[8:9], v[8:9], v[2:5]",
        "v_mfma_f32_16x16x4_f32 v[2:5], v8, v8, v[2:5]",
    );
    let max = i32::MAX as u32;
    let bits = f32::to_bits;
    let cases = [
        (i8, 0, 0x7f7f_7f7f, max, max.wrapping_add(32 * 127 * 127)),
        (i8, saturate, 0x7f7f_7f7f, max, max),
        (bf16, 0, 0x7f7f_7f7f, 0, bits(f32::INFINITY)),
        (bf16, saturate, 0x7f7f_7f7f, 0, bits(f32::MAX)),
        // Rounding is always to the nearest even: 16 * 2^-48 is nothing next to 1, under rounding up too.
        (f16, 0x5, 0x0001_0001, bits(1.0), bits(1.0)),
        // Denormals of f16 are kept whatever MODE says, those of f32 are not, but C's are.
        (f16, 0, 0x0001_0001, 0, bits(16.0 * 2f32.powi(-48))),
        (f32, 0x30, 0x0040_0000, 7, 7),
        (f32, 0, 0x0040_0000, 7, 7),
        // Results are kept: four times 2^-128.
        (f32, 0, bits(2f32.powi(-64)), 0x0040_0000, 0x0040_0000 + (4 << 21)),
    ];
    for (n, (name, mode, a, c, expected)) in cases.into_iter().enumerate() {
        let Some(found) = uniform(name, mode, a, c) else { return };
        assert_eq!(found, expected, "case {n}: {:e} {:e}", f32::from_bits(found), f32::from_bits(expected));
    }
    // Inputs of f32: denormals times 2^100.
    let mixed = "v_mov_b32 v9, 0x71800000\nv_mfma_f32_16x16x4_f32 v[2:5], v8, v9, v[2:5]";
    for (mode, expected) in [(0, 0.0), (0x20, 0.0), (0x10, 2f32.powi(-127 + 100 + 2)), (0x30, 2f32.powi(-25))]
    {
        let Some(found) = uniform(mixed, mode, 0x0040_0000, 0) else { return };
        assert_eq!(f32::from_bits(found), expected, "{mode:#x}");
    }
}
