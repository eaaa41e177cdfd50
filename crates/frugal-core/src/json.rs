//! JSON as Python's `json` writes it.

/// JSON, or what Python writes in its place: `Infinity`, `-Infinity` and `NaN` become texts.
///
/// # Errors
/// What is neither.
pub fn parse(bytes: &[u8]) -> Result<serde_json::Value, serde_json::Error> {
    serde_json::from_slice(bytes).or_else(|error| {
        let text = std::str::from_utf8(bytes).ok();
        let found = text.and_then(|text| serde_json::from_str(&quoted_numbers(text)).ok());
        found.ok_or(error)
    })
}

/// The text with quotes around the numbers that JSON has no form for.
fn quoted_numbers(text: &str) -> String {
    let (mut out, mut rest, mut in_text) = (String::with_capacity(text.len()), text, false);
    while let Some(next) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"]
            .into_iter()
            .find(|word| !in_text && rest.starts_with(word));
        if let Some(word) = word {
            out.extend(["\"", word, "\""]);
            rest = &rest[word.len()..];
            continue;
        }
        // What is escaped ends no text.
        let len = match (in_text, next) {
            (true, '\\') => rest.char_indices().nth(2).map_or(rest.len(), |(at, _)| at),
            _ => next.len_utf8(),
        };
        in_text ^= next == '"';
        out.push_str(&rest[..len]);
        rest = &rest[len..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::parse;
    use serde_json::json;

    #[test]
    fn numbers_that_python_writes_and_json_has_not_are_texts() {
        let found = parse(
            br#"{"a": [0.0, Infinity], "b": -Infinity, "Infinity": "a \" Infinity \\", "c": NaN}"#,
        );
        let expected = json!({"a": [0.0, "Infinity"], "b": "-Infinity", "Infinity": "a \" Infinity \\", "c": "NaN"});
        assert_eq!(found.unwrap(), expected);
        for broken in ["{\"a\": Infinity", "{\"a\": \"\\", "[nan]"] {
            assert!(parse(broken.as_bytes()).is_err(), "{broken}");
        }
    }
}
