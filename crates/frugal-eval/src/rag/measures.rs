//! Numbers of verdicts.

use serde::Serialize;

use super::judge::{Correctness, Judge, JudgeError};
use super::sample::RagSample;

/// Weights of F measure and similarity in answer correctness.
const WEIGHTS: [f64; 2] = [0.75, 0.25];
/// Keeps the average precision of no useful passage defined, as in the reference.
const EPSILON: f64 = 1e-10;

/// The six measures of one sample. `None` where a measure is not defined (an answer without
/// statements) or the judge failed; means leave such samples out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct RagScores {
    /// Share of the answer's statements that follow from the passages.
    pub faithfulness: Option<f64>,
    /// Similarity of the question to questions that the answer answers.
    pub answer_relevancy: Option<f64>,
    /// Average precision of the passages over their ranks.
    pub context_precision: Option<f64>,
    /// Share of the reference's statements that follow from the passages.
    pub context_recall: Option<f64>,
    /// Similarity of answer and reference.
    pub answer_similarity: Option<f64>,
    /// F measure over statements and similarity, weighted 3 to 1.
    pub answer_correctness: Option<f64>,
    /// Verdicts that the judge failed to give.
    pub failures: usize,
}

impl RagScores {
    /// Names and values, in the order in which they are shown.
    #[must_use]
    pub fn named(&self) -> [(&'static str, Option<f64>); 6] {
        [
            ("faithfulness", self.faithfulness),
            ("answer_relevancy", self.answer_relevancy),
            ("context_precision", self.context_precision),
            ("context_recall", self.context_recall),
            ("answer_similarity", self.answer_similarity),
            ("answer_correctness", self.answer_correctness),
        ]
    }
}

/// Average precision over ranks, `Σ_k P(k) v_k / (Σ_k v_k + 1e-10)`: where the useful passages
/// stand counts, not only how many there are.
///
/// ```
/// use frugal_eval::rag::average_precision;
/// assert!((average_precision(&[true, false, true, false]) - 0.83333).abs() < 1e-5);
/// ```
pub fn average_precision(useful: &[bool]) -> f64 {
    let (mut sum, mut seen) = (0.0, 0.0);
    for (rank, _) in useful.iter().enumerate().filter(|(_, useful)| **useful) {
        seen += 1.0;
        sum += seen / (rank + 1) as f64;
    }
    sum / (seen + EPSILON)
}

/// Share of verdicts that are true; `None` without any.
pub fn share(verdicts: &[bool]) -> Option<f64> {
    let yes = verdicts.iter().filter(|verdict| **verdict).count();
    (!verdicts.is_empty()).then(|| yes as f64 / verdicts.len() as f64)
}

/// F1 of counted statements; 1 where neither side has a statement, 0 where it is not defined.
pub fn f_measure(counted: Correctness) -> f64 {
    let (tp, fp, fn_) = (
        counted.true_positive as f64,
        counted.false_positive as f64,
        counted.false_negative as f64,
    );
    if tp + fp + fn_ == 0.0 {
        return 1.0;
    }
    2.0 * tp / (2.0 * tp + fp + fn_)
}

/// F measure and similarity, weighted 3 to 1.
pub fn answer_correctness(counted: Correctness, similarity: f64) -> f64 {
    (WEIGHTS[0] * f_measure(counted) + WEIGHTS[1] * similarity) / WEIGHTS.iter().sum::<f64>()
}

/// The share of an answer's statements that follow from the passages.
///
/// # Errors
/// A judge that fails.
pub fn faithfulness(judge: &mut dyn Judge, sample: &RagSample) -> Result<Option<f64>, JudgeError> {
    let statements = judge.statements(&sample.question, &sample.answer)?;
    if statements.is_empty() {
        return Ok(None);
    }
    Ok(share(&judge.verify(&statements, &sample.contexts)?))
}

fn context_precision(judge: &mut dyn Judge, sample: &RagSample) -> Result<Option<f64>, JudgeError> {
    let useful = sample
        .contexts
        .iter()
        .map(|context| judge.is_useful(&sample.question, context, &sample.reference))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Some(average_precision(&useful)))
}

fn context_recall(judge: &mut dyn Judge, sample: &RagSample) -> Result<Option<f64>, JudgeError> {
    let claims = judge.statements(&sample.question, &sample.reference)?;
    if claims.is_empty() {
        return Ok(None);
    }
    Ok(share(&judge.verify(&claims, &sample.contexts)?))
}

fn correctness(
    judge: &mut dyn Judge,
    sample: &RagSample,
    similarity: f64,
) -> Result<Option<f64>, JudgeError> {
    let answer = judge.statements(&sample.question, &sample.answer)?;
    let reference = judge.statements(&sample.question, &sample.reference)?;
    let counted = judge.classify(&sample.question, &answer, &reference)?;
    Ok(Some(answer_correctness(counted, similarity)))
}

/// All six measures of a sample. A judge that fails in one leaves that one out and is counted.
pub fn score(judge: &mut dyn Judge, sample: &RagSample) -> RagScores {
    let mut failures = 0;
    let mut keep = |found: Result<Option<f64>, JudgeError>| match found {
        Ok(value) => value,
        Err(_) => {
            failures += 1;
            None
        }
    };
    // As in the reference, an empty text is a blank one for the encoder.
    let blank = |text: &str| match text.is_empty() {
        true => " ".to_owned(),
        false => text.to_owned(),
    };
    let similarity = keep(
        judge
            .similarity(&blank(&sample.reference), &blank(&sample.answer))
            .map(Some),
    );
    let mut scores = RagScores {
        answer_similarity: similarity,
        faithfulness: keep(faithfulness(judge, sample)),
        answer_relevancy: keep(judge.relevancy(&sample.question, &sample.answer)),
        context_precision: keep(context_precision(judge, sample)),
        context_recall: keep(context_recall(judge, sample)),
        ..RagScores::default()
    };
    if let Some(similarity) = similarity {
        scores.answer_correctness = keep(correctness(judge, sample, similarity));
    }
    scores.failures = failures;
    scores
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked values of the reference's formulas.
    #[test]
    fn precision_of_contexts_is_average_precision_over_ranks() {
        for (verdicts, expected) in [
            (vec![true, false, true, false], 0.833_333_333_3),
            (vec![false, true], 0.5),
            (vec![false, false], 0.0),
            (vec![], 0.0),
        ] {
            let found = average_precision(&verdicts);
            assert!((found - expected).abs() < 1e-9, "{verdicts:?}: {found}");
        }
    }

    #[test]
    fn correctness_weighs_statements_three_to_one() {
        let counted = Correctness {
            true_positive: 1,
            false_positive: 1,
            false_negative: 5,
        };
        assert!((f_measure(counted) - 0.25).abs() < 1e-12);
        assert!((answer_correctness(counted, 0.8) - 0.3875).abs() < 1e-12);
        assert_eq!(f_measure(Correctness::default()), 1.0);
        assert_eq!(share(&[true, true, false, true]), Some(0.75));
        assert_eq!(share(&[]), None);
    }
}
