//! The launches of the fixed list: at least one of each kernel, at the shapes of Llama 3 8B.

use burn_flashinfer_kernels::attention::{
    self, Alignment, Choice, HeadDims, Inputs, Plan, Problem, Ranges, RequestShape, Split, Standard,
};
use burn_flashinfer_kernels::gemm::quantized::{
    self as quantized_gemm, QuantizedGemm, ScaledGemm, Scales, Weight, WeightFormat,
};
use burn_flashinfer_kernels::offline::{self, Kind, tensor};
use burn_flashinfer_kernels::{DeviceProfile, Fp8, KvLayout, Quantized, Refusal};
use burn_flashinfer_kernels::{
    activation, append, bits, gemm, merge, norm, pages, rope, sampling, segment_gemm,
};
use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind, IntKind};
use cubecl::prelude::TensorBinding;

type Run = Box<dyn Fn(&Client) -> Result<(), Refusal>>;

/// One call of a launcher, by name.
pub struct Case {
    pub name: String,
    pub launch: Run,
}

const F32: ElemType = ElemType::Float(FloatKind::F32);
const BF16: ElemType = ElemType::Float(FloatKind::BF16);
const I32: ElemType = ElemType::Int(IntKind::I32);

const TOKENS: usize = 64;
const WIDTH: usize = 4096;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const DIM: usize = 128;
const PAGES: usize = 256;
const PAGE: usize = 16;
const VOCAB: usize = 128_256;
const DRAFTED: usize = 4;

/// All cases.
pub fn cases() -> Vec<Case> {
    attentions().into_iter().chain(rows()).chain(samplers()).collect()
}

fn case(name: impl Into<String>, launch: impl Fn(&Client) -> Result<(), Refusal> + 'static) -> Case {
    Case { name: name.into(), launch: Box::new(launch) }
}

fn attentions() -> Vec<Case> {
    const PAGED: Kind = Kind::Paged { page_size: PAGE };
    let (decode, prefill) = (vec![(1, 4096); 64], vec![(2048, 2048); 4]);
    let plain = Problem {
        dims: HeadDims { qk: DIM, vo: DIM },
        dtype: BF16,
        kv_dtype: BF16.into(),
        q_heads: HEADS,
        kv_heads: KV_HEADS,
        scale: 0.088_388_346,
        align: Alignment { qk: 64, vo: 64 },
        fp8_mma: false,
    };
    let causal = Standard { causal: true, ..Standard::new(plain.scale) };
    let trees = Standard { ranges: Ranges::Trees, ..causal };
    let of_dim = |dim| Problem { dims: HeadDims { qk: dim, vo: dim }, ..plain };
    let mut cases = vec![];
    let mut add = |name: String, problem, variant: Standard, lengths: &[(usize, usize)], kind, split| {
        let problem = Problem { scale: variant.logit_scale(), ..problem };
        let [sinks, slopes] = ["-sinks", "-alibi"].map(|given| name.contains(given));
        let page_size = if kind == PAGED { PAGE } else { 1 };
        let requests = RequestShape::following(lengths.iter().copied(), page_size);
        cases.push(case(name, move |client| {
            let device = DeviceProfile::of(client);
            let plan = Plan::new(&device, &problem, &variant, &requests, Choice::Auto, split)?;
            let mut attention = offline::attention(client, &problem, &requests, kind);
            let of_heads = || tensor(client, &[HEADS], 4);
            // Three numbers for each token of a tree.
            let table = requests.len() + 1 + 3 * requests.iter().map(|request| request.qo_len).sum::<usize>();
            attention.inputs = Inputs {
                sinks: sinks.then(of_heads),
                slopes: slopes.then(of_heads),
                ints: (variant.ranges == Ranges::Trees).then(|| tensor(client, &[table], 4)),
                ..Inputs::default()
            };
            // SAFETY: the recorder runs no kernel.
            unsafe { attention::launch(client, attention, &variant, plan.upload(client)) }
        }));
    };
    for (phase, lengths) in [("decode", &decode), ("prefill", &prefill)] {
        for (kind_name, kind) in [("ragged", Kind::Ragged), ("paged", PAGED)] {
            for dim in [64, 128, 256] {
                let name = format!("{phase}-{kind_name}-{dim}-bf16");
                add(name, of_dim(dim), causal, lengths, kind, Split::Never);
            }
        }
        let capped = Standard { window_left: Some(1023), soft_cap: Some(30.0), ..causal };
        add(format!("{phase}-paged-128-bf16-cap-window"), plain, capped, lengths, PAGED, Split::Never);
        for given in ["sinks", "alibi", "sinks-alibi"] {
            add(format!("{phase}-paged-128-bf16-{given}"), plain, causal, lengths, PAGED, Split::Never);
        }
        add(format!("{phase}-paged-128-bf16-trees"), plain, trees, lengths, PAGED, Split::Never);
        for (name, format) in [("e4m3", Fp8::E4m3), ("e5m2", Fp8::E5m2)] {
            let codes = Problem { kv_dtype: format.into(), ..plain };
            add(format!("{phase}-paged-128-bf16-{name}"), codes, causal, lengths, PAGED, Split::Never);
        }
        let single = Problem { dtype: F32, kv_dtype: F32.into(), ..plain };
        add(format!("{phase}-paged-128-f32"), single, causal, lengths, PAGED, Split::Never);
        let codes = Problem { kv_dtype: Fp8::E4m3.into(), ..plain };
        add(format!("{phase}-paged-128-bf16-e4m3"), codes, causal, lengths, PAGED, Split::Never);
        let products = Problem { fp8_mma: true, ..codes };
        add(format!("{phase}-paged-128-bf16-e4m3-fp8-mma"), products, causal, lengths, PAGED, Split::Never);
    }
    let two = Problem { dims: HeadDims { qk: 192, vo: 128 }, ..plain };
    add("prefill-ragged-192-128-bf16".into(), two, causal, &prefill, Kind::Ragged, Split::Never);
    let mixed = [prefill.as_slice(), &decode].concat();
    add("mixed-paged-128-bf16".into(), plain, causal, &mixed, PAGED, Split::Never);
    for dim in [128, 256] {
        // Hopper copies the keys of long requests to clusters.
        let name = format!("prefill-paged-{dim}-bf16-cluster");
        add(name, of_dim(dim), causal, &[(16384, 16384)], PAGED, Split::Never);
    }
    add(
        "prefill-ragged-128-bf16-cluster-split".into(),
        plain,
        causal,
        &[(2048, 65536)],
        Kind::Ragged,
        Split::Auto,
    );
    add("decode-paged-128-bf16-split".into(), plain, causal, &[(1, 8192)], PAGED, Split::Auto);
    cases
}

/// Operations on rows of hidden states and of heads.
fn rows() -> Vec<Case> {
    let mut cases = vec![];
    for (name, add, gemma, fp8) in
        [("", false, false, false), ("add-gemma-", true, true, false), ("fp8-", false, false, true)]
    {
        cases.push(case(format!("{name}rms-norm-bf16"), move |client| {
            let (x, weight) = (tensor(client, &[TOKENS, WIDTH], 2), tensor(client, &[WIDTH], 2));
            let norm = norm::Norm {
                add: add.then(|| norm::Add { residual: tensor(client, &[TOKENS, WIDTH], 2), sum: None }),
                scaling: if gemma { norm::Scaling::GemmaRms(weight) } else { norm::Scaling::Rms(weight) },
                y: fp8.then(|| tensor(client, &[TOKENS, WIDTH], 1)),
                quantized: fp8.then(|| quantized(client)),
                epsilon: 1e-5,
                x,
            };
            norm::launch(client, norm, BF16, BF16)
        }));
    }
    cases.push(case("layer-norm-f32", |client| {
        let weight = || tensor(client, &[WIDTH], 4);
        let norm = norm::Norm {
            x: tensor(client, &[TOKENS, WIDTH], 4),
            add: None,
            scaling: norm::Scaling::Layer { gamma: weight(), beta: weight() },
            y: None,
            quantized: None,
            epsilon: 1e-5,
        };
        norm::launch(client, norm, F32, F32)
    }));
    for (name, fp8) in [("rope-append-bf16", false), ("rope-append-fp8", true)] {
        cases.push(case(name, move |client| {
            let rope = rope::Rope {
                q: tensor(client, &[TOKENS, HEADS, DIM], 2),
                k: tensor(client, &[TOKENS, KV_HEADS, DIM], 2),
                cos_sin: tensor(client, &[8192, DIM], 4),
                positions: tensor(client, &[TOKENS], 4),
                style: rope::Style::Halves,
                norm: None,
                q_out: None,
                q_quantized: None,
                to: rope::To::Pages {
                    v: tensor(client, &[TOKENS, KV_HEADS, DIM], 2),
                    pools: pools(client, fp8),
                    slots: tensor(client, &[TOKENS], 4),
                },
            };
            // SAFETY: the recorder runs no kernel.
            unsafe { rope::launch(client, rope, BF16) }
        }));
    }
    cases.push(case("norm-rope-interleaved-bf16", |client| {
        let weight = || tensor(client, &[DIM], 2);
        let rope = rope::Rope {
            q: tensor(client, &[TOKENS, HEADS, DIM], 2),
            k: tensor(client, &[TOKENS, KV_HEADS, DIM], 2),
            cos_sin: tensor(client, &[8192, DIM / 2], 4),
            positions: tensor(client, &[TOKENS], 4),
            style: rope::Style::Interleaved,
            norm: Some(rope::HeadNorm { q_weight: weight(), k_weight: weight(), epsilon: 1e-6 }),
            q_out: None,
            q_quantized: None,
            to: rope::To::InPlace,
        };
        // SAFETY: the recorder runs no kernel.
        unsafe { rope::launch(client, rope, BF16) }
    }));
    for (name, fp8) in [("bf16", false), ("fp8", true)] {
        cases.push(case(format!("append-{name}"), move |client| {
            // SAFETY: the recorder runs no kernel.
            unsafe { append::append(client, tokens(client, fp8), BF16) }
        }));
        cases.push(case(format!("gather-{name}"), move |client| {
            // SAFETY: the recorder runs no kernel.
            unsafe { append::gather(client, tokens(client, fp8), BF16) }
        }));
        cases.push(case(format!("silu-and-mul-{name}"), move |client| {
            let act = activation::ActAndMul {
                x: tensor(client, &[TOKENS, 2 * WIDTH], 2),
                y: tensor(client, &[TOKENS, WIDTH], if fp8 { 1 } else { 2 }),
                quantized: fp8.then(|| quantized(client)),
                activation: activation::Activation::Silu,
            };
            activation::launch(client, act, BF16)
        }));
    }
    cases.extend(merges());
    for (rows, dtype, name) in
        [(4, F32, "f32"), (4, BF16, "bf16"), (32, BF16, "bf16"), (64, BF16, "bf16"), (2048, BF16, "bf16")]
    {
        cases.push(case(format!("gemm-{rows}-{name}"), move |client| {
            let [x, weight, y] = [rows, WIDTH, rows].map(|rows| tensor(client, &[rows, WIDTH], dtype.size()));
            gemm::launch(client, gemm::Gemm::product(x, weight, y), dtype)
        }));
    }
    for (rows, name, format) in [
        (1, "e4m3", WeightFormat::E4m3(Scales::PerChannel)),
        (16, "e4m3-blocks", WeightFormat::E4m3(Scales::Block128)),
        (1, "int4", WeightFormat::Int4 { group: 128 }),
        (64, "int4", WeightFormat::Int4 { group: 128 }),
        (128, "e4m3", WeightFormat::E4m3(Scales::PerTensor)),
        (128, "int4", WeightFormat::Int4 { group: 32 }),
    ] {
        cases.push(case(format!("gemm-{rows}-{name}"), move |client| {
            let weight = Weight {
                codes: tensor(client, &[WIDTH, WIDTH * format.bits() / 8], 1),
                scales: tensor(client, &format.scales(WIDTH, WIDTH), 4),
                format,
            };
            let [x, y] = [(); 2].map(|()| tensor(client, &[rows, WIDTH], 2));
            quantized_gemm::launch(client, QuantizedGemm { x, weight, y }, BF16)
        }));
    }
    for (rows, name, scales) in [
        (16, "channel", Scales::PerChannel),
        (128, "channel", Scales::PerChannel),
        (128, "blocks", Scales::Block128),
    ] {
        cases.push(case(format!("scaled-gemm-{rows}-{name}"), move |client| {
            let format = WeightFormat::E4m3(scales);
            let [x, codes] = [rows, WIDTH].map(|rows| tensor(client, &[rows, WIDTH], 1));
            let scales = tensor(client, &format.scales(WIDTH, WIDTH), 4);
            let (x_scales, y) = (tensor(client, &[rows], 4), tensor(client, &[rows, WIDTH], 2));
            let (weight, epilogue) = (Weight { codes, scales, format }, Default::default());
            let gemm = ScaledGemm { x, x_scales, weight, y, epilogue };
            quantized_gemm::launch_scaled(client, gemm, BF16)
        }));
    }
    for (tile_rows, by_input) in [(1, true), (4, false), (16, true), (128, true), (128, false)] {
        cases.push(case(format!("segment-gemm-{tile_rows}-{by_input}-bf16"), move |client| {
            let gemm = segment_gemm::SegmentGemm {
                x: tensor(client, &[TOKENS, WIDTH], 2),
                weights: tensor(client, &[8, WIDTH, WIDTH], 2),
                y: tensor(client, &[TOKENS, WIDTH], 2),
                work_items: tensor(client, &[segment_gemm::WORK_WORDS * TOKENS], 4),
                tile_rows,
                by_input,
                epilogue: Default::default(),
            };
            // SAFETY: the recorder runs no kernel.
            unsafe { segment_gemm::launch(client, gemm, BF16) }
        }));
    }
    cases.push(case("pack-bits", |client| {
        let pack = bits::PackBits {
            bits: tensor(client, &[4096], 4),
            bytes: tensor(client, &[512], 1),
            segments: None,
            order: bits::BitOrder::Big,
        };
        // SAFETY: the recorder runs no kernel.
        unsafe { bits::pack(client, pack, I32) }
    }));
    cases.push(case("unpack-bits", |client| {
        let unpack = bits::UnpackBits {
            bytes: tensor(client, &[512], 1),
            bits: tensor(client, &[4096], 1),
            segments: None,
            order: bits::BitOrder::Little,
        };
        // SAFETY: the recorder runs no kernel.
        unsafe { bits::unpack(client, unpack) }
    }));
    cases
}

fn merges() -> Vec<Case> {
    let state = |client: &Client, axes: &[usize]| merge::State {
        v: tensor(client, &[axes, &[DIM]].concat(), 2),
        s: tensor(client, axes, 4),
    };
    let launch = |client: &Client, states, in_place: bool| {
        let merge = merge::Merge {
            states,
            v: (!in_place).then(|| tensor(client, &[TOKENS, HEADS, DIM], 2)),
            s: (!in_place).then(|| tensor(client, &[TOKENS, HEADS], 4)),
        };
        // SAFETY: the recorder runs no kernel.
        unsafe { merge::launch(client, merge, BF16) }
    };
    vec![
        case("merge-two-bf16", move |client| {
            let [a, b] = [(); 2].map(|()| state(client, &[TOKENS, HEADS]));
            launch(client, merge::States::Two { a, b, mask: None }, true)
        }),
        case("merge-equal-bf16", move |client| {
            launch(client, merge::States::Equal(state(client, &[TOKENS, 4, HEADS])), false)
        }),
        case("merge-ragged-bf16", move |client| {
            let indptr = tensor(client, &[TOKENS + 1], 4);
            launch(
                client,
                merge::States::Ragged { states: state(client, &[4 * TOKENS, HEADS]), indptr },
                false,
            )
        }),
    ]
}

fn samplers() -> Vec<Case> {
    let mut cases = vec![];
    let of_rows = |client: &Client| tensor(client, &[TOKENS], 4);
    let of_vocab = |client: &Client, size| tensor(client, &[TOKENS, VOCAB], size);
    let draws = |client: &Client| tensor(client, &[TOKENS, sampling::DRAW_WORDS], 4);
    for filters in [0, 1, 2, 4, 7] {
        cases.push(case(format!("sample-probs-{filters}"), move |client| {
            let of = |bit: usize| (filters & bit != 0).then(|| of_rows(client));
            let sample = sampling::SampleProbs {
                probs: of_vocab(client, 4),
                top_k: of(1),
                top_p: of(2),
                min_p: of(4),
                draws: draws(client),
                samples: of_rows(client),
                valid: of_rows(client),
            };
            // SAFETY: the recorder runs no kernel.
            unsafe { sampling::sample_probs(client, sample) }
        }));
    }
    for (dtype, name) in [(BF16, "bf16"), (F32, "f32")] {
        cases.push(case(format!("sample-logits-{name}"), move |client| {
            let sample = sampling::SampleLogits {
                logits: of_vocab(client, dtype.size()),
                temperature: of_rows(client),
                draws: draws(client),
                samples: of_rows(client),
                valid: of_rows(client),
            };
            // SAFETY: the recorder runs no kernel.
            unsafe { sampling::sample_logits(client, sample, dtype) }
        }));
        cases.push(case(format!("softmax-{name}"), move |client| {
            let softmax = sampling::Softmax {
                logits: of_vocab(client, dtype.size()),
                temperature: of_rows(client),
                probs: of_vocab(client, 4),
            };
            sampling::softmax(client, softmax, dtype)
        }));
        cases.push(case(format!("top-k-mask-logits-{name}"), move |client| {
            let filtered = sampling::Filter {
                x: of_vocab(client, dtype.size()),
                by: sampling::Limit::TopK(of_rows(client)),
                y: of_vocab(client, dtype.size()),
                output: sampling::Output::Masked,
            };
            sampling::filter(client, filtered, dtype)
        }));
    }
    cases.push(case("softmax-short-f32", move |client| {
        let softmax = sampling::Softmax {
            logits: tensor(client, &[TOKENS, 1000], 4),
            temperature: of_rows(client),
            probs: tensor(client, &[TOKENS, 1000], 4),
        };
        sampling::softmax(client, softmax, F32)
    }));
    cases.push(case("top-p-renorm-probs", move |client| {
        let filtered = sampling::Filter {
            x: of_vocab(client, 4),
            by: sampling::Limit::TopP(of_rows(client)),
            y: of_vocab(client, 4),
            output: sampling::Output::Renormalised,
        };
        sampling::filter(client, filtered, F32)
    }));
    cases.push(case("top-k-bf16", move |client| {
        let top = sampling::TopK {
            x: of_vocab(client, 2),
            values: tensor(client, &[TOKENS, 64], 2),
            ids: tensor(client, &[TOKENS, 64], 4),
        };
        sampling::top_k(client, top, BF16)
    }));
    cases.push(case("penalties-bf16", move |client| {
        let penalties = sampling::Penalties {
            logits: of_vocab(client, 2),
            prompt: of_vocab(client, 4),
            output: of_vocab(client, 4),
            repetition: of_rows(client),
            frequency: of_rows(client),
            presence: of_rows(client),
            y: None,
        };
        sampling::apply_penalties(client, penalties, BF16)
    }));
    cases.push(case("speculative", move |client| {
        let tensor = |shape: &[usize]| tensor(client, shape, 4);
        let (draft_ids, counts) = (tensor(&[TOKENS, DRAFTED]), tensor(&[TOKENS, sampling::COUNTS]));
        let verify = sampling::Verify {
            draft_probs: tensor(&[TOKENS, DRAFTED, VOCAB]),
            draft_ids: draft_ids.clone(),
            target_probs: tensor(&[TOKENS, DRAFTED + 1, VOCAB]),
            draws: draws(client),
            counts: counts.clone(),
            residual: of_vocab(client, 4),
        };
        sampling::verify(client, verify)?;
        let emit = sampling::Emit {
            draft_ids,
            samples: of_rows(client),
            valid: of_rows(client),
            counts,
            ids: tensor(&[TOKENS, DRAFTED + 1]),
        };
        sampling::emit(client, emit)
    }));
    cases
}

fn quantized(client: &Client) -> Quantized {
    Quantized { format: Fp8::E4m3, scale: tensor(client, &[1], 4) }
}

fn pools(client: &Client, fp8: bool) -> pages::Pools {
    let pool = || tensor(client, &[PAGES, PAGE, KV_HEADS, DIM], if fp8 { 1 } else { 2 });
    let scale = || tensor(client, &[1], 4);
    pages::Pools {
        k: pool(),
        v: pool(),
        layout: KvLayout::Nhd,
        quantized: fp8.then(|| pages::KvQuantized {
            format: Fp8::E4m3.into(),
            k_scale: scale(),
            v_scale: scale(),
        }),
    }
}

fn tokens(client: &Client, fp8: bool) -> append::Tokens {
    let kv = || -> TensorBinding { tensor(client, &[TOKENS, KV_HEADS, DIM], 2) };
    append::Tokens { pools: pools(client, fp8), k: kv(), v: kv(), slots: tensor(client, &[TOKENS], 4) }
}
