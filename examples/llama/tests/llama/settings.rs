//! Settings of `config.json` and `generation_config.json`: the text is that of Hugging Face transformers with the same files,
//! see `tests/fixtures/hf/make_settings.py`.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::DType;
use burn_flashinfer::KvLayout;
use safetensors::Dtype;
use serde::Deserialize;
use serde_json::Value;

use crate::checkpoint::{Scratch, Stored};
use crate::fixture::load;
use crate::generation::write;
use llama::defaults::GenerationDefaults;
use llama::generate::{Graph, Length, Options};

#[derive(Deserialize)]
struct Settings {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    fixture: String,
    #[serde(default)]
    config: BTreeMap<String, Value>,
    generation: Option<Value>,
    /// By their names, which tensor they are made of, and how many times that.
    #[serde(default)]
    tensors: BTreeMap<String, (String, f32)>,
    #[serde(default)]
    without: Vec<String>,
    prompts: Vec<Vec<u32>>,
    greedy: Vec<Vec<u32>>,
}

impl Case {
    fn folder(&self, index: usize) -> Scratch {
        let model = Scratch::copy_of(&self.fixture, &format!("settings-{index}"));
        let path = model.0.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for (name, value) in &self.config {
            match value {
                Value::Null => drop(config.as_object_mut().unwrap().remove(name)),
                Value::String(null) if null == "null" => config[name] = Value::Null,
                value => config[name] = value.clone(),
            }
        }
        model.write("config.json", config.to_string());
        match &self.generation {
            None => model.remove("generation_config.json"),
            Some(settings) => model.write("generation_config.json", settings.to_string()),
        }
        if !self.tensors.is_empty() {
            model.edit(|tensors| self.change(tensors));
        }
        model
    }

    fn change(&self, tensors: &mut BTreeMap<String, Stored>) {
        for (new, (old, factor)) in &self.tensors {
            let Stored { dtype: Dtype::F32, shape, data } = &tensors[old] else { panic!("{old} is not f32") };
            let values: Vec<f32> =
                data.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes) * factor).collect();
            tensors.insert(new.clone(), Stored::f32(&shape.clone(), |index| values[index]));
        }
        tensors.retain(|name, _| !self.without.contains(name));
    }
}

/// As the program does it.
fn options(folder: &Path, vocab_size: usize, eos_tokens: &[u32]) -> anyhow::Result<Options> {
    let defaults = GenerationDefaults::load(folder)?;
    let length = match defaults.length(None) {
        // The settings of make_settings.py where the files do not say.
        Length::New(256) => Length::New(24),
        length => length,
    };
    Ok(Options {
        length,
        sampling: defaults.sampling(None, None, None)?,
        rules: defaults.rules(vocab_size)?,
        eos_tokens: defaults.eos_tokens().unwrap_or_else(|| eos_tokens.to_vec()),
        page_size: 5,
        layout: KvLayout::Nhd,
        graph: Graph::Never,
    })
}

#[test]
fn the_text_is_that_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf/settings.json");
    let settings: Settings = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(settings.cases.len() > 40);
    let mut wrong = Vec::new();
    for (index, case) in settings.cases.iter().enumerate() {
        let told = format!("{index}: {:?}, {:?}", case.config, case.generation);
        let folder = case.folder(index);
        let model = load(&folder.0, Some(DType::F32)).unwrap_or_else(|error| panic!("{told}: {error:#}"));
        let (vocab_size, eos_tokens) = (model.config.vocab_size, model.config.eos_tokens.clone());
        let mut options = options(&folder.0, vocab_size, &eos_tokens).unwrap();
        let (texts, _) = write(&model, &case.prompts, &options);
        if texts != case.greedy {
            wrong.push(format!("{told}: {texts:?}, not {:?}", case.greedy));
        }
        options.graph = Graph::Always;
        assert_eq!(write(&model, &case.prompts, &options).0, texts, "{told}, as a graph");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Without a --dtype the model computes in the type that its configuration names, whatever the weights are stored in.
#[test]
fn the_configuration_names_the_type() {
    let model = Scratch::copy_of("mha_untied", "settings-dtype");
    model.configure("torch_dtype", "bfloat16");
    assert_eq!(load(&model.0, None).unwrap().dtype, DType::BF16);
    model.configure("torch_dtype", Value::Null);
    assert_eq!(load(&model.0, None).unwrap().dtype, DType::F32);
}
