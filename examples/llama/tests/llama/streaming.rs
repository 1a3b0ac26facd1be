//! Text that is streamed is the text that `tokenizers` decodes from all tokens at once, and costs as much.

use burn_flashinfer::KvLayout;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::{Tokenizer, decoders::byte_level::ByteLevel};

use crate::checkpoint::Scratch;
use crate::fixture::load;
use crate::generation::{greedy, write};
use crate::program::run;
use llama::stream::TextStream;

/// Tokens of which each family of decoders changes some.
const PIECES: [&str; 24] = [
    "the", "▁", "▁the", "▁▁", " ", "  the ", "", ".", " .", " n't", "##ing", "##", "</w>", "fox</w>",
    "<pad>", "|", "🦊", "\u{FFFD}", "Ġthe", "é", "<0xZZ>", "<0x+1>", "<extra>", "</s>",
];
/// Bytes that make characters, parts of characters, and none.
const BYTES: [u8; 14] = [0xF0, 0x9F, 0xA6, 0x8A, 0xE2, 0x82, 0xAC, 0xC3, 0xA9, 0x80, 0xED, 0xA0, 0xFF, b'a'];
/// In one token, with the ends of characters inside.
const MORE_BYTES: [&[u8]; 6] =
    [&[0x9F, 0xA6, 0x8A, 0xF0], &[0x80, 0xE2], &[0xA9, b'!', 0xC3], "🦊".as_bytes(), b" fox", &[0xF0, 0x9F]];

/// The characters of a token of a byte-level tokenizer.
fn byte_level(bytes: &[u8]) -> String {
    // `alphabet` has them in no order; those that stand for themselves come first.
    let mut alphabet: Vec<_> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let (themselves, others) = alphabet.split_at(188);
    let is_itself = |byte: u8| themselves.contains(&char::from(byte));
    let other = |byte: u8| others[(0..byte).filter(|&before| !is_itself(before)).count()];
    bytes.iter().map(|&byte| if is_itself(byte) { byte.into() } else { other(byte) }).collect()
}

fn vocabulary() -> Vec<String> {
    let fallback = BYTES.iter().map(|byte| format!("<0x{byte:02X}>"));
    let level = BYTES.iter().map(|&byte| byte_level(&[byte]));
    let more = MORE_BYTES.iter().map(|bytes| byte_level(bytes));
    let mut pieces: Vec<_> =
        PIECES.iter().map(|piece| piece.to_string()).chain(fallback).chain(level).chain(more).collect();
    // A character may be a byte and itself.
    let mut seen = std::collections::HashSet::new();
    pieces.retain(|piece| seen.insert(piece.clone()));
    pieces
}

/// A tokenizer of that vocabulary.
fn tokenizer(decoder: &Value) -> Tokenizer {
    let vocabulary = vocabulary();
    let ids = vocabulary.iter().zip(0..).map(|(piece, id)| (piece.clone(), Value::from(id)));
    let added = |content: &str, special: bool| {
        json!({"id": id(&vocabulary, content), "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": special})
    };
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": decoder,
        "added_tokens": [added("<extra>", false), added("</s>", true)],
        "model": {"type": "BPE", "vocab": ids.collect::<serde_json::Map<_, _>>(), "merges": [], "byte_fallback": true},
    });
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

fn id(vocabulary: &[String], piece: &str) -> u32 {
    vocabulary.iter().position(|known| known == piece).unwrap() as u32
}

fn sequence(decoders: &[Value]) -> Value {
    json!({"type": "Sequence", "decoders": decoders})
}

fn spaces() -> Value {
    json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "})
}

fn strip(start: usize, stop: usize) -> Value {
    json!({"type": "Strip", "content": " ", "start": start, "stop": stop})
}

fn llama_2() -> Value {
    sequence(&[spaces(), byte_fallback(), fuse(), strip(1, 0)])
}

fn byte_fallback() -> Value {
    json!({"type": "ByteFallback"})
}

fn fuse() -> Value {
    json!({"type": "Fuse"})
}

fn level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true})
}

fn metaspace(scheme: &str) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true})
}

fn word_piece(cleanup: bool) -> Value {
    json!({"type": "WordPiece", "prefix": "##", "cleanup": cleanup})
}

fn decoders() -> Vec<Value> {
    let full_stops = json!({"type": "Replace", "pattern": {"Regex": " +\\."}, "content": "."});
    let bpe = json!({"type": "BPEDecoder", "suffix": "</w>"});
    let ctc = json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true});
    vec![
        Value::Null,
        level(),
        llama_2(),
        sequence(&[spaces(), byte_fallback(), fuse()]),
        sequence(&[byte_fallback(), metaspace("always")]),
        metaspace("first"),
        metaspace("never"),
        word_piece(true),
        word_piece(false),
        bpe.clone(),
        ctc.clone(),
        full_stops.clone(),
        // Rows that no known model has.
        sequence(&[sequence(&[spaces(), sequence(&[byte_fallback()])]), strip(1, 0), fuse(), fuse()]),
        sequence(&[byte_fallback(), fuse(), strip(3, 0), full_stops.clone()]),
        sequence(&[fuse(), strip(0, 0), byte_fallback(), word_piece(true)]),
        sequence(&[level(), strip(2, 1), full_stops]),
        sequence(&[byte_fallback(), level(), strip(2, 0)]),
        sequence(&[fuse(), level(), bpe.clone()]),
        sequence(&[ctc, byte_fallback(), bpe]),
        sequence(&[]),
    ]
}

fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
    let mut stream = TextStream::new(tokenizer);
    let mut texts: Vec<_> = tokens.iter().map(|&token| stream.push(token).unwrap()).collect();
    texts.push(stream.finish().unwrap());
    texts
}

/// Single tokens, among them ids that no token has, and characters in bytes.
fn tokens() -> impl Strategy<Value = Vec<u32>> {
    let vocabulary = vocabulary();
    let bytes = |text: &str, piece: &dyn Fn(u8) -> String| -> Vec<u32> {
        text.bytes().map(|byte| id(&vocabulary, &piece(byte))).collect()
    };
    let fallback = bytes("🦊é", &|byte| format!("<0x{byte:02X}>"));
    let level = bytes("€🦊", &|byte| byte_level(&[byte]));
    let count = vocabulary.len() as u32;
    let parts = prop_oneof![
        6 => (0..count + 2).prop_map(|token| vec![token]),
        1 => Just(fallback),
        1 => Just(level),
    ];
    prop::collection::vec(parts, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streamed_text_is_the_text_of_all_tokens(tokens in tokens(), index in 0..decoders().len()) {
        let decoder = &decoders()[index];
        let tokenizer = tokenizer(decoder);
        // These two decoders of `tokenizers` panic if there is no text.
        let needs_text = ["BPEDecoder", "\"stop\":1"].iter().any(|part| decoder.to_string().contains(part));
        let tokens = if needs_text { [vec![0], tokens].concat() } else { tokens };
        let texts = streamed(&tokenizer, &tokens);
        prop_assert_eq!(texts.concat(), tokenizer.decode(&tokens, true).unwrap(), "{}: {:?}", decoder, texts);
    }
}

/// The families that models have do not wait for the end.
#[test]
fn text_comes_with_its_token() {
    let vocabulary = vocabulary();
    let pieces = |decoder: &Value, pieces: &[&str]| {
        let tokens: Vec<_> = pieces.iter().map(|piece| id(&vocabulary, piece)).collect();
        streamed(&tokenizer(decoder), &tokens)
    };
    let fox = ["<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>"];
    let foxes = [&["▁", "the"][..], &fox, &["</s>"], &fox, &["▁the", "<0x80>"]].concat();
    let mut expected = vec![""; 14];
    expected[1] = "the";
    expected[11] = "🦊🦊 the";
    expected[13] = "\u{FFFD}";
    assert_eq!(pieces(&llama_2(), &foxes), expected);

    let bytes: Vec<_> = "é€🦊".bytes().chain([0x80, 0xFF, 0xF0]).map(|byte| byte_level(&[byte])).collect();
    let expected = ["", "é", "", "", "€", "", "", "", "🦊", "\u{FFFD}", "\u{FFFD}", "", "\u{FFFD}"];
    assert_eq!(pieces(&level(), &bytes.iter().map(String::as_str).collect::<Vec<_>>()), expected);

    assert_eq!(pieces(&metaspace("always"), &["▁the", "▁the", "the"]), ["the", " the", "the", ""]);
    assert_eq!(pieces(&word_piece(true), &["the", "##ing", "."]), ["the", "ing", ".", ""]);
    assert_eq!(pieces(&Value::Null, &["the", "</s>", "the"]), ["the", "", " the", ""]);
}

/// Memory that is asked for stands for work: twice as many tokens ask for twice as much, whatever they are.
#[test]
fn work_is_linear() {
    let vocabulary = vocabulary();
    for decoder in decoders() {
        let tokenizer = tokenizer(&decoder);
        let work = |token: u32, count: usize| {
            let mut stream = TextStream::new(&tokenizer);
            // Allocations made once for all streams do not count, and `Strip` of `tokenizers` needs text.
            stream.push(0).unwrap();
            stream.push(token).unwrap();
            let measured = allocation_counter::measure(|| {
                for _ in 0..count {
                    stream.push(token).unwrap();
                }
                stream.finish().unwrap();
            });
            measured.bytes_total
        };
        for (piece, token) in vocabulary.iter().zip(0..) {
            let (once, twice) = (work(token, 100), work(token, 200));
            assert!(twice <= 1000 + once * 9 / 4, "{decoder}, {piece:?}: {once} and {twice} bytes");
        }
    }
}

/// The program, on a model of random weights with the first 259 tokens of Llama 2, of which some are words here.
#[test]
fn the_program_streams_the_text_of_all_tokens() {
    let words = ["▁", "▁the", "the", "▁🦊", "a", ".", "▁▁", "fox", "!", "b", "c"];
    let special = ["<unk>", "<s>", "</s>"];
    let bytes = (0..=u8::MAX).filter(|byte| *byte < 0xF5).map(|byte| format!("<0x{byte:02X}>"));
    let pieces = special.iter().map(|piece| piece.to_string()).chain(bytes);
    let pieces = pieces.chain(words.iter().map(|piece| piece.to_string()));
    let ids: serde_json::Map<_, _> = pieces.zip(0..).map(|(piece, id)| (piece, Value::from(id))).collect();
    assert_eq!(ids.len(), 259);
    let added = special.iter().zip(0..).map(|(content, id)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null, "decoder": llama_2(),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "post_processor": {"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "B", "type_id": 0}}],
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "added_tokens": added.collect::<Vec<_>>(),
        "model": {"type": "BPE", "vocab": ids, "merges": [], "byte_fallback": true, "fuse_unk": true},
    });
    let folder = Scratch::copy_of("mha_untied", "byte-fallback");
    folder.write("tokenizer.json", json.to_string());
    let tokenizer = Tokenizer::from_bytes(json.to_string()).unwrap();

    // Among them the prompt itself, which is bytes to this tokenizer.
    let prompts = ["🦊🦊", "Füchse 🦊", " a the", "🦊.", "", "a</s>b", "é🦊€", "\u{FFFD}"];
    let tokens = prompts.map(|prompt| tokenizer.encode(prompt, true).unwrap().get_ids().to_vec());
    let (new, _) = write(&load(&folder.0, None).unwrap(), &tokens, &greedy(8, 16, KvLayout::Nhd));
    let all = tokens.iter().zip(&new).map(|(prompt, new)| [prompt.as_slice(), new].concat());
    let texts: Vec<_> = all.map(|tokens| tokenizer.decode(&tokens, true).unwrap()).collect();
    let model = folder.0.display().to_string();
    let common = ["--model", &model, "--max-new-tokens", "8", "--ignore-eos"];
    for (prompt, text) in prompts.iter().zip(&texts) {
        let ran = run(&[&common[..], &["--prompt", prompt]].concat());
        assert_eq!((ran.code, ran.out), (Some(0), format!("{text}\n")), "{prompt:?}: {}", ran.err);
    }
    let batch = run(&[&common[..], &prompts.map(|prompt| ["--prompt", prompt]).concat()].concat());
    let shown = texts.iter().zip(1..).map(|(text, number)| format!("=== {number} of 8 ===\n{text}\n"));
    assert_eq!(batch.out, shown.collect::<Vec<_>>().join("\n"));
}
