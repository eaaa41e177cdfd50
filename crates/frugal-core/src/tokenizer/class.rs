//! Settings in `tokenizer_config.json` that its class puts in place of those in `tokenizer.json`.

use serde_json::{Map, Value, json};

/// Classes with BERT's normalizer: their settings, and the normalizer's names of them.
const BERT: (&[&str], &[(&str, &str)]) = (
    &["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"],
    &[
        ("do_lower_case", "lowercase"),
        ("strip_accents", "strip_accents"),
        ("tokenize_chinese_chars", "handle_chinese_chars"),
    ],
);
/// Classes that split by bytes.
const BYTE_LEVEL: (&[&str], &[(&str, &str)]) = (
    &[
        "BartTokenizer",
        "GPT2Tokenizer",
        "Qwen2Tokenizer",
        "RobertaTokenizer",
    ],
    &[("add_prefix_space", "add_prefix_space")],
);

/// Classes that split by bytes and read words that come one by one only with a space in front.
const SPACED_WORDS: &[&str] = &[
    "BartTokenizer",
    "BlenderbotTokenizer",
    "DebertaTokenizer",
    "GPT2Tokenizer",
    "LEDTokenizer",
    "LongformerTokenizer",
    "RobertaTokenizer",
];

/// Classes that tell a model which tokens are of the second text of a pair.
const TOKEN_TYPES: &[&str] = &[
    "BertTokenizer",
    "CanineTokenizer",
    "ConvBertTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DPRReaderTokenizer",
    "DebertaTokenizer",
    "DebertaV2Tokenizer",
    "ElectraTokenizer",
    "FNetTokenizer",
    "LayoutLMTokenizer",
    "LayoutLMv2Tokenizer",
    "LxmertTokenizer",
    "MarkupLMTokenizer",
    "MobileBertTokenizer",
    "TapasTokenizer",
];
/// The class of models whose files name none.
const OF_MODELS: &[(&str, &str)] = &[
    ("bert", "BertTokenizer"),
    ("distilbert", "BertTokenizer"),
    ("electra", "BertTokenizer"),
    ("gpt2", "GPT2Tokenizer"),
    ("mpnet", "MPNetTokenizer"),
    ("qwen2", "Qwen2Tokenizer"),
    ("roberta", "RobertaTokenizer"),
];

/// The class that reads a tokenizer, without `Fast`: that of `tokenizer_config.json`, of
/// `config.json`, or of the model's type.
pub(super) fn name<'a>(
    config: &'a Map<String, Value>,
    model: &'a Map<String, Value>,
) -> Option<&'a str> {
    let text = |file: &'a Map<String, Value>, key| file.get(key).and_then(Value::as_str);
    let named = text(config, "tokenizer_class").or_else(|| text(model, "tokenizer_class"));
    let named = named.map(|name| name.strip_suffix("Fast").unwrap_or(name));
    named.or_else(|| {
        let of_type = text(model, "model_type")?;
        let found = OF_MODELS.iter().find(|(name, _)| *name == of_type);
        found.map(|(_, class)| *class)
    })
}

/// Whether the model is given `token_type_ids`: where `model_input_names` says so, else where the
/// class does.
pub(super) fn token_types(config: &Map<String, Value>, class: Option<&str>) -> bool {
    match config.get("model_input_names").and_then(Value::as_array) {
        Some(names) => names.contains(&json!("token_type_ids")),
        None => class.is_some_and(|name| TOKEN_TYPES.contains(&name)),
    }
}

/// Whether words that come one by one are read as behind a space: `add_prefix_space=True`, without
/// which these classes refuse `is_split_into_words`.
pub(super) fn spaced_words(class: Option<&str>) -> bool {
    class.is_some_and(|name| SPACED_WORDS.contains(&name))
}

/// Changes `tokenizer.json` as the class would. Returns whether anything changed.
///
/// # Errors
/// Says which setting is not supported.
pub(super) fn apply(
    tokenizer: &mut Value,
    config: &Map<String, Value>,
    class: Option<&str>,
) -> Result<bool, &'static str> {
    if config.get("split_special_tokens") == Some(&json!(true)) {
        return Err(
            "`split_special_tokens` is true, which is not supported: special tokens in a text become those tokens here",
        );
    }
    let mut changed = false;
    for ((classes, settings), part, kind) in [
        (BERT, "normalizer", "BertNormalizer"),
        (BYTE_LEVEL, "pre_tokenizer", "ByteLevel"),
    ] {
        if class.is_none_or(|name| !classes.contains(&name)) {
            continue;
        }
        for (setting, field) in settings {
            let given = config.get(*setting).filter(|value| value.is_boolean());
            if let (Some(value), Some(part)) = (given, tokenizer.get_mut(part)) {
                changed |= set(part, kind, field, value);
            }
        }
    }
    Ok(changed)
}

/// Sets a field of every step of this kind.
fn set(step: &mut Value, kind: &str, field: &str, value: &Value) -> bool {
    let mut changed = false;
    for list in ["normalizers", "pretokenizers"] {
        if let Some(steps) = step.get_mut(list).and_then(Value::as_array_mut) {
            for step in steps {
                changed |= set(step, kind, field, value);
            }
        }
    }
    let is_kind = step.get("type").and_then(Value::as_str) == Some(kind);
    if is_kind && step.get(field) != Some(value) {
        step[field] = value.clone();
        changed = true;
    }
    changed
}
