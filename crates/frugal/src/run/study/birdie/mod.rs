//! Birdie: Gated SSMs of the same weights and as many tokens on five mixtures of objectives, and what
//! they then can find in their context.

mod phone_book;
mod rig;
mod size;

use frugal_core::pretext::CLASSES;
use frugal_train::mixture::MixtureKind;

use super::run::{Study, StudyKind};
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use rig::{Part, Recipe, Rig, Trajectory};
use size::Size;

/// The study.
pub static BIRDIE: Study = Study {
    name: "birdie",
    kind: StudyKind::Pretrain,
    about: "phone books, selective copying and next tokens of small Gated SSMs pre-trained with next tokens, UL2-like, a fixed mixture of 96 arms, and the reward-driven one with and without reading prompts in both directions, beside a transformer; both rates tuned with as many trials",
    source: "Blouir et al., Birdie: Advancing State Space Models with Reward-Driven Objectives and Curricula, EMNLP 2024, arXiv 2411.01030 (samblouir/birdie)",
    run,
};

/// Seed of the runs by which rates are picked; those that are reported have others.
const TRIAL_SEED: u64 = 1_000_003;
/// The rate that the factors are multiples of.
const RATE: f64 = 3e-3;

const PHONE_BOOK: &str = "phone numbers right";
const COPY: &str = "tokens right of selective copies, zero-shot";
const LOSS: &str = "next-token loss";

const NTP: &str = "next tokens";
const UL2: &str = "UL2-like";
const FIXED: &str = "fixed mixture";
const CAUSAL: &str = "Birdie, causal";
const FULL: &str = "Birdie";
const TRANSFORMER: &str = "transformer, next tokens";

/// The arms. UL2 and the fixed mixture read prompts in both directions as Birdie does.
fn arms() -> [Recipe; 6] {
    let ssm = |name, kind, bidirectional| Recipe {
        name,
        kind,
        bidirectional,
        transformer: false,
    };
    [
        ssm(NTP, MixtureKind::Ntp, false),
        ssm(UL2, MixtureKind::Ul2, true),
        ssm(FIXED, MixtureKind::Fixed, true),
        ssm(CAUSAL, MixtureKind::Birdie, false),
        ssm(FULL, MixtureKind::Birdie, true),
        Recipe {
            transformer: true,
            ..ssm(TRANSFORMER, MixtureKind::Ntp, false)
        },
    ]
}

/// The rates that did best.
#[derive(Clone, Copy)]
struct Rates {
    pretraining: f64,
    books: f64,
    /// Whether one is at an end of its list.
    at_edge: bool,
}

fn run(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let size = Size::of(request.smoke);
    let runs = arms().len() * (size.factors.len() + request.seeds.len());
    observe(StudyEvent::Planned { steps: runs as u64 });
    let rig = Rig::new(request, &size)?;
    let mut outcome = Outcome::default();
    let mut picked = Vec::new();
    let mut step = |what: String| observe(StudyEvent::Step { what });
    let (books, copies) = (rig.books(Part::Test), rig.copies());
    for recipe in arms() {
        let arm = recipe.name;
        let rates = tuned(&rig, &size, recipe, &mut step)?;
        picked.push((arm, rates));
        for &seed in &request.seeds {
            let (model, trajectory) = rig.pretrained(recipe, rates.pretraining, seed)?;
            let model = model.ok_or_else(|| StudyError::arm(arm, NOT_FINITE))?;
            outcome.add(
                arm,
                COPY,
                seed,
                rig.token_accuracy(recipe, &model, &copies)?,
            );
            outcome.add(arm, LOSS, seed, rig.text_loss(recipe, &model)?);
            let tuned = rig.on_books(recipe, &model, rates.books, seed)?;
            let tuned = tuned.ok_or_else(|| StudyError::arm(arm, NOT_FINITE))?;
            let right = rig.number_accuracy(recipe, &tuned, &books)?;
            outcome.add(arm, PHONE_BOOK, seed, right);
            outcome
                .notes
                .extend(trajectory_note(arm, seed, &trajectory));
            step(format!("{arm}, seed {seed}"));
        }
    }
    claims(&mut outcome);
    notes(&mut outcome, &size, &rig, &picked);
    Ok(outcome)
}

const NOT_FINITE: &str = "the loss was not finite at its best rate";

/// The rates of pre-training and of fine-tuning that leave the least loss on phone books of another
/// part than is reported: as many trials for every arm.
fn tuned(
    rig: &Rig<'_>,
    size: &Size,
    recipe: Recipe,
    step: &mut dyn FnMut(String),
) -> Result<Rates, StudyError> {
    let books = rig.books(Part::Tuning);
    let (mut best, mut least) = ([0, 0], f64::INFINITY);
    for (i, factor) in size.factors.iter().enumerate() {
        let (model, _) = rig.pretrained(recipe, RATE * factor, TRIAL_SEED)?;
        for (j, rate) in size.book_rates.iter().enumerate() {
            let Some(model) = &model else { continue };
            if let Some(tuned) = rig.on_books(recipe, model, *rate, TRIAL_SEED)? {
                let loss = rig.loss(recipe, &tuned, &books)?;
                if loss < least {
                    (best, least) = ([i, j], loss);
                }
            }
        }
        step(format!("{}, rate {}", recipe.name, RATE * factor));
    }
    let edge = |at: usize, count: usize| count > 1 && (at == 0 || at + 1 == count);
    Ok(Rates {
        pretraining: RATE * size.factors[best[0]],
        books: size.book_rates[best[1]],
        at_edge: edge(best[0], size.factors.len()) || edge(best[1], size.book_rates.len()),
    })
}

/// How the shares of classes went.
fn trajectory_note(arm: &str, seed: u64, trajectory: &Trajectory) -> Option<String> {
    let shares = |metrics: &std::collections::BTreeMap<String, f64>| {
        let of = |class: &str| metrics.get(&format!("mixture/share/{class}")).copied();
        let shares = CLASSES.iter().filter_map(|class| of(class.name));
        let shares: Vec<String> = shares
            .map(|share| format!("{:.0}", 100.0 * share))
            .collect();
        shares.join("/")
    };
    let told: Vec<String> = trajectory
        .iter()
        .map(|(step, metrics)| format!("{step}: {}", shares(metrics)))
        .collect();
    let classes: Vec<&str> = CLASSES.iter().map(|class| class.name).collect();
    (!told.is_empty()).then(|| {
        format!(
            "{arm}, seed {seed}, shares of {} in % behind each evaluation: {}.",
            classes.join("/"),
            told.join("; ")
        )
    })
}

/// What the paper says.
fn claims(outcome: &mut Outcome) {
    for (claim, measure, better, than, lower) in [
        (
            "Birdie finds more phone numbers than next tokens alone",
            PHONE_BOOK,
            FULL,
            NTP,
            false,
        ),
        (
            "Birdie finds more phone numbers than UL2",
            PHONE_BOOK,
            FULL,
            UL2,
            false,
        ),
        (
            "Birdie finds more phone numbers than the fixed mixture",
            PHONE_BOOK,
            FULL,
            FIXED,
            false,
        ),
        (
            "Reading prompts in both directions finds more phone numbers",
            PHONE_BOOK,
            FULL,
            CAUSAL,
            false,
        ),
        (
            "Birdie without it finds more than the fixed mixture with it",
            PHONE_BOOK,
            CAUSAL,
            FIXED,
            false,
        ),
        (
            "Birdie copies selectively better than the fixed mixture",
            COPY,
            FULL,
            FIXED,
            false,
        ),
        (
            "Birdie copies selectively better than next tokens alone",
            COPY,
            FULL,
            NTP,
            false,
        ),
        (
            "Next tokens alone are better at next tokens",
            LOSS,
            NTP,
            FULL,
            true,
        ),
    ] {
        outcome.judge(claim, measure, better, than, lower);
    }
}

fn notes(outcome: &mut Outcome, size: &Size, rig: &Rig<'_>, picked: &[(&str, Rates)]) {
    let rates = picked.iter().map(|(arm, rates)| {
        let edge = if rates.at_edge {
            ", one at an end of its list"
        } else {
            ""
        };
        format!("{arm}: {} and {}{edge}", rates.pretraining, rates.books)
    });
    let rates: Vec<String> = rates.collect();
    let [low, high] = size.entries;
    outcome.notes.extend([
        format!(
            "Gated SSMs of {} blocks, {} wide, {} channels; the transformer is as wide and deep. {} steps of at most {} tokens, counted with those of prompts; lengths of all arms are an eighth of the paper's, at most {} tokens.",
            size.num_hidden_layers, size.hidden_size, size.state_size, size.steps, size.batch_tokens, size.max_length
        ),
        format!(
            "Tiny Shakespeare, {} tokens of a tokenizer of {} tokens to learn from, in place of the Pile. Phone books of {low} to {high} names, {} to {} of which are asked for; {} steps.",
            rig.tokens(), size.vocab_size, size.queries[0], size.queries[1], size.book_steps
        ),
        format!(
            "Rates of pre-training are {RATE} times one of {:?}, those of phone books one of {:?}, picked together by the loss on other phone books with a seed of their own: {}.",
            size.factors, size.book_rates, rates.join("; ")
        ),
        "Selective copies and numbers are judged token by token given the right ones before, a number by all of its digits.".to_owned(),
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_of_arms_that_there_are() {
        let mut outcome = Outcome::default();
        for recipe in arms() {
            for seed in 0..3 {
                for measure in [PHONE_BOOK, COPY, LOSS] {
                    let value = seed as f64 + recipe.name.len() as f64;
                    outcome.add(recipe.name, measure, seed, value);
                }
            }
        }
        claims(&mut outcome);
        assert_eq!(outcome.claims.len(), 8);
        assert!(outcome.claims.iter().all(|c| c.difference.is_some()));
    }
}
