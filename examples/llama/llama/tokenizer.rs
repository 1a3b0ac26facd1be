//! Text to tokens, and tokens back to text as they come.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::de::IgnoredAny;
use tokenizers::Tokenizer;

use super::folder;

/// `tokenizer.json`.
pub struct TextTokenizer(Tokenizer);

impl TextTokenizer {
    /// Reads the file of a model folder.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let mut tokenizer = Self::parse(&folder::read(&path)?)
            .with_context(|| format!("{} is no tokenizer", path.display()))?;
        // Some files still hold the settings of the training.
        tokenizer.with_truncation(None).map_err(|error| anyhow!("{error}"))?;
        tokenizer.with_padding(None);
        Ok(Self(tokenizer))
    }

    fn parse(json: &str) -> Result<Tokenizer> {
        // `tokenizers` panics if the text ends inside of a decoder.
        serde_json::from_str::<IgnoredAny>(json)?;
        Ok(serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(json))?)
    }

    /// The tokens of a prompt, with those that the model expects around it (`<s>`).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.0.encode(text, true).map_err(|error| anyhow!("cannot tokenize: {error}"))?;
        ensure!(!encoding.is_empty(), "it is empty, and this model needs a token to write on from");
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens, without those that are not text.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.0.decode(tokens, true).map_err(|error| anyhow!("cannot turn tokens into text: {error}"))
    }
}

/// Turns tokens into text one at a time.
///
/// A token may be part of a character only, and its text may depend on the tokens before it (a space that stands only
/// between words). So the text of a token is what the text of the last few tokens grows by with it, as soon as that ends
/// in a whole character.
pub struct Detokenizer {
    tokens: Vec<u32>,
    /// Where decoding begins: some way before `read`, for context.
    begin: usize,
    /// The tokens before have been shown.
    read: usize,
}

impl Detokenizer {
    /// Continues after a prompt.
    pub fn after(prompt: &[u32]) -> Self {
        let context = prompt.len().saturating_sub(6);
        Self { tokens: prompt[context..].to_vec(), begin: 0, read: prompt.len() - context }
    }

    /// The text that one more token brings, which may be empty for now.
    pub fn push(&mut self, token: u32, decode: impl Fn(&[u32]) -> Result<String>) -> Result<String> {
        self.tokens.push(token);
        let (shown, all) = self.texts(decode)?;
        // U+FFFD stands for bytes that are no whole character yet.
        if all.len() <= shown.len() || all.ends_with('\u{FFFD}') {
            return Ok(String::new());
        }
        (self.begin, self.read) = (self.read, self.tokens.len());
        Ok(all.get(shown.len()..).unwrap_or_default().to_owned())
    }

    /// What was held back when the text ended.
    pub fn finish(&mut self, decode: impl Fn(&[u32]) -> Result<String>) -> Result<String> {
        let (shown, all) = self.texts(decode)?;
        (self.begin, self.read) = (self.tokens.len(), self.tokens.len());
        Ok(all.get(shown.len()..).unwrap_or_default().to_owned())
    }

    fn texts(&self, decode: impl Fn(&[u32]) -> Result<String>) -> Result<(String, String)> {
        Ok((decode(&self.tokens[self.begin..self.read])?, decode(&self.tokens[self.begin..])?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every token is a byte.
    fn bytes(tokens: &[u32]) -> Result<String> {
        let bytes: Vec<u8> = tokens.iter().map(|&token| token as u8).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Every token is a word with a space before it, which the first one loses, as in SentencePiece.
    fn words(tokens: &[u32]) -> Result<String> {
        let text: String = tokens.iter().map(|token| format!(" w{token}")).collect();
        Ok(text.trim_start().to_owned())
    }

    #[test]
    fn characters_come_whole() {
        let text = "aé\u{1F98A}ß!";
        let mut detokenizer = Detokenizer::after(&"Füchse ".bytes().map(u32::from).collect::<Vec<_>>());
        let pieces: Vec<_> =
            text.bytes().map(|byte| detokenizer.push(u32::from(byte), bytes).unwrap()).collect();
        assert_eq!(pieces, ["a", "", "é", "", "", "", "\u{1F98A}", "", "ß", "!"]);
        assert_eq!(detokenizer.finish(bytes).unwrap(), "");
    }

    #[test]
    fn half_a_character_is_shown_at_the_end() {
        let mut detokenizer = Detokenizer::after(&[]);
        assert_eq!(detokenizer.push(u32::from(b'a'), bytes).unwrap(), "a");
        assert_eq!(detokenizer.push(0xC3, bytes).unwrap(), "");
        assert_eq!(detokenizer.finish(bytes).unwrap(), "\u{FFFD}");
        assert_eq!(detokenizer.finish(bytes).unwrap(), "");
    }

    #[test]
    fn spaces_between_words_survive() {
        let mut detokenizer = Detokenizer::after(&[1, 2]);
        assert_eq!(detokenizer.push(3, words).unwrap(), " w3");
        assert_eq!(detokenizer.push(4, words).unwrap(), " w4");
        let mut detokenizer = Detokenizer::after(&[]);
        assert_eq!(detokenizer.push(3, words).unwrap(), "w3");
        assert_eq!(detokenizer.push(4, words).unwrap(), " w4");
    }
}
