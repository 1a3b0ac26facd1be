//! Transcendental functions, the parts of floats and the steps of a division, against values computed with
//! 60 decimal digits and against the bits of floats.

mod common;

use common::{Random, run, run_each};
use hip_sim::float::{F16, Rounding};

/// Arguments and correctly rounded results.
const TABLES: [(&str, &[(u32, u32)]); 7] = [
    (
        "exp",
        &[
            (0x4200de3d, 0x4f94c77d),
            (0x4279a7d4, 0x5eaa8812),
            (0x4297f555, 0x657c544f),
            (0x42e2c3c6, 0x7826d87a),
            (0x4277bca9, 0x5e7497c5),
            (0x42d88a85, 0x759a66de),
            (0x3f000000, 0x3fb504f3),
            (0xbf000000, 0x3f3504f3),
            (0x358637bd, 0x3f800006),
            (0x42fe0001, 0x7f00002c),
            (0xc2fbffff, 0x0080002c),
        ],
    ),
    (
        "log",
        &[
            (0x3c03b671, 0xc0deae14),
            (0x2063529c, 0xc278af84),
            (0x73d31199, 0x42d17172),
            (0x301413b4, 0xc1f65181),
            (0x203c0a74, 0xc279c7c8),
            (0x0db0bcad, 0xc2c711af),
            (0x3f800001, 0x3438aa3a),
            (0x3f7fffff, 0xb3b8aa3c),
            (0x40000000, 0x3f800000),
            (0x40400000, 0x3fcae00d),
            (0x3f3504f2, 0xbf000002),
        ],
    ),
    (
        "rcp",
        &[
            (0x02c976e8, 0x7c22a626),
            (0x355d976e, 0x4993e02d),
            (0x7623c614, 0x08c814b7),
            (0x32ef08e6, 0x4c0915ad),
            (0x67146de9, 0x17dcc3d6),
            (0x5009350f, 0x2eeed239),
            (0x40400000, 0x3eaaaaab),
            (0x3eaaaaaa, 0x40400001),
            (0xc0e00000, 0xbe124925),
            (0x7149f2ca, 0x0da24260),
        ],
    ),
    (
        "rsq",
        &[
            (0x02c976e8, 0x5dcc0de5),
            (0x355d976e, 0x44899453),
            (0x7623c614, 0x24200849),
            (0x32ef08e6, 0x45bb5543),
            (0x67146de9, 0x2ba819d6),
            (0x5009350f, 0x372ed71a),
            (0x40400000, 0x3f13cd3a),
            (0x3eaaaaaa, 0x3fddb3d8),
            (0x40e00000, 0x3ec1848f),
            (0x7149f2ca, 0x26901d7d),
        ],
    ),
    (
        "sqrt",
        &[
            (0x02c976e8, 0x212095b0),
            (0x355d976e, 0x3a6e2cda),
            (0x7623c614, 0x5accc233),
            (0x32ef08e6, 0x392eeb1d),
            (0x67146de9, 0x5342ee37),
            (0x5009350f, 0x47bb6ab4),
            (0x40400000, 0x3fddb3d7),
            (0x3eaaaaaa, 0x3f13cd3a),
            (0x40e00000, 0x402953fd),
            (0x7149f2ca, 0x58635fa9),
        ],
    ),
    (
        "sin",
        &[
            (0x42708af2, 0x3f40c262),
            (0xc33f2147, 0xbf3a9ac3),
            (0xc37f175e, 0xbf0ae729),
            (0x433e28c3, 0x3f577a54),
            (0xc314c222, 0x3f7fa63b),
            (0xc311ac74, 0x3f631996),
            (0x3e000000, 0x3f3504f3),
            (0x3dcccccd, 0x3f167918),
            (0xbe99999a, 0xbf737870),
            (0x38d1b717, 0x3a24b5bd),
            (0x4348428f, 0x3f7f7ed2),
        ],
    ),
    (
        "cos",
        &[
            (0x42708af2, 0x3f287695),
            (0xc33f2147, 0x3f2f4198),
            (0xc37f175e, 0x3f570a19),
            (0x433e28c3, 0x3f0a38d0),
            (0xc314c222, 0x3d5650d8),
            (0xc311ac74, 0xbeec518b),
            (0x3e000000, 0x3f3504f3),
            (0x3dcccccd, 0x3f4f1bbd),
            (0xbe99999a, 0xbe9e377c),
            (0x38d1b717, 0x3f7ffffd),
            (0x4348428f, 0xbd808642),
        ],
    ),
];

fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

fn wide(low: u32, high: u32) -> f64 {
    f64::from_bits(u64::from(low) | u64::from(high) << 32)
}

#[test]
fn transcendental_functions_are_within_one_ulp() {
    for (name, table) in TABLES {
        let code = format!("v_{name}_f32 v10, v2");
        let inputs = |lane: usize| [table[lane % table.len()].0, 0, 0, 0, 0, 0, 0, 0];
        let Some(results) = run(&code, inputs) else { return };
        for (out, &(x, expected)) in results.iter().zip(table) {
            let distance = (out[0] as i32).abs_diff(expected as i32);
            assert!(distance <= 1, "{name}({:e}) = {:e}, not {:e}", f(x), f(out[0]), f(expected));
        }
    }
}

#[test]
fn transcendental_functions_have_no_denormals() {
    let denormal = 0x0040_0000;
    let inputs = |_: usize| {
        [
            denormal,
            0x8040_0000,
            (-130f32).to_bits(),
            2e38f32.to_bits(),
            0,
            (-1f32).to_bits(),
            300f32.to_bits(),
            f32::INFINITY.to_bits(),
        ]
    };
    let codes = [
        "v_rcp_f32 v10, v2\nv_rcp_f32 v11, v3\nv_rcp_f32 v12, v5\nv_rsq_f32 v13, v2\nv_sqrt_f32 v14, v2\nv_log_f32 v15, v2\nv_exp_f32 v16, v4\nv_exp_f32 v17, v2",
        "v_sqrt_f32 v10, v7\nv_log_f32 v11, v7\nv_rsq_f32 v12, v7\nv_sin_f32 v13, v8\nv_cos_f32 v14, v8\nv_sin_f32 v15, v9\nv_exp_f32 v16, v9\nv_rcp_f32 v17, v6",
    ];
    let Some(results) = run_each(&codes.map(String::from), inputs) else { return };
    let infinity = f32::INFINITY;
    assert_eq!(results[0][0].map(f), [infinity, -infinity, 0.0, infinity, 0.0, -infinity, 0.0, 1.0]);
    let second = results[1][0].map(f);
    assert!(second[..3].iter().all(|x| x.is_nan()) && second[5].is_nan(), "{second:?}");
    assert_eq!((second[3], second[4], second[6], second[7]), (0.0, 1.0, infinity, infinity));
}

/// The bits of a finite f32 or f64: mantissa in 0.5..1 and exponent.
fn parts(value: f64) -> (f64, i32) {
    if value == 0.0 {
        return (value, 0);
    }
    let exponent = value.abs().log2().floor() as i32 + 1;
    let mantissa = value * 2f64.powi(-exponent / 2) * 2f64.powi(-exponent - -exponent / 2);
    match mantissa.abs() {
        m if m >= 1.0 => (mantissa / 2.0, exponent + 1),
        m if m < 0.5 => (mantissa * 2.0, exponent - 1),
        _ => (mantissa, exponent),
    }
}

#[test]
fn floats_are_taken_apart_and_put_together() {
    let mut random = Random(61);
    let special =
        [0u64, 1, 0x7fef_ffff_ffff_ffff, 0x8010_0000_0000_0000, 0x0008_0000_0000_0000, 0x3ff0_0000_0000_0000];
    let inputs: Vec<[u32; 8]> = (0..64)
        .map(|lane| {
            let double = special.get(lane).copied().unwrap_or_else(|| random.next() & !(0x400 << 52));
            let single = if lane < 6 {
                [0, 1, 0x7f7f_ffff, 0x8080_0000, 0x0040_0000, 0x3f80_0000][lane]
            } else {
                random.next() as u32 & !(0x40 << 23)
            };
            let exponent = (random.next() % 400) as i32 - 200;
            [
                double as u32,
                (double >> 32) as u32,
                single,
                exponent as u32,
                random.next() as u32 & 0xbfff,
                0,
                0,
                0,
            ]
        })
        .collect();
    let codes = [
        "v_frexp_mant_f64 v[10:11], v[2:3]
        v_frexp_exp_i32_f64 v12, v[2:3]
        v_frexp_mant_f32 v13, v4
        v_frexp_exp_i32_f32 v14, v4
        v_ldexp_f32 v15, v4, v5
        v_ldexp_f64 v[16:17], v[2:3], v5",
        "v_frexp_mant_f16 v10, v6
        v_frexp_exp_i16_f16 v11, v6
        v_fract_f32 v12, v4
        v_fract_f64 v[14:15], v[2:3]
        v_floor_f32 v13, v4
        v_ldexp_f16 v16, v6, v5
        v_rndne_f32 v17, v4",
    ];
    let Some(results) = run_each(&codes.map(String::from), |lane| inputs[lane]) else { return };
    for lane in 0..64 {
        let (x, out) = (inputs[lane], results[0][lane]);
        let (double, single, exponent) = (wide(x[0], x[1]), f64::from(f(x[2])), x[3] as i32);
        let (mantissa, power) = parts(double);
        assert_eq!((wide(out[0], out[1]), out[2] as i32), (mantissa, power), "{double:e}");
        let (mantissa, power) = parts(single);
        assert_eq!((f64::from(f(out[3])), out[4] as i32), (mantissa, power), "{single:e}");
        // f64 holds the product, which is rounded to f32 once.
        assert_eq!(f(out[5]), (single * 2f64.powi(exponent)) as f32, "{single:e} 2^{exponent}");
        let (half, rest) = (exponent / 2, exponent - exponent / 2);
        let exact = double * 2f64.powi(half) * 2f64.powi(rest);
        if exact.abs() > f64::MIN_POSITIVE || exact == 0.0 {
            assert_eq!(wide(out[6], out[7]), exact, "{double:e} 2^{exponent}");
        }
        let out = results[1][lane];
        let half = F16.decode(x[4]);
        if half.is_finite() {
            let (mantissa, power) = parts(half);
            assert_eq!((F16.decode(out[0] & 0xffff), out[1] as i16), (mantissa, power as i16), "{half:e}");
            let scaled = half * 2f64.powi(exponent);
            assert_eq!(
                out[6] & 0xffff,
                F16.encode(scaled, Rounding::NearestEven, false),
                "{half:e} 2^{exponent}"
            );
        }
        let below = 1.0f32.next_down();
        assert_eq!(f(out[2]), (single - single.floor()).min(below.into()) as f32, "{single:e}");
        assert_eq!(wide(out[4], out[5]), (double - double.floor()).min(1f64.next_down()), "{double:e}");
        assert_eq!(f(out[3]), f(x[2]).floor());
        assert_eq!(f(out[7]), f(x[2]).round_ties_even());
    }
}

/// `2 * angle / pi` modulo 4, from the segments of 2/pi, in units of 2^-100.
fn quarters(angle: f64, segments: [f64; 3]) -> u128 {
    let split = |value: f64| {
        let field = (value.to_bits() >> 52 & 0x7ff) as i32;
        let hidden = if field == 0 { 0 } else { 1 << 52 };
        (u128::from(value.to_bits() & ((1 << 52) - 1) | hidden), field.max(1) - 1075)
    };
    // The segments of large angles come scaled.
    let scale = if angle > 2f64.powi(945) { 128 } else { 0 };
    let (mantissa, exponent) = split(angle);
    let sum = segments.iter().fold(0u128, |sum, &segment| {
        let (part, power) = split(segment);
        let shift = exponent + power - scale + 100;
        let product = mantissa * part;
        sum.wrapping_add(if shift >= 128 {
            0
        } else if shift >= 0 {
            product << shift
        } else {
            product >> -shift.max(-127)
        })
    });
    sum & ((1 << 102) - 1)
}

#[test]
fn segments_of_two_over_pi_reduce_large_angles() {
    // Angles, the quarter of the circle they are in, and the place in it.
    let angles = [
        (123456789.0, 0, 0.9104125203124129),
        (1e22, 3, 0.3505349005744814),
        (1e300, 2, 0.6097035962591812),
        (f64::MAX, 1, 0.9968411085090122),
    ];
    let inputs = |lane: usize| {
        let bits = angles[lane % 4].0.to_bits();
        [bits as u32, (bits >> 32) as u32, 0, 0, 0, 0, 0, 0]
    };
    let code = "v_trig_preop_f64 v[10:11], v[2:3], 0
        v_trig_preop_f64 v[12:13], v[2:3], 1
        v_trig_preop_f64 v[14:15], v[2:3], 2";
    let Some(results) = run(code, inputs) else { return };
    for (out, (angle, quarter, place)) in results.iter().zip(angles) {
        let segments = [0, 1, 2].map(|n| wide(out[2 * n], out[2 * n + 1]));
        let quarters = quarters(angle, segments);
        assert_eq!(quarters >> 100, quarter, "{angle:e} {segments:?}");
        let found = (quarters & ((1 << 100) - 1)) as f64 / 2f64.powi(100);
        assert!((found - place).abs() < 1e-14, "{angle:e}: {found} {place}");
    }
}

#[test]
fn directions_meet_the_faces_of_a_cube() {
    let mut random = Random(62);
    let inputs: Vec<[u32; 8]> =
        (0..64).map(|_| std::array::from_fn(|_| ((random.next() % 17) as f32 - 8.0).to_bits())).collect();
    let code = "v_cubeid_f32 v10, v2, v3, v4
        v_cubesc_f32 v11, v2, v3, v4
        v_cubetc_f32 v12, v2, v3, v4
        v_cubema_f32 v13, v2, v3, v4";
    let Some(results) = run(code, |lane| inputs[lane]) else { return };
    for (out, v) in results.iter().zip(&inputs) {
        let v = [f(v[0]), f(v[1]), f(v[2])];
        // Of equal coordinates the last one decides.
        let axis =
            (0..3).rev().max_by(|&a, &b| v[a].abs().total_cmp(&v[b].abs()).then(a.cmp(&b))).expect("three");
        let negative = v[axis] < 0.0;
        assert_eq!(f(out[0]), (2 * axis + usize::from(negative)) as f32, "{v:?}");
        let sign = if negative { -1.0 } else { 1.0 };
        let (s, t) = match axis {
            0 => (-sign * v[2], -v[1]),
            1 => (v[0], sign * v[2]),
            _ => (sign * v[0], -v[1]),
        };
        assert_eq!([f(out[1]), f(out[2]), f(out[3])], [s, t, 2.0 * v[axis]], "{v:?}");
    }
}
