//! The decoder against LLVM's disassembler, on encodings with random fields.

mod common;

use std::collections::HashSet;
use std::io::Write;
use std::process::{Command, Stdio};

use common::Random;
use hip_sim::decode::{Format, Instruction, Op, Operand};

/// First word of each encoding: its fixed bits, which others are free, where the number of the instruction is
/// and how many there are; and how many words it has.
const ENCODINGS: [(u32, u32, u32, u32, usize); 17] = [
    (0x8000_0000, 0x3fff_ffff, 23, 96, 1),
    (0xb000_0000, 0x0fff_ffff, 23, 24, 1),
    (0xbe80_0000, 0x007f_ffff, 8, 256, 1),
    (0xbf00_0000, 0x007f_ffff, 16, 128, 1),
    (0xbf80_0000, 0x007f_ffff, 16, 128, 1),
    (0xc000_0000, 0x03ff_ffff, 18, 256, 2),
    (0x0000_0000, 0x7fff_ffff, 25, 62, 1),
    (0x7c00_0000, 0x01ff_ffff, 17, 256, 1),
    (0x7e00_0000, 0x01ff_ffff, 9, 256, 1),
    (0xd000_0000, 0x03ff_ffff, 16, 896, 2),
    (0xd380_0000, 0x007f_ffff, 16, 128, 2),
    (0xd800_0000, 0x03ff_ffff, 17, 256, 2),
    (0xdc00_0000, 0x03ff_3fff, 18, 128, 2),
    (0xdc00_4000, 0x03ff_3fff, 18, 128, 2),
    (0xdc00_8000, 0x03ff_3fff, 18, 128, 2),
    (0xe000_0000, 0x03ff_ffff, 18, 128, 2),
    (0xe800_0000, 0x03ff_ffff, 15, 16, 2),
];

/// A mnemonic without the suffix of its encoding.
fn plain(mnemonic: &str) -> &str {
    let suffixes = ["_e32", "_e64", "_sdwa", "_dpp", "_e64_dpp"];
    suffixes.iter().find_map(|suffix| mnemonic.strip_suffix(suffix)).unwrap_or(mnemonic)
}

/// The registers a line of assembly names: kind and first index.
fn registers(operands: &str) -> Vec<(char, u32)> {
    let special = [("vcc", 106), ("exec", 126), ("m0", 124), ("flat_scratch", 102), ("xnack_mask", 104)];
    let mut found = Vec::new();
    for token in operands.split(|c: char| c == ',' || c.is_whitespace()) {
        let token = token.trim_matches(|c| "-|()".contains(c));
        let token = token.strip_prefix("neg(").or(token.strip_prefix("abs(")).unwrap_or(token);
        let token = token.strip_prefix("sext(").unwrap_or(token).trim_matches(|c| "-|()".contains(c));
        let name = token.trim_end_matches("_lo").trim_end_matches("_hi");
        if let Some((_, index)) = special.iter().find(|(special, _)| *special == name) {
            found.push(('s', index + u32::from(token.ends_with("_hi"))));
            continue;
        }
        let (kind, rest) = match token.strip_prefix("ttmp") {
            Some(rest) => ('t', rest),
            None => match token.chars().next() {
                Some(kind @ ('v' | 's' | 'a')) => (kind, &token[1..]),
                _ => continue,
            },
        };
        let digits: String = rest.trim_start_matches('[').chars().take_while(char::is_ascii_digit).collect();
        let whole = rest.starts_with('[') || digits.len() == rest.len();
        if let (true, Ok(index)) = (whole, digits.parse::<u32>()) {
            found.push(if kind == 't' { ('s', 108 + index) } else { (kind, index) });
        }
    }
    found
}

fn ours(i: &Instruction) -> HashSet<(char, u32)> {
    let operands = [i.destination, i.source[0], i.source[1], i.source[2]];
    let mut found: HashSet<_> = operands
        .into_iter()
        .filter_map(|operand| match operand {
            Operand::Scalar(index) => Some(('s', u32::from(index))),
            Operand::Vector(index) => Some(('v', u32::from(index))),
            Operand::Accumulator(index) => Some(('a', u32::from(index))),
            _ => None,
        })
        .collect();
    found.insert(('s', i.scalar_destination.into()));
    found
}

#[test]
fn every_instruction_decodes_as_llvm_disassembles_it() {
    let mut random = Random(7);
    let mut cases = Vec::new();
    for (fixed, free, at, count, length) in ENCODINGS {
        let number = (count.next_power_of_two() - 1) << at;
        for n in 0..count * (6000 / count).max(24) {
            // Every number in turn; some instructions take only few bits in their fields.
            let mask = match n / count % 8 {
                0 => 0,
                1 | 2 => random.next() & random.next() & random.next(),
                _ => u64::MAX,
            };
            let bits = random.next() & mask;
            let first = fixed | bits as u32 & free & !number | (n % count) << at;
            let mut words = [first, (bits >> 32) as u32, random.next() as u32];
            // LLVM's disassembler crashes on constants where accumulators belong.
            match (fixed, n % count) {
                (0x7e00_0000, 0x52) => words[0] |= 1 << 8,
                (0xd380_0000, 0x58) => words[1] |= 1 << 8,
                (0xd380_0000, 0x3e..=0x57 | 0x5a..) => words[1] |= 1 << 8 | 1 << 17,
                // Global wave sync is of the global data share.
                (0xd800_0000, 0x98..=0x9d) => words[0] |= 1 << 16,
                _ => {}
            }
            // Small VOP3 opcodes and no output modifiers are what is mostly valid.
            if fixed == 0xd000_0000 {
                words[1] &= 0x07ff_ffff;
            }
            cases.push((words, length));
        }
    }
    let mut text = String::new();
    for (words, length) in &cases {
        // LLVM takes a second word where the first asks for it, so offer both lengths.
        for length in [*length, 2] {
            let bytes: Vec<String> = words[..length]
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .map(|b| format!("{b:#x}"))
                .collect();
            text += &format!("[{}]\n", bytes.join(","));
        }
    }
    let tools = ["llvm-mc-23", "llvm-mc-22", "llvm-mc-21", "llvm-mc-20", "llvm-mc-19", "llvm-mc"];
    let child = tools.iter().find_map(|tool| {
        let mut command = Command::new(tool);
        command.args(["-triple=amdgcn-amd-amdhsa", "-mcpu=gfx942", "-disassemble", "-show-encoding"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()
    });
    let Some(mut child) = child else {
        println!("skipped: no llvm-mc is installed");
        return;
    };
    let mut input = child.stdin.take().expect("piped");
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("llvm-mc ends");
    writer.join().expect("no panic").expect("llvm-mc reads all");
    assert!(output.status.code().is_some(), "llvm-mc crashed");
    let (mut compared, mut wrong, mut seen) = (0, Vec::new(), HashSet::new());
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((assembly, encoding)) = line.split_once("; encoding: [") else { continue };
        let bytes: Vec<u8> = encoding
            .split([',', ']'])
            .filter_map(|byte| u8::from_str_radix(byte.trim().strip_prefix("0x")?, 16).ok())
            .collect();
        let words: Vec<u32> =
            bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        // Operands of graphics pipelines: no kernel has them.
        if ["src_pops_", "src_lds_direct", "Invalid immediate"].iter().any(|gone| assembly.contains(gone)) {
            continue;
        }
        let (mnemonic, operands) = assembly.trim().split_once(' ').unwrap_or((assembly.trim(), ""));
        compared += 1;
        // Floats are no constants of 16-bit integers: LLVM encodes them as literals, which VOP3 has not.
        let literal = |word: u32| [0, 9, 18].iter().any(|shift| word >> shift & 0x1ff == 255);
        if words[0] >> 26 == 0b11_0100 && literal(words[1]) {
            continue;
        }
        let Some(decoded) = Instruction::decode(&words) else {
            wrong.push(format!("{words:x?} is not decoded: {assembly}"));
            continue;
        };
        // VOP2 and VOP3 forms of the fmac of dot products share a name.
        let same = plain(mnemonic) == decoded.op.name() && usize::from(decoded.length) == words.len();
        seen.insert(decoded.op.name());
        let mine = ours(&decoded);
        let missing = registers(operands).into_iter().find(|register| !mine.contains(register));
        let relevant = !matches!(decoded.format, Format::Sopp) && missing.is_some();
        if !same || relevant {
            wrong.push(format!("{words:x?} {assembly}: {} {missing:?} {mine:?}", decoded.op.name()));
        }
    }
    println!("{compared} instructions compared");
    let unseen: Vec<_> =
        Op::ALL.iter().map(|(.., op)| op.name()).filter(|name| !seen.contains(name)).collect();
    assert!(unseen.is_empty(), "LLVM was not asked for {unseen:?}");
    assert!(compared > 10_000, "{compared}");
    assert!(
        wrong.is_empty(),
        "{} of {compared} differ:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(40)].join("\n")
    );
}
