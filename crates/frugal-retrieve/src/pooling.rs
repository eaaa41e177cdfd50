//! From the hidden states of a text to one vector, as sentence-transformers' `Pooling` module does
//! (`sentence_transformers/sentence_transformer/modules/pooling.py` of version 6.2; older files, which
//! have a flag for each mode, are read as well).

use std::path::Path;

use burn::prelude::*;
use frugal_nn::{SequenceLayout, mean_pool, select_rows};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::RetrieveError;

/// What one part of the vector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolingMode {
    /// The hidden state of the first token that counts.
    Cls,
    /// The largest of each feature over all tokens.
    Max,
    /// The mean of all tokens.
    Mean,
    /// The sum of all tokens over the square root of their number.
    #[serde(rename = "mean_sqrt_len_tokens")]
    MeanSqrtLen,
    /// The mean of all tokens with weights that rise from 1 to their number.
    WeightedMean,
    /// The hidden state of the last token.
    LastToken,
}

/// Keys of the module's `config.json`, in the order in which their vectors are concatenated.
const MODES: [(&str, &str, PoolingMode); 6] = [
    ("pooling_mode_cls_token", "cls", PoolingMode::Cls),
    ("pooling_mode_max_tokens", "max", PoolingMode::Max),
    ("pooling_mode_mean_tokens", "mean", PoolingMode::Mean),
    (
        "pooling_mode_mean_sqrt_len_tokens",
        "mean_sqrt_len_tokens",
        PoolingMode::MeanSqrtLen,
    ),
    (
        "pooling_mode_weightedmean_tokens",
        "weightedmean",
        PoolingMode::WeightedMean,
    ),
    (
        "pooling_mode_lasttoken",
        "lasttoken",
        PoolingMode::LastToken,
    ),
];

/// How the vector of a text is made of its tokens'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentencePooling {
    /// The parts, one behind another; at least one.
    pub modes: Vec<PoolingMode>,
    /// Whether the tokens of a prompt count.
    pub include_prompt: bool,
}

impl Default for SentencePooling {
    /// What sentence-transformers makes of a model that comes without the module.
    fn default() -> Self {
        Self {
            modes: vec![PoolingMode::Mean],
            include_prompt: true,
        }
    }
}

impl SentencePooling {
    /// Reads the module's `config.json`.
    ///
    /// # Errors
    /// Keys that are not known, values of another type, no mode at all.
    pub fn read(path: &Path, config: &Value) -> Result<Self, RetrieveError> {
        let wrong = |reason: String| RetrieveError::Module {
            path: path.into(),
            reason,
        };
        let Some(config) = config.as_object() else {
            return Err(wrong("not an object".into()));
        };
        let mut found = Self {
            modes: Vec::new(),
            include_prompt: true,
        };
        let mut named = Vec::new();
        // Where the modes are named, the flags of older files do not count.
        let is_named = config.contains_key("pooling_mode");
        for (key, value) in config {
            let mode = MODES.iter().find(|(name, _, _)| name == key);
            match (key.as_str(), value, mode) {
                ("word_embedding_dimension" | "embedding_dimension", _, _) => {}
                ("include_prompt", Value::Bool(include), _) => found.include_prompt = *include,
                ("pooling_mode", Value::String(name), _) => named.push(name.as_str()),
                ("pooling_mode", Value::Array(names), _) => {
                    named.extend(names.iter().filter_map(Value::as_str));
                }
                (_, _, Some(_)) if is_named => {}
                (_, Value::Bool(true), Some((_, name, _))) => named.push(*name),
                (_, Value::Bool(false) | Value::Null, Some(_)) => {}
                _ => {
                    return Err(wrong(format!(
                        "`{key} = {value}` is not among what is computed here"
                    )));
                }
            }
        }
        for name in &named {
            if !MODES.iter().any(|(_, short, _)| short == name) {
                let known: Vec<&str> = MODES.iter().map(|(_, short, _)| *short).collect();
                return Err(wrong(format!(
                    "`pooling_mode` {name:?} is none of {}",
                    known.join(", ")
                )));
            }
        }
        let place = |name: &str| MODES.iter().position(|(_, short, _)| *short == name);
        if !is_named {
            named.sort_by_key(|name| place(name));
        }
        found.modes = named
            .iter()
            .filter_map(|name| place(name))
            .map(|i| MODES[i].2)
            .collect();
        if found.modes.is_empty() {
            return Err(wrong("no mode of pooling is on".into()));
        }
        Ok(found)
    }

    /// Vectors `[sequences, modes · d_model]` of hidden states `[tokens, d_model]`. `skipped` tokens
    /// at the start of each sequence are those of a prompt that does not count.
    pub(crate) fn pool(
        &self,
        hidden_states: Tensor<2>,
        layout: &SequenceLayout,
        skipped: &[usize],
    ) -> Tensor<2> {
        let parts: Vec<Tensor<2>> = self
            .modes
            .iter()
            .map(|mode| one(*mode, hidden_states.clone(), layout, skipped))
            .collect();
        match <[Tensor<2>; 1]>::try_from(parts) {
            Ok([one]) => one,
            Err(parts) => Tensor::cat(parts, 1),
        }
    }
}

fn one(mode: PoolingMode, x: Tensor<2>, layout: &SequenceLayout, skipped: &[usize]) -> Tensor<2> {
    let bounds = &layout.cu_seqlens;
    // At least one token stays.
    let spans = || {
        let sequences = bounds.windows(2).zip(skipped);
        sequences.map(|(w, skip)| (w[0] + skip).min(w[1] - 1)..w[1])
    };
    let each = |f: &dyn Fn(Tensor<2>) -> Tensor<2>| {
        Tensor::cat(spans().map(|span| f(x.clone().slice(span))).collect(), 0)
    };
    match mode {
        PoolingMode::Cls => {
            let first: Vec<usize> = spans().map(|span| span.start).collect();
            select_rows(x, &first)
        }
        PoolingMode::LastToken => select_rows(x, &layout.last_tokens()),
        PoolingMode::Mean if skipped.iter().all(|s| *s == 0) => mean_pool(x, bounds),
        PoolingMode::Mean => each(&|rows| rows.mean_dim(0)),
        PoolingMode::Max => each(&|rows| rows.max_dim(0)),
        PoolingMode::MeanSqrtLen => each(&|rows| {
            let length = rows.dims()[0] as f32;
            rows.sum_dim(0) / length.sqrt()
        }),
        PoolingMode::WeightedMean => {
            // Weights count from the start of the text, with the prompt that is left out.
            let weighted = spans().zip(bounds.windows(2)).map(|(span, w)| {
                let weights: Vec<f32> = span.clone().map(|i| (i - w[0] + 1) as f32).collect();
                let sum: f32 = weights.iter().sum();
                let rows = x.clone().slice(span);
                let data = TensorData::new(weights, [rows.dims()[0], 1]);
                let weights = Tensor::<2>::from_data(data, &rows.device());
                (rows * weights).sum_dim(0) / sum
            });
            Tensor::cat(weighted.collect(), 0)
        }
    }
}
