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

/// Changes `tokenizer.json` as the class would. Returns whether anything changed.
///
/// # Errors
/// Says which setting is not supported.
pub(super) fn apply(
    tokenizer: &mut Value,
    config: &Map<String, Value>,
) -> Result<bool, &'static str> {
    if config.get("split_special_tokens") == Some(&json!(true)) {
        return Err(
            "`split_special_tokens` is true, which is not supported: special tokens in a text become those tokens here",
        );
    }
    let class = config.get("tokenizer_class").and_then(Value::as_str);
    let class = class.map(|name| name.strip_suffix("Fast").unwrap_or(name));
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
