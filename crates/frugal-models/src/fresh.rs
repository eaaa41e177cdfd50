//! New models: from a few sizes to the `config.json` of an architecture.

use frugal_nn::ModelError;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::keys::bad;
use crate::rope::check_keys;

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

    /// A size from 1 to [`MAX_SIZE`], or the default.
    ///
    /// # Errors
    /// Another value.
    pub fn size(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        let size: usize = self.or(key, default)?;
        check_size(key, size as u64, self.source)?;
        Ok(size)
    }

    /// Whether the user gave a key.
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// What is said of a key that does not fit.
    pub fn refuse(&self, key: &str, reason: impl Into<String>) -> ModelError {
        bad(self.source, key, reason)
    }
}

/// No size of a new model is larger: products of three of them count in 64 bits.
pub const MAX_SIZE: u64 = 1 << 20;

/// Whole numbers that are no sizes.
pub(crate) const NO_SIZES: [&str; 5] = [
    "rope_theta",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
];

fn check_size(key: &str, size: u64, source: &str) -> Result<(), ModelError> {
    if (1..=MAX_SIZE).contains(&size) {
        return Ok(());
    }
    let reason = format!("{size} given, but it must be 1 to {MAX_SIZE}");
    Err(bad(source, key, reason))
}

impl FreshSizes {
    pub(crate) fn by_key(&mut self) -> [(&'static str, &mut usize); 7] {
        [
            ("vocab_size", &mut self.vocab_size),
            ("hidden_size", &mut self.hidden_size),
            ("intermediate_size", &mut self.intermediate_size),
            ("num_hidden_layers", &mut self.num_hidden_layers),
            ("num_attention_heads", &mut self.num_attention_heads),
            ("num_key_value_heads", &mut self.num_key_value_heads),
            ("max_position_embeddings", &mut self.max_position_embeddings),
        ]
    }

    /// These, with one of them doubled.
    pub(crate) fn doubled(&self) -> [(&'static str, Self); 7] {
        std::array::from_fn(|i| {
            let mut sizes = *self;
            let (key, size) = &mut sizes.by_key()[i];
            let key = *key;
            **size *= 2;
            (key, sizes)
        })
    }

    /// Bounds every size before anything is made of one, of `own` too: whole numbers there are sizes.
    /// Rotary settings have the keys of their kind.
    ///
    /// # Errors
    /// [`ModelError::Config`] that names the key.
    pub(crate) fn check(&self, own: &Map<String, Value>, source: &str) -> Result<(), ModelError> {
        let mut sizes = *self;
        for (key, size) in sizes.by_key() {
            if NO_SIZES.contains(&key) {
                continue;
            }
            check_size(key, *size as u64, source)?;
        }
        for key in ["rope_scaling", "rope_parameters"] {
            if let Some(settings) = own.get(key).and_then(Value::as_object) {
                check_keys(key, settings, source)?;
            }
        }
        let whole = own
            .iter()
            .filter(|(key, _)| !NO_SIZES.contains(&key.as_str()))
            .filter_map(|(key, value)| Some((key, value.as_u64()?)));
        for (key, size) in whole {
            if size > MAX_SIZE {
                check_size(key, size, source)?;
            }
        }
        Ok(())
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_rotary_settings_that_no_kind_has_were_passed_over() {
        let check = |settings: Value| {
            let keys = settings.as_object().cloned().unwrap_or_default();
            check_keys("rope_scaling", &keys, "shape")
        };
        let yarn = "original_max_position_embeddings";
        for good in [
            json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}),
            json!({"type": "yarn", "factor": 2.0, "beta_fast": 16.0, yarn: 8}),
            json!({"full_attention": {"rope_type": "default"}, "sliding_attention": {}}),
            json!({}),
        ] {
            assert!(check(good.clone()).is_ok(), "{good}");
        }
        let linear = |key: &str| json!({"rope_type": "linear", "factor": 2.0, key: 1});
        let misspelt = json!({"rope_type": "yarn", "factor": 2.0, "beta_fst": 1});
        let nested = json!({"full_attention": {"rope_type": "default", "foo": 1}});
        for (wrong, named) in [
            (linear("foo"), "`foo`"),
            (linear("beta_fast"), "`beta_fast`"),
            (misspelt, "did you mean `beta_fast`"),
            (nested, "`foo`"),
        ] {
            let error = check(wrong).unwrap_err().to_string();
            assert!(
                error.contains(named) && error.contains("rope_scaling"),
                "{error}"
            );
        }
    }
}
