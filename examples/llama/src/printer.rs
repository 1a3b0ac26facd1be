//! Shows the texts of a batch one after the other, each as it is being written.

use std::io::Write;

use anyhow::Result;

use llama::generate::{Event, Finish};
use llama::stream::TextStream;
use llama::tokenizer::TextTokenizer;

/// The first text that has not ended is live; those after it wait for their turn.
pub struct Printer<'a, W> {
    out: W,
    texts: Vec<Text<'a>>,
    live: usize,
}

/// A prompt and what is written on from it: the text of all tokens, so that the first new one may end a character.
struct Text<'a> {
    stream: TextStream<'a>,
    /// What is still to be shown.
    waiting: String,
    ended: bool,
}

impl<'a, W: Write> Printer<'a, W> {
    /// Shows nothing before the first token, for it may never come.
    pub fn new(out: W, tokenizer: &'a TextTokenizer, prompts: &[Vec<u32>]) -> Result<Self> {
        let count = prompts.len();
        let text = |(index, prompt): (usize, &Vec<u32>)| -> Result<_> {
            let waiting = match count {
                1 => String::new(),
                _ => format!("=== {} of {count} ===\n", index + 1),
            };
            let mut text = Text { stream: tokenizer.stream(), waiting, ended: false };
            for &token in prompt {
                text.waiting += &text.stream.push(token)?;
            }
            Ok(text)
        };
        let texts = prompts.iter().enumerate().map(text).collect::<Result<_>>()?;
        Ok(Self { out, texts, live: 0 })
    }

    /// Takes one more token.
    pub fn push(&mut self, event: Event) -> Result<()> {
        let text = &mut self.texts[event.request];
        if event.finish != Some(Finish::Eos) {
            text.waiting += &text.stream.push(event.token)?;
        }
        if event.finish.is_some() {
            text.waiting += &text.stream.finish()?;
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
