//! Rotary position embedding.

use burn::tensor::DType;
use burn_flashinfer::{Indptr, Positions, Rope, RopeConfig, RopeScaling, RopeStyle, apply_rope, reference};

use crate::devices::{Target, device_tests};
use crate::support::{DTYPES, Host, Rng, VIEWS, View, check, round};

device_tests!(dims_styles_and_scalings, views, no_tokens, position_zero, far_positions, continuing);

const STYLES: [RopeStyle; 2] = [RopeStyle::Halves, RopeStyle::Interleaved];
const LLAMA3: RopeScaling = RopeScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_positions: 8192,
};

fn compare(
    what: &str,
    target: &Target,
    config: &RopeConfig,
    style: RopeStyle,
    x: &Host<3>,
    positions: &[usize],
    got: &[f32],
) {
    let frequencies: Vec<f64> = config.frequencies().collect();
    let oracle = reference::apply_rope(&x.heads(), &frequencies, positions, style).expect("it fits");
    // The same in f32, with cosines and sines rounded to f32.
    let [_, heads, dim] = x.shape;
    let mut baseline = x.values.clone();
    for (token, &position) in positions.iter().enumerate() {
        for head in 0..heads {
            let start = (token * heads + head) * dim;
            for (pair, frequency) in frequencies.iter().enumerate() {
                let (a, b) = match style {
                    RopeStyle::Halves => (start + pair, start + pair + frequencies.len()),
                    RopeStyle::Interleaved => (start + 2 * pair, start + 2 * pair + 1),
                };
                let angle = position as f64 * frequency;
                let (sin, cos) = (angle.sin() as f32, angle.cos() as f32);
                baseline[a] = round(x.values[a] * cos - x.values[b] * sin, x.dtype);
                baseline[b] = round(x.values[b] * cos + x.values[a] * sin, x.dtype);
            }
        }
    }
    let what = format!("apply_rope {what} on {}, {:?} {:?} {config:?}", target.name, x.shape, x.dtype);
    check(&what, got, &baseline, oracle.values(), x.dtype);
    // What is not rotated keeps its bits.
    for (at, (got, x)) in got.iter().zip(&x.values).enumerate() {
        assert!(at % dim < 2 * frequencies.len() || got.to_bits() == x.to_bits(), "{what}: element {at}");
    }
}

struct Case {
    tokens: usize,
    heads: [usize; 2],
    dim: usize,
    rotary_dim: usize,
    theta: f64,
    scaling: RopeScaling,
}

fn run(target: &Target, case: &Case, style: RopeStyle, dtype: DType, view: View, rng: &mut Rng) {
    let config = RopeConfig::new(case.rotary_dim).theta(case.theta).style(style).scaling(case.scaling);
    let rope = Rope::new(&config, 9000, &target.device).expect("a valid configuration");
    assert_eq!((rope.max_positions(), rope.rotary_dim()), (9000, case.rotary_dim));
    let [q, k] = case.heads.map(|heads| Host::random([case.tokens, heads, case.dim], dtype, rng));
    let mut positions: Vec<usize> = (0..case.tokens).map(|_| rng.below(9000)).collect();
    if let Some(first) = positions.first_mut() {
        *first = 8999;
    }
    let on_device = Positions::new(&positions, &target.device).expect("positions");
    let (got_q, got_k) =
        apply_rope(q.view(view, &target.device), k.view(view, &target.device), &rope, &on_device)
            .expect("it fits");
    for (what, x, got) in [("q", &q, got_q), ("k", &k, got_k)] {
        assert_eq!((got.dims(), got.dtype()), (x.shape, dtype));
        compare(&format!("{what} {view:?}"), target, &config, style, x, &positions, &Host::of(got).values);
    }
}

fn dims_styles_and_scalings(target: Target) {
    let rng = &mut Rng::new("rope");
    let mut cases = Vec::new();
    for (dim, rotary_dim) in
        [(32, 32), (40, 40), (64, 32), (80, 20), (96, 2), (128, 128), (192, 64), (256, 256)]
    {
        for (theta, scaling) in [
            (1e4, RopeScaling::None),
            (5e5, LLAMA3),
            (1e4, RopeScaling::Linear { factor: 4.0 }),
            (1e6, RopeScaling::Linear { factor: 0.5 }),
        ] {
            let tokens = [1, 17, 37, 54][cases.len() % 4];
            let heads = [[4, 2], [7, 1], [3, 3]][cases.len() % 3];
            cases.push(Case { tokens, heads, dim, rotary_dim, theta, scaling });
        }
    }
    for dtype in target.dtypes() {
        for case in target.thin(7, cases.iter().collect()) {
            STYLES.into_iter().for_each(|style| run(&target, case, style, dtype, View::Whole, rng));
        }
    }
}

fn views(target: Target) {
    let rng = &mut Rng::new("rope views");
    let case =
        Case { tokens: 5, heads: [6, 2], dim: 40, rotary_dim: 32, theta: 1e4, scaling: RopeScaling::None };
    for dtype in target.dtypes() {
        for view in VIEWS {
            STYLES.into_iter().for_each(|style| run(&target, &case, style, dtype, view, rng));
        }
    }
}

fn no_tokens(target: Target) {
    for dtype in target.dtypes() {
        let rope = Rope::new(&RopeConfig::new(64), 16, &target.device).expect("valid");
        let [q, k] = [8, 2].map(|heads| Host::full([0, heads, 64], dtype, 0.0).tensor(&target.device));
        let positions = Positions::new(&[], &target.device).expect("no positions");
        let (q, k) = apply_rope(q, k, &rope, &positions).expect("it fits");
        assert_eq!((q.dims(), k.dims()), ([0, 8, 64], [0, 2, 64]));
    }
}

/// Position 0 turns nothing: the bits stay.
fn position_zero(target: Target) {
    for dtype in target.dtypes() {
        let rope = Rope::new(&RopeConfig::new(64), 1, &target.device).expect("valid");
        let x = Host::random([3, 2, 64], dtype, &mut Rng::new("rope zero"));
        let positions = Positions::new(&[0, 0, 0], &target.device).expect("positions");
        let (q, k) = apply_rope(x.tensor(&target.device), x.tensor(&target.device), &rope, &positions)
            .expect("it fits");
        assert_eq!((Host::of(q).values, Host::of(k).values), (x.values.clone(), x.values));
    }
}

/// Far positions are as exact as near ones: angles are computed in f64.
fn far_positions(target: Target) {
    let config = RopeConfig::new(16).theta(1e4);
    let rope = Rope::new(&config, 131_072, &target.device).expect("valid");
    for dtype in target.dtypes() {
        let x = Host::random([4, 1, 16], dtype, &mut Rng::new("rope far"));
        let at = [131_071, 100_003, 65_537, 99_999];
        let positions = Positions::new(&at, &target.device).expect("positions");
        let (q, _) = apply_rope(x.tensor(&target.device), x.tensor(&target.device), &rope, &positions)
            .expect("it fits");
        compare("far", &target, &config, RopeStyle::Halves, &x, &at, &Host::of(q).values);
    }
}

/// `Positions::continuing` numbers the tokens of each request from its offset.
fn continuing(target: Target) {
    let rope = Rope::new(&RopeConfig::new(32), 200, &target.device).expect("valid");
    let indptr = Indptr::from_lengths(&[3, 0, 1, 2], &target.device).expect("valid");
    let continuing = Positions::continuing(&indptr, &[10, 7, 0, 150]).expect("valid");
    let listed = Positions::new(&[10, 11, 12, 0, 150, 151], &target.device).expect("valid");
    assert_eq!((continuing.len(), continuing.is_empty()), (6, false));
    let x = Host::random([6, 2, 32], DTYPES[0], &mut Rng::new("rope continuing"));
    let rotated = |positions: &Positions| {
        let x = || x.tensor(&target.device);
        Host::of(apply_rope(x(), x(), &rope, positions).expect("it fits").0).values
    };
    assert_eq!(rotated(&continuing), rotated(&listed));
}

/// Hugging Face's numbers for Llama 3.1 8B: `rope_scaling` of its configuration, theta 500 000, 128 elements.
#[test]
fn llama3_frequencies() {
    let scaled: Vec<f64> = RopeConfig::new(128).theta(5e5).scaling(LLAMA3).frequencies().collect();
    let plain: Vec<f64> = RopeConfig::new(128).theta(5e5).frequencies().collect();
    assert_eq!(scaled.len(), 64);
    for (pair, (&scaled, &plain)) in scaled.iter().zip(&plain).enumerate() {
        let wavelength = std::f64::consts::TAU / plain;
        let expected = if wavelength < 8192.0 / 4.0 {
            plain
        } else if wavelength > 8192.0 {
            plain / 8.0
        } else {
            let smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
            (1.0 - smooth) * plain / 8.0 + smooth * plain
        };
        assert!((scaled - expected).abs() < 1e-12 * expected, "pair {pair}: {scaled}, {expected}");
    }
    assert!((plain[1] - 5e5_f64.powf(-2.0 / 128.0)).abs() < 1e-15);
}
