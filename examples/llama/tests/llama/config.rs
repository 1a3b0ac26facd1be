//! `config.json`: what each field comes to, and which are refused.

use anyhow::Result;
use burn::tensor::DType;
use burn_flashinfer::{RopeConfig, RopeScaling};
use serde_json::{Value, json};

use llama::config::Config;

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
            Value::String(null) if null == "null" => config[key] = Value::Null,
            value => config[key] = value,
        }
    }
    Config::parse(&config.to_string())
}

fn mistral(mut changes: Value) -> Result<Config> {
    changes["architectures"] = json!(["MistralForCausalLM"]);
    parse(changes)
}

#[test]
fn llama_2() {
    let config = parse(json!({})).unwrap();
    assert_eq!((config.q_heads, config.kv_heads, config.head_dim), (32, 32, 128));
    assert_eq!(config.rope, RopeConfig::new(128).theta(10_000.0));
    assert_eq!((config.eos_tokens, config.window_left, config.dtype), (vec![2], None, Some(DType::F16)));
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

/// Values of `MistralConfig` of transformers 5.24 for fields that are not there, and for those that are null.
#[test]
fn a_mistral_that_does_not_say() {
    let long = 32768;
    let of = |changes: Value| {
        let config = mistral(changes).unwrap();
        (config.window_left, config.kv_heads)
    };
    let missing = json!({"max_position_embeddings": long, "num_key_value_heads": null});
    assert_eq!(of(missing), (Some(4095), 8), "a window counts the token itself");
    let null =
        json!({"max_position_embeddings": long, "sliding_window": "null", "num_key_value_heads": "null"});
    assert_eq!(of(null), (None, 32));
    let stated = json!({"max_position_embeddings": long, "sliding_window": 1, "num_key_value_heads": 4});
    assert_eq!(of(stated), (Some(0), 4));
    // A window that no text fills is none, to a Llama as well.
    assert_eq!(of(json!({"sliding_window": 4096})).0, None);
    assert_eq!(parse(json!({"sliding_window": 4096})).unwrap().window_left, None);
    assert!(!mistral(json!({"attention_bias": true})).unwrap().attention_bias);
}

#[test]
fn the_newer_name_of_the_type_comes_first() {
    let of = |changes| parse(changes).unwrap().dtype;
    assert_eq!(of(json!({"dtype": "bfloat16"})), Some(DType::BF16));
    assert_eq!(of(json!({"dtype": "float32", "torch_dtype": null})), Some(DType::F32));
    assert_eq!(of(json!({"torch_dtype": null})), None);
}

#[test]
fn tokens_that_no_text_has_end_none() {
    let of = |changes| parse(changes).unwrap().eos_tokens;
    assert!(of(json!({"eos_token_id": -1})).is_empty());
    assert_eq!(of(json!({"eos_token_id": [-1, 7, 1u64 << 40]})), [7]);
    assert!(of(json!({"eos_token_id": "null"})).is_empty());
}

#[test]
fn settings_of_others_that_change_nothing() {
    for changes in [
        json!({"attention_dropout": 0.1, "pretraining_tp": 8, "initializer_range": 1, "unheard_of": 3}),
        json!({"logits_scaling": 1.0, "final_logit_softcapping": "null", "qk_norm": false, "is_causal": true}),
        json!({"layer_types": ["full_attention", "full_attention"], "per_layer_config": {}}),
        json!({"use_sliding_window": false, "sliding_window": "null", "max_window_layers": 28}),
        json!({"partial_rotary_factor": 1.0, "quantization_config": "null", "num_experts": 0}),
    ] {
        let shown = changes.to_string();
        assert_eq!(parse(changes).unwrap(), parse(json!({})).unwrap(), "{shown}");
    }
}

#[test]
fn refusals_name_what_is_wrong() {
    let window = "max_position_embeddings";
    for (changes, message) in [
        (
            json!({"architectures": ["GPT2LMHeadModel"], "hidden_size": null}),
            "architecture is GPT2LMHeadModel",
        ),
        (json!({"architectures": null, "model_type": "phi"}), "model type is \"phi\""),
        (
            json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
            "`rope_scaling.rope_type` is \"dynamic\"",
        ),
        (json!({"rope_parameters": {"rope_type": "yarn"}}), "`rope_parameters.factor` is missing"),
        (json!({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}), "low_freq_factor` is missing"),
        (json!({"rope_scaling": {"factor": 2.0}}), "`rope_scaling.rope_type` is missing"),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": "2"}}),
            "rope_scaling.factor: invalid type: string \"2\", expected f64",
        ),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
            "`rope_scaling` says ",
        ),
        (
            json!({"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 5e5}}),
            "and `rope_parameters` says ",
        ),
        (json!({"rope_scaling": 2.0}), "rope_scaling: invalid type: floating point `2.0`, expected a map"),
        (json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor` is 0.5"),
        (json!({"hidden_act": "gelu"}), "`hidden_act` is \"gelu\""),
        (json!({"quantization_config": {"quant_method": "aqlm"}}), "quantized (aqlm)"),
        (json!({"compression_config": {}}), "quantized (unknown)"),
        (json!({"hidden_size": null}), "missing field `hidden_size`"),
        (json!({"hidden_size": "null"}), "hidden_size: invalid type: null, expected usize"),
        (json!({"hidden_size": "big"}), "hidden_size: invalid type: string \"big\", expected usize"),
        (
            json!({"hidden_size": 4096.5}),
            "hidden_size: invalid type: floating point `4096.5`, expected usize",
        ),
        (json!({"hidden_size": -1}), "hidden_size: invalid value: integer `-1`, expected usize"),
        (json!({"num_hidden_layers": 0}), "`num_hidden_layers` is 0"),
        (json!({"num_key_value_heads": 5}), "a multiple of `num_key_value_heads`, 5"),
        (json!({"hidden_size": 4097}), "`hidden_size` 4097 is no multiple"),
        (json!({"eos_token_id": "</s>"}), "eos_token_id: expected a token id or an array"),
        (json!({"attention_bias": 1}), "attention_bias: invalid type: integer `1`, expected a boolean"),
        (json!({"torch_dtype": "int8"}), "`torch_dtype` is \"int8\""),
        (json!({window: 8192, "sliding_window": 4096}), "`sliding_window` is 4096, which a Llama"),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), "has \"sliding_attention\""),
        (json!({"is_causal": false}), "`is_causal` is false"),
        (json!({"logits_scaling": 8.0}), "`logits_scaling` is 8.0, which"),
        (json!({"attention_multiplier": 0.1}), "`attention_multiplier` is 0.1"),
        (json!({"per_layer_config": {"0": {}}}), "`per_layer_config` is {\"0\":{}}"),
    ] {
        let refusal = format!("{:#}", parse(changes).expect_err(message));
        assert!(refusal.contains(message), "{refusal:?} should contain {message:?}");
    }
    let of_mistral = |changes| format!("{:#}", mistral(changes).expect_err("should have been refused"));
    let unused = json!({window: 8192, "use_sliding_window": false});
    assert!(of_mistral(unused).contains("`use_sliding_window` is false, but `sliding_window` is 4096"));
    let full = json!({window: 8192, "layer_types": ["full_attention"]});
    assert!(of_mistral(full).contains("`layer_types` has \"full_attention\", but `sliding_window` is 4096"));
    assert!(of_mistral(json!({"sliding_window": 0})).contains("`sliding_window` is 0"));
    assert!(format!("{:#}", Config::parse("{\"hidden").expect_err("no JSON")).contains("EOF"));
    assert!(
        format!("{:#}", Config::parse("[1]").expect_err("no object"))
            .contains("invalid type: sequence, expected a map")
    );
}
