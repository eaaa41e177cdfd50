//! Decays of a stable run: forks, the mixture of the decay, what is refused.

use std::fs;

use super::*;

const TENSORS: [&str; 2] = ["parameters.safetensors", "optimizer.safetensors"];

/// Dropout, accumulation and passes over the data that end within the stable stage.
fn stable(steps: u64) -> TrainConfig {
    TrainConfig {
        lr: 0.02,
        lr_scheduler_type: Scheduler::WarmupStableDecay,
        max_steps: steps,
        packing: true,
        max_tokens: 24,
        gradient_accumulation_steps: 2,
        // A warm-up begins where the decay ends, which a stable run does not know.
        warmup_ratio: 0.0,
        decay_ratio: 0.0,
        weight_decay: 0.01,
        logging_steps: 1,
        save_steps: 1,
        save_total_limit: 0,
        load_best_model_at_end: false,
        ..TrainConfig::default()
    }
}

fn decayed(steps: u64, decay_steps: u64, decay_type: DecayType) -> TrainConfig {
    TrainConfig {
        decay_steps,
        decay_type,
        min_lr_ratio: 0.1,
        ..stable(steps)
    }
}

fn corpus() -> Vec<Tokenized> {
    counting(&[12, 9, 10, 7, 8, 11, 6, 12, 5, 9])
}

/// The same with three examples of another kind behind it.
fn with_more() -> Vec<Tokenized> {
    let mut all = corpus();
    let mut more = counting(&[13, 14, 15]);
    for example in &mut more {
        example.input_ids.iter_mut().for_each(|id| *id = 63 - *id);
    }
    all.extend(more);
    all
}

fn mixture() -> Vec<MixturePart> {
    let part = |examples, weight| MixturePart { examples, weight };
    vec![part(10, 1.0), part(3, 1.0)]
}

fn setup<'a>(
    backbone: &'a dyn Backbone,
    data: &'a [Tokenized],
    config: TrainConfig,
    folder: &'a Path,
) -> Setup<'a> {
    let mut setup = Setup::new(backbone, lora(backbone, 0.2), data, config);
    setup.folder = Some(folder);
    setup
}

fn checkpoint(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("checkpoints/step-{step}"))
}

fn tensors(folder: &Path, step: u64) -> [Vec<u8>; 2] {
    TENSORS.map(|name| fs::read(checkpoint(folder, step).join(name)).unwrap())
}

/// Every file of a folder with its bytes.
fn everything(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for (_, path) in list(folder) {
        for entry in fs::read_dir(path).unwrap().flatten() {
            found.push((entry.path(), fs::read(entry.path()).unwrap()));
        }
    }
    found.sort();
    found
}

fn forked(
    source: &Path,
    step: u64,
    to: &Path,
    config: &TrainConfig,
) -> Result<PathBuf, TrainError> {
    let data = if config.decay_mixture.is_empty() {
        corpus()
    } else {
        with_more()
    };
    let source = Checkpoint::open(&checkpoint(source, step)).unwrap();
    fork(&source, to, config, &data, None)
}

#[test]
fn forks_begin_with_the_same_bits_and_end_as_runs_that_were_planned_so() {
    let (backbone, data) = (backbone("llama"), corpus());
    let source = tempfile::tempdir().unwrap();
    let mut run = setup(&*backbone, &data, stable(7), source.path());
    run.run().unwrap();
    let (end, before) = (run.bits(), everything(source.path()));
    let mut ends = Vec::new();
    for decay_type in [DecayType::Linear, DecayType::Exp] {
        let config = decayed(7, 3, decay_type);
        let (folder, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = forked(source.path(), 4, folder.path(), &config).unwrap();
        assert_eq!(path, checkpoint(folder.path(), 4));
        assert!(tensors(folder.path(), 4) == tensors(source.path(), 4));
        // Stopped within its decay and resumed.
        let mut first = setup(&*backbone, &data, config.clone(), folder.path());
        (first.resume, first.stop_at) = (true, Some(5));
        assert_eq!(first.run().unwrap().step, 5);
        let mut second = setup(&*backbone, &data, config.clone(), folder.path());
        second.resume = true;
        second.run().unwrap();
        let mut planned = setup(&*backbone, &data, config, whole.path());
        planned.run().unwrap();
        assert!(second.bits() == planned.bits(), "{decay_type:?}");
        assert!(tensors(folder.path(), 7) == tensors(whole.path(), 7));
        ends.push(second.bits());
    }
    assert!(ends[0] != ends[1] && ends[0] != end, "decays differ");
    assert!(
        everything(source.path()) == before,
        "the stable run is as it was"
    );

    // It goes on as one that was never forked.
    let mut longer = setup(&*backbone, &data, stable(9), source.path());
    longer.resume = true;
    longer.run().unwrap();
    let whole = tempfile::tempdir().unwrap();
    let mut never = setup(&*backbone, &data, stable(9), whole.path());
    never.run().unwrap();
    assert!(longer.bits() == never.bits());
}

#[test]
fn a_stable_run_does_not_go_on_from_within_a_decay() {
    let (backbone, data) = (backbone("llama"), corpus());
    let folder = tempfile::tempdir().unwrap();
    let config = decayed(6, 2, DecayType::Linear);
    setup(&*backbone, &data, config.clone(), folder.path())
        .run()
        .unwrap();
    let mut longer = setup(
        &*backbone,
        &data,
        decayed(9, 2, DecayType::Linear),
        folder.path(),
    );
    longer.resume = true;
    let error = longer.run().unwrap_err();
    assert!(
        matches!(
            error,
            TrainError::Decayed {
                done: 6,
                start: 4,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("step-6"), "{error}");
    // Nor from a fork of such a checkpoint; of the last one before it there may be.
    let to = tempfile::tempdir().unwrap();
    let longer = decayed(12, 2, DecayType::Linear);
    let error = forked(folder.path(), 5, to.path(), &longer).unwrap_err();
    assert!(
        matches!(
            error,
            TrainError::Decayed {
                done: 5,
                start: 4,
                ..
            }
        ),
        "{error}"
    );
    forked(folder.path(), 4, to.path(), &longer).unwrap();
    // The run itself is done, and may be asked again.
    let mut same = setup(&*backbone, &data, config, folder.path());
    same.resume = true;
    assert_eq!(same.run().unwrap().step, 6);
}

#[test]
fn what_has_no_stable_stage_or_is_another_run_is_not_forked() {
    let (backbone, data) = (backbone("llama"), corpus());
    let refused = |stored: TrainConfig, step, config: &TrainConfig| {
        let (source, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        setup(&*backbone, &data, stored, source.path())
            .run()
            .unwrap();
        let error = forked(source.path(), step, to.path(), config)
            .unwrap_err()
            .to_string();
        assert!(list(to.path()).is_empty(), "{error}");
        error
    };
    let decay = decayed(5, 2, DecayType::Linear);
    let cosine = TrainConfig {
        lr_scheduler_type: Scheduler::Cosine,
        decay_ratio: TrainConfig::default().decay_ratio,
        ..stable(4)
    };
    let says = |error: String, parts: &[&str]| {
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    says(
        refused(cosine.clone(), 3, &decay),
        &["`cosine`", "no stable stage"],
    );
    let warm = TrainConfig {
        warmup_steps: 3,
        ..stable(4)
    };
    says(refused(warm, 2, &decay), &["step 2", "3 steps of warm-up"]);
    // Its decay would have begun before.
    says(refused(stable(4), 4, &decay), &["step 4 or later"]);
    says(
        refused(stable(4), 4, &decayed(4, 1, DecayType::Linear)),
        &["4 steps are done"],
    );
    let other = TrainConfig {
        weight_decay: 0.5,
        ..decay.clone()
    };
    says(
        refused(stable(3), 3, &other),
        &["`weight_decay` was 0.01, now 0.5"],
    );
    // A schedule that has no decay and is asked for one.
    let asked = TrainConfig {
        decay_steps: 2,
        ..cosine
    };
    says(
        refused(stable(3), 3, &asked),
        &["`decay_steps`", "`cosine`", "warmup_stable_decay"],
    );
}

#[test]
fn problems_of_the_decay_are_named() {
    let problem = |change: fn(&mut TrainConfig)| {
        let mut config = decayed(6, 2, DecayType::Exp);
        change(&mut config);
        let problems = config.validate().err().unwrap_or_default();
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        problems.join("\n")
    };
    assert_eq!(problem(|_| ()), "");
    let said = problem(|config| config.lr_scheduler_type = Scheduler::Linear);
    assert!(
        said.contains("`decay_type`") && said.contains("`linear`"),
        "{said}"
    );
    assert!(problem(|config| config.min_lr_ratio = 0.0).contains("`exp` never gets to 0"));
    let said = problem(|config| {
        (config.decay_type, config.decay_half_life) = (DecayType::Linear, 3.0);
    });
    assert!(
        said.starts_with("`decay_half_life`: only an `exp`"),
        "{said}"
    );
    assert!(problem(|config| config.decay_half_life = -1.0).contains("-1"));
    let said = problem(|config| {
        config.decay_mixture = mixture();
        (config.decay_steps, config.decay_ratio) = (0, 0.0);
    });
    assert!(
        said.starts_with("`decay_mixture`: the schedule has no decay"),
        "{said}"
    );
}

#[test]
fn keys_without_a_part_in_the_schedule_were_passed_over() {
    use Scheduler::{Constant, Cosine, Linear, WarmupStableDecay};
    type Change = fn(&mut TrainConfig);
    let keys: [(&str, Change, &[Scheduler]); 4] = [
        (
            "decay_ratio",
            |c| c.decay_ratio = 0.3,
            &[Constant, Linear, Cosine],
        ),
        (
            "decay_steps",
            |c| c.decay_steps = 3,
            &[Constant, Linear, Cosine],
        ),
        ("min_lr_ratio", |c| c.min_lr_ratio = 0.2, &[Constant]),
        ("min_lr", |c| c.min_lr = 1e-6, &[Constant]),
    ];
    for (key, change, refused) in keys {
        for scheduler in [Constant, Linear, Cosine, WarmupStableDecay] {
            let mut config = TrainConfig {
                lr_scheduler_type: scheduler,
                ..TrainConfig::default()
            };
            assert!(config.validate().is_ok(), "{scheduler:?}");
            change(&mut config);
            let problems = config.validate().err().unwrap_or_default();
            let named = problems
                .iter()
                .any(|p| p.to_string().starts_with(&format!("`{key}`")));
            assert_eq!(
                named,
                refused.contains(&scheduler),
                "{key} {scheduler:?}: {problems:?}"
            );
            // What is refused has no effect on the rate, and what is not has one.
            let usual = TrainConfig {
                lr_scheduler_type: scheduler,
                ..TrainConfig::default()
            };
            let rates = |config| {
                let schedule = crate::Schedule::new(config, 20);
                (0..20).map(|step| schedule.lr(step)).collect::<Vec<_>>()
            };
            assert_eq!(
                rates(&config) == rates(&usual),
                named,
                "{key} {scheduler:?}"
            );
        }
    }
    let halving = TrainConfig {
        decay_half_life: 2.0,
        ..decayed(6, 2, DecayType::Exp)
    };
    let problems = halving.validate().err().unwrap_or_default();
    assert!(
        problems
            .iter()
            .any(|p| p.to_string().starts_with("`min_lr_ratio`")),
        "{problems:?}"
    );
}

#[test]
fn the_decay_learns_from_the_mixture_and_resumes_within_it() {
    let (backbone, data, all) = (backbone("llama"), corpus(), with_more());
    let mixed = TrainConfig {
        decay_mixture: mixture(),
        ..decayed(8, 4, DecayType::Linear)
    };
    // Until the decay the run is the one that knows of no more data.
    let (plain, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    setup(&*backbone, &data, stable(8), plain.path())
        .run()
        .unwrap();
    let mut planned = setup(&*backbone, &all, mixed.clone(), whole.path());
    planned.run().unwrap();
    assert!(tensors(plain.path(), 4) == tensors(whole.path(), 4));
    assert!(tensors(plain.path(), 5) != tensors(whole.path(), 5));

    // Stopped in the decay, and forked from the run without the data.
    let part = tempfile::tempdir().unwrap();
    let mut first = setup(&*backbone, &all, mixed.clone(), part.path());
    first.stop_at = Some(6);
    assert_eq!(first.run().unwrap().ending, StopReason::Interrupted);
    let fork_of = tempfile::tempdir().unwrap();
    forked(plain.path(), 4, fork_of.path(), &mixed).unwrap();
    for folder in [part.path(), fork_of.path()] {
        let mut resumed = setup(&*backbone, &all, mixed.clone(), folder);
        resumed.resume = true;
        resumed.run().unwrap();
        assert!(resumed.bits() == planned.bits());
        assert!(tensors(folder, 8) == tensors(whole.path(), 8));
    }

    // Of weight 0 it is the corpus alone, and the list must be of the examples.
    let mut wrong = mixed;
    wrong.decay_mixture[1].examples = 4;
    let to = tempfile::tempdir().unwrap();
    let error = setup(&*backbone, &all, wrong, to.path()).run().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("14 examples are listed, and there are 13"),
        "{error}"
    );
}
