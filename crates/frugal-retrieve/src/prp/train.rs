//! Teaching a model to compare passages.

use frugal_train::{Target, Tokenized};

use super::prompt::{Prompt, PrpPrompt};
use crate::error::RetrieveError;

/// What a target position has that is not learnt.
const IGNORED: i32 = frugal_kernels::IGNORE_INDEX;

impl PrpPrompt<'_> {
    /// Two examples for next-token training: a passage that answers the query better and one that
    /// answers it worse, in both orders, so that position does not tell.
    ///
    /// # Errors
    /// Texts that the tokenizer cannot spell.
    pub fn examples(
        &self,
        query: &str,
        better: &str,
        worse: &str,
    ) -> Result<[Tokenized; 2], RetrieveError> {
        let (better, worse) = (self.cut(better)?, self.cut(worse)?);
        let first = self.scored(query, better, worse)?;
        let second = self.scored(query, worse, better)?;
        Ok([learnt(first, 0), learnt(second, 1)])
    }
}

/// A prompt with the answer of this number; only the tokens that tell the answers apart are learnt.
fn learnt(prompt: Prompt, answer: usize) -> Tokenized {
    let Prompt { mut ids, answers } = prompt;
    let answer = &answers[answer];
    // A position has the id that comes next; the last has none.
    let mut targets = vec![IGNORED; ids.len() - 1];
    targets.extend(answer.iter().map(|&id| id as i32));
    targets.push(IGNORED);
    ids.extend(answer);
    Tokenized {
        input_ids: ids,
        token_type_ids: Vec::new(),
        labels: Target::Tokens(targets),
    }
}
