//! Tokens back to text, as they come.

use std::collections::HashMap;
use std::mem::take;
use std::sync::LazyLock;

use anyhow::{Result, anyhow};
use tokenizers::{Decoder, DecoderWrapper, Tokenizer};

/// Turns tokens into text one at a time: joined, exactly what `tokenizers` decodes from all of them at once.
///
/// The decoder of a tokenizer is a row of decoders, each of which maps pieces of text to pieces of text. Here each runs as
/// soon as pieces come out of the one before, and holds back those alone whose text may still change. (`DecodeStream` of
/// `tokenizers` holds back what ends in U+FFFD: it decodes that again for each token, and has no end that would show it.)
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stages: Vec<Stage<'a>>,
}

impl<'a> TextStream<'a> {
    /// The text of no tokens yet.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        let mut stages = Vec::new();
        add_stages(tokenizer.get_decoder(), &mut stages);
        Self { tokenizer, stages }
    }

    /// The text that one more token brings, which may be empty for now.
    pub fn push(&mut self, token: u32) -> Result<String> {
        let special = self.tokenizer.get_added_vocabulary();
        let piece = self.tokenizer.id_to_token(token).filter(|piece| !special.is_special_token(piece));
        let mut pieces: Vec<_> = piece.into_iter().collect();
        for stage in &mut self.stages {
            pieces = stage.push_all(pieces)?;
        }
        Ok(pieces.concat())
    }

    /// The text that was held back when it ended.
    pub fn finish(&mut self) -> Result<String> {
        let mut pieces = Vec::new();
        for stage in &mut self.stages {
            pieces = stage.push_all(pieces)?;
            pieces.extend(stage.finish()?);
        }
        Ok(pieces.concat())
    }
}

/// One decoder, or what stands for it where there is none, and the pieces it has got that it may need again.
struct Stage<'a> {
    decoder: Option<&'a DecoderWrapper>,
    rule: Rule,
    held: Vec<String>,
}

/// When a piece can be let go.
enum Rule {
    /// At once: it depends on the one before at most.
    Previous,
    /// With the next one: the last of all is different.
    Next,
    /// With the next one that is no byte: bytes in a row are text only if all of them are.
    ByteRun,
    /// With the last byte of a character; these bytes belong to one that is incomplete.
    Character(Vec<u8>),
    /// At once and unchanged.
    Unchanged,
    /// When this many characters more have come: pieces are parts of one, and its beginning alone is changed.
    Beginning(usize),
    /// Pieces are parts of one, which may change until it is whole.
    End,
}

fn add_stages<'a>(decoder: Option<&'a DecoderWrapper>, stages: &mut Vec<Stage<'a>>) {
    if let Some(DecoderWrapper::Sequence(sequence)) = decoder {
        return sequence.get_decoders().iter().for_each(|decoder| add_stages(Some(decoder), stages));
    }
    let makes_one = |stage: &Stage<'_>| {
        matches!(stage.decoder, Some(DecoderWrapper::Fuse(_) | DecoderWrapper::ByteLevel(_)))
    };
    let rule = match decoder {
        Some(DecoderWrapper::Fuse(_)) => Rule::Unchanged,
        Some(DecoderWrapper::Strip(strip)) if stages.iter().any(makes_one) && strip.stop == 0 => {
            Rule::Beginning(strip.start)
        }
        _ if stages.iter().any(makes_one) => Rule::End,
        Some(DecoderWrapper::ByteFallback(_)) => Rule::ByteRun,
        Some(DecoderWrapper::ByteLevel(_)) => Rule::Character(Vec::new()),
        Some(DecoderWrapper::BPE(_)) => Rule::Next,
        _ => Rule::Previous,
    };
    stages.push(Stage { decoder, rule, held: Vec::new() });
}

impl Stage<'_> {
    fn push_all(&mut self, pieces: Vec<String>) -> Result<Vec<String>> {
        let mut done = Vec::new();
        for piece in pieces {
            done.extend(self.push(piece)?);
        }
        Ok(done)
    }

    fn push(&mut self, piece: String) -> Result<Vec<String>> {
        match &mut self.rule {
            Rule::Unchanged => Ok(vec![piece]),
            Rule::Previous => {
                let before = self.decode(self.held.clone())?.len();
                self.held.push(piece);
                let mut pieces = self.decode(self.held.clone())?;
                self.held.drain(..self.held.len() - 1);
                Ok(pieces.split_off(before))
            }
            Rule::Next => {
                self.held.push(piece);
                let mut pieces = self.decode(self.held.clone())?;
                pieces.pop();
                self.held.drain(..self.held.len() - 1);
                Ok(pieces)
            }
            Rule::ByteRun => {
                let is_byte = self.decode(vec![piece.clone()])? != [piece.as_str()];
                self.held.push(piece);
                let run = if is_byte { Vec::new() } else { take(&mut self.held) };
                self.decode(run)
            }
            Rule::Character(bytes) => {
                // A piece with other characters than those that stand for bytes stands for itself.
                let of_piece: Option<Vec<u8>> = piece.chars().map(|c| BYTES.get(&c).copied()).collect();
                bytes.extend(of_piece.unwrap_or_else(|| piece.into_bytes()));
                Ok(vec![take_characters(bytes)])
            }
            Rule::Beginning(missing) => {
                *missing = missing.saturating_sub(piece.chars().count());
                let is_there = *missing == 0;
                self.held.push(piece);
                if !is_there {
                    return Ok(Vec::new());
                }
                self.rule = Rule::Unchanged;
                let beginning = take(&mut self.held).concat();
                self.decode(vec![beginning])
            }
            Rule::End => {
                self.held.push(piece);
                Ok(Vec::new())
            }
        }
    }

    fn finish(&mut self) -> Result<Vec<String>> {
        let held = take(&mut self.held);
        match &self.rule {
            Rule::Previous | Rule::Unchanged => Ok(Vec::new()),
            Rule::Next | Rule::ByteRun if held.is_empty() => Ok(Vec::new()),
            Rule::Next | Rule::ByteRun => self.decode(held),
            Rule::Character(bytes) => Ok(vec![String::from_utf8_lossy(bytes).into_owned()]),
            Rule::Beginning(_) | Rule::End => self.decode(vec![held.concat()]),
        }
    }

    fn decode(&self, pieces: Vec<String>) -> Result<Vec<String>> {
        let Some(decoder) = self.decoder else {
            // Without a decoder, spaces stand between the pieces.
            let spaced = |(index, piece)| if index == 0 { piece } else { format!(" {piece}") };
            return Ok(pieces.into_iter().enumerate().map(spaced).collect());
        };
        decoder.decode_chain(pieces).map_err(|error| anyhow!("cannot turn tokens into text: {error}"))
    }
}

/// The byte that each character of a byte-level piece stands for, as GPT-2 has it: what can be printed stands for itself,
/// the rest for the characters from U+0100 on.
static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let is_printed = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let (printed, others): (Vec<u8>, Vec<u8>) = (0..=u8::MAX).partition(is_printed);
    printed.into_iter().map(|byte| (char::from(byte), byte)).chain(('\u{100}'..).zip(others)).collect()
});

/// Takes all but the bytes of a character that is incomplete; those that belong to none come as U+FFFD.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    let is_incomplete = std::str::from_utf8(last).is_err_and(|error| error.error_len().is_none());
    let incomplete = bytes.split_off(bytes.len() - if is_incomplete { last.len() } else { 0 });
    let complete = std::mem::replace(bytes, incomplete);
    String::from_utf8_lossy(&complete).into_owned()
}
