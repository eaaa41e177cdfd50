//! Parametric retrieval-augmented generation: documents in the weights, trained one by one or written
//! by a translator, beside the text in the prompt.

mod arms;
mod passages;
mod setting;
mod train;

use frugal_models::load::Lookup;
use frugal_retrieve::parametric::{FeedForward, num_translator_parameters};

use super::run::{Study, StudyKind};
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use crate::run::{OpenOptions, open};
use arms::{ARMS, Bench, PerQuestion};
use passages::invented;
use setting::{MODEL, Size, failed};
use train::Training;

/// The study.
pub(super) static DYPRAG: Study = Study {
    name: "dyprag",
    kind: StudyKind::Rag,
    about: "answers about invented things by smollm2-135m: documents in the prompt, in the weights (trained, or translated from unseen passages), in both, in neither, and two controls",
    source: "Parametric RAG, arXiv 2501.15915 (oneal2000/PRAG); DyPRAG, arXiv 2503.23895 (Trae1ounG/DyPRAG)",
    run,
};

fn run(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let size = Size::of(request.smoke);
    let steps = request.seeds.len() * (size.documents + 1 + ARMS.len());
    observe(StudyEvent::Planned {
        steps: steps as u64,
    });
    let lookup = Lookup::default();
    let device = crate::device::device("cpu").map_err(failed)?;
    let options = OpenOptions {
        needs_tokenizer: true,
        ..OpenOptions::new(&lookup, device)
    };
    let opened = open(MODEL, &[], &options, &mut |_| {}).map_err(failed)?;
    let places =
        FeedForward::of(opened.backbone.info(), opened.backbone.sites()).map_err(failed)?;
    let mut outcome = Outcome::default();
    let mut questions = PerQuestion::default();
    for &seed in &request.seeds {
        let documents = invented(size.documents, seed);
        // The kinds take turns, and so do they in each part.
        let (held_out, seen) = documents.split_at(size.held_out());
        let training = Training {
            opened: &opened,
            places: &places,
            size,
            seed,
            request,
        };
        let trained = training.run(seen, held_out, &mut outcome, observe)?;
        let bench = Bench {
            opened: &opened,
            places: &places,
            trained: &trained,
            documents: held_out,
            items: size.items,
        };
        for arm in ARMS {
            request.check()?;
            bench.measure(arm, seed, &mut outcome, &mut questions)?;
            observe(StudyEvent::Step {
                what: format!("{}, seed {seed}", arm.name()),
            });
        }
    }
    questions.judge(&mut outcome);
    notes(&mut outcome, &places, size);
    Ok(outcome)
}

fn notes(outcome: &mut Outcome, places: &FeedForward, size: Size) {
    outcome.notes.extend([
        format!(
            "{} invented documents a seed with 3 questions each (stage A by templates); {} of them are held out from the translator and asked about, {} questions each and one in words that nothing was trained on",
            size.documents,
            size.held_out(),
            size.items
        ),
        format!(
            "PRAG: rank 2, alpha 32, {} numbers a document, {} steps of AdamW at {} each, stored in f16; its parameters were trained on the questions that are asked, except the reworded ones",
            places.num_parameters(2),
            5 * size.encode_epochs,
            train::ENCODE_LR
        ),
        format!(
            "DyPRAG: a translator of {} weights, {} passes over the other documents; it stores nothing of a document, but reads its text at question time, which the seconds include",
            num_translator_parameters(places, 32, 2),
            size.translator_epochs
        ),
        "every answer begins with `The answer is`; it counts up to the first period, comma or line end, greedy, at most 16 tokens; the right passage is given where one is (oracle)".to_owned(),
    ]);
}
