//! Model folders made for one test, from one of the fixtures.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

use crate::fixture::folder;

/// A folder that goes away with the value.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// An empty folder; `name` is unique among the tests.
    pub fn new(name: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("llama-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A copy of a fixture's folder.
    pub fn copy_of(fixture: &str, name: &str) -> Self {
        let scratch = Self::new(name);
        for entry in fs::read_dir(folder(fixture)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), scratch.0.join(entry.file_name())).unwrap();
            }
        }
        scratch
    }

    pub fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        fs::write(self.0.join(file), content).unwrap();
    }

    pub fn remove(&self, file: &str) {
        fs::remove_file(self.0.join(file)).unwrap();
    }

    /// Sets a field of `config.json`.
    pub fn configure(&self, field: &str, value: impl Into<Value>) {
        let path = self.0.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[field] = value.into();
        fs::write(path, config.to_string()).unwrap();
    }

    /// Changes the tensors of `model.safetensors`.
    pub fn edit(&self, change: impl FnOnce(&mut BTreeMap<String, Stored>)) {
        let path = self.0.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter();
        let stored = |view: TensorView<'_>| Stored {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            data: view.data().to_vec(),
        };
        let mut tensors = tensors.map(|(name, view)| (name, stored(view))).collect();
        change(&mut tensors);
        self.store(&tensors);
    }

    /// Writes `model.safetensors`.
    pub fn store(&self, tensors: &BTreeMap<String, Stored>) {
        let views = tensors.iter().map(|(name, stored)| {
            (name, TensorView::new(stored.dtype, stored.shape.clone(), &stored.data).unwrap())
        });
        self.write("model.safetensors", safetensors::serialize(views, None).unwrap());
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Clone)]
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Stored {
    pub fn f32(shape: &[usize], value: impl Fn(usize) -> f32) -> Self {
        let count = shape.iter().product();
        let data = (0..count).flat_map(|index| value(index).to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), data }
    }

    /// Words, or other integers of 32 bits.
    pub fn i32(shape: &[usize], value: impl Fn(usize) -> u32) -> Self {
        let count = shape.iter().product();
        let data = (0..count).flat_map(|index| value(index).to_le_bytes()).collect();
        Self { dtype: Dtype::I32, shape: shape.to_vec(), data }
    }
}
