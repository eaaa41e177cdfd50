//! The text that a model answers: instructions, numbered passages, question, within a budget of tokens.

use thiserror::Error;

use super::passage::Passage;

/// What the model is told.
pub(super) const INSTRUCTIONS: &str = "Answer the question using only the numbered passages below. \
    Cite the passages that you use by their numbers in brackets, for example [1]. \
    If the answer is not in the passages, say that they do not contain it.";

/// Least number of words of a passage that is cut to fit.
const LEAST_WORDS: usize = 12;

/// How a prompt is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptOptions {
    /// Most tokens of the prompt, with everything that a chat template adds.
    pub budget: usize,
    /// What the model is told.
    pub instructions: String,
}

impl PromptOptions {
    /// The usual instructions within a budget.
    pub fn within(budget: usize) -> Self {
        Self {
            budget,
            instructions: INSTRUCTIONS.into(),
        }
    }
}

/// A passage of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct UsedPassage {
    /// Its place among the passages that were given.
    pub index: usize,
    /// Its text in the prompt.
    pub text: String,
    /// Whether its end was cut off.
    pub cut: bool,
}

/// A prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct BuiltPrompt {
    /// The text, without chat template.
    pub text: String,
    /// Its tokens, with what the template adds.
    pub tokens: usize,
    /// The passages in it, numbered from 1 in this order.
    pub passages: Vec<UsedPassage>,
    /// How many passages found no room.
    pub dropped: usize,
}

/// A prompt that cannot be built.
#[derive(Debug, Error)]
pub enum PromptError<E> {
    /// Question and instructions alone are over the budget.
    #[error(
        "instructions and question have {tokens} tokens and leave no room for passages in {budget}: shorten the question or give more room"
    )]
    TooLong {
        /// Their tokens.
        tokens: usize,
        /// The budget.
        budget: usize,
    },
    /// Counting tokens.
    #[error(transparent)]
    Count(#[from] E),
}

pub(crate) fn render(instructions: &str, question: &str, passages: &[(&str, &str)]) -> String {
    let mut text = format!("{instructions}\n\n");
    for (i, (title, passage)) in passages.iter().enumerate() {
        let head = match title.trim() {
            "" => String::new(),
            title => format!("{title}\n"),
        };
        text.push_str(&format!("[{}] {head}{}\n\n", i + 1, passage.trim()));
    }
    text.push_str(&format!("Question: {}", question.trim()));
    text
}

/// Passages in their order, as many as fit: the first that does not fit whole is cut after a word if
/// at least a dozen words of it fit, and those behind it are left out. `count` counts the tokens of a
/// prompt as the model will read it.
///
/// # Errors
/// A question that is too long by itself, what `count` meets.
pub fn build_prompt<E: std::error::Error>(
    question: &str,
    passages: &[Passage],
    options: &PromptOptions,
    count: &mut dyn FnMut(&str) -> Result<usize, E>,
) -> Result<BuiltPrompt, PromptError<E>> {
    let mut used: Vec<UsedPassage> = Vec::new();
    let render = |used: &[UsedPassage], last: Option<(&str, &str)>| {
        let mut parts: Vec<(&str, &str)> = used
            .iter()
            .map(|u| (passages[u.index].title.as_str(), u.text.as_str()))
            .collect();
        parts.extend(last);
        render(&options.instructions, question, &parts)
    };
    let mut text = render(&[], None);
    let mut tokens = count(&text)?;
    if tokens > options.budget {
        return Err(PromptError::TooLong {
            tokens,
            budget: options.budget,
        });
    }
    for (index, passage) in passages.iter().enumerate() {
        let ends = word_ends(&passage.text);
        let mut fitting = |words: usize| -> Result<Option<(String, usize)>, E> {
            let part = &passage.text[..ends[words - 1]];
            let text = render(&used, Some((&passage.title, part)));
            let tokens = count(&text)?;
            Ok((tokens <= options.budget).then_some((text, tokens)))
        };
        let Some(all) = std::num::NonZeroUsize::new(ends.len()).map(usize::from) else {
            continue;
        };
        let mut best = fitting(all)?.map(|found| (all, found));
        if best.is_none() {
            // Most words that fit; more words are never fewer tokens by more than a few, and every
            // candidate is counted itself.
            let (mut low, mut high) = (LEAST_WORDS, all);
            while low < high {
                let middle = low + (high - low) / 2;
                match fitting(middle)? {
                    Some(found) => {
                        best = Some((middle, found));
                        low = middle + 1;
                    }
                    None => high = middle,
                }
            }
        }
        let Some((words, (new, counted))) = best else {
            break;
        };
        (text, tokens) = (new, counted);
        used.push(UsedPassage {
            index,
            text: passage.text[..ends[words - 1]].trim().to_owned(),
            cut: words < all,
        });
        if words < all {
            break;
        }
    }
    let dropped = match used.last() {
        Some(last) => passages.len() - last.index - 1,
        None => passages.len(),
    };
    Ok(BuiltPrompt {
        text,
        tokens,
        passages: used,
        dropped,
    })
}

/// The byte after each word.
fn word_ends(text: &str) -> Vec<usize> {
    let at = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
    let words = text.split_whitespace();
    words.map(|word| at(word) + word.len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn passage(title: &str, words: usize) -> Passage {
        Passage {
            title: title.into(),
            text: vec!["word"; words].join(" "),
            ..Passage::default()
        }
    }

    fn build(passages: &[Passage], budget: usize) -> Result<BuiltPrompt, PromptError<Infallible>> {
        let options = PromptOptions {
            budget,
            instructions: "Answer.".into(),
        };
        // Each word is a token.
        build_prompt("Why so?", passages, &options, &mut |text| {
            Ok(text.split_whitespace().count())
        })
    }

    #[test]
    fn passages_are_numbered_and_named() {
        let built = build(&[passage("T", 2), passage("", 1)], 100).unwrap();
        assert_eq!(
            built.text,
            "Answer.\n\n[1] T\nword word\n\n[2] word\n\nQuestion: Why so?"
        );
        assert_eq!((built.tokens, built.dropped), (10, 0));
    }

    #[test]
    fn the_budget_is_kept_to_the_token_and_what_is_cut_is_said() {
        let passages = [passage("", 20), passage("", 50), passage("", 5)];
        // 4 of the frame, 21 of the first, and of the second its number and 15 words.
        let built = build(&passages, 41).unwrap();
        assert_eq!((built.tokens, built.dropped), (41, 1));
        let lengths: Vec<(usize, bool)> = built
            .passages
            .iter()
            .map(|p| (p.text.split(' ').count(), p.cut))
            .collect();
        assert_eq!(lengths, [(20, false), (15, true)]);
        // A rest of less than a dozen words is left out.
        let built = build(&passages, 36).unwrap();
        assert_eq!((built.passages.len(), built.dropped), (1, 2));
        // Exactly all.
        let built = build(&passages, 4 + 21 + 51 + 6).unwrap();
        assert_eq!((built.passages.len(), built.dropped), (3, 0));
    }

    #[test]
    fn a_question_that_leaves_no_room_is_refused() {
        let error = build(&[passage("", 3)], 3).unwrap_err().to_string();
        assert!(error.contains("have 4 tokens"), "{error}");
        assert!(build(&[], 4).unwrap().passages.is_empty());
    }
}
