//! Integers that saturate, bytes, bits and counters, against plain arithmetic.

mod common;

use common::{Random, random_lanes, run, run_each};

fn bytes(word: u32) -> [i64; 4] {
    word.to_le_bytes().map(i64::from)
}

fn wide(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// The sum of the differences of bytes; with `masked` only where the reference is not 0.
fn differences(a: u32, b: u32, masked: bool) -> u64 {
    let pairs = bytes(a).into_iter().zip(bytes(b));
    pairs.filter(|(_, b)| !masked || *b != 0).map(|(a, b)| a.abs_diff(b)).sum()
}

#[test]
fn bytes_are_compared_and_averaged() {
    let mut inputs = random_lanes(71);
    for (lane, x) in inputs.iter_mut().enumerate() {
        // Bytes of 0 in the reference, and sums near their ends.
        x[2] &= [u32::MAX, 0xff00_ff00, 0x00ff_ffff, 0][lane % 4];
        if lane % 2 == 0 {
            (x[4], x[5], x[6], x[7]) = (0xffff_ff80, 0xff80_ffff, 0xffff_fff0, 0x0012_fff0);
        }
    }
    let codes = |clamp: &str| {
        [
            format!(
                "v_sad_u8 v10, v2, v4, v6{clamp}
                v_msad_u8 v11, v2, v4, v6{clamp}
                v_sad_hi_u8 v12, v2, v4, v6{clamp}
                v_sad_u16 v13, v2, v4, v6{clamp}
                v_sad_u32 v14, v2, v4, v6{clamp}
                v_lerp_u8 v15, v2, v4, v6
                v_sat_pk_u8_i16 v16, v2"
            ),
            format!(
                "v_qsad_pk_u16_u8 v[10:11], v[2:3], v4, v[6:7]{clamp}\nv_mqsad_pk_u16_u8 v[12:13], v[2:3], v4, v[6:7]{clamp}"
            ),
            format!("v_mqsad_u32_u8 v[10:13], v[2:3], v4, v[6:9]{clamp}"),
        ]
    };
    for saturate in [false, true] {
        let codes = codes(if saturate { " clamp" } else { "" });
        let Some(results) = run_each(&codes, |lane| inputs[lane]) else { return };
        let sum32 = |a: u64, b: u32| {
            if saturate { (a + u64::from(b)).min(u32::MAX.into()) as u32 } else { (a as u32).wrapping_add(b) }
        };
        for (lane, x) in inputs.iter().enumerate() {
            let [a, high, b, _, c, c1, ..] = *x;
            let [halves_a, halves_b] = [a, b].map(|word| [word & 0xffff, word >> 16]);
            let halves = (0..2).map(|n| u64::from(halves_a[n].abs_diff(halves_b[n]))).sum();
            let out = results[0][lane];
            assert_eq!(out[0], sum32(differences(a, b, false), c));
            assert_eq!(out[1], sum32(differences(a, b, true), c));
            assert_eq!(out[2], sum32(differences(a, b, false) << 16, c));
            assert_eq!(out[3], sum32(halves, c));
            assert_eq!(out[4], sum32(a.abs_diff(b).into(), c));
            let average = |n: usize| ((bytes(a)[n] + bytes(b)[n] + (bytes(c)[n] & 1)) / 2) as u32;
            assert_eq!(bytes(out[5]), [0, 1, 2, 3].map(|n| i64::from(average(n))));
            let narrow = |half: u32| i32::from(half as i16).clamp(0, 255) as u32;
            assert_eq!(out[6], narrow(a) | narrow(a >> 16) << 8);
            for n in 0..4 {
                let window = (wide(a, high) >> (8 * n)) as u32;
                let old = (wide(c, c1) >> (16 * n)) as u16;
                for (masked, first) in [(false, 0), (true, 2)] {
                    let out = results[1][lane];
                    let found = wide(out[first], out[first + 1]) >> (16 * n) & 0xffff;
                    let sum = u64::from(old) + differences(window, b, masked);
                    assert_eq!(
                        found,
                        if saturate { sum.min(0xffff) } else { sum & 0xffff },
                        "{x:x?} {masked}"
                    );
                }
                assert_eq!(results[2][lane][n], sum32(differences(window, b, true), x[4 + n]));
            }
        }
    }
}

#[test]
fn sums_and_products_stop_at_the_ends_of_their_range() {
    let mut random = Random(72);
    let ends = [0u32, 1, u32::MAX, 0x7fff_ffff, 0x8000_0000, 0x7fff_7fff, 0x8000_8000, 0x00ff_ffff];
    let mut word = || {
        if random.next().is_multiple_of(2) {
            ends[(random.next() % 8) as usize]
        } else {
            random.next() as u32
        }
    };
    let inputs: Vec<[u32; 8]> = (0..64).map(|_| std::array::from_fn(|_| word())).collect();
    let codes = [
        "v_mad_u32_u24 v10, v2, v3, v4 clamp
        v_mad_i32_i24 v11, v2, v3, v4 clamp
        v_mad_u32_u16 v12, v2, v3, v4 clamp
        v_mad_i32_i16 v13, v2, v3, v4 op_sel:[1,0,0,0] clamp
        v_mad_u16 v14, v2, v3, v4 clamp
        v_mad_i16 v15, v2, v3, v4 op_sel:[0,1,1,1] clamp
        v_add_co_u32_e64 v16, vcc, v2, v3 clamp
        v_subrev_co_u32_e64 v17, vcc, v2, v3 clamp",
        "v_mad_u64_u32 v[10:11], vcc, v2, v3, v[4:5] clamp
        v_mad_i64_i32 v[12:13], s[2:3], v2, v3, v[4:5] clamp
        v_pk_mad_u16 v14, v2, v3, v4 clamp
        v_pk_mad_i16 v15, v2, v3, v4 clamp
        v_add_i32 v16, v2, v3 clamp
        v_sub_u16_e64 v17, v2, v3 clamp",
        "v_dot2_i32_i16 v10, v2, v3, v4 clamp
        v_dot2_u32_u16 v11, v2, v3, v4 clamp
        v_dot4_i32_i8 v12, v2, v3, v4 clamp
        v_dot4_u32_u8 v13, v2, v3, v4 clamp
        v_dot8_i32_i4 v14, v2, v3, v4 clamp
        v_dot8_u32_u4 v15, v2, v3, v4
        v_cvt_pk_u16_u32 v16, v2, v3
        v_cvt_pk_i16_i32 v17, v2, v3",
    ];
    let Some(results) = run_each(&codes.map(String::from), |lane| inputs[lane]) else { return };
    let unsigned = |value: i128| value.clamp(0, u32::MAX.into()) as u32;
    let signed = |value: i128| value.clamp(i32::MIN.into(), i32::MAX.into()) as i32 as u32;
    let unsigned16 = |value: i128| value.clamp(0, 0xffff) as u32;
    let signed16 = |value: i128| value.clamp(-0x8000, 0x7fff) as u32 & 0xffff;
    /// The `n`th piece of `width` bits.
    fn piece(word: u32, n: u32, width: u32, signed: bool) -> i128 {
        let value = i128::from(word) >> (n * width) & ((1 << width) - 1);
        if signed && value >> (width - 1) == 1 { value - (1 << width) } else { value }
    }
    for (lane, x) in inputs.iter().enumerate() {
        let [a, b, c, d, ..] = *x;
        let out = results[0][lane];
        let mad = |n: [u32; 3], width: u32, is_signed: bool| {
            piece(a, n[0], width, is_signed) * piece(b, n[1], width, is_signed)
                + piece(c, n[2], width, is_signed)
        };
        let to32 = |n: [u32; 2], width: u32, is_signed: bool| {
            piece(a, n[0], width, is_signed) * piece(b, n[1], width, is_signed) + piece(c, 0, 32, is_signed)
        };
        assert_eq!(out[0], unsigned(to32([0, 0], 24, false)), "{x:x?}");
        assert_eq!(out[1], signed(to32([0, 0], 24, true)), "{x:x?}");
        assert_eq!(out[2], unsigned(to32([0, 0], 16, false)), "{x:x?}");
        assert_eq!(out[3], signed(to32([1, 0], 16, true)), "{x:x?}");
        assert_eq!(out[4] & 0xffff, unsigned16(mad([0; 3], 16, false)), "{x:x?}");
        assert_eq!(out[5], signed16(mad([0, 1, 1], 16, true)) << 16 | 0xcccc, "{x:x?}");
        assert_eq!(out[6..], [a.saturating_add(b), b.saturating_sub(a)], "{x:x?}");
        let out = results[1][lane];
        let product = u128::from(a) * u128::from(b) + u128::from(wide(c, d));
        assert_eq!(wide(out[0], out[1]), product.min(u64::MAX.into()) as u64);
        let product = i128::from(a as i32) * i128::from(b as i32) + i128::from(wide(c, d) as i64);
        assert_eq!(wide(out[2], out[3]) as i64, product.clamp(i64::MIN.into(), i64::MAX.into()) as i64);
        assert_eq!(out[4], unsigned16(mad([0; 3], 16, false)) | unsigned16(mad([1; 3], 16, false)) << 16);
        assert_eq!(out[5], signed16(mad([0; 3], 16, true)) | signed16(mad([1; 3], 16, true)) << 16);
        assert_eq!(out[6], (a as i32).saturating_add(b as i32) as u32);
        assert_eq!(out[7] & 0xffff, u32::from((a as u16).saturating_sub(b as u16)));
        let out = results[2][lane];
        let dot = |width: u32, is_signed: bool| {
            let products =
                (0..32 / width).map(|n| piece(a, n, width, is_signed) * piece(b, n, width, is_signed));
            products.sum::<i128>() + piece(c, 0, 32, is_signed)
        };
        assert_eq!(out[0], signed(dot(16, true)));
        assert_eq!(out[1], unsigned(dot(16, false)));
        assert_eq!(out[2..4], [signed(dot(8, true)), unsigned(dot(8, false))]);
        assert_eq!(out[4..6], [signed(dot(4, true)), dot(4, false) as u32]);
        assert_eq!(out[6], a.min(0xffff) | b.min(0xffff) << 16);
        assert_eq!(out[7], signed16((a as i32).into()) | signed16((b as i32).into()) << 16);
    }
}

#[test]
fn bits_are_counted_moved_and_selected() {
    let mut inputs = random_lanes(73);
    (inputs[0][0], inputs[1][0], inputs[2][0]) = (0, u32::MAX, 0x8000_0000);
    let codes = [
        "v_ffbh_u32 v10, v2
        v_ffbl_b32 v11, v2
        v_ffbh_i32 v12, v2
        v_bfrev_b32 v13, v2
        v_bcnt_u32_b32 v14, v2, v3
        v_bfi_b32 v15, v2, v3, v4
        v_bfm_b32 v16, v2, v3
        v_alignbyte_b32 v17, v2, v3, v4",
        "v_mbcnt_lo_u32_b32 v10, v2, v3
        v_mbcnt_hi_u32_b32 v11, v2, v3
        v_med3_i32 v12, v2, v3, v4
        v_med3_u32 v13, v2, v3, v4
        v_med3_i16 v14, v2, v3, v4
        v_xad_u32 v15, v2, v3, v4
        v_lshl_or_b32 v16, v2, v3, v4
        v_and_or_b32 v17, v2, v3, v4",
        "v_bfe_u32 v10, v2, v3, v4
        v_bfe_i32 v11, v2, v3, v4
        v_mul_hi_u32 v12, v2, v3
        v_mul_hi_i32_i24 v13, v2, v3
        v_lshl_add_u64 v[14:15], v[2:3], 3, v[4:5]
        v_cvt_off_f32_i4 v16, v2
        v_mov_b32 v17, 0
        v_cvt_pkaccum_u8_f32 v17, v6, v3",
    ];
    for x in &mut inputs {
        x[4] = ((x[4] % 300) as f32 + 0.25).to_bits();
    }
    let Some(results) = run_each(&codes.map(String::from), |lane| inputs[lane]) else { return };
    for (lane, x) in inputs.iter().enumerate() {
        let [a, b, c, d, e, ..] = *x;
        let first = |bits: String| bits.find('1').map_or(u32::MAX, |at| at as u32);
        let (text, folded) = (format!("{a:032b}"), format!("{:032b}", if a >> 31 == 1 { !a } else { a }));
        let out = results[0][lane];
        assert_eq!(out[0], first(text.clone()));
        assert_eq!(out[1], first(text.chars().rev().collect()));
        assert_eq!(out[2], first(folded));
        assert_eq!(out[3], (0..32).fold(0, |sum, n| sum | (a >> n & 1) << (31 - n)));
        assert_eq!(out[4], (text.matches('1').count() as u32).wrapping_add(b));
        assert_eq!(
            out[5],
            (0..32).fold(0, |sum, n| sum | if a >> n & 1 == 1 { b & 1 << n } else { c & 1 << n })
        );
        assert_eq!(out[6], (0..a % 32).fold(0u64, |sum, n| sum | 1 << (n + b % 32)) as u32);
        let joined = [b.to_le_bytes(), a.to_le_bytes()].concat();
        let at = (c % 4) as usize;
        assert_eq!(out[7].to_le_bytes(), joined[at..at + 4]);
        let out = results[1][lane];
        let below = |range: std::ops::Range<usize>| range.filter(|&n| a >> (n % 32) & 1 == 1).count() as u32;
        assert_eq!(out[0], below(0..lane.min(32)).wrapping_add(b), "lane {lane}");
        assert_eq!(out[1], below(32..lane.max(32)).wrapping_add(b), "lane {lane}");
        let mut sorted = [a, b, c];
        sorted.sort_unstable();
        assert_eq!(out[3], sorted[1]);
        sorted.sort_unstable_by_key(|&x| x as i32);
        assert_eq!(out[2], sorted[1]);
        sorted.sort_unstable_by_key(|&x| x as i16);
        assert_eq!(out[4] & 0xffff, sorted[1] & 0xffff);
        assert_eq!(out[5..], [(a ^ b).wrapping_add(c), a << (b % 32) | c, a & b | c]);
        let out = results[2][lane];
        let (offset, width) = (b % 32, c % 32);
        let cut = u64::from(a) >> offset & ((1 << width) - 1);
        assert_eq!(out[0], cut as u32);
        let available = width.min(32 - offset);
        let negative = available > 0 && cut >> (available - 1) & 1 == 1;
        assert_eq!(out[1], if negative { cut as u32 | u32::MAX << (available - 1) } else { cut as u32 });
        assert_eq!(out[2], (u128::from(a) * u128::from(b) >> 32) as u32);
        let low = |word: u32| i64::from((word << 8) as i32 / 256);
        assert_eq!(out[3], (low(a) * low(b) >> 32) as u32);
        assert_eq!(wide(out[4], out[5]), (wide(a, b) << 3).wrapping_add(wide(c, d)));
        let nibble = (a & 15) as i32;
        assert_eq!(f32::from_bits(out[6]), (if nibble > 7 { nibble - 16 } else { nibble }) as f32 / 16.0);
        assert_eq!(out[7], (f32::from_bits(e).min(255.0) as u32) << (8 * (b % 4)));
    }
}

#[test]
fn values_move_between_registers() {
    let inputs = random_lanes(74);
    let code = "s_mov_b32 exec_lo, 0xffff00ff
        v_swap_b32 v2, v3
        v_mov_b32 v10, v2
        v_mov_b32 v11, v3
        v_readfirstlane_b32 s2, v4
        s_lshl_b64 exec, exec, 9
        v_readfirstlane_b32 s3, v4
        s_mov_b64 exec, -1
        v_mov_b32 v12, s2
        v_mov_b32 v13, s3
        v_accvgpr_write_b32 a5, v5
        v_accvgpr_mov_b32 a6, a5
        v_accvgpr_read_b32 v14, a6
        v_pk_mov_b32 v[16:17], v[6:7], v[8:9] op_sel:[1,0]
        v_cndmask_b32 v15, v2, v3, s[0:1]";
    let Some(results) = run(code, |lane| inputs[lane]) else { return };
    for (lane, (out, x)) in results.iter().zip(&inputs).enumerate() {
        let on = !(8..16).contains(&lane);
        assert_eq!(out[..2], if on { [x[1], x[0]] } else { [0xcccc_cccc; 2] });
        assert_eq!(out[2..5], [inputs[0][2], inputs[9][2], x[3]]);
        assert_eq!(out[6..], [x[5], x[6]]);
    }
}
