//! A cache of 8 bits: where its scales come from, that texts do not depend on how they are written, and what it costs.

use burn::tensor::DType;
use burn_flashinfer::{Fp8, KvLayout, PagedKvCache, SequenceId, gather_paged_kv};
use safetensors::Dtype;

use crate::checkpoint::{Scratch, Stored};
use crate::fixture::{folder, load_with, max_difference};
use crate::generation::{greedy, write};
use crate::program::run;
use crate::quantized;
use crate::resources::{self, write_in_one_cache};
use llama::generate::{Graph, Options};
use llama::kv_cache::{CALIBRATED_TOKENS, KvCacheDtype, KvCacheOptions, KvScales, MARGIN};
use llama::model::Llama;
use llama::perplexity::{Reading, log_probabilities, perplexity};
use llama::quantization::{Quantize, RoundActivations};
use llama::tokenizer::TextTokenizer;
use llama::weights::LoadOptions;

const HEADS: usize = 2;

fn options(dtype: KvCacheDtype, scales: KvScales) -> LoadOptions {
    let kv_cache = KvCacheOptions { dtype, scales };
    LoadOptions { dtype: Some(DType::F32), kv_cache, ..LoadOptions::default() }
}

fn open(name: &str, dtype: KvCacheDtype, scales: KvScales) -> Llama {
    load_with(&folder(name), &options(dtype, scales)).unwrap()
}

fn scales(model: &Llama) -> Vec<[Vec<f32>; 2]> {
    model.codes().expect("codes").scales().unwrap()
}

/// The keys and the values of a layer, heads within tokens.
fn cached(model: &Llama, cache: &PagedKvCache, layer: usize, sequence: SequenceId) -> [Vec<f32>; 2] {
    let table = cache.page_table(&[sequence]).unwrap();
    let (k, v) = gather_paged_kv(cache.layer(layer).unwrap(), &table, model.cached_dtype()).unwrap();
    [k, v].map(|x| x.try_into_vec_as::<f32>().unwrap())
}

/// Reads texts at once. Returns the cache, and their sequences.
fn read(model: &Llama, texts: &[&[u32]]) -> (PagedKvCache, Vec<SequenceId>) {
    let pages = texts.iter().map(|text| text.len().div_ceil(16)).sum();
    let mut cache = model.new_cache(pages, 16, KvLayout::Nhd).unwrap();
    let sequences: Vec<_> = texts.iter().map(|_| cache.create()).collect();
    let pieces: Vec<_> = sequences.iter().copied().zip(texts.iter().copied()).collect();
    model.extend(&mut cache, &pieces).unwrap();
    (cache, sequences)
}

/// Token `at` of a prompt of any length.
fn prompt(length: usize) -> Vec<u32> {
    (0..length).map(|at| (3 + at * 37 % 250) as u32).collect()
}

/// The first prompt alone decides, and 64 tokens at least; then no other does. Layer 0, on whose keys and values no rounding has
/// an effect yet, is that of the model with a cache of f32.
#[test]
fn calibration_is_of_the_first_prompt() {
    let exact = open("gqa_llama3", KvCacheDtype::Auto, KvScales::Auto);
    for (dtype, length) in
        [(KvCacheDtype::Fp8E4m3, 1), (KvCacheDtype::Fp8E5m2, 20), (KvCacheDtype::Fp8E4m3, 90)]
    {
        let first = prompt(length);
        let more = CALIBRATED_TOKENS.saturating_sub(length);
        let spread: Vec<_> = (0..more).map(|at| (at * 259 / more) as u32).collect();
        let texts: Vec<_> = [spread.as_slice(), &first].into_iter().filter(|text| !text.is_empty()).collect();
        let (cache, sequences) = read(&exact, &texts);

        let model = open("gqa_llama3", dtype, KvScales::Auto);
        let format = model.codes().unwrap().format;
        assert_eq!(scales(&model), Vec::<[Vec<f32>; 2]>::new());
        let (codes, coded) = read(&model, &[&first, &prompt(33)]);
        assert_eq!(codes.stats().sequences, 2, "what was read beside the prompt is gone");
        let found = scales(&model);
        assert_eq!(found.len(), 2);
        for (side, found) in found[0].iter().enumerate() {
            let numbers = sequences.iter().map(|&sequence| cached(&exact, &cache, 0, sequence)[side].clone());
            let numbers: Vec<_> = numbers.collect();
            let dim = 32;
            for (head, &scale) in found.iter().enumerate() {
                let of_head = numbers.iter().flat_map(|x| x.chunks(dim).skip(head).step_by(HEADS)).flatten();
                let largest = of_head.fold(0f32, |largest, x| largest.max(x.abs()));
                let reach = f64::from(scale) * f64::from(format.max()) / f64::from(largest);
                assert!((MARGIN..2.0 * MARGIN).contains(&reach), "{dtype:?}, {length}: {reach}");
                assert_eq!(scale.log2().fract(), 0.0, "{scale}");
            }
            // The prompt is the last of what the scales were made of, and the first of the other cache.
            let got = &cached(&model, &codes, 0, coded[0])[side];
            let expected = numbers.last().unwrap();
            assert_eq!(got.len(), expected.len());
            for (at, (got, x)) in got.iter().zip(expected).enumerate() {
                let scale = found[at / dim % HEADS];
                assert_eq!(
                    *got,
                    format.decode(format.encode(x / scale)) * scale,
                    "{dtype:?}, {length}: {at}"
                );
            }
        }

        let (other, _) = read(&model, &[&prompt(100)]);
        assert_eq!(
            (scales(&model), other.pages()),
            (found, 7),
            "fixed, and no room for more tokens is needed"
        );
    }
}

/// A model that has read nothing has no scales for a step.
#[test]
fn a_step_comes_after_a_prompt() {
    let model = open("gqa_llama3", KvCacheDtype::Fp8E4m3, KvScales::Calibrate);
    let cache = model.new_cache(4, 16, KvLayout::Nhd).unwrap();
    let refusal = model.new_step(&cache, 1, 16).unwrap_err().to_string();
    assert!(refusal.starts_with("a prompt has to be read before a step"), "{refusal}");
    // A cache that is older than the scales gets them when it is used.
    let mut cache = cache;
    read(&model, &[&prompt(70)]);
    let fresh = read(&model, &[&prompt(5)]);
    let sequence = cache.create();
    model.extend(&mut cache, &[(sequence, &prompt(5))]).unwrap();
    assert_eq!(cached(&model, &cache, 1, sequence), cached(&model, &fresh.0, 1, fresh.1[0]));
}

/// A folder with scales of these names and this shape.
fn with_scales(name: &str, [k, v]: [&str; 2], shape: &[usize], dtype: Dtype) -> Scratch {
    let scratch = Scratch::copy_of("mha_untied", name);
    scratch.edit(|tensors| {
        for (layer, side, name) in [(0, 0, k), (0, 1, v), (1, 0, k), (1, 1, v)] {
            let mut stored = Stored::f32(shape, |at| value(layer, side, at));
            if dtype == Dtype::BF16 {
                stored.data =
                    stored.data.as_chunks::<4>().0.iter().flat_map(|bytes| [bytes[2], bytes[3]]).collect();
                stored.dtype = dtype;
            }
            tensors.entry(format!("model.layers.{layer}.self_attn.{name}")).or_insert(stored);
        }
    });
    scratch
}

/// Scales that bf16 represents.
fn value(layer: usize, side: usize, head: usize) -> f32 {
    0.0625 * (1.0 + 0.5 * layer as f32 + 0.125 * side as f32 + 0.25 * head as f32)
}

#[test]
fn scales_of_checkpoints() {
    for (at, (names, shape, dtype)) in [
        (["k_scale", "v_scale"], &[1][..], Dtype::F32),
        (["k_scale", "v_scale"], &[HEADS, 1, 1], Dtype::BF16),
        (["attn.k_scale", "attn.v_scale"], &[], Dtype::F32),
        (["k_proj.k_scale", "v_proj.v_scale"], &[], Dtype::BF16),
        (["k_proj.output_scale", "v_proj.output_scale"], &[HEADS], Dtype::F32),
        (["kv_scale", "kv_scale"], &[1], Dtype::F32),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = with_scales(&format!("kv-scales-{at}"), names, shape, dtype);
        let heads = shape.iter().product();
        let model = load_with(&folder.0, &options(KvCacheDtype::Fp8E5m2, KvScales::Auto)).unwrap();
        for (layer, found) in scales(&model).iter().enumerate() {
            for (side, found) in found.iter().enumerate() {
                let side = if names[0] == names[1] { 0 } else { side };
                let expected: Vec<_> = (0..heads).map(|head| value(layer, side, head)).collect();
                assert_eq!(*found, expected, "{names:?}");
            }
        }
        // The same number in the FNUZ variant is another code.
        let model = load_with(&folder.0, &options(KvCacheDtype::Fp8E4m3, KvScales::Checkpoint)).unwrap();
        let factor = if model.codes().unwrap().format == Fp8::E4m3Fnuz { 2.0 } else { 1.0 };
        assert_eq!(scales(&model)[1][0][0], factor * value(1, 0, 0), "{names:?}");
        for (asked, expected) in [(KvScales::One, Some(1.0)), (KvScales::Calibrate, None)] {
            let model = load_with(&folder.0, &options(KvCacheDtype::Fp8E4m3, asked)).unwrap();
            assert_eq!(scales(&model).first().map(|[k, _]| k[0]), expected, "{asked:?}");
        }
        // They are no part of a model whose cache has none.
        assert!(
            load_with(&folder.0, &options(KvCacheDtype::Auto, KvScales::Auto)).unwrap().codes().is_none()
        );
    }
}

#[test]
fn scales_that_are_wrong() {
    let refusal = |folder: &Scratch, scales| {
        let opened = load_with(&folder.0, &options(KvCacheDtype::Fp8E4m3, scales));
        format!("{:#}", opened.err().expect("an error"))
    };
    let names = ["k_scale", "v_scale"];
    let plain = Scratch::copy_of("mha_untied", "kv-none");
    let expected = "no scales of cached keys and values (k_scale, v_scale); try --kv-scales calibrate";
    assert!(refusal(&plain, KvScales::Checkpoint).contains(expected));
    let unused = load_with(&plain.0, &options(KvCacheDtype::Auto, KvScales::One)).err().unwrap().to_string();
    assert!(unused.starts_with("--kv-scales is for a cache of 8 bits"), "{unused}");

    let folder = with_scales("kv-wrong", names, &[3], Dtype::F32);
    let shape = "model.layers.0.self_attn.k_scale has shape [3], expected [] or [1] or";
    assert!(refusal(&folder, KvScales::Auto).contains(shape), "{}", refusal(&folder, KvScales::Auto));
    let [k0, k1, v1] = ["0.self_attn.k_scale", "1.self_attn.k_scale", "1.self_attn.v_scale"];
    let set = |name: &str, scale: f32| {
        folder.edit(|tensors| {
            tensors.insert(format!("model.layers.{name}"), Stored::f32(&[1], |_| scale));
        });
    };
    for (name, scale) in [(k0, f32::NAN), (k0, -1.0), (k0, 0.0)] {
        set(name, scale);
        let expected = format!("model.layers.{name} is {scale}, expected a positive number");
        assert!(refusal(&folder, KvScales::Auto).contains(&expected), "{expected}");
    }
    let remove = |name: &str| {
        folder.edit(|tensors| drop(tensors.remove(&format!("model.layers.{name}"))));
    };
    for name in [k0, "0.self_attn.v_scale", k1] {
        set(name, 1.0);
    }
    remove(v1);
    assert!(refusal(&folder, KvScales::Auto).contains("model.layers.1.self_attn.v_scale is missing"));
    remove(k1);
    let lacks =
        "model.layers.1.self_attn has no scales of keys and values, which model.layers.0.self_attn has";
    assert!(refusal(&folder, KvScales::Checkpoint).contains(lacks));
    load_with(&folder.0, &options(KvCacheDtype::Fp8E4m3, KvScales::Calibrate)).unwrap();
}

/// Whatever writes it: one prompt or several, pages of any size, a step alone or captured.
#[test]
fn a_text_does_not_depend_on_how_it_is_written() {
    let prompts = [prompt(5), prompt(40), prompt(2)];
    for (dtype, scales) in [(KvCacheDtype::Fp8E4m3, KvScales::Auto), (KvCacheDtype::Fp8E5m2, KvScales::One)] {
        let model = || open("gqa_llama3", dtype, scales);
        let expected = write(&model(), &prompts, &greedy(24, 16, KvLayout::Nhd));
        for (page_size, layout, graph) in [
            (1, KvLayout::Hnd, Graph::Never),
            (16, KvLayout::Nhd, Graph::Always),
            (7, KvLayout::Hnd, Graph::Auto),
        ] {
            let options = Options { graph, ..greedy(24, page_size, layout) };
            assert_eq!(write(&model(), &prompts, &options), expected, "{dtype:?}, {page_size}, {graph:?}");
        }
        // The first prompt gives the scales. With them all texts are what they are alone.
        let model = model();
        for (prompt, text) in prompts.iter().zip(&expected.0) {
            let (alone, _) = write(&model, std::slice::from_ref(prompt), &greedy(24, 16, KvLayout::Nhd));
            assert_eq!(alone, std::slice::from_ref(text));
        }
    }
}

/// A text that outgrows its cache is moved to a larger one, code for code.
#[test]
fn codes_are_moved_as_they_are() {
    let folder = Scratch::copy_of("mha_untied", "kv-grow");
    folder.configure("max_position_embeddings", 1024);
    let model = load_with(&folder.0, &options(KvCacheDtype::Fp8E4m3, KvScales::Auto)).unwrap();
    let first = resources::prompt(3);
    let expected = write_in_one_cache(&model, &first, 300);
    for graph in [Graph::Never, Graph::Always] {
        let options = Options { graph, ..greedy(300, 16, KvLayout::Nhd) };
        assert_eq!(write(&model, std::slice::from_ref(&first), &options).0[0], expected, "{graph:?}");
    }
}

/// The differences between two rows of numbers, as the root of the mean of their squares.
fn rms(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

/// The shipped model on a story that it was not trained on.
///
/// Weights of e4m3 give the results of all seven products of a layer the relative error of that type; a cache of e4m3 gives it
/// to those of two. So it changes the probabilities by no more than such weights do. Errors that do not depend on each other
/// add up in squares, and e5m2 has twice the error of e4m3: by no more than √(2 · 2² / 7) < 2 times as much. The mean of the
/// changes, which is the logarithm of the perplexities' ratio, is at most the root of the mean of their squares.
#[test]
fn perplexity_with_a_cache_of_8_bits() {
    let text = include_str!("../fixtures/stories.txt");
    let tokenizer = TextTokenizer::load(&folder("tiny")).unwrap();
    let mut story = tokenizer.encode(text.split("\n\n").next().unwrap()).unwrap();
    // All of all 8 stories, which the README has, takes 20 times as long.
    story.truncate(80);
    let of = |model: &Llama, piece| {
        let reading = Reading { piece, page_size: 16, layout: KvLayout::Nhd };
        log_probabilities(model, &story, reading).unwrap()
    };
    let exact = open("tiny", KvCacheDtype::Auto, KvScales::Auto);
    let expected = of(&exact, 32);
    let without_cache = quantized::log_probabilities(&exact, std::slice::from_ref(&story));
    let without_cache: Vec<_> = without_cache.into_iter().map(|one| one as f32).collect();
    assert!(max_difference(&expected, &without_cache) < 1e-3);

    let (quantize, activations) = (Some(Quantize::E4m3), RoundActivations::Never);
    let rounded = LoadOptions { quantize, activations, ..options(KvCacheDtype::Auto, KvScales::Auto) };
    let of_weights = rms(&of(&load_with(&folder("tiny"), &rounded).unwrap(), 32), &expected);
    println!("f32: {:.4}; weights of e4m3 change logarithms by {of_weights:.4}", perplexity(&expected));
    // The third one is calibrated with the token that begins every text.
    for (dtype, piece, bound) in [
        (KvCacheDtype::Fp8E4m3, 32, of_weights),
        (KvCacheDtype::Fp8E5m2, 32, 2.0 * of_weights),
        (KvCacheDtype::Fp8E4m3, 1, of_weights),
    ] {
        let model = open("tiny", dtype, KvScales::Calibrate);
        assert_eq!((model.cached_bytes(), exact.cached_bytes()), (1536, 4 * 1536));
        let got = of(&model, piece);
        let changed = rms(&got, &expected);
        println!("{dtype:?} in pieces of {piece}: {:.4}, changed by {changed:.4}", perplexity(&got));
        assert!(changed > 0.0 && changed <= bound, "{dtype:?}: {changed} of {bound}");
        let ratio = perplexity(&got) / perplexity(&expected);
        assert!(ratio.ln().abs() <= changed * 1.001, "{dtype:?}: {ratio}");
    }
}

#[test]
fn the_options_of_the_program() {
    let model = folder("gqa_llama3").display().to_string();
    let with = |more: &[&str]| {
        run(&[&["--model", &model, "--prompt", "abc", "--max-new-tokens", "12", "--dtype", "f32"], more]
            .concat())
    };
    let fp8 = with(&["--kv-cache-dtype", "fp8"]);
    assert_eq!(fp8.code, Some(0), "{}", fp8.err);
    assert_eq!(with(&["--kv-cache-dtype", "fp8_e4m3", "--kv-scales", "calibrate", "--graph"]).out, fp8.out);
    for more in [["fp8_e5m2", "auto"], ["fp8", "one"], ["auto", "auto"]] {
        let ran = with(&["--kv-cache-dtype", more[0], "--kv-scales", more[1]]);
        assert_eq!(ran.code, Some(0), "{more:?}: {}", ran.err);
    }
    for (more, code, message) in [
        (&["--kv-cache-dtype", "int8"][..], 2, "possible values: auto, fp8, fp8_e5m2"),
        (
            &["--kv-scales", "one"],
            1,
            "error: --kv-scales is for a cache of 8 bits; choose one with --kv-cache-dtype",
        ),
        (
            &["--kv-cache-dtype", "fp8", "--kv-scales", "checkpoint"],
            1,
            "error: the folder has no scales of cached",
        ),
        (&["--perplexity", "a"], 2, "cannot be used with '--perplexity <FILE>'"),
    ] {
        let ran = with(more);
        assert_eq!((ran.code, ran.out.as_str()), (Some(code), ""), "{more:?}: {}", ran.err);
        assert!(ran.err.contains(message), "{:?} should contain {message:?}", ran.err);
    }

    let scratch = Scratch::new("perplexity");
    scratch.write("texts", "abc\nabc\n\n\nabcabc\r\n\r\nabc\n");
    scratch.write("none", "\n\n\n");
    let file = |name: &str| scratch.0.join(name).display().to_string();
    let told = |file: &str, dtype| run(&["--model", &model, "--kv-cache-dtype", dtype, "--perplexity", file]);
    // A token begins each of the three texts, of 7, 6 and 3 bytes.
    for (dtype, bytes) in [("auto", 512), ("fp8", 256)] {
        let ran = told(&file("texts"), dtype);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        let end = format!(" of 16 tokens; {bytes} bytes of cache for each\n");
        assert!(ran.out.starts_with("perplexity ") && ran.out.ends_with(&end), "{}", ran.out);
    }
    let none = told(&file("none"), "auto");
    assert_eq!((none.code, none.out.as_str()), (Some(1), ""), "{}", none.err);
    let missing = told(&file("missing"), "auto");
    assert!(
        missing.code == Some(1) && missing.err.starts_with("error: cannot read the texts "),
        "{}",
        missing.err
    );
}
