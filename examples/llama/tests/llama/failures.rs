//! Whatever is wrong with a folder is said in one line, and unusual folders that are right do load.

use std::fs;
use std::path::Path;

use burn::tensor::DType;
use safetensors::Dtype;
use serde_json::json;

use crate::checkpoint::{Scratch, Stored};
use crate::fixture::{fixture, folder, load, logits, max_difference};
use llama::defaults::GenerationDefaults;
use llama::tokenizer::TextTokenizer;

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
    empty.write("config.json", [0xFF]);
    refused(&empty.0, "config.json: stream did not contain valid UTF-8");

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
}

/// A file that `tokenizers` would panic over.
#[test]
fn tokenizers_that_are_cut_short() {
    let model = Scratch::copy_of("mha_untied", "cut");
    let whole = fs::read_to_string(model.0.join("tokenizer.json")).unwrap();
    let decoder = whole.find("\"decoder\"").unwrap();
    for length in [0, 1, decoder, decoder + 20, decoder + 40, whole.len() - 2] {
        model.write("tokenizer.json", &whole[..length]);
        let error = format!("{:#}", TextTokenizer::load(&model.0).err().unwrap());
        assert!(error.contains("tokenizer.json is no tokenizer: EOF while parsing"), "{length}: {error}");
    }
}

#[test]
fn wrong_types_are_refused_by_field_and_file() {
    for (field, value, expected) in [
        ("hidden_size", json!("big"), "invalid type: string \"big\", expected usize"),
        ("num_hidden_layers", json!(-2), "invalid value: integer `-2`, expected usize"),
        ("num_attention_heads", json!(4.5), "invalid type: floating point `4.5`, expected usize"),
        ("rms_norm_eps", json!([1e-5]), "invalid type: sequence, expected f64"),
        ("tie_word_embeddings", json!("no"), "invalid type: string \"no\", expected a boolean"),
        ("rope_scaling", json!("linear"), "invalid type: string \"linear\", expected a map"),
    ] {
        let model = Scratch::copy_of("mha_untied", field);
        model.configure(field, value);
        refused(&model.0, &format!("{}: {field}: {expected}", model.0.join("config.json").display()));
    }

    let model = Scratch::copy_of("gqa_llama3", "types");
    let shown = |file: &str| model.0.join(file).display().to_string();
    model.write("generation_config.json", r#"{"temperature": "hot"}"#);
    let error = format!("{:#}", GenerationDefaults::load(&model.0).unwrap_err());
    let file = shown("generation_config.json");
    assert_eq!(error, format!("{file}: temperature: invalid type: string \"hot\", expected f64"));

    let file = shown("model.safetensors.index.json");
    model.write("model.safetensors.index.json", r#"{"weight_map": {"a": "b", "lm_head.weight": 3}}"#);
    refused(&model.0, &format!("{file}: weight_map.lm_head.weight: invalid type: integer `3`"));

    let file = shown("tokenizer.json");
    for (tokenizer, expected) in [
        (r#"{"model": {"type": "Abacus"}}"#, "model: data did not match"),
        (r#"{"added_tokens": [{"id": "one", "content": "a"}]}"#, "added_tokens[0].id: invalid type"),
    ] {
        model.write("tokenizer.json", tokenizer);
        let error = format!("{:#}", TextTokenizer::load(&model.0).err().unwrap());
        assert!(error.starts_with(&format!("{file} is no tokenizer: {expected}")), "{error}");
    }
}

/// The file that a tensor is wrong in, or missing from.
#[test]
fn tensors_are_refused_by_file() {
    let model = Scratch::copy_of("mha_untied", "named");
    let file = model.0.join("model.safetensors").display().to_string();
    model.configure("intermediate_size", 129);
    refused(&model.0, &format!("{file}: model.layers.0.mlp.gate_proj.weight has shape"));
    model.configure("intermediate_size", 128);
    model.edit(|tensors| tensors.get_mut("model.embed_tokens.weight").unwrap().dtype = Dtype::I32);
    refused(&model.0, &format!("{file}: model.embed_tokens.weight is of type I32"));
    model.edit(|tensors| drop(tensors.remove("model.embed_tokens.weight")));
    refused(&model.0, &format!("model.embed_tokens.weight is missing from {file}"));

    let model = Scratch::copy_of("gqa_llama3", "named-shards");
    let index = model.0.join("model.safetensors.index.json");
    model.configure("num_hidden_layers", 9);
    refused(&model.0, &format!("is missing from {}", index.display()));
    let text: serde_json::Value = serde_json::from_str(&fs::read_to_string(index).unwrap()).unwrap();
    let shard = text["weight_map"]["model.embed_tokens.weight"].as_str().unwrap();
    model.configure("vocab_size", 7);
    refused(&model.0, &format!("{}: model.embed_tokens.weight has shape", model.0.join(shard).display()));
}

/// Nothing is read that may never end, or never begin.
#[cfg(unix)]
#[test]
fn files_that_are_no_files() {
    let folder = |name: &str, file: &str| {
        let model = Scratch::copy_of("mha_untied", name);
        model.remove(file);
        let path = model.0.join(file);
        (model, path)
    };
    // In a thread, for what hangs would never be reported.
    let refused = |model: Scratch, message: String| {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let loaded = load(&model.0, None).map(drop);
            let loaded = loaded.and_then(|()| TextTokenizer::load(&model.0).map(drop));
            let loaded = loaded.and_then(|()| GenerationDefaults::load(&model.0).map(drop));
            sender.send(loaded.map_err(|error| format!("{error:#}"))).unwrap();
        });
        let loaded = receiver.recv_timeout(std::time::Duration::from_secs(60));
        assert_eq!(loaded.expect("it waits for ever"), Err(message));
    };
    for file in ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"] {
        let (model, path) = folder(&format!("pipe-{file}"), file);
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        refused(model, format!("{} is a pipe or a device, expected a file", path.display()));

        let (model, path) = folder(&format!("device-{file}"), file);
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        refused(model, format!("{} is a pipe or a device, expected a file", path.display()));

        let (model, path) = folder(&format!("folder-{file}"), file);
        fs::create_dir(&path).unwrap();
        refused(model, format!("{} is a folder, expected a file", path.display()));

        // A download that was not finished is no folder without the file.
        let (model, path) = folder(&format!("link-{file}"), file);
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        refused(model, format!("cannot read {}: No such file or directory (os error 2)", path.display()));
    }
}

#[test]
fn what_is_no_model_gives_a_hint() {
    let hub = Scratch::new("hub");
    let weights = folder("mha_untied").join("model.safetensors");
    refused(
        &weights,
        "model.safetensors (choose one with --model); it is a file, expected a folder with config",
    );
    hub.write("llama.Q4_K_M.GGUF", "GGUF");
    refused(
        &hub.0.join("llama.Q4_K_M.GGUF"),
        "; it is a GGUF file, which is not supported, expected a folder",
    );
    refused(&hub.0, "model folder?); llama.Q4_K_M.GGUF is a GGUF file, which is not supported");
    hub.remove("llama.Q4_K_M.GGUF");

    // The Hub's cache, from three places.
    let model = hub.0.join("models--meta-llama--Llama-3.2-1B");
    let snapshot = model.join("snapshots/4e20de362430cd3b72f300e6b0f18e50e7166e08");
    fs::create_dir_all(&snapshot).unwrap();
    refused(&hub.0, "(is this a Hugging Face model folder?)");
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    for place in [&hub.0, &model, &model.join("snapshots")] {
        let hint = format!("; it belongs to the cache of the Hugging Face Hub, try {}", snapshot.display());
        refused(place, &hint);
    }

    let model = Scratch::copy_of("mha_untied", "formats");
    model.remove("model.safetensors");
    for (files, hint) in [
        (&["pytorch_model.bin", "training_args.bin"][..], "; convert pytorch_model.bin to safetensors first"),
        (
            &[
                "pytorch_model-00002-of-00002.bin",
                "pytorch_model-00001-of-00002.bin",
                "pytorch_model.bin.index.json",
            ],
            "; convert pytorch_model-00001-of-00002.bin to pytorch_model-00002-of-00002.bin to safetensors first",
        ),
        (&["consolidated.00.pth"], "; convert consolidated.00.pth to safetensors first"),
        (&["model-q8_0.gguf"], "; model-q8_0.gguf is a GGUF file, which is not supported"),
    ] {
        files.iter().for_each(|file| model.write(file, ""));
        refused(&model.0, hint);
        files.iter().for_each(|file| model.remove(file));
    }
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
    let of_each = |model: &llama::model::Llama| -> Vec<f32> {
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
