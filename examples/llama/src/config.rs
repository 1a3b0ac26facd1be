//! `config.json` as Hugging Face writes it. What is in it is done as `transformers` 5 does it, or refused by name.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::DType;
use burn_flashinfer::RopeConfig;
use serde::Deserialize;

use super::folder;
use super::json::{self, Fields, Setting, TokenIds};
use super::quantization::Quantization;
use super::rope::{RopeParameters, rope};

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
    /// The format of the weights, if they have 8 or 4 bits.
    pub quantization: Option<Quantization>,
    /// The type to compute in, if the file says.
    pub dtype: Option<DType>,
    pub eos_tokens: Vec<u32>,
}

/// The fields that say something about a Llama.
#[derive(Deserialize)]
pub struct RawConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default, deserialize_with = "json::nullable")]
    num_key_value_heads: Option<Option<usize>>,
    head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    rms_norm_eps: f64,
    hidden_act: Option<String>,
    pub rope_theta: Option<f64>,
    pub partial_rotary_factor: Option<f64>,
    pub original_max_position_embeddings: Option<usize>,
    pub rope_scaling: Option<RopeParameters>,
    pub rope_parameters: Option<RopeParameters>,
    #[serde(default, deserialize_with = "json::nullable")]
    sliding_window: Option<Option<usize>>,
    use_sliding_window: Option<bool>,
    layer_types: Option<Vec<String>>,
    is_causal: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    dtype: Option<String>,
    torch_dtype: Option<String>,
    eos_token_id: Option<TokenIds>,
}

const SUPPORTED: &str = "LlamaForCausalLM and MistralForCausalLM";

/// Values of a Mistral that does not say.
const MISTRAL_KV_HEADS: usize = 8;
const MISTRAL_WINDOW: usize = 4096;

/// Settings of other architectures, and the numbers at which they change nothing: a file with one of them describes no
/// Llama, whatever its name.
const FOREIGN: [Setting; 22] = [
    ("attention_chunk_size", |_| false),
    ("attention_multiplier", |_| false),
    ("attn_logit_softcapping", |number| number == 0.0),
    ("bias", |_| false),
    ("clip_qkv", |number| number == 0.0),
    ("embedding_multiplier", |number| number == 1.0),
    ("final_logit_softcapping", |number| number == 0.0),
    ("kv_sharing_modes", |_| false),
    ("logit_scale", |number| number == 1.0),
    ("logits_scaling", |number| number == 1.0),
    ("logits_soft_cap", |number| number == 0.0),
    ("n_routed_experts", |number| number == 0.0),
    ("num_experts", |number| number == 0.0),
    ("num_local_experts", |number| number == 0.0),
    ("per_layer_config", |_| false),
    ("qk_layernorm", |_| false),
    ("qk_norm", |_| false),
    ("qkv_bias", |_| false),
    ("query_pre_attn_scalar", |_| false),
    ("residual_multiplier", |number| number == 1.0),
    ("use_bidirectional_attention", |_| false),
    ("use_qk_norm", |_| false),
];

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
        let mut config = Self::parse(&json).with_context(|| path.display().to_string())?;
        if config.quantization.is_none() {
            config.quantization = Quantization::beside(folder)?;
        }
        Ok(config)
    }

    /// Reads the text of a `config.json`.
    pub fn parse(json: &str) -> Result<Self> {
        let fields = json::fields(json)?;
        // The architecture comes first: a stranger's file may well lack the fields of a Llama.
        let architecture = architecture(&fields)?;
        refuse_foreign(&fields)?;
        let quantization = Quantization::of(&fields)?;
        let raw: RawConfig = json::typed(&fields)?;
        if let Some(act) = raw.hidden_act.as_deref().filter(|act| !["silu", "swish"].contains(act)) {
            bail!("`hidden_act` is {act:?}, expected \"silu\"");
        }
        ensure!(raw.is_causal != Some(false), "`is_causal` is false, expected true");
        let q_heads = raw.num_attention_heads;
        let kv_heads = match raw.num_key_value_heads {
            None if architecture == Architecture::Mistral => MISTRAL_KV_HEADS,
            heads => heads.flatten().unwrap_or(q_heads),
        };
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
            q_heads.is_multiple_of(kv_heads),
            "`num_attention_heads` is {q_heads}, expected a multiple of `num_key_value_heads`, {kv_heads}"
        );
        let head_dim = match raw.head_dim {
            Some(head_dim) => head_dim,
            None => {
                let hidden = raw.hidden_size;
                ensure!(
                    hidden.is_multiple_of(q_heads),
                    "there is no `head_dim`, and `hidden_size` {hidden} is no multiple of \
                     `num_attention_heads` {q_heads}"
                );
                hidden / q_heads
            }
        };
        ensure!((1..=1 << 16).contains(&head_dim), "`head_dim` is {head_dim}, expected 1 to 65536");
        let epsilon = raw.rms_norm_eps;
        ensure!(epsilon >= 0.0 && epsilon.is_finite(), "`rms_norm_eps` is {epsilon}, expected at least 0");
        // Mistral has no biases, whatever its configuration says.
        let has = |bias| bias == Some(true) && architecture == Architecture::Llama;
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
            window_left: window_left(&raw, architecture)?,
            attention_bias: has(raw.attention_bias),
            mlp_bias: has(raw.mlp_bias),
            tied_embeddings: raw.tie_word_embeddings == Some(true),
            quantization,
            dtype: dtype(&raw)?,
            eos_tokens: raw.eos_token_id.map(Vec::from).unwrap_or_default(),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Architecture {
    Llama,
    Mistral,
}

fn architecture(fields: &Fields) -> Result<Architecture> {
    #[derive(Deserialize)]
    struct Names {
        architectures: Option<Vec<String>>,
        model_type: Option<String>,
    }
    let Names { architectures, model_type } = json::typed(fields)?;
    let named = architectures.as_ref().and_then(|names| names.first());
    match (named.map(String::as_str), model_type.as_deref()) {
        (Some("LlamaForCausalLM"), _) | (None, Some("llama")) => Ok(Architecture::Llama),
        (Some("MistralForCausalLM"), _) | (None, Some("mistral")) => Ok(Architecture::Mistral),
        (Some(name), _) => bail!("the architecture is {name}; this program runs {SUPPORTED}"),
        (None, Some(name)) => bail!("the model type is {name:?}; this program runs {SUPPORTED}"),
        (None, None) => {
            bail!("there is neither `architectures` nor `model_type`; this program runs {SUPPORTED}")
        }
    }
}

/// Refuses what changes the numbers of a model and what the program does not have.
fn refuse_foreign(fields: &Fields) -> Result<()> {
    match json::first_on(fields, &FOREIGN) {
        Some(setting) => bail!("{setting}, which {SUPPORTED} do not have"),
        None => Ok(()),
    }
}

/// The number of tokens to its left that a token sees, if not all that there can be.
fn window_left(raw: &RawConfig, architecture: Architecture) -> Result<Option<usize>> {
    let window = match raw.sliding_window {
        None if architecture == Architecture::Mistral => Some(MISTRAL_WINDOW),
        window => window.flatten(),
    };
    ensure!(window != Some(0), "`sliding_window` is 0, expected at least 1");
    let felt = window.filter(|&window| window < raw.max_position_embeddings);
    if let Some(window) = felt {
        ensure!(
            architecture == Architecture::Mistral,
            "`sliding_window` is {window}, which a Llama does not have"
        );
        let used = raw.use_sliding_window != Some(false);
        ensure!(used, "`use_sliding_window` is false, but `sliding_window` is {window}");
    }
    for kind in raw.layer_types.iter().flatten() {
        let fits = match kind.as_str() {
            "full_attention" => felt.is_none(),
            "sliding_attention" => window.is_some(),
            _ => false,
        };
        ensure!(
            fits,
            "`layer_types` has {kind:?}, but `sliding_window` is {}",
            window.map_or("null".into(), |window| window.to_string())
        );
    }
    // Hugging Face counts the token itself.
    Ok(felt.map(|window| window - 1))
}

/// The type that the weights are converted to.
fn dtype(raw: &RawConfig) -> Result<Option<DType>> {
    let names = [("dtype", &raw.dtype), ("torch_dtype", &raw.torch_dtype)];
    let Some((name, dtype)) = names.into_iter().find_map(|(name, dtype)| Some((name, dtype.as_deref()?)))
    else {
        return Ok(None);
    };
    Ok(Some(match dtype {
        "float32" => DType::F32,
        "float16" => DType::F16,
        "bfloat16" => DType::BF16,
        "float64" => DType::F64,
        _ => bail!("`{name}` is {dtype:?}, expected \"float32\", \"float16\" or \"bfloat16\""),
    }))
}
