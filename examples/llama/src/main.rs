//! Writes text with a Llama of Hugging Face, on the operations of `burn_flashinfer`.
//!
//! `cargo run --release -p llama` tells a story with the little model that comes along. See [`llama::model`] for how
//! the operations fit together, and `--help` for the rest.

mod args;
mod device;
mod printer;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, ensure};
use burn::tensor::DType;
use burn_flashinfer::KvLayout;
use clap::Parser as _;
use indicatif::{ProgressBar, ProgressStyle};

use args::{Args, CacheType, FloatType, Layout, QuantizedType, ScalesFrom, WhenGraph, WhenRounded};
use llama::config::Config;
use llama::defaults::GenerationDefaults;
use llama::generate::{Event, Finish, Graph, Options, Request, Stats, generate};
#[cfg(all(feature = "kernel-cache", feature = "gpu"))]
use llama::kernel_cache;
use llama::kv_cache::{KvCacheDtype, KvCacheOptions, KvScales};
use llama::model::Llama;
use llama::perplexity::{Reading, log_probabilities, perplexity};
use llama::quantization::{Quantize, RoundActivations};
use llama::tokenizer::TextTokenizer;
use llama::weights::LoadOptions;
use printer::Printer;

/// Tokens that are read at once for a perplexity.
const PIECE: usize = 128;

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
    let (kind, texts) = match &args.perplexity {
        None => ("prompt", prompts(args)?),
        Some(path) => ("text", texts(path)?),
    };
    // What is cheap to get wrong comes first.
    let config = Config::load(&args.model)?;
    let defaults = GenerationDefaults::load(&args.model)?;
    let sampling = defaults.sampling(args.temperature, args.top_k, args.top_p)?;
    let rules = defaults.rules(config.vocab_size)?;
    // `tokenizers` panics over some files that are wrong.
    let tokenizer = device::quietly(|| TextTokenizer::load(&args.model))
        .unwrap_or_else(|why| Err(anyhow!("{}: {why}", args.model.join("tokenizer.json").display())))?;
    let tokens = texts
        .iter()
        .zip(1..)
        .map(|(text, number)| tokenizer.encode(text).with_context(|| format!("{kind} {number}")));
    let tokens: Vec<_> = tokens.collect::<Result<_>>()?;

    #[cfg(all(feature = "kernel-cache", feature = "gpu"))]
    {
        let folder = args.kernel_cache.clone().or_else(kernel_cache::default_folder);
        kernel_cache::keep_in(folder.filter(|_| !args.no_kernel_cache).as_deref());
    }
    let (device_kind, device) = device::open(args.device)?;
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
    let kv_cache = KvCacheOptions {
        dtype: match args.kv_cache_dtype {
            CacheType::Auto => KvCacheDtype::Auto,
            CacheType::Fp8 => KvCacheDtype::Fp8E4m3,
            CacheType::Fp8E5m2 => KvCacheDtype::Fp8E5m2,
        },
        scales: match args.kv_scales {
            ScalesFrom::Auto => KvScales::Auto,
            ScalesFrom::Checkpoint => KvScales::Checkpoint,
            ScalesFrom::Calibrate => KvScales::Calibrate,
            ScalesFrom::One => KvScales::One,
        },
    };
    let model = load(&args.model, &device, &LoadOptions { dtype, quantize, activations, kv_cache })?;
    let layout = match args.layout {
        Layout::Nhd => KvLayout::Nhd,
        Layout::Hnd => KvLayout::Hnd,
    };
    if args.perplexity.is_some() {
        let reading = Reading { piece: PIECE, page_size: args.page_size, layout };
        return tell_perplexity(&model, &tokens, reading);
    }

    let eos_tokens = match args.ignore_eos {
        true => Vec::new(),
        false => defaults.eos_tokens().unwrap_or_else(|| model.config.eos_tokens.clone()),
    };
    let options = Options {
        length: defaults.length(args.max_new_tokens),
        sampling,
        rules,
        eos_tokens,
        page_size: args.page_size,
        layout,
        graph: match args.graph {
            WhenGraph::Auto if device_kind.replays_graphs() => Graph::Auto,
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

/// Writes the perplexity of texts to standard output.
fn tell_perplexity(model: &Llama, texts: &[Vec<u32>], reading: Reading) -> Result<()> {
    let mut all = Vec::new();
    for text in texts {
        all.extend(log_probabilities(model, text, reading)?);
    }
    ensure!(
        !all.is_empty(),
        "the perplexity is that of tokens after the first of a text, and there are none"
    );
    let (bytes, tokens) = (model.cached_bytes(), all.len());
    writeln!(
        io::stdout(),
        "perplexity {:.4} of {tokens} tokens; {bytes} bytes of cache for each",
        perplexity(&all)
    )?;
    Ok(())
}

/// The texts in a file, which empty lines are between.
fn texts(path: &Path) -> Result<Vec<String>> {
    let text = match path == Path::new("-") {
        true => read_prompt(io::stdin()),
        false => File::open(path).map_err(Error::from).and_then(read_prompt),
    };
    let text =
        text.with_context(|| format!("cannot read the texts {}", path.display()))?.replace("\r\n", "\n");
    Ok(text
        .split("\n\n")
        .map(|text| text.trim_matches('\n'))
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .collect())
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
