//! The model: embedding, layers of attention and feed-forward, logits.
//!
//! Everything that depends on which requests are in the batch (positions, slots, and the plan of attention) is made once for
//! each step and shared by all layers.

use std::cell::RefCell;

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_flashinfer::{
    CacheConfig, DecodeStep, Indptr, KvLayout, PagedKvCache, PagedPlan, PlanConfig, Positions, Qkv,
    RaggedPlan, Rope, SequenceId, apply_rope, matmul_nt, rope_append_paged_kv,
};

use super::config::Config;
use super::kv_cache::{CALIBRATED_TOKENS, Calibration, KvCodes};
use super::linear::{Linear, Norm, Residual};

/// A sequence, and the tokens that it goes on with.
pub type Piece<'a> = (SequenceId, &'a [u32]);

/// A Llama, ready to run.
pub struct Llama {
    pub config: Config,
    pub device: Device,
    pub dtype: DType,
    /// For as many positions as texts have needed so far.
    pub(super) rope: RefCell<Rope>,
    pub(super) attention: PlanConfig,
    pub(super) codes: Option<KvCodes>,
    /// `[vocab_size, hidden_size]`.
    pub(super) embedding: Tensor<2>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Norm,
    /// `[vocab_size, hidden_size]`, the embedding itself if the two are tied.
    pub(super) head: Tensor<2>,
}

pub(super) struct Layer {
    pub(super) attention_norm: Norm,
    /// Queries, keys and values in one product.
    pub(super) qkv: Linear,
    pub(super) output: Linear,
    pub(super) feed_forward_norm: Norm,
    /// Gate and up in one product.
    pub(super) gate_up: Linear,
    pub(super) down: Linear,
}

impl Llama {
    /// A cache with room for `pages` pages of `page_size` tokens.
    pub fn new_cache(&self, pages: usize, page_size: usize, layout: KvLayout) -> Result<PagedKvCache> {
        let spare = self.uncalibrated().map_or(0, |_| CALIBRATED_TOKENS.div_ceil(page_size.max(1)));
        let config = self.cache_config(pages.saturating_add(spare), page_size).layout(layout);
        tracing::debug!(pages, page_size, mib = config.bytes() >> 20, "key-value cache");
        let mut cache = PagedKvCache::new(&config, &self.device)?;
        self.set_scales(&mut cache)?;
        Ok(cache)
    }

    /// The codes that the cache holds, if not keys and values of type `dtype`.
    pub fn codes(&self) -> Option<&KvCodes> {
        self.codes.as_ref()
    }

    /// Bytes of the cache for each token.
    pub fn cached_bytes(&self) -> usize {
        self.cache_config(1, 1).bytes()
    }

    /// The type of cached keys and values that are read back: exact, whatever the cache holds.
    pub fn cached_dtype(&self) -> DType {
        if self.codes.is_some() { DType::F32 } else { self.dtype }
    }

    fn cache_config(&self, pages: usize, page_size: usize) -> CacheConfig {
        let Config { layers, kv_heads, head_dim, .. } = self.config;
        let config = CacheConfig::new(layers, pages, page_size, kv_heads, head_dim);
        match &self.codes {
            None => config.dtype(self.dtype),
            Some(codes) => config.fp8(codes.format),
        }
    }

    /// The codes of the cache, if a prompt has to give them their scales.
    fn uncalibrated(&self) -> Option<&KvCodes> {
        self.codes.as_ref().filter(|codes| !codes.are_calibrated())
    }

    fn set_scales(&self, cache: &mut PagedKvCache) -> Result<()> {
        self.codes.as_ref().map_or(Ok(()), |codes| codes.set_scales(cache))
    }

    /// Goes on with each sequence by one token or several. Returns the hidden states `[pieces, hidden_size]` after the last
    /// token of each piece, for [`logits`](Self::logits).
    ///
    /// A piece may be a prompt, a part of one, or the token that was chosen last: the tokens before it are in the pages.
    pub fn extend(&self, cache: &mut PagedKvCache, pieces: &[Piece<'_>]) -> Result<Tensor<2>> {
        let hidden = self.extend_all(cache, pieces)?;
        if hidden.dims()[0] == pieces.len() {
            return Ok(hidden);
        }
        let mut end = 0;
        let last = pieces.iter().map(|(_, tokens)| {
            end += tokens.len();
            end - 1
        });
        Ok(hidden.select(0, self.indices(last)))
    }

    /// As [`extend`](Self::extend), after every token of every piece: `[tokens, hidden_size]`.
    ///
    /// The first piece gives a cache of 8 bits its scales, if these are not known.
    pub fn extend_all(&self, cache: &mut PagedKvCache, pieces: &[Piece<'_>]) -> Result<Tensor<2>> {
        let (Some(codes), Some((_, first))) = (self.uncalibrated(), pieces.first()) else {
            self.set_scales(cache)?;
            return self.append(cache, pieces, None);
        };
        let Config { vocab_size, max_positions, .. } = self.config;
        let more = CALIBRATED_TOKENS.min(max_positions).saturating_sub(first.len());
        let spread: Vec<_> = (0..more).map(|at| (at * vocab_size / more) as u32).collect();
        let beside = cache.create();
        let spread = Some((beside, spread.as_slice())).filter(|(_, tokens)| !tokens.is_empty());
        let all: Vec<_> = spread.into_iter().chain(pieces.iter().copied()).collect();
        let mut calibration = codes.calibration(more + first.len());
        let hidden = self.append(cache, &all, Some(&mut calibration));
        cache.free(beside)?;
        let hidden = hidden?;
        calibration.end();
        let [tokens, _] = hidden.dims();
        Ok(hidden.narrow(0, more, tokens - more))
    }

    /// Runs the tokens of pieces, and appends their keys and values to the cache.
    fn append(
        &self,
        cache: &mut PagedKvCache,
        pieces: &[Piece<'_>],
        mut calibration: Option<&mut Calibration<'_>>,
    ) -> Result<Tensor<2>> {
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
        self.forward(tokens, |layer, qkv| {
            let pages = cache.layer_mut(layer)?;
            if let Some(calibration) = &mut calibration {
                let (_, k) = apply_rope(qkv.k.clone(), qkv.k.clone(), &rope, step.positions())?;
                let scales = calibration.layer(k, qkv.v.clone()).with_context(|| format!("layer {layer}"));
                let [k, v] = scales?;
                pages.set_scales(k, v)?;
            }
            let q = rope_append_paged_kv(pages, qkv, None, &rope, step.positions(), step.slots())?;
            Ok(plan.run(q, pages)?.output)
        })
    }

    /// The buffers of a step of up to `sequences` sequences of up to `max_len` tokens, for [`replayable`](Self::replayable).
    pub fn new_step(&self, cache: &PagedKvCache, sequences: usize, max_len: usize) -> Result<DecodeStep> {
        ensure!(
            self.uncalibrated().is_none(),
            "a prompt has to be read before a step, so that the cache of 8 bits has scales"
        );
        Ok(DecodeStep::new(&self.attention, sequences, max_len, cache)?)
    }

    /// One more token for each sequence: the logits `[sequences, vocab_size]` after it. All that changes from step to step is
    /// on the device already, so that a graph can be captured of it.
    pub fn replayable(&self, cache: &mut PagedKvCache, step: &DecodeStep) -> Result<Tensor<2>> {
        self.set_scales(cache)?;
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
