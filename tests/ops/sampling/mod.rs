//! Softmax and sampling: which tokens can be drawn, how often they are, and that a draw depends on nothing but itself.

mod filter;
mod integers;
mod offsets;
mod penalties;
mod pipeline;
mod softmax;
mod speculative;
mod temperatures;
mod tokens;
mod top_k;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_flashinfer::reference::Filter;
use burn_flashinfer::sampling::{
    DrawKey, Draws, Samples, min_p_sampling_from_probs, sampling_from_logits, sampling_from_probs,
    top_k_sampling_from_probs, top_p_sampling_from_probs,
};

use crate::support::{Host, Rng};

/// The numbers of an integer tensor.
pub fn ints(tensor: Tensor<1, Int>) -> Vec<i64> {
    tensor.into_data().convert::<i64>().try_to_vec().expect("converted to i64")
}

/// The tokens, or `None` where a draw is not valid; an id is never outside the vocabulary.
pub fn tokens(samples: Samples, vocab: usize) -> Vec<Option<usize>> {
    assert_eq!((samples.ids.dtype(), samples.ids.dims()), (DType::I32, samples.valid.dims()));
    let valid: Vec<bool> = samples.valid.into_data().iter::<bool>().collect();
    let ids = ints(samples.ids).into_iter().zip(valid).map(|(id, valid)| {
        assert!((0..vocab as i64).contains(&id), "token {id} of {vocab}");
        assert!(valid || id == 0, "token {id} of no distribution");
        valid.then_some(id as usize)
    });
    ids.collect()
}

pub fn integers(values: &[i64], dtype: DType, device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), (device, dtype))
}

pub fn floats(values: &[f32], device: &Device) -> Tensor<1> {
    Host { shape: [values.len()], values: values.to_vec(), dtype: DType::F32 }.tensor(device)
}

/// `count` draws from each of `rows` rows, with seeds of the generator.
pub fn draws(rows: usize, count: usize, rng: &mut Rng) -> Vec<DrawKey> {
    let (seed, offset) = (rng.bits(), rng.bits());
    let keys = (0..rows).flat_map(|row| (0..count).map(move |i| (row, i)));
    keys.map(|(row, i)| DrawKey { seed, stream: (row * count + i) as u32, offset, row }).collect()
}

/// A sampler, as it is called: with one filter, which differs from row to row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampler {
    All,
    TopK,
    TopP,
    MinP,
}

impl Sampler {
    pub const ALL: [Self; 4] = [Self::All, Self::TopK, Self::TopP, Self::MinP];

    /// What of `filters` this sampler heeds.
    pub fn heeds(self, filter: &Filter) -> Filter {
        match self {
            Self::All => Filter::default(),
            Self::TopK => Filter { top_k: filter.top_k, ..Filter::default() },
            Self::TopP => Filter { top_p: filter.top_p, ..Filter::default() },
            Self::MinP => Filter { min_p: filter.min_p, ..Filter::default() },
        }
    }

    pub fn run(
        self,
        probs: Tensor<2>,
        filters: &[Filter],
        keys: &[DrawKey],
        device: &Device,
    ) -> Vec<Option<usize>> {
        let vocab = probs.dims()[1];
        let draws = Draws::from_keys(keys, device).expect("rows fit");
        let top_k: Vec<i64> = filters.iter().map(|filter| filter.top_k.unwrap_or(0)).collect();
        let [top_p, min_p] = [|filter: &Filter| filter.top_p, |filter: &Filter| filter.min_p]
            .map(|get| filters.iter().map(|filter| get(filter).unwrap_or(0.0)).collect::<Vec<_>>());
        let samples = match self {
            Self::All => sampling_from_probs(probs, &draws),
            Self::TopK => top_k_sampling_from_probs(probs, integers(&top_k, DType::I32, device), &draws),
            Self::TopP => top_p_sampling_from_probs(probs, floats(&top_p, device), &draws),
            Self::MinP => min_p_sampling_from_probs(probs, floats(&min_p, device), &draws),
        };
        tokens(samples.expect("it fits"), vocab)
    }
}

/// [`sampling_from_logits`].
pub fn from_logits(
    logits: Tensor<2>,
    temperature: &[f32],
    keys: &[DrawKey],
    device: &Device,
) -> Vec<Option<usize>> {
    let vocab = logits.dims()[1];
    let draws = Draws::from_keys(keys, device).expect("rows fit");
    let samples = sampling_from_logits(logits, Some(floats(temperature, device)), &draws);
    tokens(samples.expect("it fits"), vocab)
}

/// A row of probabilities: of Gaussian logits `spread` apart, with zeros and with equals among them.
pub fn row(vocab: usize, spread: f32, rng: &mut Rng) -> Vec<f32> {
    let mut weights: Vec<f32> = (0..vocab).map(|_| (rng.normal() * spread).exp()).collect();
    for i in 0..vocab / 4 {
        let (a, b) = (rng.below(vocab), rng.below(vocab));
        weights[a] = if i % 2 == 0 { 0.0 } else { weights[b] };
    }
    if weights.iter().all(|&weight| weight == 0.0) {
        weights[0] = 1.0;
    }
    let sum: f32 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}
