//! RoPE as `config.json` describes it: in `rope_parameters` since Transformers 5, in `rope_theta` and `rope_scaling` before.

use anyhow::{Context, Result, bail, ensure};
use burn_flashinfer::{RopeConfig, RopeScaling};
use serde::Deserialize;

use super::config::RawConfig;
use super::json;

/// The fields of either.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(expecting = "a map")]
pub struct RopeParameters {
    rope_type: Option<String>,
    /// The older name of it.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    #[serde(default, deserialize_with = "json::nullable")]
    factor: Option<Option<f64>>,
    original_max_position_embeddings: Option<usize>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    #[serde(default, deserialize_with = "json::nullable")]
    truncate: Option<Option<bool>>,
}

/// The rotations of a model whose heads have `head_dim` elements.
pub fn rope(config: &RawConfig, head_dim: usize) -> Result<RopeConfig> {
    let described = |name, parameters: &Option<RopeParameters>| -> Result<Option<RopeConfig>> {
        let parameters = parameters.as_ref().filter(|parameters| **parameters != RopeParameters::default());
        parameters.map(|parameters| one(config, name, parameters, head_dim)).transpose()
    };
    let scaling = described("rope_scaling", &config.rope_scaling)?;
    match (scaling, described("rope_parameters", &config.rope_parameters)?) {
        (Some(scaling), Some(parameters)) if scaling != parameters => {
            bail!("`rope_scaling` says {scaling:?}, and `rope_parameters` says {parameters:?}; which is it?")
        }
        (Some(described), _) | (None, Some(described)) => Ok(described),
        (None, None) => one(config, "rope_parameters", &RopeParameters::default(), head_dim),
    }
}

/// What the one of this name says, with the fields beside it.
fn one(config: &RawConfig, name: &str, parameters: &RopeParameters, head_dim: usize) -> Result<RopeConfig> {
    let needed = |field, value: Option<f64>| value.with_context(|| format!("`{name}.{field}` is missing"));
    let partial = parameters.partial_rotary_factor.or(config.partial_rotary_factor).unwrap_or(1.0);
    ensure!(partial == 1.0, "`partial_rotary_factor` is {partial}, expected 1");
    let theta = parameters.rope_theta.or(config.rope_theta).unwrap_or(10_000.0);
    let max_positions = config.max_position_embeddings;
    let original_max_positions = config
        .original_max_position_embeddings
        .or(parameters.original_max_position_embeddings)
        .unwrap_or(max_positions);
    let factor = || needed("factor", parameters.factor.flatten());
    let kind = parameters.rope_type.as_deref().or(parameters.r#type.as_deref());
    let scaling = match kind {
        None if parameters.factor.is_some() => bail!("`{name}.rope_type` is missing"),
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: factor()? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: needed("low_freq_factor", parameters.low_freq_factor)?,
            high_freq_factor: needed("high_freq_factor", parameters.high_freq_factor)?,
            original_max_positions,
        },
        Some("yarn") => {
            let factor = match parameters.factor {
                // Null means how much longer the context has become.
                Some(None) => max_positions as f64 / original_max_positions as f64,
                _ => factor()?,
            };
            RopeScaling::Yarn {
                factor,
                beta_fast: not_0(parameters.beta_fast).unwrap_or(32.0),
                beta_slow: not_0(parameters.beta_slow).unwrap_or(1.0),
                original_max_positions,
                attention_factor: attention_factor(parameters, factor),
                // To Python, null is false.
                truncate: parameters.truncate.unwrap_or(Some(true)).unwrap_or(false),
            }
        }
        Some(kind) => {
            bail!("`{name}.rope_type` is {kind:?}, expected \"default\", \"linear\", \"llama3\" or \"yarn\"")
        }
    };
    Ok(RopeConfig::new(head_dim).theta(theta).scaling(scaling))
}

/// To Python, 0 is as good as no number.
fn not_0(number: Option<f64>) -> Option<f64> {
    number.filter(|&number| number != 0.0)
}

/// The factor of YaRN on cosines and sines, if it is not what follows from `factor` alone.
fn attention_factor(parameters: &RopeParameters, factor: f64) -> Option<f64> {
    let scaled = |mscale: f64| if factor > 1.0 { 0.1 * mscale * factor.ln() + 1.0 } else { 1.0 };
    parameters.attention_factor.or_else(|| {
        let (mscale, all_dim) = (not_0(parameters.mscale)?, not_0(parameters.mscale_all_dim)?);
        Some(scaled(mscale) / scaled(all_dim))
    })
}
