//! A new run from a checkpoint of another: the decay of a stable run, or its stable stage once more.
//!
//! Hu et al., *MiniCPM*, arXiv 2404.06395, section 4: a run at the full rate is decayed from any of its
//! checkpoints, and goes on itself from the one before the decay, state of the optimizer included.

use std::path::{Path, PathBuf};

use frugal_core::fs::FileError;

use crate::Tokenized;
use crate::batch::Batches;
use crate::checkpoint::{self, Checkpoint, Cost, TrainerState};
use crate::config::{Scheduler, TrainConfig};
use crate::error::TrainError;
use crate::schedule::Schedule;
use crate::trainer::check::{MAY_CHANGE, check_mixture, config_differences, data_hash};

/// Settings in which a fork may differ, beside those in which a resumed run may.
const MAY_DIFFER: [&str; 9] = [
    "lr_scheduler_type",
    "warmup_ratio",
    "warmup_steps",
    "decay_ratio",
    "decay_steps",
    "decay_type",
    "decay_half_life",
    "min_lr_ratio",
    "min_lr",
];

/// Writes a checkpoint into the folder of a new run, from which a resume trains on: parameters, what
/// the optimizer remembers and the place in the data are those of `source`, whose files are only read.
///
/// `train` begins with the examples of the run of `source`; with a `decay_mixture` others may follow.
///
/// # Errors
/// A run without a stable stage, a checkpoint before or behind it, other settings than those of the
/// schedule, other examples, a schedule that is not at its full rate there, a file that cannot be
/// written.
pub fn fork(
    source: &Checkpoint,
    run: &Path,
    config: &TrainConfig,
    train: &[Tokenized],
    validation: Option<&[Tokenized]>,
) -> Result<PathBuf, TrainError> {
    config.validate().map_err(TrainError::Config)?;
    check_mixture(config, train)?;
    let state = &source.state;
    let refused = |reason: String| TrainError::Fork {
        path: source.path.clone(),
        reason,
    };
    let of_source = match config.decay_mixture.first() {
        Some(part) => &train[..part.examples],
        None => train,
    };
    // A run that mixed is only forked with the same mixture.
    let own = match state.config.decay_mixture.is_empty() {
        true => of_source,
        false => train,
    };
    if data_hash(own) != state.data_hash {
        return Err(refused("the training data are not the same".into()));
    }
    check_stable(source, own)?;
    let mut may_differ = MAY_CHANGE.to_vec();
    may_differ.extend(MAY_DIFFER);
    if state.config.decay_mixture.is_empty() {
        may_differ.push("decay_mixture");
    }
    let differences = config_differences(&state.config, config, &may_differ);
    if !differences.is_empty() {
        let reason = format!(
            "settings other than those of the schedule differ: {}",
            differences.join("; ")
        );
        return Err(refused(reason));
    }
    let total = Batches::new(train, config).total_steps(config);
    if total <= state.step {
        let (step, reason) = (state.step, "the fork has to be longer");
        return Err(refused(format!(
            "{step} steps are done, and {reason} than {total}"
        )));
    }
    let factor = Schedule::new(config, total).factor(state.step);
    if (factor - 1.0).abs() > 1e-9 {
        let reason = format!(
            "the fork would begin at {factor} of the rate, and its decay has to begin at step {} or later",
            state.step
        );
        return Err(refused(reason));
    }
    let begun = TrainerState {
        config: config.clone(),
        data_hash: data_hash(train),
        validation_hash: validation.map_or_else(String::new, data_hash),
        last_evaluation: None,
        best: None,
        evaluations_without_improvement: 0,
        ..state.clone()
    };
    Ok(written(source, run, &begun)?)
}

/// The checkpoint is of a run at the full rate, and not yet below it.
fn check_stable(source: &Checkpoint, train: &[Tokenized]) -> Result<(), TrainError> {
    let state = &source.state;
    let config = &state.config;
    let refused = |reason: String| TrainError::Fork {
        path: source.path.clone(),
        reason,
    };
    let kind = config.lr_scheduler_type;
    if !matches!(kind, Scheduler::Constant | Scheduler::WarmupStableDecay) {
        return Err(refused(format!(
            "the run's `lr_scheduler_type` is `{}`, which has no stable stage: only `warmup_stable_decay` and `constant` have one",
            kind.name()
        )));
    }
    let schedule = Schedule::new(config, Batches::new(train, config).total_steps(config));
    if state.step < schedule.warmup_steps() {
        return Err(refused(format!(
            "step {} is within the {} steps of warm-up",
            state.step,
            schedule.warmup_steps()
        )));
    }
    match schedule.decay_start().filter(|start| state.step > *start) {
        Some(start) => Err(TrainError::Decayed {
            path: source.path.clone(),
            done: state.step,
            start,
        }),
        None => Ok(()),
    }
}

/// Copies the tensors byte for byte, and writes the state.
fn written(
    source: &Checkpoint,
    run: &Path,
    state: &TrainerState,
) -> Result<PathBuf, checkpoint::CheckpointError> {
    let folder = run.join(checkpoint::FOLDER);
    let path = checkpoint::folder_of(run, state.step);
    let temporary = checkpoint::temporary_of(run, state.step);
    checkpoint::remove(&temporary)?;
    frugal_core::fs::create_dir(&temporary)?;
    for name in [
        checkpoint::PARAMETERS,
        checkpoint::OPTIMIZER,
        checkpoint::ADAPTER,
    ] {
        let (from, to) = (source.path.join(name), temporary.join(name));
        std::fs::copy(&from, &to).map_err(FileError::at(&from, "cannot copy"))?;
        let synced = std::fs::File::open(&to).and_then(|file| file.sync_all());
        synced.map_err(FileError::at(&to, "cannot write"))?;
    }
    checkpoint::write_json(&temporary.join(checkpoint::STATE), state)?;
    checkpoint::write_json(&temporary.join(checkpoint::COST), &Cost::default())?;
    checkpoint::put_in_place(&temporary, &folder, &path)?;
    Ok(path)
}
