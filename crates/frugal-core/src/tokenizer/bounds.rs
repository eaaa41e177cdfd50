//! What a `tokenizer.json` may ask for, checked before a text goes through it: steps that multiply
//! a text's length, and settings that end in a panic or in gigabytes.

use serde_json::Value;

/// Most bytes that the steps of a normaliser or decoder may make of one byte.
const GROWTH: f64 = 4096.0;
/// Longest text that a step may put in front, or into a place.
const INSERTED: usize = 1 << 16;
/// Longest token.
const TOKEN: usize = 1 << 16;
/// Most pieces of a post-processor's template.
const PIECES: usize = 1024;
/// Most characters of a word that WordPiece tries to spell: it is quadratic in them.
const WORD: u64 = 10_000;

/// Checks the parts of a tokenizer.
///
/// # Errors
/// Names the part and what it asks for.
pub(super) fn check(tokenizer: &Value) -> Result<(), String> {
    for part in ["normalizer", "pre_tokenizer", "decoder"] {
        let mut growth = 1.0;
        if let Some(step) = tokenizer.get(part) {
            steps(step, part, &mut growth)?;
        }
    }
    if let Some(step) = tokenizer.get("post_processor") {
        post_processor(step)?;
    }
    model(tokenizer.get("model").unwrap_or(&Value::Null))?;
    let added = tokenizer.get("added_tokens").and_then(Value::as_array);
    let texts = added
        .into_iter()
        .flatten()
        .filter_map(|t| t.get("content")?.as_str());
    token_lengths(texts)
}

fn steps(step: &Value, part: &str, growth: &mut f64) -> Result<(), String> {
    for list in ["normalizers", "pretokenizers", "decoders"] {
        for inner in step
            .get(list)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            steps(inner, part, growth)?;
        }
    }
    let kind = step.get("type").and_then(Value::as_str).unwrap_or_default();
    let text = |key: &str| step.get(key).and_then(Value::as_str).unwrap_or_default();
    let inserted = match kind {
        "Prepend" => text("prepend"),
        "Replace" => text("content"),
        "Metaspace" => text("replacement"),
        "BPEDecoder" => text("suffix"),
        "WordPiece" => text("prefix"),
        _ => "",
    };
    if inserted.len() > INSERTED {
        return Err(format!(
            "{part}: {kind} inserts a text of {} bytes, more than {INSERTED}",
            inserted.len()
        ));
    }
    if kind == "Replace" {
        *growth *= replaced(step.get("pattern"), inserted);
    }
    if kind == "Prepend" || kind == "BPEDecoder" {
        // Pre-tokenized words each get it.
        *growth *= 1.0 + inserted.len() as f64 / 16.0;
    }
    if *growth > GROWTH {
        return Err(format!(
            "{part}: its steps make a text more than {GROWTH} times as long"
        ));
    }
    let zero = step.get("length").and_then(Value::as_u64) == Some(0);
    if kind == "FixedLength" && zero {
        return Err(format!("{part}: FixedLength of 0"));
    }
    Ok(())
}

/// How many times as long a replacement makes a text at most.
fn replaced(pattern: Option<&Value>, content: &str) -> f64 {
    let literal = pattern
        .and_then(|p| p.get("String"))
        .and_then(Value::as_str);
    match literal.map(str::len) {
        // A regular expression may match a single byte, or an empty place beside each.
        None | Some(0) => 1.0 + content.len() as f64,
        Some(length) => (content.len() as f64 / length as f64).max(1.0),
    }
}

fn post_processor(step: &Value) -> Result<(), String> {
    for inner in step
        .get("processors")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        post_processor(inner)?;
    }
    for key in ["single", "pair"] {
        let pieces = step.get(key).and_then(Value::as_array).map_or(0, Vec::len);
        if pieces > PIECES {
            return Err(format!(
                "post_processor: {pieces} pieces, more than {PIECES}"
            ));
        }
    }
    for token in step
        .get("special_tokens")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let ids = token
            .1
            .get("ids")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        if ids > PIECES {
            return Err(format!(
                "post_processor: {ids} ids for one special token, more than {PIECES}"
            ));
        }
    }
    Ok(())
}

fn model(model: &Value) -> Result<(), String> {
    let word = model
        .get("max_input_chars_per_word")
        .and_then(Value::as_u64);
    if let Some(chars) = word.filter(|chars| *chars > WORD) {
        return Err(format!(
            "model: max_input_chars_per_word is {chars}, more than {WORD}"
        ));
    }
    match model.get("vocab") {
        Some(Value::Object(vocab)) => token_lengths(vocab.keys().map(String::as_str)),
        Some(Value::Array(pieces)) => {
            token_lengths(pieces.iter().filter_map(|piece| piece.get(0)?.as_str()))
        }
        _ => Ok(()),
    }
}

fn token_lengths<'a>(mut tokens: impl Iterator<Item = &'a str>) -> Result<(), String> {
    match tokens.find(|token| token.len() > TOKEN) {
        None => Ok(()),
        Some(token) => Err(format!(
            "a token of {} bytes, more than {TOKEN}",
            token.len()
        )),
    }
}
