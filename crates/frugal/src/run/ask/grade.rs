//! Grading passages.

use frugal_decode::{Session, StateOptions};
use frugal_retrieve::rag::{Passage, question_coverage};

use super::grader::Grader;
use super::session::{Ask, titled};
use crate::run::{Rerank, RunError};

/// Least share of the question's content words in a passage that is relevant by its words.
const COVERAGE: f64 = 0.5;
/// Beginnings of the two answers of a model.
const YES: [&str; 4] = ["Yes", " Yes", "yes", " yes"];
const NO: [&str; 4] = ["No", " No", "no", " no"];

/// Whether each passage helps to answer the question.
pub(super) fn grade(
    ask: &mut Ask<'_>,
    question: &str,
    passages: &[Passage],
) -> Result<Vec<bool>, RunError> {
    match (ask.options().grader, ask.reranker()) {
        (Grader::Words, _) | (Grader::Reranker, None) => Ok(passages
            .iter()
            .map(|passage| question_coverage(question, passage) >= COVERAGE)
            .collect()),
        (Grader::Reranker, Some(reranker)) => {
            let texts: Vec<String> = passages.iter().map(titled).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let scores = ask
                .stages()
                .time("grade", || reranker.scores(question, &texts, &mut |_| true))?;
            let least = if reranker.scale() == "probability" {
                0.5
            } else {
                0.0
            };
            Ok(scores.into_iter().map(|score| score >= least).collect())
        }
        (Grader::Model, _) => by_model(ask, question, passages),
    }
}

fn by_model(
    ask: &mut Ask<'_>,
    question: &str,
    passages: &[Passage],
) -> Result<Vec<bool>, RunError> {
    let opened = ask.opened();
    let tokenizer = opened.files.tokenizer()?;
    let first = |words: [&str; 4]| -> Result<Vec<u32>, RunError> {
        let mut found = Vec::new();
        for word in words {
            found.extend(tokenizer.encode(word, false)?.first().copied());
        }
        Ok(found)
    };
    let (yes, no) = (first(YES)?, first(NO)?);
    if yes.iter().any(|token| no.contains(token)) {
        return Err(RunError::Invalid(format!(
            "`{}` begins yes and no with the same token: grade by `words` or `reranker`",
            opened.files.name()
        )));
    }
    let mut prompts = Vec::new();
    for passage in passages {
        prompts.push(ask.encode(&format!(
            "Passage: {}\n\nQuestion: {question}\n\nDoes the passage contain the answer to the question? Answer yes or no.",
            titled(passage)
        ))?);
    }
    ask.stages().time("grade", || {
        let state = StateOptions::default();
        let mut session = Session::new(opened.backbone.clone(), opened.adapters.clone(), state)?;
        let mut verdicts = Vec::new();
        for prompt in prompts {
            let id = session.add(opened.choice())?;
            let logits = session.append_to(id, &prompt)?;
            session.remove(id)?;
            let best = |tokens: &[u32]| {
                let of = tokens
                    .iter()
                    .filter_map(|token| logits.get(*token as usize));
                of.copied().fold(f32::NEG_INFINITY, f32::max)
            };
            verdicts.push(best(&yes) > best(&no));
        }
        Ok(verdicts)
    })
}
