//! The model: embedding, layers of attention and feed-forward, logits.
//!
//! Everything that depends on which requests are in the batch (positions, slots, and the plan of attention) is made once for
//! each step and shared by all layers.

use std::cell::RefCell;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_flashinfer::{
    Activation, AttentionOptions, CacheConfig, DecodeStep, Indptr, KvLayout, LinearOptions, PagedKvCache,
    PagedPlan, PlanConfig, Positions, Qkv, RaggedPlan, Rope, SequenceId, apply_rope, check_support, linear,
    matmul_nt, rms_norm, rms_norm_linear, rope_append_paged_kv,
};

use super::config::Config;
use super::weights::{Loader, Weights};

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
    norm: Tensor<1>,
    /// `[vocab_size, hidden_size]`, the embedding itself if the two are tied.
    head: Tensor<2>,
}

struct Layer {
    attention_norm: Tensor<1>,
    /// Queries, keys and values in one product.
    qkv: Linear,
    output: Linear,
    feed_forward_norm: Tensor<1>,
    /// Gate and up in one product.
    gate_up: Linear,
    down: Linear,
}

struct Linear {
    /// `[out, in]`.
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
}

impl Llama {
    /// Loads a Hugging Face model folder.
    ///
    /// The model computes in `dtype`, or else in the type that its configuration names, or else in the one that its embedding
    /// is stored in. `begin` is told the bytes there are,
    /// and returns what is told the bytes of each tensor read.
    pub fn load<P: Fn(usize)>(
        folder: &Path,
        device: &Device,
        dtype: Option<DType>,
        begin: impl FnOnce(usize) -> P,
    ) -> Result<Self> {
        let config = Config::load(folder)?;
        tracing::debug!(?config, "configuration");
        let weights = Weights::open(folder)?;
        let dtype = match dtype.or(config.dtype) {
            Some(dtype) => dtype,
            None => weights.dtype(if weights.has(EMBEDDING) { EMBEDDING } else { HEAD })?,
        };
        check_support(device, dtype).context("choose another type with --dtype")?;
        let progress = begin(weights.bytes());
        let loader = Loader { weights: Some(&weights), device, dtype, progress: &progress };
        Self::from_weights(config, &loader)
    }

    /// A model of random weights: as fast as one that was trained.
    pub fn random(config: Config, device: &Device, dtype: DType) -> Result<Self> {
        Self::from_weights(config, &Loader { weights: None, device, dtype, progress: &|_| {} })
    }

    fn from_weights(config: Config, loader: &Loader<'_>) -> Result<Self> {
        let Config { vocab_size, hidden_size, .. } = config;
        let (embedding, head) = tied(&config, loader)?;
        let embedding = loader.tensor(embedding, [vocab_size, hidden_size])?;
        let layers =
            (0..config.layers).map(|index| Layer::load(&config, loader, index)).collect::<Result<_>>()?;
        let norm = loader.tensor("model.norm.weight", [hidden_size])?;
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
        let Config { q_heads, kv_heads, head_dim, rms_norm_eps, .. } = self.config;
        let mut residual = self.embedding.clone().select(0, tokens);
        // A norm belongs to the product after it, and an addition to the residual to the product before it.
        for (index, layer) in self.layers.iter().enumerate() {
            let Layer { qkv, output, gate_up, down, .. } = layer;
            let norm = layer.attention_norm.clone();
            let qkv =
                rms_norm_linear(residual.clone(), norm, rms_norm_eps, qkv.weight.clone(), qkv.options())?;
            let [rows, _] = qkv.dims();
            // Cut only after the heads have an axis of their own: the parts are then views.
            let qkv = qkv.reshape([rows, q_heads + 2 * kv_heads, head_dim]);
            let q = qkv.clone().narrow(1, 0, q_heads);
            let k = qkv.clone().narrow(1, q_heads, kv_heads);
            let v = qkv.narrow(1, q_heads + kv_heads, kv_heads);
            let attended = attend(index, Qkv { q, k, v })?.reshape([rows, q_heads * head_dim]);
            residual = linear(attended, output.weight.clone(), output.options().residual(residual))?;
            let norm = layer.feed_forward_norm.clone();
            let gate = gate_up.options().gate(Activation::Silu);
            let gated = rms_norm_linear(residual.clone(), norm, rms_norm_eps, gate_up.weight.clone(), gate)?;
            residual = linear(gated, down.weight.clone(), down.options().residual(residual))?;
        }
        Ok(rms_norm(residual, self.norm.clone(), rms_norm_eps)?)
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

impl Layer {
    fn load(config: &Config, loader: &Loader<'_>, index: usize) -> Result<Self> {
        let Config { hidden_size, intermediate_size, .. } = *config;
        let [q_rows, kv_rows] = [config.q_heads, config.kv_heads].map(|heads| heads * config.head_dim);
        let linear = |parts: &[(&str, usize)], columns: usize, bias: bool| -> Result<Linear> {
            let named = |kind: &str| -> Vec<(String, usize)> {
                let name =
                    |(part, rows): &(&str, usize)| (format!("model.layers.{index}.{part}.{kind}"), *rows);
                parts.iter().map(name).collect()
            };
            let weights = named("weight");
            let weights: Vec<_> =
                weights.iter().map(|(name, rows)| (name.as_str(), [*rows, columns])).collect();
            let biases = named("bias");
            let biases: Vec<_> = biases.iter().map(|(name, rows)| (name.as_str(), [*rows])).collect();
            let bias = if bias { Some(loader.stacked(&biases)?) } else { None };
            Ok(Linear { weight: loader.stacked(&weights)?, bias })
        };
        let norm = |part: &str| loader.tensor(&format!("model.layers.{index}.{part}.weight"), [hidden_size]);
        let qkv =
            [("self_attn.q_proj", q_rows), ("self_attn.k_proj", kv_rows), ("self_attn.v_proj", kv_rows)];
        let gate_up = [("mlp.gate_proj", intermediate_size), ("mlp.up_proj", intermediate_size)];
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            qkv: linear(&qkv, hidden_size, config.attention_bias)?,
            output: linear(&[("self_attn.o_proj", hidden_size)], q_rows, config.attention_bias)?,
            feed_forward_norm: norm("post_attention_layernorm")?,
            gate_up: linear(&gate_up, hidden_size, config.mlp_bias)?,
            down: linear(&[("mlp.down_proj", hidden_size)], intermediate_size, config.mlp_bias)?,
        })
    }
}

impl Linear {
    fn options(&self) -> LinearOptions<2> {
        let options = LinearOptions::new();
        match &self.bias {
            Some(bias) => options.bias(bias.clone()),
            None => options,
        }
    }
}
