//! The arguments of the program.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use super::device::DeviceKind;

/// Writes text with a Llama, on the operations of burn-flashinfer.
///
/// Without arguments it tells a story with the little model that comes along. The text goes to standard output, all else
/// to standard error; RUST_LOG=debug says more.
#[derive(Parser)]
#[command(name = "llama", version)]
pub struct Args {
    /// Model folder as Hugging Face has it: config.json, tokenizer.json, *.safetensors [default: the one that comes
    /// along, examples/llama/tiny]
    #[arg(long, value_name = "DIR", hide_default_value = true)]
    #[arg(default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/tiny"))]
    pub model: PathBuf,
    /// Where to run [default: the first that the build has]
    #[arg(long, value_enum)]
    pub device: Option<DeviceKind>,
    /// Element type to compute in [default: as config.json says; else that of the weights]
    #[arg(long, value_enum)]
    pub dtype: Option<FloatType>,
    /// Round the weights of 16 or 32 bits of all layers to codes while loading, but for embedding and head; folders of codes
    /// (fp8, fbgemm_fp8, compressed-tensors, modelopt, awq, gptq) need no option
    #[arg(long, value_enum, value_name = "TYPE")]
    pub quantize: Option<QuantizedType>,
    /// When to round activations to e4m3 as well, for layers of e4m3 and more than 32 tokens at once
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    pub round_activations: WhenRounded,
    /// Text to write on from, or - for standard input; give several for a batch [default: "Once upon a time"]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Vec<String>,
    /// File with one prompt, or - for standard input, without its last line break; may be given several times, and
    /// counts after the others
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Vec<PathBuf>,
    /// Write nothing, and tell the perplexity of the texts in a file, or - for standard input; empty lines are between them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_file"])]
    pub perplexity: Option<PathBuf>,
    /// Tokens to write for each prompt, at most [default: as generation_config.json says; else 256]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub max_new_tokens: Option<usize>,
    /// 0 takes the most likely token, more is more random, inf takes any [default: as generation_config.json says; else
    /// 0, or 1 with --top-k or --top-p]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f64>,
    /// Choose among this many most likely tokens [default: as generation_config.json says; else 50 if that file wants
    /// sampling, as with transformers; else all]
    #[arg(long, value_name = "K", value_parser = at_least_one)]
    pub top_k: Option<usize>,
    /// Choose among the fewest most likely tokens that hold this share of the probability [default: as
    /// generation_config.json says; else 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Seed of the random numbers; prompt number i, from 0, gets SEED + i
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Tokens in a page of the cache, no more than the shortest text needs
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    pub page_size: usize,
    /// Type of cached keys and values; in 8 bits the same memory holds twice the tokens of 16
    #[arg(long, value_enum, value_name = "TYPE", default_value = "auto")]
    pub kv_cache_dtype: CacheType,
    /// Scales of a cache of 8 bits
    #[arg(long, value_enum, value_name = "FROM", default_value = "auto")]
    pub kv_scales: ScalesFrom,
    /// Order of the axes of a page
    #[arg(long, value_enum, default_value = "nhd")]
    pub layout: Layout,
    /// Write on past the end of a text
    #[arg(long)]
    pub ignore_eos: bool,
    /// When to capture a step as a graph and replay it, one launch for each token; --graph alone means always
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "auto", default_missing_value = "always")]
    pub graph: WhenGraph,
    /// Folder of compiled kernels for GPUs, which later starts load; delete it to clear it [default: burn-flashinfer in
    /// $XDG_CACHE_HOME, or else in ~/.cache]
    #[cfg(all(feature = "kernel-cache", feature = "gpu"))]
    #[arg(long, value_name = "DIR", conflicts_with = "no_kernel_cache")]
    pub kernel_cache: Option<PathBuf>,
    /// Compile kernels at every start, and keep none
    #[cfg(all(feature = "kernel-cache", feature = "gpu"))]
    #[arg(long)]
    pub no_kernel_cache: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum FloatType {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum QuantizedType {
    /// Floats of 8 bits, with a scale for each output
    E4m3,
    /// 4 bits, with a scale and a zero for each 128 inputs, rounded to the nearest
    Int4,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum WhenRounded {
    /// Where the device multiplies e4m3 (Hopper, MI300X), unless the folder is for activations of 16 bits
    Auto,
    /// On every device; those that do not multiply e4m3 take longer then
    Always,
    /// Activations keep their type
    Never,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum CacheType {
    /// The type to compute in
    Auto,
    /// e4m3 (also called fp8_e4m3): on AMD's CDNA3 its FNUZ variant
    #[value(name = "fp8", alias = "fp8_e4m3")]
    Fp8,
    /// One bit of the mantissa less, for range that scales make needless
    #[value(name = "fp8_e5m2")]
    Fp8E5m2,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum ScalesFrom {
    /// From the folder; calibrated if it has none
    Auto,
    /// From the folder: k_scale and v_scale of each layer
    Checkpoint,
    /// From the first prompt, with more tokens if it has less than 64: the type reaches four times the largest number of each
    /// key head, or more
    Calibrate,
    /// All are 1, as vLLM has it for a folder without any
    One,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Layout {
    /// Tokens before heads
    Nhd,
    /// Heads before tokens
    Hnd,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum WhenGraph {
    /// On CUDA and ROCm, unless the device refuses, which the log says (RUST_LOG=info)
    Auto,
    /// On every device; one that replays no graph runs the step with the same buffers anew
    Always,
    /// Launch by launch
    Never,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".into()),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}
