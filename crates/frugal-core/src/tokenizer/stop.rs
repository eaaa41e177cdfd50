//! Where generation ends: one rule for every format that a model comes in.
//!
//! What ends a sequence is what training put at its end. That is `eos_token`, the ids that the
//! model's files name (`eos_token_id` of `generation_config.json` or `config.json`, the metadata of
//! a GGUF file), and what the chat template writes after an answer. The template's own mark counts
//! whether or not a file lists it: a model that was tuned on conversations ends its turns with it.

use tokenizers::Tokenizer;

use crate::caught::caught;
use crate::data::Message;
use crate::template::ChatTemplate;

/// An answer that no template writes by itself.
const ANSWER: &str = "zqxanswerxqz";
/// Longer marks are text.
const LONGEST_MARK: usize = 64;

/// What a chat template writes after an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TurnEnd {
    /// A token of the vocabulary.
    Token(u32),
    /// A mark that the vocabulary spells in several tokens.
    Text(String),
}

/// The ids that end a sequence: that of `eos_token` first, then those of the model's files, then
/// the end of a turn.
pub(super) fn stop_ids(eos: Option<u32>, listed: &[u32], turn_end: Option<&TurnEnd>) -> Vec<u32> {
    let turn_end = match turn_end {
        Some(TurnEnd::Token(id)) => Some(*id),
        _ => None,
    };
    let mut ids = Vec::new();
    for id in eos
        .into_iter()
        .chain(listed.iter().copied())
        .chain(turn_end)
    {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

/// What the template writes after an answer, if it is a mark. Found by rendering one, so that it
/// holds for any template; a template that refuses the sample has none.
pub(super) fn turn_end(template: &ChatTemplate, tokenizer: &Tokenizer) -> Option<TurnEnd> {
    let sample = [Message::new("user", "x"), Message::new("assistant", ANSWER)];
    let text = template.render(&sample, false).ok()?;
    let (_, after) = text.rsplit_once(ANSWER)?;
    let after = after.trim_start();
    if after.is_empty() {
        return None;
    }
    if let Some(id) = token_at_start(after, tokenizer) {
        return Some(TurnEnd::Token(id));
    }
    let end = after.find('>').filter(|_| after.starts_with('<'))? + 1;
    (end <= LONGEST_MARK).then(|| TurnEnd::Text(after[..end].to_owned()))
}

/// The longest added token that the text starts with, else its first token if that is a mark.
fn token_at_start(text: &str, tokenizer: &Tokenizer) -> Option<u32> {
    let added = tokenizer.get_added_vocabulary().get_vocab();
    let longest = added
        .iter()
        .filter(|(token, _)| !token.is_empty() && text.starts_with(token.as_str()))
        .max_by_key(|(token, _)| token.len());
    if let Some((_, id)) = longest {
        return Some(*id);
    }
    let mark = text.starts_with('<').then(|| text.find('>')).flatten()?;
    let mark = &text[..=mark];
    let encoding = caught(|| tokenizer.encode(mark, false)).ok()?.ok()?;
    match encoding.get_ids() {
        [only] if tokenizer.id_to_token(*only).as_deref() == Some(mark) => Some(*only),
        _ => None,
    }
}
