//! The numbers of Hugging Face transformers.

use burn::tensor::DType;
use burn_flashinfer::KvLayout;

use crate::fixture::{Fixture, NAMES, fixture, load, logits, max_difference};
use crate::generation::{greedy, write};

#[test]
fn f32_logits_of_every_position() {
    for name in NAMES {
        let Fixture { folder, prompts } = fixture(name);
        let model = load(&folder, Some(DType::F32)).unwrap();
        for (index, prompt) in prompts.iter().enumerate() {
            let difference = max_difference(&logits(&model, &[&prompt.tokens]), &prompt.logits_f32);
            println!("{name} prompt {index}: {difference:.2e}");
            assert!(difference <= 1e-3, "{name} prompt {index}: logits differ by {difference}");
        }
    }
}

#[test]
fn ragged_batches_have_the_same_logits() {
    for name in NAMES {
        let Fixture { folder, prompts } = fixture(name);
        let model = load(&folder, Some(DType::F32)).unwrap();
        let tokens: Vec<_> = prompts.iter().map(|prompt| prompt.tokens.as_slice()).collect();
        let expected: Vec<_> = prompts.iter().flat_map(|prompt| prompt.logits_f32.clone()).collect();
        assert!(max_difference(&logits(&model, &tokens), &expected) <= 1e-3, "{name}");
    }
}

/// Two correct implementations in bf16 differ by as much as either differs from the truth, for which f32 stands here.
#[test]
fn bf16_logits_are_as_near_to_f32_as_those_of_transformers() {
    for name in NAMES {
        let Fixture { folder, prompts } = fixture(name);
        let model = load(&folder, Some(DType::BF16)).unwrap();
        let (mut ours, mut theirs) = (0.0f32, 0.0f32);
        for prompt in &prompts {
            ours = ours.max(max_difference(&logits(&model, &[&prompt.tokens]), &prompt.logits_f32));
            theirs = theirs.max(max_difference(&prompt.logits_bf16, &prompt.logits_f32));
        }
        println!("{name}: {ours:.4} against {theirs:.4}");
        assert!(ours <= 2.0 * theirs, "{name}: {ours} off, where transformers is {theirs} off");
    }
}

#[test]
fn greedy_tokens_are_the_same() {
    for name in NAMES {
        let Fixture { folder, prompts } = fixture(name);
        let model = load(&folder, Some(DType::F32)).unwrap();
        let tokens: Vec<_> = prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
        let expected: Vec<_> = prompts.iter().map(|prompt| prompt.greedy.clone()).collect();
        for (page_size, layout) in [(16, KvLayout::Nhd), (3, KvLayout::Hnd)] {
            let (texts, _) = write(&model, &tokens, &greedy(64, page_size, layout));
            assert_eq!(texts, expected, "{name}, pages of {page_size}, {layout:?}");
        }
    }
}
