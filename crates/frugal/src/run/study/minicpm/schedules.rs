//! One stable run and its decays, beside a cosine of each length.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use frugal_train::{DecayType, Scheduler, TrainConfig, fork, latest};

use super::measures::{LOSS, RATE, TRIAL_SEED};
use super::rig::{Part, Rig, Trained};
use crate::run::study::{Outcome, StudyError};

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    Cosine,
    /// So many thousandths of its steps are a decay of the stable run.
    Decay(u64),
    /// At the full rate.
    Stable,
}

pub(super) const LONG: End = End::Decay(100);
pub(super) const SHORT: End = End::Decay(25);

impl End {
    pub(super) fn arm(self, steps: u64) -> String {
        match self {
            Self::Cosine => format!("cosine, {steps} steps"),
            Self::Decay(share) => format!("decay of {} %, {steps} steps", share as f64 / 10.0),
            Self::Stable => format!("no decay, {steps} steps"),
        }
    }

    /// Steps of the decay of a run of so many.
    fn decay(self, steps: u64) -> u64 {
        match self {
            Self::Decay(share) => (steps * share / 1000).max(1),
            _ => 0,
        }
    }
}

/// The stable run of a rate and a seed in a folder of its own, which is gone with it.
pub(super) struct StableRun<'r, 'a> {
    rig: &'r Rig<'a>,
    folder: PathBuf,
    rate: f64,
    seed: u64,
}

impl Drop for StableRun<'_, '_> {
    fn drop(&mut self) {
        // What is left over is removed before the next run of the name.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl<'r, 'a> StableRun<'r, 'a> {
    pub(super) fn new(rig: &'r Rig<'a>, rate: f64, seed: u64) -> Self {
        let folder = rig.request.work().join(format!("stable-{seed}-{rate}"));
        let _ = std::fs::remove_dir_all(&folder);
        Self {
            rig,
            folder,
            rate,
            seed,
        }
    }

    pub(super) fn settings(&self, steps: u64) -> TrainConfig {
        TrainConfig {
            lr_scheduler_type: Scheduler::WarmupStableDecay,
            decay_ratio: 0.0,
            ..self.rig.settings(self.rate, steps, self.seed)
        }
    }

    /// Trained on at the full rate until so many steps are done; nothing where it diverged.
    pub(super) fn until(&self, steps: u64) -> Result<Option<Trained>, StudyError> {
        let start = self.rig.fresh(self.rig.size.model, true, self.seed)?;
        let warmup = self.settings(self.rig.size.lengths[0]).warmup_steps;
        let settings = TrainConfig {
            warmup_steps: warmup,
            logging_steps: 1000,
            ..self.settings(steps)
        };
        let data = &self.rig.text.training;
        self.rig.trained(
            "the stable run",
            &start,
            data,
            &settings,
            Some(&self.folder),
        )
    }

    /// A fork of where it is, with these settings and data.
    pub(super) fn forked(
        &self,
        arm: &str,
        settings: &TrainConfig,
        mixed: bool,
    ) -> Result<Option<Trained>, StudyError> {
        let to = self.folder.join("fork");
        let _ = std::fs::remove_dir_all(&to);
        let found = latest(&self.folder).0;
        let source =
            found.ok_or_else(|| StudyError::arm(arm, "the stable run has no checkpoint"))?;
        let settings = TrainConfig {
            warmup_steps: source.state.config.warmup_steps,
            logging_steps: source.state.config.logging_steps,
            ..settings.clone()
        };
        let data = match mixed {
            true => &self.rig.both,
            false => &self.rig.text.training,
        };
        fork(&source, &to, &settings, data, None).map_err(|error| StudyError::arm(arm, error))?;
        let start = self.rig.fresh(self.rig.size.model, true, self.seed)?;
        let trained = self.rig.trained(arm, &start, data, &settings, Some(&to));
        let _ = std::fs::remove_dir_all(&to);
        trained
    }
}

/// The decay of a run: exponential, to a share of the rate.
pub(super) fn decayed(stable: TrainConfig, decay: u64, end: f64) -> TrainConfig {
    TrainConfig {
        decay_steps: decay,
        decay_type: DecayType::Exp,
        min_lr_ratio: end,
        ..stable
    }
}

/// The loss of every end of the stable run of a rate, with the steps that were taken for it.
fn ends(
    rig: &Rig<'_>,
    rate: f64,
    seed: u64,
    part: Part,
    wanted: &[(End, u64)],
) -> Result<BTreeMap<(u64, End), f64>, StudyError> {
    let run = StableRun::new(rig, rate, seed);
    let mut stops: Vec<(u64, End, u64)> = wanted
        .iter()
        .map(|&(end, steps)| (steps - end.decay(steps), end, steps))
        .collect();
    stops.sort_unstable();
    let mut found = BTreeMap::new();
    for (at, end, steps) in stops {
        let arm = end.arm(steps);
        let Some(stable) = run.until(at)? else {
            return Ok(found);
        };
        let model = match end.decay(steps) {
            0 => Some(stable),
            decay => run.forked(&arm, &decayed(run.settings(steps), decay, 0.1), false)?,
        };
        if let Some(model) = model {
            let loss = rig.loss(&arm, &model, &rig.text, part)?;
            found.insert((steps, end), loss);
        }
    }
    Ok(found)
}

fn cosine(
    rig: &Rig<'_>,
    rate: f64,
    seed: u64,
    part: Part,
    steps: u64,
) -> Result<Option<f64>, StudyError> {
    let arm = End::Cosine.arm(steps);
    let start = rig.fresh(rig.size.model, true, seed)?;
    let settings = TrainConfig {
        warmup_steps: rig.settings(rate, rig.size.lengths[0], seed).warmup_steps,
        ..rig.settings(rate, steps, seed)
    };
    let model = rig.trained(&arm, &start, &rig.text.training, &settings, None::<&Path>)?;
    model
        .map(|model| rig.loss(&arm, &model, &rig.text, part))
        .transpose()
}

/// Measures all ends at all lengths; gives the rate that was picked for each.
pub(super) fn measure(
    rig: &Rig<'_>,
    outcome: &mut Outcome,
    step: &mut dyn FnMut(String),
) -> Result<BTreeMap<(u64, End), f64>, StudyError> {
    let lengths = rig.size.lengths;
    let of_stable: Vec<(End, u64)> = lengths
        .iter()
        .flat_map(|&steps| [LONG, SHORT, End::Stable].map(|end| (end, steps)))
        .collect();
    let mut best: BTreeMap<(u64, End), (f64, f64)> = BTreeMap::new();
    let mut offer = |key, rate, loss: f64| {
        let entry = best.entry(key).or_insert((rate, loss));
        if loss < entry.1 {
            *entry = (rate, loss);
        }
    };
    for factor in rig.size.factors {
        let rate = RATE * factor;
        for (key, loss) in ends(rig, rate, TRIAL_SEED, Part::Tuning, &of_stable)? {
            offer(key, rate, loss);
        }
        step(format!("stable run and its decays, rate {rate}"));
        for &steps in lengths {
            if let Some(loss) = cosine(rig, rate, TRIAL_SEED, Part::Tuning, steps)? {
                offer((steps, End::Cosine), rate, loss);
            }
            step(format!("{}, rate {rate}", End::Cosine.arm(steps)));
        }
    }
    let picked: BTreeMap<(u64, End), f64> = best
        .into_iter()
        .map(|(key, (rate, _))| (key, rate))
        .collect();
    for &seed in &rig.request.seeds {
        for factor in rig.size.factors {
            let rate = RATE * factor;
            let wanted: Vec<(End, u64)> = of_stable
                .iter()
                .copied()
                .filter(|(end, steps)| picked.get(&(*steps, *end)) == Some(&rate))
                .collect();
            if wanted.is_empty() {
                continue;
            }
            for ((steps, end), loss) in ends(rig, rate, seed, Part::Test, &wanted)? {
                outcome.add(&end.arm(steps), LOSS, seed, loss);
            }
        }
        step(format!("stable run and its decays, seed {seed}"));
        for &steps in lengths {
            let Some(&rate) = picked.get(&(steps, End::Cosine)) else {
                continue;
            };
            if let Some(loss) = cosine(rig, rate, seed, Part::Test, steps)? {
                outcome.add(&End::Cosine.arm(steps), LOSS, seed, loss);
            }
            step(format!("{}, seed {seed}", End::Cosine.arm(steps)));
        }
    }
    Ok(picked)
}

/// Steps that [`measure`] tells of.
pub(super) fn planned(rig: &Rig<'_>) -> u64 {
    let runs = rig.size.factors.len() + rig.request.seeds.len();
    (runs * (1 + rig.size.lengths.len())) as u64
}

/// What the paper says of them.
pub(super) fn claims(outcome: &mut Outcome, lengths: &[u64]) {
    for &steps in lengths {
        for (claim, than) in [
            (
                "A decay of 10 % of a stable run is better than a cosine",
                End::Cosine,
            ),
            ("A decay of 10 % is better than one of 2.5 %", SHORT),
            ("A decay of 10 % is better than none", End::Stable),
        ] {
            let claim = format!("{claim}, {steps} steps");
            outcome.judge(claim, LOSS, &LONG.arm(steps), &than.arm(steps), true);
        }
    }
}
