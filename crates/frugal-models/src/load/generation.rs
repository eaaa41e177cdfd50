//! What `generation_config.json` says of how a text is written.

use std::path::Path;

use serde_json::{Value, json};

use super::read_json;

const FILE: &str = "generation_config.json";

/// Keys by which `generate` of transformers writes another text than the likeliest tokens one by
/// one, and that are not followed here, with the value at which each does nothing beside null.
const KEYS: [(&str, f64); 24] = [
    ("bad_words_ids", NULL),
    ("begin_suppress_tokens", NULL),
    ("constraints", NULL),
    ("diversity_penalty", 0.0),
    ("dola_layers", NULL),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("exponential_decay_length_penalty", NULL),
    ("force_words_ids", NULL),
    ("forced_bos_token_id", NULL),
    ("forced_eos_token_id", NULL),
    ("guidance_scale", 1.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("num_beam_groups", 1.0),
    ("num_beams", 1.0),
    ("penalty_alpha", 0.0),
    ("repetition_penalty", 1.0),
    ("sequence_bias", NULL),
    ("stop_strings", NULL),
    ("suppress_tokens", NULL),
    ("token_healing", NULL),
    ("watermarking_config", NULL),
];
/// No number does nothing.
const NULL: f64 = f64::NAN;

/// One line on the keys of a model's `generation_config.json` that change what is written and are
/// not followed; `None` where there are none. A file that is no JSON is the tokenizer's matter.
pub(super) fn not_followed(folder: &Path) -> Option<String> {
    let path = folder.join(FILE);
    let config = path.is_file().then(|| read_json(&path).ok())??;
    let does_nothing = |value: &Value, neutral: f64| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        value => value.as_f64() == Some(neutral),
    };
    let found: Vec<String> = KEYS
        .into_iter()
        .filter_map(|(key, neutral)| {
            let value = config.get(key)?;
            let said = match value {
                Value::Array(_) | Value::Object(_) => json!("..."),
                value => value.clone(),
            };
            (!does_nothing(value, neutral)).then(|| format!("`{key}` ({said})").replace('"', ""))
        })
        .collect();
    let by_flag = match config.get("repetition_penalty").and_then(Value::as_f64) {
        Some(penalty) if penalty != 1.0 => {
            format!("; `--repetition-penalty {penalty}` has the effect of the one")
        }
        _ => String::new(),
    };
    (!found.is_empty()).then(|| {
        format!(
            "{}: not followed, though transformers' `generate` writes other texts by it: {}{by_flag}",
            path.display(),
            found.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_would_change_greedy_text_are_named_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let said = |config: Value| {
            std::fs::write(folder.path().join(FILE), config.to_string()).unwrap();
            not_followed(folder.path())
        };
        // What `GenerationConfig().to_dict()` of transformers 5 and 4 writes, and what sampling has.
        let neutral = json!({
            "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "guidance_scale": null,
            "encoder_repetition_penalty": 1.0, "forced_eos_token_id": null, "bad_words_ids": null, "suppress_tokens": [],
            "min_length": 0, "min_new_tokens": null, "token_healing": false, "penalty_alpha": null, "diversity_penalty": 0.0,
            "do_sample": true, "temperature": 0.6, "top_k": 50, "top_p": 0.9, "eos_token_id": [1, 2], "length_penalty": 1.0,
        });
        assert_eq!(said(neutral), None);
        let text = said(json!({"repetition_penalty": 1.1, "num_beams": 4, "bad_words_ids": [[3]], "token_healing": true})).unwrap();
        assert!(!text.contains('\n'));
        for part in [
            FILE,
            "`repetition_penalty` (1.1)",
            "`num_beams` (4)",
            "`bad_words_ids` (...)",
            "`token_healing` (true)",
            "--repetition-penalty 1.1",
        ] {
            assert!(text.contains(part), "{text}");
        }
        for key in [
            "min_length",
            "forced_eos_token_id",
            "suppress_tokens",
            "no_repeat_ngram_size",
        ] {
            let text = said(json!({ key: 5 })).unwrap();
            assert!(text.contains(key) && !text.contains("--rep"), "{text}");
        }
        std::fs::remove_file(folder.path().join(FILE)).unwrap();
        assert_eq!(not_followed(folder.path()), None);
    }
}
