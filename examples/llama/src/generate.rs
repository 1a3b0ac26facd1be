//! Writing on from several prompts at once.

use std::cell::RefCell;
use std::ops::Range;
use std::slice;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use burn::tensor::{Int, Tensor};
use burn_flashinfer::sampling::{DrawKey, Draws};
use burn_flashinfer::{DecodeGraph, DecodeStep, KvLayout, PagedKvCache, SequenceId};

use super::model::Llama;
use super::room::{self, room};
use super::rules::{Rules, Text};
use super::sampling::{self, Sampler, Sampling};

/// Prompts are read in batches of at most this many tokens, long ones in several, which bounds the memory it takes: in
/// Llama 3 8B the widest tensor of a batch, gate and up in bf16, has then 112 MiB. So many rows keep the largest GPU busy:
/// to read the weights once more for each batch adds less than a tenth to what it multiplies.
const PREFILL_TOKENS: usize = 2048;

/// A prompt, and the seed of the random numbers that its text is drawn with.
#[derive(Debug, Clone)]
pub struct Request {
    pub tokens: Vec<u32>,
    pub seed: u64,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub length: Length,
    pub sampling: Sampling,
    pub rules: Rules,
    /// Tokens that end a text.
    pub eos_tokens: Vec<u32>,
    /// Tokens in a page, at most: pages are not larger than the shortest text needs.
    pub page_size: usize,
    pub layout: KvLayout,
    /// When steps are captured as a graph and replayed.
    pub graph: Graph,
}

/// When decoding steps are captured as a graph, which replays all launches of a step at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Graph {
    /// Where the device replays it; else steps are launched one by one.
    Auto,
    /// Where the device does not replay it, a step with the same buffers is run anew.
    Always,
    /// Steps are launched one by one.
    Never,
}

/// The largest length of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// So many new tokens.
    New(usize),
    /// So many tokens, those of the prompt counted.
    Total(usize),
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

/// A text in the batch.
struct Running {
    request: usize,
    sequence: SequenceId,
    seed: u64,
    /// The prompt and what was written so far, of which the last token is not in the cache yet.
    tokens: Vec<u32>,
    /// The number of them that are the prompt.
    prompt: usize,
    limit: Limit,
    /// The number of tokens that the cache has room for.
    room: usize,
}

/// The number of tokens that a text may have, those of the prompt counted, and why no more.
#[derive(Debug, Clone, Copy)]
struct Limit {
    tokens: usize,
    finish: Finish,
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
    ensure!(options.page_size > 0, "the page size is 0, expected at least 1");
    let mut waiting = Vec::with_capacity(requests.len());
    for (index, request) in requests.iter().enumerate() {
        let limit = limit(model, request, options).with_context(|| format!("prompt {}", index + 1))?;
        waiting.push((limit, room(request.tokens.len(), limit.cached())));
    }
    let rooms = || waiting.iter().map(|&(_, room)| room);
    let page_size = room::page_size(options.page_size, rooms());
    let mut cache = room::new_cache(model, rooms(), page_size, options.layout)?;

    let mut stats = Stats::default();
    let mut running: Vec<Running> = Vec::with_capacity(requests.len());
    let sampler = Sampler::new(options.sampling, requests.len().max(1), &model.device);
    let draws_of = |running: &[Running]| -> Result<Draws> {
        Ok(Draws::from_keys(&keys(running, running.len()), &model.device)?)
    };
    let choose = |logits, running: &[Running]| -> Result<Tensor<1, Int>> {
        let texts: Vec<_> = running.iter().map(Running::text).collect();
        let logits = options.rules.apply(logits, &texts, &options.eos_tokens)?;
        sampler.sample(logits, draws_of(running)?)
    };
    let start = Instant::now();
    let sequences: Vec<_> = requests.iter().map(|_| cache.create()).collect();
    for batch in batches(requests.iter().map(|request| request.tokens.len())) {
        let piece =
            |(request, range): &Piece| (sequences[*request], &requests[*request].tokens[range.clone()]);
        let hidden = model.extend(&mut cache, &batch.iter().map(piece).collect::<Vec<_>>())?;
        let read_to_end: Vec<_> = batch
            .into_iter()
            .filter(|(request, range)| range.end == requests[*request].tokens.len())
            .map(|(request, _)| {
                let (Request { tokens, seed }, (limit, room)) = (requests[request].clone(), waiting[request]);
                let (sequence, prompt) = (sequences[request], tokens.len());
                Running { request, sequence, seed, tokens, prompt, limit, room }
            })
            .collect();
        if read_to_end.is_empty() {
            continue;
        }
        // Only the last prompt of a batch goes on in the next.
        let logits = model.logits(hidden.narrow(0, 0, read_to_end.len()))?;
        let tokens = read(choose(logits, &read_to_end)?, &mut stats)?;
        for (mut new, token) in read_to_end.into_iter().zip(tokens) {
            let event = new.advance(token, options);
            stats.first_token = if new.request == 0 { start.elapsed() } else { stats.first_token };
            stats.prompt_tokens += new.prompt;
            stats.new_tokens += 1;
            match event.finish {
                Some(_) => cache.free(new.sequence)?,
                None => running.push(new),
            }
            on_token(event)?;
        }
    }
    stats.prefill = start.elapsed();

    let start = Instant::now();
    let steps = |running: &[Running]| -> Vec<_> { running.iter().map(Running::step).collect() };
    // The offsets of a graph are the positions of its step, so that these change only with the batch.
    let draws = RefCell::new(draws_of(&running)?);
    let run = |cache: &mut _, step: &DecodeStep| {
        let logits = model.replayable(cache, step)?;
        // Rules that look back on the texts are new in every step, and so not in the graph.
        Ok(match options.rules.are_none() {
            true => Step::Tokens(sampler.sample(logits, draws.borrow().at(&step.positions())?)?),
            false => Step::Logits(logits),
        })
    };
    let (mut captured, mut is_eager) = (None, options.graph == Graph::Never);
    while !running.is_empty() {
        if running.iter().any(|one| one.cached() == one.room) {
            captured = None;
            cache = grow(model, &cache, &mut running, options.layout)?;
        }
        let step = steps(&running);
        if captured.is_none() && !is_eager {
            *draws.borrow_mut() = draws_of(&running)?;
            let longest = running.iter().map(|one| one.room).max().unwrap_or(0);
            let buffers = model.new_step(&cache, running.len(), longest)?;
            let graph = DecodeGraph::<_, Error>::capture(&mut cache, buffers, &step, run)?;
            match graph.run_anew_because() {
                None => tracing::debug!("captured a step"),
                Some(why) => {
                    tracing::info!(why, "the device replays no graph; steps are run one by one");
                    is_eager = options.graph == Graph::Auto;
                }
            }
            captured = (!is_eager).then_some(graph);
        }
        let tokens = if let Some(graph) = &mut captured {
            model.check_tokens(running.iter().flat_map(|one| one.tokens.last()))?;
            // Rows of texts that have ended come last.
            match graph.replay(&mut cache, &step)?.clone() {
                Step::Tokens(tokens) => tokens.narrow(0, 0, step.len()),
                Step::Logits(logits) => choose(logits.narrow(0, 0, step.len()), &running)?,
            }
        } else {
            let pieces: Vec<_> = step.iter().map(|(one, token)| (*one, slice::from_ref(token))).collect();
            let hidden = model.extend(&mut cache, &pieces)?;
            choose(model.logits(hidden)?, &running)?
        };
        let tokens = read(tokens, &mut stats)?;
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
            if captured.is_some() {
                let rows = draws.borrow().len();
                draws.borrow_mut().update(&keys(&running, rows))?;
            }
        }
    }
    stats.decode = start.elapsed();
    Ok(stats)
}

/// The result of a captured step.
#[derive(Clone)]
enum Step {
    Tokens(Tensor<1, Int>),
    Logits(Tensor<2>),
}

/// A cache with more room for every text, in place of one that a text has filled.
fn grow(
    model: &Llama,
    cache: &PagedKvCache,
    running: &mut [Running],
    layout: KvLayout,
) -> Result<PagedKvCache> {
    for one in running.iter_mut() {
        one.room = room(one.cached(), one.limit.cached());
    }
    let rooms = running.iter().map(|one| one.room);
    let mut grown = room::new_cache(model, rooms, cache.page_size(), layout)?;
    let sequences: Vec<_> = running.iter().map(|one| one.sequence).collect();
    let copies = room::copy(model, cache, &mut grown, &sequences)?;
    for (one, copy) in running.iter_mut().zip(copies) {
        one.sequence = copy;
    }
    Ok(grown)
}

impl Limit {
    /// The number of tokens that the cache needs to know, at most: the last one of a text is never read back.
    fn cached(self) -> usize {
        self.tokens - 1
    }
}

impl Running {
    fn text(&self) -> Text<'_> {
        Text { tokens: &self.tokens, prompt: self.prompt }
    }

    /// The number of tokens in the cache.
    fn cached(&self) -> usize {
        self.tokens.len() - 1
    }

    /// The token that it goes on with.
    fn step(&self) -> (SequenceId, u32) {
        (self.sequence, self.tokens[self.cached()])
    }

    /// What the next token is drawn with, from this row: its seed, and the position of the token before it.
    fn key(&self, row: usize) -> DrawKey {
        DrawKey { seed: self.seed, stream: 0, offset: self.cached() as u64, row }
    }

    fn advance(&mut self, token: u32, options: &Options) -> Event {
        self.tokens.push(token);
        let finish = if options.eos_tokens.contains(&token) {
            Some(Finish::Eos)
        } else {
            (self.tokens.len() == self.limit.tokens).then_some(self.limit.finish)
        };
        Event { request: self.request, token, finish }
    }
}

/// A key for each of `rows` rows, of which those without a text need none.
fn keys(running: &[Running], rows: usize) -> Vec<DrawKey> {
    let keys = running.iter().zip(0..).map(|(one, row)| one.key(row));
    keys.chain((running.len()..rows).map(|row| DrawKey { row, ..DrawKey::default() })).collect()
}

/// The limit on the text of a request.
fn limit(model: &Llama, request: &Request, options: &Options) -> Result<Limit> {
    let (length, context) = (request.tokens.len(), model.config.max_positions);
    ensure!(options.length != Length::New(0), "no tokens were asked for");
    ensure!(length > 0, "it has no tokens");
    ensure!(
        length < context,
        "it has {length} tokens, which leaves no room in the model's context of {context} \
         (`max_position_embeddings`)"
    );
    let asked = match options.length {
        Length::New(tokens) => length.saturating_add(tokens),
        Length::Total(tokens) => tokens,
    };
    ensure!(
        asked > length,
        "it has {length} tokens, and a text may have {asked}, those of the prompt counted (`max_length`)"
    );
    Ok(match asked <= context {
        true => Limit { tokens: asked, finish: Finish::Length },
        false => Limit { tokens: context, finish: Finish::Context },
    })
}

/// A request, and which of its tokens are read at once.
type Piece = (usize, Range<usize>);

/// Prompts of these lengths, one after the other, in batches of [`PREFILL_TOKENS`] tokens.
fn batches(lengths: impl Iterator<Item = usize>) -> Vec<Vec<Piece>> {
    let mut batches = vec![Vec::new()];
    let mut left = PREFILL_TOKENS;
    for (request, length) in lengths.enumerate() {
        let mut start = 0;
        while start < length {
            if left == 0 {
                batches.push(Vec::new());
                left = PREFILL_TOKENS;
            }
            let end = length.min(start + left);
            if let Some(batch) = batches.last_mut() {
                batch.push((request, start..end));
            }
            left -= end - start;
            start = end;
        }
    }
    batches
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
    fn batches_of_prompts_are_bounded() {
        assert_eq!(batches([5, 6, 7].into_iter()), [[(0, 0..5), (1, 0..6), (2, 0..7)]]);
        let expected = [
            vec![(0, 0..2000), (1, 0..48)],
            vec![(1, 48..2096)],
            vec![(1, 2096..4000), (2, 0..1), (3, 0..143)],
            vec![(3, 143..200)],
        ];
        assert_eq!(batches([2000, 4000, 1, 200].into_iter()), expected);
        assert_eq!(batches([2048].into_iter()), [[(0, 0..2048)]]);
    }
}
