//! Hyper-parameters of answering from an index: chunker, size, overlap, store, reranking, temperature
//! and the corrective loop.

mod answers;
mod arms;
mod questions;
mod retrieval;
mod rig;
mod stores;

use super::run::{Study, StudyKind};
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use arms::{ANSWERED, Arm, Cutter, RANKED, arms};
use questions::Questions;
use retrieval::Retrieved;
use rig::Rig;

/// The study.
pub(super) static STUDY: Study = Study {
    name: "rag-hyperparameters",
    kind: StudyKind::Rag,
    about: "chunkers, sizes, overlaps, stores, reranking, temperatures and the corrective loop on XQuAD's English questions, with `xquad-en/xquad.en.json` of the data folder, minilm-l6 and smollm2-135m",
    source: "arXiv 2505.08445; its data, models and sizes are not known, so that the design is our own",
    run: measure,
};

fn measure(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let questions = Questions::read(&request.data("xquad-en/xquad.en.json")?, request.smoke)?;
    let rig = Rig::open()?;
    let arms = arms(request.smoke);
    let steps = arms.len() + 1 + answers::steps(request);
    observe(StudyEvent::Planned {
        steps: steps as u64,
    });
    let mut outcome = Outcome::default();
    let mut found: Vec<Retrieved> = Vec::new();
    for arm in &arms {
        request.check()?;
        found.push(retrieval::measure(
            arm,
            &rig,
            &questions,
            request,
            &mut outcome,
        )?);
        observe(StudyEvent::Step { what: arm.name() });
    }
    let best = retrieval::best(&found);
    let peers = stores::measure(&found[best], &rig, &questions, request, &mut outcome)?;
    observe(StudyEvent::Step {
        what: "stores".into(),
    });
    let chosen = chosen(&found, best);
    answers::measure(&chosen, &rig, &questions, request, &mut outcome, observe)?;
    judge(&found, &mut outcome);
    stores::leave(&found[best], &peers, request)?;
    outcome.notes.extend([
        format!(
            "{} articles of XQuAD's English part as documents of several paragraphs, {} questions; a passage is right if it covers the answer's place; {RANKED} questions a seed for rankings, {ANSWERED} for answers",
            questions.documents.len(),
            questions.questions.len()
        ),
        format!("passages of a prompt: as many as have {} tokens together", arms::CONTEXT),
        "measures of answers are the proxies (words and vectors), not verdicts of a language model".to_owned(),
        "Faiss and Chroma: `benchmarks/rag-hyperparameters/stores.py` on the vectors that this study leaves in `peers/`".to_owned(),
    ]);
    Ok(outcome)
}

/// The best arm, the best semantic one, and the worst.
fn chosen(found: &[Retrieved], best: usize) -> Vec<&Retrieved> {
    let by_score = |a: &&Retrieved, b: &&Retrieved| a.mean().total_cmp(&b.mean());
    let semantic = found
        .iter()
        .filter(|f| matches!(f.arm.cutter, Cutter::Semantic(_)))
        .max_by(by_score);
    let mut chosen = vec![&found[best]];
    for candidate in semantic.into_iter().chain(found.iter().min_by(by_score)) {
        if chosen.iter().all(|other| other.arm != candidate.arm) {
            chosen.push(candidate);
        }
    }
    chosen
}

fn judge(found: &[Retrieved], outcome: &mut Outcome) {
    let of = |cutter: Cutter, size: usize, overlap: f64| {
        let arm = Arm {
            cutter,
            size,
            overlap,
        };
        found.iter().find(|f| f.arm == arm)
    };
    let semantic = of(Cutter::Semantic(95), arms::SEMANTIC_SIZE, 0.0);
    let naive = of(Cutter::Fixed, 128, 0.0);
    if let (Some(naive), Some(semantic)) = (naive, semantic) {
        let differences: Vec<f64> = naive
            .precision
            .iter()
            .zip(&semantic.precision)
            .map(|(a, b)| a - b)
            .collect();
        outcome.judge_differences(
            "fixed windows of 128 tokens without overlap have a higher context precision than semantic chunks (percentile 95), question by question",
            &differences,
        );
        outcome.notes.push(format!(
            "chunking took {:.3} s in fixed windows and {:.3} s by meaning, once over all documents",
            naive.chunk_seconds, semantic.chunk_seconds
        ));
    }
    if let (Some(none), Some(quarter)) = (naive, of(Cutter::Fixed, 128, 0.25)) {
        let differences: Vec<f64> = none
            .ndcg
            .iter()
            .zip(&quarter.ndcg)
            .map(|(a, b)| a - b)
            .collect();
        outcome.judge_differences(
            "fixed windows of 128 tokens: no overlap has a higher nDCG than an overlap of a quarter, question by question",
            &differences,
        );
    }
    outcome.notes.extend(retrieval::main_effects(found));
}
