//! Concept retrieval against its parts and against words, on Mathlib and on a Python library.

mod arms;
mod data;
mod validity;

use frugal_models::Quantize;
use frugal_models::load::Lookup;
use frugal_retrieve::cramf::KnowledgeBase;
use frugal_retrieve::{Encoder, EncoderRequest};

use super::run::{Study, StudyKind};
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use arms::{ARMS, FULL, Remembering, Searcher};
use data::{Library, Question, drawn};

/// The study.
pub static CRAMF: Study = Study {
    name: "cramf",
    kind: StudyKind::Retrieve,
    about: "definitions for a statement by concepts, two channels and a second look, with each part left out",
    source: "Automated Formalization via Conceptual Retrieval-Augmented LLMs, arXiv 2508.06931",
    run,
};

/// Questions of a seed, and statements that code is written for.
struct Size {
    definitions: usize,
    questions: usize,
    written: usize,
}

impl Size {
    fn of(smoke: bool) -> Self {
        match smoke {
            true => Self {
                definitions: 200,
                questions: 4,
                written: 1,
            },
            false => Self {
                definitions: usize::MAX,
                questions: 150,
                written: 10,
            },
        }
    }
}

fn run(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let size = Size::of(request.smoke);
    let mut outcome = Outcome::default();
    let second_look = "The second look is the cosine of the encoder that searches descriptions: it orders as that channel does, and undoes what the names add.";
    outcome.notes.push(second_look.to_owned());
    let mut libraries = vec![data::mathlib(request, size.definitions)?];
    match data::python(request, size.definitions)? {
        Some(library) => libraries.push(library),
        None => outcome.notes.push(format!(
            "No Python library: `{}` is not in the data folder; `scripts/cramf/python_docs.py` writes it.",
            data::PYTHON
        )),
    }
    let steps = libraries.len() * (1 + request.seeds.len()) + request.seeds.len();
    observe(StudyEvent::Planned {
        steps: steps as u64,
    });
    let encoder = EncoderRequest {
        model: "minilm-l6".into(),
        adapter: None,
        max_length: Some(96),
        quantize: Quantize::None,
    };
    let encoder = Encoder::open(&encoder, &Lookup::default(), &burn::prelude::Device::flex())
        .map_err(|error| StudyError::arm("minilm-l6", error))?;
    let encoder = Remembering::new(&encoder);
    for library in &libraries {
        let searcher = Searcher::new(&library.base, &encoder, request)?;
        observe(StudyEvent::Step {
            what: format!(
                "{}: {} definitions",
                library.name,
                library.base.definitions().len()
            ),
        });
        for &seed in &request.seeds {
            request.check()?;
            let questions = drawn(&library.questions, size.questions, seed, library.name);
            search(&searcher, library, &questions, seed, &mut outcome)?;
            observe(StudyEvent::Step {
                what: format!("{}: seed {seed} searched", library.name),
            });
        }
        claims(&mut outcome, library);
        if library.name == data::MATHLIB {
            validity::measure(
                request,
                &searcher,
                library,
                size.written,
                &mut outcome,
                observe,
            )?;
        }
        notes(&mut outcome, library, &size);
    }
    Ok(outcome)
}

/// Searches with every arm.
fn search(
    searcher: &Searcher<'_>,
    library: &Library,
    questions: &[&Question],
    seed: u64,
    outcome: &mut Outcome,
) -> Result<(), StudyError> {
    for arm in ARMS {
        let name = label(library, arm.name);
        let start = std::time::Instant::now();
        let found = questions
            .iter()
            .map(|question| searcher.find(arm, &question.text))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| StudyError::arm(&name, error))?;
        let seconds = start.elapsed().as_secs_f64() / questions.len().max(1) as f64;
        let ranks: Vec<Option<usize>> = questions
            .iter()
            .zip(&found)
            .map(|(question, found)| found.iter().position(|id| question.right.contains(id)))
            .collect();
        let ambiguous: Vec<Option<usize>> = questions
            .iter()
            .zip(&ranks)
            .filter(|(question, _)| question.ambiguous)
            .map(|(_, rank)| *rank)
            .collect();
        for (what, ranks) in [("", &ranks), (", ambiguous names", &ambiguous)] {
            if ranks.is_empty() {
                continue;
            }
            let hit = |k: usize| share(ranks, |rank| if rank < k { 1.0 } else { 0.0 });
            outcome.add(&name, &format!("hit@1{what}"), seed, hit(1));
            outcome.add(&name, &format!("hit@3{what}"), seed, hit(3));
            let reciprocal = |rank: usize| 1.0 / (rank + 1) as f64;
            outcome.add(&name, &format!("MRR{what}"), seed, share(ranks, reciprocal));
        }
        outcome.add(&name, "seconds a query", seed, seconds);
    }
    Ok(())
}

fn share(ranks: &[Option<usize>], value: impl Fn(usize) -> f64) -> f64 {
    ranks.iter().flatten().map(|rank| value(*rank)).sum::<f64>() / ranks.len() as f64
}

fn label(library: &Library, arm: &str) -> String {
    format!("{}: {arm}", library.name)
}

fn claims(outcome: &mut Outcome, library: &Library) {
    let full = label(library, FULL);
    for (than, claim) in [
        ("BM25", "better than words"),
        ("names", "better than names alone"),
        ("descriptions", "better than descriptions alone"),
        ("both channels", "better than without the second look"),
        (
            "no augmentation",
            "better than concepts without their context",
        ),
        (
            "no concepts",
            "better than the whole statement as one query",
        ),
    ] {
        let claim = format!("{}: concept retrieval is {claim}", library.name);
        outcome.judge(claim, "hit@3", &full, &label(library, than), false);
    }
    let measure = "hit@3, ambiguous names";
    if !outcome.of(&full, measure).is_empty() {
        let claim = format!(
            "{}: the context helps where a name has several meanings",
            library.name
        );
        let than = label(library, "no augmentation");
        outcome.judge(claim, measure, &full, &than, false);
    }
}

fn notes(outcome: &mut Outcome, library: &Library, size: &Size) {
    let base: &KnowledgeBase = &library.base;
    outcome.notes.push(format!(
        "{}, version {}: {} definitions, {} concepts, {} repeated names left out; {} questions, at most {} with each seed. {}",
        library.name,
        base.version(),
        base.definitions().len(),
        base.concepts().len(),
        library.repeated,
        library.questions.len(),
        size.questions,
        library.about
    ));
}
