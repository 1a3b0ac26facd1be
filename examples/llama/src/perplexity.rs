//! The perplexity of a text, with the keys and values that a cache holds.

use anyhow::{Result, ensure};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_flashinfer::KvLayout;

use super::model::Llama;

/// The pieces in which a text is read.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Tokens that are read at once. They see each other, and those before them, as the cache holds them.
    pub piece: usize,
    /// Tokens in a page, at most.
    pub page_size: usize,
    pub layout: KvLayout,
}

/// Natural logarithms of the probabilities of all tokens of a text but the first, each given those before it.
///
/// A text longer than the model's context is cut into texts.
pub fn log_probabilities(model: &Llama, text: &[u32], reading: Reading) -> Result<Vec<f32>> {
    let Reading { piece, page_size, layout } = reading;
    ensure!(piece > 0 && page_size > 0, "pieces and pages have at least 1 token");
    let mut all = Vec::with_capacity(text.len());
    for text in text.chunks(model.config.max_positions) {
        // Nothing follows the last token.
        let [read @ .., _] = text else { continue };
        if read.is_empty() {
            continue;
        }
        let page_size = page_size.min(read.len());
        let mut cache = model.new_cache(read.len().div_ceil(page_size), page_size, layout)?;
        let sequence = cache.create();
        for (tokens, next) in read.chunks(piece).zip(text[1..].chunks(piece)) {
            let hidden = model.extend_all(&mut cache, &[(sequence, tokens)])?;
            model.check_tokens(next.iter())?;
            let next: Vec<_> = next.iter().map(|&token| token as i32).collect();
            let next = TensorData::new(next, [tokens.len(), 1]);
            let next = Tensor::<2, Int>::from_data(next, (&model.device, DType::I32));
            let of_all = log_softmax(model.logits(hidden)?.cast(DType::F32), 1);
            all.extend(of_all.gather(1, next).try_into_vec_as::<f32>()?);
        }
    }
    Ok(all)
}

/// The perplexity of tokens with these logarithms of probabilities.
pub fn perplexity(log_probabilities: &[f32]) -> f64 {
    let sum: f64 = log_probabilities.iter().map(|&one| f64::from(one)).sum();
    (-sum / log_probabilities.len() as f64).exp()
}
