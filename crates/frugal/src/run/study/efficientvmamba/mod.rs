//! EfficientVMamba: which scans, branches and placements of blocks tell the classes of small images
//! best at the same number of operations.

mod arms;
mod operations;
mod rig;
mod size;

use std::collections::BTreeMap;

use super::run::{Study, StudyKind};
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use arms::{Arm, CONV_ONLY, ES2D, FIRST, INVERTED, NO_CONV, SCANS, SS2D, VIT, VMAMBA, arms};
use rig::{Part, Rig};
use size::Size;

/// The study.
pub static EFFICIENT_VMAMBA: Study = Study {
    name: "efficientvmamba",
    kind: StudyKind::Pretrain,
    about: "accuracy on CIFAR-10 of image models of about as many operations: atrous or full scans, with and without the convolution beside them, inverted residuals in late or early stages, ViT and VMamba; every rate tuned with as many trials",
    source: "Pei et al., EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba, AAAI 2025, arXiv 2403.09977 (TerryPei/EfficientVMamba)",
    run,
};

/// Seed of the runs by which rates are picked; those that are reported have others.
const TRIAL_SEED: u64 = 1_000_003;
/// The rate that the factors are multiples of.
const RATE: f64 = 3e-3;

const ACCURACY: &str = "test accuracy";
const LOSS: &str = "test loss";
const STEP: &str = "milliseconds per step";
const SCANNED: &str = "scanned tokens per image";
const OPERATIONS: &str = "million multiply-adds per image";
const PARAMETERS: &str = "parameters";

fn run(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let size = Size::of(request.smoke);
    let arms = arms(&size)?;
    let runs = arms.len() * (size.factors.len() + request.seeds.len());
    observe(StudyEvent::Planned { steps: runs as u64 });
    let rig = Rig::new(request, &size)?;
    let mut outcome = Outcome::default();
    let mut rates = BTreeMap::new();
    let mut step = |what: String| observe(StudyEvent::Step { what });
    for arm in &arms {
        let (rate, edge) = tuned(&rig, &size, arm, &mut step)?;
        rates.insert(arm.name, (rate, edge));
        for &seed in &request.seeds {
            let Some(trained) = rig.trained(arm, rate, seed)? else {
                outcome.notes.push(format!(
                    "{} with seed {seed}: the loss was not finite at the rate that was picked.",
                    arm.name
                ));
                continue;
            };
            let found = rig.measured(arm.name, &trained, Part::Test)?;
            outcome.add(arm.name, ACCURACY, seed, found["accuracy"]);
            outcome.add(arm.name, LOSS, seed, found["loss"]);
            outcome.add(arm.name, STEP, seed, 1e3 * trained.seconds_per_step);
            outcome.add(arm.name, SCANNED, seed, arm.operations.scanned as f64);
            outcome.add(arm.name, OPERATIONS, seed, arm.operations.all as f64 / 1e6);
            outcome.add(arm.name, PARAMETERS, seed, trained.parameters as f64);
            step(format!("{}, seed {seed}", arm.name));
        }
    }
    claims(&mut outcome);
    notes(&mut outcome, &size, &rig, &arms, &rates);
    Ok(outcome)
}

/// The rate of an arm that does best on the part for tuning, and whether it is an end of the list.
fn tuned(
    rig: &Rig<'_>,
    size: &Size,
    arm: &Arm,
    step: &mut dyn FnMut(String),
) -> Result<(f64, bool), StudyError> {
    let (mut best, mut least) = (0, f64::INFINITY);
    for (i, factor) in size.factors.iter().enumerate() {
        let rate = RATE * factor;
        if let Some(trained) = rig.trained(arm, rate, TRIAL_SEED)? {
            let loss = rig.measured(arm.name, &trained, Part::Tuning)?["loss"];
            if loss < least {
                (best, least) = (i, loss);
            }
        }
        step(format!("{}, rate {rate}", arm.name));
    }
    let last = size.factors.len() - 1;
    Ok((
        RATE * size.factors[best],
        last > 0 && (best == 0 || best == last),
    ))
}

/// What the paper says.
fn claims(outcome: &mut Outcome) {
    for (claim, measure, better, than, lower) in [
        (
            "The atrous scan is as accurate as that of all pixels or better (table 5)",
            ACCURACY,
            ES2D,
            SS2D,
            false,
        ),
        (
            "The atrous scan takes less time per step",
            STEP,
            ES2D,
            SS2D,
            true,
        ),
        (
            "The convolution beside the scan adds accuracy (table 5)",
            ACCURACY,
            ES2D,
            NO_CONV,
            false,
        ),
        (
            "The scan adds accuracy to the convolution",
            ACCURACY,
            ES2D,
            CONV_ONLY,
            false,
        ),
        (
            "Inverted residuals in late stages are better than in early ones (table 6)",
            ACCURACY,
            ES2D,
            FIRST,
            false,
        ),
        (
            "Inverted residuals in late stages are better than none (table 6)",
            ACCURACY,
            ES2D,
            SCANS,
            false,
        ),
        (
            "Scans in early stages are better than inverted residuals alone (table 6)",
            ACCURACY,
            ES2D,
            INVERTED,
            false,
        ),
        (
            "It is better than VMamba of as many operations (table 2)",
            ACCURACY,
            ES2D,
            VMAMBA,
            false,
        ),
        (
            "It is better than ViT of as many operations",
            ACCURACY,
            ES2D,
            VIT,
            false,
        ),
    ] {
        outcome.judge(claim, measure, better, than, lower);
    }
}

fn notes(
    outcome: &mut Outcome,
    size: &Size,
    rig: &Rig<'_>,
    arms: &[Arm],
    rates: &BTreeMap<&'static str, (f64, bool)>,
) {
    let picked = arms.iter().filter_map(|arm| {
        let (rate, edge) = rates.get(arm.name)?;
        let edge = if *edge { ", an end of the list" } else { "" };
        Some(format!("{}: {rate}{edge}", arm.name))
    });
    let picked: Vec<String> = picked.collect();
    let widths: Vec<String> = arms
        .iter()
        .map(|arm| format!("{}: {}", arm.name, arm.width))
        .collect();
    let [training, tuning, test] = rig.counts();
    outcome.notes.extend([
        format!(
            "CIFAR-10, of each class as many: {training} images to learn from, {tuning} to pick rates by, {test} to report on; moved by up to {} pixels and mirrored while they are learnt from.",
            size.crop_padding
        ),
        format!(
            "Patches of {} x {} pixels; two stages of {} blocks each, ViT of {}. Widths of the first stage, each the multiple of 8 whose operations are nearest to those of {ES2D}: {}.",
            size.patch,
            size.patch,
            size.depth,
            2 * size.depth,
            widths.join("; ")
        ),
        format!(
            "{} steps of {} images. Rates are {RATE} times one of {:?}, picked by one run each with a seed of their own by the loss on the part for tuning: {}. Cosine with 10 % of warm-up down to a hundredth.",
            size.steps,
            size.batch_size,
            size.factors,
            picked.join("; ")
        ),
        "A multiply-add of the scan is counted as nine operations for each token, channel and number of its state, as VMamba counts them. Time per step is that of the whole step on this machine, whatever else it did.".to_owned(),
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_of_arms_that_there_are() {
        let size = Size::of(false);
        let arms = arms(&size).unwrap();
        let mut outcome = Outcome::default();
        for arm in &arms {
            for seed in 0..3 {
                let value = seed as f64 + arm.name.len() as f64;
                outcome.add(arm.name, ACCURACY, seed, value);
                outcome.add(arm.name, STEP, seed, value);
            }
        }
        claims(&mut outcome);
        assert_eq!(outcome.claims.len(), 9);
        assert!(outcome.claims.iter().all(|c| c.difference.is_some()));
        let target = arms[0].operations.all as f64;
        for arm in &arms {
            let ratio = arm.operations.all as f64 / target;
            assert!((0.6..1.6).contains(&ratio), "{}: {ratio}", arm.name);
        }
    }
}
