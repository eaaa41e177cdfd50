//! A judge without a language model: it compares words and vectors. Deterministic and cheap; what it
//! cannot see is a statement in other words, a negation, a number that is wrong among right words.

use std::collections::HashMap;

use super::judge::{Correctness, Judge, JudgeError};
use super::text::{content_words, sentences, token_recall};

/// Share of content words from which a sentence supports a statement.
const RECALL: f64 = 0.7;
/// Cosine from which a sentence supports a statement, or two statements are the same.
const COSINE: f64 = 0.75;

/// Vectors of texts, for example by a sentence encoder.
pub type Embed<'a> = &'a mut dyn FnMut(&[&str]) -> Result<Vec<Vec<f32>>, JudgeError>;

/// Compares words, and vectors where it has an encoder; each text is embedded once.
pub struct ProxyJudge<'a> {
    embed: Embed<'a>,
    vectors: HashMap<String, Vec<f32>>,
}

/// The cosine of two vectors; 0 where one is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths == 0.0 {
        return 0.0;
    }
    dot(a, b) / lengths
}

impl<'a> ProxyJudge<'a> {
    /// A judge with this encoder.
    pub fn new(embed: Embed<'a>) -> Self {
        Self {
            embed,
            vectors: HashMap::new(),
        }
    }

    /// Embeds what is not yet known, in one batch.
    fn learn(&mut self, texts: &[&str]) -> Result<(), JudgeError> {
        let mut new: Vec<&str> = texts
            .iter()
            .copied()
            .filter(|text| !self.vectors.contains_key(*text))
            .collect();
        new.sort_unstable();
        new.dedup();
        if new.is_empty() {
            return Ok(());
        }
        let vectors = (self.embed)(&new)?;
        if vectors.len() != new.len() {
            let (found, asked) = (vectors.len(), new.len());
            let reason = format!("{found} vectors of {asked} texts");
            return Err(JudgeError::Failed(reason));
        }
        let known = new.into_iter().map(str::to_owned).zip(vectors);
        self.vectors.extend(known);
        Ok(())
    }

    fn cosine_of(&self, a: &str, b: &str) -> f64 {
        match (self.vectors.get(a), self.vectors.get(b)) {
            (Some(a), Some(b)) => cosine(a, b),
            _ => 0.0,
        }
    }

    fn supports(&self, sentence: &str, statement: &str) -> bool {
        token_recall(statement, sentence) >= RECALL || self.cosine_of(statement, sentence) >= COSINE
    }
}

impl Judge for ProxyJudge<'_> {
    fn name(&self) -> &str {
        "proxy"
    }

    fn statements(&mut self, _: &str, answer: &str) -> Result<Vec<String>, JudgeError> {
        let told = sentences(answer).into_iter();
        // "Yes." and the like state nothing that words could support.
        let told = told.filter(|sentence| !content_words(sentence).is_empty());
        Ok(told.map(str::to_owned).collect())
    }

    fn verify(
        &mut self,
        statements: &[String],
        contexts: &[String],
    ) -> Result<Vec<bool>, JudgeError> {
        let parts: Vec<&str> = contexts.iter().flat_map(|c| sentences(c)).collect();
        let texts: Vec<&str> = statements.iter().map(String::as_str).collect();
        self.learn(&texts)?;
        self.learn(&parts)?;
        let supported = |statement: &&str| parts.iter().any(|part| self.supports(part, statement));
        Ok(texts.iter().map(supported).collect())
    }

    fn classify(
        &mut self,
        _: &str,
        answer: &[String],
        reference: &[String],
    ) -> Result<Correctness, JudgeError> {
        let all: Vec<&str> = answer.iter().chain(reference).map(String::as_str).collect();
        self.learn(&all)?;
        // Pairs by falling similarity, each statement used once.
        let mut pairs = Vec::new();
        for (i, told) in answer.iter().enumerate() {
            for (j, right) in reference.iter().enumerate() {
                if self.supports(told, right) || self.supports(right, told) {
                    pairs.push((self.cosine_of(told, right), i, j));
                }
            }
        }
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let (mut told, mut right) = (vec![false; answer.len()], vec![false; reference.len()]);
        let mut counted = Correctness::default();
        for (_, i, j) in pairs {
            if !told[i] && !right[j] {
                (told[i], right[j]) = (true, true);
                counted.true_positive += 1;
            }
        }
        counted.false_positive = answer.len() - counted.true_positive;
        counted.false_negative = reference.len() - counted.true_positive;
        Ok(counted)
    }

    fn relevancy(&mut self, question: &str, answer: &str) -> Result<Option<f64>, JudgeError> {
        if answer.trim().is_empty() {
            return Ok(None);
        }
        self.similarity(question, answer).map(Some)
    }

    fn is_useful(&mut self, _: &str, context: &str, reference: &str) -> Result<bool, JudgeError> {
        // A short reference ("1931", a name) stands in a sentence or not; a longer one is supported
        // in part by the passages that are of use.
        let context = [context.to_owned()];
        let claims = self.statements("", reference)?;
        Ok(self.verify(&claims, &context)?.contains(&true))
    }

    fn similarity(&mut self, a: &str, b: &str) -> Result<f64, JudgeError> {
        self.learn(&[a, b])?;
        Ok(self.cosine_of(a, b))
    }
}

#[cfg(test)]
mod tests {
    use super::super::measures::score;
    use super::super::sample::RagSample;
    use super::*;

    /// A vector of letters, which makes equal texts equal and others unlike.
    fn letters(texts: &[&str]) -> Result<Vec<Vec<f32>>, JudgeError> {
        let of = |text: &&str| {
            let mut vector = vec![0.0; 26];
            for byte in text.to_lowercase().bytes().filter(u8::is_ascii_lowercase) {
                vector[usize::from(byte - b'a')] += 1.0;
            }
            vector
        };
        Ok(texts.iter().map(of).collect())
    }

    #[test]
    fn an_answer_that_the_passages_support_in_half_is_half_faithful() {
        let mut embed = |texts: &[&str]| {
            // Only words are to count here.
            Ok(texts.iter().map(|_| vec![0.0_f32]).collect())
        };
        let sample = RagSample {
            question: "When was the bridge opened?".into(),
            answer: "The bridge opened in 1931. It fell into the river next year.".into(),
            contexts: vec![
                "Ships pass below it every day.".into(),
                "The Otis bridge was opened to traffic in 1931.".into(),
            ],
            reference: "The bridge opened in 1931.".into(),
        };
        let scores = score(&mut ProxyJudge::new(&mut embed), &sample);
        // Of the answer's two statements the first is supported ("bridge", "opened", "1931").
        assert_eq!(scores.faithfulness, Some(0.5));
        assert_eq!(scores.context_recall, Some(1.0));
        assert!((scores.context_precision.unwrap() - 0.5).abs() < 1e-9);
        // TP 1, FP 1, FN 0: F = 2/3; the similarity is 0.
        assert!((scores.answer_correctness.unwrap() - 0.5).abs() < 1e-9);
        assert_eq!(scores.failures, 0);
    }

    #[test]
    fn an_empty_answer_is_left_out_and_not_zero() {
        let mut embed = |texts: &[&str]| letters(texts);
        let sample = RagSample {
            question: "Who?".into(),
            reference: "Otis Reed.".into(),
            ..RagSample::default()
        };
        let scores = score(&mut ProxyJudge::new(&mut embed), &sample);
        assert_eq!((scores.faithfulness, scores.answer_relevancy), (None, None));
        assert_eq!(scores.context_recall, Some(0.0));
        assert_eq!(scores.answer_correctness, Some(0.0));
    }

    #[test]
    fn statements_are_matched_one_to_one() {
        let mut embed = |texts: &[&str]| letters(texts);
        let mut judge = ProxyJudge::new(&mut embed);
        let twice = ["Otis Reed built ships.", "Otis Reed built ships."].map(str::to_owned);
        let counted = judge.classify("", &twice, &twice[..1]).unwrap();
        assert_eq!(
            (
                counted.true_positive,
                counted.false_positive,
                counted.false_negative
            ),
            (1, 1, 0)
        );
    }

    #[test]
    fn an_encoder_that_fails_is_counted_and_no_number_made_up() {
        let mut embed = |_: &[&str]| Err(JudgeError::Failed("no encoder".into()));
        let sample = RagSample {
            question: "q".into(),
            answer: "Something said.".into(),
            contexts: vec!["Something said.".into()],
            reference: "Something said.".into(),
        };
        let scores = score(&mut ProxyJudge::new(&mut embed), &sample);
        assert!(
            scores.named().iter().all(|(_, value)| value.is_none()),
            "{scores:?}"
        );
        assert_eq!(scores.failures, 5);
    }
}
