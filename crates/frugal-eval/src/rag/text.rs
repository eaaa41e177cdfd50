//! Sentences and the words that carry their content.

use std::collections::HashSet;
use std::ops::Range;

/// Words without content of their own: articles, pronouns, prepositions, auxiliaries, question words.
const FUNCTION_WORDS: &str = "a about after all also an and any are as at be because been before \
    being between both but by can could did do does doing down during each few for from further \
    had has have having he her here hers him his how i if in into is it its just may me might more \
    most must my no nor not of off on once only or other our out over own same shall she should so \
    some such than that the their them then there these they this those through to too under until \
    up upon us very was we were what when where which while who whom whose why will with would you \
    your";

/// The bytes of each sentence. One ends with `.`, `!`, `?` or their full-width forms before white
/// space, quotes and brackets behind the mark included, and with an empty line. Ranges follow each
/// other without white space at their ends.
pub fn sentence_ranges(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut ended = false;
    let mut breaks = 0;
    for (at, c) in text.char_indices() {
        if c.is_whitespace() {
            breaks = if c == '\n' { breaks + 1 } else { breaks };
            if ended || breaks > 1 {
                push(text, start..at, &mut found);
                start = at;
                ended = false;
            }
            continue;
        }
        breaks = 0;
        let full_width = matches!(c, '。' | '！' | '？');
        if matches!(c, '.' | '!' | '?') || full_width {
            ended = true;
        } else if !matches!(c, '"' | '\'' | ')' | ']' | '”' | '’' | '」') {
            // A full-width mark ends a sentence without white space behind it.
            if ended && text[..at].ends_with(['。', '！', '？']) {
                push(text, start..at, &mut found);
                start = at;
            }
            ended = false;
        }
    }
    push(text, start..text.len(), &mut found);
    found
}

fn push(text: &str, range: Range<usize>, found: &mut Vec<Range<usize>>) {
    let part = &text[range.clone()];
    let trimmed = part.trim();
    if !trimmed.is_empty() {
        let start = range.start + (part.len() - part.trim_start().len());
        found.push(start..start + trimmed.len());
    }
}

/// The sentences of a text.
///
/// ```
/// use frugal_eval::rag::sentences;
/// assert_eq!(sentences("It is 3.5 m. \"Is it?\" Yes"), ["It is 3.5 m.", "\"Is it?\"", "Yes"]);
/// ```
pub fn sentences(text: &str) -> Vec<&str> {
    let ranges = sentence_ranges(text).into_iter();
    ranges.map(|range| &text[range]).collect()
}

/// The words of a text that carry content, in lower case and in order: letters and digits, without
/// articles, pronouns and the like. Numbers keep their decimals.
pub fn content_words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let function: HashSet<&str> = FUNCTION_WORDS.split_whitespace().collect();
    let inner = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '\'');
    lower
        .split(|c: char| !inner(c))
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()))
        .map(|word| word.strip_suffix("'s").unwrap_or(word))
        .filter(|word| !word.is_empty() && !function.contains(word))
        .map(str::to_owned)
        .collect()
}

/// The share of the content words of `statement` that stand in `context`. A statement without
/// content words has nothing to find, and 0.
pub fn token_recall(statement: &str, context: &str) -> f64 {
    let there: HashSet<String> = content_words(context).into_iter().collect();
    let words = content_words(statement);
    if words.is_empty() {
        return 0.0;
    }
    let found = words.iter().filter(|word| there.contains(*word)).count();
    found as f64 / words.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_with_marks_and_empty_lines_and_not_with_decimals() {
        assert_eq!(sentences("A b. C d! (E?) F"), ["A b.", "C d!", "(E?)", "F"]);
        assert_eq!(
            sentences("# Title\n\nText goes\non. \n"),
            ["# Title", "Text goes\non."]
        );
        assert_eq!(sentences("これ。それ！"), ["これ。", "それ！"]);
        assert!(sentences(" \n\n ").is_empty());
    }

    #[test]
    fn the_share_of_content_words_is_counted_without_articles() {
        assert_eq!(
            content_words("The wing's 3.5-m flutter, and"),
            ["wing", "3.5-m", "flutter"]
        );
        assert_eq!(token_recall("The wing flutters", "a wing"), 0.5);
        assert_eq!(token_recall("It is the", "anything"), 0.0);
    }
}
