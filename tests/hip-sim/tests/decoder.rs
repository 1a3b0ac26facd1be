//! The decoder against LLVM's disassembler, on encodings with random fields.

mod common;

use std::collections::HashSet;
use std::io::Write;
use std::process::{Command, Stdio};

use common::Random;
use hip_sim::decode::{Format, Instruction, Operand};

/// First word of each encoding: fixed bits and how many random ones.
const ENCODINGS: [(u32, u32, usize); 15] = [
    (0x8000_0000, 0x3fff_ffff, 1),
    (0xb000_0000, 0x0fff_ffff, 1),
    (0xbe80_0000, 0x007f_ffff, 1),
    (0xbf00_0000, 0x007f_ffff, 1),
    (0xbf80_0000, 0x007f_ffff, 1),
    (0xc000_0000, 0x03ff_ffff, 2),
    (0x0000_0000, 0x7fff_ffff, 1),
    (0x7c00_0000, 0x01ff_ffff, 1),
    (0x7e00_0000, 0x01ff_ffff, 1),
    (0xd000_0000, 0x03ff_ffff, 2),
    (0xd380_0000, 0x007f_ffff, 2),
    (0xd800_0000, 0x03ff_ffff, 2),
    (0xdc00_0000, 0x03ff_ffff, 2),
    (0xe000_0000, 0x03ff_ffff, 2),
    (0xe800_0000, 0x03ff_ffff, 2),
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
fn random_encodings_decode_as_llvm_disassembles_them() {
    let mut random = Random(7);
    let mut cases = Vec::new();
    for (fixed, free, length) in ENCODINGS {
        for _ in 0..6000 {
            let bits = random.next();
            let mut words = [fixed | bits as u32 & free, (bits >> 32) as u32, random.next() as u32];
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
    let (mut compared, mut wrong) = (0, Vec::new());
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((assembly, encoding)) = line.split_once("; encoding: [") else { continue };
        let bytes: Vec<u8> = encoding
            .split([',', ']'])
            .filter_map(|byte| u8::from_str_radix(byte.trim().strip_prefix("0x")?, 16).ok())
            .collect();
        let words: Vec<u32> =
            bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        // Features of graphics pipelines and of the trap handler: no kernel has them.
        if ["src_pops_", "src_lds_direct", "s_rfe_restore", "_g_fork", "Invalid immediate"]
            .iter()
            .any(|gone| assembly.contains(gone))
        {
            continue;
        }
        let (mnemonic, operands) = assembly.trim().split_once(' ').unwrap_or((assembly.trim(), ""));
        compared += 1;
        let Some(decoded) = Instruction::decode(&words) else {
            wrong.push(format!("{words:x?} is not decoded: {assembly}"));
            continue;
        };
        // VOP2 and VOP3 forms of the fmac of dot products share a name.
        let same = plain(mnemonic) == decoded.op.name() && usize::from(decoded.length) == words.len();
        let mine = ours(&decoded);
        let missing = registers(operands).into_iter().find(|register| !mine.contains(register));
        let relevant = !matches!(decoded.format, Format::Sopp) && missing.is_some();
        if !same || relevant {
            wrong.push(format!("{words:x?} {assembly}: {} {missing:?} {mine:?}", decoded.op.name()));
        }
    }
    println!("{compared} instructions compared");
    assert!(compared > 10_000, "{compared}");
    assert!(
        wrong.is_empty(),
        "{} of {compared} differ:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(40)].join("\n")
    );
}
