//! Weights in `safetensors` files: one, or shards with an index.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::folder;
use super::json;
use super::kv_cache::KvCacheOptions;
use super::quantization::{Quantization, Quantize, RoundActivations};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a checkpoint, still on disk.
pub struct Weights {
    /// The file that says which tensors there are: the only one, or the index.
    contents: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: HashMap<String, Stored>,
}

/// Where a tensor lies.
struct Stored {
    file: usize,
    bytes: Range<usize>,
    shape: Vec<usize>,
    dtype: Dtype,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, PathBuf>,
}

impl Weights {
    /// Opens the files of a model folder and reads their headers.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut contents = [SINGLE, INDEX].map(|name| folder.join(name)).into_iter();
        let contents = contents.find(|path| folder::is_there(path)).with_context(|| {
            let hint = folder::hint(folder);
            format!("there is neither {SINGLE} nor {INDEX} in {}{hint}", folder.display())
        })?;
        let mut weights = Self { contents: contents.clone(), files: Vec::new(), tensors: HashMap::new() };
        if contents.ends_with(SINGLE) {
            weights.tensors = weights.add_file(&contents)?;
        } else {
            let index = json::read(&contents)?;
            weights.add_shards(folder, &index).with_context(|| contents.display().to_string())?;
        }
        Ok(weights)
    }

    fn add_shards(&mut self, folder: &Path, index: &Index) -> Result<()> {
        let mut shards: HashMap<&Path, HashMap<String, Stored>> = HashMap::new();
        for (name, file) in &index.weight_map {
            let shard = match shards.get_mut(file.as_path()) {
                Some(shard) => shard,
                None => {
                    ensure!(
                        file.file_name() == Some(file.as_os_str()),
                        "{} is no file name in the folder",
                        file.display()
                    );
                    let opened = self.add_file(&folder.join(file))?;
                    shards.entry(file).or_insert(opened)
                }
            };
            let stored = shard
                .remove(name)
                .with_context(|| format!("{} lacks {name}, which the index puts there", file.display()))?;
            self.tensors.insert(name.clone(), stored);
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path) -> Result<HashMap<String, Stored>> {
        let shown = path.display();
        let file = folder::open(path)?;
        // SAFETY: the bytes are only copied and parsed, so that a file that somebody changes meanwhile gives wrong
        // numbers at worst; one that is cut short meanwhile ends the process, as it would any program that maps files.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot read {shown}"))?;
        folder::ensure_fetched(path, &map)?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|error| anyhow!("{shown} is damaged or no safetensors file: {error}"))?;
        let data = header + size_of::<u64>();
        let tensors = metadata.tensors().into_iter().map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let stored = Stored {
                file: self.files.len(),
                bytes: data + start..data + end,
                shape: info.shape.clone(),
                dtype: info.dtype,
            };
            (name, stored)
        });
        let tensors = tensors.collect();
        self.files.push((path.to_path_buf(), map));
        Ok(tensors)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(|stored| stored.bytes.len()).sum()
    }

    /// The element type of a tensor.
    pub fn dtype(&self, name: &str) -> Result<DType> {
        let stored = self.find(name)?;
        float_dtype(name, stored.dtype).with_context(|| self.file_of(stored))
    }

    /// The element type of a tensor, as the file has it.
    pub fn stored_dtype(&self, name: &str) -> Result<Dtype> {
        Ok(self.find(name)?.dtype)
    }

    /// The bytes of a tensor that must have this type and shape.
    pub fn codes(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8]> {
        let stored = self.shaped(name, &[shape])?;
        let (got, file) = (stored.dtype, || self.file_of(stored));
        ensure!(got == dtype, "{}: {name} is of type {got:?}, expected {dtype:?}", file());
        Ok(self.bytes_of(stored))
    }

    /// The numbers of a tensor that must have one of these shapes, and how many bytes they are.
    pub fn floats(&self, name: &str, shapes: &[&[usize]]) -> Result<(Vec<f32>, usize)> {
        let stored = self.shaped(name, shapes)?;
        let bytes = self.bytes_of(stored);
        let count = stored.shape.iter().product::<usize>();
        let data = TensorData::try_from_bytes_vec(bytes.to_vec(), [count], self.dtype(name)?)?;
        Ok((data.iter().collect(), bytes.len()))
    }

    /// True if there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// True if two tensors are the same, bit for bit.
    pub fn are_equal(&self, a: &str, b: &str) -> Result<bool> {
        let [a, b] = [self.find(a)?, self.find(b)?];
        Ok((&a.shape, a.dtype) == (&b.shape, b.dtype) && self.bytes_of(a) == self.bytes_of(b))
    }

    fn find(&self, name: &str) -> Result<&Stored> {
        self.tensors.get(name).with_context(|| format!("{name} is missing from {}", self.contents.display()))
    }

    /// A tensor that must have one of these shapes.
    fn shaped(&self, name: &str, shapes: &[&[usize]]) -> Result<&Stored> {
        let stored = self.find(name)?;
        if !shapes.contains(&stored.shape.as_slice()) {
            let (file, got) = (self.file_of(stored), &stored.shape);
            let expected: Vec<_> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
            bail!("{file}: {name} has shape {got:?}, expected {} from config.json", expected.join(" or "));
        }
        Ok(stored)
    }

    fn bytes_of(&self, stored: &Stored) -> &[u8] {
        &self.files[stored.file].1[stored.bytes.clone()]
    }

    fn file_of(&self, stored: &Stored) -> String {
        self.files[stored.file].0.display().to_string()
    }
}

fn float_dtype(name: &str, dtype: Dtype) -> Result<DType> {
    match dtype {
        Dtype::F64 => Ok(DType::F64),
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        other => bail!("{name} is of type {other:?}, expected F32, F16 or BF16"),
    }
}

/// The types in which a checkpoint is loaded.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// The element type to compute in; else that which the configuration names, or that of the embedding.
    pub dtype: Option<DType>,
    /// The format to which linear layers of 16 or 32 bits are rounded.
    pub quantize: Option<Quantize>,
    pub activations: RoundActivations,
    pub kv_cache: KvCacheOptions,
}

/// Copies weights to a device.
pub struct Loader<'a> {
    /// Random ones if there are none.
    pub weights: Option<&'a Weights>,
    pub device: &'a Device,
    /// The element type that every tensor is converted to.
    pub dtype: DType,
    /// The format of the linear layers, if they are stored in codes.
    pub quantization: Option<Quantization>,
    /// The format to which the linear layers are rounded.
    pub quantize: Option<Quantize>,
    pub activations: RoundActivations,
    pub kv_cache: KvCacheOptions,
    /// Told how many bytes have been read, after each tensor.
    pub progress: &'a dyn Fn(usize),
}

impl<'a> Loader<'a> {
    /// One tensor, which must have the shape that follows from the configuration.
    pub fn tensor<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<D>> {
        self.stacked(&[(name, shape)])
    }

    /// Several tensors as one, stacked along their first axis.
    pub fn stacked<const D: usize>(&self, parts: &[(&str, [usize; D])]) -> Result<Tensor<D>> {
        let [(_, mut shape), ..] = *parts else { bail!("no tensor to load") };
        // All of them are checked first: what a file holds, memory can be found for.
        let find = |weights: &'a Weights| -> Result<Vec<_>> {
            let find = |(name, shape): &(&str, [usize; D])| {
                Ok((weights.shaped(name, &[shape])?, weights.dtype(name)?))
            };
            parts.iter().map(find).collect()
        };
        let stored = self.weights.map(find).transpose()?;
        shape[0] = parts.iter().map(|(_, shape)| shape[0]).sum();
        let (Some(weights), Some(stored)) = (self.weights, stored) else {
            return Ok(Tensor::random(shape, Distribution::Normal(0.0, 0.02), (self.device, self.dtype)));
        };
        let mut bytes = Vec::with_capacity(shape.iter().product::<usize>() * self.dtype.size());
        for (stored, dtype) in stored {
            let raw = weights.bytes_of(stored);
            if dtype == self.dtype {
                bytes.extend_from_slice(raw);
            } else {
                let data = TensorData::try_from_bytes_vec(raw.to_vec(), stored.shape.clone(), dtype)?;
                bytes.extend_from_slice(data.try_cast(self.dtype)?.as_bytes());
            }
            (self.progress)(raw.len());
        }
        let data = TensorData::try_from_bytes_vec(bytes, shape, self.dtype)?;
        Ok(Tensor::from_data(data, (self.device, self.dtype)))
    }
}
