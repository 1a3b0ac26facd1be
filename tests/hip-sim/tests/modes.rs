//! What the MODE register asks of float arithmetic, against arithmetic that knows nothing of it.

mod common;

use std::sync::LazyLock;

use common::{Random, run};
use hip_sim::float::F16;

const KEEP_ALL: u32 = 0xf0;
const DX10_CLAMP: u32 = 0x100;
const IEEE: u32 = 0x200;

fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

fn wide(low: u32, high: u32) -> f64 {
    f64::from_bits(u64::from(low) | u64::from(high) << 32)
}

fn half(bits: u32) -> f64 {
    F16.decode(bits & 0xffff)
}

/// Sets the lower half of MODE before some code.
fn with_mode(mode: u32, code: &str) -> String {
    format!("s_setreg_imm32_b32 hwreg(HW_REG_MODE, 0, 16), {mode:#x}\n{code}")
}

/// The value that a rounding mode takes: the nearest one is given, and whether it is too large or too small.
fn directed<T: Copy>(
    mode: u32,
    nearest: T,
    error: f64,
    negative: bool,
    down: fn(T) -> T,
    up: fn(T) -> T,
) -> T {
    let wanted = match mode {
        1 => 1,
        2 => -1,
        3 if negative => 1,
        3 => -1,
        _ => 0,
    };
    match wanted {
        1 if error > 0.0 => up(nearest),
        -1 if error < 0.0 => down(nearest),
        _ => nearest,
    }
}

/// `exact` is wider than f32.
fn to_single(mode: u32, exact: f64) -> f32 {
    let nearest = exact as f32;
    directed(mode, nearest, exact - f64::from(nearest), exact < 0.0, f32::next_down, f32::next_up)
}

/// By search among all of them.
fn to_half(mode: u32, exact: f64) -> f64 {
    static ALL: LazyLock<Vec<f64>> = LazyLock::new(|| {
        let mut all: Vec<f64> = (0..0x10000u32).map(half).filter(|x| !x.is_nan()).collect();
        all.sort_by(f64::total_cmp);
        all
    });
    let above = ALL.partition_point(|&x| x < exact);
    let (up, down) = (ALL[above], if ALL[above] == exact { exact } else { ALL[above - 1] });
    match mode {
        1 => up,
        2 => down,
        3 if exact < 0.0 => up,
        3 => down,
        // To nearest is tested with the format itself.
        _ => unreachable!(),
    }
}

#[test]
fn f32_rounds_in_every_direction() {
    let mut random = Random(21);
    // Exponents near each other, so that f64 holds the exact results.
    let mut float = || (random.next() as u32 & 0x81ff_ffff) | 0x3e00_0000;
    let inputs: Vec<[u32; 8]> = (0..64).map(|_| std::array::from_fn(|_| float())).collect();
    for mode in 0..4 {
        let code = "v_add_f32 v10, v2, v3
            v_mul_f32 v11, v2, v3
            v_fma_f32 v12, v2, 1.0, -v4
            v_mov_b32 v13, v5
            v_fmac_f32 v13, 2.0, v2
            v_cvt_f32_u32 v14, v3
            v_cvt_f32_i32 v15, v2
            v_cvt_f64_f32 v[18:19], v2
            v_mov_b32 v20, 0x33333333
            v_mov_b32 v21, 0
            v_lshl_or_b32 v18, v3, 2, v18
            v_cvt_f32_f64 v16, v[18:19]
            v_fma_mix_f32 v17, v2, v3, v4";
        let Some(results) = run(&with_mode(mode | KEEP_ALL, code), |lane| inputs[lane]) else { return };
        for (out, x) in results.iter().zip(&inputs) {
            let [a, b, c, d] = [0, 1, 2, 3].map(|n| f64::from(f(x[n])));
            assert_eq!(f(out[0]), to_single(mode, a + b), "{mode}: {a:e} + {b:e}");
            assert_eq!(f(out[1]), to_single(mode, a * b), "{mode}: {a:e} * {b:e}");
            assert_eq!(f(out[2]), to_single(mode, a - c));
            assert_eq!(f(out[3]), to_single(mode, 2.0 * a + d));
            assert_eq!(f(out[4]), to_single(mode, f64::from(x[1])));
            assert_eq!(f(out[5]), to_single(mode, f64::from(x[0] as i32)));
            let widened = a.to_bits() | u64::from(x[1] << 2);
            assert_eq!(f(out[6]), to_single(mode, f64::from_bits(widened)));
            // The sum of the exact product and C may not fit f64, but its rounding error is far smaller.
            let product = a * b;
            let sum = product + c;
            let lost = (product - (sum - c)) + (c - (sum - (sum - c)));
            let nearest = sum as f32;
            let error = (sum - f64::from(nearest)) + lost;
            let expected = directed(mode, nearest, error, sum < 0.0, f32::next_down, f32::next_up);
            assert_eq!(f(out[7]), expected, "{mode}: {a:e} * {b:e} + {c:e}");
        }
    }
}

#[test]
fn f64_rounds_in_every_direction() {
    let mut random = Random(22);
    let mut double = || (random.next() & 0x807f_ffff_ffff_ffff) | 0x3fc0_0000_0000_0000;
    let inputs: Vec<[u32; 8]> = (0..64)
        .map(|_| {
            let [a, b] = [double(), double()];
            [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32, 0, 0, 0, 0]
        })
        .collect();
    for mode in 0..4 {
        let code = "v_add_f64 v[10:11], v[2:3], v[4:5]
            v_mul_f64 v[12:13], v[2:3], v[4:5]
            v_fma_f64 v[14:15], v[2:3], v[4:5], -v[2:3]
            v_ldexp_f64 v[16:17], v[2:3], -1060";
        let code = code.replace("-1060", "s2");
        let code = format!("s_movk_i32 s2, -1060\n{code}");
        let Some(results) = run(&with_mode(mode << 2 | KEEP_ALL, &code), |lane| inputs[lane]) else { return };
        for (out, x) in results.iter().zip(&inputs) {
            let (a, b) = (wide(x[0], x[1]), wide(x[2], x[3]));
            let round = |nearest: f64, error: f64| {
                directed(mode, nearest, error, nearest < 0.0, f64::next_down, f64::next_up)
            };
            let sum = a + b;
            let lost = (a - (sum - b)) + (b - (sum - (sum - b)));
            assert_eq!(wide(out[0], out[1]), round(sum, lost), "{mode}: {a:e} + {b:e}");
            let product = a * b;
            assert_eq!(wide(out[2], out[3]), round(product, a.mul_add(b, -product)), "{mode}: {a:e} * {b:e}");
            let fused = a.mul_add(b, -a);
            // What the product and the difference lost, and how far the result is from the difference.
            let difference = product - a;
            let back = difference - product;
            let lost = (product - (difference - back)) + (-a - back);
            let error = (difference - fused) + (lost + a.mul_add(b, -product));
            assert_eq!(wide(out[4], out[5]), round(fused, error), "{mode}: {a:e} {b:e}");
            // Multiplying a denormal up again is exact.
            let scaled = a * 2f64.powi(-1000) * 2f64.powi(-60);
            let error = a - scaled * 2f64.powi(1000) * 2f64.powi(60);
            assert_eq!(wide(out[6], out[7]), round(scaled, error));
        }
    }
}

#[test]
fn f16_rounds_in_every_direction() {
    let mut random = Random(23);
    let mut word = || random.next() as u32 & 0x87ff_87ff | 0x3800_3800;
    let inputs: Vec<[u32; 8]> =
        (0..64).map(|_| [word(), word(), word(), 0x4016_1234 ^ word() >> 12, 0, 0, 0, 0]).collect();
    for mode in 1..4 {
        let code = "v_add_f16 v10, v2, v3
            v_mul_f16 v11, v2, v3
            v_fma_f16 v12, v2, v3, v4
            v_cvt_f16_f32 v13, v5
            v_pk_mul_f16 v14, v2, v3
            v_pk_fma_f16 v15, v2, v3, v4
            v_fma_mixlo_f16 v16, v5, 1.0, 0
            v_cvt_pkrtz_f16_f32 v17, v5, -v5";
        let Some(results) = run(&with_mode(mode << 2 | KEEP_ALL, code), |lane| inputs[lane]) else { return };
        for (out, x) in results.iter().zip(&inputs) {
            let pair = |n: usize| [half(x[n]), half(x[n] >> 16)];
            let ([a, a1], [b, b1], [c, c1], d) = (pair(0), pair(1), pair(2), f64::from(f(x[3])));
            assert_eq!(half(out[0]), to_half(mode, a + b), "{mode}: {a:e} + {b:e}");
            assert_eq!(half(out[1]), to_half(mode, a * b));
            assert_eq!(half(out[2]), to_half(mode, a * b + c));
            assert_eq!(half(out[3]), to_half(mode, d));
            assert_eq!([half(out[4]), half(out[4] >> 16)], [to_half(mode, a * b), to_half(mode, a1 * b1)]);
            assert_eq!(
                [half(out[5]), half(out[5] >> 16)],
                [to_half(mode, a * b + c), to_half(mode, a1 * b1 + c1)]
            );
            assert_eq!(half(out[6]), to_half(mode, d));
            assert_eq!([half(out[7]), half(out[7] >> 16)], [to_half(3, d), to_half(3, -d)]);
        }
    }
}

#[test]
fn zeros_and_overflows_follow_the_direction() {
    let inputs = |_: usize| [1f32.to_bits(), (-1f32).to_bits(), f32::MAX.to_bits(), 0x7bff, 0, 0, 0, 0];
    let code = "v_add_f32 v10, v2, v3
        v_add_f32 v11, v4, v4
        v_mul_f32 v12, -v4, v4
        v_mul_f32 v13, v3, 0
        v_add_f16 v14, v5, v5
        v_cvt_f16_f32 v15, v4";
    let (max, inf) = (f32::MAX, f32::INFINITY);
    let expected = [
        (0, [0.0, inf, -inf, -0.0], [0x7c00; 2]),
        (1, [0.0, inf, -max, -0.0], [0x7c00; 2]),
        (2, [-0.0, max, -inf, -0.0], [0x7bff; 2]),
        (3, [0.0, max, -max, -0.0], [0x7bff; 2]),
    ];
    for (mode, singles, halves) in expected {
        let Some(results) = run(&with_mode(mode * 5 | KEEP_ALL, code), inputs) else { return };
        let out = results[0];
        assert_eq!([out[0], out[1], out[2], out[3]], singles.map(f32::to_bits), "{mode}");
        assert_eq!([out[4], out[5]], halves, "{mode}");
    }
    // FP16_OVFL: the largest value instead of infinity, but infinity stays what it is.
    let code = format!(
        "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1\n{code}\nv_rcp_f16 v16, 0\nv_exp_f16 v17, v5"
    );
    let Some(results) = run(&with_mode(KEEP_ALL, &code), inputs) else { return };
    assert_eq!(results[0][4..], [0x7bff, 0x7bff, 0x7c00, 0x7bff]);
}

#[test]
fn denormals_of_each_width_are_kept_or_not() {
    let (single, halves, double) = (0x0040_0000, 0x8200_0200, 0x0008_0000);
    let inputs = move |_: usize| [single, halves, 0, double, 0x0080_0000, 0x0400_0400, 0, 0x0010_0000];
    // Input alone; a result that is denormal although no input is; both.
    let code = "v_mul_f32 v10, v2, 4.0
        v_mul_f32 v11, v6, 0.5
        v_pk_mul_f16 v12, v3, 4.0 op_sel_hi:[1,0]
        v_mul_f16 v13, v7, 0.5
        v_mul_f64 v[14:15], v[4:5], 4.0
        v_mul_f64 v[16:17], v[8:9], 0.5";
    for field in 0..16 {
        let (keeps_32, keeps_16) = (field & 3, field >> 2);
        let Some(results) = run(&with_mode(field << 4, code), inputs) else { return };
        let out = results[5];
        let input = |keeps: u32, kept: u32, flushed: u32| if keeps & 1 == 1 { kept } else { flushed };
        let output = |keeps: u32, kept: u32, flushed: u32| if keeps & 2 == 2 { kept } else { flushed };
        assert_eq!(out[0], input(keeps_32, 0x0100_0000, 0), "{field:#x}");
        assert_eq!(out[1], output(keeps_32, 0x0040_0000, 0), "{field:#x}");
        assert_eq!(out[2], input(keeps_16, 0x8800_0800, 0x8000_0000), "{field:#x}");
        assert_eq!(out[3], output(keeps_16, 0x0200, 0), "{field:#x}");
        assert_eq!(out[5], input(keeps_16, 0x0020_0000, 0), "{field:#x}");
        assert_eq!(out[7], output(keeps_16, 0x0008_0000, 0), "{field:#x}");
    }
}

#[test]
fn nan_is_clamped_and_quieted_as_asked() {
    let (quiet, signalling) = (0x7fc0_0001, 0x7fa0_0002);
    let inputs =
        move |_: usize| [quiet, signalling, 1f32.to_bits(), 0x7d01_3c00, 0, 0x7ff4_0000, 0, 0x3ff0_0000];
    let code = "v_max_f32 v10, v2, v2 clamp
        v_max_f32 v11, v3, v4
        v_min_f32 v12, v4, v3
        v_min_f32 v13, v2, v4
        v_max_f16_sdwa v14, v5, v5 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_0 src1_sel:WORD_1
        v_med3_f32 v15, v4, v4, v3
        v_max_f64 v[16:17], v[6:7], v[8:9]";
    let one = 1f32.to_bits();
    for mode in [0, IEEE, DX10_CLAMP, IEEE | DX10_CLAMP] {
        let Some(results) = run(&with_mode(mode | KEEP_ALL, code), inputs) else { return };
        let out = results[63];
        let ieee = mode & IEEE != 0;
        if mode & DX10_CLAMP == 0 {
            assert!(f(out[0]).is_nan(), "{mode:#x}");
        } else {
            assert_eq!(out[0], 0, "{mode:#x}");
        }
        let extreme = if ieee { signalling | 0x40_0000 } else { one };
        assert_eq!(out[1..4], [extreme, extreme, one], "{mode:#x}");
        assert_eq!(out[4], if ieee { 0x7f01 } else { 0x3c00 }, "{mode:#x}");
        assert_eq!(out[5], extreme);
        assert_eq!(out[7], if ieee { 0x7ffc_0000 } else { 0x3ff0_0000 }, "{mode:#x}");
    }
}

#[test]
fn output_modifiers_scale_where_neither_denormals_nor_ieee_are_kept() {
    let inputs = |lane: usize| {
        let x = [3.5f32, -0.0, 1.5e-38, 0.3][lane % 4];
        [x.to_bits(), 0x3555_c200, 0, 0, 0, (1.25f64.to_bits() >> 32) as u32, 0, 0]
    };
    let code = "v_mul_f32 v10, v2, 1.0 mul:2
        v_mul_f32 v11, v2, 1.0 clamp mul:4
        v_mul_f32 v12, v2, 1.0 div:2
        v_add_f16_e64 v13, v3, 0 mul:4
        v_add_f64 v[14:15], v[6:7], 0 div:2
        v_cvt_f32_i32_e64 v16, 3 mul:2
        v_add_u32 v17, v2, 0";
    for (mode, applies_32, applies_16) in [
        (0, true, true),
        (0x30, false, true),
        (0xc0, true, false),
        (IEEE, false, false),
        (KEEP_ALL, false, false),
    ] {
        let Some(results) = run(&with_mode(mode | DX10_CLAMP, code), inputs) else { return };
        for (lane, out) in results.iter().enumerate() {
            let x = f(inputs(lane)[0]);
            let scaled = |factor: f32| {
                let value = if applies_32 { x * factor + 0.0 } else { x };
                let flush = mode & 0x20 == 0 && value.abs() < f32::MIN_POSITIVE;
                if flush { if value.is_sign_negative() { -0.0 } else { 0.0 } } else { value }
            };
            assert_eq!(f(out[0]).to_bits(), scaled(2.0).to_bits(), "{mode:#x} {x:e}");
            assert_eq!(f(out[1]), scaled(4.0).clamp(0.0, 1.0), "{mode:#x} {x:e}");
            assert_eq!(f(out[2]).to_bits(), scaled(0.5).to_bits(), "{mode:#x} {x:e}");
            assert_eq!(half(out[3]), -3.0 * if applies_16 { 4.0 } else { 1.0 }, "{mode:#x}");
            assert_eq!(wide(out[4], out[5]), 1.25 * if applies_16 { 0.5 } else { 1.0 }, "{mode:#x}");
            assert_eq!(f(out[6]), if applies_32 { 6.0 } else { 3.0 });
        }
    }
}
