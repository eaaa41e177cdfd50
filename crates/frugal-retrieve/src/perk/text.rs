//! What is written and what is asked, as tokens.

use frugal_core::encode::IGNORE_INDEX;
use frugal_core::tokenizer::TextTokenizer;

use super::error::PerkError;

/// Sequences of a batch, one after another, with the token that each position stands for where it
/// counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Tokens of all sequences, `[tokens]`.
    pub ids: Vec<u32>,
    /// Tokens of each sequence.
    pub lengths: Vec<usize>,
    /// `[tokens]`: the token itself where it is to be predicted, [`IGNORE_INDEX`] elsewhere.
    pub labels: Vec<i32>,
}

impl Batch {
    /// Adds a sequence, of which the first `masked` tokens are only read.
    pub fn push(&mut self, ids: &[u32], masked: usize) {
        self.ids.extend(ids);
        self.lengths.push(ids.len());
        let label = |(i, &id): (usize, &u32)| match i < masked.max(1) {
            true => IGNORE_INDEX,
            false => id as i32,
        };
        self.labels.extend(ids.iter().enumerate().map(label));
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens that count.
    pub fn targets(&self) -> usize {
        self.labels.iter().filter(|&&l| l != IGNORE_INDEX).count()
    }

    /// Positions of the batch if it were padded to its longest sequence, without the first of each.
    pub fn positions(&self) -> usize {
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        self.sequences() * longest.saturating_sub(1)
    }

    /// In at most so many groups of as equal numbers of sequences as can be.
    #[must_use]
    pub fn groups(&self, count: usize) -> Vec<Self> {
        let count = count.clamp(1, self.sequences().max(1));
        let mut groups = vec![Self::default(); count];
        let mut start = 0;
        for (i, &length) in self.lengths.iter().enumerate() {
            let group = &mut groups[i * count / self.sequences()];
            let range = start..start + length;
            group.ids.extend(&self.ids[range.clone()]);
            group.labels.extend(&self.labels[range]);
            group.lengths.push(length);
            start += length;
        }
        groups
    }
}

/// A question about a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The question.
    pub question: String,
    /// Its answer.
    pub answer: String,
    /// Segments that the answer rests on, which the model then writes first; empty for the answer
    /// alone.
    pub support: Vec<String>,
}

/// A context with questions about it, as meta-training reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Segments.
    pub context: Vec<String>,
    /// Questions.
    pub questions: Vec<Question>,
}

/// Writes texts as tokens.
#[derive(Clone, Copy)]
pub struct Texts<'t> {
    tokenizer: &'t TextTokenizer,
    end: u32,
    longest: usize,
}

impl<'t> Texts<'t> {
    /// For a model that reads `longest` tokens.
    ///
    /// # Errors
    /// A tokenizer without a token that ends a text.
    pub fn new(tokenizer: &'t TextTokenizer, longest: usize) -> Result<Self, PerkError> {
        let end = tokenizer.eos_ids().first().copied();
        let end = end.ok_or_else(|| {
            PerkError::Text("the tokenizer has no token that ends a text (`eos_token`)".into())
        })?;
        Ok(Self {
            tokenizer,
            end,
            longest,
        })
    }

    /// The token that ends segments and answers.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// `doc_{i}: {segment}<eos>` for each segment, of which the segment and its end count.
    /// `numbers[i]` is the number of segment `i`.
    ///
    /// # Errors
    /// No segments, an empty one, one that the model has no room for.
    pub fn segments(&self, segments: &[&str], numbers: &[usize]) -> Result<Batch, PerkError> {
        if segments.is_empty() || segments.len() != numbers.len() {
            return Err(PerkError::Text(format!(
                "{} segments with {} numbers: there must be one at least, and a number for each",
                segments.len(),
                numbers.len()
            )));
        }
        let mut batch = Batch::default();
        for (i, (segment, number)) in segments.iter().zip(numbers).enumerate() {
            let mut ids = self.tokenizer.encode(&format!("doc_{number}:"), true)?;
            let masked = ids.len();
            ids.extend(
                self.tokenizer
                    .encode(&format!(" {}", segment.trim()), false)?,
            );
            if segment.trim().is_empty() || ids.len() == masked {
                return Err(PerkError::Text(format!("segment {} is empty", i + 1)));
            }
            ids.push(self.end);
            self.fits(&ids, "segment", i)?;
            batch.push(&ids, masked);
        }
        Ok(batch)
    }

    fn fits(&self, ids: &[u32], what: &str, i: usize) -> Result<(), PerkError> {
        if ids.len() <= self.longest {
            return Ok(());
        }
        Err(PerkError::Text(format!(
            "{what} {} has {} tokens, and the model reads {}: cut it",
            i + 1,
            ids.len(),
            self.longest
        )))
    }

    /// The text that a question is asked with after `documents` segments were written.
    #[must_use]
    pub fn prompt_text(documents: usize, question: &str) -> String {
        format!("You have memorized {documents} documents.\n{question}\nAnswer:")
    }

    /// Its tokens.
    ///
    /// # Errors
    /// A text that the tokenizer cannot spell.
    pub fn prompt(&self, documents: usize, question: &str) -> Result<Vec<u32>, PerkError> {
        let text = Self::prompt_text(documents, question);
        Ok(self.tokenizer.encode(&text, true)?)
    }

    /// Questions with their answers, of which the answers count.
    ///
    /// # Errors
    /// No questions, an answer of no tokens, one that the model has no room for.
    pub fn questions(&self, documents: usize, questions: &[Question]) -> Result<Batch, PerkError> {
        if questions.is_empty() {
            return Err(PerkError::Text("there is no question".into()));
        }
        let mut batch = Batch::default();
        for (i, question) in questions.iter().enumerate() {
            let mut ids = self.prompt(documents, &question.question)?;
            let masked = ids.len();
            let answer = question.answer.trim();
            let response = match question.support.is_empty() {
                true => format!(" {answer}"),
                false => format!(
                    " <support>{}</support>\n<output>{answer}</output>",
                    question.support.join("\n")
                ),
            };
            ids.extend(self.tokenizer.encode(&response, false)?);
            if answer.is_empty() || ids.len() == masked {
                return Err(PerkError::Text(format!(
                    "the answer of question {} is empty",
                    i + 1
                )));
            }
            ids.push(self.end);
            self.fits(&ids, "question", i)?;
            batch.push(&ids, masked);
        }
        Ok(batch)
    }

    /// The answer in a response: what stands between `<output>` and its end, where there is one.
    #[must_use]
    pub fn answer_in(response: &str) -> &str {
        let after = response
            .split_once("<output>")
            .map_or(response, |(_, after)| after);
        after.split("</output>").next().unwrap_or(after).trim()
    }
}
