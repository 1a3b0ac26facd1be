//! Writing on from several prompts at once.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use burn::tensor::{Int, Tensor};
use burn_flashinfer::sampling::{DrawKey, Draws};
use burn_flashinfer::{DecodeGraph, DecodeStep, KvLayout, SequenceId};

use super::model::Llama;
use super::sampling::{self, Sampler, Sampling};

/// Prompts are read in groups of at most this many tokens (one at a time if longer), which bounds the memory it takes.
const PREFILL_TOKENS: usize = 8192;

/// A prompt, and the seed of the random numbers that its text is drawn with.
#[derive(Debug, Clone)]
pub struct Request {
    pub tokens: Vec<u32>,
    pub seed: u64,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// Tokens that end a text.
    pub eos_tokens: Vec<u32>,
    pub page_size: usize,
    pub layout: KvLayout,
    /// Whether steps are captured as a graph and replayed.
    pub graph: bool,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model said so.
    Eos,
    /// It has as many tokens as were asked for.
    Length,
    /// It is as long as the model can handle.
    Context,
}

/// One new token.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// Which request it belongs to.
    pub request: usize,
    pub token: u32,
    /// Set with the last token of a request.
    pub finish: Option<Finish>,
}

/// How long it took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    pub prompt_tokens: usize,
    pub prefill: Duration,
    /// From the start to the first token of the first prompt.
    pub first_token: Duration,
    pub new_tokens: usize,
    /// Tokens that came out of a decoding step, that is all but the first of each text.
    pub decoded_tokens: usize,
    pub decode: Duration,
    /// From the device: a number for each new token.
    pub bytes_read: usize,
}

/// A request in the batch.
struct Running {
    request: usize,
    sequence: SequenceId,
    seed: u64,
    /// Tokens of the prompt.
    prompt: usize,
    last_token: u32,
    written: usize,
    limit: usize,
}

/// Writes on from every request until each has ended, and tells `on_token` of every token at once.
///
/// # Errors
///
/// If a prompt does not fit the model, the device fails, or `on_token` returns an error.
pub fn generate(
    model: &Llama,
    requests: &[Request],
    options: &Options,
    mut on_token: impl FnMut(Event) -> Result<()>,
) -> Result<Stats> {
    let limits = requests
        .iter()
        .enumerate()
        .map(|(index, request)| {
            limit(model, request, options).with_context(|| format!("prompt {}", index + 1))
        })
        .collect::<Result<Vec<_>>>()?;
    ensure!(options.page_size > 0, "the page size is 0, expected at least 1");
    // Room for all of them to the end; the last token of a text is never read back.
    let lengths = || requests.iter().zip(&limits).map(|(request, limit)| request.tokens.len() + limit - 1);
    let pages = lengths().map(|tokens| tokens.div_ceil(options.page_size)).sum();
    let cache = Rc::new(RefCell::new(model.new_cache(pages, options.page_size, options.layout)?));

    let mut stats = Stats::default();
    let mut running: Vec<Running> = Vec::with_capacity(requests.len());
    let sampler = Sampler::new(options.sampling, requests.len().max(1), &model.device);
    let draws_of = |running: &[Running]| -> Result<Draws> {
        Ok(Draws::from_keys(&keys(running, running.len()), &model.device)?)
    };
    let start = Instant::now();
    for group in groups(requests) {
        let mut cache = cache.borrow_mut();
        let prompts: Vec<_> = requests[group.clone()]
            .iter()
            .map(|request| (cache.create(), request.tokens.as_slice()))
            .collect();
        let logits = model.prefill(&mut cache, &prompts)?;
        let group: Vec<_> = group
            .zip(prompts)
            .map(|(request, (sequence, tokens))| {
                let (seed, prompt, limit) = (requests[request].seed, tokens.len(), limits[request]);
                Running { request, sequence, seed, prompt, last_token: 0, written: 0, limit }
            })
            .collect();
        let tokens = read(sampler.sample(logits, draws_of(&group)?)?, &mut stats)?;
        for (mut new, token) in group.into_iter().zip(tokens) {
            let (sequence, event) = (new.sequence, new.advance(token, options));
            stats.first_token = if new.request == 0 { start.elapsed() } else { stats.first_token };
            stats.prompt_tokens += new.prompt;
            stats.new_tokens += 1;
            match event.finish {
                Some(_) => cache.free(sequence)?,
                None => running.push(new),
            }
            on_token(event)?;
        }
    }
    stats.prefill = start.elapsed();

    let start = Instant::now();
    let steps = |running: &[Running]| -> Vec<_> {
        running.iter().map(|one| (one.sequence, one.last_token)).collect()
    };
    // The offsets of a graph are the positions of its step, so that these change only with the batch.
    let rows = running.len();
    let draws = RefCell::new(draws_of(&running)?);
    let mut graph = None;
    if options.graph && !running.is_empty() {
        let max_len = lengths().max().unwrap_or(0);
        let step = model.new_step(&cache.borrow(), rows, max_len)?;
        let run = |cache: &mut _, step: &DecodeStep| {
            let draws = draws.borrow().at(&step.positions())?;
            sampler.sample(model.replayable(cache, step)?, draws)
        };
        let captured = DecodeGraph::<_, Error>::capture(&cache, step, &steps(&running), run)?;
        match captured.run_anew_because() {
            None => tracing::debug!("captured a step"),
            Some(why) => tracing::info!(why, "the device replays no graph; steps are run one by one"),
        }
        graph = Some(captured);
    }
    while !running.is_empty() {
        let step = steps(&running);
        let tokens = match &mut graph {
            None => sampler.sample(model.decode(&mut cache.borrow_mut(), &step)?, draws_of(&running)?)?,
            Some(graph) => {
                model.check_tokens(step.iter().map(|(_, token)| token))?;
                // Rows of texts that have ended come last.
                graph.replay(&step)?.clone().narrow(0, 0, step.len())
            }
        };
        let tokens = read(tokens, &mut stats)?;
        let mut cache = cache.borrow_mut();
        let mut finished = Vec::new();
        for (one, token) in running.iter_mut().zip(tokens) {
            let event = one.advance(token, options);
            if event.finish.is_some() {
                finished.push(one.sequence);
                cache.free(one.sequence)?;
            }
            on_token(event)?;
        }
        stats.decoded_tokens += step.len();
        stats.new_tokens += step.len();
        tracing::trace!(sequences = step.len(), free_pages = cache.free_pages(), "step");
        if !finished.is_empty() {
            running.retain(|one| !finished.contains(&one.sequence));
            draws.borrow_mut().update(&keys(&running, rows))?;
        }
    }
    stats.decode = start.elapsed();
    Ok(stats)
}

impl Running {
    /// What the next token is drawn with, from this row: its seed, and the position of the token before it.
    fn key(&self, row: usize) -> DrawKey {
        let offset = (self.prompt + self.written - 1) as u64;
        DrawKey { seed: self.seed, stream: 0, offset, row }
    }

    fn advance(&mut self, token: u32, options: &Options) -> Event {
        self.last_token = token;
        self.written += 1;
        let finish = if options.eos_tokens.contains(&self.last_token) {
            Some(Finish::Eos)
        } else if self.written == options.max_new_tokens {
            Some(Finish::Length)
        } else if self.written == self.limit {
            Some(Finish::Context)
        } else {
            None
        };
        Event { request: self.request, token, finish }
    }
}

/// A key for each of `rows` rows, of which those without a text need none.
fn keys(running: &[Running], rows: usize) -> Vec<DrawKey> {
    let keys = running.iter().zip(0..).map(|(one, row)| one.key(row));
    keys.chain((running.len()..rows).map(|row| DrawKey { row, ..DrawKey::default() })).collect()
}

/// How many tokens a request may get.
fn limit(model: &Llama, request: &Request, options: &Options) -> Result<usize> {
    let (length, context) = (request.tokens.len(), model.config.max_positions);
    ensure!(options.max_new_tokens > 0, "no tokens were asked for");
    ensure!(length > 0, "it has no tokens");
    ensure!(
        length < context,
        "it has {length} tokens, which leaves no room in the model's context of {context} \
         (`max_position_embeddings`)"
    );
    Ok(options.max_new_tokens.min(context - length))
}

/// Consecutive requests of at most [`PREFILL_TOKENS`] tokens together.
fn groups(requests: &[Request]) -> Vec<std::ops::Range<usize>> {
    let mut groups: Vec<std::ops::Range<usize>> = Vec::new();
    let mut tokens = usize::MAX;
    for (index, request) in requests.iter().enumerate() {
        tokens = tokens.saturating_add(request.tokens.len());
        match groups.last_mut() {
            Some(group) if tokens <= PREFILL_TOKENS => group.end = index + 1,
            _ => {
                tokens = request.tokens.len();
                groups.push(index..index + 1);
            }
        }
    }
    groups
}

/// The one transfer of a step from the device.
fn read(tokens: Tensor<1, Int>, stats: &mut Stats) -> Result<Vec<u32>> {
    stats.bytes_read += tokens.shape().num_elements() * tokens.dtype().size();
    sampling::read(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_prompts_are_bounded() {
        let requests = |lengths: &[usize]| -> Vec<Request> {
            lengths.iter().map(|&length| Request { tokens: vec![0; length], seed: 0 }).collect()
        };
        assert!(groups(&requests(&[])).is_empty());
        assert_eq!(groups(&requests(&[5, 6, 7])).len(), 1);
        assert_eq!(groups(&requests(&[8000, 192, 1, 9000, 3, 4])), [0..2, 2..3, 3..4, 4..6]);
    }
}
