//! The words of a text with the positions of their tags.

use super::classify::position;
use super::{EncodeOptions, IGNORE_INDEX, Row, RowError, Target, Tokenized};
use crate::data::Example;
use crate::metrics::continued;
use crate::tokenizer::{CutWords, TextTokenizer};

/// The tag of a word goes to its first token; the others have none, or with `label_all_tokens` the
/// tag of what follows in the same entity (`I-PER` behind `B-PER`), where there is one.
pub(super) fn encode(
    example: &Example,
    tokenizer: &TextTokenizer,
    (labels, label_all_tokens): (&[String], bool),
    options: &EncodeOptions,
) -> Result<Row, RowError> {
    let Example::Tagged { tokens, tags } = example else {
        return Err(RowError::OtherFormat);
    };
    let mut classes: Vec<Option<i32>> = Vec::with_capacity(tags.len());
    let mut following: Vec<Option<i32>> = Vec::with_capacity(tags.len());
    for tag in tags {
        let class = tag.as_ref().map(|tag| position(labels, tag)).transpose()?;
        let next = tag.as_deref().and_then(continued);
        let next = next.and_then(|next| labels.iter().position(|label| *label == next));
        classes.push(class.map(|class| class as i32));
        following.push(class.map(|class| next.unwrap_or(class) as i32));
    }
    let CutWords {
        ids,
        type_ids,
        words,
        length,
    } = tokenizer.cut_words(tokens, options.max_length)?;
    // Data sets hold sentences without words; nothing of them is trained.
    if ids.is_empty() && !tokens.is_empty() {
        return Err(RowError::NoTokens);
    }
    let class_of = |list: &[Option<i32>], word: u32| list.get(word as usize).copied().flatten();
    let mut targets = vec![IGNORE_INDEX; ids.len()];
    let mut starts = vec![None; ids.len()];
    // Words behind the last one that has a token, if tokens were cut off.
    let reached = words
        .iter()
        .flatten()
        .max()
        .map_or(0, |word| *word as usize + 1);
    let behind = classes.get(reached..).unwrap_or_default();
    let cut_words = match length > ids.len() {
        true => behind.iter().flatten().count(),
        false => 0,
    };
    let mut last = None;
    for (i, word) in words.into_iter().enumerate() {
        if let Some(word) = word {
            let begins = last != Some(word);
            if begins {
                starts[i] = Some(word);
            }
            let class = match begins {
                true => class_of(&classes, word),
                false => class_of(&following, word).filter(|_| label_all_tokens),
            };
            targets[i] = class.unwrap_or(IGNORE_INDEX);
        }
        last = word;
    }
    Ok(Row {
        tokenized: Tokenized {
            input_ids: ids,
            token_type_ids: type_ids,
            labels: Target::Tags {
                classes: targets,
                words: starts,
            },
        },
        length,
        counted: true,
        cut_words,
    })
}
