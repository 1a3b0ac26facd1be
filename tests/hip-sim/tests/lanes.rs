//! Values that move between lanes: DPP, SDWA, LDS permutations, and the check that their sources are on.

mod common;

use common::{assemble, random_lanes, run, run_each};
use hip_sim::dispatch::Checks;
use hip_sim::report::Cause;

const OLD: u32 = 0xcccc_cccc;

/// The lane each control reads from, as the manual draws it.
fn source(control: &str, lane: usize) -> Option<usize> {
    let (row, column) = (lane / 16 * 16, lane % 16);
    let (name, argument) = control.split_once(':').unwrap_or((control, ""));
    let n: usize = argument.parse().unwrap_or(0);
    match name {
        "quad_perm" => {
            let places: Vec<usize> =
                argument.trim_matches(['[', ']']).split(',').map(|n| n.parse().expect("a number")).collect();
            Some(lane / 4 * 4 + places[lane % 4])
        }
        "row_shl" => (column + n < 16).then_some(lane + n),
        "row_shr" => (column >= n).then(|| lane - n),
        "row_ror" => Some(row + (column + 16 - n) % 16),
        "wave_shl" => (lane < 63).then_some(lane + 1),
        "wave_rol" => Some((lane + 1) % 64),
        "wave_shr" => lane.checked_sub(1),
        "wave_ror" => Some((lane + 63) % 64),
        "row_mirror" => Some(row + 15 - column),
        "row_half_mirror" => Some(lane / 8 * 8 + 7 - lane % 8),
        "row_bcast" if n == 15 => row.checked_sub(1),
        "row_bcast" => (lane >= 32).then_some(31),
        "row_newbcast" => Some(row + n),
        _ => panic!("{control}"),
    }
}

#[test]
fn every_control_moves_lanes_as_drawn() {
    let inputs = random_lanes(31);
    let mut controls: Vec<String> =
        ["quad_perm:[0,0,0,0]", "quad_perm:[3,1,2,0]", "row_mirror", "row_half_mirror"]
            .into_iter()
            .chain(["row_bcast:15", "row_bcast:31", "wave_shl:1", "wave_rol:1", "wave_shr:1", "wave_ror:1"])
            .map(String::from)
            .collect();
    for n in 0..16 {
        controls.push(format!("row_newbcast:{n}"));
        if n > 0 {
            controls.extend(["row_shl", "row_shr", "row_ror"].map(|name| format!("{name}:{n}")));
        }
    }
    let exec = 0xf7ff_fffe_1234_ffffu64;
    let masks = |count: usize| ([0xf, 0x5, 0xe][count % 3], [0xf, 0xf, 0xf, 0x6][count % 4]);
    let code = |(count, control): (usize, &String)| {
        let (rows, banks) = masks(count);
        let masks = format!("row_mask:{rows:#x} bank_mask:{banks:#x}");
        format!(
            "s_mov_b32 exec_lo, {:#x}\ns_mov_b32 exec_hi, {:#x}
            v_mov_b32_dpp v10, v2 {control} {masks}
            v_mov_b32_dpp v11, v2 {control} {masks} bound_ctrl:0
            v_add_f32_dpp v12, -v2, |v3| {control} {masks}
            v_cmp_lt_u32 vcc, v3, v3
            v_sub_co_u32_dpp v13, vcc, v2, v3 {control} {masks} bound_ctrl:0
            v_mov_b32 v14, vcc_lo
            v_mov_b32 v15, vcc_hi",
            exec as u32,
            exec >> 32
        )
    };
    let codes: Vec<String> = controls.iter().enumerate().map(code).collect();
    let Some(results) = run_each(&codes, |lane| inputs[lane]) else { return };
    for ((count, control), results) in controls.iter().enumerate().zip(results) {
        let (rows, banks) = masks(count);
        let masks = format!("rows {rows:#x}, banks {banks:#x}");
        let on = |lane: usize| exec >> lane & 1 == 1;
        let mut borrows = 0u64;
        let written =
            |lane: usize| on(lane) && rows >> (lane / 16) & 1 == 1 && banks >> (lane % 16 / 4) & 1 == 1;
        for lane in 0..64 {
            let from = source(control, lane).filter(|&from| on(from));
            let pulled = from.map_or(0, |from| inputs[from][0]);
            borrows |= u64::from(written(lane) && pulled < inputs[lane][1]) << lane;
        }
        for (lane, out) in results.iter().enumerate() {
            let from = source(control, lane).filter(|&from| on(from));
            let pulled = from.map(|from| inputs[from][0]);
            let b = inputs[lane][1];
            let kept = |value: Option<u32>| if written(lane) { value.unwrap_or(OLD) } else { OLD };
            assert_eq!(out[0], kept(pulled), "{control} {masks} lane {lane}");
            assert_eq!(out[1], kept(Some(pulled.unwrap_or(0))), "{control} {masks} lane {lane}");
            let sum = pulled.map(|a| (f32::from_bits(b).abs() - f32::from_bits(a)).to_bits());
            let nan = |bits: u32| f32::from_bits(bits).is_nan();
            assert!(out[2] == kept(sum) || nan(out[2]) && nan(kept(sum)), "{control} {masks} lane {lane}");
            assert_eq!(
                out[3],
                kept(Some(pulled.unwrap_or(0).wrapping_sub(b))),
                "{control} {masks} lane {lane}"
            );
            if on(lane) {
                assert_eq!(out[4..6], [borrows as u32, (borrows >> 32) as u32], "{control} {masks}");
            }
        }
    }
}

/// A part of a word as SDWA names it.
fn part(value: u32, select: &str, signed: bool) -> u32 {
    let (shift, width) = match select.split_once('_') {
        Some(("BYTE", n)) => (8 * n.parse::<u32>().expect("a number"), 8),
        Some((_, n)) => (16 * n.parse::<u32>().expect("a number"), 16),
        None => return value,
    };
    let cut = value >> shift & ((1 << width) - 1);
    if signed && cut >> (width - 1) == 1 { cut | u32::MAX << width } else { cut }
}

#[test]
fn every_part_of_a_word_is_read_and_written() {
    let inputs = random_lanes(32);
    let selects = ["BYTE_0", "BYTE_1", "BYTE_2", "BYTE_3", "WORD_0", "WORD_1", "DWORD"];
    let pairs: Vec<(&str, usize)> =
        selects.into_iter().flat_map(|select| (0..selects.len()).map(move |n| (select, n))).collect();
    let code = |&(select, n): &(&str, usize)| {
        let other = selects[n];
        let a = if n % 2 == 1 { "sext(v2)" } else { "v2" };
        let with =
            |unused: &str| format!("dst_sel:{other} dst_unused:{unused} src0_sel:{select} src1_sel:{other}");
        format!(
                "v_add_u32_sdwa v10, {a}, v3 {}
                v_add_u32_sdwa v11, {a}, v3 {}
                v_add_u32_sdwa v12, {a}, v3 {}
                v_cmp_lt_i32_sdwa vcc, {a}, sext(v3) src0_sel:{select} src1_sel:{other}
                v_mov_b32 v13, vcc_lo
                v_mov_b32 v14, vcc_hi
                v_mul_f16_sdwa v15, -v2, |v3| dst_sel:WORD_1 dst_unused:UNUSED_PRESERVE src0_sel:WORD_1 src1_sel:WORD_0
                v_cvt_f32_ubyte0_sdwa v16, v2 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:{select}",
                with("UNUSED_PAD"),
                with("UNUSED_SEXT"),
                with("UNUSED_PRESERVE"),
            )
    };
    let codes: Vec<String> = pairs.iter().map(code).collect();
    let Some(results) = run_each(&codes, |lane| inputs[lane]) else { return };
    for ((select, n), results) in pairs.into_iter().zip(results) {
        let (other, sext) = (selects[n], n % 2 == 1);
        let mut less = 0u64;
        for (lane, [a, b, ..]) in inputs.iter().enumerate() {
            let [a, b] = [part(*a, select, sext), part(*b, other, true)];
            less |= u64::from((a as i32) < b as i32) << lane;
        }
        for (out, [a, b, ..]) in results.iter().zip(&inputs) {
            let sum = part(*a, select, sext).wrapping_add(part(*b, other, false));
            let (shift, width) = match other.split_once('_') {
                Some(("BYTE", n)) => (8 * n.parse::<u32>().expect("a number"), 8),
                Some((_, n)) => (16 * n.parse::<u32>().expect("a number"), 16),
                None => (0, 32),
            };
            let below = u32::MAX >> (32 - width);
            let placed = (sum & below) << shift;
            let above = if shift + width < 32 && sum >> (width - 1) & 1 == 1 {
                u32::MAX << (shift + width)
            } else {
                0
            };
            assert_eq!(out[0], placed, "{select} {other}");
            assert_eq!(out[1], placed | above, "{select} {other}");
            assert_eq!(out[2], placed | OLD & !(below << shift), "{select} {other}");
            assert_eq!(out[3..5], [less as u32, (less >> 32) as u32], "{select} {other}");
            let half = |bits: u32| hip_sim::float::F16.decode(bits & 0xffff);
            let product = -half(a >> 16) * half(*b).abs();
            let expected = hip_sim::float::F16.encode(product, hip_sim::float::Rounding::NearestEven, false);
            assert_eq!(out[5] & 0xffff, OLD & 0xffff);
            assert!(out[5] >> 16 == expected || product.is_nan() && half(out[5] >> 16).is_nan());
            assert_eq!(f32::from_bits(out[6]), (part(*a, select, false) & 0xff) as f32);
        }
    }
}

#[test]
fn swizzles_and_permutations_follow_the_manual() {
    let inputs = random_lanes(33);
    let mut offsets =
        vec![0x8000 | 0b00_01_10_11, 0x8000 | 0b11_11_00_01, 0x1f, 0x041f, 0x0010, 0x7c1f, 0x3d57];
    offsets.extend([
        0xc000 | 3 << 5,
        0xc400 | 3 << 5 | 0x10,
        0xc000 | 31 << 5 | 7,
        0xe000,
        0xe010,
        0xe007,
        0xe01f,
    ]);
    for offset in offsets {
        let code = format!(
            "s_mov_b32 exec_hi, 0xffff7fff
            ds_swizzle_b32 v10, v2 offset:{offset}
            v_lshlrev_b32 v18, 2, v3
            ds_bpermute_b32 v11, v18, v2 offset:8
            v_xor_b32 v19, 0x24, v0
            v_lshlrev_b32 v19, 2, v19
            ds_permute_b32 v12, v19, v2
            s_waitcnt lgkmcnt(0)"
        );
        let Some(results) = run(&code, |lane| inputs[lane]) else { return };
        for (lane, out) in results.iter().enumerate() {
            let pulled = |from: usize| if from == 47 { 0 } else { inputs[from][0] };
            let low = lane % 32;
            let bits = |first: u32| (offset >> first & 31) as usize;
            let from = match offset {
                0xe000.. => {
                    let reversed = (0..5).fold(0, |sum, bit| sum | (low >> bit & 1) << (4 - bit));
                    reversed >> bits(0).count_ones() | low & bits(0)
                }
                0xc000.. => {
                    let amount = if offset & 0x400 != 0 { 32 - bits(5) } else { bits(5) };
                    low & bits(0) | (low + amount) % 32 & !bits(0)
                }
                0x8000.. => low & !3 | (offset >> (2 * (lane & 3)) & 3) as usize,
                _ => (low & bits(0) | bits(5)) ^ bits(10),
            };
            if lane == 47 {
                assert_eq!(out[..3], [OLD; 3]);
                continue;
            }
            assert_eq!(out[0], pulled(lane / 32 * 32 + from), "{offset:#x} lane {lane}");
            assert_eq!(out[1], pulled((inputs[lane][1] as usize + 2) % 64), "lane {lane}");
            assert_eq!(out[2], pulled(lane ^ 0x24), "lane {lane}");
        }
    }
}

#[test]
fn pulling_from_a_lane_that_is_off_is_found() {
    // Lane 5 is off. Lane 4 reads from it, or with the other code from lane 6.
    let code = |instruction: &str| {
        format!(
            "v_mov_b32 v1, 20\nv_mov_b32 v2, 24\ns_mov_b64 exec, 0xdf\n{instruction}\ns_waitcnt lgkmcnt(0)"
        )
    };
    let lanes = Checks { lanes: true, ..Checks::default() };
    let cases = [
        ("ds_bpermute_b32 v3, v1, v0", Some((0, 5))),
        ("ds_bpermute_b32 v3, v2, v0", None),
        ("ds_swizzle_b32 v3, v0 offset:swizzle(SWAP,1)", Some((4, 5))),
        ("ds_swizzle_b32 v3, v0 offset:swizzle(BROADCAST,32,6)", None),
        ("ds_permute_b32 v3, v1, v0", None),
    ];
    for (instruction, expected) in cases {
        let Some(device) = assemble(&code(instruction)) else { return };
        let memory = device.upload(&[0u32; 16]);
        let run = |checks| device.run("test", [1; 3], [64, 1, 1], &[memory], checks);
        run(Checks::default()).unwrap_or_else(|fault| panic!("{fault}"));
        let found = run(lanes).err().map(|fault| {
            let text = fault.to_string();
            let Cause::InactiveLane { lane } = fault.cause else { panic!("{text}") };
            assert!(text.contains(&format!("read of lane {lane}, which is off")), "{text}");
            (fault.lane.expect("the lane that reads"), lane)
        });
        assert_eq!(found, expected, "{instruction}");
    }
}
