//! A text costs by how long it is, not by how long it might become.

use burn::tensor::DType;
use burn_flashinfer::KvLayout;
use burn_flashinfer::sampling::{DrawKey, Draws};

use crate::checkpoint::Scratch;
use crate::fixture::{folder, load, max_difference, values};
use crate::generation::{greedy, write};
use llama::generate::{Finish, Graph, Length, Options};
use llama::model::Llama;
use llama::room::{page_size, room};
use llama::sampling::{Sampler, Sampling, read};

/// A small model with this many positions.
pub fn model(positions: usize, name: &str) -> (Scratch, Llama) {
    let folder = Scratch::copy_of("mha_untied", name);
    folder.configure("max_position_embeddings", positions);
    let model = load(&folder.0, Some(DType::F32)).unwrap();
    (folder, model)
}

pub fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|at| 3 + at * 7 % 256).collect()
}

/// The greedy text after a prompt, in a cache that has room for all of it from the start.
pub fn write_in_one_cache(model: &Llama, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut cache = model.new_cache((prompt.len() + count).div_ceil(16), 16, KvLayout::Nhd).unwrap();
    let sequence = cache.create();
    let sampler = Sampler::new(Sampling::new(0.0, None, 1.0).unwrap(), 1, &model.device);
    let mut next = prompt.to_vec();
    let mut text = Vec::new();
    for _ in 0..count {
        let hidden = model.extend(&mut cache, &[(sequence, &next)]).unwrap();
        let draws = Draws::from_keys(&[DrawKey::default()], &model.device).unwrap();
        next = read(sampler.sample(model.logits(hidden).unwrap(), draws).unwrap()).unwrap();
        text.extend(&next);
    }
    text
}

/// The second text is moved to a larger cache after 256 and after 512 tokens, and the first one with it while it lasts.
#[test]
fn texts_that_outgrow_their_cache_go_on_as_they_would_have() {
    let (_folder, model) = model(4096, "resources-grow");
    let (first, second) = (prompt(40), prompt(3));
    let alone =
        [(&first, 600), (&second, 600)].map(|(prompt, count)| write_in_one_cache(&model, prompt, count));
    for (page_size, layout, graph) in [
        (16, KvLayout::Nhd, Graph::Never),
        (7, KvLayout::Hnd, Graph::Never),
        (16, KvLayout::Nhd, Graph::Always),
    ] {
        let options = Options { graph, ..greedy(600, page_size, layout) };
        let (texts, ends) = write(&model, &[first.clone(), second.clone()], &options);
        assert_eq!(texts, alone, "{page_size}, {layout:?}, {graph:?}");
        assert_eq!(ends, [Finish::Length; 2]);
    }
}

/// One text ends long before the other: its pages are not missed, nor is its row.
#[test]
fn a_text_that_has_ended_is_not_moved() {
    let (_folder, model) = model(4096, "resources-end");
    let whole = write_in_one_cache(&model, &prompt(40), 600);
    let short = write_in_one_cache(&model, &prompt(3), 600);
    // A token that the long text never has: the short one ends there.
    let end = short.iter().position(|token| !whole.contains(token)).expect("the texts should differ");
    for graph in [Graph::Never, Graph::Always, Graph::Auto] {
        let options = Options { graph, eos_tokens: vec![short[end]], ..greedy(600, 16, KvLayout::Nhd) };
        let (texts, ends) = write(&model, &[prompt(3), prompt(40)], &options);
        assert_eq!(texts, [&short[..=end], &whole[..]]);
        assert_eq!(ends, [Finish::Eos, Finish::Length]);
    }
}

/// Limits cost nothing: not ten million positions, not as many new tokens, not a page larger than any text.
#[test]
fn what_is_allowed_is_not_reserved() {
    let (_folder, model) = model(10_000_000, "resources-allowed");
    let text = write_in_one_cache(&model, &prompt(5), 4);
    for (new_tokens, page_size) in
        [(4, 1_000_000_000), (4, usize::MAX), (usize::MAX, 16), (usize::MAX, usize::MAX)]
    {
        for graph in [Graph::Never, Graph::Always] {
            let eos_tokens = vec![text[3]];
            assert!(!text[..3].contains(&text[3]));
            let options = Options { eos_tokens, graph, ..greedy(new_tokens, page_size, KvLayout::Nhd) };
            let (texts, _) = write(&model, &[prompt(5)], &options);
            assert_eq!(texts, [&text[..]], "{new_tokens} {page_size}");
        }
    }
    let total = Options { length: Length::Total(9), ..greedy(1, 16, KvLayout::Nhd) };
    assert_eq!(write(&model, &[prompt(5)], &total), (vec![text], vec![Finish::Length]));
}

#[test]
fn room_follows_from_the_lengths() {
    assert_eq!([room(5, 9), room(5, 1 << 30), room(3000, 1 << 30), room(3000, 3100)], [9, 261, 6000, 3100]);
    assert_eq!(room(usize::MAX - 1, usize::MAX), usize::MAX);
    assert_eq!(
        [page_size(16, [261, 6000].into_iter()), page_size(1 << 40, [6000, 261].into_iter())],
        [16, 261]
    );
}

/// A prompt in pieces leaves the same logits as in one.
#[test]
fn long_prompts_are_read_in_pieces() {
    const LENGTH: usize = 1200;
    let (_folder, model) = model(8192, "resources-pieces");
    let whole = prompt(LENGTH as u32);
    let all = model.logits_all(&[&whole]).unwrap();
    let expected = values(all.narrow(0, LENGTH - 1, 1));
    for pieces in [vec![LENGTH], vec![512, 512, 176], vec![1, 1198, 1], vec![63, 65, 1000, 72]] {
        let mut cache = model.new_cache(LENGTH.div_ceil(16), 16, KvLayout::Nhd).unwrap();
        let sequence = cache.create();
        let mut rest = whole.as_slice();
        let mut last = None;
        for &piece in &pieces {
            let (now, later) = rest.split_at(piece);
            last = Some(model.extend(&mut cache, &[(sequence, now)]).unwrap());
            rest = later;
        }
        assert!(rest.is_empty(), "{pieces:?}");
        let logits = values(model.logits(last.unwrap()).unwrap());
        let difference = max_difference(&logits, &expected);
        assert!(difference <= 1e-3, "{pieces:?}: {difference}");
    }
    // More than a batch: no prompt ends in the first, or the shorter one.
    let (long, short) = (prompt(2200), prompt(40));
    let texts = [&long, &short].map(|prompt| write_in_one_cache(&model, prompt, 8));
    let options = greedy(8, 16, KvLayout::Nhd);
    let (mut reversed, _) = write(&model, &[short.clone(), long.clone()], &options);
    reversed.reverse();
    assert_eq!((write(&model, &[long, short], &options).0, reversed), (texts.to_vec(), texts.to_vec()));
}

/// A text longer than the model's context is refused, and nothing is reserved for it.
#[test]
fn the_context_bounds_the_rotations() {
    let model = load(&folder("mha_untied"), Some(DType::F32)).unwrap();
    let refusal = format!("{:#}", model.logits_all(&[&prompt(257)]).unwrap_err());
    assert!(refusal.contains("a text of 257 tokens passes the model's context of 256"), "{refusal}");
    let mut cache = model.new_cache(20, 16, KvLayout::Nhd).unwrap();
    let sequence = cache.create();
    assert!(model.extend(&mut cache, &[(sequence, &prompt(257))]).is_err());
    assert_eq!((cache.len(sequence).unwrap(), cache.free_pages()), (0, 20));
}
