//! Answers from passages in the prompt, as they were found or after correction.

use frugal_retrieve::rag::{Corrective, CorrectiveOptions, Passage, correct, expand_query};

use super::answer::AskAnswer;
use super::grade::grade;
use super::mode::AskMode;
use super::session::Ask;
use crate::run::RunError;

/// Passages whose words a query is expanded by, words that it gets, and passages that tell frequent
/// words from rare ones.
const FEEDBACK: usize = 3;
const TERMS: usize = 5;
const POOL: usize = 50;

/// The best passages in the prompt.
pub(super) const RAG: AskMode = AskMode {
    name: "rag",
    about: "the best passages in the prompt",
    answer: rag,
};

/// The best passages, graded, and searched for again where too few are relevant.
pub(super) const CRAG: AskMode = AskMode {
    name: "crag",
    about: "passages are graded first, and searched for again in other words if none is relevant",
    answer: crag,
};

fn rag(ask: &mut Ask<'_>, question: &str) -> Result<AskAnswer, RunError> {
    let passages = ask.retrieve(question)?;
    ask.answer_from(question, &passages)
}

struct Loop<'b, 'a>(&'b mut Ask<'a>);

impl Corrective for Loop<'_, '_> {
    type Error = RunError;

    fn retrieve(&mut self, query: &str) -> Result<Vec<Passage>, RunError> {
        self.0.retrieve(query)
    }

    fn grade(&mut self, question: &str, passages: &[Passage]) -> Result<Vec<bool>, RunError> {
        grade(self.0, question, passages)
    }

    /// Pseudo-relevance feedback: what was found first tells what else to look for.
    fn rewrite(
        &mut self,
        question: &str,
        _: &str,
        found: &[Passage],
    ) -> Result<Option<String>, RunError> {
        let pool = self.0.retrieve_more(question, POOL)?;
        // What has been found last comes first, so that a second expansion differs from the first.
        let seen = |passage: &Passage| pool.iter().any(|other| other.id == passage.id);
        let newer = found.iter().rev().filter(|passage| !seen(passage));
        let all: Vec<Passage> = newer.chain(&pool).cloned().collect();
        Ok(expand_query(question, &all, FEEDBACK, TERMS))
    }
}

fn crag(ask: &mut Ask<'_>, question: &str) -> Result<AskAnswer, RunError> {
    let options = CorrectiveOptions {
        keep: ask.options().search.top_k,
        ..ask.options().corrective
    };
    let corrected = correct(&mut Loop(ask), question, options)?;
    let mut answer = ask.answer_from(question, &corrected.passages)?;
    if corrected.passages.is_empty() && corrected.graded > 0 {
        answer.notes = vec![format!(
            "none of {} passages was judged relevant: nothing to answer from",
            corrected.graded
        )];
    }
    answer.queries = corrected.queries;
    answer.graded = Some((corrected.graded, corrected.dropped));
    Ok(answer)
}
