//! Kernels compiled by LLVM, against the same arithmetic on the CPU.

mod common;

use common::{Device, Random, compile};
use hip_sim::dispatch::Checks;
use hip_sim::report::Cause;

const COUNT: usize = 1000;

/// Runs `c[i] = f(a[i], b[i])` on the device.
fn elementwise<A: Copy, C: Copy + Default>(device: &Device, kernel: &str, a: &[A], b: &[A]) -> Vec<C> {
    let c = device.upload(&vec![C::default(); a.len()]);
    let arguments = [device.upload(a), device.upload(b), c, a.len() as u64];
    let groups = (a.len() as u32).div_ceil(256);
    let done = device.run(kernel, [groups, 1, 1], [256, 1, 1], &arguments, Checks::default());
    done.unwrap_or_else(|fault| panic!("{fault}"));
    device.download(c, a.len())
}

fn agree32(kernel: &str, ours: &[f32], theirs: impl Fn(usize) -> f32, ulps: u32) {
    for (index, &value) in ours.iter().enumerate() {
        let expected = theirs(index);
        let near = value.to_bits().abs_diff(expected.to_bits()) <= ulps;
        assert!(
            near || value == expected || value.is_nan() && expected.is_nan(),
            "{kernel} {index}: {value:e} {expected:e}"
        );
    }
}

fn floats(seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MIN_POSITIVE,
        1e-45,
        f32::MAX,
    ];
    let mut values: Vec<f32> = (0..COUNT).map(|_| f32::from_bits(random.next() as u32)).collect();
    for (n, value) in values.iter_mut().enumerate().take(100) {
        *value = special[if seed == 1 { n / 10 } else { n % 10 }];
    }
    values
}

#[test]
fn f32_arithmetic_is_correctly_rounded() {
    let Some(device) = compile("basic.hip") else { return };
    let (a, b) = (floats(1), floats(2));
    agree32("add", &elementwise(&device, "add", &a, &b), |n| a[n] + b[n], 0);
    agree32("divide", &elementwise(&device, "divide", &a, &b), |n| a[n] / b[n], 0);
    agree32("root", &elementwise(&device, "root", &a, &b), |n| a[n].sqrt(), 0);
    let small: Vec<f32> = a.iter().map(|a| a % 200.0).collect();
    agree32("power", &elementwise(&device, "power", &small, &b), |n| small[n].exp2(), 1);
    agree32("natural", &elementwise(&device, "natural", &small, &b), |n| small[n].exp(), 2);
    agree32("logarithm", &elementwise(&device, "logarithm", &a, &b), |n| a[n].ln(), 3);
    let bf16: Vec<u16> = elementwise(&device, "to_bf16", &a, &b);
    for (a, bits) in a.iter().zip(bf16) {
        let rounded = (a.to_bits() + 0x7fff + (a.to_bits() >> 16 & 1)) >> 16;
        assert!(u32::from(bits) == rounded || a.is_nan(), "{a:e} {bits:#x}");
    }
    let i64s: Vec<i64> = elementwise(&device, "to_i64", &small, &b);
    assert!(small.iter().zip(i64s).all(|(a, c)| a.is_nan() || *a as i64 == c));
}

#[test]
fn f64_division_and_root_are_correctly_rounded() {
    let Some(device) = compile("basic.hip") else { return };
    let mut random = Random(3);
    let mut doubles = || -> Vec<f64> {
        let special = [0.0, -0.0, 1.0, f64::INFINITY, f64::NAN, 5e-324, f64::MAX, f64::MIN_POSITIVE];
        let random = (0..COUNT).map(|_| f64::from_bits(random.next()));
        random.enumerate().map(|(n, x)| if n % 16 < 8 { special[n / 8 % 8] } else { x }).collect()
    };
    let (a, mut b) = (doubles(), doubles());
    b.rotate_left(24);
    for (kernel, expected) in
        [("divide64", &(|n| a[n] / b[n]) as &dyn Fn(usize) -> f64), ("root64", &|n| a[n].sqrt())]
    {
        let c: Vec<f64> = elementwise(&device, kernel, &a, &b);
        for (n, &c) in c.iter().enumerate() {
            let expected = expected(n);
            assert!(
                c.to_bits() == expected.to_bits() || c.is_nan() && expected.is_nan(),
                "{kernel} {:e} {:e}: {c:e} {expected:e}",
                a[n],
                b[n]
            );
        }
    }
}

#[test]
fn integers_divide_and_convert() {
    let Some(device) = compile("basic.hip") else { return };
    let mut random = Random(4);
    let mut values =
        |shift: u32| -> Vec<u64> { (0..COUNT as u32).map(|n| (random.next() >> (n % shift)) | 1).collect() };
    let (a, b) = (values(63), values(61));
    let signed = |values: &[u64]| values.iter().map(|&value| value as i64).collect::<Vec<_>>();
    let (c, d) = (signed(&a), signed(&b));
    let quotients: Vec<i64> = elementwise(&device, "divide_i64", &c, &d);
    assert!((0..COUNT).all(|n| quotients[n] == c[n].wrapping_div(d[n])));
    let rests: Vec<u64> = elementwise(&device, "remainder_u64", &a, &b);
    assert!((0..COUNT).all(|n| rests[n] == a[n] % b[n]));
    let floats: Vec<f32> = elementwise(&device, "from_i64", &c, &d);
    assert!((0..COUNT).all(|n| floats[n] == c[n] as f32));
    let doubles: Vec<f64> = elementwise(&device, "from_u64", &a, &b);
    assert!((0..COUNT).all(|n| doubles[n] == a[n] as f64));
    let narrow = |values: &[u64]| values.iter().map(|&value| value as i32 | 1).collect::<Vec<_>>();
    let (e, f) = (narrow(&a), narrow(&b));
    let quotients: Vec<i32> = elementwise(&device, "divide_i32", &e, &f);
    assert!((0..COUNT).all(|n| quotients[n] == e[n].wrapping_div(f[n])));
    let unsigned = |values: &[i32]| values.iter().map(|&value| value as u32).collect::<Vec<_>>();
    let (g, h) = (unsigned(&e), unsigned(&f));
    let rests: Vec<u32> = elementwise(&device, "remainder_u32", &g, &h);
    assert!((0..COUNT).all(|n| rests[n] == g[n] % h[n]));
    let bits: Vec<u32> = elementwise(&device, "bits", &g, &h);
    for n in 0..COUNT {
        let (a, b) = (g[n], h[n]);
        let zeros = (b | 1).leading_zeros() * 64 + (a | 0x8000_0000).trailing_zeros() * 4096;
        let expected = (a.count_ones() + zeros).wrapping_add(a.rotate_left(b & 31) & 0xff00_0000);
        assert_eq!(bits[n], expected);
    }
    let (p, q): (Vec<i8>, Vec<i8>) =
        (a.iter().map(|&a| a as i8).collect(), b.iter().map(|&b| b as i8).collect());
    let shorts: Vec<i16> = elementwise(&device, "bytes", &p, &q);
    assert!((0..COUNT).all(|n| shorts[n] == i16::from(p[n]) * 3 + i16::from(q[n] as u8)));
}

#[test]
fn f16_arithmetic_is_correctly_rounded() {
    use hip_sim::float::{F16, Rounding};
    let Some(device) = compile("basic.hip") else { return };
    let mut random = Random(5);
    let mut values = || -> Vec<u16> { (0..COUNT).map(|_| random.next() as u16).collect() };
    let (a, b) = (values(), values());
    let decode = |bits: u16| F16.decode(bits.into());
    let encode = |value: f64| F16.encode(value, Rounding::NearestEven, false) as u16;
    let check = |kernel: &str, f: &dyn Fn(f64, f64) -> u16| {
        let c: Vec<u16> = elementwise(&device, kernel, &a, &b);
        for n in 0..COUNT {
            let expected = f(decode(a[n]), decode(b[n]));
            let both_nan = decode(c[n]).is_nan() && decode(expected).is_nan();
            assert!(
                c[n] == expected || both_nan,
                "{kernel} {:e} {:e}: {:#x} {expected:#x}",
                decode(a[n]),
                decode(b[n]),
                c[n]
            );
        }
    };
    // The sum of a product of f16 and an f16 needs at most 80 bits: round to odd first.
    let fma = |a: f64, b: f64, c: f64| encode(hip_sim::float::add_to_odd(a * b, c));
    check("divide16", &|a, b| encode(a / b));
    check("fma16", &|a, b| fma(a, b, a));
    check("axpy16", &|a, b| fma(a, b, b));
    let wide = floats(1);
    let c: Vec<u16> = elementwise(&device, "to_f16", &wide, &wide);
    for (a, c) in wide.iter().zip(c) {
        assert!(c == encode((*a).into()) || a.is_nan(), "{a:e}");
    }
}

#[test]
fn a_workgroup_reduces_through_lds() {
    let Some(device) = compile("basic.hip") else { return };
    let a: Vec<f32> = (0..5000).map(|n| (n % 17) as f32).collect();
    let c = device.upload(&[0f32; 4]);
    let arguments = [device.upload(&a), c, a.len() as u64];
    let checks = Checks {
        lds_races: true,
        lds_unwritten: true,
        barriers: true,
        lanes: true,
        profile: true,
        instruction_limit: 1 << 20,
    };
    let profile = device
        .run("sum", [4, 1, 1], [256, 1, 1], &arguments, checks)
        .unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(device.download::<f32>(c, 4).iter().sum::<f32>(), a.iter().sum());
    assert_eq!(profile.waves, 16);
    assert_eq!(profile.global_bytes, 4 * 5000 + 16);
    // 5000 floats are 312.5 segments of 64 bytes; each workgroup writes one more.
    assert_eq!(profile.global_segments, 313 + 4);
    assert_eq!(profile.lds_conflicts, 0);
}

#[test]
fn checks_find_what_they_look_for() {
    let Some(device) = compile("basic.hip") else { return };
    let a = device.upload(&[1f32; 256]);
    let one = |kernel: &str, block: u32, arguments: &[u64], checks: Checks| {
        device.run(kernel, [1; 3], [block, 1, 1], arguments, checks)
    };
    let races = Checks { lds_races: true, ..Checks::default() };
    let fault = one("racy", 256, &[a, a, 256], races).expect_err("a race");
    assert!(matches!(fault.cause, Cause::LdsRace { .. }), "{fault}");
    let unwritten = Checks { lds_unwritten: true, ..Checks::default() };
    let fault = one("racy", 256, &[a, a, 256], unwritten).expect_err("an unwritten read");
    assert!(matches!(fault.cause, Cause::LdsUnwritten { .. }), "{fault}");
    one("racy", 64, &[a, a, 256], races).expect("a wave does not race with itself");
    let fault = one("out_of_bounds", 64, &[a], Checks::default()).expect_err("out of bounds");
    assert!(matches!(fault.cause, Cause::Memory { write: true, .. }), "{fault}");
    assert!(fault.mnemonic.contains("store"), "{fault}");
    let barriers = Checks { barriers: true, ..Checks::default() };
    let fault = one("missed", 128, &[a], barriers).expect_err("a barrier only one wave reaches");
    assert!(matches!(fault.cause, Cause::BarrierMissed { .. }), "{fault}");
    one("missed", 128, &[a], Checks::default()).expect("the hardware does not mind");
}

#[test]
fn atomics_add_up_over_workgroups() {
    let Some(device) = compile("basic.hip") else { return };
    let mut random = Random(6);
    let bins: Vec<u32> = (0..64 * 256).map(|_| (random.next() % 10) as u32).collect();
    let c = device.upload(&[0u32; 10]);
    let run = |kernel: &str, arguments: &[u64]| {
        let done = device.run(kernel, [64, 1, 1], [256, 1, 1], arguments, Checks::default());
        done.unwrap_or_else(|fault| panic!("{fault}"));
    };
    run("count", &[c, device.upload(&bins)]);
    let expected: Vec<u32> =
        (0..10).map(|bin| bins.iter().filter(|&&value| value == bin).count() as u32).collect();
    assert_eq!(device.download::<u32>(c, 10), expected);
    let sum = device.upload(&[0f32]);
    run("add_atomically", &[sum, device.upload(&vec![0.5f32; 64 * 256])]);
    assert_eq!(device.download::<f32>(sum, 1), [8192.0]);
}

#[test]
fn scratch_belongs_to_the_lane() {
    let Some(device) = compile("basic.hip") else { return };
    let a: Vec<u32> = (0..40).map(|n| n * n + 3).collect();
    let c = device.upload(&[0u32; 128]);
    let done = device.run("spill", [1; 3], [128, 1, 1], &[device.upload(&a), c, 40], Checks::default());
    done.unwrap_or_else(|fault| panic!("{fault}"));
    for (t, value) in device.download::<u32>(c, 128).into_iter().enumerate() {
        let local: Vec<u32> = a.iter().map(|a| a * (t as u32 + 1)).collect();
        let expected =
            a.iter().fold(0u32, |s, a| s.wrapping_mul(31).wrapping_add(local[(*a as usize + t) % 40]));
        assert_eq!(value, expected);
    }
}

#[test]
fn work_items_know_where_they_are() {
    let Some(device) = compile("basic.hip") else { return };
    let c = device.upload(&[0u32; 24 * 12]);
    let done = device.run("where", [3, 2, 2], [4, 3, 2], &[c], Checks::default());
    done.unwrap_or_else(|fault| panic!("{fault}"));
    for (n, value) in device.download::<u32>(c, 24 * 12).into_iter().enumerate() {
        let (g, t) = (n as u32 / 24, n as u32 % 24);
        assert_eq!(value, g << 16 | (t / 12) << 8 | (t / 4 % 3) << 4 | t % 4);
    }
}

#[test]
fn lanes_exchange_values() {
    let Some(device) = compile("basic.hip") else { return };
    let a: Vec<u32> = (0..64).map(|n| 1000 + n).collect();
    let c = device.upload(&[0u32; 64 * 6]);
    let done = device.run("permute", [1; 3], [64, 1, 1], &[device.upload(&a), c], Checks::default());
    done.unwrap_or_else(|fault| panic!("{fault}"));
    for (lane, values) in device.download::<u32>(c, 64 * 6).chunks_exact(6).enumerate() {
        let lane = lane as u32;
        let at = |lane: u32| 1000 + lane;
        let shifted = if lane.is_multiple_of(16) { 7 } else { at(lane - 1) };
        let mirrored = at(lane / 16 * 16 + 15 - lane % 16);
        assert_eq!(values, [at(lane ^ 5), shifted, mirrored, at(lane ^ 1), at(17) + at(0), lane]);
    }
}
