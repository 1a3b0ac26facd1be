//! Every atomic of every memory, with and without return, against its definition.

mod common;

use std::rc::Rc;

use common::{Random, run, run_body, run_each};
use hip_sim::float::{BF16, F16, Format, Rounding};

/// What an atomic leaves, given what it finds and is given.
type Update = fn(u64, u64) -> u64;

/// The same of one that is given two operands.
type Update2 = Rc<dyn Fn(u64, [u64; 2]) -> u64>;

fn signed(value: u64) -> i64 {
    value as i64
}

/// Names without their width; 32-bit values come sign-extended for the signed ones.
const INTEGERS: [(&str, Update); 12] = [
    ("swap", |_, data| data),
    ("add", |old, data| old.wrapping_add(data)),
    ("sub", |old, data| old.wrapping_sub(data)),
    ("smin", |old, data| if signed(data) < signed(old) { data } else { old }),
    ("umin", |old, data| if data < old { data } else { old }),
    ("smax", |old, data| if signed(data) > signed(old) { data } else { old }),
    ("umax", |old, data| if data > old { data } else { old }),
    ("and", |old, data| old & data),
    ("or", |old, data| old | data),
    ("xor", |old, data| old ^ data),
    ("inc", |old, data| if old >= data { 0 } else { old + 1 }),
    ("dec", |old, data| if old == 0 || old > data { data } else { old - 1 }),
];

fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn d(bits: u64) -> f64 {
    f64::from_bits(bits)
}

fn pair(format: Format, old: u64, data: u64) -> u64 {
    let sum = |shift: u32| {
        let [a, b] = [old, data].map(|bits| format.decode((bits >> shift) as u32 & 0xffff));
        format.encode(a + b, Rounding::NearestEven, false)
    };
    u64::from(sum(0) | sum(16) << 16)
}

const FLOATS: [(&str, Update); 6] = [
    ("add_f32", |old, data| (f(old) + f(data)).to_bits().into()),
    ("add_f64", |old, data| (d(old) + d(data)).to_bits()),
    ("min_f64", |old, data| d(old).min(d(data)).to_bits()),
    ("max_f64", |old, data| d(old).max(d(data)).to_bits()),
    ("pk_add_f16", |old, data| pair(F16, old, data)),
    ("pk_add_bf16", |old, data| pair(BF16, old, data)),
];

/// Lanes that find v\[2:3\] in memory and are given v\[4:7\]. A few find what they compare with, and none is
/// NaN or so large that a sum overflows.
fn lanes() -> Vec<[u32; 8]> {
    let mut random = Random(41);
    (0..64)
        .map(|lane| {
            let mut x: [u32; 8] = std::array::from_fn(|_| random.next() as u32 & 0xbf7f_bf7f);
            match lane % 4 {
                0 => (x[3], x[4], x[5]) = (x[0], x[0], x[1]),
                1 => (x[0], x[1]) = (lane % 3, 0),
                _ => {}
            }
            x
        })
        .collect()
}

fn wide(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// What to do with the first words of a lane: the value before, the operands, and the value after.
struct Case {
    instruction: String,
    update: Update2,
    bytes: usize,
    returns: bool,
}

fn check(before: &str, cases: &[Case], after: &str) {
    let inputs = lanes();
    let code = |case: &Case| {
        let wait = "s_waitcnt vmcnt(0) lgkmcnt(0)";
        format!("{before}\n{}\n{wait}\n{after}\n{wait}", case.instruction)
    };
    let codes: Vec<String> = cases.iter().map(code).collect();
    let Some(results) = run_each(&codes, |lane| inputs[lane]) else { return };
    for (case, results) in cases.iter().zip(results) {
        let Case { instruction, update, bytes, returns } = case;
        for (out, x) in results.iter().zip(&inputs) {
            let value = |n: usize| if *bytes == 8 { wide(x[n], x[n + 1]) } else { x[n].into() };
            let operands = [value(2), value(2 + bytes / 4)];
            let new = update(value(0), operands);
            let found = if *bytes == 8 { wide(out[2], out[3]) } else { out[2].into() };
            assert_eq!(found, if *bytes == 8 { new } else { new & 0xffff_ffff }, "{instruction} {x:x?}");
            let returned = if *bytes == 8 { wide(out[0], out[1]) } else { out[0].into() };
            if *returns {
                assert_eq!(returned, value(0), "{instruction}");
            }
        }
    }
}

/// Cases of global memory: how an instruction is named and what follows its data, by whether it returns.
fn cases(name: impl Fn(&str, &str, bool, usize) -> String, bf16: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for returns in [false, true] {
        for (what, update) in INTEGERS {
            for bytes in [4, 8] {
                let suffix = if bytes == 8 { "_x2" } else { "" };
                let narrow = bytes == 4 && what.starts_with('s') && what.len() == 4;
                let extend = move |value: u64| if narrow { value as i32 as u64 } else { value };
                cases.push(Case {
                    instruction: name(
                        &format!("{what}{suffix}"),
                        if bytes == 8 { "v[4:5]" } else { "v4" },
                        returns,
                        bytes,
                    ),
                    update: Rc::new(move |old, [data, _]| update(extend(old), extend(data))),
                    bytes,
                    returns,
                });
            }
        }
        for bytes in [4, 8] {
            let (suffix, data) = if bytes == 8 { ("_x2", "v[4:7]") } else { ("", "v[4:5]") };
            cases.push(Case {
                instruction: name(&format!("cmpswap{suffix}"), data, returns, bytes),
                update: Rc::new(|old, [new, compare]| if old == compare { new } else { old }),
                bytes,
                returns,
            });
        }
        for (what, update) in FLOATS.into_iter().filter(|(what, _)| bf16 || *what != "pk_add_bf16") {
            let bytes = if what.ends_with("f64") { 8 } else { 4 };
            cases.push(Case {
                instruction: name(what, if bytes == 8 { "v[4:5]" } else { "v4" }, returns, bytes),
                update: Rc::new(move |old, [data, _]| update(old, data)),
                bytes,
                returns,
            });
        }
    }
    cases
}

fn target(returns: bool, bytes: usize) -> (&'static str, &'static str) {
    match (returns, bytes) {
        (false, _) => ("", ""),
        (true, 8) => ("v[10:11], ", " sc0"),
        (true, _) => ("v10, ", " sc0"),
    }
}

const LOAD: &str = "global_load_dwordx2 v[12:13], v1, s[0:1]";

#[test]
fn global_and_flat_memory() {
    let global = |what: &str, data: &str, returns: bool, bytes: usize| {
        let (target, returning) = target(returns, bytes);
        format!("global_atomic_{what} {target}v1, {data}, s[0:1]{returning}")
    };
    let flat = |what: &str, data: &str, returns: bool, bytes: usize| {
        let (target, returning) = target(returns, bytes);
        format!("flat_atomic_{what} {target}v[18:19], {data}{returning}")
    };
    check("", &cases(global, true), LOAD);
    let address = "v_mov_b32 v19, s1\nv_add_co_u32 v18, vcc, s0, v1\nv_addc_co_u32 v19, vcc, 0, v19, vcc";
    check(address, &cases(flat, true), LOAD);
    // The same in LDS: the aperture is the high half of the address.
    let shared = "s_mov_b64 s[2:3], src_shared_base\nv_mov_b32 v19, s3\nv_mov_b32 v18, v1\nds_write_b64 v1, v[2:3]\ns_waitcnt lgkmcnt(0)";
    check(shared, &cases(flat, true), "ds_read_b64 v[12:13], v1");
}

#[test]
fn buffers() {
    let resource = "s_mov_b64 s[4:5], s[0:1]\ns_movk_i32 s6, 0x1000\ns_mov_b32 s7, 0x27000";
    // Data and result share registers.
    let before =
        format!("{resource}\nv_mov_b64 v[10:11], v[4:5]\nv_mov_b64 v[20:21], v[6:7]\nv_mov_b32 v22, v10");
    let name = |what: &str, data: &str, returns: bool, _: usize| {
        let returning = if returns { " sc0" } else { "" };
        let data = data.replace("v[4:5]", "v[10:11]").replace("v[4:7]", "v[10:13]").replace("v4", "v10");
        let wide = if data == "v[10:13]" { "v_mov_b64 v[12:13], v[6:7]\n" } else { "" };
        format!("{wide}buffer_atomic_{what} {data}, v1, s[4:7], 0 offen{returning}")
    };
    check(&before, &cases(name, false), LOAD);
}

#[test]
fn local_memory() {
    let start = "v_lshlrev_b32 v18, 4, v0\nds_write_b64 v18, v[2:3]\ns_waitcnt lgkmcnt(0)";
    let end = "ds_read_b64 v[12:13], v18";
    type Plain = fn(u64, [u64; 2]) -> u64;
    let with = |what: &str, kind: char, update: Update| -> (String, char, Update2) {
        (what.to_string(), kind, Rc::new(move |old, [data, _]| update(old, data)))
    };
    let mut operations: Vec<(String, char, Update2)> = INTEGERS
        .iter()
        .filter(|(what, _)| *what != "swap")
        .map(|&(what, update)| match what {
            "and" | "or" | "xor" => with(what, 'b', update),
            "smin" | "smax" => with(&what[1..], 'i', update),
            "umin" | "umax" => with(&what[1..], 'u', update),
            _ => with(what, 'u', update),
        })
        .collect();
    operations.push(with("rsub", 'u', |old, data| data.wrapping_sub(old)));
    let two: [(&str, Plain); 2] = [
        ("mskor", |old, [clear, set]| old & !clear | set),
        ("cmpst", |old, [compare, new]| if old == compare { new } else { old }),
    ];
    operations.extend(
        two.map(|(what, update)| -> (String, char, Update2) { (what.to_string(), 'b', Rc::new(update)) }),
    );
    let mut all = Vec::new();
    for (what, kind, update) in operations {
        for bits in [32, 64] {
            for returns in [false, true] {
                let bytes = bits / 8;
                let range = |n: usize| if bits == 64 { format!("v[{n}:{}]", n + 1) } else { format!("v{n}") };
                let mut data = range(4);
                if what == "mskor" || what == "cmpst" {
                    data += &format!(", {}", range(if bits == 64 { 6 } else { 5 }));
                }
                let (result, infix) = if returns { (range(10) + ", ", "_rtn") } else { (String::new(), "") };
                let update = update.clone();
                let narrow = bits == 32 && kind == 'i';
                let extend = move |value: u64| if narrow { value as i32 as u64 } else { value };
                all.push(Case {
                    instruction: format!("ds_{what}{infix}_{kind}{bits} {result}v18, {data}"),
                    update: Rc::new(move |old, data| update(extend(old), data.map(extend))),
                    bytes,
                    returns,
                });
            }
        }
    }
    let floats: [(&str, &str, usize, Plain); 9] = [
        ("add", "f32", 4, |old, [data, _]| (f(old) + f(data)).to_bits().into()),
        ("min", "f32", 4, |old, [data, _]| f(old).min(f(data)).to_bits().into()),
        ("max", "f32", 4, |old, [data, _]| f(old).max(f(data)).to_bits().into()),
        ("add", "f64", 8, |old, [data, _]| (d(old) + d(data)).to_bits()),
        ("min", "f64", 8, |old, [data, _]| d(old).min(d(data)).to_bits()),
        ("max", "f64", 8, |old, [data, _]| d(old).max(d(data)).to_bits()),
        ("pk_add", "f16", 4, |old, [data, _]| pair(F16, old, data)),
        ("pk_add", "bf16", 4, |old, [data, _]| pair(BF16, old, data)),
        ("cmpst", "f32", 4, |old, [compare, new]| if f(old) == f(compare) { new } else { old }),
    ];
    for (what, kind, bytes, update) in floats {
        for returns in [false, true] {
            let (data, result) = if bytes == 8 { ("v[4:5]", "v[10:11], ") } else { ("v4", "v10, ") };
            let (result, infix) = if returns { (result, "_rtn") } else { ("", "") };
            let second = if what == "cmpst" { ", v5" } else { "" };
            let instruction = format!("ds_{what}{infix}_{kind} {result}v18, {data}{second}");
            all.push(Case { instruction, update: Rc::new(update), bytes, returns });
        }
    }
    let returning: [(&str, usize, Plain); 5] =
        [
            ("ds_wrxchg_rtn_b32 v10, v18, v4", 4, |_, [data, _]| data),
            ("ds_wrxchg_rtn_b64 v[10:11], v18, v[4:5]", 8, |_, [data, _]| data),
            (
                "ds_wrap_rtn_b32 v10, v18, v4, v5",
                4,
                |old, [a, b]| if old >= a { old - a } else { old.wrapping_add(b) },
            ),
            ("ds_cmpst_rtn_f64 v[10:11], v18, v[4:5], v[6:7]", 8, |old, [compare, new]| {
                if d(old) == d(compare) { new } else { old }
            }),
            ("ds_condxchg32_rtn_b64 v[10:11], v18, v[4:5]", 8, |old, [data, _]| {
                let word = |shift: u32| match data >> shift & 0x8000_0000 {
                    0 => old >> shift & 0xffff_ffff,
                    _ => data >> shift & 0x7fff_ffff,
                };
                word(0) | word(32) << 32
            }),
        ];
    for (instruction, bytes, update) in returning {
        let instruction = instruction.to_string();
        all.push(Case { instruction, update: Rc::new(update), bytes, returns: true });
    }
    check(start, &all, end);
}

#[test]
fn exchanges_of_two_counters_and_addresses_by_lane() {
    let inputs = lanes();
    let code = "v_lshlrev_b32 v18, 3, v0
        v_mov_b32 v19, 0
        ds_write_b64 v18, v[2:3]
        s_movk_i32 m0, 0x1000
        ds_write_addtid_b32 v4 offset:256
        ds_wrxchg2_rtn_b32 v[10:11], v18, v5, v6 offset0:1 offset1:0
        s_waitcnt lgkmcnt(0)
        ds_read_b64 v[12:13], v18
        ds_read_addtid_b32 v14 offset:256
        v_mov_b32 v15, 7
        ds_write_b32 v19, v15 offset:8192
        s_mov_b64 s[4:5], exec
        s_movk_i32 m0, 0x2000
        v_cmp_gt_u32 vcc, 40, v0
        s_mov_b64 exec, vcc
        ds_append v15
        s_mov_b32 exec_hi, 0
        ds_consume v16
        s_mov_b64 exec, s[4:5]
        ds_read_b32 v17, v19 offset:8192
        s_waitcnt lgkmcnt(0)";
    let Some(results) = run(code, |lane| inputs[lane]) else { return };
    for (lane, (out, x)) in results.iter().zip(&inputs).enumerate() {
        assert_eq!(out[..5], [x[1], x[0], x[4], x[3], x[2]]);
        let consumed = if lane < 32 { 47 } else { 0xcccc_cccc };
        assert_eq!(out[5..], [7, consumed, 15], "lane {lane}");
    }
}

#[test]
fn scalar_memory() {
    let mut random = Random(42);
    let words: Vec<u32> = (0..16).map(|_| random.next() as u32).collect();
    let resource = "s_mov_b64 s[4:5], s[0:1]\ns_movk_i32 s6, 40\ns_mov_b32 s7, 0x27000";
    let load = "s_load_dwordx4 s[8:11], s[0:1], 16\ns_waitcnt lgkmcnt(0)";
    let store = "s_waitcnt lgkmcnt(0)\ns_store_dwordx2 s[8:9], s[0:1], 32\ns_waitcnt lgkmcnt(0)";
    let mut all = Vec::new();
    for (name, base) in [("s_atomic", "s[0:1]"), ("s_buffer_atomic", "s[4:7]")] {
        for (what, update) in INTEGERS {
            for bytes in [4, 8] {
                let (suffix, data) = if bytes == 8 { ("_x2", "s[8:9]") } else { ("", "s8") };
                all.push((format!("{name}_{what}{suffix} {data}, {base}, 8 glc"), update, bytes));
            }
        }
    }
    // Each in its own 16 words.
    let next = "s_add_u32 s0, s0, 64\ns_addc_u32 s1, s1, 0";
    let body =
        |(instruction, ..): &(String, _, _)| format!("{resource}\n{load}\n{instruction}\n{store}\n{next}\n");
    let Some(result) = run_body(&all.iter().map(body).collect::<String>(), &words.repeat(all.len())) else {
        return;
    };
    for ((instruction, update, bytes), result) in all.iter().zip(result.chunks_exact(16)) {
        let narrow = *bytes == 4 && (instruction.contains("_smin") || instruction.contains("_smax"));
        let value = |n: usize| match bytes {
            8 => wide(words[n], words[n + 1]),
            _ if narrow => words[n] as i32 as u64,
            _ => words[n].into(),
        };
        let new = update(value(2), value(4));
        let high = if *bytes == 8 { (new >> 32) as u32 } else { words[3] };
        assert_eq!(result[2..4], [new as u32, high], "{instruction}");
        assert_eq!(result[8], words[2], "{instruction} returns");
    }
    // Compares, offsets, scratch addresses in units of 64 bytes, and the end of a buffer.
    let body = format!(
        "{resource}\n{load}\ns_mov_b32 s8, 77\ns_load_dword s9, s[0:1], 0
        s_waitcnt lgkmcnt(0)
        s_atomic_cmpswap s[8:9], s[0:1], 0
        s_buffer_store_dwordx4 s[8:11], s[4:7], 32
        s_mov_b32 s12, 1
        s_scratch_load_dword s13, s[0:1], s12
        s_scratch_store_dword s13, s[0:1], 60
        s_buffer_load_dwordx2 s[14:15], s[4:7], 36
        s_waitcnt lgkmcnt(0)
        s_store_dwordx2 s[14:15], s[0:1], 48"
    );
    let words: Vec<u32> = (0..20).map(|n| 100 + n).collect();
    let Some(result) = run_body(&body, &words) else { return };
    let mut expected = words.clone();
    (expected[0], expected[8], expected[9]) = (77, 77, 100);
    (expected[12], expected[13], expected[15]) = (100, 0, 116);
    assert_eq!(result, expected);
}
