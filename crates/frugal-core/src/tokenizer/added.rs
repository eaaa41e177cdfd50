//! Tokens that stand beside `tokenizer.json`: in `added_tokens.json`, `special_tokens_map.json` and
//! `tokenizer_config.json`. All of them count.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::TokenizerError;
use crate::tokenizer_settings::token_text;

pub(super) const ADDED: &str = "added_tokens.json";
const BOS: &str = "bos_token";
const EOS: &str = "eos_token";

/// A token with the id that its file gives it, if it does.
struct Wanted {
    token: AddedToken,
    id: Option<u32>,
}

/// The files of a tokenizer that name tokens.
pub(super) struct Sources<'a> {
    /// `tokenizer_config.json`.
    pub(super) config: &'a Map<String, Value>,
    /// `special_tokens_map.json`.
    pub(super) special: &'a Map<String, Value>,
    /// `added_tokens.json`.
    pub(super) added: &'a Map<String, Value>,
}

impl Sources<'_> {
    /// Whether a file gives this token under the key.
    fn names(&self, key: &str, token: &str) -> bool {
        let is = |file: &Map<String, Value>| file.get(key).and_then(token_text) == Some(token);
        is(self.config) || is(self.special)
    }
}

/// Adds what the files name and `tokenizer.json` lacks, those with an id first, as `transformers`
/// does.
///
/// # Errors
/// An id that is none, or that the tokenizer would not give the token.
pub(super) fn add_tokens(
    tokenizer: &mut Tokenizer,
    sources: &Sources<'_>,
    folder: &Path,
) -> Result<(), TokenizerError> {
    let (file, mut numbered) = match sources.config.get("added_tokens_decoder") {
        Some(Value::Object(decoder)) => ("tokenizer_config.json", decoder_tokens(decoder)),
        _ => (ADDED, added_tokens(sources)),
    };
    // What tokenizer_config.json says is complete; the older file may still name more.
    if file != ADDED {
        let known = |text: &str| numbered.iter().any(|w| w.token.content == text);
        let more = added_tokens(sources);
        let more: Vec<Wanted> = more
            .into_iter()
            .filter(|w| !known(&w.token.content))
            .collect();
        numbered.extend(more);
    }
    numbered.sort_by_key(|wanted| wanted.id);
    let mut pending: Vec<AddedToken> = Vec::new();
    let named = special_tokens(sources).into_iter().filter(|token| {
        // Without an id of its own, an end of sequence that the vocabulary lacks is a mistake.
        let ends = [BOS, EOS]
            .iter()
            .any(|key| sources.names(key, &token.content));
        !ends || tokenizer.token_to_id(&token.content).is_some()
    });
    let named: Vec<AddedToken> = named.collect();
    for token in numbered.iter().map(|w| w.token.clone()).chain(named) {
        let known = tokenizer.get_added_vocabulary().get_vocab();
        // The first that says of a token what it is wins, as in the reference.
        let waits = pending.iter().any(|p| p.content == token.content);
        if token.content.is_empty() || waits || known.contains_key(&token.content) {
            continue;
        }
        if pending
            .last()
            .is_some_and(|last| last.special != token.special)
        {
            add(tokenizer, &mut pending);
        }
        pending.push(token);
    }
    add(tokenizer, &mut pending);
    for Wanted { token, id } in &numbered {
        let found = tokenizer.token_to_id(&token.content);
        if *id != found {
            let text = |id: Option<u32>| id.map_or("no id".into(), |id| format!("the id {id}"));
            return Err(TokenizerError::Malformed {
                path: folder.join(file),
                reason: format!(
                    "the token {:?} has {} there and {} after the vocabulary of tokenizer.json",
                    token.content,
                    text(*id),
                    text(found)
                ),
            });
        }
    }
    Ok(())
}

/// Adds tokens of one kind; each call builds the search for all of them anew.
fn add(tokenizer: &mut Tokenizer, tokens: &mut Vec<AddedToken>) {
    if tokens.first().is_some_and(|token| token.special) {
        tokenizer.add_special_tokens(tokens);
    } else {
        tokenizer.add_tokens(tokens);
    }
    tokens.clear();
}

/// `added_tokens_decoder`: ids to tokens with all their properties.
fn decoder_tokens(decoder: &Map<String, Value>) -> Vec<Wanted> {
    let tokens = decoder.iter().filter_map(|(id, value)| {
        Some(Wanted {
            token: token(value, true)?,
            id: Some(id.parse().ok()?),
        })
    });
    tokens.collect()
}

/// `added_tokens.json`: texts to ids; special are those that another file names as such, except in
/// the lists of `special_tokens_map.json`, which `transformers` reads too late for that.
fn added_tokens(sources: &Sources<'_>) -> Vec<Wanted> {
    let mut map = sources.special.clone();
    map.retain(|key, _| !key.ends_with("_special_tokens"));
    let special = special_tokens(&Sources {
        special: &map,
        ..*sources
    });
    let tokens = sources.added.iter().filter_map(|(content, id)| {
        let known = special.iter().find(|t| t.content == *content).cloned();
        Some(Wanted {
            token: known
                .unwrap_or_else(|| AddedToken::from(content.as_str(), false).normalized(true)),
            id: Some(u32::try_from(id.as_u64()?).ok()?),
        })
    });
    tokens.collect()
}

/// Every special token that the config or the map names: `bos_token` and its like, and the lists of
/// further ones.
fn special_tokens(sources: &Sources<'_>) -> Vec<AddedToken> {
    let mut found: Vec<AddedToken> = Vec::new();
    let mut add = |value: &Value| {
        if let Some(token) = token(value, true)
            && !found.iter().any(|t| t.content == token.content)
        {
            found.push(token);
        }
    };
    for file in [sources.config, sources.special] {
        for (key, value) in file {
            match (key.as_str(), value) {
                ("additional_special_tokens" | "extra_special_tokens", Value::Array(tokens)) => {
                    tokens.iter().for_each(&mut add);
                }
                ("extra_special_tokens", Value::Object(named)) => named.values().for_each(&mut add),
                (
                    "bos_token" | "eos_token" | "unk_token" | "sep_token" | "pad_token"
                    | "cls_token" | "mask_token",
                    value,
                ) => add(value),
                _ => {}
            }
        }
    }
    found
}

/// A token that is a text, or an object with its text and how it is cut out.
fn token(value: &Value, special: bool) -> Option<AddedToken> {
    let flag =
        |name: &str, default: bool| value.get(name).and_then(Value::as_bool).unwrap_or(default);
    let special = flag("special", special);
    let token = AddedToken::from(token_text(value)?, special);
    Some(
        token
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .single_word(flag("single_word", false))
            .normalized(flag("normalized", !special)),
    )
}
