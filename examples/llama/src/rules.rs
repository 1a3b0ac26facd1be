//! Tokens that a text may not go on with, or had better not: the settings of `generation_config.json` that look back on
//! the text, each as the logits processor of that name in Hugging Face's `transformers` has it.

use anyhow::{Result, ensure};
use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use burn_flashinfer::sampling::{Penalties, apply_penalties};

/// The settings that the logits of a token depend on besides the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Divides positive logits, and multiplies negative ones, of tokens that the prompt or the text has; 1 for none.
    pub repetition_penalty: f64,
    /// No run of this many tokens comes twice in prompt and text; 0 if it may.
    pub no_repeat_ngram_size: usize,
    /// Runs of tokens that are never completed. A token that ends the text may do so nevertheless.
    pub bad_words: Vec<Vec<u32>>,
    /// Tokens that never come.
    pub suppressed: Vec<u32>,
    /// Tokens that never come first.
    pub suppressed_first: Vec<u32>,
    /// The text does not end before prompt and text have this many tokens.
    pub min_length: usize,
    /// The text does not end before it has this many tokens.
    pub min_new_tokens: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            bad_words: Vec::new(),
            suppressed: Vec::new(),
            suppressed_first: Vec::new(),
            min_length: 0,
            min_new_tokens: 0,
        }
    }
}

/// A prompt and what was written after it.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    pub tokens: &'a [u32],
    /// The number of them that are the prompt.
    pub prompt: usize,
}

impl Rules {
    /// True if the logits stay what they are.
    pub fn are_none(&self) -> bool {
        *self == Self::default()
    }

    /// Applies the rules to `logits` `[texts, vocab_size]`, in f32 as `transformers` does. `eos_tokens` end a text.
    pub fn apply(&self, logits: Tensor<2>, texts: &[Text<'_>], eos_tokens: &[u32]) -> Result<Tensor<2>> {
        if self.are_none() {
            return Ok(logits);
        }
        let ([rows, vocab_size], device) = (logits.dims(), logits.device());
        ensure!(rows == texts.len(), "there are {rows} rows of logits for {} texts", texts.len());
        let mut logits = logits.cast(DType::F32);
        if self.repetition_penalty != 1.0 {
            let seen = texts.iter().map(|text| text.tokens.iter().copied());
            let seen = marked(seen, rows, vocab_size, &device).int();
            let all = |of: f64| Tensor::full([rows], of, (&device, DType::F32));
            let penalties = Penalties {
                prompt: seen.clone(),
                output: seen,
                repetition: all(self.repetition_penalty),
                frequency: all(0.0),
                presence: all(0.0),
            };
            logits = apply_penalties(logits, &penalties)?;
        }
        let banned: Vec<_> = texts.iter().map(|&text| self.banned(text, eos_tokens)).collect();
        if banned.iter().any(|tokens| !tokens.is_empty()) {
            logits = logits.mask_fill(marked(banned, rows, vocab_size, &device), f64::NEG_INFINITY);
        }
        Ok(logits)
    }

    /// The tokens that a text may not go on with.
    fn banned(&self, text: Text<'_>, eos_tokens: &[u32]) -> Vec<u32> {
        let Text { tokens, prompt } = text;
        let mut banned = self.suppressed.clone();
        if tokens.len() == prompt {
            banned.extend(&self.suppressed_first);
        }
        if tokens.len() < self.min_length || tokens.len() - prompt < self.min_new_tokens {
            banned.extend(eos_tokens);
        }
        if let Some(known) = self.no_repeat_ngram_size.checked_sub(1)
            && let Some(start) = tokens.len().checked_sub(known)
        {
            let runs = tokens.windows(known + 1).filter(|run| run[..known] == tokens[start..]);
            banned.extend(runs.map(|run| run[known]));
        }
        for word in &self.bad_words {
            if let Some((last, first)) = word.split_last()
                && tokens.ends_with(first)
                && !(first.is_empty() && eos_tokens.contains(last))
            {
                banned.push(*last);
            }
        }
        banned
    }
}

/// `[rows, vocab_size]`: whether the list of a row has the token. A number that is no token is in none.
fn marked(
    lists: impl IntoIterator<Item = impl IntoIterator<Item = u32>>,
    rows: usize,
    vocab_size: usize,
    device: &Device,
) -> Tensor<2, Bool> {
    let mut marks = vec![false; rows * vocab_size];
    for (row, list) in marks.chunks_exact_mut(vocab_size).zip(lists) {
        for token in list {
            if let Some(mark) = row.get_mut(token as usize) {
                *mark = true;
            }
        }
    }
    Tensor::from_data(TensorData::new(marks, [rows, vocab_size]), device)
}
