//! "Did you mean": the nearest known name to one that was mistyped.

/// The candidate most like `asked`, if one is like it at all.
pub fn did_you_mean<'a>(
    asked: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let asked = asked.to_lowercase();
    let score = |c: &str| strsim::jaro_winkler(&asked, &c.to_lowercase());
    candidates
        .into_iter()
        .map(|c| (score(c), c))
        .filter(|(s, _)| *s > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::did_you_mean;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let names = ["lora", "prompt-tuning", "full"];
        assert_eq!(did_you_mean("lroa", names), Some("lora"));
        assert_eq!(did_you_mean("Prompt_Tuning", names), Some("prompt-tuning"));
        assert_eq!(did_you_mean("xyzzy", names), None);
    }
}
