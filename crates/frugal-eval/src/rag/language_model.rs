//! A language model as judge, for example behind an endpoint.

use frugal_core::data::Message;
use serde_json::Value;

use super::judge::{Correctness, Judge, JudgeError};
use super::proxy::{Embed, cosine};
use crate::tasks::{Generation, LanguageModel, ToContinue};

/// Questions that are made of an answer for its relevancy, as in the reference.
const STRICTNESS: usize = 3;
/// Longest answer of the judge in tokens.
const LONGEST: usize = 1024;

/// Asks a language model for JSON; an answer that cannot be read is asked for once more.
pub struct LanguageModelJudge<'a> {
    model: &'a mut dyn LanguageModel,
    embed: Embed<'a>,
}

impl<'a> LanguageModelJudge<'a> {
    /// A judge of a model that writes and an encoder for similarities.
    pub fn new(model: &'a mut dyn LanguageModel, embed: Embed<'a>) -> Self {
        Self { model, embed }
    }

    fn write(&mut self, message: &str, seed: u64) -> Result<String, JudgeError> {
        let failed = |e: &dyn std::fmt::Display| JudgeError::Failed(e.to_string());
        let context = self
            .model
            .chat(&[Message::new("user", message)])
            .map_err(|e| failed(&e))?;
        let generation = Generation {
            max_tokens: LONGEST,
            ..Generation::default()
        };
        let request = ToContinue {
            context: &context,
            seed,
        };
        let mut text = String::new();
        self.model
            .generate_until(&[request], &generation, &mut |_, written| {
                text = written.text;
                true
            })
            .map_err(|e| failed(&e))?;
        Ok(text)
    }

    /// Asks twice at most.
    fn ask<T>(
        &mut self,
        message: &str,
        seed: u64,
        read: impl Fn(&Value) -> Option<T>,
        expected: &str,
    ) -> Result<T, JudgeError> {
        let mut answer = String::new();
        for again in 0..2 {
            answer = self.write(message, seed + again)?;
            if let Some(found) = json(&answer).as_ref().and_then(&read) {
                return Ok(found);
            }
        }
        Err(JudgeError::Unreadable {
            reason: format!("expected {expected}"),
            answer: answer.chars().take(200).collect(),
        })
    }

    fn verdicts(&mut self, message: &str, count: usize) -> Result<Vec<bool>, JudgeError> {
        let expected = format!("a JSON list of {count} numbers, each 0 or 1");
        let message = format!("{message}\n\nAnswer with {expected}, and nothing else.");
        self.ask(&message, 0, |value| verdicts(value, count), &expected)
    }
}

/// The JSON value in an answer, which may stand in prose or in a code block.
fn json(answer: &str) -> Option<Value> {
    let starts = answer.match_indices(['[', '{']).map(|(at, _)| at);
    starts.into_iter().find_map(|at| {
        let mut values = serde_json::Deserializer::from_str(&answer[at..]).into_iter();
        values.next()?.ok()
    })
}

fn verdict(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(verdict) => Some(*verdict),
        Value::Number(number) => match number.as_i64()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        },
        _ => None,
    }
}

fn verdicts(value: &Value, count: usize) -> Option<Vec<bool>> {
    let list = value.as_array().filter(|list| list.len() == count)?;
    list.iter().map(verdict).collect()
}

fn texts(value: &Value) -> Option<Vec<String>> {
    let list = value.as_array()?.iter();
    list.map(|text| text.as_str().map(str::to_owned)).collect()
}

fn numbered(statements: &[String]) -> String {
    let lines = statements.iter().enumerate();
    let lines = lines.map(|(i, text)| format!("{}. {text}", i + 1));
    lines.collect::<Vec<_>>().join("\n")
}

impl Judge for LanguageModelJudge<'_> {
    fn name(&self) -> &str {
        "language model"
    }

    fn statements(&mut self, question: &str, answer: &str) -> Result<Vec<String>, JudgeError> {
        if answer.trim().is_empty() {
            return Ok(Vec::new());
        }
        let expected = "a JSON list of strings";
        let message = format!(
            "Break the answer down into simple statements. Each must be understandable alone: use no pronouns. \
             Do not add anything.\n\nQuestion: {question}\nAnswer: {answer}\n\n\
             Answer with {expected}, and nothing else."
        );
        self.ask(&message, 0, texts, expected)
    }

    fn verify(
        &mut self,
        statements: &[String],
        contexts: &[String],
    ) -> Result<Vec<bool>, JudgeError> {
        if statements.is_empty() {
            return Ok(Vec::new());
        }
        let message = format!(
            "Judge for each statement whether it can be inferred directly from the context: 1 if it can, 0 if not.\
             \n\nContext:\n{}\n\nStatements:\n{}",
            contexts.join("\n"),
            numbered(statements)
        );
        self.verdicts(&message, statements.len())
    }

    fn classify(
        &mut self,
        question: &str,
        answer: &[String],
        reference: &[String],
    ) -> Result<Correctness, JudgeError> {
        let mut supported = |statements: &[String], by: &[String]| {
            if statements.is_empty() {
                return Ok(0);
            }
            let message = format!(
                "Judge for each statement whether it is supported by the facts given: 1 if it is, 0 if not.\
                 \n\nQuestion: {question}\nFacts:\n{}\n\nStatements:\n{}",
                numbered(by),
                numbered(statements)
            );
            let verdicts = self.verdicts(&message, statements.len())?;
            Ok(verdicts.into_iter().filter(|v| *v).count())
        };
        let true_positive = supported(answer, reference)?;
        Ok(Correctness {
            true_positive,
            false_positive: answer.len() - true_positive,
            false_negative: reference.len() - supported(reference, answer)?,
        })
    }

    fn relevancy(&mut self, question: &str, answer: &str) -> Result<Option<f64>, JudgeError> {
        let expected = "a JSON object {\"question\": string, \"noncommittal\": 0 or 1}";
        let message = format!(
            "Write a question that the given answer answers, and say whether the answer is noncommittal (evasive, \
             vague, \"I do not know\"): 1 if it is, 0 if not.\n\nAnswer: {answer}\n\n\
             Answer with {expected}, and nothing else."
        );
        let read = |value: &Value| {
            let text = value.get("question")?.as_str()?.to_owned();
            Some((text, verdict(value.get("noncommittal")?)?))
        };
        let mut found = Vec::new();
        for seed in 0..STRICTNESS as u64 {
            found.push(self.ask(&message, 10 * seed, read, expected)?);
        }
        if found.iter().all(|(text, _)| text.trim().is_empty()) {
            return Ok(None);
        }
        if found.iter().all(|(_, noncommittal)| *noncommittal) {
            return Ok(Some(0.0));
        }
        let mut sum = 0.0;
        for (text, _) in &found {
            sum += self.similarity(question, text)?;
        }
        Ok(Some(sum / found.len() as f64))
    }

    fn is_useful(
        &mut self,
        question: &str,
        context: &str,
        reference: &str,
    ) -> Result<bool, JudgeError> {
        let message = format!(
            "Judge whether the context was useful in arriving at the answer: 1 if it was, 0 if not.\
             \n\nQuestion: {question}\nContext: {context}\nAnswer: {reference}"
        );
        Ok(self.verdicts(&message, 1)?.contains(&true))
    }

    fn similarity(&mut self, a: &str, b: &str) -> Result<f64, JudgeError> {
        match (self.embed)(&[a, b])?.as_slice() {
            [a, b] => Ok(cosine(a, b)),
            other => Err(JudgeError::Failed(format!(
                "{} vectors of 2 texts",
                other.len()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::measures::score;
    use super::super::sample::RagSample;
    use super::*;
    use crate::tasks::{Continuations, ModelFailure, Sink, Written};

    /// Gives prepared answers in turn.
    struct Prepared {
        answers: Vec<&'static str>,
        asked: Vec<String>,
    }

    impl LanguageModel for Prepared {
        fn fingerprint(&self) -> &str {
            "prepared"
        }
        fn loglikelihood(
            &mut self,
            _: &[Continuations<'_>],
            _: Sink<'_, Vec<(f64, bool)>>,
        ) -> Result<(), ModelFailure> {
            Err("not asked".into())
        }
        fn loglikelihood_rolling(
            &mut self,
            _: &[&str],
            _: Sink<'_, (f64, usize)>,
        ) -> Result<(), ModelFailure> {
            Err("not asked".into())
        }
        fn generate_until(
            &mut self,
            requests: &[ToContinue<'_>],
            _: &Generation,
            answer: Sink<'_, Written>,
        ) -> Result<(), ModelFailure> {
            self.asked.push(requests[0].context.to_owned());
            if self.answers.is_empty() {
                return Err("nothing more to say".into());
            }
            answer(0, self.answers.remove(0).into());
            Ok(())
        }
        fn chat(&self, messages: &[Message]) -> Result<String, ModelFailure> {
            Ok(messages[0].content.clone())
        }
    }

    fn same(texts: &[&str]) -> Result<Vec<Vec<f32>>, JudgeError> {
        Ok(texts.iter().map(|_| vec![1.0]).collect())
    }

    #[test]
    fn answers_in_prose_are_read_and_unreadable_ones_asked_for_again() {
        let mut model = Prepared {
            answers: vec![
                // Faithfulness: statements, then verdicts of which the first cannot be read.
                "Sure:\n```json\n[\"A is b.\", \"C is d.\"]\n```",
                "I think so",
                "[1, 0]",
                // Relevancy, three times.
                "{\"question\": \"q\", \"noncommittal\": 0}",
                "{\"question\": \"q\", \"noncommittal\": 1}",
                "{\"question\": \"q\", \"noncommittal\": 0}",
                // Precision of two passages.
                "[0]",
                "[1]",
                // Recall: claims and verdicts.
                "[\"A is b.\"]",
                "[true]",
                // Correctness: both lists, then both directions.
                "[\"A is b.\", \"C is d.\"]",
                "[\"A is b.\"]",
                "[1, 0]",
                "[1]",
            ],
            asked: Vec::new(),
        };
        let mut embed = |texts: &[&str]| same(texts);
        let sample = RagSample {
            question: "q".into(),
            answer: "A is b. C is d.".into(),
            contexts: vec!["x".into(), "y".into()],
            reference: "A is b.".into(),
        };
        let scores = score(
            &mut LanguageModelJudge::new(&mut model, &mut embed),
            &sample,
        );
        assert_eq!(scores.faithfulness, Some(0.5));
        assert_eq!(scores.answer_relevancy, Some(1.0));
        assert!((scores.context_precision.unwrap() - 0.5).abs() < 1e-9);
        assert_eq!(scores.context_recall, Some(1.0));
        // F = 2/3, similarity 1: 0.75 * 2/3 + 0.25.
        assert!((scores.answer_correctness.unwrap() - 0.75).abs() < 1e-12);
        assert_eq!((scores.failures, model.answers.len()), (0, 0));
        assert!(
            model.asked[1].contains("1. A is b.\n2. C is d."),
            "{}",
            model.asked[1]
        );
    }

    #[test]
    fn a_judge_that_cannot_be_read_gives_no_number() {
        let mut model = Prepared {
            answers: vec!["[1, 0]", "[2]"],
            asked: Vec::new(),
        };
        let mut embed = |texts: &[&str]| same(texts);
        let mut judge = LanguageModelJudge::new(&mut model, &mut embed);
        let error = judge.is_useful("q", "c", "r").unwrap_err().to_string();
        assert!(error.contains("a JSON list of 1 numbers"), "{error}");
    }
}
