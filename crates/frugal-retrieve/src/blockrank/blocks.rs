//! The prompt as blocks: instruction, documents, closing question.

use frugal_core::data::Message;
use frugal_core::tokenizer::TextTokenizer;
use frugal_nn::{AttentionControl, AttentionMask, BackboneInfo, ScoreRows};

use super::options::BlockRankOptions;
use crate::error::RetrieveError;

const TASK: &str = "You will be given a query and a list of documents. Each document will be formatted as ID: <id> | CONTENT: <content> | END ID: <id>. You need to read the documents carefully and understand them. Then you will be given a query, and your task is to find the document that is most relevant to answer the query.";

/// Tokens of a prompt and where its blocks are.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockPrompt {
    /// The tokens of all blocks.
    pub ids: Vec<u32>,
    /// Tokens of each block: instruction, documents, question.
    pub lengths: Vec<usize>,
    /// The two tokens whose attention ranks, counted from the first of the prompt: the one that ends
    /// the prompt, and the bracket that opens the answer.
    pub signals: Vec<usize>,
}

impl BlockPrompt {
    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.lengths.len() - 2
    }

    /// The position of every token: documents all start behind the instruction, the question at
    /// `offset`.
    ///
    /// # Errors
    /// Documents that reach into the question, a question beyond `limit` positions.
    pub fn position_ids(&self, offset: u32, limit: usize) -> Result<Vec<u32>, String> {
        let [first, .., last] = self.lengths.as_slice() else {
            return Err("a prompt has an instruction and a question".into());
        };
        let longest = self.lengths[1..self.lengths.len() - 1].iter().max();
        let reach = first + longest.copied().unwrap_or(0);
        if reach > offset as usize || offset as usize + last > limit {
            return Err(format!(
                "instruction and the longest document have {reach} tokens, the question {last}: with the question at position {offset} they do not fit the model's {limit} positions; shorten the query or the documents"
            ));
        }
        let mut positions = Vec::with_capacity(self.ids.len());
        for (i, &length) in self.lengths.iter().enumerate() {
            let start = match i {
                0 => 0,
                _ if i + 1 == self.lengths.len() => offset,
                _ => *first as u32,
            };
            positions.extend(start..start + length as u32);
        }
        Ok(positions)
    }

    /// What a pass over these prompts, one behind the other, is asked of attention: the scores of
    /// the signal tokens in one layer; with the position of the closing question blocks and their
    /// positions, without it what the model does by itself.
    ///
    /// # Errors
    /// As [`BlockPrompt::position_ids`]; a prompt beyond the model's positions.
    pub fn control(
        prompts: &[&Self],
        layer: usize,
        offset: Option<u32>,
        info: &BackboneInfo,
    ) -> Result<AttentionControl, String> {
        let (mut positions, mut rows, mut start) = (Vec::new(), Vec::new(), 0);
        for prompt in prompts {
            match offset {
                Some(offset) => positions.extend(prompt.position_ids(offset, info.max_sequence)?),
                None if prompt.ids.len() > info.max_sequence => {
                    return Err(format!(
                        "a prompt of {} tokens is longer than the model's {} positions: give fewer or shorter documents",
                        prompt.ids.len(),
                        info.max_sequence
                    ));
                }
                None => {}
            }
            rows.extend(prompt.signals.iter().map(|row| start + row));
            start += prompt.ids.len();
        }
        Ok(AttentionControl {
            mask: match offset {
                Some(_) => {
                    AttentionMask::Blocks(prompts.iter().map(|p| p.lengths.clone()).collect())
                }
                None => AttentionMask::Model,
            },
            position_ids: offset.map(|_| positions),
            score_bias: None,
            score_rows: Some(ScoreRows { layer, rows }),
        })
    }
}

/// Writes the prompts of one model, with the words of the official code.
pub struct BlockPrompts<'t> {
    tokenizer: &'t TextTokenizer,
    document_tokens: usize,
}

impl<'t> BlockPrompts<'t> {
    /// For a model with this tokenizer.
    pub fn new(tokenizer: &'t TextTokenizer, options: &BlockRankOptions) -> Self {
        Self {
            tokenizer,
            document_tokens: options.document_tokens,
        }
    }

    /// The prompt up to the bracket that opens the answer; documents get the numbers 0, 1, ...
    ///
    /// # Errors
    /// Texts that the tokenizer cannot spell, no document.
    pub fn prompt(&self, query: &str, documents: &[&str]) -> Result<BlockPrompt, RetrieveError> {
        let numbered: Vec<(usize, &str)> = documents.iter().copied().enumerate().collect();
        self.numbered(query, &numbered)
    }

    /// The prompt with documents that keep the numbers that are given with them.
    ///
    /// # Errors
    /// As [`BlockPrompts::prompt`].
    pub fn numbered(
        &self,
        query: &str,
        documents: &[(usize, &str)],
    ) -> Result<BlockPrompt, RetrieveError> {
        if documents.is_empty() {
            return Err(RetrieveError::BlockRank("there are no documents".into()));
        }
        let instruction = format!("{TASK}\nQuery: {query}\n\nDocuments:");
        let question = format!(
            "\n====== Now let's start! ======\nWhich document is most relevant to answer the query? Print out the ID of the document.\nQuery: {query}\nThe following document(s) can help answer the query:"
        );
        let [before, between] = self.turns()?;
        let mut ids = self.tokenizer.encode(
            &format!("{before}{instruction}"),
            // A chat template writes its own special tokens.
            !self.tokenizer.has_chat_template(),
        )?;
        let ends = |id: &u32| self.tokenizer.eos_ids().contains(id);
        while before.is_empty() && ids.last().is_some_and(ends) {
            ids.pop();
        }
        let mut lengths = vec![ids.len()];
        for (number, text) in documents {
            let block = self.document(*number, text)?;
            lengths.push(block.len());
            ids.extend(block);
        }
        let question = self
            .tokenizer
            .encode(&format!("{question}{between}Final Answer:"), false)?;
        let bracket = self.tokenizer.encode(" [", false)?;
        lengths.push(question.len() + bracket.len());
        ids.extend(question);
        let colon = ids.len() - 1;
        ids.extend(bracket);
        Ok(BlockPrompt {
            signals: vec![colon, ids.len() - 1],
            ids,
            lengths,
        })
    }

    /// What an answer that names these documents adds behind the bracket.
    ///
    /// # Errors
    /// Numbers that the tokenizer cannot spell.
    pub fn answer(&self, numbers: &[usize]) -> Result<Vec<u32>, RetrieveError> {
        let list: Vec<String> = numbers.iter().map(usize::to_string).collect();
        let text = format!("{}]", list.join(", "));
        let mut ids = self.tokenizer.encode(&text, false)?;
        ids.extend(
            self.tokenizer
                .turn_end_id()
                .or(self.tokenizer.eos_ids().first().copied()),
        );
        Ok(ids)
    }

    /// Cut so that the text is shortened and its closing number stays.
    fn document(&self, number: usize, text: &str) -> Result<Vec<u32>, RetrieveError> {
        let text = self.tokenizer.head(text, self.document_tokens);
        let spans = self.tokenizer.encode_spans(text, false)?;
        let mut end = match spans.ids.len() > self.document_tokens {
            true => spans.offsets[self.document_tokens - 1].1.min(text.len()),
            false => text.len(),
        };
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = &text[..end];
        let whole = format!("\nID: {number} | CONTENT: {text} | END ID: {number}");
        Ok(self.tokenizer.encode(&whole, false)?)
    }

    /// What a chat template puts before the message, and between it and the answer.
    fn turns(&self) -> Result<[String; 2], RetrieveError> {
        const MARK: &str = "THE-MESSAGE";
        if !self.tokenizer.has_chat_template() {
            return Ok([String::new(), "\n".into()]);
        }
        let text = self
            .tokenizer
            .render_chat(&[Message::new("user", MARK)], true)
            .map_err(|error| RetrieveError::BlockRank(error.to_string()))?;
        match text.split_once(MARK) {
            Some((before, between)) => Ok([before.to_owned(), between.to_owned()]),
            None => Err(RetrieveError::BlockRank(
                "the chat template changes the message".into(),
            )),
        }
    }
}

/// Pairs of query and key that a block mask shows: instruction, documents and question of these
/// lengths.
pub fn allowed_pairs(instruction: u64, document: u64, documents: u64, question: u64) -> u64 {
    let own = |n: u64| n * (n + 1) / 2;
    own(instruction)
        + documents * (document * instruction + own(document))
        + question * (instruction + documents * document)
        + own(question)
}

/// The same for ordinary causal attention.
pub fn causal_pairs(instruction: u64, document: u64, documents: u64, question: u64) -> u64 {
    let tokens = instruction + documents * document + question;
    tokens * (tokens + 1) / 2
}
