//! RoPE with what stands beside it: norms of heads, 8 bits, the write to pages; and tables made elsewhere.

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_flashinfer::{
    Fp8, KvLayout, KvPages, PageTable, Positions, QkNorm, Qkv, Quantization, Rope, RopeConfig, RopeScaling,
    RopeStyle, SlotMapping, append_paged_kv, apply_rope, gather_paged_kv, qk_rms_norm_rope, reference,
    rope_append_paged_kv, rope_quantize_fp8,
};

use crate::devices::{Target, device_tests};
use crate::fp8::{FORMATS, check_codes, codes};
use crate::support::{Host, Rng, VIEWS, View, address, bits, check, refused, round};

device_tests!(
    into_pages_of_numbers,
    into_pages_of_codes,
    quantized,
    in_place,
    tables_made_elsewhere,
    yarn,
    refusals
);

const STYLES: [RopeStyle; 2] = [RopeStyle::Halves, RopeStyle::Interleaved];
const EPSILON: f32 = 1e-6;

/// Tokens of a layer.
struct Case {
    q: Host<3>,
    k: Host<3>,
    v: Host<3>,
    weights: [Host<1>; 2],
    positions: Vec<usize>,
    config: RopeConfig,
    style: RopeStyle,
}

impl Case {
    fn new(dim: usize, rotary_dim: usize, style: RopeStyle, dtype: DType, rng: &mut Rng) -> Self {
        let tokens = 7;
        let random = |heads, dim, rng: &mut Rng| Host::random([tokens, heads, dim], dtype, rng);
        Self {
            q: random(5, dim, rng),
            k: random(2, dim, rng),
            v: random(2, dim / 2, rng),
            weights: [(); 2].map(|()| Host::random([dim], dtype, rng)),
            positions: (0..tokens).map(|_| rng.below(300)).collect(),
            config: RopeConfig::new(rotary_dim).style(style),
            style,
        }
    }

    fn rope(&self, target: &Target) -> (Rope, Positions) {
        let rope = Rope::new(&self.config, 300, &target.device).expect("valid");
        (rope, Positions::new(&self.positions, &target.device).expect("positions"))
    }

    fn norm(&self, target: &Target) -> QkNorm {
        let [q_weight, k_weight] = self.weights.each_ref().map(|weight| weight.tensor(&target.device));
        QkNorm { q_weight, k_weight, epsilon: EPSILON }
    }

    fn qkv(&self, view: View, target: &Target) -> Qkv {
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|x| x.view(view, &target.device));
        Qkv { q, k, v }
    }

    /// Queries (0) or keys (1) rotated, after the norm of each head if `normed`: in f64, and in f32 before it is rounded.
    fn expected(&self, which: usize, normed: bool) -> (Vec<f64>, Vec<f32>) {
        let x = [&self.q, &self.k][which];
        let dim = x.shape[2];
        let weight = &self.weights[which];
        let (mut exact, mut wide) = (x.heads(), x.values.clone());
        if normed {
            let norm = reference::rms_norm(&x.f64(), &weight.f64(), f64::from(EPSILON)).expect("rows");
            exact = reference::Heads::new(x.shape, norm).expect("as many");
            for head in wide.chunks_exact_mut(dim) {
                let mean = head.iter().map(|x| x * x).sum::<f32>() / dim as f32;
                let factor = 1.0 / (mean + EPSILON).sqrt();
                head.iter_mut().zip(&weight.values).for_each(|(x, w)| *x = *x * factor * w);
            }
        }
        let frequencies: Vec<f64> = self.config.frequencies().collect();
        let oracle =
            reference::apply_rope(&exact, &frequencies, &self.positions, self.style).expect("it fits");
        for (row, head) in wide.chunks_exact_mut(dim).enumerate() {
            let position = self.positions[row / x.shape[1]];
            for (pair, frequency) in frequencies.iter().enumerate() {
                let (a, b) = match self.style {
                    RopeStyle::Halves => (pair, pair + frequencies.len()),
                    RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
                };
                let angle = position as f64 * frequency;
                let (sin, cos) = (angle.sin() as f32, angle.cos() as f32);
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
            }
        }
        (oracle.values().to_vec(), wide)
    }

    fn check(&self, what: &str, which: usize, normed: bool, got: &[f32]) {
        let (oracle, wide) = self.expected(which, normed);
        let dtype = self.q.dtype;
        let baseline: Vec<f32> = wide.into_iter().map(|x| round(x, dtype)).collect();
        check(what, got, &baseline, &oracle, dtype);
    }
}

const PAGE: usize = 4;
const PAGES: usize = 5;

/// Two requests of 9 and 6 tokens; the slots of 7 tokens of theirs, one of which pads.
fn slots(target: &Target) -> (PageTable, SlotMapping, Vec<Option<usize>>) {
    let table = PageTable::new(&[0, 3, 5], &[4, 0, 2, 1, 3], &[1, 2], PAGE, PAGES, &target.device);
    let table = table.expect("valid");
    let at = [(0, 8), (1, 0), (1, 5), (0, 3), (0, 0), (1, 1), (0, 6)];
    let requests: Vec<_> = at.iter().enumerate().map(|(t, at)| (t != 4).then_some(at.0)).collect();
    let positions: Vec<_> = at.iter().map(|at| at.1).collect();
    let mapping = SlotMapping::new(&table, &requests, &positions).expect("slots");
    let slots = requests
        .iter()
        .zip(&positions)
        .map(|(request, position)| request.map(|r| table.pages(r)[position / PAGE] * PAGE + position % PAGE));
    let slots = slots.collect();
    (table, mapping, slots)
}

/// One launch is what three are, to the bit: the norms aside, which are rounded once instead of twice.
fn into_pages_of_numbers(target: Target) {
    let rng = &mut Rng::new("rope append");
    for dtype in target.dtypes() {
        for (at, (dim, rotary_dim)) in
            [(64, 64), (40, 10), (128, 64), (256, 256), (18, 6)].into_iter().enumerate()
        {
            let (style, layout) = (STYLES[at % 2], [KvLayout::Nhd, KvLayout::Hnd][at / 2 % 2]);
            let case = Case::new(dim, rotary_dim, style, dtype, rng);
            let (rope, positions) = case.rope(&target);
            let (_, slots, listed) = slots(&target);
            let pool = |dim| {
                let shape = match layout {
                    KvLayout::Nhd => [PAGES, PAGE, 2, dim],
                    KvLayout::Hnd => [PAGES, 2, PAGE, dim],
                };
                Host::full(shape, dtype, f32::NAN).tensor(&target.device)
            };
            let pages = || KvPages::new(pool(dim), pool(dim / 2), layout).expect("pages");
            let what = format!("{dim}/{rotary_dim} {style:?} {layout:?} {dtype:?} on {}", target.name);
            let view = VIEWS[at % VIEWS.len()];
            for normed in [false, true] {
                let norm = case.norm(&target);
                let mut fused = pages();
                let q = rope_append_paged_kv(
                    &mut fused,
                    case.qkv(view, &target),
                    normed.then_some(&norm),
                    &rope,
                    &positions,
                    &slots,
                );
                let q = q.expect("it fits");
                assert_eq!((q.dims(), q.dtype()), (case.q.shape, dtype));
                case.check(&format!("q {what}"), 0, normed, &Host::of(q.clone()).values);

                let Qkv { q: plain_q, k: plain_k, v } = case.qkv(View::Whole, &target);
                let rotated = if normed {
                    qk_rms_norm_rope(plain_q, plain_k, &norm, &rope, &positions)
                } else {
                    apply_rope(plain_q, plain_k, &rope, &positions)
                };
                let (plain_q, plain_k) = rotated.expect("it fits");
                case.check(&format!("k {what}"), 1, normed, &Host::of(plain_k.clone()).values);
                let mut apart = pages();
                append_paged_kv(&mut apart, plain_k, v, &slots).expect("it fits");
                assert_eq!(bits(q), bits(plain_q), "{what}");
                let [fused, apart] = [fused, apart].map(|pages| {
                    let (k, v) = pages.into_tensors().expect("numbers");
                    // NaN of any bits: nobody wrote there.
                    [k, v].map(|pool| {
                        let values = Host::of(pool).values.into_iter();
                        values.map(|x| (!x.is_nan()).then_some(x.to_bits())).collect::<Vec<_>>()
                    })
                });
                assert!(fused == apart, "{what}");
                let written = fused[0].iter().filter(|x| x.is_some()).count();
                assert_eq!(written, listed.iter().flatten().count() * 2 * dim, "{what}");
            }
        }
    }
}

/// Keys in 8 bits, straight from f32.
fn into_pages_of_codes(target: Target) {
    let rng = &mut Rng::new("rope append fp8");
    for dtype in target.dtypes() {
        for (at, format) in FORMATS.into_iter().enumerate() {
            let (dim, rotary_dim) = [(64, 64), (40, 10), (128, 64)][at];
            let case = Case::new(dim, rotary_dim, STYLES[at % 2], dtype, rng);
            let (rope, positions) = case.rope(&target);
            let (_, slots, listed) = slots(&target);
            let pool = |dim| Tensor::<4, Int>::zeros([PAGES, PAGE, 2, dim], (&target.device, DType::U8));
            let mut pages = KvPages::new_fp8(pool(dim), pool(dim / 2), KvLayout::Nhd, format).expect("pages");
            let scales = [[0.02, 0.013], [0.3, 0.01]];
            let [k_scale, v_scale] = scales
                .map(|scales| Tensor::<1>::from_data(TensorData::from(scales), (&target.device, DType::F32)));
            pages.set_scales(k_scale, v_scale).expect("scales");
            let normed = at == 1;
            let norm = case.norm(&target);
            let q = rope_append_paged_kv(
                &mut pages,
                case.qkv(VIEWS[at], &target),
                normed.then_some(&norm),
                &rope,
                &positions,
                &slots,
            );
            let what = format!("{format:?} {dim}/{rotary_dim} {dtype:?} on {}", target.name);
            case.check(&what, 0, normed, &Host::of(q.expect("it fits")).values);
            let (k_oracle, k_wide) = case.expected(1, normed);
            let (k, v) = pages.codes().expect("codes");
            let inputs = [(k, dim, k_oracle, k_wide), (v, dim / 2, case.v.f64(), case.v.values.clone())];
            for (part, (got, dim, oracle, wide)) in inputs.into_iter().enumerate() {
                let got = codes(got.clone());
                let mut unwritten = [true; PAGES * PAGE];
                for (token, slot) in listed.iter().enumerate() {
                    let Some(slot) = *slot else { continue };
                    unwritten[slot] = false;
                    for (head, scale) in scales[part].into_iter().enumerate() {
                        let [from, to] = [token, slot].map(|row| (row * 2 + head) * dim);
                        check_codes(
                            &what,
                            format,
                            &got[to..to + dim],
                            &wide[from..from + dim],
                            &oracle[from..from + dim],
                            scale,
                        );
                    }
                }
                for (slot, row) in got.chunks_exact(2 * dim).enumerate() {
                    assert!(!unwritten[slot] || row.iter().all(|&code| code == 0), "{what}: slot {slot}");
                }
            }
        }
    }
}

fn quantized(target: Target) {
    let rng = &mut Rng::new("rope quantize");
    for dtype in target.dtypes() {
        for (at, format) in FORMATS.into_iter().enumerate() {
            let (dim, rotary_dim) = [(128, 128), (40, 10), (64, 32)][at];
            let case = Case::new(dim, rotary_dim, STYLES[at % 2], dtype, rng);
            let (rope, positions) = case.rope(&target);
            let Qkv { q, k, .. } = case.qkv(VIEWS[at], &target);
            let [q_by, k_by] = [0.02_f32, 0.007].map(|scale| {
                let scale = Tensor::<1>::from_data([scale], (&target.device, DType::F32));
                Quantization::new(format, scale).expect("a scale")
            });
            let (q, k) = rope_quantize_fp8(q, k, &rope, &positions, &q_by, &k_by).expect("it fits");
            let what = format!("{format:?} {dim}/{rotary_dim} {dtype:?} on {}", target.name);
            for (which, (got, scale)) in [(q, 0.02), (k, 0.007)].into_iter().enumerate() {
                let (oracle, wide) = case.expected(which, false);
                check_codes(&what, format, &codes(got), &wide, &oracle, scale);
            }
        }
    }
}

/// Tensors without another owner are rotated where they are, clones keep their numbers.
fn in_place(target: Target) {
    let rng = &mut Rng::new("rope in place");
    for dtype in target.dtypes() {
        let case = Case::new(64, 32, RopeStyle::Halves, dtype, rng);
        let (rope, positions) = case.rope(&target);
        let Qkv { q, k, .. } = case.qkv(View::Whole, &target);
        let before = [&q, &k].map(address);
        let (q, k) = apply_rope(q, k, &rope, &positions).expect("it fits");
        assert_eq!([&q, &k].map(address), before, "{} {dtype:?}", target.name);
        case.check("in place", 0, false, &Host::of(q).values);
        case.check("in place", 1, false, &Host::of(k).values);

        let Qkv { q, k, .. } = case.qkv(View::Whole, &target);
        let clone = q.clone();
        let (rotated, _) = apply_rope(q, k, &rope, &positions).expect("it fits");
        case.check("with a clone", 0, false, &Host::of(rotated).values);
        assert_eq!(bits(clone), bits(case.q.tensor(&target.device)), "{} {dtype:?}", target.name);
    }
}

/// A table made elsewhere is the same as one made here.
fn tables_made_elsewhere(target: Target) {
    let rng = &mut Rng::new("rope table");
    let case = Case::new(64, 32, RopeStyle::Interleaved, DType::F32, rng);
    let frequencies: Vec<f64> = case.config.frequencies().collect();
    let table: Vec<f32> = (0..300)
        .flat_map(|position| {
            let angles = frequencies.iter().map(move |frequency| f64::from(position) * frequency);
            angles.clone().map(|a| a.cos() as f32).chain(angles.map(|a| a.sin() as f32))
        })
        .collect();
    let table = Host { shape: [300, 32], values: table, dtype: DType::F32 };
    // A view whose rows have gaps.
    let wide = Tensor::cat(vec![table.tensor(&target.device), table.tensor(&target.device)], 1);
    let (made, positions) = case.rope(&target);
    for cos_sin in [table.tensor(&target.device), wide.slice([0..300, 32..64])] {
        let given = Rope::from_cos_sin_cache(cos_sin, RopeStyle::Interleaved).expect("a table");
        assert_eq!((given.max_positions(), given.rotary_dim()), (300, 32));
        let [a, b] = [&given, &made].map(|rope| {
            let Qkv { q, k, .. } = case.qkv(View::Whole, &target);
            let (q, k) = apply_rope(q, k, rope, &positions).expect("it fits");
            [bits(q), bits(k)]
        });
        assert_eq!(a, b, "{}", target.name);
    }
    let odd = Tensor::<2>::ones([4, 5], (&target.device, DType::F32));
    refused(
        Rope::from_cos_sin_cache(odd, RopeStyle::Halves),
        "Rope::from_cos_sin_cache: `cos_sin` has shape [4, 5], expected [max_positions, rotary_dim], none of them 0, \
         the second even",
    );
    let half = Tensor::<2>::ones([4, 8], (&target.device, DType::F16));
    refused(
        Rope::from_cos_sin_cache(half, RopeStyle::Halves),
        "Rope::from_cos_sin_cache: `cos_sin` is of type F16, expected F32",
    );
}

/// YaRN by the words of its paper: a pair's turns over the original context decide what becomes of it.
fn yarn(target: Target) {
    let (dim, theta, factor, original) = (128, 1e4, 16.0, 4096);
    let plain: Vec<f64> = RopeConfig::new(dim).theta(theta).frequencies().collect();
    let scaling = RopeScaling::yarn(factor, original);
    let config = RopeConfig::new(dim).theta(theta).scaling(scaling);
    let scaled: Vec<f64> = config.frequencies().collect();
    let turns = |frequency: f64| frequency * original as f64 / std::f64::consts::TAU;
    let last_fast = plain.iter().rposition(|&f| turns(f) > 32.0).expect("some are fast");
    let first_slow = plain.iter().position(|&f| turns(f) < 1.0).expect("some are slow");
    let mut blended = 0;
    for (pair, (&scaled, &plain)) in scaled.iter().zip(&plain).enumerate() {
        if pair <= last_fast {
            assert_eq!(scaled, plain, "pair {pair}");
        } else if pair >= first_slow {
            assert!((scaled * factor / plain - 1.0).abs() < 1e-12, "pair {pair}");
        } else {
            // Evenly, from one whole pair to the other.
            let part = (pair - last_fast) as f64 / (first_slow - last_fast) as f64;
            let expected = plain * (part / factor + 1.0 - part);
            assert!((scaled / expected - 1.0).abs() < 1e-12, "pair {pair}: {scaled}, {expected}");
            blended += 1;
        }
    }
    assert!(blended > 10);
    assert_eq!(config.attention_factor(), 0.1 * 16.0_f64.ln() + 1.0);

    // The table has the factor in it.
    let at = [300, 7];
    let positions = Positions::new(&at, &target.device).expect("positions");
    let x = Host::random([2, 1, dim], DType::F32, &mut Rng::new("yarn"));
    for given in [None, Some(0.5)] {
        let scaling = RopeScaling::Yarn {
            factor,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_positions: original,
            attention_factor: given,
            truncate: true,
        };
        let config = config.scaling(scaling);
        let rope = Rope::new(&config, 301, &target.device).expect("valid");
        let x_on = || x.tensor(&target.device);
        let (q, _) = apply_rope(x_on(), x_on(), &rope, &positions).expect("it fits");
        let oracle = reference::apply_rope(&x.heads(), &scaled, &at, RopeStyle::Halves).expect("fits");
        let by = given.unwrap_or(0.1 * factor.ln() + 1.0);
        let oracle: Vec<f64> = oracle.values().iter().map(|x| x * by).collect();
        let baseline: Vec<f32> = oracle.iter().map(|&x| x as f32).collect();
        check(format!("yarn on {}", target.name), &Host::of(q).values, &baseline, &oracle, DType::F32);
    }
    let refusal = |scaling| Rope::new(&config.scaling(scaling), 8, &target.device);
    refused(
        refusal(RopeScaling::yarn(0.0, 4096)),
        "Rope::new: `scaling.factor` is 0, expected a finite number above 0",
    );
    refused(
        refusal(RopeScaling::yarn(4.0, 0)),
        "Rope::new: `scaling.original_max_positions` is 0, expected at least 1",
    );
}

fn refusals(target: Target) {
    let rng = &mut Rng::new("rope append refusals");
    let case = Case::new(64, 64, RopeStyle::Halves, DType::F32, rng);
    let (rope, positions) = case.rope(&target);
    let (table, slots, _) = slots(&target);
    let pool = |dim| Host::full([PAGES, PAGE, 2, dim], DType::F32, 1.0).tensor(&target.device);
    let mut pages = KvPages::new(pool(64), pool(32), KvLayout::Nhd).expect("pages");
    let mut run = |change: fn(Qkv) -> Qkv, norm: Option<&QkNorm>| {
        let qkv = change(case.qkv(View::Whole, &target));
        rope_append_paged_kv(&mut pages, qkv, norm, &rope, &positions, &slots)
    };
    refused(
        run(|qkv| Qkv { v: qkv.v.slice([0..7, 0..2, 0..31]), ..qkv }, None),
        "rope_append_paged_kv: `v` has shape [7, 2, 31], expected [7, 2, 32], as `slots` and `pages` have it",
    );
    refused(
        run(|qkv| Qkv { q: qkv.q.narrow(0, 0, 6), ..qkv }, None),
        "rope_append_paged_kv: `k` has shape [7, 2, 64], expected [6, kv_heads, 64], as `q`",
    );
    let norm = case.norm(&target);
    let short = QkNorm { k_weight: norm.k_weight.clone().narrow(0, 0, 63), ..norm.clone() };
    refused(
        run(|qkv| qkv, Some(&short)),
        "rope_append_paged_kv: `norm.k_weight` has shape [63], expected [64], the head dimension",
    );
    let negative = QkNorm { epsilon: -1.0, ..norm };
    refused(
        run(|qkv| qkv, Some(&negative)),
        "rope_append_paged_kv: `norm.epsilon` is -1, expected a finite number, at least 0",
    );
    let (k, _) = gather_paged_kv(&pages, &table, DType::F32).expect("it fits");
    assert!(Host::of(k).values.iter().all(|&x| x == 1.0), "a refused call wrote");

    let scale = || Tensor::<1>::ones([1], (&target.device, DType::F32));
    let [e4m3, e5m2] =
        [Fp8::E4m3, Fp8::E5m2].map(|format| Quantization::new(format, scale()).expect("a scale"));
    let Qkv { q, k, .. } = case.qkv(View::Whole, &target);
    refused(
        rope_quantize_fp8(q, k, &rope, &positions, &e4m3, &e5m2),
        "rope_quantize_fp8: `k_quantization` is E5m2, expected E4m3, as `q_quantization`",
    );
}
