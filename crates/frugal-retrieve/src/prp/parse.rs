//! Which passage a generated answer names.

use super::judge::Answer;

/// The first of `Passage A` and `Passage B` in a text, or a letter that stands alone at its start.
pub(super) fn parse(text: &str) -> Answer {
    let text = text.to_lowercase();
    let words: Vec<&str> = text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let named = words.windows(2).find_map(|pair| match pair {
        ["passage", letter] => letter_of(letter),
        _ => None,
    });
    named
        .or_else(|| letter_of(words.first()?))
        .unwrap_or(Answer::Neither)
}

fn letter_of(word: &str) -> Option<Answer> {
    match word {
        "a" => Some(Answer::A),
        "b" => Some(Answer::B),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_the_first_passage_that_is_named() {
        let cases = [
            ("Passage A", Answer::A),
            (" passage b.", Answer::B),
            ("**Passage B** is better than Passage A", Answer::B),
            ("B", Answer::B),
            ("A: because", Answer::A),
            ("Neither", Answer::Neither),
            ("Passage", Answer::Neither),
            ("Both are about wings", Answer::Neither),
            ("", Answer::Neither),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }
}
