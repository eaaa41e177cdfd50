//! Parametric retrieval-augmented generation: documents in the weights, trained one by one or written
//! by a translator, beside the text in the prompt.

mod arms;
mod data;
mod musique;
mod passages;
mod setting;
mod train;

use frugal_models::load::Lookup;
use frugal_retrieve::parametric::{FeedForward, num_translator_parameters};

use super::run::{Study, StudyKind};
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use crate::run::{OpenOptions, open};
use arms::{ARMS, Bench, PerQuestion};
use musique::musique;
use passages::invented;
use setting::{MODEL, Size, failed};
use train::Training;

/// The study.
pub(super) static DYPRAG: Study = Study {
    name: "dyprag",
    kind: StudyKind::Rag,
    about: "answers by smollm2-135m about invented things and on MuSiQue (`multihop/musique_train.json.gz` of the data folder): documents in the prompt, in the weights (trained, or translated from unseen passages), in both, in neither, and two controls",
    source: "Parametric RAG, arXiv 2501.15915 (oneal2000/PRAG); DyPRAG, arXiv 2503.23895 (Trae1ounG/DyPRAG)",
    run,
};

const MUSIQUE: &str = "multihop/musique_train.json.gz";

fn run(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let size = Size::of(request.smoke);
    let mut outcome = Outcome::default();
    let file = request.data(MUSIQUE).ok();
    if file.is_none() {
        outcome.notes.push(format!(
            "No multi-hop questions: `{MUSIQUE}` is not in the data folder."
        ));
    }
    let mut sets = Vec::new();
    for &seed in &request.seeds {
        let held_out = Size::held_out(size.documents);
        sets.push((seed, invented(size.documents, held_out, size.items, seed)));
        if let Some(file) = &file {
            let asked = Size::held_out(size.musique);
            sets.push((seed, musique(file, size.musique, asked, seed)?));
        }
    }
    let steps = sets
        .iter()
        .map(|(_, data)| data.documents.len() + 1 + ARMS.len());
    observe(StudyEvent::Planned {
        steps: steps.sum::<usize>() as u64,
    });
    let lookup = Lookup::default();
    let device = crate::device::device("cpu").map_err(failed)?;
    let options = OpenOptions {
        needs_tokenizer: true,
        ..OpenOptions::new(&lookup, device)
    };
    let opened = open(MODEL, &[], &options, &mut |_| {}).map_err(failed)?;
    let places = FeedForward::of(opened.backbone.info(), opened.backbone.sites());
    let places = places.map_err(failed)?;
    let mut questions = PerQuestion::default();
    for (seed, data) in &sets {
        let training = Training {
            opened: &opened,
            places: &places,
            data,
            size,
            seed: *seed,
            request,
        };
        let trained = training.run(&mut outcome, observe)?;
        let bench = Bench {
            opened: &opened,
            places: &places,
            trained: &trained,
            data,
        };
        for arm in ARMS {
            request.check()?;
            bench.measure(arm, *seed, &mut outcome, &mut questions)?;
            observe(StudyEvent::Step {
                what: format!("{}, seed {seed}", data.label(arm.name())),
            });
        }
    }
    for data in ["invented", "musique"] {
        questions.judge(data, &mut outcome);
    }
    notes(&mut outcome, &places, size);
    Ok(outcome)
}

fn notes(outcome: &mut Outcome, places: &FeedForward, size: Size) {
    outcome.notes.extend([
        format!(
            "invented: {} documents a seed with 3 questions each (stage A by templates); {} of them are held out from the translator and asked about, {} questions each and one in words that nothing was trained on",
            size.documents,
            Size::held_out(size.documents),
            size.items
        ),
        format!(
            "musique: {} questions a seed, {} of them asked; their paragraphs are the documents, trained on the question of their hop, without a rewrite; the asked questions need 2 to 4 documents together, whose changes are summed, and were never trained on",
            size.musique,
            Size::held_out(size.musique)
        ),
        format!(
            "PRAG: rank 2, alpha 32, {} numbers a document, at least {} steps of AdamW at {}, stored in f16; of the invented ones the parameters were trained on the questions that are asked, except the reworded ones",
            places.num_parameters(2),
            size.encode_steps,
            train::ENCODE_LR
        ),
        format!(
            "DyPRAG: a translator of {} weights, {} passes over the documents that are not held out; it stores nothing of a document, but reads its text at question time, which the seconds include",
            num_translator_parameters(places, 32, 2),
            size.translator_epochs
        ),
        "every answer begins with `The answer is`; it counts up to the first period, comma or line end, greedy, at most 16 tokens; the right passages are given where any are (oracle)".to_owned(),
    ]);
}
