//! `generation_config.json`: how the makers of the model would have it write. Whatever is in it is done as Hugging Face's
//! `transformers` 5 does it, or refused by name.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::folder;
use super::generate::Length;
use super::json::{self, Setting, TokenIds, tokens};
use super::rules::Rules;
use super::sampling::{Sampling, is_greedy};

/// Where the settings are. A folder of old has them in the second.
const FILES: [&str; 2] = ["generation_config.json", "config.json"];

/// The number of tokens that `transformers` samples from if the file does not say.
const TOP_K: usize = 50;

/// The largest number of new tokens of a text, if nobody says.
const NEW_TOKENS: usize = 256;

fn never(_: f64) -> bool {
    false
}

fn is_one(number: f64) -> bool {
    number == 1.0
}

fn is_not_above_0(number: f64) -> bool {
    number <= 0.0
}

/// Settings that change the text, and what the program cannot do. The others in a file change nothing: how fast, with which
/// cache, what besides the text is returned, beams where there is one.
const MISSING: [Setting; 21] = [
    ("constraints", never),
    ("dola_layers", never),
    ("encoder_no_repeat_ngram_size", is_not_above_0),
    ("encoder_repetition_penalty", is_one),
    ("exponential_decay_length_penalty", never),
    ("force_bos_token_to_be_generated", never),
    ("force_words_ids", never),
    ("forced_bos_token_id", never),
    ("forced_eos_token_id", never),
    ("guidance_scale", is_one),
    ("max_time", never),
    ("num_beam_groups", is_one),
    ("num_beams", is_one),
    ("num_return_sequences", is_one),
    ("penalty_alpha", is_not_above_0),
    ("remove_invalid_values", never),
    ("sequence_bias", never),
    ("stop_strings", never),
    ("token_healing", never),
    ("use_mtp", never),
    ("watermarking_config", never),
];

/// The same, of those that only apply to sampled text.
const MISSING_IF_SAMPLED: [Setting; 4] = [
    ("epsilon_cutoff", |number| !(0.0..1.0).contains(&number) || number == 0.0),
    ("eta_cutoff", |number| !(0.0..1.0).contains(&number) || number == 0.0),
    ("top_h", never),
    ("typical_p", |number| number >= 1.0),
];

/// The settings that the program has.
#[derive(Deserialize)]
struct Raw {
    eos_token_id: Option<TokenIds>,
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    max_new_tokens: Option<usize>,
    max_length: Option<usize>,
    cache_implementation: Option<String>,
    repetition_penalty: Option<f64>,
    // Below 0 these are as good as 0.
    no_repeat_ngram_size: Option<i64>,
    min_length: Option<i64>,
    min_new_tokens: Option<i64>,
    bad_words_ids: Option<Vec<Vec<u32>>>,
    suppress_tokens: Option<Vec<i64>>,
    begin_suppress_tokens: Option<Vec<i64>>,
}

/// The settings of a model folder. Every one is optional.
#[derive(Debug, Clone, Default)]
pub struct GenerationDefaults {
    eos_tokens: Option<Vec<u32>>,
    do_sample: bool,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    length: Option<Length>,
    rules: Rules,
    /// The reason against sampling, in words.
    not_sampled: Option<String>,
}

impl GenerationDefaults {
    /// Reads the settings of a model folder, if there are any.
    pub fn load(folder: &Path) -> Result<Self> {
        let paths = FILES.map(|file| folder.join(file));
        let Some(path) = paths.into_iter().find(|path| folder::is_there(path)) else {
            return Ok(Self::default());
        };
        Self::parse(&folder::read(&path)?).with_context(|| path.display().to_string())
    }

    /// Reads the text of a `generation_config.json`.
    pub fn parse(json: &str) -> Result<Self> {
        let fields = json::fields(json)?;
        if let Some(setting) = json::first_on(&fields, &MISSING) {
            bail!("{}", missing(&setting));
        }
        let raw: Raw = json::typed(&fields)?;
        if raw.cache_implementation.as_deref() == Some("quantized") {
            bail!("{}", missing("`cache_implementation` is \"quantized\""));
        }
        Ok(Self {
            length: length(&raw)?,
            rules: rules(&raw)?,
            eos_tokens: raw.eos_token_id.map(Vec::from),
            do_sample: raw.do_sample.unwrap_or(false),
            temperature: raw.temperature,
            top_k: raw.top_k,
            top_p: raw.top_p,
            min_p: raw.min_p,
            not_sampled: json::first_on(&fields, &MISSING_IF_SAMPLED),
        })
    }

    /// The tokens that end a text.
    pub fn eos_tokens(&self) -> Option<Vec<u32>> {
        self.eos_tokens.clone()
    }

    /// The largest length of a text, unless it is `asked` for so many new tokens.
    pub fn length(&self, asked: Option<usize>) -> Length {
        asked.map(Length::New).or(self.length).unwrap_or(Length::New(NEW_TOKENS))
    }

    /// The rules on tokens that a model of `vocab_size` tokens may write.
    pub fn rules(&self, vocab_size: usize) -> Result<Rules> {
        let word = self.rules.bad_words.iter().flatten().find(|&&token| token as usize >= vocab_size);
        match word {
            Some(token) => bail!("`bad_words_ids` has token {token}, expected below {vocab_size}"),
            None => Ok(self.rules.clone()),
        }
    }

    /// The choice of a token. Options come before what the file says; to ask for top-k or top-p is to ask for
    /// sampling.
    pub fn sampling(
        &self,
        temperature: Option<f64>,
        top_k: Option<usize>,
        top_p: Option<f64>,
    ) -> Result<Sampling> {
        let is_sampled = match temperature {
            Some(temperature) => !is_greedy(temperature),
            None => self.do_sample || top_k.is_some() || top_p.is_some(),
        };
        if !is_sampled {
            return Sampling::new(0.0, top_k, top_p.unwrap_or(1.0));
        }
        if let Some(setting) = &self.not_sampled {
            bail!("{}", missing(setting));
        }
        let top_k = top_k.or_else(|| match self.top_k {
            Some(0) => None,
            None => self.do_sample.then_some(TOP_K),
            some => some,
        });
        let temperature = temperature.or(self.temperature).unwrap_or(1.0);
        Sampling::new(temperature, top_k, top_p.or(self.top_p).unwrap_or(1.0))?
            .min_p(self.min_p.unwrap_or(0.0))
    }
}

fn missing(setting: &str) -> String {
    format!("{setting}, which this program cannot do; take it out of the file to have the text without it")
}

fn length(raw: &Raw) -> Result<Option<Length>> {
    for (name, count) in [("max_new_tokens", raw.max_new_tokens), ("max_length", raw.max_length)] {
        ensure!(count != Some(0), "`{name}` is 0, expected at least 1");
    }
    Ok(raw.max_new_tokens.map(Length::New).or(raw.max_length.map(Length::Total)))
}

fn rules(raw: &Raw) -> Result<Rules> {
    let repetition_penalty = raw.repetition_penalty.unwrap_or(1.0);
    // As an f32: what is not a number of the device is none here.
    let is_possible = |penalty: f32| penalty > 0.0 && penalty.is_finite();
    ensure!(
        is_possible(repetition_penalty as f32),
        "`repetition_penalty` is {repetition_penalty}, expected a finite number above 0"
    );
    let bad_words = raw.bad_words_ids.clone().unwrap_or_default();
    ensure!(!bad_words.contains(&Vec::new()), "`bad_words_ids` has a word without a token");
    let count = |number: Option<i64>| number.map_or(0, |number| number.max(0) as usize);
    Ok(Rules {
        repetition_penalty,
        no_repeat_ngram_size: count(raw.no_repeat_ngram_size),
        bad_words,
        suppressed: tokens(raw.suppress_tokens.as_deref().unwrap_or_default()),
        suppressed_first: tokens(raw.begin_suppress_tokens.as_deref().unwrap_or_default()),
        min_length: count(raw.min_length.filter(|_| raw.min_new_tokens.is_none())),
        min_new_tokens: count(raw.min_new_tokens),
    })
}
