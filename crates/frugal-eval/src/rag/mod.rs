//! Answers from retrieved passages: the six measures of RAGAS, and measures that need no judge.
//!
//! A measure asks a [`Judge`] for verdicts and computes a number of them. The judge is a language
//! model ([`LanguageModelJudge`], for example behind an endpoint) or [`ProxyJudge`], which compares
//! words and vectors, costs nothing and is the same each time; what it gives is named `proxy`
//! wherever it is shown.
//!
//! Definitions follow the source of ragas (`src/ragas/metrics`, class defaults).

mod judge;
mod language_model;
mod measures;
mod overlap;
mod proxy;
mod sample;
mod text;

pub use judge::{Correctness, Judge, JudgeError};
pub use language_model::LanguageModelJudge;
pub use measures::{
    RagScores, answer_correctness, average_precision, f_measure, faithfulness, score, share,
};
pub use overlap::{exact_match, id_precision, id_recall, token_f1};
pub use proxy::{Embed, ProxyJudge, cosine};
pub use sample::RagSample;
pub use text::{content_words, sentence_ranges, sentences, token_recall};
