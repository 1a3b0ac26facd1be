//! Single instructions, assembled, against independent arithmetic.

mod common;

use common::{Random, random_lanes, run};
use hip_sim::float::{BF8, F16, FP8, Rounding};

fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

fn same(ours: u32, theirs: f32) -> bool {
    ours == theirs.to_bits() || f(ours).is_nan() && theirs.is_nan()
}

fn half(bits: u32) -> f64 {
    F16.decode(bits & 0xffff)
}

fn to_half(value: f64) -> u32 {
    F16.encode(value, Rounding::NearestEven, false)
}

fn same_half(ours: u32, theirs: f64) -> bool {
    ours & 0xffff == to_half(theirs) || half(ours).is_nan() && theirs.is_nan()
}

#[test]
fn modifiers_change_signs_and_clamp() {
    let values =
        [0x3fc0_0000, 0xc020_0000, 0x3e80_0000, 0x7fc0_0000, 0xff80_0000, 1, 0x8000_0000, 0x4b00_0001];
    let code = "v_add_f32 v10, -v2, |v3|
        v_mul_f32 v11, v2, v3 mul:2
        v_add_f32 v12, v2, v3 clamp
        v_fma_f32 v13, |v2|, -v3, v4 div:2
        v_max_f32 v14, v2, v3
        v_min_f32 v15, v2, v3
        v_med3_f32 v16, v2, v3, v4
        v_cndmask_b32 v17, -v2, |v3|, s[2:3]";
    let inputs = |lane: usize| std::array::from_fn(|n| values[(lane + 3 * n + lane / 8) % 8]);
    let code = format!("s_mov_b32 s2, 0xf0f0f0f0\ns_mov_b32 s3, 0x12345678\n{code}");
    let Some(results) = run(&code, inputs) else { return };
    for (lane, out) in results.iter().enumerate() {
        let [a, b, c, ..] = inputs(lane).map(f);
        assert!(same(out[0], b.abs() - a), "{a:e} {b:e}");
        // With denormals kept there is no output modifier.
        assert!(same(out[1], a * b));
        let sum = a + b;
        assert!(same(out[2], if sum > 0.0 { sum.min(1.0) } else { 0.0 }));
        assert!(same(out[3], a.abs().mul_add(-b, c)), "{a:e} {b:e} {c:e}");
        assert_eq!(f(out[4]), a.max(b));
        assert_eq!(f(out[5]), a.min(b));
        if ![a, b, c].iter().any(|x| x.is_nan()) {
            let mut sorted = [a, b, c];
            sorted.sort_by(f32::total_cmp);
            assert_eq!(f(out[6]), sorted[1]);
        }
        let mask = 0x1234_5678_f0f0_f0f0u64;
        assert_eq!(
            out[7],
            if mask >> lane & 1 == 1 { b.to_bits() & !(1 << 31) } else { a.to_bits() ^ 1 << 31 }
        );
    }
}

#[test]
fn packed_instructions_choose_their_halves() {
    let inputs = random_lanes(11);
    let code = "v_pk_fma_f32 v[10:11], v[2:3], v[4:5], v[6:7] op_sel:[0,1,0] op_sel_hi:[1,0,1] neg_lo:[1,0,0] neg_hi:[0,1,0]
        v_pk_add_f16 v12, v2, v3 op_sel:[1,0] op_sel_hi:[0,1] neg_lo:[0,1]
        v_pk_fma_f16 v13, v2, v3, v4
        v_pk_mul_f16 v14, v2, 2.0 op_sel_hi:[1,0]
        v_pk_mad_u16 v15, v2, v3, v4
        v_pk_min_i16 v16, v2, v3
        v_pk_add_i16 v17, v2, v3 clamp";
    let Some(results) = run(code, |lane| inputs[lane]) else { return };
    for (out, [a0, a1, b0, b1, c0, c1, ..]) in results.iter().zip(&inputs) {
        assert!(same(out[0], (-f(*a0)).mul_add(f(*b1), f(*c0))));
        assert!(same(out[1], f(*a1).mul_add(-f(*b0), f(*c1))));
        let (a, b, c) = (*a0, *a1, *b0);
        assert!(same_half(out[2], half(a >> 16) - half(b)));
        assert!(same_half(out[2] >> 16, half(a) + half(b >> 16)));
        for shift in [0, 16] {
            let [a, b, c] = [a, b, c].map(|bits| bits >> shift);
            let exact = hip_sim::float::add_to_odd(half(a) * half(b), half(c));
            assert!(same_half(out[3] >> shift, exact));
            assert!(same_half(out[4] >> shift, half(a) * 2.0));
            assert_eq!(
                out[5] >> shift & 0xffff,
                (a as u16).wrapping_mul(b as u16).wrapping_add(c as u16).into()
            );
            assert_eq!((out[6] >> shift) as i16, (a as i16).min(b as i16));
            assert_eq!((out[7] >> shift) as i16, (a as i16).saturating_add(b as i16));
        }
    }
}

#[test]
fn mixed_precision_and_dot_products() {
    let mut random = Random(12);
    // Halves of moderate size: sums of products are exact in f32.
    let mut word = || {
        let mut small = || to_half((random.next() % 64) as f64 - 32.0);
        small() | small() << 16
    };
    let inputs: Vec<[u32; 8]> =
        (0..64).map(|_| [word(), word(), 3.5f32.to_bits(), word(), word(), 0, 0, 0]).collect();
    let code = "v_fma_mix_f32 v10, v2, v3, v4 op_sel:[1,0,0] op_sel_hi:[1,1,0]
        v_fma_mixlo_f16 v11, v2, -v3, v4 op_sel_hi:[1,1,0]
        v_fma_mixhi_f16 v12, v4, v3, |v2| op_sel:[0,1,0] op_sel_hi:[0,1,1]
        v_dot2_f32_f16 v13, v2, v3, v4
        v_dot4_i32_i8 v14, v2, v3, v5
        v_dot2_i32_i16 v15, v2, v3, v5
        v_mov_b32 v16, v4
        v_dot2c_f32_f16 v16, v2, v3
        v_mov_b32 v17, v5
        v_dot4c_i32_i8 v17, v2, v3";
    let Some(results) = run(code, |lane| inputs[lane]) else { return };
    for (out, [a, b, c, d, ..]) in results.iter().zip(&inputs) {
        let x = f64::from(f(*c));
        assert_eq!(f64::from(f(out[0])), half(a >> 16) * half(*b) + x);
        assert_eq!(out[1], 0xcccc_0000 | to_half(half(*a) * -half(*b) + x));
        assert_eq!(out[2], 0xcccc | to_half(x * half(b >> 16) + half(*a).abs()) << 16);
        let dot = (half(*a) * half(*b) + half(a >> 16) * half(b >> 16) + x) as f32;
        assert_eq!([f(out[3]), f(out[6])], [dot; 2]);
        let bytes: i32 =
            (0..4).map(|n| i32::from((a >> (8 * n)) as i8) * i32::from((b >> (8 * n)) as i8)).sum();
        assert_eq!([out[4], out[7]], [d.wrapping_add(bytes as u32); 2]);
        let words: i64 =
            (0..2).map(|n| i64::from((a >> (16 * n)) as i16) * i64::from((b >> (16 * n)) as i16)).sum();
        assert_eq!(out[5], (words + i64::from(*d as i32)) as u32);
    }
}

#[test]
fn fp8_conversions_are_those_of_the_fnuz_formats() {
    let mut random = Random(13);
    let float = |random: &mut Random| {
        ((random.next() % 4001) as f32 - 2000.0) / [1.0, 7.0, 512.0, 1e5][(random.next() % 4) as usize]
    };
    let inputs: Vec<[u32; 8]> = (0..64)
        .map(|_| {
            let [a, b] = [0; 2].map(|_| float(&mut random).to_bits());
            [a, b, random.next() as u32, random.next() as u32, 0, 0, 0, 0]
        })
        .collect();
    let code = "v_cvt_pk_fp8_f32 v10, v2, v3
        v_cvt_pk_bf8_f32 v11, v2, v3 op_sel:[0,0,1]
        v_cvt_sr_fp8_f32 v12, v2, v4 op_sel:[0,0,1,1]
        v_cvt_f32_fp8 v13, v5
        v_cvt_f32_bf8_sdwa v14, v5 src0_sel:BYTE_2
        v_cvt_pk_f32_fp8 v[16:17], v5";
    let Some(results) = run(code, |lane| inputs[lane]) else { return };
    for (out, [a, b, noise, bytes, ..]) in results.iter().zip(&inputs) {
        let nearest = |value: u32, exponent: i32, mantissa: i32, max: f64| -> f64 {
            let value = f64::from(f(value));
            let step = 2f64.powi((value.abs().log2().floor() as i32).max(exponent) - mantissa);
            let rounded = (value / step).round_ties_even() * step;
            if rounded.abs() > max { f64::NAN } else { rounded }
        };
        let agree = |bits: u32, format: hip_sim::float::Format, expected: f64| {
            let value = format.decode(bits & 0xff);
            value == expected || value.is_nan() && expected.is_nan()
        };
        for (shift, value) in [(0, *a), (8, *b)] {
            assert!(agree(out[0] >> shift, FP8, nearest(value, -7, 3, 240.0)), "{:e}", f(value));
            assert!(agree(out[1] >> (16 + shift), BF8, nearest(value, -15, 2, 57344.0)), "{:e}", f(value));
        }
        assert_eq!((out[0] >> 16, out[1] & 0xffff), (0xcccc, 0xcccc));
        assert_eq!(out[2] & 0xff_ffff, 0xcc_cccc);
        let (down, value) = (FP8.decode(out[2] >> 24), f64::from(f(*a)));
        if !down.is_nan() && value.abs() > 2f64.powi(-7) {
            let step = 2f64.powi(value.abs().log2().floor() as i32 - 3);
            let part = (value.abs() / step).fract();
            // Up exactly if the noise, as a fraction of the step, fills what is missing.
            let up = part + f64::from(noise >> 12) / 2f64.powi(20) >= 1.0;
            let expected = ((value.abs() / step).floor() + f64::from(u8::from(up))) * step;
            assert_eq!(down.abs(), expected, "{value:e}");
        }
        assert!(same(out[3], FP8.decode(bytes & 0xff) as f32));
        assert!(same(out[4], BF8.decode(bytes >> 16 & 0xff) as f32));
        assert!(
            same(out[6], FP8.decode(bytes & 0xff) as f32)
                && same(out[7], FP8.decode(bytes >> 8 & 0xff) as f32)
        );
    }
}

#[test]
fn data_parallel_primitives_and_sub_dwords() {
    let inputs = random_lanes(14);
    let code = "s_mov_b64 exec, 0xfffffff7
        s_mov_b32 exec_hi, -1
        v_mov_b32_dpp v10, v2 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf
        v_add_u32_dpp v11, v2, v3 row_ror:3 row_mask:0xf bank_mask:0xf
        v_mov_b32_dpp v12, v2 row_shl:2 row_mask:0xf bank_mask:0xf bound_ctrl:0
        v_mov_b32_dpp v13, v2 row_bcast:15 row_mask:0xa bank_mask:0xf
        v_mov_b32_dpp v14, v2 row_newbcast:5 row_mask:0xf bank_mask:0x3
        v_add_u16_sdwa v15, v2, v3 dst_sel:WORD_1 dst_unused:UNUSED_PRESERVE src0_sel:BYTE_3 src1_sel:WORD_1
        v_add_u32_sdwa v16, sext(v2), v3 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_1 src1_sel:WORD_0
        v_mov_b32_dpp v17, v2 wave_ror:1 row_mask:0xf bank_mask:0xf";
    let Some(results) = run(code, |lane| inputs[lane]) else { return };
    let old = 0xcccc_cccc;
    for (lane, out) in results.iter().enumerate() {
        if lane == 3 {
            assert_eq!(*out, [old; 8]);
            continue;
        }
        let ([a, b, ..], a_of) = (inputs[lane], |lane: usize| inputs[lane][0]);
        let row = lane & !15;
        assert_eq!(out[0], if lane == 2 { old } else { a_of(lane ^ 1) });
        let from = row | (lane + 13) & 15;
        assert_eq!(out[1], if from == 3 { old } else { a_of(from).wrapping_add(b) });
        assert_eq!(out[2], if lane % 16 > 13 || lane == 1 { 0 } else { a_of(lane + 2) });
        assert_eq!(out[3], if (lane / 16) % 2 == 1 { a_of(row - 1) } else { old });
        assert_eq!(out[4], if lane % 16 < 8 { a_of(row | 5) } else { old });
        assert_eq!(out[5], ((a >> 24) + (b >> 16)) << 16 | 0xcccc);
        assert_eq!(out[6], ((a >> 8) as i8 as u32).wrapping_add(b & 0xffff));
        assert_eq!(out[7], if lane == 4 { old } else { a_of((lane + 63) & 63) });
    }
}

#[test]
fn integers_shift_pick_and_carry() {
    let inputs = random_lanes(15);
    let code = "v_mad_u64_u32 v[10:11], s[2:3], v2, v3, v[4:5]
        v_add_co_u32 v12, vcc, v2, v4
        v_addc_co_u32 v13, vcc, v3, v5, vcc
        v_perm_b32 v14, v2, v3, v4
        v_alignbit_b32 v15, v2, v3, v4
        v_bfe_i32 v16, v2, 7, 9
        v_mul_hi_i32 v17, v2, v3";
    let Some(results) = run(code, |lane| inputs[lane].map(|x| x)) else { return };
    for (out, [a, b, c, d, ..]) in results.iter().zip(&inputs) {
        let wide = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        assert_eq!(wide(out[0], out[1]), (u64::from(*a) * u64::from(*b)).wrapping_add(wide(*c, *d)));
        assert_eq!(wide(out[2], out[3]), wide(*a, *b).wrapping_add(wide(*c, *d)));
        let bytes = [b.to_le_bytes(), a.to_le_bytes()].concat();
        let picked = c.to_le_bytes().map(|select| match select {
            0..=7 => bytes[usize::from(select)],
            8..=11 => {
                if bytes[usize::from(select - 8) * 2 + 1] > 127 {
                    0xff
                } else {
                    0
                }
            }
            12 => 0,
            _ => 0xff,
        });
        assert_eq!(out[4], u32::from_le_bytes(picked));
        assert_eq!(out[5], (wide(*b, *a) >> (c & 31)) as u32);
        assert_eq!(out[6] as i32, ((a >> 7 & 0x1ff) as i32) << 23 >> 23);
        assert_eq!(out[7] as i32, (i64::from(*a as i32) * i64::from(*b as i32) >> 32) as i32);
    }
}

#[test]
fn lds_scratch_buffers_and_accumulators_carry_data() {
    let inputs = random_lanes(16);
    let code = "v_lshlrev_b32 v20, 4, v0
        ds_write_b128 v20, v[2:5]
        ds_write2st64_b32 v20, v2, v3 offset0:16 offset1:64
        s_waitcnt lgkmcnt(0)
        ds_read2_b32 v[10:11], v20 offset0:1 offset1:3
        ds_read_u8_d16_hi v12, v20 offset:5
        ds_read_i16 v13, v20 offset:10
        v_mov_b32 v21, 1.0
        ds_add_rtn_f32 v14, v20, v21 offset:4096
        v_accvgpr_write_b32 a7, v4
        scratch_store_dword off, a7, off offset:8
        scratch_load_short_d16 v15, off, off offset:10
        s_mov_b64 s[4:5], s[0:1]
        s_mov_b32 s6, 4000
        s_mov_b32 s7, 0x27000
        v_mov_b32 v16, 5
        buffer_load_dword v16, v1, s[4:7], 0 offen offset:4
        global_load_sbyte v17, v1, s[0:1] offset:3
        s_waitcnt vmcnt(0)";
    let Some(results) = run(code, |lane| inputs[lane]) else { return };
    for (lane, (out, x)) in results.iter().zip(&inputs).enumerate() {
        assert_eq!(out[..2], [x[1], x[3]]);
        assert_eq!(out[2], 0xcccc | (x[1] >> 8 & 0xff) << 16);
        assert_eq!(out[3], (x[2] >> 16) as i16 as u32);
        assert_eq!(out[4], x[0]);
        assert_eq!(out[5], 0xcccc_0000 | x[2] >> 16);
        // The buffer ends after 4000 bytes, which is in lane 62.
        assert_eq!(out[6], if 64 * lane + 8 <= 4000 { x[1] } else { 0 });
        assert_eq!(out[7], (x[0] >> 24) as i8 as u32);
    }
}

#[test]
fn scalars_branch_loop_and_index_registers() {
    let inputs = random_lanes(17);
    let code = "s_mov_b32 s2, 0
        s_movk_i32 s3, 10
        loop:
        s_add_u32 s2, s2, s3
        s_sub_u32 s3, s3, 1
        s_cmp_lg_u32 s3, 0
        s_cbranch_scc1 loop
        v_mov_b32 v10, s2
        s_mov_b32 s4, 3
        s_set_gpr_idx_on s4, gpr_idx(SRC0)
        v_mov_b32 v11, v2
        s_set_gpr_idx_mode gpr_idx(DST)
        v_mov_b32 v12, v3
        s_set_gpr_idx_off
        s_mov_b64 s[6:7], 0x123456
        s_bfe_u32 s5, s6, 0x80004
        v_mov_b32 v13, s5
        v_cmp_gt_u32 vcc, 5, v0
        s_and_saveexec_b64 s[8:9], vcc
        v_mov_b32 v14, 1
        s_xor_b64 exec, exec, s[8:9]
        v_mov_b32 v14, 2
        s_mov_b64 exec, s[8:9]
        s_bcnt1_i32_b64 s10, vcc
        v_mov_b32 v16, s10
        v_readlane_b32 s11, v2, 7
        v_writelane_b32 v17, s11, 9";
    let Some(results) = run(code, |lane| inputs[lane]) else { return };
    for (lane, (out, x)) in results.iter().zip(&inputs).enumerate() {
        let written = if lane == 9 { inputs[7][0] } else { 0xcccc_cccc };
        let branch = if lane < 5 { 1 } else { 2 };
        assert_eq!(*out, [55, x[3], 0xcccc_cccc, 0x45, branch, x[1], 5, written]);
    }
}
