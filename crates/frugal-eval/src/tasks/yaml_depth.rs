//! How deep a YAML file nests, before it is parsed: the parser's time grows with the square of it.

/// Task files nest less than ten deep.
const LIMIT: usize = 1000;

/// Counts brackets that are open and indicators at the start of a line. Quotes are not looked at, so
/// that a bracket in a text may count.
///
/// # Errors
/// Names the line that nests deeper than any task does.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let mut open = 0_usize;
    for (number, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let nested = |b: &&u8| matches!(b, b'-' | b'?' | b' ');
        let indicators = line
            .iter()
            .take_while(nested)
            .filter(|b| **b != b' ')
            .count();
        let mut deepest = open;
        for byte in line {
            match byte {
                b'[' | b'{' => open += 1,
                b']' | b'}' => open = open.saturating_sub(1),
                _ => {}
            }
            deepest = deepest.max(open);
        }
        if deepest.max(indicators) > LIMIT {
            return Err(format!("line {} nests more than {LIMIT} deep", number + 1));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_nests_200000_deep_is_refused_before_it_is_parsed() {
        for text in [
            "[".repeat(200_000),
            "{a: ".repeat(200_000),
            "- ".repeat(200_000),
            "? ".repeat(200_000),
            format!("task: x\nlist: {}", "[\n".repeat(200_000)),
        ] {
            let error = check(text.as_bytes()).unwrap_err();
            assert!(error.contains("more than 1000 deep"), "{error}");
        }
        let usual = "task: x\ndoc_to_text: \"{{question}} [\"\nmetric_list:\n  - metric: acc\n";
        assert_eq!(check(usual.as_bytes()), Ok(()));
    }
}
