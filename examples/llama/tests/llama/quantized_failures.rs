//! Folders of codes that are wrong, or that the program cannot run, are refused in one line that says what.

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::checkpoint::{Scratch, Stored};
use crate::fixture::{load, load_with};
use crate::random::{Format, Rng, folders};
use llama::config::Config;
use llama::quantization::Quantize;
use llama::weights::LoadOptions;

#[test]
fn configurations() {
    let group = |weights: Value| {
        json!({"quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}})
    };
    let fp8 = |more: Value| {
        let mut config = json!({"quant_method": "fp8"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let gptq = |more: Value| {
        let mut config = json!({"quant_method": "gptq", "bits": 4});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let float = json!({"num_bits": 8, "type": "float", "strategy": "channel"});
    let mut two = group(float.clone());
    two["config_groups"]["group_1"] = two["config_groups"]["group_0"].clone();
    let mut packed = group(json!({"num_bits": 4, "type": "int", "strategy": "group"}));
    packed["format"] = json!("pack-quantized");
    let mut sparse = group(float.clone());
    sparse["sparsity_config"] = json!({"format": "sparse-24-bitmask"});
    let mut targets = group(float.clone());
    targets["config_groups"]["group_0"]["targets"] = json!(["re:.*mlp.*"]);
    let mut rows = group(float.clone());
    rows["config_groups"]["group_0"]["input_activations"] = json!({"num_bits": 8, "type": "int"});
    for (config, expected) in [
        (json!("awq"), "`quantization_config` is \"awq\", expected an object"),
        (json!({"quant_method": 3}), "quantized (unknown), which is not supported; fp8, fbgemm_fp8,"),
        (
            json!({"quant_method": "bitsandbytes"}),
            "the weights are quantized (bitsandbytes), which is not supported",
        ),
        (
            fp8(json!({"weight_block_size": [64, 128]})),
            "`weight_block_size` is [64, 128], expected [128, 128]",
        ),
        (fp8(json!({"weight_block_size": [-1]})), "weight_block_size[0]: invalid value: integer `-1`"),
        (fp8(json!({"fmt": "e5m2"})), "`fmt` is \"e5m2\", expected \"e4m3\""),
        (
            fp8(json!({"activation_scheme": "odd"})),
            "`activation_scheme` is \"odd\", expected \"dynamic\" or \"static\"",
        ),
        (packed, "`format` is \"pack-quantized\", expected \"float-quantized\""),
        (two, "`config_groups` has 2 groups, expected 1"),
        (sparse, "`sparsity_config.format` is \"sparse-24-bitmask\", expected \"dense\""),
        (targets, "`targets` is [\"re:.*mlp.*\"], expected [\"Linear\"]"),
        (rows, "`input_activations` are 8 bits of type \"int\""),
        (group(json!({"num_bits": 4, "type": "float"})), "`weights` are 4 bits of type \"float\""),
        (group(json!({"num_bits": 8, "type": "float", "symmetric": false})), "expected symmetric"),
        (
            group(json!({"num_bits": 8, "type": "float", "strategy": "group"})),
            "`weights.strategy` is \"group\"",
        ),
        (
            group(json!({"num_bits": 8, "type": "float", "strategy": "block"})),
            "`block_structure` is [], expected [128, 128]",
        ),
        (group(Value::Null), "`weights` is missing"),
        (json!({"quant_method": "compressed-tensors"}), "missing field `config_groups`"),
        (
            json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}),
            "`quant_algo` is \"NVFP4\", expected \"FP8\"",
        ),
        (json!({"quant_method": "awq", "bits": 8}), "`bits` is 8, expected 4"),
        (json!({"quant_method": "awq", "group_size": -1}), "`group_size` is -1, expected 32, 64 or 128"),
        (json!({"quant_method": "awq", "version": "GEMV"}), "`version` is \"gemv\", expected \"gemm\""),
        (json!({"quant_method": "awq", "zero_point": false}), "`zero_point` is false"),
        (gptq(json!({"bits": 3})), "`bits` is 3, expected 4"),
        (gptq(json!({"group_size": 0})), "`group_size` is 0, expected"),
        (
            gptq(json!({"checkpoint_format": "marlin"})),
            "`checkpoint_format` is \"marlin\", expected \"gptq\" or \"gptq_v2\"",
        ),
        (gptq(json!({"is_marlin_format": true})), "`is_marlin_format` is true"),
        (gptq(json!({"dynamic": {"-:.*down.*": {}}})), "`dynamic` is "),
    ] {
        let text = json!({"architectures": ["LlamaForCausalLM"], "quantization_config": config}).to_string();
        let refusal = format!("{:#}", Config::parse(&text).unwrap_err());
        assert!(refusal.contains(expected), "{refusal:?} should contain {expected:?}");
    }
}

#[track_caller]
fn refused(folder: &Scratch, expected: &str) {
    let Err(error) = load(&folder.0, None) else { panic!("{} should not load", folder.0.display()) };
    let refusal = format!("{error:#}");
    assert!(refusal.contains(expected), "{refusal:?} should contain {expected:?}");
    assert!(!refusal.contains('\n'), "{refusal:?} should be one line");
}

/// Changes a tensor of the first layer, and puts it back after the refusal.
#[track_caller]
fn refused_with(folder: &Scratch, name: &str, change: impl FnOnce(&mut Stored), expected: &str) {
    let name = format!("model.layers.0.{name}");
    let mut before = None;
    folder.edit(|tensors| {
        before = tensors.get(&name).cloned();
        change(tensors.get_mut(&name).unwrap());
    });
    refused(folder, expected);
    folder.edit(|tensors| drop(tensors.insert(name, before.unwrap())));
}

fn without(folder: &Scratch, name: &str, expected: &str) {
    let name = format!("model.layers.0.{name}");
    let mut before = None;
    folder.edit(|tensors| before = tensors.remove(&name));
    refused(folder, expected);
    folder.edit(|tensors| drop(tensors.insert(name, before.unwrap())));
}

#[test]
fn codes_of_8_bits() {
    let mut rng = Rng::new();
    let [coded, _] = folders(Format::Fp8Blocks, "failures-fp8", &mut rng);
    without(
        &coded,
        "self_attn.k_proj.weight_scale_inv",
        "model.layers.0.self_attn.k_proj.weight_scale is missing",
    );
    without(&coded, "mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight is missing");
    refused_with(
        &coded,
        "mlp.down_proj.weight_scale_inv",
        |scales| scales.shape = vec![1, 4],
        "mlp.down_proj.weight_scale_inv has shape [1, 4], expected [2, 2] from config.json",
    );
    refused_with(
        &coded,
        "mlp.down_proj.weight",
        |codes| codes.shape = vec![256, 192],
        "mlp.down_proj.weight has shape [256, 192], expected [192, 256]",
    );
    refused_with(
        &coded,
        "self_attn.o_proj.weight_scale_inv",
        |scales| scales.data[..4].copy_from_slice(&f32::NAN.to_le_bytes()),
        "self_attn.o_proj.weight_scale_inv has a scale that is not finite",
    );
    refused_with(
        &coded,
        "self_attn.o_proj.weight_scale_inv",
        |scales| scales.dtype = Dtype::I32,
        "self_attn.o_proj.weight_scale_inv is of type I32, expected F32",
    );
    refused_with(
        &coded,
        "mlp.up_proj.weight",
        |codes| *codes = Stored::f32(&[256, 192], |_| 0.0),
        "mlp.gate_proj is quantized, and model.layers.0.mlp.up_proj, which is multiplied with it at once, is not",
    );
    refused_with(
        &coded,
        "self_attn.v_proj.weight",
        |codes| codes.dtype = Dtype::F8_E5M2,
        "self_attn.v_proj, which is multiplied with it at once, is not",
    );
    // A layer that is stored in 16 or 32 bits stays so.
    coded.edit(|tensors| {
        let name = "model.layers.0.mlp.down_proj.weight".to_owned();
        tensors.insert(name, Stored::f32(&[192, 256], |_| 0.5));
    });
    assert!(load(&coded.0, None).is_ok());
    let again = LoadOptions { quantize: Some(Quantize::Int4), ..LoadOptions::default() };
    let refusal = format!("{:#}", load_with(&coded.0, &again).err().unwrap());
    assert!(refusal.contains("the weights are quantized already"), "{refusal}");
    coded.configure("num_key_value_heads", 1);
    coded.configure("head_dim", 64);
    coded.edit(|tensors| {
        for (name, stored) in
            tensors.iter_mut().filter(|(name, _)| name.contains("k_proj") || name.contains("v_proj"))
        {
            stored.shape[0] = if name.ends_with("scale_inv") { 1 } else { 64 };
            let size = if name.ends_with("bias") { 4 } else { 1 };
            if !name.ends_with("scale_inv") {
                stored.data.truncate(stored.shape.iter().product::<usize>() * size);
            }
        }
    });
    refused(&coded, "k_proj has 64 outputs, expected a multiple of 128: a block of scales would reach into");
}

#[test]
fn codes_of_4_bits() {
    let mut rng = Rng::new();
    let [coded, _] = folders(Format::Gptq(32), "failures-gptq", &mut rng);
    without(&coded, "self_attn.q_proj.qweight", "model.layers.0.self_attn.q_proj.qweight is missing");
    without(&coded, "mlp.down_proj.qzeros", "model.layers.0.mlp.down_proj.qzeros is missing");
    without(&coded, "mlp.down_proj.scales", "model.layers.0.mlp.down_proj.scales is missing");
    refused_with(
        &coded,
        "mlp.down_proj.qzeros",
        |zeros| zeros.shape = vec![16, 8],
        "mlp.down_proj.qzeros has shape [16, 8], expected [8, 16]",
    );
    refused_with(
        &coded,
        "mlp.down_proj.qweight",
        |codes| codes.dtype = Dtype::F32,
        "mlp.down_proj.qweight is of type F32, expected I32",
    );
    refused_with(
        &coded,
        "mlp.down_proj.scales",
        |scales| scales.data[..4].copy_from_slice(&f32::INFINITY.to_le_bytes()),
        "mlp.down_proj.scales has a scale that is not finite",
    );
    for hostile in [1u32, u32::MAX, 1 << 31] {
        refused_with(
            &coded,
            "self_attn.k_proj.g_idx",
            |groups| groups.data[..4].copy_from_slice(&hostile.to_le_bytes()),
            "self_attn.k_proj.g_idx has the inputs in another order (`desc_act`), which is not supported",
        );
    }
    let mut config = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true});
    coded.configure("quantization_config", config.clone());
    assert!(load(&coded.0, None).is_ok(), "the order is that of the inputs all the same");
    without(&coded, "mlp.up_proj.g_idx", "`desc_act` is true, and model.layers.0.mlp.up_proj.g_idx");
    config["group_size"] = json!(64);
    coded.configure("quantization_config", config);
    refused(&coded, "g_idx has the inputs in another order");

    let [coded, _] = folders(Format::Awq(128), "failures-awq", &mut rng);
    coded.configure("mlp_bias", false);
    coded.configure("intermediate_size", 200);
    refused(&coded, "mlp.gate_proj.qweight has shape [128, 32], expected [128, 25]");
    coded.configure("intermediate_size", 201);
    refused(&coded, "mlp.gate_proj has 201 outputs, expected a multiple of 8");
    coded.configure("intermediate_size", 256);
    coded.configure("hidden_size", 120);
    coded.edit(|tensors| {
        tensors.insert("model.embed_tokens.weight".into(), Stored::f32(&[96, 120], |_| 0.0));
        tensors.insert("model.layers.0.input_layernorm.weight".into(), Stored::f32(&[120], |_| 0.0));
    });
    refused(&coded, "self_attn.q_proj has 120 inputs, expected a multiple of 128");
}

/// No tensor of a layer may have another shape or type, whatever it is.
#[test]
fn tensors_of_any_shape_and_type() {
    let mut rng = Rng::new();
    for format in [Format::Fp8Blocks, Format::Fbgemm, Format::Awq(64), Format::Gptq(128)] {
        let [coded, _] = folders(format, &format!("hostile-{format:?}"), &mut rng);
        let mut names = Vec::new();
        coded.edit(|tensors| {
            names.extend(tensors.keys().filter(|name| name.contains("layers.0.")).cloned());
        });
        for _ in 0..12 {
            let name = names[rng.below(names.len() as u32) as usize].clone();
            let (change, size) = (rng.below(4), [0, 1, 3, 1 << 10][rng.below(4) as usize]);
            let mut before = None;
            coded.edit(|tensors| {
                let stored = tensors.get_mut(&name).unwrap();
                before = Some(stored.clone());
                match change {
                    0 => stored.shape.push(1),
                    1 => *stored = Stored { dtype: stored.dtype, shape: vec![0; 2], data: Vec::new() },
                    2 => *stored = Stored { dtype: Dtype::U8, shape: vec![size, 7], data: vec![1; 7 * size] },
                    _ => {
                        let count = stored.shape.iter().product();
                        *stored =
                            Stored { dtype: Dtype::I8, shape: stored.shape.clone(), data: vec![0x80; count] };
                    }
                }
            });
            let refusal = load(&coded.0, None).err().map(|error| format!("{error:#}"));
            let refusal =
                refusal.unwrap_or_else(|| panic!("{format:?}: {name} changed by {change} should not load"));
            assert!(refusal.contains("model.layers.0."), "{refusal}");
            coded.edit(|tensors| drop(tensors.insert(name, before.unwrap())));
        }
        assert!(load(&coded.0, None).is_ok(), "{format:?}");
    }
}
