//! Writes text with a Llama of Hugging Face, on the operations of `burn_flashinfer`.
//!
//! `cargo run --release -p llama` tells a story with the little model that comes along. See [`llama::model`] for how
//! the operations fit together, and `--help` for the rest.

mod device;
mod printer;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, ensure};
use burn::tensor::DType;
use burn_flashinfer::KvLayout;
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use device::DeviceKind;
use llama::config::Config;
use llama::defaults::GenerationDefaults;
use llama::generate::{Event, Finish, Graph, Options, Request, Stats, generate};
#[cfg(all(feature = "kernel-cache", feature = "gpu"))]
use llama::kernel_cache;
use llama::model::Llama;
use llama::quantization::{Quantize, RoundActivations};
use llama::tokenizer::TextTokenizer;
use llama::weights::LoadOptions;
use printer::Printer;

/// Writes text with a Llama, on the operations of burn-flashinfer.
///
/// Without arguments it tells a story with the little model that comes along. The text goes to standard output, all else
/// to standard error; RUST_LOG=debug says more.
#[derive(Parser)]
#[command(name = "llama", version)]
struct Args {
    /// Model folder as Hugging Face has it: config.json, tokenizer.json, *.safetensors [default: the one that comes
    /// along, examples/llama/tiny]
    #[arg(long, value_name = "DIR", hide_default_value = true)]
    #[arg(default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/tiny"))]
    model: PathBuf,
    /// Where to run [default: the first that the build has]
    #[arg(long, value_enum)]
    device: Option<DeviceKind>,
    /// Element type to compute in [default: as config.json says; else that of the weights]
    #[arg(long, value_enum)]
    dtype: Option<FloatType>,
    /// Round the weights of 16 or 32 bits of all layers to codes while loading, but for embedding and head; folders of codes
    /// (fp8, fbgemm_fp8, compressed-tensors, awq, gptq) need no option
    #[arg(long, value_enum, value_name = "TYPE")]
    quantize: Option<QuantizedType>,
    /// When to round activations to e4m3 as well, for layers of e4m3 and more than 32 tokens at once
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    round_activations: WhenRounded,
    /// Text to write on from, or - for standard input; give several for a batch [default: "Once upon a time"]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Vec<String>,
    /// File with one prompt, or - for standard input, without its last line break; may be given several times, and
    /// counts after the others
    #[arg(long, value_name = "FILE")]
    prompt_file: Vec<PathBuf>,
    /// Tokens to write for each prompt, at most [default: as generation_config.json says; else 256]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_new_tokens: Option<usize>,
    /// 0 takes the most likely token, more is more random, inf takes any [default: as generation_config.json says; else
    /// 0, or 1 with --top-k or --top-p]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Choose among this many most likely tokens [default: as generation_config.json says; else 50 if that file wants
    /// sampling, as with transformers; else all]
    #[arg(long, value_name = "K", value_parser = at_least_one)]
    top_k: Option<usize>,
    /// Choose among the fewest most likely tokens that hold this share of the probability [default: as
    /// generation_config.json says; else 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Seed of the random numbers; prompt number i, from 0, gets SEED + i
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tokens in a page of the cache, no more than the shortest text needs
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    page_size: usize,
    /// Order of the axes of a page
    #[arg(long, value_enum, default_value = "nhd")]
    layout: Layout,
    /// Write on past the end of a text
    #[arg(long)]
    ignore_eos: bool,
    /// When to capture a step as a graph and replay it, one launch for each token; --graph alone means always
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "auto", default_missing_value = "always")]
    graph: WhenGraph,
    /// Folder of compiled kernels for GPUs, which later starts load; delete it to clear it [default: burn-flashinfer in
    /// $XDG_CACHE_HOME, or else in ~/.cache]
    #[cfg(all(feature = "kernel-cache", feature = "gpu"))]
    #[arg(long, value_name = "DIR", conflicts_with = "no_kernel_cache")]
    kernel_cache: Option<PathBuf>,
    /// Compile kernels at every start, and keep none
    #[cfg(all(feature = "kernel-cache", feature = "gpu"))]
    #[arg(long)]
    no_kernel_cache: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum FloatType {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, ValueEnum)]
enum QuantizedType {
    /// Floats of 8 bits, with a scale for each output
    E4m3,
    /// 4 bits, with a scale and a zero for each 128 inputs, rounded to the nearest
    Int4,
}

#[derive(Clone, Copy, ValueEnum)]
enum WhenRounded {
    /// Where the device multiplies e4m3 (Hopper, MI300X), unless the folder is for activations of 16 bits
    Auto,
    /// On every device; those that do not multiply e4m3 take longer then
    Always,
    /// Activations keep their type
    Never,
}

#[derive(Clone, Copy, ValueEnum)]
enum Layout {
    /// Tokens before heads
    Nhd,
    /// Heads before tokens
    Hnd,
}

#[derive(Clone, Copy, ValueEnum)]
enum WhenGraph {
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

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "warn,cubecl_common=error".into());
    let colors = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colors).init();
    let ran = device::quietly(|| run(&args));
    match ran.unwrap_or_else(|why| Err(anyhow!("stopped by a panic, most likely of the device: {why}"))) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the text has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let prompts = prompts(args)?;
    // What is cheap to get wrong comes first.
    let config = Config::load(&args.model)?;
    let defaults = GenerationDefaults::load(&args.model)?;
    let sampling = defaults.sampling(args.temperature, args.top_k, args.top_p)?;
    let rules = defaults.rules(config.vocab_size)?;
    // `tokenizers` panics over some files that are wrong.
    let tokenizer = device::quietly(|| TextTokenizer::load(&args.model))
        .unwrap_or_else(|why| Err(anyhow!("{}: {why}", args.model.join("tokenizer.json").display())))?;
    let tokens = prompts
        .iter()
        .zip(1..)
        .map(|(prompt, number)| tokenizer.encode(prompt).with_context(|| format!("prompt {number}")));
    let tokens: Vec<_> = tokens.collect::<Result<_>>()?;

    #[cfg(all(feature = "kernel-cache", feature = "gpu"))]
    {
        let folder = args.kernel_cache.clone().or_else(kernel_cache::default_folder);
        kernel_cache::keep_in(folder.filter(|_| !args.no_kernel_cache).as_deref());
    }
    let (kind, device) = device::open(args.device)?;
    let dtype = args.dtype.map(|dtype| match dtype {
        FloatType::F32 => DType::F32,
        FloatType::F16 => DType::F16,
        FloatType::Bf16 => DType::BF16,
    });
    let quantize = args.quantize.map(|quantized| match quantized {
        QuantizedType::E4m3 => Quantize::E4m3,
        QuantizedType::Int4 => Quantize::Int4,
    });
    let activations = match args.round_activations {
        WhenRounded::Auto => RoundActivations::Auto,
        WhenRounded::Always => RoundActivations::Always,
        WhenRounded::Never => RoundActivations::Never,
    };
    let model = load(&args.model, &device, &LoadOptions { dtype, quantize, activations })?;

    let eos_tokens = match args.ignore_eos {
        true => Vec::new(),
        false => defaults.eos_tokens().unwrap_or_else(|| model.config.eos_tokens.clone()),
    };
    let layout = match args.layout {
        Layout::Nhd => KvLayout::Nhd,
        Layout::Hnd => KvLayout::Hnd,
    };
    let options = Options {
        length: defaults.length(args.max_new_tokens),
        sampling,
        rules,
        eos_tokens,
        page_size: args.page_size,
        layout,
        graph: match args.graph {
            WhenGraph::Auto if kind.replays_graphs() => Graph::Auto,
            WhenGraph::Always => Graph::Always,
            WhenGraph::Auto | WhenGraph::Never => Graph::Never,
        },
    };
    let requests: Vec<_> = tokens
        .iter()
        .zip(0..)
        .map(|(tokens, index)| Request { tokens: tokens.clone(), seed: args.seed.wrapping_add(index) })
        .collect();

    let mut cut = Vec::new();
    let mut printer = Printer::new(io::stdout().lock(), &tokenizer, &tokens)?;
    let stats = generate(&model, &requests, &options, |event: Event| {
        if event.finish == Some(Finish::Context) {
            cut.push(event.request + 1);
        }
        printer.push(event)
    })?;
    for prompt in cut {
        say(&format!(
            "prompt {prompt}: the text ends where the model's context of {} tokens does",
            model.config.max_positions
        ));
    }
    say(&summary(&stats));
    Ok(())
}

fn prompts(args: &Args) -> Result<Vec<String>> {
    let mut stdin = Some(io::stdin());
    let mut read = |path: &Path| {
        let text = if path != Path::new("-") {
            File::open(path).map_err(Error::from).and_then(read_prompt)
        } else {
            stdin.take().context("standard input holds one prompt only").and_then(read_prompt)
        };
        text.with_context(|| format!("cannot read the prompt {}", path.display()))
    };
    let mut prompts = Vec::new();
    for text in &args.prompt {
        prompts.push(if text == "-" { read(Path::new(text))? } else { text.clone() });
    }
    for path in &args.prompt_file {
        prompts.push(read(path)?);
    }
    if prompts.is_empty() {
        if is_stdin_fed() {
            say("standard input is not read; `--prompt -` takes it for the prompt");
        }
        prompts.push("Once upon a time".to_owned());
    }
    Ok(prompts)
}

/// The text of a file without its last line break. Some files have no end, so there must be one to reading them.
fn read_prompt(file: impl Read) -> Result<String> {
    const MAX_MIB: u64 = 64;
    let mut text = Vec::new();
    let read = file.take((MAX_MIB << 20) + 1).read_to_end(&mut text)?;
    ensure!(read as u64 <= MAX_MIB << 20, "it is longer than {MAX_MIB} MiB");
    let mut text = String::from_utf8(text)?;
    for end in ["\n", "\r"] {
        text.truncate(text.strip_suffix(end).unwrap_or(&text).len());
    }
    Ok(text)
}

/// True if standard input is a pipe or a file, not a terminal or nothing.
fn is_stdin_fed() -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        let data = std::fs::metadata("/dev/stdin");
        data.is_ok_and(|data| data.is_file() || data.file_type().is_fifo())
    }
    #[cfg(not(unix))]
    false
}

/// Loads the model, with a bar that shows how far it is.
fn load(folder: &Path, device: &burn::tensor::Device, options: &LoadOptions) -> Result<Llama> {
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("loading {wide_bar} {bytes}/{total_bytes}") {
        bar.set_style(style);
    }
    let start = std::time::Instant::now();
    let model = Llama::load(folder, device, options, |bytes| {
        bar.set_length(bytes as u64);
        |bytes| bar.inc(bytes as u64)
    });
    bar.finish_and_clear();
    let model = model?;
    tracing::info!(
        seconds = start.elapsed().as_secs_f64(),
        dtype = model.dtype.name(),
        "loaded {}",
        folder.display()
    );
    Ok(model)
}

fn summary(stats: &Stats) -> String {
    let rate = |tokens: usize, time: Duration| match time.as_secs_f64() {
        seconds if tokens > 0 && seconds > 0.0 => format!(", {:.0} tok/s", tokens as f64 / seconds),
        _ => String::new(),
    };
    let mut line =
        format!("prompt {} tokens{}", stats.prompt_tokens, rate(stats.prompt_tokens, stats.prefill));
    // The first token of a text comes with its prompt.
    let decoding = rate(stats.decoded_tokens, stats.decode);
    let first = stats.first_token.as_secs_f64() * 1e3;
    let _ = write!(
        line,
        " | generated {} tokens{decoding} | time to first token {first:.1} ms",
        stats.new_tokens
    );
    line
}

/// A line on standard error; if nobody can read it, so be it.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn is_broken_pipe(error: &Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
