//! Mixture-of-Recursions beside a Llama and a recursive transformer, at equal operations.

mod arms;
mod rig;
mod size;

use super::pretraining::{TRIAL_SEED, Text, edges_note, listed, picked, shown};
use super::run::{Study, StudyKind};
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use arms::{Arm, EXPERT, RECURSIVE, SHARED, SMALL, TOKEN, VANILLA, arms};
use rig::{Found, Rig};
use size::Size;

/// The study.
pub static MOR: Study = Study {
    name: "mor",
    kind: StudyKind::Pretrain,
    about: "perplexity of new decoders whose layers are shared by recursion steps, with and without routers over depth, beside a Llama of as many layers and one of as many parameters, at equal operations; every rate tuned with as many trials",
    source: "Bae et al., Mixture-of-Recursions, 2025, arXiv 2507.10524 (raymin0223/mixture_of_recursions)",
    run,
};

const PERPLEXITY: &str = "perplexity";
const TOP_K: &str = "perplexity, highest scores";
const ROWS: &str = "share of shared rows";
const BYTES: &str = "bytes kept per token";

fn run(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let size = Size::of(request.smoke);
    let text = Text::read(request, size.vocab_size, size.max_length)?;
    let arms = arms(&size);
    let runs = arms.len() * (size.rates.len() + request.seeds.len());
    observe(StudyEvent::Planned { steps: runs as u64 });
    let rig = Rig {
        request,
        text: &text,
        size: &size,
    };
    let (mut outcome, mut edges) = (Outcome::default(), Vec::new());
    for arm in &arms {
        let rate = tuned(&rig, arm, &mut edges, observe)?;
        for &seed in &request.seeds {
            let found = rig.trained(arm, rate, seed)?;
            let said = match &found {
                Some(found) => format!("{:.2}", found.test_loss.exp()),
                None => "not finite".into(),
            };
            if let Some(found) = found {
                add(&mut outcome, arm, rate, seed, &found);
            }
            observe(StudyEvent::Step {
                what: format!("{}, seed {seed}: perplexity {said}", arm.name),
            });
        }
    }
    claims(&mut outcome);
    notes(&mut outcome, &size);
    outcome.notes.extend(edges_note(&edges));
    Ok(outcome)
}

/// The rate at which the arm does best on the text that rates are picked by.
fn tuned(
    rig: &Rig<'_>,
    arm: &Arm,
    edges: &mut Vec<String>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<f64, StudyError> {
    let found = picked(rig.size.rates.iter().copied(), |rate| {
        let found = rig.trained(arm, rate, TRIAL_SEED)?;
        let loss = found.map(|found| found.tuning_loss);
        let said = loss.map_or("not finite".to_owned(), |loss| format!("{loss:.3}"));
        observe(StudyEvent::Step {
            what: format!("{}, rate {}: loss {said}", arm.name, shown(rate)),
        });
        Ok(loss)
    })?;
    if found.is_edge {
        edges.push(arm.name.to_owned());
    }
    Ok(found.rate)
}

fn add(outcome: &mut Outcome, arm: &Arm, rate: f64, seed: u64, found: &Found) {
    let mut put = |measure: &str, value: f64| outcome.add(arm.name, measure, seed, value);
    put(PERPLEXITY, found.test_loss.exp());
    if let Some(loss) = found.top_k_loss {
        put(TOP_K, loss.exp());
    }
    put("parameters", found.parameters as f64);
    put("operations per token", arm.operations);
    put("steps", arm.steps as f64);
    put(ROWS, found.shared_rows);
    put(BYTES, found.bytes_per_token);
    put("rate", rate);
    put("seconds per step", found.seconds_per_step);
}

fn claims(outcome: &mut Outcome) {
    for (claim, measure, better, than) in [
        (
            "MoR is better than a Llama of as many unrolled layers, at equal operations",
            PERPLEXITY,
            EXPERT,
            VANILLA,
        ),
        (
            "MoR is better than the recursive transformer, at equal operations",
            PERPLEXITY,
            EXPERT,
            RECURSIVE,
        ),
        (
            "MoR is better than a Llama of its size, at equal operations",
            PERPLEXITY,
            EXPERT,
            SMALL,
        ),
        (
            "A Llama is better than a recursive transformer of as many unrolled layers",
            PERPLEXITY,
            VANILLA,
            RECURSIVE,
        ),
        (
            "A recursive transformer is better than a Llama of its size, at equal operations",
            PERPLEXITY,
            RECURSIVE,
            SMALL,
        ),
        (
            "Expert choice is better than token choice",
            PERPLEXITY,
            EXPERT,
            TOKEN,
        ),
        (
            "Expert choice is better with keys and values of every step's own",
            PERPLEXITY,
            EXPERT,
            SHARED,
        ),
        (
            "MoR keeps less of a text than the recursive transformer",
            BYTES,
            EXPERT,
            RECURSIVE,
        ),
    ] {
        outcome.judge(claim, measure, better, than, true);
    }
    let (own, top_k) = (outcome.of(EXPERT, PERPLEXITY), outcome.of(EXPERT, TOP_K));
    let differences: Vec<f64> = own
        .iter()
        .filter_map(|(seed, own)| Some(own - top_k.get(seed)?))
        .collect();
    outcome.judge_differences(
        "Expert choice is better where it sees the whole text than where each token decides by its own score",
        &differences,
    );
}

fn notes(outcome: &mut Outcome, size: &Size) {
    outcome.notes.push(format!(
        "Tiny Shakespeare in {} tokens, pieces of at most {}, width {}, {} unrolled layers, {} recursion steps between the \
         first and the last layer. Every arm has the multiply-adds of the Llama's {} steps of {} tokens: products with weights, \
         attention of half a text and the output over the vocabulary; those of token choice as if its load were even. Rates tried \
         for each arm: {}, on a part of the text and with a seed that the table does not have.",
        size.vocab_size,
        size.max_length,
        size.hidden_size,
        size.layers,
        size.recursions,
        size.steps,
        size.batch_tokens,
        listed(size.rates)
    ));
    outcome.notes.push(
        "Perplexity is of models in use, where a token is taken by its own score; \"highest scores\" is of the same weights where \
         steps take the best of a text, as in training and in the paper's tables. \"Share of shared rows\" are the rows that the \
         layers between the first and the last compute, of those that all tokens in all steps would be; a step that takes what the \
         paper's capacities say has 0.75 for two steps. Bytes are those of keys and values in single precision."
            .into(),
    );
    outcome.notes.push(
        "The paper finds MoR below a Llama of 135M parameters and above it from 360M on; models of this size say nothing of that."
            .into(),
    );
}
