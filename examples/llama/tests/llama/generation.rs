//! The text of a prompt depends neither on the batch, nor on the cache.

use burn::tensor::DType;
use burn_flashinfer::KvLayout;
use burn_flashinfer::sampling::{DrawKey, Draws};

use crate::fixture::{fixture, folder, load};
use llama::generate::{Finish, Graph, Length, Options, Request, generate};
use llama::model::Llama;
use llama::rules::Rules;
use llama::sampling::{Sampler, Sampling, read};

pub fn greedy(max_new_tokens: usize, page_size: usize, layout: KvLayout) -> Options {
    sampled(max_new_tokens, Sampling::new(0.0, None, 1.0).unwrap(), page_size, layout)
}

fn sampled(max_new_tokens: usize, sampling: Sampling, page_size: usize, layout: KvLayout) -> Options {
    let (length, rules) = (Length::New(max_new_tokens), Rules::default());
    Options { length, sampling, rules, eos_tokens: Vec::new(), page_size, layout, graph: Graph::Never }
}

/// The new tokens of each prompt, and why they end. Prompt `i` has seed `i`.
pub fn write(model: &Llama, prompts: &[Vec<u32>], options: &Options) -> (Vec<Vec<u32>>, Vec<Finish>) {
    let requests: Vec<_> =
        prompts.iter().zip(0..).map(|(tokens, seed)| Request { tokens: tokens.clone(), seed }).collect();
    let mut texts = vec![Vec::new(); prompts.len()];
    let mut ends = vec![None; prompts.len()];
    let stats = generate(model, &requests, options, |event| {
        assert_eq!(ends[event.request], None, "a token after the end");
        texts[event.request].push(event.token);
        ends[event.request] = event.finish;
        Ok(())
    });
    let stats = stats.unwrap();
    assert_eq!(stats.prompt_tokens, prompts.iter().map(Vec::len).sum::<usize>());
    assert_eq!(stats.new_tokens, texts.iter().map(Vec::len).sum::<usize>());
    assert_eq!(stats.decoded_tokens, stats.new_tokens - prompts.len());
    assert_eq!(stats.bytes_read, 4 * stats.new_tokens, "the tokens and nothing else");
    (texts, ends.into_iter().map(|end| end.expect("a text without an end")).collect())
}

/// The same with no cache: everything is computed anew for each token.
fn write_without_cache(
    model: &Llama,
    prompt: &[u32],
    count: usize,
    sampling: Sampling,
    seed: u64,
) -> Vec<u32> {
    let sampler = Sampler::new(sampling, 1, &model.device);
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let last = tokens.len() - 1;
        let key = DrawKey { seed, offset: last as u64, ..DrawKey::default() };
        let logits = model.logits_all(&[&tokens]).unwrap().narrow(0, last, 1);
        let draws = Draws::from_keys(&[key], &model.device).unwrap();
        tokens.extend(read(sampler.sample(logits, draws).unwrap()).unwrap());
    }
    tokens.split_off(prompt.len())
}

fn prompts(name: &str) -> Vec<Vec<u32>> {
    fixture(name).prompts.into_iter().map(|prompt| prompt.tokens).collect()
}

#[test]
fn batched_alone_and_without_cache() {
    for (name, count) in [("gqa_llama3", 40), ("mha_untied", 40), ("tiny", 12)] {
        let model = load(&folder(name), Some(DType::F32)).unwrap();
        let prompts = prompts(name);
        for sampling in [Sampling::new(0.0, None, 1.0).unwrap(), Sampling::new(0.8, Some(50), 0.95).unwrap()]
        {
            let (batched, _) = write(&model, &prompts, &sampled(count, sampling, 16, KvLayout::Nhd));
            for (index, prompt) in prompts.iter().enumerate() {
                let unpaged = write_without_cache(&model, prompt, count, sampling, index as u64);
                assert_eq!(batched[index], unpaged, "{name} prompt {index}, {sampling:?}");
            }
            for (page_size, layout) in [(1, KvLayout::Nhd), (5, KvLayout::Hnd), (64, KvLayout::Hnd)] {
                let options = sampled(count, sampling, page_size, layout);
                assert_eq!(write(&model, &prompts, &options).0, batched, "{name}, {page_size}, {layout:?}");
                // Alone, under the seed that it has in the batch: the first.
                let alone = write(&model, &prompts[..1], &options).0;
                assert_eq!(alone[0], batched[0], "{name}, {page_size}, {layout:?}");
                let replayed = write(&model, &prompts, &Options { graph: Graph::Always, ..options }).0;
                assert_eq!(replayed, batched, "{name}, {page_size}, {layout:?}, as a graph");
            }
            let reversed: Vec<_> = prompts.iter().rev().cloned().collect();
            if sampling == Sampling::new(0.0, None, 1.0).unwrap() {
                let (mut texts, _) = write(&model, &reversed, &sampled(count, sampling, 16, KvLayout::Nhd));
                texts.reverse();
                assert_eq!(texts, batched, "{name} the other way round");
            }
        }
    }
}

#[test]
fn a_text_that_ends_leaves_the_batch_and_the_others_go_on() {
    let model = load(&folder("gqa_llama3"), Some(DType::F32)).unwrap();
    let prompts = prompts("gqa_llama3");
    let mut options = greedy(64, 4, KvLayout::Nhd);
    let (whole, ends) = write(&model, &prompts, &options);
    assert!(ends.iter().all(|&end| end == Finish::Length));
    // One text ends with its first token already, one somewhere in the middle.
    options.eos_tokens = vec![whole[1][0], whole[2][20]];
    let (texts, ends) = write(&model, &prompts, &options);
    for graph in [Graph::Always, Graph::Auto] {
        options.graph = graph;
        assert_eq!(write(&model, &prompts, &options), (texts.clone(), ends.clone()), "{graph:?}");
    }
    for (index, text) in texts.iter().enumerate() {
        let expected = match whole[index].iter().position(|token| options.eos_tokens.contains(token)) {
            Some(end) => (&whole[index][..=end], Finish::Eos),
            None => (&whole[index][..], Finish::Length),
        };
        assert_eq!((text.as_slice(), ends[index]), expected, "prompt {index}");
    }
    assert_eq!(texts[1].len(), 1);
    assert!(texts[2].len() <= 21);
}

#[test]
fn the_context_is_a_limit() {
    let model = load(&folder("mha_untied"), Some(DType::F32)).unwrap();
    let prompt = |length: u32| (0..length).map(|token| 3 + token % 256).collect::<Vec<_>>();
    let (texts, ends) = write(&model, &[prompt(250), prompt(255), prompt(3)], &greedy(30, 16, KvLayout::Nhd));
    assert_eq!(texts.iter().map(Vec::len).collect::<Vec<_>>(), [6, 1, 30]);
    assert_eq!(ends, [Finish::Context, Finish::Context, Finish::Length]);

    let refuse = |requests: &[Vec<u32>]| {
        let requests: Vec<_> =
            requests.iter().map(|tokens| Request { tokens: tokens.clone(), seed: 0 }).collect();
        format!("{:#}", generate(&model, &requests, &greedy(1, 16, KvLayout::Nhd), |_| Ok(())).unwrap_err())
    };
    assert!(refuse(&[prompt(3), prompt(256)]).contains("prompt 2: it has 256 tokens"));
    assert!(refuse(&[vec![]]).contains("no tokens"));
    assert!(refuse(&[vec![3, 259]]).contains("token 259 is not among the 259"));
}

/// More batches of prompts than one, at whose ends prompts are cut.
#[test]
fn prompts_are_read_in_batches() {
    let model = load(&folder("gqa_llama3"), Some(DType::F32)).unwrap();
    let prompts: Vec<Vec<u32>> =
        (0..60u32).map(|seed| (0..150).map(|at| 3 + (at * 7 + seed) % 256).collect()).collect();
    let (texts, _) = write(&model, &prompts, &greedy(2, 16, KvLayout::Nhd));
    // The prompts with token 2048, 4096, 6144 and 8192 and their neighbours, the first and the last.
    for index in [0, 12, 13, 14, 27, 40, 54, 59] {
        let alone = write(&model, &prompts[index..=index], &greedy(2, 16, KvLayout::Nhd)).0;
        assert_eq!(texts[index], alone[0], "prompt {index}");
    }
}

#[test]
fn an_error_of_the_listener_ends_it() {
    let model = load(&folder("gqa_llama3"), None).unwrap();
    let requests = [Request { tokens: vec![3, 4], seed: 0 }];
    let mut heard = 0;
    let error = generate(&model, &requests, &greedy(64, 16, KvLayout::Nhd), |_| {
        heard += 1;
        anyhow::ensure!(heard < 3, "enough");
        Ok(())
    });
    assert_eq!((error.unwrap_err().to_string(), heard), ("enough".to_owned(), 3));
}
