//! `config.json` and `generation_config.json` as Hugging Face writes them.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use burn_flashinfer::{RopeConfig, RopeScaling};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::folder;

/// The model, with every number decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub max_positions: usize,
    pub rms_norm_eps: f32,
    pub rope: RopeConfig,
    /// How many tokens to its left a token sees, if not all.
    pub window_left: Option<usize>,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub tied_embeddings: bool,
    pub eos_tokens: Vec<u32>,
}

/// The fields of `config.json` that say something, architecture apart.
#[derive(Deserialize)]
struct RawConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    hidden_act: Option<String>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Map<String, Value>>,
    rope_parameters: Option<Map<String, Value>>,
    partial_rotary_factor: Option<f64>,
    sliding_window: Option<usize>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    eos_token_id: Option<TokenIds>,
    quantization_config: Option<Value>,
}

/// One id or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a token id or an array of token ids")]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl From<TokenIds> for Vec<u32> {
    fn from(ids: TokenIds) -> Self {
        match ids {
            TokenIds::One(id) => vec![id],
            TokenIds::Many(ids) => ids,
        }
    }
}

const SUPPORTED: &str = "LlamaForCausalLM and MistralForCausalLM";

impl Config {
    /// Reads `config.json` of a model folder.
    pub fn load(folder: &Path) -> Result<Self> {
        let shown = folder.display();
        let hint = || folder::hint(folder);
        ensure!(folder.is_dir(), "there is no model folder {shown} (choose one with --model){}", hint());
        let path = folder.join("config.json");
        ensure!(
            folder::is_there(&path),
            "there is no {} (is this a Hugging Face model folder?){}",
            path.display(),
            hint()
        );
        let json = folder::read(&path)?;
        Self::parse(&json).with_context(|| path.display().to_string())
    }

    /// Reads the text of a `config.json`.
    pub fn parse(json: &str) -> Result<Self> {
        // The architecture comes first: a stranger's file may well lack the fields of a Llama.
        let value: Value = serde_json::from_str(json)?;
        let architecture = architecture(&value)?;
        let raw: RawConfig = serde_path_to_error::deserialize(&value)?;
        if let Some(quantization) = &raw.quantization_config {
            let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
            bail!("the weights are quantized ({method}), which is not supported; use the unquantized model");
        }
        if let Some(act) = raw.hidden_act.as_deref().filter(|act| !["silu", "swish"].contains(act)) {
            bail!("`hidden_act` is {act:?}, expected \"silu\"");
        }
        let q_heads = raw.num_attention_heads;
        let kv_heads = raw.num_key_value_heads.unwrap_or(q_heads);
        for (name, value) in [
            ("vocab_size", raw.vocab_size),
            ("hidden_size", raw.hidden_size),
            ("intermediate_size", raw.intermediate_size),
            ("num_hidden_layers", raw.num_hidden_layers),
            ("num_attention_heads", q_heads),
            ("num_key_value_heads", kv_heads),
            ("max_position_embeddings", raw.max_position_embeddings),
        ] {
            // The upper bound keeps every product of two in range.
            ensure!((1..=1 << 31).contains(&value), "`{name}` is {value}, expected 1 to 2^31");
        }
        ensure!(
            q_heads % kv_heads == 0,
            "`num_attention_heads` is {q_heads}, expected a multiple of `num_key_value_heads`, {kv_heads}"
        );
        let head_dim = match raw.head_dim {
            Some(head_dim) => head_dim,
            None => {
                let hidden = raw.hidden_size;
                ensure!(
                    hidden % q_heads == 0,
                    "there is no `head_dim`, and `hidden_size` {hidden} is no multiple of \
                     `num_attention_heads` {q_heads}"
                );
                hidden / q_heads
            }
        };
        ensure!((1..=1 << 16).contains(&head_dim), "`head_dim` is {head_dim}, expected 1 to 65536");
        let epsilon = raw.rms_norm_eps;
        ensure!(epsilon >= 0.0 && epsilon.is_finite(), "`rms_norm_eps` is {epsilon}, expected at least 0");
        let window_left = match raw.sliding_window.filter(|_| architecture == Architecture::Mistral) {
            // Hugging Face counts the token itself.
            Some(window) => {
                Some(window.checked_sub(1).context("`sliding_window` is 0, expected at least 1")?)
            }
            None => None,
        };
        Ok(Self {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            q_heads,
            kv_heads,
            head_dim,
            max_positions: raw.max_position_embeddings,
            rms_norm_eps: epsilon as f32,
            rope: rope(&raw, head_dim)?,
            window_left,
            // Mistral has no biases, whatever its configuration says.
            attention_bias: raw.attention_bias && architecture == Architecture::Llama,
            mlp_bias: raw.mlp_bias && architecture == Architecture::Llama,
            tied_embeddings: raw.tie_word_embeddings,
            eos_tokens: raw.eos_token_id.map(Vec::from).unwrap_or_default(),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Architecture {
    Llama,
    Mistral,
}

fn architecture(config: &Value) -> Result<Architecture> {
    let named = config.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
    let model_type = config.get("model_type").and_then(Value::as_str);
    match (named, model_type) {
        (Some("LlamaForCausalLM"), _) | (None, Some("llama")) => Ok(Architecture::Llama),
        (Some("MistralForCausalLM"), _) | (None, Some("mistral")) => Ok(Architecture::Mistral),
        (Some(name), _) => bail!("the architecture is {name}; this program runs {SUPPORTED}"),
        (None, Some(name)) => bail!("the model type is {name:?}; this program runs {SUPPORTED}"),
        (None, None) => {
            bail!("there is neither `architectures` nor `model_type`; this program runs {SUPPORTED}")
        }
    }
}

/// RoPE from `rope_parameters` (Transformers 5), or from `rope_theta` and `rope_scaling` (before).
fn rope(raw: &RawConfig, head_dim: usize) -> Result<RopeConfig> {
    let (field, parameters) = match (&raw.rope_parameters, &raw.rope_scaling) {
        (Some(parameters), _) => ("rope_parameters", parameters),
        (None, Some(scaling)) => ("rope_scaling", scaling),
        (None, None) => ("rope_scaling", &Map::new()),
    };
    let number = |name: &str| -> Result<Option<f64>> {
        match parameters.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => bail!("`{field}.{name}` is {value}, expected a number"),
            },
        }
    };
    let needed = |name: &str| number(name)?.with_context(|| format!("`{field}.{name}` is missing"));

    let partial = number("partial_rotary_factor")?.or(raw.partial_rotary_factor).unwrap_or(1.0);
    ensure!(partial == 1.0, "`partial_rotary_factor` is {partial}, expected 1");
    let theta = number("rope_theta")?.or(raw.rope_theta).unwrap_or(10_000.0);
    let kind = parameters.get("rope_type").or_else(|| parameters.get("type"));
    let scaling = match kind.map(|kind| kind.as_str().unwrap_or_default()) {
        None if parameters.contains_key("factor") => bail!("`{field}.rope_type` is missing"),
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: needed("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: needed("factor")?,
            low_freq_factor: needed("low_freq_factor")?,
            high_freq_factor: needed("high_freq_factor")?,
            original_max_positions: needed("original_max_position_embeddings")? as usize,
        },
        Some(_) => bail!(
            "`{field}.rope_type` is {}, expected \"default\", \"linear\" or \"llama3\"",
            kind.unwrap_or(&Value::Null)
        ),
    };
    Ok(RopeConfig::new(head_dim).theta(theta).scaling(scaling))
}

/// `generation_config.json`: how the makers of the model would have it sampled. Every part is optional.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct GenerationDefaults {
    eos_token_id: Option<TokenIds>,
    #[serde(default)]
    do_sample: bool,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
}

impl GenerationDefaults {
    /// Reads the file of a model folder, if there is one.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("generation_config.json");
        if folder::is_there(&path) { read_json(&path) } else { Ok(Self::default()) }
    }

    /// The tokens that end a text.
    pub fn eos_tokens(&self) -> Option<Vec<u32>> {
        self.eos_token_id.clone().map(Vec::from)
    }

    /// The temperature, 0 for greedy.
    pub fn temperature(&self) -> f64 {
        if self.do_sample { self.temperature.unwrap_or(1.0) } else { 0.0 }
    }

    /// How many tokens to choose from; [`None`] for all.
    pub fn top_k(&self) -> Option<usize> {
        self.top_k.filter(|&k| self.do_sample && k > 0)
    }

    /// The share of probability to choose from, 1 for all.
    pub fn top_p(&self) -> f64 {
        self.top_p.filter(|_| self.do_sample).unwrap_or(1.0)
    }
}

/// Reads a JSON file; errors name it, and the field.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = folder::read(path)?;
    let parse = || -> Result<T> {
        let value: Value = serde_json::from_str(&text)?;
        Ok(serde_path_to_error::deserialize(value)?)
    };
    parse().with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The shape of a Llama 2 file, with `changes` on top; null takes a field away.
    fn parse(changes: Value) -> Result<Config> {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
            "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
            "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
            "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16",
            "transformers_version": "4.31.0.dev0", "use_cache": true, "vocab_size": 32000
        });
        for (key, value) in changes.as_object().cloned().unwrap_or_default() {
            match value {
                Value::Null => drop(config.as_object_mut().map(|map| map.remove(&key))),
                value => config[key] = value,
            }
        }
        Config::parse(&config.to_string())
    }

    fn refusal(changes: Value) -> String {
        format!("{:#}", parse(changes).expect_err("should have been refused"))
    }

    #[test]
    fn llama_2() {
        let config = parse(json!({})).unwrap();
        assert_eq!((config.q_heads, config.kv_heads, config.head_dim), (32, 32, 128));
        assert_eq!(config.rope, RopeConfig::new(128).theta(10_000.0));
        assert_eq!(config.eos_tokens, [2]);
        assert_eq!(config.window_left, None);
    }

    #[test]
    fn llama_1_without_key_value_heads() {
        assert_eq!(parse(json!({"num_key_value_heads": null})).unwrap().kv_heads, 32);
    }

    #[test]
    fn llama_3_scaling_in_both_forms() {
        let scaling = json!({"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"});
        let rest = json!({"hidden_size": 2048, "num_key_value_heads": 8, "head_dim": 64,
            "max_position_embeddings": 131072, "tie_word_embeddings": true, "eos_token_id": [128001, 128008, 128009]});
        let mut classic = rest.clone();
        classic["rope_scaling"] = scaling.clone();
        classic["rope_theta"] = json!(500000.0);
        let mut newer = rest;
        newer["rope_parameters"] = scaling;
        newer["rope_parameters"]["rope_theta"] = json!(500000.0);
        let classic = parse(classic).unwrap();
        assert_eq!(classic, parse(newer).unwrap());
        let expected = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        };
        assert_eq!(classic.rope, RopeConfig::new(64).theta(500_000.0).scaling(expected));
        assert_eq!(classic.eos_tokens, [128001, 128008, 128009]);
        assert!(classic.tied_embeddings);
    }

    #[test]
    fn linear_scaling_by_its_old_name() {
        let config = parse(json!({"rope_scaling": {"type": "linear", "factor": 4.0}})).unwrap();
        assert_eq!(config.rope, RopeConfig::new(128).scaling(RopeScaling::Linear { factor: 4.0 }));
    }

    #[test]
    fn mistral_window_counts_the_token_itself() {
        let mistral = json!({"architectures": ["MistralForCausalLM"], "num_key_value_heads": 8, "sliding_window": 4096});
        assert_eq!(parse(mistral).unwrap().window_left, Some(4095));
        assert_eq!(parse(json!({"sliding_window": 4096})).unwrap().window_left, None, "Llama has no window");
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        for (changes, message) in [
            (
                json!({"architectures": ["GPT2LMHeadModel"], "hidden_size": null}),
                "architecture is GPT2LMHeadModel",
            ),
            (json!({"architectures": null, "model_type": "phi"}), "model type is \"phi\""),
            (
                json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}),
                "`rope_scaling.rope_type` is \"yarn\"",
            ),
            (json!({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}), "low_freq_factor` is missing"),
            (
                json!({"rope_scaling": {"rope_type": "linear", "factor": "2"}}),
                "factor` is \"2\", expected a number",
            ),
            (json!({"hidden_act": "gelu"}), "`hidden_act` is \"gelu\""),
            (json!({"quantization_config": {"quant_method": "awq"}}), "quantized (awq)"),
            (json!({"hidden_size": null}), "missing field `hidden_size`"),
            (json!({"hidden_size": "big"}), "hidden_size: invalid type"),
            (json!({"num_hidden_layers": 0}), "`num_hidden_layers` is 0"),
            (json!({"num_key_value_heads": 5}), "a multiple of `num_key_value_heads`, 5"),
            (json!({"hidden_size": 4097}), "`hidden_size` 4097 is no multiple"),
            (json!({"eos_token_id": "</s>"}), "eos_token_id: expected a token id or an array"),
        ] {
            let refusal = refusal(changes);
            assert!(refusal.contains(message), "{refusal:?} should contain {message:?}");
        }
        assert!(format!("{:#}", Config::parse("{\"hidden").expect_err("no JSON")).contains("EOF"));
    }

    #[test]
    fn generation_defaults_apply_only_when_sampling() {
        let parse = |json| -> GenerationDefaults { serde_json::from_str(json).unwrap() };
        let greedy = parse(r#"{"eos_token_id": 1, "temperature": 0.6, "top_p": 0.9}"#);
        assert_eq!((greedy.temperature(), greedy.top_k(), greedy.top_p()), (0.0, None, 1.0));
        assert_eq!(greedy.eos_tokens(), Some(vec![1]));
        let sampling =
            parse(r#"{"eos_token_id": [1, 2], "do_sample": true, "temperature": 0.6, "top_p": 0.9}"#);
        assert_eq!((sampling.temperature(), sampling.top_k(), sampling.top_p()), (0.6, None, 0.9));
        assert_eq!(sampling.eos_tokens(), Some(vec![1, 2]));
        assert_eq!(parse("{}").eos_tokens(), None);
    }
}
