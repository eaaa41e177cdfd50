//! Target data in the decay, or after it with as many tokens of each.

use frugal_train::{MixturePart, TrainConfig};

use super::measures::{LOSS, TARGET, TRIAL_SEED};
use super::rig::{Part, Rig, Trained};
use super::schedules::{StableRun, decayed};
use crate::run::study::{Outcome, StudyError};

pub(super) const WITHIN: &str = "target data in the decay";
pub(super) const AFTER: &str = "target data after the decay";

/// Where the decay of [`WITHIN`] ends, as a share of the rate.
const ENDS: [f64; 3] = [0.03, 0.1, 0.3];
/// The rate of the stage after the decay, in multiples of what that ended at.
const MULTIPLES: [f64; 3] = [1.0, 3.0, 10.0];
/// What the decay of [`AFTER`] ends at.
const END: f64 = 0.1;

/// One arm with the setting that is picked for it.
fn trained(
    run: &StableRun<'_, '_>,
    rig: &Rig<'_>,
    arm: &str,
    setting: f64,
    rate: f64,
    seed: u64,
) -> Result<Option<Trained>, StudyError> {
    let [stable, decay, more] = rig.size.stages;
    if arm == WITHIN {
        let all = decay + more;
        let share = more as f64 / all as f64;
        let part = |examples, weight| MixturePart { examples, weight };
        let settings = TrainConfig {
            decay_mixture: vec![
                part(rig.text.training.len(), 1.0 - share),
                part(rig.target.training.len(), share),
            ],
            ..decayed(run.settings(stable + all), all, setting)
        };
        return run.forked(arm, &settings, true);
    }
    let settings = decayed(run.settings(stable + decay), decay, END);
    let Some(model) = run.forked(arm, &settings, false)? else {
        return Ok(None);
    };
    let start = rig.weights(arm, &model)?;
    // As the paper's: from the rate at the end of the decay, down again.
    let again = TrainConfig {
        lr_scheduler_type: frugal_train::Scheduler::WarmupStableDecay,
        warmup_steps: 1,
        ..decayed(
            rig.settings(rate * END * setting, more, seed),
            more - 1,
            END,
        )
    };
    rig.trained(arm, &start, &rig.target.training, &again, None)
}

/// Measures both; gives the settings that were picked.
pub(super) fn measure(
    rig: &Rig<'_>,
    rate: f64,
    outcome: &mut Outcome,
    step: &mut dyn FnMut(String),
) -> Result<Vec<(&'static str, f64)>, StudyError> {
    let mut picked = Vec::new();
    let run = StableRun::new(rig, rate, TRIAL_SEED);
    let stable = rig.size.stages[0];
    if run.until(stable)?.is_none() {
        let reason = "the loss was not finite at the rate that was picked";
        return Err(StudyError::arm("the stable run", reason));
    }
    for (arm, settings) in [(WITHIN, ENDS), (AFTER, MULTIPLES)] {
        let (mut best, mut least) = (settings[0], f64::INFINITY);
        for setting in settings {
            if let Some(model) = trained(&run, rig, arm, setting, rate, TRIAL_SEED)? {
                let loss = rig.loss(arm, &model, &rig.target, Part::Tuning)?;
                if loss < least {
                    (best, least) = (setting, loss);
                }
            }
            step(format!("{arm}, setting {setting}"));
        }
        picked.push((arm, best));
    }
    for &seed in &rig.request.seeds {
        let run = StableRun::new(rig, rate, seed);
        if run.until(stable)?.is_none() {
            continue;
        }
        for (arm, setting) in &picked {
            if let Some(model) = trained(&run, rig, arm, *setting, rate, seed)? {
                let loss = rig.loss(arm, &model, &rig.target, Part::Test)?;
                outcome.add(arm, TARGET, seed, loss);
                let loss = rig.loss(arm, &model, &rig.text, Part::Test)?;
                outcome.add(arm, LOSS, seed, loss);
            }
            step(format!("{arm}, seed {seed}"));
        }
    }
    Ok(picked)
}

/// Steps that [`measure`] tells of.
pub(super) fn planned(rig: &Rig<'_>) -> u64 {
    (2 * (ENDS.len() + rig.request.seeds.len())) as u64
}

/// What the paper says of them.
pub(super) fn claims(outcome: &mut Outcome) {
    for (claim, measure) in [
        (
            "Target data in the decay give a lower target loss than after it",
            TARGET,
        ),
        ("They leave a lower loss on the text", LOSS),
    ] {
        outcome.judge(claim, measure, WITHIN, AFTER, true);
    }
}
