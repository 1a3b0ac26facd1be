//! The model: embedding, layers of attention and feed-forward, logits.
//!
//! Everything that depends on which requests are in the batch (positions, slots, and the plan of attention) is made once for
//! each step and shared by all layers.

use std::cell::RefCell;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_flashinfer::{
    AttentionOptions, CacheConfig, DecodeStep, Indptr, KvLayout, PagedKvCache, PagedPlan, PlanConfig,
    Positions, Qkv, RaggedPlan, Rope, SequenceId, apply_rope, check_support, matmul_nt, rope_append_paged_kv,
};

use super::codes::Part;
use super::config::Config;
use super::linear::{Linear, Norm, Residual};
use super::weights::{LoadOptions, Loader, Weights};

/// A Llama, ready to run.
pub struct Llama {
    pub config: Config,
    pub device: Device,
    pub dtype: DType,
    /// For as many positions as texts have needed so far.
    rope: RefCell<Rope>,
    attention: PlanConfig,
    /// `[vocab_size, hidden_size]`.
    embedding: Tensor<2>,
    layers: Vec<Layer>,
    norm: Norm,
    /// `[vocab_size, hidden_size]`, the embedding itself if the two are tied.
    head: Tensor<2>,
}

struct Layer {
    attention_norm: Norm,
    /// Queries, keys and values in one product.
    qkv: Linear,
    output: Linear,
    feed_forward_norm: Norm,
    /// Gate and up in one product.
    gate_up: Linear,
    down: Linear,
}

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
        let LoadOptions { dtype, quantize, activations } = *options;
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
        let progress = begin(weights.bytes());
        let weights = Some(&weights);
        let loader =
            Loader { weights, device, dtype, quantization, quantize, activations, progress: &progress };
        Self::from_weights(config, &loader)
    }

    /// A model of random weights: as fast as one that was trained.
    pub fn random(config: Config, device: &Device, options: &LoadOptions) -> Result<Self> {
        let LoadOptions { dtype, quantize, activations } = *options;
        let dtype = dtype.or(config.dtype).unwrap_or(DType::F32);
        let (weights, quantization) = (None, None);
        let loader =
            Loader { weights, device, dtype, quantization, quantize, activations, progress: &|_| {} };
        Self::from_weights(config, &loader)
    }

    fn from_weights(config: Config, loader: &Loader<'_>) -> Result<Self> {
        let Config { vocab_size, hidden_size, .. } = config;
        warn_of_left(&config, loader);
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
        let attention =
            PlanConfig::new(config.q_heads, config.kv_heads, config.head_dim, loader.dtype).options(options);
        let (device, dtype) = (loader.device.clone(), loader.dtype);
        Ok(Self { config, device, dtype, rope, attention, embedding, layers, norm, head })
    }

    /// A cache with room for `pages` pages of `page_size` tokens.
    pub fn new_cache(&self, pages: usize, page_size: usize, layout: KvLayout) -> Result<PagedKvCache> {
        let Config { layers, kv_heads, head_dim, .. } = self.config;
        let cache =
            CacheConfig::new(layers, pages, page_size, kv_heads, head_dim).layout(layout).dtype(self.dtype);
        tracing::debug!(pages, page_size, mib = cache.bytes() >> 20, "key-value cache");
        Ok(PagedKvCache::new(&cache, &self.device)?)
    }

    /// Goes on with each sequence by one token or several. Returns the hidden states `[pieces, hidden_size]` after the last
    /// token of each piece, for [`logits`](Self::logits).
    ///
    /// A piece may be a prompt, a part of one, or the token that was chosen last: the tokens before it are in the pages.
    pub fn extend(&self, cache: &mut PagedKvCache, pieces: &[(SequenceId, &[u32])]) -> Result<Tensor<2>> {
        let growth: Vec<_> = pieces.iter().map(|(sequence, tokens)| (*sequence, tokens.len())).collect();
        ensure!(growth.iter().all(|&(_, tokens)| tokens > 0), "there is a piece without a token");
        let tokens = self.tokens(pieces.iter().flat_map(|(_, tokens)| *tokens))?;
        let mut longest = 0;
        for &(sequence, tokens) in &growth {
            longest = longest.max(cache.len(sequence)? + tokens);
        }
        let rope = self.rope(longest)?;
        let step = cache.step(&growth)?;
        let plan = PagedPlan::for_step(&self.attention, &step)?;

        let hidden = self.forward(tokens, |layer, qkv| {
            let pages = cache.layer_mut(layer)?;
            let q = rope_append_paged_kv(pages, qkv, None, &rope, step.positions(), step.slots())?;
            Ok(plan.run(q, pages)?.output)
        })?;
        if hidden.dims()[0] == pieces.len() {
            return Ok(hidden);
        }
        let last = step.qo_indptr()[1..].iter().map(|&end| end - 1);
        Ok(hidden.select(0, self.indices(last)))
    }

    /// The buffers of a step of up to `sequences` sequences of up to `max_len` tokens, for [`replayable`](Self::replayable).
    pub fn new_step(&self, cache: &PagedKvCache, sequences: usize, max_len: usize) -> Result<DecodeStep> {
        Ok(DecodeStep::new(&self.attention, sequences, max_len, cache)?)
    }

    /// One more token for each sequence: the logits `[sequences, vocab_size]` after it. All that changes from step to step is
    /// on the device already, so that a graph can be captured of it.
    pub fn replayable(&self, cache: &mut PagedKvCache, step: &DecodeStep) -> Result<Tensor<2>> {
        let (positions, slots, rope) = (step.positions(), step.slots(), self.rope(step.max_len())?);
        let hidden = self.forward(step.tokens(), |layer, qkv| {
            let pages = cache.layer_mut(layer)?;
            let q = rope_append_paged_kv(pages, qkv, None, &rope, &positions, &slots)?;
            Ok(step.plan().run(q, pages)?.output)
        })?;
        self.logits(hidden)
    }

    /// Refuses a token that the model does not know.
    pub fn check_tokens<'a>(&self, tokens: impl Iterator<Item = &'a u32>) -> Result<()> {
        let vocab_size = self.config.vocab_size;
        match { tokens }.find(|&&token| token as usize >= vocab_size) {
            None => Ok(()),
            Some(token) => anyhow::bail!(
                "token {token} is not among the {vocab_size} of the model; is this its tokenizer?"
            ),
        }
    }

    fn tokens<'a>(&self, tokens: impl Iterator<Item = &'a u32> + Clone) -> Result<Tensor<1, Int>> {
        self.check_tokens(tokens.clone())?;
        Ok(self.indices(tokens.map(|&token| token as usize)))
    }

    /// The logits `[tokens, vocab_size]` after every token of every prompt, one prompt after the other, without a cache.
    pub fn logits_all(&self, prompts: &[&[u32]]) -> Result<Tensor<2>> {
        let lengths: Vec<_> = prompts.iter().map(|tokens| tokens.len()).collect();
        let indptr = Indptr::from_lengths(&lengths, &self.device)?;
        let positions = Positions::continuing(&indptr, &vec![0; prompts.len()])?;
        let plan = RaggedPlan::new(&self.attention, &indptr, &indptr)?;
        let rope = self.rope(lengths.into_iter().max().unwrap_or(0))?;
        let tokens = self.tokens(prompts.iter().copied().flatten())?;
        let hidden = self.forward(tokens, |_, Qkv { q, k, v }| {
            let (q, k) = apply_rope(q, k, &rope, &positions)?;
            Ok(plan.run(q, k, v)?.output)
        })?;
        self.logits(hidden)
    }

    /// All layers. `attend` is given the number of the layer and the queries `[tokens, q_heads, head_dim]`, keys and values
    /// `[tokens, kv_heads, head_dim]` of the new tokens, not yet rotated. Returns `[tokens, hidden_size]`, normalised.
    fn forward(
        &self,
        tokens: Tensor<1, Int>,
        mut attend: impl FnMut(usize, Qkv) -> Result<Tensor<3>>,
    ) -> Result<Tensor<2>> {
        let Config { q_heads, kv_heads, head_dim, .. } = self.config;
        let mut residual = Residual::new(self.embedding.clone().select(0, tokens));
        for (index, layer) in self.layers.iter().enumerate() {
            let (qkv, stream) = layer.qkv.of_norm(residual, &layer.attention_norm)?;
            let [rows, _] = qkv.dims();
            // Cut only after the heads have an axis of their own: the parts are then views.
            let qkv = qkv.reshape([rows, q_heads + 2 * kv_heads, head_dim]);
            let q = qkv.clone().narrow(1, 0, q_heads);
            let k = qkv.clone().narrow(1, q_heads, kv_heads);
            let v = qkv.narrow(1, q_heads + kv_heads, kv_heads);
            let attended = attend(index, Qkv { q, k, v })?.reshape([rows, q_heads * head_dim]);
            let stream = layer.output.add_to(stream, attended)?;
            let (gated, stream) = layer.gate_up.of_norm(stream, &layer.feed_forward_norm)?;
            residual = layer.down.add_to(stream, gated)?;
        }
        Ok(residual.normed(&self.norm)?.0)
    }

    /// The logits `[rows, vocab_size]` that follow from hidden states `[rows, hidden_size]`.
    pub fn logits(&self, hidden: Tensor<2>) -> Result<Tensor<2>> {
        Ok(matmul_nt(hidden, self.head.clone())?)
    }

    /// The rotations of at least the positions below `positions`: the table grows with the texts, whatever the model could
    /// take.
    fn rope(&self, positions: usize) -> Result<Rope> {
        let mut table = self.rope.borrow_mut();
        if table.max_positions() < positions {
            let most = self.config.max_positions;
            ensure!(positions <= most, "a text of {positions} tokens passes the model's context of {most}");
            *table = Rope::new(&self.config.rope, positions.next_power_of_two().min(most), &self.device)?;
        }
        Ok(table.clone())
    }

    fn indices(&self, values: impl Iterator<Item = usize>) -> Tensor<1, Int> {
        let values: Vec<_> = values.map(|value| value as i32).collect();
        let length = values.len();
        Tensor::from_data(TensorData::new(values, [length]), (&self.device, DType::I32))
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
