//! A tokenizer as GGUF metadata.

use std::collections::HashMap;

use serde_json::Value as Json;
use tokenizers::Tokenizer;

use super::problem::key;
use super::sentencepiece::SPACE;
use super::{Array, GgufProblem, GgufTokenizer, Value, pre, token_type};
use frugal_core::tokenizer::TextTokenizer;

/// The `tokenizer.*` metadata of a file whose model has `vocab_size` rows of embeddings.
///
/// Rows without a token get an unused one, and ids beyond the rows, which a model cannot give, are
/// left out. [`tokenizer`](super::tokenizer) reads it back to the
/// same ids.
///
/// # Errors
/// [`GgufProblem::Unsupported`] for a tokenizer that GGUF has no name for: neither byte-level BPE
/// of a known kind nor BPE with byte fallback, or with more tokens than rows.
pub fn tokenizer_metadata(
    tokenizer: &TextTokenizer,
    vocab_size: usize,
) -> Result<Vec<(String, Value)>, GgufProblem> {
    let settings = tokenizer.settings();
    let within = |id: &u32| (*id as usize) < vocab_size;
    let mut ends = tokenizer.eos_ids().iter().copied().filter(within);
    let (bos, eos) = (tokenizer.bos_id().filter(within), ends.next());
    // What is added to a text, the post-processor knows; the settings need not say it.
    let around = tokenizer
        .encode("", true)
        .map_err(|error| unsupported(&error.to_string()))?;
    let written = metadata(
        &GgufTokenizer {
            tokenizer: tokenizer.inner().clone(),
            bos_token_id: bos,
            eos_token_id: eos,
            // The end of a turn first: of several ends a file can name one beside that of a sequence.
            eot_token_id: tokenizer
                .turn_end_id()
                .filter(|id| Some(*id) != eos && within(id))
                .or_else(|| ends.next()),
            pad_token_id: Some(tokenizer.pad_id()).filter(within),
            unk_token_id: settings
                .unk_token
                .as_deref()
                .and_then(|token| tokenizer.id(token)),
            add_bos_token: bos.is_some() && around.first() == bos.as_ref(),
            add_eos_token: eos.is_some()
                && around.last() == eos.as_ref()
                && (around.len() > 1 || eos != bos),
            chat_template: settings.chat_template.clone(),
        },
        vocab_size,
    )?;
    let added = tokenizer.inner().get_added_tokens_decoder();
    let unknown = |id: &&u32| {
        let is_special = added.get(id).is_some_and(|token| token.special);
        is_special && Some(**id) != bos && Some(**id) != eos
    };
    if let Some(id) = around.iter().find(unknown) {
        return Err(unsupported(&format!(
            "token {id} is put around each text, and GGUF files know of a first and a last token only"
        )));
    }
    Ok(written)
}

pub(super) fn metadata(
    parts: &GgufTokenizer,
    vocab_size: usize,
) -> Result<Vec<(String, Value)>, GgufProblem> {
    let json = parts.tokenizer.to_string(false).map_err(super::library)?;
    let json: Json =
        serde_json::from_str(&json).map_err(|error| unsupported(&error.to_string()))?;
    let model = &json["model"];
    if model["type"] != "BPE" {
        return Err(unsupported(&format!(
            "model type {} has no GGUF form here; BPE has",
            model["type"]
        )));
    }
    let merges = merges(model)?;
    let sentencepiece = model["byte_fallback"] == true;
    check_model(model)?;
    if !sentencepiece && puts_space_first(&json) {
        return Err(unsupported(
            "`add_prefix_space` puts a space before each text, which readers of GGUF files do not do for byte-level BPE: their \
             ids would differ",
        ));
    }
    let unk = parts
        .unk_token_id
        .or_else(|| parts.tokenizer.token_to_id(model["unk_token"].as_str()?));
    let tokens = Tokens::collect(&json, &parts.tokenizer, vocab_size, sentencepiece, unk)?;

    let mut list: Vec<(String, Value)> = Vec::new();
    let mut push = |name: &str, value: Value| list.push((key(name), value));
    if sentencepiece {
        push("model", "llama".into());
        push("pre", "default".into());
        push(
            "scores",
            Array::F32(scores(&tokens.texts, &tokens.types, &merges)).into(),
        );
        push("add_space_prefix", has_prefix(&json).into());
    } else {
        push("model", "gpt2".into());
        push("pre", pre::name_of(&json)?.into());
        let lines = merges
            .iter()
            .map(|(left, right)| format!("{left} {right}"))
            .collect();
        push("merges", Array::String(lines).into());
        push("add_space_prefix", false.into());
    }
    push("tokens", Array::String(tokens.texts).into());
    push("token_type", Array::I32(tokens.types).into());
    let ids = [
        ("bos", parts.bos_token_id),
        ("eos", parts.eos_token_id),
        ("eot", parts.eot_token_id),
        ("padding", parts.pad_token_id),
        ("unknown", unk),
    ];
    for (name, id) in ids
        .into_iter()
        .filter_map(|(name, id)| id.map(|id| (name, id)))
    {
        push(&format!("{name}_token_id"), id.into());
    }
    push("add_bos_token", parts.add_bos_token.into());
    push("add_eos_token", parts.add_eos_token.into());
    list.extend(
        parts
            .chat_template
            .as_deref()
            .map(|template| ("tokenizer.chat_template".to_owned(), template.into())),
    );
    Ok(list)
}

/// Refuses what the merges alone do not say.
fn check_model(model: &Json) -> Result<(), GgufProblem> {
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model[key].as_str().is_some_and(|text| !text.is_empty()) {
            return Err(unsupported(&format!("`{key}` has no GGUF form")));
        }
    }
    Ok(())
}

/// Whether a byte-level step puts a space before each text.
fn puts_space_first(json: &Json) -> bool {
    steps(&json["pre_tokenizer"], "pretokenizers")
        .iter()
        .any(|step| step["type"] == "ByteLevel" && step["add_prefix_space"] == true)
}

/// The parts of a sequence, or the one step that there is.
fn steps(value: &Json, list: &str) -> Vec<Json> {
    value[list]
        .as_array()
        .cloned()
        .unwrap_or_else(|| vec![value.clone()])
}

fn unsupported(why: &str) -> GgufProblem {
    GgufProblem::Unsupported(format!("tokenizer: {why}"))
}

/// Pairs in order, written as pairs or, before tokenizers 0.20, as one text each.
fn merges(model: &Json) -> Result<Vec<(&str, &str)>, GgufProblem> {
    let list = model["merges"]
        .as_array()
        .ok_or_else(|| unsupported("no merges"))?;
    let pairs = list.iter().map(|merge| match merge {
        Json::Array(pair) => Some((pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        merge => merge.as_str()?.split_once(' '),
    });
    pairs
        .collect::<Option<_>>()
        .ok_or_else(|| unsupported("a merge is not a pair"))
}

struct Tokens {
    texts: Vec<String>,
    types: Vec<i32>,
}

impl Tokens {
    fn collect(
        json: &Json,
        tokenizer: &Tokenizer,
        vocab_size: usize,
        sentencepiece: bool,
        unk: Option<u32>,
    ) -> Result<Self, GgufProblem> {
        let mut texts: Vec<String> = (0..vocab_size).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![token_type::UNUSED as i32; vocab_size];
        for (text, id) in tokenizer.get_vocab(true) {
            let index = id as usize;
            let Some(slot) = texts.get_mut(index) else {
                return Err(unsupported(&format!(
                    "token {text:?} has id {id}, the model has {vocab_size} rows"
                )));
            };
            let is_byte =
                sentencepiece && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
            types[index] = (if is_byte {
                token_type::BYTE
            } else {
                token_type::NORMAL
            }) as i32;
            *slot = text;
        }
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let id = added["id"]
                .as_u64()
                .and_then(|id| usize::try_from(id).ok())
                .filter(|&id| id < vocab_size);
            let id = id.ok_or_else(|| unsupported("an added token has no id"))?;
            let special = added["special"] == true;
            types[id] = (if special {
                token_type::CONTROL
            } else {
                token_type::USER_DEFINED
            }) as i32;
            if sentencepiece && !special {
                // Found in the text as it is, where spaces are spaces.
                texts[id] = texts[id].replace(SPACE, " ");
            }
        }
        if let Some(id) = unk.filter(|&id| sentencepiece && (id as usize) < vocab_size) {
            types[id as usize] = token_type::UNKNOWN as i32;
        }
        Ok(Self { texts, types })
    }
}

/// Scores that order the joins as the merges do: minus the rank of the first merge that makes the
/// token.
fn scores(texts: &[String], types: &[i32], merges: &[(&str, &str)]) -> Vec<f32> {
    let mut ranks = HashMap::new();
    for (left, right) in merges {
        let rank = ranks.len();
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let last = ranks.len();
    let score = |(text, &kind): (&String, &i32)| match u64::try_from(kind) {
        Ok(token_type::NORMAL) => -(ranks.get(text).copied().unwrap_or(last) as f32),
        _ => 0.0,
    };
    texts.iter().zip(types).map(score).collect()
}

/// Whether a space goes before a text, by the normalizer or the pre-tokenizer.
fn has_prefix(json: &Json) -> bool {
    steps(&json["normalizer"], "normalizers")
        .iter()
        .any(|part| part["type"] == "Prepend")
        || steps(&json["pre_tokenizer"], "pretokenizers")
            .iter()
            .any(|part| part["type"] == "Metaspace" && part["prepend_scheme"] != "never")
}
