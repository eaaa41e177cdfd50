//! Settings of pairwise ranking prompting.

use serde::{Deserialize, Serialize};

/// How a ranking is made of comparisons of N candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrpAlgorithm {
    /// Every pair, N (N - 1) calls; the initial order matters for ties only.
    Allpair,
    /// Heapsort, in the order of N log N calls.
    Sorting,
    /// So many passes of bubble sort from the end of the list, in the order of N calls each.
    Sliding(usize),
}

impl Default for PrpAlgorithm {
    /// The paper's Sliding-10.
    fn default() -> Self {
        Self::Sliding(10)
    }
}

/// How the model is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrpMode {
    /// By the log-likelihood of `Passage A` and `Passage B`.
    #[default]
    Scoring,
    /// By greedy decoding; what names neither passage, or both, is a tie.
    Generation,
}

/// How a model compares passages.
#[derive(Clone, Debug, PartialEq)]
pub struct PrpOptions {
    /// How it is asked.
    pub mode: PrpMode,
    /// Tokens of a passage that are shown; longer ones are cut.
    pub passage_tokens: usize,
    /// Whether the prompt is a message of a conversation; where unset, if the model has a chat
    /// template.
    pub chat: Option<bool>,
    /// Most tokens of an answer in [`PrpMode::Generation`].
    pub max_tokens: usize,
    /// Tokens that are computed together.
    pub batch_tokens: usize,
    /// Tokens of beginnings of prompts that are kept for further comparisons of a query.
    pub kept_tokens: usize,
}

impl Default for PrpOptions {
    fn default() -> Self {
        Self {
            mode: PrpMode::default(),
            passage_tokens: 96,
            chat: None,
            max_tokens: 8,
            batch_tokens: 2048,
            kept_tokens: 4096,
        }
    }
}
