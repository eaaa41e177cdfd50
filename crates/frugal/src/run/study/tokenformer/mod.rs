//! TokenFormer: a small model that grows and is trained on, against new models of the larger size.

mod rig;
mod size;

use frugal_models::grow::{Growth, NewKeys, Scale, TokenCounts, grow};
use frugal_models::merge::Weights;

use super::pretraining::{TRIAL_SEED, listed, picked, shown};
use super::run::{Study, StudyKind};
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use rig::{Part, Rig};
use size::Size;

/// The study.
pub static TOKENFORMER: Study = Study {
    name: "tokenformer",
    kind: StudyKind::Pretrain,
    about: "loss of a TokenFormer of twice the tokens: grown from a trained one, with zero keys or drawn ones and with the old scale or the new, against new models with the tokens of the second stage or of both; every rate tuned with as many trials",
    source: "Wang et al., TokenFormer: Rethinking Transformer Scaling with Tokenized Model Parameters, ICLR 2025, arXiv 2410.23168 (Haiyang-W/TokenFormer)",
    run,
};

/// The rate that the factors are multiples of.
const RATE: f64 = 3e-3;

const LOSS: &str = "test loss";
const JUMP: &str = "loss right after growth";

const SMALL: &str = "small";
const KEPT: &str = "grown, zero keys, old scale";
const RENEWED: &str = "grown, zero keys, new scale";
const DRAWN: &str = "grown, drawn keys, new scale";
const SHORT: &str = "new, tokens of stage 2";
const LONG: &str = "new, tokens of both stages";

/// What the larger model of an arm begins as.
#[derive(Clone, Copy)]
enum Begin {
    New,
    Grown(NewKeys, Scale),
}

/// The arms of the larger size: name, begin, steps.
fn arms(size: &Size) -> [(&'static str, Begin, u64); 5] {
    let [first, second] = size.steps;
    let grown = |keys, scale| Begin::Grown(keys, scale);
    [
        (KEPT, grown(NewKeys::Zero, Scale::Keep), second),
        (RENEWED, grown(NewKeys::Zero, Scale::Renew), second),
        (DRAWN, grown(NewKeys::Normal, Scale::Renew), second),
        (SHORT, Begin::New, second),
        (LONG, Begin::New, first + second),
    ]
}

fn run(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let size = Size::of(request.smoke);
    let runs = (1 + arms(&size).len()) * (size.factors.len() + request.seeds.len());
    observe(StudyEvent::Planned { steps: runs as u64 });
    let rig = Rig::new(request, &size)?;
    let mut outcome = Outcome::default();
    let mut rates = Vec::new();
    let mut step = |what: String| observe(StudyEvent::Step { what });

    let fresh = |seed| rig.fresh(size.tokens, seed);
    let rate = tuned(
        &rig,
        &size,
        SMALL,
        size.steps[0],
        fresh,
        &mut rates,
        &mut step,
    )?;
    let small = |seed: u64| {
        let trained = rig.trained(SMALL, &fresh(seed)?, rate, size.steps[0], seed)?;
        trained.ok_or_else(|| StudyError::arm(SMALL, "the loss was not finite at its best rate"))
    };
    let of_trials = small(TRIAL_SEED)?;
    let mut of_seeds = Vec::new();
    for &seed in &request.seeds {
        let model = small(seed)?;
        outcome.add(SMALL, LOSS, seed, rig.loss(SMALL, &model, Part::Test)?);
        of_seeds.push((seed, model));
        step(format!("{SMALL}, seed {seed}"));
    }
    for (arm, begin, steps) in arms(&size) {
        let start = |seed| {
            let known = of_seeds.iter().find(|(known, _)| *known == seed);
            let small = known.map_or(&of_trials, |(_, model)| model);
            begun(&rig, &size, arm, begin, small, seed)
        };
        let rate = tuned(&rig, &size, arm, steps, start, &mut rates, &mut step)?;
        for &seed in &request.seeds {
            let begun = start(seed)?;
            if let Begin::Grown(..) = begin {
                outcome.add(arm, JUMP, seed, rig.loss(arm, &begun, Part::Test)?);
            }
            match rig.trained(arm, &begun, rate, steps, seed)? {
                Some(model) => outcome.add(arm, LOSS, seed, rig.loss(arm, &model, Part::Test)?),
                None => outcome.notes.push(format!(
                    "{arm} with seed {seed}: the loss was not finite at the rate that was picked."
                )),
            }
            step(format!("{arm}, seed {seed}"));
        }
    }
    claims(&mut outcome);
    notes(&mut outcome, &size, &rig, &rates);
    Ok(outcome)
}

/// The larger model of an arm before its training.
fn begun(
    rig: &Rig<'_>,
    size: &Size,
    arm: &str,
    begin: Begin,
    small: &Weights,
    seed: u64,
) -> Result<Weights, StudyError> {
    match begin {
        Begin::New => rig.fresh(size.tokens.map(|n| 2 * n), seed),
        Begin::Grown(keys, scale) => {
            // Not the draw that the small model began with.
            let growth = Growth {
                tokens: TokenCounts::Times(2.0),
                keys,
                scale,
                seed: seed.wrapping_add(17),
            };
            grow(small, &growth, rig.device()).map_err(|error| StudyError::arm(arm, error))
        }
    }
}

/// The rate of an arm that does best on the part for tuning.
fn tuned(
    rig: &Rig<'_>,
    size: &Size,
    arm: &'static str,
    steps: u64,
    start: impl Fn(u64) -> Result<Weights, StudyError>,
    rates: &mut Vec<(&'static str, f64, bool)>,
    step: &mut dyn FnMut(String),
) -> Result<f64, StudyError> {
    let begun = start(TRIAL_SEED)?;
    let tried = size.factors.iter().map(|factor| RATE * factor);
    let found = picked(tried, |rate| {
        let model = rig.trained(arm, &begun, rate, steps, TRIAL_SEED)?;
        let loss = model.map(|model| rig.loss(arm, &model, Part::Tuning));
        step(format!("{arm}, rate {}", shown(rate)));
        loss.transpose()
    })?;
    rates.push((arm, found.rate, found.is_edge));
    Ok(found.rate)
}

/// What the paper says.
fn claims(outcome: &mut Outcome) {
    for (claim, measure, better, than) in [
        (
            "A grown model is better than a new one of its size with as many tokens",
            LOSS,
            KEPT,
            SHORT,
        ),
        (
            "A grown model is better than a new one with the tokens of both stages",
            LOSS,
            KEPT,
            LONG,
        ),
        (
            "A grown model is better than the small one",
            LOSS,
            KEPT,
            SMALL,
        ),
        (
            "Zero keys and the old scale are better than drawn keys and the new scale",
            LOSS,
            KEPT,
            DRAWN,
        ),
        (
            "The old scale is better than the new one",
            LOSS,
            KEPT,
            RENEWED,
        ),
        (
            "Drawn keys and the new scale lose more at growth",
            JUMP,
            KEPT,
            DRAWN,
        ),
    ] {
        outcome.judge(claim, measure, better, than, true);
    }
}

fn notes(outcome: &mut Outcome, size: &Size, rig: &Rig<'_>, rates: &[(&str, f64, bool)]) {
    let [around, feed_forward] = size.tokens;
    let rates = rates.iter().map(|(arm, rate, edge)| {
        let edge = if *edge { ", an end of the list" } else { "" };
        format!("{arm}: {}{edge}", shown(*rate))
    });
    let rates: Vec<String> = rates.collect();
    outcome.notes.extend([
        format!(
            "{} blocks, {} wide; {around} tokens around attention and {feed_forward} in feed-forward layers, twice as many in the larger model.",
            size.num_hidden_layers, size.hidden_size
        ),
        format!(
            "Tiny Shakespeare, {} tokens of a tokenizer of {} tokens to learn from; {} steps in the first stage and {} in the second, of at most {} tokens.",
            rig.tokens(),
            size.vocab_size,
            size.steps[0],
            size.steps[1],
            size.batch_tokens
        ),
        format!(
            "Rates are {RATE} times one of {}, picked by one run each with a seed of their own on another part of the text than is reported: {}. Cosine with 10 % of warm-up down to a tenth in each stage, the optimizer's state begins anew.",
            listed(size.factors),
            rates.join("; ")
        ),
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_of_arms_that_there_are() {
        let mut outcome = Outcome::default();
        let size = Size::of(false);
        let names = arms(&size).map(|(name, ..)| name);
        for arm in names.iter().chain([&SMALL]) {
            for seed in 0..3 {
                let value = seed as f64 + arm.len() as f64;
                outcome.add(arm, LOSS, seed, value);
                if arm.starts_with("grown") {
                    outcome.add(arm, JUMP, seed, value + 1.0);
                }
            }
        }
        claims(&mut outcome);
        assert_eq!(outcome.claims.len(), 6);
        assert!(outcome.claims.iter().all(|c| c.difference.is_some()));
    }
}
