//! What Hugging Face transformers computed, see `tests/fixtures/hf/make_fixtures.py`.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};

use llama::model::Llama;
use llama::weights::LoadOptions;

pub const NAMES: [&str; 3] = ["gqa_llama3", "mha_untied", "tiny"];

/// A checkpoint and what it should compute.
pub struct Fixture {
    pub folder: PathBuf,
    pub prompts: Vec<Prompt>,
}

pub struct Prompt {
    pub tokens: Vec<u32>,
    /// `[tokens, vocab]`, row by row.
    pub logits_f32: Vec<f32>,
    pub logits_bf16: Vec<f32>,
    pub greedy: Vec<u32>,
}

/// The folder of a checkpoint.
pub fn folder(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    match name {
        "tiny" => root.join("tiny"),
        name => root.join("tests/fixtures/hf").join(name),
    }
}

pub fn fixture(name: &str) -> Fixture {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/hf/{name}.safetensors"));
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let count = tensors.names().iter().filter(|name| name.starts_with("prompt_")).count();
    let prompt = |index: usize| Prompt {
        tokens: tokens(&tensors, &format!("prompt_{index}")),
        logits_f32: floats(&tensors, &format!("logits_f32_{index}")),
        logits_bf16: floats(&tensors, &format!("logits_bf16_{index}")),
        greedy: tokens(&tensors, &format!("greedy_{index}")),
    };
    Fixture { folder: folder(name), prompts: (0..count).map(prompt).collect() }
}

pub fn load(folder: &Path, dtype: Option<DType>) -> anyhow::Result<Llama> {
    load_with(folder, &LoadOptions { dtype, ..LoadOptions::default() })
}

pub fn load_with(folder: &Path, options: &LoadOptions) -> anyhow::Result<Llama> {
    Llama::load(folder, &Device::default(), options, |_| |_| ())
}

/// All logits of prompts, one after the other.
pub fn logits(model: &Llama, prompts: &[&[u32]]) -> Vec<f32> {
    values(model.logits_all(prompts).unwrap())
}

pub fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().unwrap()
}

pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // `f32::max` would pass over a NaN.
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |max, next| if next <= max { max } else { next })
}

fn tokens(tensors: &SafeTensors<'_>, name: &str) -> Vec<u32> {
    let view = tensors.tensor(name).unwrap();
    assert_eq!(view.dtype(), Dtype::I64, "{name}");
    view.data().as_chunks::<8>().0.iter().map(|&bytes| i64::from_le_bytes(bytes) as u32).collect()
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = tensors.tensor(name).unwrap();
    match view.dtype() {
        Dtype::F32 => view.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        Dtype::BF16 => {
            view.data().as_chunks::<2>().0.iter().map(|&[a, b]| f32::from_le_bytes([0, 0, a, b])).collect()
        }
        other => panic!("{name} is {other:?}"),
    }
}
