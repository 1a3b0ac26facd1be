//! The capacity and the tokens of a decoding step.

use super::config::PlanConfig;

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
}

impl StepConfig {
    /// A step of one token for each of up to `requests` sequences, none longer than `max_len` tokens, of layers that are
    /// all of the kind `first`.
    pub fn new(first: PlanConfig, requests: usize, max_len: usize) -> Self {
        Self { first, others: Vec::new(), requests, max_len, q_len: 1 }
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
}

/// The tokens that a sequence goes on with in a step: one, or several in order.
pub trait StepTokens {
    /// The tokens.
    fn tokens(&self) -> &[u32];
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
