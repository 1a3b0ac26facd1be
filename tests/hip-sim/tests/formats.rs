//! Buffer accesses that convert between registers and the elements of memory.

mod common;

use common::{assemble, random_lanes, run_body};
use hip_sim::dispatch::Checks;
use hip_sim::float::{F16, Format, Rounding};

/// Bits of the components, from the lowest on.
const LAYOUTS: [(u32, &[u32]); 14] = [
    (1, &[8]),
    (2, &[16]),
    (3, &[8, 8]),
    (4, &[32]),
    (5, &[16, 16]),
    (6, &[11, 11, 10]),
    (7, &[10, 11, 11]),
    (8, &[2, 10, 10, 10]),
    (9, &[10, 10, 10, 2]),
    (10, &[8, 8, 8, 8]),
    (11, &[32, 32]),
    (12, &[16, 16, 16, 16]),
    (13, &[32, 32, 32]),
    (14, &[32, 32, 32, 32]),
];

/// The value of a component as a register holds it.
fn read(bits: u32, width: u32, number: u32) -> u32 {
    let signed = (i64::from(bits) << (64 - width)) >> (64 - width);
    let largest = |bits: u32| (1u64 << bits) as f64 - 1.0;
    let value = match number {
        _ if width == 32 => return bits,
        0 => f64::from(bits) / largest(width),
        1 => (signed as f64 / largest(width - 1)).max(-1.0),
        2 => bits.into(),
        3 => signed as f64,
        4 => return bits,
        5 => return signed as u32,
        _ if width == 16 => F16.decode(bits),
        _ => {
            // Five bits of exponent, no sign.
            let mantissa = width - 5;
            let (exponent, fraction) = (bits >> mantissa, f64::from(bits & ((1 << mantissa) - 1)));
            let unit = 2f64.powi(-(mantissa as i32));
            match exponent {
                0 => fraction * unit * 2f64.powi(-14),
                31 if fraction == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                _ => (1.0 + fraction * unit) * 2f64.powi(exponent as i32 - 15),
            }
        }
    };
    (value as f32).to_bits()
}

#[test]
fn formats_convert_components() {
    let inputs = random_lanes(51);
    let mut memory: Vec<u32> = inputs.iter().flat_map(|words| words[..4].to_vec()).collect();
    let mut cases = Vec::new();
    for (data, widths) in LAYOUTS {
        for number in [0, 1, 2, 3, 4, 5, 7] {
            if number != 7 || widths.iter().all(|&width| width > 8) && data != 8 && data != 9 {
                cases.push((data, widths, number));
            }
        }
    }
    // Loads all components as words and as halves, stores them again elsewhere: 8 words for each lane.
    let mut body = String::from(
        "s_mov_b64 s[4:5], s[0:1]
        s_movk_i32 s6, 0x400
        s_add_u32 s0, s0, 0x400
        s_addc_u32 s1, s1, 0
        v_lshlrev_b32 v1, 4, v0
        v_lshlrev_b32 v20, 5, v0\n",
    );
    for &(data, _, number) in &cases {
        body += &format!(
            "s_mov_b32 s7, {:#x}
            tbuffer_load_format_xyzw v[2:5], v1, s[4:7], dfmt:{data}, nfmt:{number}, 0 offen
            tbuffer_load_format_d16_xyzw v[6:7], v1, s[4:7], dfmt:{data}, nfmt:{number}, 0 offen
            buffer_load_format_xyz v[10:12], v1, s[4:7], 0 offen
            s_waitcnt vmcnt(0)
            global_store_dwordx4 v20, v[2:5], s[0:1]
            global_store_dwordx2 v20, v[6:7], s[0:1] offset:16
            v_xor_b32 v10, v10, v12
            global_store_dwordx2 v20, v[10:11], s[0:1] offset:24
            s_add_u32 s0, s0, 0x800
            s_addc_u32 s1, s1, 0\n",
            // Selects: the third component, 1, and the first.
            6 | 1 << 3 | 4 << 6 | number << 12 | data << 15
        );
    }
    memory.resize(memory.len() + cases.len() * 64 * 8, 0);
    let Some(result) = run_body(&body, &memory) else { return };
    for (n, (data, widths, number)) in cases.into_iter().enumerate() {
        for lane in 0..64 {
            let out = &result[256 + (64 * n + lane) * 8..][..8];
            let mut bits =
                (0..4).fold(0u128, |bits, word| bits | u128::from(inputs[lane][word]) << (32 * word));
            let mut expected = [0; 4];
            for (value, &width) in expected.iter_mut().zip(widths) {
                *value = read((bits & ((1 << width) - 1)) as u32, width, number);
                bits >>= width;
            }
            let same = |a: u32, b: u32| a == b || f32::from_bits(a).is_nan() && f32::from_bits(b).is_nan();
            assert!(
                out[..4].iter().zip(expected).all(|(&a, b)| same(a, b)),
                "{data} {number} {out:x?} {expected:x?}"
            );
            let integer = number == 4 || number == 5;
            for (n, value) in expected.into_iter().enumerate() {
                let half = out[4 + n / 2] >> (16 * (n % 2)) & 0xffff;
                let float = f64::from(f32::from_bits(value));
                let rounded = F16.encode(float, Rounding::NearestEven, false);
                let nan = float.is_nan() && F16.decode(half).is_nan();
                assert!(half == if integer { value & 0xffff } else { rounded } || nan, "{data} {number} {n}");
            }
            let one = if integer { 1 } else { 1f32.to_bits() };
            assert_eq!(out[7], one, "{data} {number}");
            assert!(
                same(out[6], expected[2] ^ expected[0])
                    || expected.iter().any(|x| f32::from_bits(*x).is_nan())
            );
        }
    }
}

#[test]
fn stores_convert_back() {
    let values =
        [0.0f32, 1.0, -1.0, 0.5, 0.2501, 100.0, -7.5, 1e9, f32::NAN, 6e-6, 65504.0, -0.0, 3.0, 40000.0];
    let mut body = String::from(
        "s_mov_b64 s[4:5], s[0:1]
        s_movk_i32 s6, 0x4000
        v_lshlrev_b32 v1, 4, v0
        global_load_dwordx4 v[2:5], v1, s[0:1]
        s_waitcnt vmcnt(0)
        v_cvt_pkrtz_f16_f32 v6, v2, v3
        v_cvt_pkrtz_f16_f32 v7, v4, v5\n",
    );
    // x, y, z, w of each kind of number.
    let stores = [
        ("tbuffer_store_format_xyzw v[2:5]", 10, 0),
        ("tbuffer_store_format_xyzw v[2:5]", 12, 1),
        ("tbuffer_store_format_xyzw v[2:5]", 9, 2),
        ("tbuffer_store_format_xyzw v[2:5]", 12, 3),
        ("tbuffer_store_format_xyzw v[2:5]", 10, 4),
        ("tbuffer_store_format_xyzw v[2:5]", 12, 5),
        ("tbuffer_store_format_xyzw v[2:5]", 12, 7),
        ("tbuffer_store_format_xyz v[2:4]", 6, 7),
        ("tbuffer_store_format_d16_xyzw v[6:7]", 12, 7),
        ("tbuffer_store_format_d16_xy v6", 11, 7),
    ];
    for (n, (name, data, number)) in stores.iter().enumerate() {
        body += &format!(
            "s_movk_i32 s8, {}\n{name}, v1, s[4:7], dfmt:{data}, nfmt:{number}, s8 offen\n",
            1024 * (n + 1)
        );
    }
    let inputs: Vec<u32> = (0..256).map(|n| values[(n * 5 + n / 16) % values.len()].to_bits()).collect();
    let mut memory = inputs.clone();
    memory.resize(256 * (stores.len() + 1), 0);
    let Some(result) = run_body(&body, &memory) else { return };
    let half = |x: f32, rounding| u64::from(F16.encode(x.into(), rounding, false));
    let same = |format: Format, a: u64, b: u64| {
        a == b || format.decode(a as u32).is_nan() && format.decode(b as u32).is_nan()
    };
    for lane in 0..64 {
        let bits: [u32; 4] = inputs[4 * lane..][..4].try_into().expect("four");
        let x = bits.map(f32::from_bits);
        let stored = |n: usize| {
            let words = &result[256 * (n + 1) + 4 * lane..][..2];
            u64::from(words[0]) | u64::from(words[1]) << 32
        };
        let packed = |width: u32, component: &dyn Fn(usize) -> u64| -> u64 {
            (0..64 / width.max(16)).map(|n| component(n as usize) << (width * n)).sum()
        };
        // Casts of floats to integers saturate and make 0 of NaN.
        let unorm = |n: usize| u64::from((x[n].clamp(0.0, 1.0) * 255.0).round_ties_even() as u8);
        assert_eq!(stored(0), packed(8, &unorm));
        let snorm = |n: usize| u64::from((x[n].clamp(-1.0, 1.0) * 32767.0).round_ties_even() as i16 as u16);
        assert_eq!(stored(1), packed(16, &snorm), "{x:?}");
        let uscaled =
            |n: usize| (x[n].round_ties_even().clamp(0.0, if n == 3 { 3.0 } else { 1023.0 })) as u64;
        assert_eq!(stored(2), (0..4).map(|n| uscaled(n) << (10 * n)).sum::<u64>(), "{x:?}");
        let sscaled = |n: usize| u64::from(x[n].round_ties_even() as i16 as u16);
        assert_eq!(stored(3), packed(16, &sscaled), "{x:?}");
        assert_eq!(stored(4), packed(8, &|n| bits[n].min(255).into()));
        let sint = |n: usize| u64::from((bits[n] as i32).clamp(-0x8000, 0x7fff) as u16);
        assert_eq!(stored(5), packed(16, &sint));
        for (n, x) in x.into_iter().enumerate() {
            for (store, rounding) in [(6, Rounding::NearestEven), (8, Rounding::TowardZero)] {
                let found = stored(store) >> (16 * n) & 0xffff;
                assert!(same(F16, found, half(x, rounding)), "{x:e}");
            }
        }
        for (n, (shift, width)) in [(0, 11), (11, 11), (22, 10)].into_iter().enumerate() {
            let found = f32::from_bits(read((stored(7) >> shift) as u32 & ((1 << width) - 1), width, 7));
            let step = 2f32.powi((x[n].abs().log2().floor() as i32).max(-14) - (width as i32 - 5));
            let near = (found - x[n]).abs() <= step / 2.0;
            let expected = match x[n] {
                x if x.is_nan() => found.is_nan(),
                x if x <= 0.0 => found == 0.0,
                x if x >= 65500.0 => found.is_infinite(),
                _ => near,
            };
            assert!(expected, "{:e} {found:e}", x[n]);
        }
        let widened = |n: usize| (F16.decode(half(x[n], Rounding::TowardZero) as u32) as f32).to_bits();
        let both = u64::from(widened(0)) | u64::from(widened(1)) << 32;
        assert!(stored(9) == both || x[0].is_nan() || x[1].is_nan());
    }
}

#[test]
fn formats_that_do_not_exist_stop() {
    let body = "s_mov_b64 s[4:5], s[0:1]\ns_movk_i32 s6, 64\ns_mov_b32 s7, 0\nbuffer_load_format_x v2, v0, s[4:7], 0 offen";
    let Some(device) = assemble(body) else { return };
    let memory = device.upload(&[0u32; 16]);
    let fault = device.run("test", [1; 3], [64, 1, 1], &[memory], Checks::default()).expect_err("no format");
    assert!(fault.to_string().contains("buffer format"), "{fault}");
}
