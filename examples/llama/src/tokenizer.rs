//! Text to tokens.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::de::IgnoredAny;
use tokenizers::Tokenizer;

use super::folder;
use super::stream::TextStream;

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

    /// The text of tokens that are still to come, without those that are not text.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(&self.0)
    }
}
