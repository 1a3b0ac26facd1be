//! Weights of 8 and 4 bits: what `quantization_config` says of a checkpoint, and what is asked for while loading.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use burn_flashinfer::{GptqVersion, WeightScales};
use serde::Deserialize;
use serde_json::Value;

use super::folder;
use super::json::{self, Fields};

/// The format of a checkpoint's linear layers. One that has a `weight` of 16 or 32 bits all the same, as those that the file
/// lists as not converted have, is one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// `weight` of e4m3 codes, and `weight_scale` or `weight_scale_inv`.
    E4m3 {
        scales: WeightScales,
        /// Activations are rounded to 8 bits as well.
        activations: bool,
    },
    /// `qweight`, `qzeros` and `scales` of AutoAWQ, version `gemm`.
    Awq { group: usize },
    /// `qweight`, `qzeros` and `scales` of GPTQ, and `g_idx`, which must tell the groups in order.
    Gptq {
        group: usize,
        version: GptqVersion,
        /// The groups may be in another order: only `g_idx` tells.
        act_order: bool,
    },
}

/// The type that weights of 16 or 32 bits are rounded to while loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantize {
    /// e4m3, with a scale for each output.
    E4m3,
    /// 4 bits with a scale and a zero for each 128 inputs, rounded to the nearest.
    Int4,
}

/// When many rows are rounded to e4m3 for weights of e4m3. Few rows, as those of a decoding step, never are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RoundActivations {
    /// Where the device multiplies e4m3, unless the checkpoint is for activations of 16 bits.
    #[default]
    Auto,
    Always,
    Never,
}

const SUPPORTED: &str = "fp8, fbgemm_fp8, compressed-tensors, modelopt, awq and gptq are";

/// Where ModelOpt writes what others have in `config.json`.
const OF_MODELOPT: &str = "hf_quant_config.json";

impl Quantization {
    /// The scheme of a `config.json`, if its weights are quantised.
    pub fn of(config: &Fields) -> Result<Option<Self>> {
        // The second is what compressed-tensors wrote at first.
        let names = ["quantization_config", "compression_config"];
        let given = |name| Some((name, config.get(name).filter(|value| !value.is_null())?));
        let Some((name, value)) = names.into_iter().find_map(given) else { return Ok(None) };
        let Some(fields) = value.as_object() else {
            bail!("`{name}` is {}, expected an object", json::shown(value));
        };
        let method = fields.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        let context = || format!("{name} of {method}");
        let scheme = match method {
            "fp8" => fp8(fields),
            // All of its scales are of outputs. `activation_scale_ub`, which bounds the scales of activations, is not read.
            "fbgemm_fp8" => Ok(Self::E4m3 { scales: WeightScales::PerChannel, activations: true }),
            "compressed-tensors" => return compressed_tensors(fields).with_context(context),
            "modelopt" => modelopt(fields),
            "awq" => awq(fields),
            "gptq" => gptq(fields),
            _ => bail!("the weights are quantized ({method}), which is not supported; {SUPPORTED}"),
        };
        scheme.map(Some).with_context(context)
    }

    /// The scheme of a folder whose `config.json` has none.
    pub fn beside(folder: &Path) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Beside {
            quantization: Fields,
        }
        let path = folder.join(OF_MODELOPT);
        if !folder::is_there(&path) {
            return Ok(None);
        }
        let Beside { quantization } = json::read(&path)?;
        modelopt(&quantization).map(Some).with_context(|| path.display().to_string())
    }
}

/// DeepSeek's and Qwen's blocks, or one scale for each weight. Scales of activations that are stored (`static`) are not read:
/// each row has its own.
fn fp8(fields: &Fields) -> Result<Quantization> {
    #[derive(Deserialize)]
    struct Fp8 {
        weight_block_size: Option<Vec<usize>>,
        fmt: Option<String>,
        activation_scheme: Option<String>,
    }
    let Fp8 { weight_block_size, fmt, activation_scheme } = json::typed(fields)?;
    one_of("fmt", fmt.as_deref(), &["e4m3", "float8_e4m3fn"])?;
    one_of("activation_scheme", activation_scheme.as_deref(), &["dynamic", "static"])?;
    let scales = match weight_block_size {
        None => WeightScales::PerTensor,
        Some(size) => blocks("weight_block_size", &size)?,
    };
    Ok(Quantization::E4m3 { scales, activations: true })
}

/// One scale for each weight. Scales of activations are not read: each row has its own.
fn modelopt(fields: &Fields) -> Result<Quantization> {
    #[derive(Deserialize)]
    struct ModelOpt {
        quant_algo: String,
    }
    let ModelOpt { quant_algo } = json::typed(fields)?;
    one_of("quant_algo", Some(&quant_algo), &["FP8"])?;
    Ok(Quantization::E4m3 { scales: WeightScales::PerTensor, activations: true })
}

/// Floats of 8 bits, or no layers at all, where keys and values alone are in 8 bits. Scales of activations that are stored are not
/// read: each row has its own.
fn compressed_tensors(fields: &Fields) -> Result<Option<Quantization>> {
    #[derive(Deserialize)]
    struct Compressed {
        format: Option<String>,
        config_groups: BTreeMap<String, Group>,
        kv_cache_scheme: Option<Value>,
        sparsity_config: Option<Sparsity>,
    }
    #[derive(Deserialize)]
    struct Group {
        targets: Vec<String>,
        weights: Option<Numbers>,
        input_activations: Option<Numbers>,
        format: Option<String>,
    }
    #[derive(Deserialize)]
    struct Numbers {
        num_bits: u32,
        r#type: String,
        strategy: Option<String>,
        block_structure: Option<Vec<usize>>,
        symmetric: Option<bool>,
    }
    #[derive(Deserialize)]
    struct Sparsity {
        format: Option<String>,
    }
    let Compressed { format, config_groups, kv_cache_scheme, sparsity_config } = json::typed(fields)?;
    let sparsity = sparsity_config.and_then(|sparsity| sparsity.format);
    one_of("sparsity_config.format", sparsity.as_deref(), &["dense"])?;
    if kv_cache_scheme.is_some() && config_groups.values().all(|group| group.targets.is_empty()) {
        return Ok(None);
    }
    let groups: Vec<_> = config_groups.into_values().collect();
    let [group] = groups.as_slice() else {
        bail!("`config_groups` has {} groups, expected 1", groups.len());
    };
    for format in [format.as_deref(), group.format.as_deref()] {
        one_of("format", format, &["float-quantized", "naive-quantized"])?;
    }
    ensure!(group.targets == ["Linear"], "`targets` is {:?}, expected [\"Linear\"]", group.targets);
    let is_fp8 = |name: &str, numbers: &Numbers| {
        let Numbers { num_bits, r#type, symmetric, .. } = numbers;
        ensure!(
            *num_bits == 8 && r#type == "float" && *symmetric != Some(false),
            "`{name}` are {num_bits} bits of type {type:?}, expected symmetric \"float\" of 8"
        );
        Ok(())
    };
    let weights = group.weights.as_ref().context("`weights` is missing")?;
    is_fp8("weights", weights)?;
    if let Some(activations) = &group.input_activations {
        is_fp8("input_activations", activations)?;
    }
    let scales = match weights.strategy.as_deref() {
        None | Some("tensor") => WeightScales::PerTensor,
        Some("channel") => WeightScales::PerChannel,
        Some("block") => blocks("block_structure", weights.block_structure.as_deref().unwrap_or_default())?,
        Some(other) => {
            bail!("`weights.strategy` is {other:?}, expected \"tensor\", \"channel\" or \"block\"")
        }
    };
    Ok(Some(Quantization::E4m3 { scales, activations: group.input_activations.is_some() }))
}

fn awq(fields: &Fields) -> Result<Quantization> {
    #[derive(Deserialize)]
    struct Awq {
        #[serde(alias = "w_bit")]
        bits: Option<u32>,
        #[serde(alias = "q_group_size")]
        group_size: Option<i64>,
        version: Option<String>,
        zero_point: Option<bool>,
    }
    let Awq { bits, group_size, version, zero_point } = json::typed(fields)?;
    let version = version.map(|version| version.to_lowercase());
    one_of("version", version.as_deref(), &["gemm"])?;
    ensure!(zero_point != Some(false), "`zero_point` is false, expected true");
    Ok(Quantization::Awq { group: group(bits, group_size)? })
}

fn gptq(fields: &Fields) -> Result<Quantization> {
    #[derive(Deserialize)]
    struct Gptq {
        bits: Option<u32>,
        group_size: Option<i64>,
        desc_act: Option<bool>,
        checkpoint_format: Option<String>,
        is_marlin_format: Option<bool>,
    }
    let Gptq { bits, group_size, desc_act, checkpoint_format, is_marlin_format } = json::typed(fields)?;
    ensure!(is_marlin_format != Some(true), "`is_marlin_format` is true, expected false");
    one_of("checkpoint_format", checkpoint_format.as_deref(), &["gptq", "gptq_v2"])?;
    if let Some(setting) = json::first_on(fields, &[("dynamic", |_| false)]) {
        bail!("{setting}, expected no settings of single layers");
    }
    let version = match checkpoint_format.as_deref() {
        Some("gptq_v2") => GptqVersion::V2,
        _ => GptqVersion::V1,
    };
    let act_order = desc_act == Some(true);
    Ok(Quantization::Gptq { group: group(bits, group_size)?, version, act_order })
}

/// The inputs of a group of 4 bits. What is not there is as `transformers` has it.
fn group(bits: Option<u32>, size: Option<i64>) -> Result<usize> {
    let (bits, size) = (bits.unwrap_or(4), size.unwrap_or(128));
    ensure!(bits == 4, "`bits` is {bits}, expected 4");
    ensure!([32, 64, 128].contains(&size), "`group_size` is {size}, expected 32, 64 or 128");
    Ok(size as usize)
}

fn blocks(name: &str, size: &[usize]) -> Result<WeightScales> {
    ensure!(size == [128, 128], "`{name}` is {size:?}, expected [128, 128]");
    Ok(WeightScales::Block128)
}

/// Refuses a value that is there and none of `expected`.
fn one_of(name: &str, value: Option<&str>, expected: &[&str]) -> Result<()> {
    match value {
        Some(value) if !expected.contains(&value) => {
            let expected: Vec<_> = expected.iter().map(|name| format!("{name:?}")).collect();
            bail!("`{name}` is {value:?}, expected {}", expected.join(" or "))
        }
        _ => Ok(()),
    }
}
