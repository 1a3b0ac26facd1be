//! Scales of cached keys and values in checkpoints, under the names of those who write them.

use anyhow::{Context, Result, ensure};

use super::config::Config;
use super::weights::Weights;

/// The names of the scales of keys and of values, within a layer's attention. All are meant for e4m3.
const NAMES: [[&str; 2]; 5] = [
    // llm-compressor and vLLM.
    ["k_scale", "v_scale"],
    // As vLLM names its own module.
    ["attn.k_scale", "attn.v_scale"],
    // ModelOpt.
    ["k_proj.k_scale", "v_proj.v_scale"],
    // AutoFP8, Quark, and compressed-tensors at first.
    ["k_proj.output_scale", "v_proj.output_scale"],
    // One for both, as vLLM had it at first.
    ["kv_scale", "kv_scale"],
];

/// True if the checkpoint has a scale of this layer's keys or values.
pub fn are_stored(weights: &Weights, layer: usize) -> bool {
    names(weights, layer).is_some()
}

/// The scales of keys and of values of every layer, one or one for each key head; or none, if the checkpoint has none at all.
pub fn stored(config: &Config, weights: &Weights) -> Result<Option<Vec<[Vec<f32>; 2]>>> {
    let Some(first) = (0..config.layers).find(|&layer| are_stored(weights, layer)) else { return Ok(None) };
    let of_layer = |layer| -> Result<_> {
        let names = names(weights, layer).with_context(|| {
            let [without, with] = [layer, first].map(module);
            format!("{without} has no scales of keys and values, which {with} has; try --kv-scales calibrate")
        })?;
        let [k, v] = names.map(|name| scales(config, weights, &name));
        Ok([k?, v?])
    };
    (0..config.layers).map(of_layer).collect::<Result<_>>().map(Some)
}

/// The scales of keys or of values of a layer.
fn scales(config: &Config, weights: &Weights, name: &str) -> Result<Vec<f32>> {
    let heads = config.kv_heads;
    let (scales, _) = weights.floats(name, &[&[], &[1], &[1, 1], &[heads], &[heads, 1], &[heads, 1, 1]])?;
    for &scale in &scales {
        ensure!(scale > 0.0 && scale.is_finite(), "{name} is {scale}, expected a positive number");
    }
    Ok(scales)
}

fn module(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn")
}

/// The names that the scales of a layer have, if there is one of them.
fn names(weights: &Weights, layer: usize) -> Option<[String; 2]> {
    let full = |names: [&str; 2]| names.map(|name| format!("{}.{name}", module(layer)));
    NAMES.map(full).into_iter().find(|names| names.iter().any(|name| weights.has(name)))
}
