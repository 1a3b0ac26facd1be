//! A model out of a folder, or out of random numbers.

use std::cell::RefCell;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use burn_flashinfer::{AttentionOptions, PlanConfig, Rope, check_support};

use super::codes::Part;
use super::config::Config;
use super::kv_cache::KvCodes;
use super::linear::{Linear, Norm};
use super::model::{Layer, Llama};
use super::weights::{LoadOptions, Loader, Weights};

impl Llama {
    /// Loads a Hugging Face model folder.
    ///
    /// `begin` is told the bytes there are, and returns what is told the bytes of each tensor read.
    pub fn load<P: Fn(usize)>(
        folder: &Path,
        device: &Device,
        options: &LoadOptions,
        begin: impl FnOnce(usize) -> P,
    ) -> Result<Self> {
        let config = Config::load(folder)?;
        tracing::debug!(?config, "configuration");
        let LoadOptions { dtype, quantize, activations, kv_cache } = *options;
        let quantization = config.quantization;
        ensure!(
            quantize.is_none() || quantization.is_none(),
            "the weights are quantized already; --quantize is for those of 16 and 32 bits"
        );
        let weights = Weights::open(folder)?;
        let dtype = match dtype.or(config.dtype) {
            Some(dtype) => dtype,
            None => weights.dtype(if weights.has(EMBEDDING) { EMBEDDING } else { HEAD })?,
        };
        check_support(device, dtype).context("choose another type with --dtype")?;
        kv_cache.check(device)?;
        let progress = begin(weights.bytes());
        let weights = Some(&weights);
        let progress = &progress;
        let loader =
            Loader { weights, device, dtype, quantization, quantize, activations, kv_cache, progress };
        Self::from_weights(config, &loader)
    }

    /// A model of random weights: as fast as one that was trained.
    pub fn random(config: Config, device: &Device, options: &LoadOptions) -> Result<Self> {
        let LoadOptions { dtype, quantize, activations, kv_cache } = *options;
        let dtype = dtype.or(config.dtype).unwrap_or(DType::F32);
        kv_cache.check(device)?;
        let (weights, quantization, progress) = (None, None, &|_| {});
        let loader =
            Loader { weights, device, dtype, quantization, quantize, activations, kv_cache, progress };
        Self::from_weights(config, &loader)
    }

    fn from_weights(config: Config, loader: &Loader<'_>) -> Result<Self> {
        let Config { vocab_size, hidden_size, .. } = config;
        warn_of_left(&config, loader);
        let codes = KvCodes::load(&config, loader)?;
        let (embedding, head) = tied(&config, loader)?;
        let embedding = loader.tensor(embedding, [vocab_size, hidden_size])?;
        let layers =
            (0..config.layers).map(|index| Layer::load(&config, loader, index)).collect::<Result<_>>()?;
        let norm = norm(&config, loader, "model.norm")?;
        let head = match head {
            None => embedding.clone(),
            Some(head) => loader.tensor(head, [vocab_size, hidden_size])?,
        };
        let rope = RefCell::new(Rope::new(&config.rope, 1, loader.device)?);
        // A device may report only now that it ran out of memory.
        loader.device.sync().context("cannot load the weights onto the device")?;

        let mut options = AttentionOptions::new().causal(true);
        if let Some(window) = config.window_left {
            options = options.window_left(window);
        }
        let mut attention =
            PlanConfig::new(config.q_heads, config.kv_heads, config.head_dim, loader.dtype).options(options);
        if let Some(codes) = &codes {
            attention = attention.fp8(codes.format);
        }
        let (device, dtype) = (loader.device.clone(), loader.dtype);
        Ok(Self { config, device, dtype, rope, attention, codes, embedding, layers, norm, head })
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The names of the embedding and, if it is another tensor, of the head. As `transformers` has it, two that are stored and
/// differ are not one, and one that is stored stands for both.
fn tied(config: &Config, loader: &Loader<'_>) -> Result<(&'static str, Option<&'static str>)> {
    let stored = |name| loader.weights.is_some_and(|weights| weights.has(name));
    Ok(match (config.tied_embeddings, stored(EMBEDDING), stored(HEAD)) {
        (false, ..) => (EMBEDDING, Some(HEAD)),
        (true, false, true) => (HEAD, None),
        (true, true, true)
            if !loader.weights.map_or(Ok(true), |weights| weights.are_equal(EMBEDDING, HEAD))? =>
        {
            tracing::warn!("`tie_word_embeddings` is true, but {EMBEDDING} and {HEAD} differ: both are used");
            (EMBEDDING, Some(HEAD))
        }
        (true, ..) => (EMBEDDING, None),
    })
}

/// Says which layers are not rounded, though asked for.
fn warn_of_left(config: &Config, loader: &Loader<'_>) {
    let widths = [
        ("q_proj, k_proj, v_proj, gate_proj and up_proj", config.hidden_size),
        ("o_proj", config.q_heads * config.head_dim),
        ("down_proj", config.intermediate_size),
    ];
    for (name, inputs) in widths {
        if loader.quantize.is_some_and(|quantize| !quantize.takes(inputs)) {
            tracing::warn!(
                "{name} are not quantized: they have {inputs} inputs, and int4 takes multiples of 128"
            );
        }
    }
}

fn norm(config: &Config, loader: &Loader<'_>, name: &str) -> Result<Norm> {
    let weight = loader.tensor(&format!("{name}.weight"), [config.hidden_size])?;
    Ok(Norm { weight, epsilon: config.rms_norm_eps })
}

impl Layer {
    fn load(config: &Config, loader: &Loader<'_>, index: usize) -> Result<Self> {
        let Config { hidden_size, intermediate_size, attention_bias, mlp_bias, .. } = *config;
        let [q_rows, kv_rows] = [config.q_heads, config.kv_heads].map(|heads| heads * config.head_dim);
        let linear = |parts: &[(&str, usize)], inputs: usize, has_bias: bool| -> Result<Linear> {
            let part = |&(name, outputs): &(&str, usize)| Part {
                module: format!("model.layers.{index}.{name}"),
                outputs,
            };
            let parts: Vec<_> = parts.iter().map(part).collect();
            let biases: Vec<_> =
                parts.iter().map(|part| (format!("{}.bias", part.module), [part.outputs])).collect();
            let biases: Vec<_> = biases.iter().map(|(name, shape)| (name.as_str(), *shape)).collect();
            let bias = if has_bias { Some(loader.stacked(&biases)?) } else { None };
            Ok(Linear { weight: loader.weight(&parts, inputs)?, bias, is_gated: false })
        };
        let norm = |name: &str| norm(config, loader, &format!("model.layers.{index}.{name}"));
        let qkv =
            [("self_attn.q_proj", q_rows), ("self_attn.k_proj", kv_rows), ("self_attn.v_proj", kv_rows)];
        let gate_up = [("mlp.gate_proj", intermediate_size), ("mlp.up_proj", intermediate_size)];
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            qkv: linear(&qkv, hidden_size, attention_bias)?,
            output: linear(&[("self_attn.o_proj", hidden_size)], q_rows, attention_bias)?,
            feed_forward_norm: norm("post_attention_layernorm")?,
            gate_up: Linear { is_gated: true, ..linear(&gate_up, hidden_size, mlp_bias)? },
            down: linear(&[("mlp.down_proj", hidden_size)], intermediate_size, mlp_bias)?,
        })
    }
}
