//! New models: from a few sizes to the `config.json` of an architecture.

use frugal_nn::ModelError;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::keys::bad;

/// Sizes that every architecture is asked for.
#[derive(Clone, Copy, Debug)]
pub struct FreshSizes {
    /// Tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
}

/// How an architecture makes the configuration of a new model.
#[derive(Clone, Copy)]
pub struct Fresh {
    /// What it is, in a few words.
    pub about: &'static str,
    /// The keys of its `config.json` from the sizes; those that the user gives in `own` are put over
    /// them, and are there for what follows from them.
    pub config: fn(&FreshSizes, &Own<'_>) -> Result<Value, ModelError>,
}

/// Keys of an architecture's own that a user gave.
pub struct Own<'a> {
    keys: &'a Map<String, Value>,
    source: &'a str,
}

impl<'a> Own<'a> {
    /// These keys; `source` names them in errors.
    pub(crate) fn new(keys: &'a Map<String, Value>, source: &'a str) -> Self {
        Self { keys, source }
    }

    /// The value of a key, or the default.
    ///
    /// # Errors
    /// A value of another kind.
    pub fn or<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T, ModelError> {
        match self.keys.get(key) {
            None => Ok(default),
            Some(value) => serde_json::from_value(value.clone())
                .map_err(|error| self.refuse(key, error.to_string())),
        }
    }

    /// A size from 1 to 2^20, or the default.
    ///
    /// # Errors
    /// Another value.
    pub fn size(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        let size: usize = self.or(key, default)?;
        if size == 0 || size > 1 << 20 {
            let reason = format!("{size} given, but it must be 1 to {}", 1 << 20);
            return Err(self.refuse(key, reason));
        }
        Ok(size)
    }

    /// What is said of a key that does not fit.
    pub fn refuse(&self, key: &str, reason: impl Into<String>) -> ModelError {
        bad(self.source, key, reason)
    }
}

impl FreshSizes {
    /// The keys of a decoder with rotated positions, gated feed-forward layers and tied embeddings.
    ///
    /// # Errors
    /// Heads that do not fit the width.
    pub fn decoder(&self, own: &Own<'_>) -> Result<Map<String, Value>, ModelError> {
        let head_dim = self.head_dim(own)?;
        let keys = json!({
            "hidden_size": self.hidden_size, "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers, "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads, "head_dim": head_dim,
            "max_position_embeddings": self.max_position_embeddings, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
            "attention_bias": false, "mlp_bias": false, "initializer_range": 0.02,
        });
        Ok(keys.as_object().cloned().unwrap_or_default())
    }

    /// Width of a head; two numbers are rotated together.
    ///
    /// # Errors
    /// Heads that do not fit the width.
    pub fn head_dim(&self, own: &Own<'_>) -> Result<usize, ModelError> {
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || width == 0 || !width.is_multiple_of(2 * heads) {
            let reason = format!("{width} must be a multiple of twice the {heads} heads");
            return Err(own.refuse("hidden_size", reason));
        }
        Ok(width / heads)
    }
}
