//! Whatever is wrong with a folder is said in one line, and unusual folders that are right do load.

use std::fs;
use std::path::Path;

use burn::tensor::DType;
use safetensors::Dtype;

use crate::checkpoint::{Scratch, Stored};
use crate::fixture::{fixture, folder, load, logits, max_difference};
use crate::llama::tokenizer::TextTokenizer;

fn refusal(folder: &Path) -> String {
    match load(folder, None) {
        Ok(_) => panic!("{} should not load", folder.display()),
        Err(error) => format!("{error:#}"),
    }
}

#[track_caller]
fn refused(folder: &Path, expected: &str) {
    let refusal = refusal(folder);
    assert!(refusal.contains(expected), "{refusal:?} should contain {expected:?}");
    assert!(!refusal.contains('\n'), "{refusal:?} should be one line");
}

#[test]
fn configurations() {
    refused(Path::new("/no/such/folder"), "there is no model folder /no/such/folder");
    let empty = Scratch::new("empty");
    refused(&empty.0, "config.json (is this a Hugging Face model folder?)");
    empty.write("config.json", "{\"hidden_size\": ");
    refused(&empty.0, "config.json: EOF while parsing");

    let other = Scratch::copy_of("mha_untied", "other");
    other.configure("architectures", vec!["Qwen2ForCausalLM"]);
    refused(&other.0, "the architecture is Qwen2ForCausalLM; this program runs LlamaForCausalLM");
}

#[test]
fn weights_that_do_not_fit_the_configuration() {
    let model = Scratch::copy_of("mha_untied", "shape");
    model.configure("intermediate_size", 129);
    refused(
        &model.0,
        "model.layers.0.mlp.gate_proj.weight has shape [128, 96], expected [129, 96] from config.json",
    );
    model.configure("intermediate_size", 128);
    model.configure("num_hidden_layers", 3);
    refused(&model.0, "model.layers.2.input_layernorm.weight is missing");
    model.configure("num_hidden_layers", 2);
    model.configure("attention_bias", true);
    refused(&model.0, "model.layers.0.self_attn.q_proj.bias is missing");
    model.configure("attention_bias", false);
    // A claim that no memory could hold is refused for what it is, not tried.
    model.configure("vocab_size", 1u64 << 31);
    refused(&model.0, "model.embed_tokens.weight has shape [259, 96], expected [2147483648, 96]");
    model.configure("vocab_size", 259);
    assert!(load(&model.0, None).is_ok(), "the folder is fine otherwise");
}

#[test]
fn damaged_files() {
    let model = Scratch::copy_of("mha_untied", "damaged");
    let whole = fs::read(model.0.join("model.safetensors")).unwrap();
    for length in [0, 7, 8, 100, 4000, whole.len() / 2, whole.len() - 1] {
        model.write("model.safetensors", &whole[..length]);
        refused(&model.0, "model.safetensors is damaged or no safetensors file");
    }
    model.write("model.safetensors", [whole.as_slice(), b"more"].concat());
    refused(&model.0, "model.safetensors is damaged or no safetensors file");
    model.write("model.safetensors", [&u64::MAX.to_le_bytes(), &whole[8..]].concat());
    refused(&model.0, "model.safetensors is damaged or no safetensors file");
    model.write(
        "model.safetensors",
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134\n",
    );
    refused(&model.0, "is only a Git LFS pointer");
    model.remove("model.safetensors");
    refused(&model.0, "there is neither model.safetensors nor model.safetensors.index.json");
    model.write("pytorch_model.bin", "");
    refused(&model.0, "convert pytorch_model.bin to safetensors first");
}

#[test]
fn element_types() {
    for (dtype, name, size) in [(Dtype::F8_E4M3, "F8_E4M3", 1), (Dtype::I8, "I8", 1), (Dtype::I32, "I32", 4)]
    {
        let model = Scratch::copy_of("mha_untied", &format!("type-{name}"));
        model.edit(|tensors| {
            let tensor = tensors.get_mut("model.layers.1.self_attn.k_proj.weight").unwrap();
            tensor.dtype = dtype;
            tensor.data.truncate(tensor.shape.iter().product::<usize>() * size);
        });
        refused(&model.0, &format!("model.layers.1.self_attn.k_proj.weight is of type {name}, expected F32"));
    }
}

#[test]
fn shards() {
    let model = Scratch::copy_of("gqa_llama3", "shards");
    let index = fs::read_to_string(model.0.join("model.safetensors.index.json")).unwrap();
    assert!(load(&model.0, None).is_ok());

    let first = "model-00001-of-00002.safetensors";
    let second = "model-00002-of-00002.safetensors";
    model.write("model.safetensors.index.json", "{\"weight_map\": {");
    refused(&model.0, "model.safetensors.index.json: EOF while parsing");
    model.write("model.safetensors.index.json", "{}");
    refused(&model.0, "model.safetensors.index.json: missing field `weight_map`");
    model.write("model.safetensors.index.json", index.replace(second, first));
    refused(&model.0, "model-00001-of-00002.safetensors lacks model.");
    model.write("model.safetensors.index.json", index.replace(second, "../elsewhere.safetensors"));
    refused(&model.0, "../elsewhere.safetensors is no file name in the folder");
    model.write("model.safetensors.index.json", &index);
    model.remove(second);
    refused(&model.0, "model-00002-of-00002.safetensors: No such file");
}

#[test]
fn tokenizers() {
    let model = Scratch::copy_of("mha_untied", "tokenizer");
    let refusal = |folder: &Path| format!("{:#}", TextTokenizer::load(folder).err().unwrap());
    model.write("tokenizer.json", "{\"model\": {\"type\": \"Abacus\"}}");
    assert!(refusal(&model.0).contains("tokenizer.json is no tokenizer"), "{}", refusal(&model.0));
    model.remove("tokenizer.json");
    assert!(refusal(&model.0).contains("cannot read"), "{}", refusal(&model.0));

    let tokenizer = TextTokenizer::load(&folder("mha_untied")).unwrap();
    let tokens = tokenizer.encode("Füchse 🦊").unwrap();
    assert_eq!((tokens[0], tokens.len()), (0, 1 + "Füchse 🦊".len()));
    assert_eq!(tokenizer.decode(&tokens).unwrap(), "Füchse 🦊");
}

/// Biases of zero change nothing, others do, and each stands by the weight it belongs to.
#[test]
fn biases() {
    let prompt = &fixture("mha_untied").prompts[2];
    let model = Scratch::copy_of("mha_untied", "biases");
    model.configure("attention_bias", true);
    model.configure("mlp_bias", true);
    let biased = |scale: f32| {
        model.edit(|tensors| {
            let names: Vec<_> = tensors.keys().filter(|name| name.contains("proj.weight")).cloned().collect();
            for name in names {
                let rows = tensors[&name].shape[0];
                let bias = Stored::f32(&[rows], |index| scale * (index as f32).sin());
                tensors.insert(name.replace("weight", "bias"), bias);
            }
        });
        logits(&load(&model.0, None).unwrap(), &[&prompt.tokens])
    };
    assert!(max_difference(&biased(0.0), &prompt.logits_f32) <= 1e-3);
    assert!(max_difference(&biased(0.5), &prompt.logits_f32) > 0.1);
    model.edit(|tensors| {
        tensors.insert("model.layers.0.self_attn.v_proj.bias".into(), Stored::f32(&[95], |_| 0.0));
    });
    refused(&model.0, "model.layers.0.self_attn.v_proj.bias has shape [95], expected [96]");
}

/// A Mistral that sees only one token, itself, says the same about a token wherever it stands.
#[test]
fn sliding_window() {
    let model = Scratch::copy_of("mha_untied", "window");
    model.configure("architectures", vec!["MistralForCausalLM"]);
    let tokens = [7, 9, 7, 200, 9];
    let of_each = |model: &crate::llama::model::Llama| -> Vec<f32> {
        tokens.iter().flat_map(|&token| logits(model, &[&[token]])).collect()
    };
    model.configure("sliding_window", 1);
    let near_sighted = load(&model.0, None).unwrap();
    assert!(max_difference(&logits(&near_sighted, &[&tokens]), &of_each(&near_sighted)) <= 1e-4);
    model.configure("sliding_window", 2);
    let sees_two = load(&model.0, None).unwrap();
    assert!(max_difference(&logits(&sees_two, &[&tokens]), &of_each(&sees_two)) > 0.1);
    model.configure("sliding_window", 5);
    let all = logits(&load(&folder("mha_untied"), None).unwrap(), &[&tokens]);
    assert!(max_difference(&logits(&load(&model.0, None).unwrap(), &[&tokens]), &all) <= 1e-4);
}

#[test]
fn the_type_of_the_weights_is_kept_unless_another_is_asked_for() {
    for (name, stored) in [("gqa_llama3", DType::BF16), ("mha_untied", DType::F32)] {
        assert_eq!(load(&folder(name), None).unwrap().dtype, stored);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let model = load(&folder(name), Some(dtype)).unwrap();
            let logits = model.logits_all(&[&[3, 4, 5]]).unwrap();
            assert_eq!((model.dtype, logits.dtype()), (dtype, dtype));
        }
    }
}
