//! What the model reads.

use frugal_core::data::Message;
use frugal_core::tokenizer::TextTokenizer;

use super::options::PrpOptions;
use crate::error::RetrieveError;

/// Writes the prompts of one model (appendix E of the paper).
pub struct PrpPrompt<'t> {
    tokenizer: &'t TextTokenizer,
    chat: bool,
    passage_tokens: usize,
}

/// Token ids of one comparison.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Prompt {
    /// The prompt with what both answers begin with.
    pub ids: Vec<u32>,
    /// How the two answers go on; empty where the model is to write.
    pub answers: [Vec<u32>; 2],
}

impl<'t> PrpPrompt<'t> {
    /// For a model with this tokenizer.
    ///
    /// # Errors
    /// A conversation that is asked for where there is no chat template; passages without room.
    pub fn new(tokenizer: &'t TextTokenizer, options: &PrpOptions) -> Result<Self, RetrieveError> {
        let has = tokenizer.has_chat_template();
        if options.chat == Some(true) && !has {
            return Err(RetrieveError::Prp(
                "the model has no chat template: ask it without one".into(),
            ));
        }
        if options.passage_tokens == 0 {
            return Err(RetrieveError::Prp(
                "`passage_tokens` is 0, which leaves nothing of a passage".into(),
            ));
        }
        Ok(Self {
            tokenizer,
            chat: options.chat.unwrap_or(has),
            passage_tokens: options.passage_tokens,
        })
    }

    /// The text of a comparison up to the answer; without a second passage up to where that begins.
    pub fn text(&self, query: &str, a: &str, b: Option<&str>) -> Result<String, RetrieveError> {
        let begin = format!(
            "Given a query \"{query}\", which of the following two passages is more relevant to the query?\n\nPassage A: \"{a}\"\n\nPassage B: \""
        );
        let end = "\"\n\nOutput Passage A or Passage B:";
        let Some(b) = b else {
            return match self.chat {
                false => Ok(begin),
                true => {
                    let whole = self.as_message(&format!("{begin}{end}"))?;
                    let cut = whole.find(end).unwrap_or(whole.len());
                    Ok(whole[..cut].to_owned())
                }
            };
        };
        let text = format!("{begin}{b}{end}");
        match self.chat {
            true => self.as_message(&text),
            false => Ok(text),
        }
    }

    fn as_message(&self, text: &str) -> Result<String, RetrieveError> {
        let message = [Message::new("user", text)];
        let text = self.tokenizer.render_chat(&message, true);
        text.map_err(|error| RetrieveError::Prp(error.to_string()))
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, RetrieveError> {
        // A chat template writes its own special tokens.
        Ok(self.tokenizer.encode(text, !self.chat)?)
    }

    /// A passage cut to the tokens that are shown.
    pub fn cut<'p>(&self, passage: &'p str) -> Result<&'p str, RetrieveError> {
        let head = self.tokenizer.head(passage, self.passage_tokens);
        let spans = self.tokenizer.encode_spans(head, false)?;
        if spans.ids.len() <= self.passage_tokens {
            return Ok(passage);
        }
        let mut end = spans.offsets[self.passage_tokens - 1].1.min(passage.len());
        while !passage.is_char_boundary(end) {
            end -= 1;
        }
        Ok(&passage[..end])
    }

    /// The beginning that a comparison shares with the others of its passage A.
    pub(super) fn shared(&self, query: &str, a: &str) -> Result<Vec<u32>, RetrieveError> {
        self.encode(&self.text(query, a, None)?)
    }

    /// One comparison whose answers are scored. Each whole text is tokenized, so that an answer
    /// begins where its own first token does, whatever the tokenizer joins.
    pub(super) fn scored(&self, query: &str, a: &str, b: &str) -> Result<Prompt, RetrieveError> {
        let text = self.text(query, a, Some(b))?;
        let space = if self.chat { "" } else { " " };
        let mut both = Vec::with_capacity(2);
        for letter in ["A", "B"] {
            let mut ids = self.encode(&format!("{text}{space}Passage {letter}"))?;
            // What the tokenizer puts behind a text is no part of the answer.
            while ids.last().is_some_and(|&id| self.tokenizer.is_special(id)) {
                ids.pop();
            }
            both.push(ids);
        }
        let common = common(&both[0], &both[1]);
        let answers = [
            both[0].split_off(common),
            both.swap_remove(1).split_off(common),
        ];
        if answers.iter().any(Vec::is_empty) || common == 0 {
            return Err(RetrieveError::Prp(
                "the tokenizer does not tell `Passage A` from `Passage B`".into(),
            ));
        }
        Ok(Prompt {
            ids: both.swap_remove(0),
            answers,
        })
    }

    /// One comparison that the model answers by writing.
    pub(super) fn written(&self, query: &str, a: &str, b: &str) -> Result<Prompt, RetrieveError> {
        let mut ids = self.encode(&self.text(query, a, Some(b))?)?;
        while !self.chat && ids.last().is_some_and(|&id| self.tokenizer.is_special(id)) {
            ids.pop();
        }
        Ok(Prompt {
            ids,
            answers: [Vec::new(), Vec::new()],
        })
    }
}

/// Tokens that two sequences begin with.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
