//! PRP: what rankings from noisy comparisons are worth, simulated and with a small language model.

mod model;
mod ranked;
mod simulated;

use super::{Outcome, Study, StudyError, StudyEvent, StudyKind, StudyRequest};

/// The study.
pub static PRP: Study = Study {
    name: "prp",
    kind: StudyKind::Retrieve,
    about: "nDCG@10 and calls of all pairs, heapsort and sliding passes from three first orders, with a comparator of known errors and with SmolLM2-135M, untuned and tuned, on SciFact",
    source: "Qin et al., Large Language Models are Effective Text Rankers with Pairwise Ranking Prompting, Findings of NAACL 2024, arXiv 2306.17563; no official code, counts of heapsort as in ielab/llm-rankers",
    run,
};

fn run(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let mut outcome = Outcome::default();
    let simulated = simulated::steps(request);
    let steps = simulated + model::steps(request);
    observe(StudyEvent::Planned { steps });
    simulated::run(request, &mut outcome, observe)?;
    model::run(request, &mut outcome, observe)?;
    Ok(outcome)
}
