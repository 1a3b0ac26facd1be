//! The capacity and the tokens of a decoding step.

use super::config::PlanConfig;
use crate::types::TokenTree;

/// Settings of a [`DecodeStep`](crate::DecodeStep): its capacity, and the kinds of layers that it has a plan for.
///
/// ```
/// use burn::tensor::DType;
/// use burn_flashinfer::{AttentionOptions, PlanConfig, StepConfig};
///
/// // As Gemma 2: every other layer sees 4096 tokens back. Up to 8 sequences; 4 drafted tokens and the one before are
/// // verified at once.
/// let options = AttentionOptions::new().causal(true).soft_cap(50.0);
/// let full = PlanConfig::new(16, 8, 256, DType::BF16).options(options.clone());
/// let local = full.clone().options(options.window_left(4095));
/// let config = StepConfig::new(full, 8, 8192).kind(local).q_len(5);
/// # let _ = config;
/// ```
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct StepConfig {
    pub(super) first: PlanConfig,
    pub(super) others: Vec<PlanConfig>,
    pub(super) requests: usize,
    pub(super) max_len: usize,
    pub(super) q_len: usize,
    pub(super) trees: bool,
}

impl StepConfig {
    /// A step of one token for each of up to `requests` sequences, none longer than `max_len` tokens, of layers that are
    /// all of the kind `first`.
    pub fn new(first: PlanConfig, requests: usize, max_len: usize) -> Self {
        Self { first, others: Vec::new(), requests, max_len, q_len: 1, trees: false }
    }

    /// Adds a kind of layers, with a plan of its own: of another window, soft cap or number of heads. Kinds are numbered
    /// in the order in which they are added; the first is 0.
    pub fn kind(mut self, config: PlanConfig) -> Self {
        self.others.push(config);
        self
    }

    /// Up to `q_len` tokens for each sequence, for the verification of drafted ones. They see each other as the mask of a
    /// kind says: with a [causal](crate::AttentionOptions::causal) one, those before.
    ///
    /// A variant of the caller's, which may read the number of a request, then finds sequence `i` at request `2 i`: behind
    /// it are the rows of its missing tokens.
    pub fn q_len(mut self, q_len: usize) -> Self {
        self.q_len = q_len;
        self
    }

    /// The tokens of a sequence may be a [tree](TokenTree), another one in each step; all kinds need a causal mask. The trees
    /// are a part of the buffer of the step, so that its launches stay what they are.
    ///
    /// [`positions`](crate::DecodeStep::positions) are then those of depths; each token has a slot of its own. [`keep`]
    /// moves the accepted ones together.
    ///
    /// ```
    /// use burn::tensor::{DType, Device, Distribution, Tensor};
    /// use burn_flashinfer::{
    ///     AttentionOptions, CacheConfig, DecodeStep, PagedKvCache, PlanConfig, StepConfig, TokenTree, append_paged_kv,
    /// };
    ///
    /// # fn main() -> burn_flashinfer::Result<()> {
    /// let device = Device::default();
    /// let mut cache = PagedKvCache::new(&CacheConfig::new(1, 16, 8, 2, 64), &device)?;
    /// let (story, letter) = (cache.create(), cache.create());
    /// let config = PlanConfig::new(8, 2, 64, DType::F32).options(AttentionOptions::new().causal(true));
    /// let mut step = DecodeStep::with_config(&StepConfig::new(config, 2, 100).q_len(4).trees(), &cache)?;
    ///
    /// // Token 5, two guesses of the next one, and one behind the second; two tokens in order.
    /// let tree = TokenTree::new(&[None, Some(0), Some(0), Some(2)])?;
    /// step.update(&mut cache, &[(story, (vec![5, 3, 8, 2], Some(tree.clone()))), (letter, (vec![7, 1], None))])?;
    /// let [q, k, v] = [8, 2, 2].map(|heads| Tensor::random([8, heads, 64], Distribution::Default, &device));
    /// append_paged_kv(cache.layer_mut(0)?, k, v, &step.slots())?;
    /// let attended = step.plan().run(q, cache.layer(0)?)?;
    /// assert_eq!(attended.output.dims(), [8, 8, 64]);
    /// // The model says 8 after 5, as the second guess.
    /// let accepted = tree.path(2).unwrap_or_default();
    /// cache.keep(story, 0, &accepted)?;
    /// assert_eq!(cache.len(story)?, 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`keep`]: crate::PagedKvCache::keep
    pub fn trees(mut self) -> Self {
        self.trees = true;
        self
    }

    /// The configuration of a kind with these trees, if the step has some.
    pub(super) fn with_trees(config: &PlanConfig, trees: Option<&[Option<TokenTree>]>) -> PlanConfig {
        match trees {
            Some(trees) => config.clone().options(config.options.clone().trees(trees)),
            None => config.clone(),
        }
    }
}

/// The tokens that a sequence goes on with in a step: one, several in order, or a [tree](StepConfig::trees).
pub trait StepTokens {
    /// The tokens.
    fn tokens(&self) -> &[u32];

    /// Their tree, if they are not in order.
    fn tree(&self) -> Option<&TokenTree> {
        None
    }
}

impl<T: StepTokens> StepTokens for (T, TokenTree) {
    fn tokens(&self) -> &[u32] {
        self.0.tokens()
    }

    fn tree(&self) -> Option<&TokenTree> {
        Some(&self.1)
    }
}

impl<T: StepTokens> StepTokens for (T, Option<TokenTree>) {
    fn tokens(&self) -> &[u32] {
        self.0.tokens()
    }

    fn tree(&self) -> Option<&TokenTree> {
        self.1.as_ref()
    }
}

impl StepTokens for u32 {
    fn tokens(&self) -> &[u32] {
        std::slice::from_ref(self)
    }
}

impl StepTokens for &[u32] {
    fn tokens(&self) -> &[u32] {
        self
    }
}

impl<const N: usize> StepTokens for [u32; N] {
    fn tokens(&self) -> &[u32] {
        self
    }
}

impl StepTokens for Vec<u32> {
    fn tokens(&self) -> &[u32] {
        self
    }
}
