//! Layers of 8 and 4 bits: each layout of checkpoints against the numbers that it stands for, and rounding while loading.

use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flashinfer::{Fp8, KvLayout, QuantizedWeight, WeightFormat, WeightScales, quantize_per_token};

use serde_json::json;

use crate::checkpoint::{Scratch, Stored};
use crate::fixture::{folder, load, load_with, logits, max_difference, values};
use crate::generation::{greedy, write};
use crate::random::{Format, Rng, VOCABULARY, decode, folders};
use llama::generate::{Graph, Options};
use llama::linear::{FEW_ROWS, Linear, Norm, Residual, Weight};
use llama::model::Llama;
use llama::quantization::{Quantize, RoundActivations};
use llama::tokenizer::TextTokenizer;
use llama::weights::LoadOptions;

const FORMATS: [Format; 9] = [
    Format::Fp8Blocks,
    Format::Fp8,
    Format::Channels,
    Format::WeightsOnly,
    Format::Fbgemm,
    Format::Awq(32),
    Format::Awq(128),
    Format::Gptq(128),
    Format::GptqV2(64),
];

fn prompts(rng: &mut Rng) -> [Vec<u32>; 2] {
    [5, FEW_ROWS + 8].map(|length| (0..length).map(|_| rng.below(VOCABULARY as u32)).collect())
}

/// In f32 the codes are the numbers, but for the order of sums; in bf16 the model is as near to f32 as that of the numbers, whose
/// weights are rounded besides.
#[test]
fn checkpoints_are_the_numbers_they_stand_for() {
    let mut rng = Rng::new();
    for format in FORMATS {
        let [coded, plain] = folders(format, &format!("{format:?}"), &mut rng);
        let prompts = prompts(&mut rng);
        let prompts: Vec<_> = prompts.iter().map(Vec::as_slice).collect();
        // The numbers of activations are not what is compared, on a device that would round them.
        let of = |folder: &_, dtype| {
            let activations = RoundActivations::Never;
            let options = LoadOptions { dtype: Some(dtype), activations, ..LoadOptions::default() };
            logits(&load_with(folder, &options).unwrap(), &prompts)
        };
        let expected = of(&plain.0, DType::F32);
        let [f32, bf16, plain] =
            [of(&coded.0, DType::F32), of(&coded.0, DType::BF16), of(&plain.0, DType::BF16)]
                .map(|got| max_difference(&got, &expected));
        let most = expected.iter().fold(0f32, |most, logit| most.max(logit.abs()));
        println!(
            "{format:?}: {f32:.1e} in f32, {bf16:.4} in bf16 where numbers are {plain:.4} off, of {most:.2}"
        );
        assert!(most > 0.5 && f32 <= 1e-4 * most, "{format:?}: {f32}");
        assert!(bf16 <= 2.0 * plain, "{format:?}: {bf16} against {plain}");
    }
}

/// ModelOpt says in either of two files what others call `fp8`. A scheme of keys and values alone changes no layer.
#[test]
fn folders_of_other_makers() {
    let mut rng = Rng::new();
    let [coded, plain] = folders(Format::Fp8, "makers", &mut rng);
    let [prompt, _] = prompts(&mut rng);
    let of = |folder: &Scratch| logits(&load(&folder.0, Some(DType::F32)).unwrap(), &[&prompt]);
    let [expected, of_numbers] = [&coded, &plain].map(of);
    let kv = json!({"num_bits": 8, "type": "float", "dynamic": false});
    coded.configure(
        "quantization_config",
        json!({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": kv}),
    );
    assert_eq!(of(&coded), expected);
    coded.configure("quantization_config", json!(null));
    let beside = |algo: &str| json!({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algo, "kv_cache_quant_algo": "FP8"}});
    coded.write("hf_quant_config.json", beside("FP8").to_string());
    assert_eq!(of(&coded), expected);
    coded.write("hf_quant_config.json", beside("NVFP4").to_string());
    let refusal = format!("{:#}", load(&coded.0, None).err().expect("an error"));
    assert!(
        refusal.ends_with("hf_quant_config.json: `quant_algo` is \"NVFP4\", expected \"FP8\""),
        "{refusal}"
    );

    for groups in [json!({}), json!({"group_0": {"targets": []}})] {
        plain.configure(
            "quantization_config",
            json!({"quant_method": "compressed-tensors", "config_groups": groups, "kv_cache_scheme": kv}),
        );
        assert_eq!(of(&plain), of_numbers);
    }
}

/// A step decodes the same in a graph and out of it, and with the prompt anew.
#[test]
fn steps_of_codes() {
    let mut rng = Rng::new();
    for format in [Format::Channels, Format::Awq(128)] {
        let [coded, _] = folders(format, &format!("steps-{format:?}"), &mut rng);
        let model = load(&coded.0, Some(DType::F32)).unwrap();
        let prompts = prompts(&mut rng);
        let options = greedy(8, 16, KvLayout::Nhd);
        let (texts, _) = write(&model, &prompts, &options);
        let (captured, _) = write(&model, &prompts, &Options { graph: Graph::Always, ..options });
        assert_eq!(texts, captured, "{format:?}");
    }
}

/// A layer of codes is that of their numbers with the rows' numbers: with bias, gate, norm and residual, few rows and many.
#[test]
fn layers_of_rounded_rows() {
    const INPUTS: usize = 128;
    const OUTPUTS: usize = 64;
    let mut rng = Rng::new();
    let device = Device::default();
    let mut tensor = |shape: [usize; 2]| {
        let numbers: Vec<f32> = (0..shape[0] * shape[1]).map(|_| rng.number()).collect();
        Tensor::<2>::from_data(TensorData::new(numbers, shape), &device)
    };
    let (codes, scales) = quantize_per_token(tensor([OUTPUTS, INPUTS]), Fp8::E4m3).unwrap();
    let weight = QuantizedWeight::from_e4m3(codes.clone(), scales.clone().unsqueeze_dim(1)).unwrap();
    let numbers = |codes: Tensor<2, burn::tensor::Int>, scales: Tensor<1>| -> Tensor<2> {
        let [rows, width] = codes.dims();
        let codes = codes.try_into_vec_as::<u8>().unwrap();
        let scales = scales.try_into_vec_as::<f32>().unwrap();
        let numbers: Vec<f32> =
            codes.iter().enumerate().map(|(at, &code)| decode(code) * scales[at / width]).collect();
        Tensor::from_data(TensorData::new(numbers, [rows, width]), &Device::default())
    };
    let dense = numbers(codes, scales);
    let bias = tensor([1, OUTPUTS]).reshape([OUTPUTS]);
    let norm = Norm { weight: tensor([1, INPUTS]).reshape([INPUTS]), epsilon: 1e-5 };
    for (rows, is_gated) in [(1, false), (FEW_ROWS, true), (FEW_ROWS + 1, false), (70, true)] {
        let layer = |weight| Linear { weight, bias: Some(bias.clone()), is_gated };
        let coded = layer(Weight::Quantized { weight: weight.clone(), rounds_rows: true });
        let dense = layer(Weight::Dense(dense.clone()));
        let rounded = |x: Tensor<2>| match rows > FEW_ROWS {
            true => quantize_per_token(x, Fp8::E4m3).map(|(codes, scales)| numbers(codes, scales)).unwrap(),
            false => x,
        };
        let what = format!("{rows} rows, gated: {is_gated}");
        let is_near = |got: Tensor<2>, expected: Tensor<2>| {
            let [got, expected] = [got, expected].map(values);
            let most = expected.iter().fold(0f32, |most, number| most.max(number.abs()));
            let difference = max_difference(&got, &expected);
            assert!(difference <= 1e-5 * most, "{what}: {difference} of {most}");
        };
        let (x, stream) =
            (tensor([rows, INPUTS]), tensor([rows, if is_gated { OUTPUTS / 2 } else { OUTPUTS }]));
        let residual = || Residual::new(stream.clone());
        let sum = |layer: &Linear, x: Tensor<2>| layer.add_to(residual(), x).unwrap().into_sum();
        is_near(sum(&coded, x.clone()), sum(&dense, rounded(x.clone())));
        is_near(coded.forward(x.clone()).unwrap(), dense.forward(rounded(x.clone())).unwrap());

        // The norm and the stream after it contain the sum that was still to be added.
        let wide = Linear { is_gated: false, ..layer(Weight::Dense(tensor([INPUTS, INPUTS]))) };
        let square =
            QuantizedWeight::quantize(tensor([INPUTS, INPUTS]), WeightFormat::E4m3(WeightScales::PerTensor));
        let adds = Weight::Quantized { weight: square.unwrap(), rounds_rows: false };
        let adds = Linear { weight: adds, bias: None, ..wide };
        let waits = || adds.add_to(Residual::new(x.clone()), x.clone()).unwrap();
        let (y, stream) = coded.of_norm(waits(), &norm).unwrap();
        let (normed, expected) = waits().normed(&norm).unwrap();
        is_near(stream.into_sum(), expected.into_sum());
        is_near(y, dense.forward(rounded(normed)).unwrap());
        let (y, stream) = dense.of_norm(waits(), &norm).unwrap();
        let (normed, expected) = waits().normed(&norm).unwrap();
        is_near(stream.into_sum(), expected.into_sum());
        is_near(y, dense.forward(normed).unwrap());
    }
}

/// Rows are rounded where it is asked for, or where the device multiplies codes.
#[test]
fn activations_are_rounded_when_asked() {
    let mut rng = Rng::new();
    let [coded, _] = folders(Format::Channels, "activations", &mut rng);
    let [short, long] = prompts(&mut rng);
    let of = |activations, prompt: &[u32]| {
        let options = LoadOptions { dtype: Some(DType::F32), activations, ..LoadOptions::default() };
        logits(&load_with(&coded.0, &options).unwrap(), &[prompt])
    };
    let never = of(RoundActivations::Never, &long);
    let always = of(RoundActivations::Always, &long);
    let auto = of(RoundActivations::Auto, &long);
    assert!(auto == never || auto == always);
    let difference = max_difference(&always, &never);
    println!("rounded activations change logits by {difference:.3}");
    assert!(difference > 0.0 && difference < 1.0, "{difference}");
    assert_eq!(of(RoundActivations::Always, &short), of(RoundActivations::Never, &short));
}

/// Rounding while loading is what a checkpoint of such codes has.
#[test]
fn rounding_while_loading_is_a_checkpoint_of_channels() {
    let mut rng = Rng::new();
    let [coded, plain] = folders(Format::Fbgemm, "loading", &mut rng);
    plain.edit(|numbers| {
        coded.edit(|codes| {
            for (name, stored) in numbers.iter().filter(|(_, stored)| stored.shape.len() == 2) {
                if codes.contains_key(&format!("{name}_scale")) {
                    let [outputs, inputs] = stored.shape[..] else { unreachable!() };
                    let bytes = stored.data.as_chunks::<4>().0;
                    let numbers: Vec<f32> = bytes.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
                    let most = |row: &[f32]| row.iter().fold(0f32, |most, number| most.max(number.abs()));
                    let scales: Vec<f32> =
                        numbers.chunks_exact(inputs).map(|row| most(row) / 448.0).collect();
                    let encode = |at: usize| Fp8::E4m3.encode(numbers[at] / scales[at / inputs]);
                    codes.get_mut(name).unwrap().data = (0..numbers.len()).map(encode).collect();
                    codes.insert(format!("{name}_scale"), Stored::f32(&[outputs, 1], |at| scales[at]));
                }
            }
        });
    });
    let [short, long] = prompts(&mut rng);
    let prompts = [short.as_slice(), &long];
    let quantize = Some(Quantize::E4m3);
    let options = LoadOptions { dtype: Some(DType::F32), quantize, ..LoadOptions::default() };
    let rounded = logits(&load_with(&plain.0, &options).unwrap(), &prompts);
    let stored = logits(&load(&coded.0, Some(DType::F32)).unwrap(), &prompts);
    assert!(max_difference(&rounded, &stored) <= 1e-5, "{}", max_difference(&rounded, &stored));
}

/// The shipped model in fewer bits, over stories that `stories.py` writes from seed 7, which is none of its training.
#[test]
fn perplexity_of_the_shipped_model() {
    // All 8, which the README has, take 8 times as long.
    const STORIES: usize = 1;
    let text = include_str!("../fixtures/stories.txt");
    let tokenizer = TextTokenizer::load(&folder("tiny")).unwrap();
    let stories: Vec<_> =
        text.split_terminator("\n\n").take(STORIES).map(|story| tokenizer.encode(story).unwrap()).collect();
    let of = |dtype, quantize, activations| {
        let options = LoadOptions { dtype: Some(dtype), quantize, activations, ..LoadOptions::default() };
        let model = load_with(&folder("tiny"), &options);
        log_probabilities(&model.unwrap(), &stories)
    };
    let never = RoundActivations::Never;
    let expected = of(DType::F32, None, never);
    let perplexity = |of: &[f64]| (-of.iter().sum::<f64>() / of.len() as f64).exp();
    println!("f32: perplexity {:.4}", perplexity(&expected));
    let mut of_bf16 = None;
    for (name, quantize, activations) in [
        ("bf16", None, never),
        ("e4m3", Some(Quantize::E4m3), never),
        ("e4m3 and activations", Some(Quantize::E4m3), RoundActivations::Always),
        ("int4", Some(Quantize::Int4), never),
    ] {
        let got = of(DType::BF16, quantize, activations);
        let squares = got.iter().zip(&expected).map(|(got, expected)| (got - expected).powi(2));
        let difference = (squares.sum::<f64>() / got.len() as f64).sqrt();
        println!("{name}: perplexity {:.4}, log-probabilities differ by {difference:.4}", perplexity(&got));
        // Were the weights not rounded, it would be that of bf16.
        assert!(of_bf16.is_none_or(|of_bf16| difference > of_bf16), "{name}: {difference}, as bf16");
        assert!(difference < 0.5, "{name}: {difference}");
        of_bf16.get_or_insert(difference);
        assert!(perplexity(&got) < 1.05 * perplexity(&expected), "{name}: {}", perplexity(&got));
    }
}

/// Logarithms of the probabilities of all tokens but the first of each story.
pub fn log_probabilities(model: &Llama, stories: &[Vec<u32>]) -> Vec<f64> {
    let mut all = Vec::new();
    for story in stories {
        let logits = logits(model, &[story]);
        for (row, &next) in logits.chunks_exact(model.config.vocab_size).zip(&story[1..]) {
            let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            all.push(f64::from(row[next as usize]) - total.ln());
        }
    }
    all
}
