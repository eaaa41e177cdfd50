//! A pre-training run that begins as a fork of another.

use std::path::{Path, PathBuf};

use frugal_core::encode::Tokenized;
use frugal_train::{
    Batches, CHECKPOINTS, Checkpoint, Schedule, Scheduler, TrainError, fork, latest, list,
};

use super::RunError;
use super::pretrain_config::PretrainConfig;

/// Makes a run the fork of the one that it names: settles step, warm-up and length, and writes the
/// checkpoint that it begins with unless it has one.
///
/// # Errors
/// No checkpoint of that step, a run that has no stable stage there, other data or settings.
pub(super) fn begin(
    config: &mut PretrainConfig,
    stored: Option<&PretrainConfig>,
    training: &[Tokenized],
    validation: &[Tokenized],
) -> Result<(), RunError> {
    let Some(run) = config.fork.clone() else {
        return Ok(());
    };
    let train = &mut config.train;
    let given = std::mem::replace(&mut train.lr_scheduler_type, Scheduler::WarmupStableDecay);
    if let (Some(stored), Some(_)) = (stored, latest(&config.out).0) {
        if config.fork_step == 0 {
            config.fork_step = stored.fork_step;
        }
        train.warmup_steps = stored.train.warmup_steps;
        train.warmup_ratio = 0.0;
        lengthen(config);
        return Ok(());
    }
    let source = opened(&run, config.fork_step)?;
    config.fork_step = source.state.step;
    let before = &source.state.config;
    if ![Scheduler::WarmupStableDecay, before.lr_scheduler_type].contains(&given) {
        return Err(RunError::Invalid(format!(
            "`train.lr_scheduler_type` is {}, and a fork falls as `warmup_stable_decay`, over `decay_steps`",
            serde_json::to_string(&given).unwrap_or_default()
        )));
    }
    let of_source = match before.decay_mixture.is_empty() {
        true => train
            .decay_mixture
            .first()
            .map_or(training.len(), |part| part.examples),
        false => training.len(),
    };
    let total =
        Batches::new(&training[..of_source.min(training.len())], before).total_steps(before);
    train.warmup_steps = Schedule::new(before, total).warmup_steps();
    train.warmup_ratio = 0.0;
    lengthen(config);
    fork(
        &source,
        &config.out,
        &config.train,
        training,
        Some(validation),
    )?;
    Ok(())
}

/// A decay of so many steps begins at once.
fn lengthen(config: &mut PretrainConfig) {
    if config.train.decay_steps > 0 {
        config.train.max_steps = config.fork_step + config.train.decay_steps;
    }
}

/// The checkpoint of a step, or the newest one.
fn opened(run: &Path, step: u64) -> Result<Checkpoint, RunError> {
    let checkpoints = list(run);
    let known = || {
        let steps: Vec<String> = checkpoints
            .iter()
            .map(|(step, _)| step.to_string())
            .collect();
        match steps.is_empty() {
            true => "there are none".to_owned(),
            false => format!("there are {}", steps.join(", ")),
        }
    };
    let missing = |what: &str| {
        let path: PathBuf = run.join(CHECKPOINTS);
        RunError::Invalid(format!("{}: {what}; {}", path.display(), known()))
    };
    if step == 0 {
        return latest(run)
            .0
            .ok_or_else(|| missing("no checkpoint to fork from"));
    }
    let found = checkpoints.iter().find(|(number, _)| *number == step);
    let (_, path) = found.ok_or_else(|| missing(&format!("no checkpoint of step {step}")))?;
    Ok(Checkpoint::open(path).map_err(TrainError::from)?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use frugal_train::{DecayType, Event};

    use super::*;
    use crate::run::decay_data::DecayData;
    use crate::run::pretrain::tests::{config, go};
    use crate::run::{Progress, pretrain};

    /// A stable run of a MiniCPM twice as wide as its base, with all checkpoints.
    fn stable(folder: &Path) -> PretrainConfig {
        let mut config = config(folder);
        config.shape.arch = "minicpm".into();
        config.shape.own = toml::toml! { dim_model_base = 8 };
        config.train.lr_scheduler_type = Scheduler::WarmupStableDecay;
        config.train.decay_ratio = 0.0;
        config.train.max_steps = 6;
        config.train.save_steps = 1;
        config.train.save_total_limit = 0;
        config.train.load_best_model_at_end = false;
        config.resolve();
        config
    }

    fn decayed(of: &PretrainConfig, out: &str) -> PretrainConfig {
        let mut config = of.clone();
        config.out = of.out.with_file_name(out);
        config.train.decay_steps = 2;
        config.train.decay_type = DecayType::Linear;
        config
    }

    fn forked(of: &PretrainConfig, step: u64, out: &str) -> PretrainConfig {
        PretrainConfig {
            fork: Some(of.out.clone()),
            fork_step: step,
            ..decayed(of, out)
        }
    }

    fn model(config: &PretrainConfig) -> Vec<u8> {
        std::fs::read(config.out.join("model.safetensors")).unwrap()
    }

    #[test]
    fn a_fork_ends_as_a_run_that_was_planned_with_its_decay() {
        let folder = tempfile::tempdir().unwrap();
        let stable = stable(folder.path());
        assert!(stable.problems().is_empty(), "{:?}", stable.problems());
        go(&stable, false).unwrap();
        let before = model(&stable);
        let planned = decayed(&stable, "planned");
        go(&planned, false).unwrap();
        let fork = forked(&stable, 4, "fork");
        assert!(fork.problems().is_empty(), "{:?}", fork.problems());
        go(&fork, false).unwrap();
        assert!(model(&fork) == model(&planned) && model(&fork) != before);
        let told = std::fs::read_to_string(fork.out.join("pretrain.toml")).unwrap();
        assert!(
            told.contains("fork_step = 4") && told.contains("max_steps = 6"),
            "{told}"
        );

        // Stopped within its decay, and resumed as it was called.
        let stopped = forked(&stable, 4, "stopped");
        let stop = AtomicBool::new(false);
        let mut observe = |progress: &Progress| {
            if matches!(progress, Progress::Train(Event::Evaluated { step: 5, .. })) {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let first = pretrain(&stopped, &[], false, &stop, &mut observe).unwrap();
        assert!(first.interrupted);
        let other = PretrainConfig {
            fork_step: 3,
            ..stopped.clone()
        };
        assert!(
            go(&other, true)
                .unwrap_err()
                .to_string()
                .contains("`fork_step` was 4")
        );
        go(&stopped, true).unwrap();
        assert!(model(&stopped) == model(&planned));

        // The newest is at the full rate too; the stable run is as it was.
        let newest = forked(&stable, 0, "newest");
        go(&newest, false).unwrap();
        let told = std::fs::read_to_string(newest.out.join("pretrain.toml")).unwrap();
        assert!(
            told.contains("fork_step = 6") && told.contains("max_steps = 8"),
            "{told}"
        );
        go(&newest, true).unwrap();
        assert!(model(&stable) == before);
        // A decayed run is no stable one.
        let mut longer = planned;
        longer.train.max_steps = 12;
        let error = go(&longer, true).unwrap_err().to_string();
        assert!(error.contains("falling since step 4"), "{error}");
        let error = go(&forked(&stable, 5, "none"), false).map(|_| ());
        assert!(error.is_ok());
        let error = go(&forked(&stable, 9, "gone"), false)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no checkpoint of step 9; there are 1, 2,"),
            "{error}"
        );
    }

    #[test]
    fn records_are_learnt_from_in_the_decay_alone() {
        let folder = tempfile::tempdir().unwrap();
        let more = folder.path().join("more.jsonl");
        let line = |i: usize| {
            format!("{{\"prompt\": \"what is {i}?\", \"completion\": \"it is {i}.\"}}\n")
        };
        std::fs::write(&more, (0..30).map(line).collect::<String>()).unwrap();
        let stable = stable(folder.path());
        go(&stable, false).unwrap();
        let mut fork = forked(&stable, 4, "fork");
        fork.decay_data = vec![DecayData {
            data: more.display().to_string(),
            share: 0.5,
        }];
        assert!(fork.problems().is_empty(), "{:?}", fork.problems());
        go(&fork, false).unwrap();
        let mut planned = decayed(&stable, "planned");
        planned.decay_data.clone_from(&fork.decay_data);
        go(&planned, false).unwrap();
        assert!(
            model(&fork) == model(&planned),
            "until the decay the runs are one"
        );
        let plain = forked(&stable, 4, "plain");
        go(&plain, false).unwrap();
        assert!(model(&fork) != model(&plain));
        let record = std::fs::read_to_string(fork.out.join("record.json")).unwrap();
        assert!(
            record.contains("more.jsonl") && record.contains("\"decay\""),
            "{record}"
        );

        let problems = |change: fn(&mut PretrainConfig)| {
            let mut config = fork.clone();
            change(&mut config);
            let found = config.problems().into_iter();
            found
                .map(|(key, why)| format!("{key}: {why}\n"))
                .collect::<String>()
        };
        let said = problems(|config| config.decay_data[0].share = 1.5);
        assert!(said.contains("decay_data: a share of 1.5"), "{said}");
        let said = problems(|config| {
            config.fork = None;
            config.train.lr_scheduler_type = Scheduler::Cosine;
        });
        assert!(
            said.contains("train.decay_mixture: `lr_scheduler_type` is `cosine`"),
            "{said}"
        );
        assert!(said.contains("fork_step: there is no `fork`"), "{said}");
        std::fs::write(&more, "{\"text\": \"a\", \"label\": \"b\"}\n").unwrap();
        let mut wrong = fork.clone();
        wrong.out = folder.path().join("wrong");
        let error = go(&wrong, false).unwrap_err().to_string();
        assert!(
            error.contains("more.jsonl") && error.contains("classification"),
            "{error}"
        );
    }
}
