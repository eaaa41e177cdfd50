//! Formats: which keys each has and how they are told apart.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `messages`: a list of objects with `role` and `content`.
    Messages,
    /// `conversations`: a list of objects with `from` and `value`, turned into messages.
    Sharegpt,
    /// `prompt`, `chosen`, `rejected`.
    Preference,
    /// `prompt` and `completion`.
    PromptCompletion,
    /// `instruction`, `output` and perhaps `input`, turned into prompt and completion.
    Alpaca,
    /// `anchor`, `positive`, `negative`.
    Triplet,
    /// `anchor` and `positive`.
    Pair,
    /// `text`, `label` and perhaps `text_pair`.
    Classification,
    /// `tokens`, the words of a text, and `ner_tags`, what is said of each.
    TokenClassification,
    /// `text`.
    Text,
}

impl Format {
    /// All formats, the more specific first: the first one whose keys are there is chosen.
    pub const ALL: [Self; 10] = [
        Self::Messages,
        Self::Sharegpt,
        Self::Preference,
        Self::PromptCompletion,
        Self::Alpaca,
        Self::Triplet,
        Self::Pair,
        Self::Classification,
        Self::TokenClassification,
        Self::Text,
    ];

    /// Its name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Sharegpt => "sharegpt",
            Self::Preference => "preference",
            Self::PromptCompletion => "prompt_completion",
            Self::Alpaca => "alpaca",
            Self::Triplet => "triplet",
            Self::Pair => "pair",
            Self::Classification => "classification",
            Self::TokenClassification => "token_classification",
            Self::Text => "text",
        }
    }

    /// Keys that every record must have.
    pub fn required(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &["messages"],
            Self::Sharegpt => &["conversations"],
            Self::Preference => &["prompt", "chosen", "rejected"],
            Self::PromptCompletion => &["prompt", "completion"],
            Self::Alpaca => &["instruction", "output"],
            Self::Triplet => &["anchor", "positive", "negative"],
            Self::Pair => &["anchor", "positive"],
            Self::Classification => &["text", "label"],
            Self::TokenClassification => &["tokens", "ner_tags"],
            Self::Text => &["text"],
        }
    }

    /// Keys that a record may have besides.
    pub fn optional(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &["system", "tools", "documents", "chat_template_kwargs"],
            Self::Sharegpt => &["system", "tools"],
            Self::PromptCompletion => &["system", "history", "tools", "chat_template_kwargs"],
            Self::Alpaca => &["input", "system", "history", "tools"],
            Self::Classification => &["text_pair"],
            _ => &[],
        }
    }

    /// Whether all required keys are there.
    pub(super) fn is_there(self, has: &dyn Fn(&str) -> bool) -> bool {
        let mut keys = self.required().iter();
        keys.all(|key| present(key, has).is_some())
    }

    /// Keys that would change what is learned from a record of this format and that nothing here
    /// makes use of: they are refused, because leaving them out would train something else.
    pub(super) fn refused(self) -> impl Iterator<Item = &'static str> {
        let own: &[&[&str]] = match self {
            Self::Messages | Self::Sharegpt => &[ANSWERS, SIGNALS, CALLS, THOUGHTS, CONVERSATION],
            Self::PromptCompletion | Self::Alpaca => {
                &[ANSWERS, SIGNALS, CALLS, THOUGHTS, INSTRUCTION]
            }
            Self::Classification => &[&["question", "context"]],
            Self::TokenClassification => &[],
            Self::Text => &[ANSWERS],
            Self::Preference => &[PREFERENCE],
            Self::Pair | Self::Triplet => &[&["score", "label", "negatives"]],
        };
        let common = [WEIGHTS, MEDIA];
        common
            .into_iter()
            .chain(own.iter().copied())
            .flatten()
            .copied()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How much of a record is learned, or which part of it.
const WEIGHTS: &[&str] = &[
    "weight",
    "weights",
    "sample_weight",
    "loss_weight",
    "loss_mask",
    "mask",
    "train",
    "trainable",
    "training",
    "train_on_input",
    "train_on_inputs",
];

/// What is read besides the text.
const MEDIA: &[&str] = &["image", "images", "video", "videos", "audio", "audios"];

/// Answers that were preferred or were not.
const ANSWERS: &[&str] = &[
    "chosen",
    "rejected",
    "rejected_response",
    "rejected_messages",
    "kto_tag",
];

/// What was thought of an answer.
const SIGNALS: &[&str] = &["label", "score", "scores", "reward", "rewards"];

const CALLS: &[&str] = &["functions", "function_call", "tool_calls"];

const THOUGHTS: &[&str] = &["reasoning_content", "reasoning", "thinking", "prefix"];

const CONVERSATION: &[&str] = &["history", "parallel_tool_calls", "tool_choice"];

const INSTRUCTION: &[&str] = &["context", "passage", "documents", "suffix"];

const PREFERENCE: &[&str] = &[
    "margin",
    "system",
    "system_prompt",
    "system_message",
    "history",
    "tools",
];

/// Other names under which well-known data sets hold a key.
fn synonyms(key: &str) -> &'static [&'static str] {
    match key {
        "text" => &["sentence", "content", "sentence1", "premise"],
        "text_pair" => &["sentence2", "hypothesis"],
        "label" => &["labels", "class"],
        "tokens" => &["words"],
        "ner_tags" => &["labels", "tags"],
        "prompt" => &["question"],
        "completion" => &["response", "answer"],
        "system" => &["system_prompt", "system_message"],
        _ => &[],
    }
}

/// The name under which `key` is there, its own first.
pub(super) fn present<'a>(key: &'a str, has: &dyn Fn(&str) -> bool) -> Option<&'a str> {
    std::iter::once(key)
        .chain(synonyms(key).iter().copied())
        .find(|name| has(name))
}

/// The first format whose required keys are all there.
pub(super) fn detect(has: &dyn Fn(&str) -> bool) -> Option<Format> {
    Format::ALL.into_iter().find(|format| format.is_there(has))
}

/// One sentence on what keys are known.
pub(super) fn accepted() -> String {
    let formats = Format::ALL.into_iter().map(|f| {
        let optional: Vec<String> = f.optional().iter().map(|k| format!(" (+ {k})")).collect();
        format!("{}{} for {f}", f.required().join(" + "), optional.concat())
    });
    format!("Accepted keys: {}", formats.collect::<Vec<_>>().join("; "))
}

/// Names of all keys that a column can be mapped to.
pub(super) fn keys() -> Vec<&'static str> {
    let mut keys: Vec<&str> = Format::ALL
        .into_iter()
        .flat_map(|f| f.required().iter().chain(f.optional()).copied())
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}
