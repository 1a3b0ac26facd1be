//! Shows the texts of a batch one after the other, each as it is being written.

use std::io::Write;

use anyhow::Result;

use crate::llama::generate::{Event, Finish};
use crate::llama::tokenizer::{Detokenizer, TextTokenizer};

/// The first text that has not ended is live; those after it wait for their turn.
pub struct Printer<'a, W> {
    out: W,
    tokenizer: &'a TextTokenizer,
    texts: Vec<Text>,
    live: usize,
}

struct Text {
    detokenizer: Detokenizer,
    /// What is still to be shown.
    waiting: String,
    ended: bool,
}

impl<'a, W: Write> Printer<'a, W> {
    /// Shows nothing before the first token, for it may never come.
    pub fn new(out: W, tokenizer: &'a TextTokenizer, prompts: &[String], tokens: &[Vec<u32>]) -> Self {
        let count = prompts.len();
        let texts = prompts.iter().zip(tokens).enumerate().map(|(index, (prompt, tokens))| {
            let waiting = match count {
                1 => prompt.clone(),
                _ => format!("=== {} of {count} ===\n{prompt}", index + 1),
            };
            Text { detokenizer: Detokenizer::after(tokens), waiting, ended: false }
        });
        Self { out, tokenizer, texts: texts.collect(), live: 0 }
    }

    /// Takes one more token.
    pub fn push(&mut self, event: Event) -> Result<()> {
        let decode = |tokens: &[u32]| self.tokenizer.decode(tokens);
        let text = &mut self.texts[event.request];
        if event.finish != Some(Finish::Eos) {
            text.waiting += &text.detokenizer.push(event.token, decode)?;
        }
        if event.finish.is_some() {
            text.waiting += &text.detokenizer.finish(decode)?;
            text.waiting.push('\n');
            text.ended = true;
        }
        if event.request == self.live { self.show() } else { Ok(()) }
    }

    fn show(&mut self) -> Result<()> {
        while let Some(text) = self.texts.get_mut(self.live) {
            self.out.write_all(std::mem::take(&mut text.waiting).as_bytes())?;
            if !text.ended {
                break;
            }
            self.live += 1;
            if self.live < self.texts.len() {
                self.out.write_all(b"\n")?;
            }
        }
        self.out.flush()?;
        Ok(())
    }
}
