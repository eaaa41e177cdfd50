//! The tokenizer that a GGUF file carries, as a `tokenizers::Tokenizer`.

mod export;
mod pre;
mod problem;
mod sentencepiece;
mod token_type;

use std::collections::HashSet;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{AddedToken, Tokenizer};

pub use export::tokenizer_metadata;

use super::{Array, Gguf, GgufError, GgufProblem, Value};
use problem::{key, library, wrong};

/// A tokenizer with what a model's file says of its special tokens.
#[derive(Clone, Debug)]
pub struct GgufTokenizer {
    /// The tokenizer; encoding with special tokens adds beginning and end of text as the two flags
    /// say.
    pub tokenizer: Tokenizer,
    /// Beginning of text.
    pub bos_token_id: Option<u32>,
    /// End of text.
    pub eos_token_id: Option<u32>,
    /// End of a chat turn, where the file or a well-known token names one.
    pub eot_token_id: Option<u32>,
    /// Padding.
    pub pad_token_id: Option<u32>,
    /// Unknown text.
    pub unk_token_id: Option<u32>,
    /// Whether a text begins with `bos_token_id`.
    pub add_bos_token: bool,
    /// Whether a text ends with `eos_token_id`.
    pub add_eos_token: bool,
    /// The chat template (Jinja).
    pub chat_template: Option<String>,
}

/// Control tokens that end a turn in files without `tokenizer.ggml.eot_token_id`.
const END_OF_TURN: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"];

/// The tokenizer of a file: byte-level BPE (`tokenizer.ggml.model` `gpt2`) or SentencePiece BPE
/// (`llama`).
///
/// # Errors
/// [`GgufError`] that names the key which is missing, inconsistent or of an unsupported kind.
pub fn tokenizer(gguf: &Gguf) -> Result<GgufTokenizer, GgufError> {
    Vocabulary::read(gguf)
        .and_then(|vocabulary| vocabulary.build(gguf))
        .map_err(|problem| problem.in_file(gguf.source()))
}

fn get<'a>(gguf: &'a Gguf, name: &str) -> Option<&'a Value> {
    gguf.get(&key(name))
}

fn flag(gguf: &Gguf, name: &str) -> Result<Option<bool>, GgufProblem> {
    get(gguf, name)
        .map(|value| {
            value
                .as_bool()
                .ok_or_else(|| wrong(name, "not a truth value"))
        })
        .transpose()
}

fn strings<'a>(gguf: &'a Gguf, name: &str) -> Result<&'a [String], GgufProblem> {
    let value = get(gguf, name).ok_or_else(|| wrong(name, "missing"))?;
    value
        .as_array()
        .and_then(Array::as_strings)
        .ok_or_else(|| wrong(name, "not an array of text"))
}

/// Tokens by id with their types.
struct Vocabulary<'a> {
    tokens: &'a [String],
    types: Vec<u64>,
}

impl<'a> Vocabulary<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self, GgufProblem> {
        let tokens = strings(gguf, "tokens")?;
        if tokens.is_empty() {
            return Err(wrong("tokens", "empty"));
        }
        let types = match get(gguf, "token_type") {
            None => vec![token_type::NORMAL; tokens.len()],
            Some(value) => {
                let types = value
                    .as_array()
                    .and_then(Array::to_u64s)
                    .ok_or_else(|| wrong("token_type", "not an array of codes"))?;
                if types.len() != tokens.len() {
                    return Err(wrong(
                        "token_type",
                        format!("{} codes for {} tokens", types.len(), tokens.len()),
                    ));
                }
                types
            }
        };
        Ok(Self { tokens, types })
    }

    fn build(&self, gguf: &Gguf) -> Result<GgufTokenizer, GgufProblem> {
        let model = get(gguf, "model")
            .and_then(Value::as_str)
            .ok_or_else(|| wrong("model", "missing or not text"))?;
        let sentencepiece = match model {
            "gpt2" => false,
            "llama" => true,
            other => {
                return Err(wrong(
                    "model",
                    format!("{other:?} is not supported; gpt2 and llama are"),
                ));
            }
        };
        let unk_token_id = self.id(gguf, "unknown", sentencepiece.then_some(0))?;
        let (mut tokenizer, adds_bos) = if sentencepiece {
            (self.sentencepiece(gguf, unk_token_id)?, true)
        } else {
            self.byte_level(gguf)?
        };
        self.add_special(&mut tokenizer);

        let bos_token_id = self.id(gguf, "bos", sentencepiece.then_some(1))?;
        let eos_token_id = self.id(gguf, "eos", sentencepiece.then_some(2))?;
        let eot_token_id = match self.id(gguf, "eot", None)? {
            Some(id) => Some(id),
            None => END_OF_TURN.iter().find_map(|text| self.control(text)),
        };
        let add_bos_token =
            flag(gguf, "add_bos_token")?.unwrap_or(adds_bos) && bos_token_id.is_some();
        let add_eos_token = flag(gguf, "add_eos_token")?.unwrap_or(false) && eos_token_id.is_some();
        let before = bos_token_id.filter(|_| add_bos_token);
        let after = eos_token_id.filter(|_| add_eos_token);
        if before.is_some() || after.is_some() {
            tokenizer.with_post_processor(Some(self.template(before, after)?));
        }
        let chat_template = match gguf.get("tokenizer.chat_template") {
            None => None,
            Some(value) => {
                let text = value
                    .as_str()
                    .ok_or_else(|| GgufProblem::metadata("tokenizer.chat_template", "not text"))?;
                Some(text.to_owned())
            }
        };
        Ok(GgufTokenizer {
            tokenizer,
            bos_token_id,
            eos_token_id,
            eot_token_id,
            pad_token_id: self.id(gguf, "padding", None)?,
            unk_token_id,
            add_bos_token,
            add_eos_token,
            chat_template,
        })
    }

    /// The id under `NAME_token_id`, or `default` if it exists.
    fn id(
        &self,
        gguf: &Gguf,
        name: &str,
        default: Option<u32>,
    ) -> Result<Option<u32>, GgufProblem> {
        let name = format!("{name}_token_id");
        let exists = |id: &u32| (*id as usize) < self.tokens.len();
        let Some(value) = get(gguf, &name) else {
            return Ok(default.filter(exists));
        };
        // Files without such a token write the largest number.
        if matches!(value, Value::U32(u32::MAX) | Value::I32(-1)) {
            return Ok(None);
        }
        let id = value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .filter(exists);
        id.map(Some).ok_or_else(|| {
            wrong(
                &name,
                format!(
                    "{value:?} is not the id of one of {} tokens",
                    self.tokens.len()
                ),
            )
        })
    }

    fn control(&self, text: &str) -> Option<u32> {
        let mut tokens = self.tokens.iter().zip(&self.types);
        tokens
            .position(|(token, &kind)| kind == token_type::CONTROL && token == text)
            .map(|id| id as u32)
    }

    fn vocab(&self) -> Vocab {
        self.tokens
            .iter()
            .enumerate()
            .map(|(id, token)| (token.clone(), id as u32))
            .collect()
    }

    fn byte_level(&self, gguf: &Gguf) -> Result<(Tokenizer, bool), GgufProblem> {
        let pre = match get(gguf, "pre") {
            None => "default",
            Some(value) => value.as_str().ok_or_else(|| wrong("pre", "not text"))?,
        };
        let pre = pre::by_name(pre)?;
        let vocab = self.vocab();
        let mut merges = Merges::new();
        for (rank, line) in strings(gguf, "merges")?.iter().enumerate() {
            let (left, right) = line
                .split_once(' ')
                .ok_or_else(|| wrong("merges", format!("line {rank}: {line:?} is not a pair")))?;
            if let Some(part) = [left, right, &format!("{left}{right}")]
                .into_iter()
                .find(|part| !vocab.contains_key(*part))
            {
                return Err(wrong(
                    "merges",
                    format!("line {rank}: {part:?} is not a token"),
                ));
            }
            merges.push((left.to_owned(), right.to_owned()));
        }
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .ignore_merges(pre.ignore_merges)
            .build()
            .map_err(library)?;
        let mut tokenizer = Tokenizer::new(bpe);
        pre.apply(&mut tokenizer)?;
        Ok((tokenizer, pre.add_bos))
    }

    fn sentencepiece(&self, gguf: &Gguf, unk: Option<u32>) -> Result<Tokenizer, GgufProblem> {
        let scores = get(gguf, "scores").ok_or_else(|| wrong("scores", "missing"))?;
        let scores = scores
            .as_array()
            .and_then(Array::as_f32s)
            .ok_or_else(|| wrong("scores", "not an array of 32-bit numbers"))?;
        if scores.len() != self.tokens.len() {
            return Err(wrong(
                "scores",
                format!("{} scores for {} tokens", scores.len(), self.tokens.len()),
            ));
        }
        let prefix = flag(gguf, "add_space_prefix")?.unwrap_or(true);
        let vocab = self.vocab();
        let merges = sentencepiece::merges(self.tokens, &self.types, scores, &vocab)?;
        let unk = unk.map(|id| self.tokens[id as usize].clone());
        sentencepiece::tokenizer(vocab, merges, unk, prefix)
    }

    /// Tokens that are found in a text before it is split.
    fn add_special(&self, tokenizer: &mut Tokenizer) {
        let mut seen = HashSet::new();
        let added: Vec<AddedToken> = self
            .tokens
            .iter()
            .zip(&self.types)
            .filter(|(token, kind)| {
                let special = matches!(
                    **kind,
                    token_type::CONTROL | token_type::UNKNOWN | token_type::USER_DEFINED
                );
                special && !token.is_empty() && seen.insert(token.as_str())
            })
            .map(|(token, &kind)| {
                AddedToken::from(token.as_str(), kind != token_type::USER_DEFINED).normalized(false)
            })
            .collect();
        tokenizer.add_tokens(&added);
    }

    fn template(
        &self,
        before: Option<u32>,
        after: Option<u32>,
    ) -> Result<TemplateProcessing, GgufProblem> {
        // Named by role: a token's own text may hold what the template syntax gives a meaning.
        let piece = |name: &str, id: Option<u32>, kind: u8| id.map(|_| format!("{name}:{kind}"));
        let sequence = |letter: &str, kind: u8| {
            [
                piece("bos", before, kind),
                Some(format!("${letter}:{kind}")),
                piece("eos", after, kind),
            ]
            .into_iter()
            .flatten()
        };
        let single: Vec<String> = sequence("A", 0).collect();
        let pair: Vec<String> = single.iter().cloned().chain(sequence("B", 1)).collect();
        let special = [("bos", before), ("eos", after)]
            .into_iter()
            .filter_map(|(name, id)| id.map(|id| (name, id)));
        let special: Result<Vec<SpecialToken>, _> = special
            .map(|(name, id)| {
                SpecialToken::new(
                    name.into(),
                    vec![id],
                    vec![self.tokens[id as usize].clone()],
                )
            })
            .collect();
        TemplateProcessing::builder()
            .try_single(single)
            .and_then(|builder| builder.try_pair(pair))
            .map_err(|error| GgufProblem::Unsupported(error.to_string()))?
            .special_tokens(special.map_err(library)?)
            .build()
            .map_err(|error| GgufProblem::Unsupported(error.to_string()))
    }
}

#[cfg(test)]
mod tests;
