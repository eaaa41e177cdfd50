//! Reading the keys of a `config.json`: typed, with the key named in every error.

use frugal_nn::ModelError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Keys of every configuration class that change no result here: names, what calls return, what a
/// tokenizer or a generation reads elsewhere.
pub const WITHOUT_EFFECT: &[&str] = &[
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cls_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "sep_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// Keys of any class that would change results, with the values at which they do not.
pub const REFUSED: &[(&str, &str)] = &[
    ("is_encoder_decoder", "false"),
    ("is_decoder", "false"),
    ("add_cross_attention", "false"),
    ("cross_attention_hidden_size", "null"),
    ("pruned_heads", "{}"),
];

/// The same for models that read from left to right: the reference looks for these in any
/// configuration, though no class has them.
pub const REFUSED_OF_DECODERS: &[(&str, &str)] = &[("is_causal", "true")];

/// Keys of the rotary settings, which `rope` reads.
pub const ROPE: &[&str] = &["rope_parameters", "rope_scaling", "rope_theta"];

/// Sizes that a decoder's file must give.
pub const DECODER_SIZES: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
];

/// What is made for each block must not grow with a number in the file.
const MAX_LAYERS: usize = 4096;

/// A number of blocks.
///
/// # Errors
/// More than any model has.
pub fn layers(key: &str, count: Size, source: &str) -> Result<usize, ModelError> {
    if count.0 <= MAX_LAYERS {
        return Ok(count.0);
    }
    let reason = format!("{} blocks are more than any known model has", count.0);
    Err(bad(source, key, reason))
}

/// A positive whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Size(pub usize);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match value.as_u64() {
            // A bound that no real model reaches keeps products of sizes from overflowing.
            Some(n) if n > 0 && n < (1 << 31) => Ok(Self(n as usize)),
            _ => Err(serde::de::Error::custom(format!(
                "expected a positive whole number, found {value}"
            ))),
        }
    }
}

/// A token id; what is no id is none, as in the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct TokenId(pub Option<u32>);

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(Self(value.as_u64().and_then(|id| u32::try_from(id).ok())))
    }
}

/// A bad value of a key.
pub fn bad(source: &str, key: &str, reason: impl Into<String>) -> ModelError {
    ModelError::Config {
        source_name: source.into(),
        key: key.into(),
        reason: reason.into(),
    }
}

/// A number from 0 up that single precision can hold, as computing goes on in it.
///
/// # Errors
/// Another number, with its key.
pub fn not_negative(key: &str, value: f64, source: &str) -> Result<f64, ModelError> {
    within(key, value, source, value >= 0.0, "0 or more")
}

/// A number above 0 that single precision can hold and tell from 0.
///
/// # Errors
/// Another number, with its key.
pub fn positive(key: &str, value: f64, source: &str) -> Result<f64, ModelError> {
    let is_more = value as f32 > 0.0;
    within(key, value, source, is_more, "above 0")
}

/// The deviation of what is drawn for a new tensor, 0.02 unless the file says otherwise.
///
/// # Errors
/// What is no number above 0.
pub fn initializer_range(raw: &Value, source: &str) -> Result<f32, ModelError> {
    let key = "initializer_range";
    let Some(value) = raw.get(key).filter(|value| !value.is_null()) else {
        return Ok(0.02);
    };
    let number = value.as_f64();
    let number =
        number.ok_or_else(|| bad(source, key, format!("expected a number, found {value}")))?;
    positive(key, number, source).map(|std| std as f32)
}

/// A number in a message; one of hundreds of digits by its power of ten.
pub(crate) fn shown(value: f64) -> String {
    match value.abs() >= 1e16 {
        true => format!("{value:e}"),
        false => value.to_string(),
    }
}

fn within(
    key: &str,
    value: f64,
    source: &str,
    fits: bool,
    wanted: &str,
) -> Result<f64, ModelError> {
    if fits && (value as f32).is_finite() {
        return Ok(value);
    }
    let value = shown(value);
    let reason = format!("{value} given, but it must be {wanted} and a number of single precision");
    Err(bad(source, key, reason))
}

/// The keys of an architecture's own structure, of which `required` must be there.
///
/// # Errors
/// A missing key, or a value of the wrong kind.
pub fn read<T: DeserializeOwned>(
    raw: &Value,
    source: &str,
    required: &[&str],
) -> Result<T, ModelError> {
    let missing = |key: &&&str| raw.get(**key).is_none_or(Value::is_null);
    if let Some(key) = required.iter().find(missing) {
        return Err(bad(source, key, "the key is missing"));
    }
    serde_path_to_error::deserialize(raw).map_err(|error| {
        let path = error.path().to_string();
        bad(source, &path, error.into_inner().to_string())
    })
}

/// The names of the keys that a structure reads.
pub fn names<T: Default + Serialize>() -> Vec<String> {
    match serde_json::to_value(T::default()) {
        Ok(Value::Object(keys)) => keys.into_iter().map(|(key, _)| key).collect(),
        _ => Vec::new(),
    }
}

/// Whether a value is the one at which its key does nothing.
pub fn is_neutral(value: &Value, neutral: &str) -> bool {
    let neutral: Value = serde_json::from_str(neutral).unwrap_or(Value::Null);
    match (value.as_f64(), neutral.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => *value == neutral,
    }
}

/// The kinds of blocks that `layer_types` lists: for each, whether it attends within a window only.
///
/// # Errors
/// A list of another length, or a kind that is neither full nor sliding attention.
pub fn sliding_layers(
    layer_types: Option<&[String]>,
    layers: usize,
    source: &str,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ModelError> {
    let key = "layer_types";
    let Some(kinds) = layer_types else {
        return Ok((0..layers).map(default).collect());
    };
    if kinds.len() != layers {
        let reason = format!(
            "{} entries for the {layers} blocks of `num_hidden_layers`",
            kinds.len()
        );
        return Err(bad(source, key, reason));
    }
    let of = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(bad(
            source,
            key,
            format!("`{other}` is not supported; full_attention and sliding_attention are"),
        )),
    };
    kinds.iter().map(of).collect()
}

/// Where the file does not give the width of a head, the heads share that of the model.
///
/// # Errors
/// A width that they cannot share evenly.
pub fn shared_head_dim(
    hidden_size: usize,
    heads: usize,
    key: &str,
    source: &str,
) -> Result<usize, ModelError> {
    if hidden_size.is_multiple_of(heads) {
        return Ok(hidden_size / heads);
    }
    let reason = format!("{heads} heads cannot share a width of {hidden_size} evenly");
    Err(bad(source, key, reason))
}
