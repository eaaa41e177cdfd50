//! Ways to pre-train with less memory: optimizers that keep less, and weights that are products of
//! thin matrices while they are trained; with and without restarts.

mod arms;
mod rig;
mod size;

use super::pretraining::{TRIAL_SEED, Text, edges_note, listed, picked, shown};
use super::run::{Study, StudyKind};
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use arms::{
    ADAMW, Arm, FIRA, GALORE, LOW_RANK, LOW_RANK_REFACTORED, LOW_RANK_RESET, LOW_RANK_RESTARTS,
    RELORA, SLTRAIN, SLTRAIN_RESTARTS, arms,
};
use rig::{Measure, Rig};
use size::{Model, Size};

/// The study.
pub static LOW_MEMORY: Study = Study {
    name: "low-memory",
    kind: StudyKind::Pretrain,
    about: "perplexity of new decoders against the bytes of what is trained, at two sizes: optimizers that keep less than AdamW, low rank, SLTrain, ReLoRA and LORO, with and without restarts; every rate tuned with as many trials",
    source: "Glentis et al., Scalable Parameter and Memory Efficient Pretraining for LLM: Recent Algorithmic Advances and Benchmarking, 2025, arXiv 2505.22922 (OptimAI-Lab/Memory_Efficient_Pretraining)",
    run,
};

fn run(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let size = Size::of(request.smoke);
    let runs: usize = size
        .models
        .iter()
        .map(|model| arms(model, &size).len() * (size.factors.len() + request.seeds.len()))
        .sum();
    observe(StudyEvent::Planned { steps: runs as u64 });
    let text = Text::read(request, size.vocab_size, size.max_length)?;
    let mut outcome = Outcome::default();
    let mut edges = Vec::new();
    for model in size.models {
        let rig = Rig {
            request,
            text: &text,
            size: &size,
            model,
        };
        for arm in arms(model, &size) {
            let rate = tuned(&rig, &arm, &mut edges, observe)?;
            reported(&rig, &arm, rate, &mut outcome, observe)?;
        }
    }
    if !request.smoke {
        for model in size.models {
            claims(&mut outcome, model);
        }
    }
    notes(&mut outcome, &size, &text, &edges);
    Ok(outcome)
}

/// The rate of an arm that does best on the part for tuning.
fn tuned(
    rig: &Rig<'_>,
    arm: &Arm,
    edges: &mut Vec<String>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<f64, StudyError> {
    let rates = rig.size.factors.iter().map(|factor| arm.rate * factor);
    let found = picked(rates, |rate| {
        let found = rig.trained(arm, rate, TRIAL_SEED)?;
        observe(StudyEvent::Step {
            what: format!("{}, {}, rate {}", arm.name, rig.model.label, shown(rate)),
        });
        Ok(found.map(|found| found.tuning_loss))
    })?;
    if found.is_edge {
        edges.push(format!("{} at {}", arm.name, rig.model.label));
    }
    Ok(found.rate)
}

/// The runs of all seeds at the picked rate.
fn reported(
    rig: &Rig<'_>,
    arm: &Arm,
    rate: f64,
    outcome: &mut Outcome,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<(), StudyError> {
    for &seed in &rig.request.seeds {
        match rig.trained(arm, rate, seed)? {
            Some(found) => {
                let mut add = |measure: Measure, value: f64| {
                    outcome.add(arm.name, &measure.name(rig.model), seed, value);
                };
                add(Measure::Perplexity, found.test_loss.exp());
                add(Measure::Trained, found.memory.total() as f64 / 1e6);
                add(Measure::States, found.memory.states as f64 / 1e6);
                add(Measure::Seconds, 1e3 * found.seconds_per_step);
                add(Measure::Rate, rate);
            }
            None => outcome.notes.push(format!(
                "{} at {} with seed {seed}: the loss was not finite at the rate that was picked.",
                arm.name, rig.model.label
            )),
        }
        observe(StudyEvent::Step {
            what: format!("{}, {}, seed {seed}", arm.name, rig.model.label),
        });
    }
    Ok(())
}

/// What the paper says, of one size.
fn claims(outcome: &mut Outcome, model: &Model) {
    let pairs = [
        ("Full rank with AdamW is better than Fira", ADAMW, FIRA),
        (
            "Full rank with AdamW is better than low rank",
            ADAMW,
            LOW_RANK,
        ),
        ("Fira is better than GaLore", FIRA, GALORE),
        ("Restarts make low rank better", LOW_RANK_RESTARTS, LOW_RANK),
        (
            "Resets of the moments alone make low rank better",
            LOW_RANK_RESET,
            LOW_RANK,
        ),
        (
            "Balanced factors add to resets of the moments",
            LOW_RANK_RESTARTS,
            LOW_RANK_RESET,
        ),
        (
            "Resets of the moments add to balanced factors",
            LOW_RANK_RESTARTS,
            LOW_RANK_REFACTORED,
        ),
        (
            "Low rank with restarts is better than Fira",
            LOW_RANK_RESTARTS,
            FIRA,
        ),
        (
            "Low rank with restarts is better than GaLore",
            LOW_RANK_RESTARTS,
            GALORE,
        ),
        (
            "Low rank with restarts is better than ReLoRA",
            LOW_RANK_RESTARTS,
            RELORA,
        ),
        ("SLTrain is better than low rank", SLTRAIN, LOW_RANK),
        ("Restarts make SLTrain better", SLTRAIN_RESTARTS, SLTRAIN),
        (
            "SLTrain with restarts is better than low rank with restarts",
            SLTRAIN_RESTARTS,
            LOW_RANK_RESTARTS,
        ),
    ];
    let measure = Measure::Perplexity.name(model);
    for (claim, better, than) in pairs {
        let claim = format!("{claim} ({})", model.label);
        outcome.judge(claim, &measure, better, than, true);
    }
}

fn notes(outcome: &mut Outcome, size: &Size, text: &Text, edges: &[String]) {
    let models: Vec<String> = size.models.iter().map(Model::describe).collect();
    outcome.notes.extend([
        format!("LLaMA decoders with tied embeddings: {}.", models.join("; ")),
        format!(
            "Tiny Shakespeare, {} tokens of a tokenizer of {} tokens to learn from, in {} steps of at most {} tokens; {} pieces to tune on, {} to report on, the same for all seeds.",
            text.tokens(),
            size.vocab_size,
            size.steps,
            size.batch_tokens,
            text.tuning.len(),
            text.test.len()
        ),
        format!(
            "Rates are those of the arm times one of {}, picked by one run each with a seed of their own. Cosine with 10 % of warm-up down to a tenth, clipping at norm 1, no decay.",
            listed(size.factors)
        ),
        format!(
            "Restarts, merges, resets and new directions every {} steps.",
            size.restart_steps
        ),
        "MB are counted from shapes: weights, gradients and the optimizer's tensors, in single precision; activations are not among them, nor the dense weights that SLTrain forms in a step.".to_owned(),
    ]);
    outcome.notes.extend(edges_note(edges));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_optimizer_and_reparameterization_has_an_arm() {
        let size = Size::of(false);
        let all = arms(&size.models[0], &size);
        for entry in frugal_train::optim::OPTIMIZERS {
            assert!(
                all.iter().any(|arm| arm.optim.name == entry.name),
                "{}",
                entry.name
            );
        }
        for entry in frugal_adapt::pretraining::REPARAMETERIZATIONS {
            assert!(
                all.iter().any(|arm| arm.reparam.name == entry.name),
                "{}",
                entry.name
            );
        }
        let mut names: Vec<&str> = all.iter().map(|arm| arm.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn claims_are_of_arms_that_there_are() {
        let size = Size::of(false);
        let model = &size.models[0];
        let mut outcome = Outcome::default();
        for arm in arms(model, &size) {
            for seed in 0..3 {
                let value = 20.0 + seed as f64 + arm.name.len() as f64;
                outcome.add(arm.name, &Measure::Perplexity.name(model), seed, value);
            }
        }
        claims(&mut outcome, model);
        assert!(
            outcome
                .claims
                .iter()
                .all(|claim| claim.difference.is_some())
        );
    }
}
