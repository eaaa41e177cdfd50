use std::fs;

use frugal_models::random_weights;

use super::*;

/// Dropout, packing, accumulation and a decaying rate: everything that a resume has to get right.
fn config() -> TrainConfig {
    TrainConfig {
        lr: 0.02,
        epochs: 2.5,
        packing: true,
        max_tokens: 24,
        gradient_accumulation_steps: 2,
        warmup_steps: 2,
        weight_decay: 0.01,
        logging_steps: 1,
        save_steps: 1,
        save_total_limit: 0,
        load_best_model_at_end: false,
        ..TrainConfig::default()
    }
}

fn data() -> Vec<Tokenized> {
    counting(&[12, 9, 10, 7, 8, 11, 6, 12, 5, 9])
}

fn setup<'a>(backbone: &'a dyn Backbone, data: &'a [Tokenized], folder: &'a Path) -> Setup<'a> {
    let mut setup = Setup::new(backbone, lora(backbone, 0.2), data, config());
    setup.folder = Some(folder);
    setup.validation = Some(&data[..3]);
    setup
}

fn checkpoint(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("checkpoints/step-{step}"))
}

/// Parameters and moments as written, and the state.
fn files(folder: &Path, step: u64) -> (Vec<u8>, Vec<u8>, String) {
    let read = |name: &str| fs::read(checkpoint(folder, step).join(name)).unwrap();
    (
        read("parameters.safetensors"),
        read("optimizer.safetensors"),
        String::from_utf8(read("trainer_state.json")).unwrap(),
    )
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let (backbone, data) = (backbone("llama"), data());
    let bits = |seed| {
        let mut setup = Setup::new(
            &*backbone,
            lora(&*backbone, 0.2),
            &data,
            TrainConfig { seed, ..config() },
        );
        setup.run().unwrap();
        setup.bits()
    };
    assert_eq!(bits(1), bits(1));
    assert_ne!(bits(1), bits(2));
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    // Large enough that matrix products are split over threads.
    let raw = serde_json::json!({"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024, "tie_word_embeddings": true});
    let model = ModelConfig::from_json(raw, "test").unwrap();
    let backbone = build(
        model.clone(),
        &random_weights(&model, 1, &Device::flex()),
        &Device::flex(),
    )
    .unwrap();
    let data = counting(&[150, 170, 130, 190]);
    let bits = |threads| {
        let config = TrainConfig {
            max_steps: 3,
            max_tokens: 400,
            ..config()
        };
        let mut setup = Setup::new(&*backbone, full(&*backbone), &data, config);
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(|| setup.run().map(|_| setup.bits()))
            .unwrap()
    };
    let one = bits(1);
    for threads in [2, 3, 8] {
        let (differ, other) = (|(a, b): &(&u32, &u32)| a != b, bits(threads));
        assert_eq!(
            one.iter().zip(&other).filter(differ).count(),
            0,
            "{threads} threads"
        );
    }
}

#[test]
fn resuming_from_every_checkpoint_equals_never_stopping() {
    let (backbone, data, whole) = (backbone("llama"), data(), tempfile::tempdir().unwrap());
    let mut uninterrupted = setup(&*backbone, &data, whole.path());
    let total = uninterrupted.run().unwrap().step;
    assert!(total > 6, "several epochs of several steps, {total} in all");
    for step in 1..=total {
        let part = tempfile::tempdir().unwrap();
        copy(
            &checkpoint(whole.path(), step),
            &checkpoint(part.path(), step),
        );
        let mut resumed = setup(&*backbone, &data, part.path());
        resumed.resume = true;
        let outcome = resumed.run().unwrap();
        assert_eq!(
            (outcome.ending, outcome.step),
            (StopReason::Finished, total)
        );
        assert!(matches!(&resumed.events[1], Event::Resumed { step: s, .. } if *s == step));
        assert_eq!(
            resumed.bits(),
            uninterrupted.bits(),
            "resumed from step {step}"
        );
        assert_eq!(
            files(part.path(), total),
            files(whole.path(), total),
            "resumed from step {step}"
        );
        assert_eq!(resumed.losses(), uninterrupted.losses()[step as usize..]);
    }
}

#[test]
fn classification_resumes_with_its_head() {
    let (backbone, data, whole, part) = (
        backbone("bert"),
        containing_nine(20),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let run = |folder: &Path, resume| {
        let mut setup = setup(&*backbone, &data, folder);
        (setup.head, setup.resume) = (Some(head(&*backbone, 2)), resume);
        let step = setup.run().unwrap().step;
        (step, setup.bits())
    };
    let (total, bits) = run(whole.path(), false);
    copy(
        &checkpoint(whole.path(), total / 2),
        &checkpoint(part.path(), total / 2),
    );
    assert_eq!(run(part.path(), true), (total, bits));
    assert_eq!(files(part.path(), total), files(whole.path(), total));
}

#[test]
fn interrupted_anywhere_and_resumed_equals_never_stopping() {
    let (backbone, data, whole) = (backbone("llama"), data(), tempfile::tempdir().unwrap());
    let mut uninterrupted = setup(&*backbone, &data, whole.path());
    let total = uninterrupted.run().unwrap().step;
    // Passes 0 and 1 belong to the first step: nothing is done yet, so nothing is saved.
    for at in [0, 1, 2, 5, 6, 9] {
        let part = tempfile::tempdir().unwrap();
        let mut first = setup(&*backbone, &data, part.path());
        first.config.save_steps = 1000;
        first.adapter = Tripwire::boxed(lora(&*backbone, 0.2), at, Trip::Stop(first.stop.clone()));
        let outcome = first.run().unwrap();
        assert_eq!(outcome.ending, StopReason::Interrupted);
        let last = first.events.last().unwrap();
        assert_eq!(
            *last,
            Event::Interrupted {
                step: outcome.step,
                path: outcome.checkpoint.clone()
            }
        );
        assert_eq!(outcome.checkpoint.is_some(), outcome.step > 0);
        let mut second = setup(&*backbone, &data, part.path());
        second.resume = true;
        second.run().unwrap();
        assert_eq!(second.bits(), uninterrupted.bits(), "stopped at pass {at}");
        assert_eq!(
            files(part.path(), total),
            files(whole.path(), total),
            "stopped at pass {at}"
        );
    }
}

#[test]
fn an_evaluation_that_was_given_up_is_made_up_for() {
    let (backbone, data, whole, part) = (
        backbone("llama"),
        data(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let mut uninterrupted = setup(&*backbone, &data, whole.path());
    uninterrupted.config.eval_steps = 2;
    let outcome = uninterrupted.run().unwrap();
    let mut first = setup(&*backbone, &data, part.path());
    (first.config.eval_steps, first.stop_at) = (2, Some(4));
    assert_eq!(first.run().unwrap().ending, StopReason::Interrupted);
    assert_eq!(first.evaluations().len(), 1);
    let mut second = setup(&*backbone, &data, part.path());
    (second.config.eval_steps, second.resume) = (2, true);
    let resumed = second.run().unwrap();
    assert_eq!(
        [first.evaluations(), second.evaluations()].concat(),
        uninterrupted.evaluations()
    );
    assert_eq!(
        (resumed.best, resumed.evaluation),
        (outcome.best, outcome.evaluation)
    );
}

#[test]
fn damaged_checkpoints_are_passed_over() {
    let (backbone, data, folder) = (backbone("llama"), data(), tempfile::tempdir().unwrap());
    let mut uninterrupted = setup(&*backbone, &data, folder.path());
    let total = uninterrupted.run().unwrap().step;
    let expected = files(folder.path(), total);
    // A torn file, a flipped bit, no manifest, and a checkpoint that was never finished.
    let parameters = checkpoint(folder.path(), total).join("parameters.safetensors");
    fs::File::options()
        .write(true)
        .open(parameters)
        .unwrap()
        .set_len(100)
        .unwrap();
    let optimizer = checkpoint(folder.path(), total - 1).join("optimizer.safetensors");
    let mut bytes = fs::read(&optimizer).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&optimizer, bytes).unwrap();
    fs::remove_file(checkpoint(folder.path(), total - 2).join("manifest.json")).unwrap();
    fs::create_dir_all(
        folder
            .path()
            .join(format!("checkpoints/.step-{}.tmp", total + 1)),
    )
    .unwrap();

    let (found, skipped) = latest(folder.path());
    assert_eq!((found.unwrap().state.step, skipped.len()), (total - 3, 3));
    let mut resumed = setup(&*backbone, &data, folder.path());
    resumed.resume = true;
    resumed.run().unwrap();
    let reasons: Vec<_> = resumed
        .events
        .iter()
        .filter_map(|e| {
            if let Event::CheckpointSkipped { reason, .. } = e {
                Some(reason.as_str())
            } else {
                None
            }
        })
        .collect();
    assert!(
        reasons[0].contains("`parameters.safetensors` is not as it was written"),
        "{reasons:?}"
    );
    assert!(reasons[2].contains("manifest.json"), "{reasons:?}");
    assert_eq!(resumed.bits(), uninterrupted.bits());
    assert_eq!(files(folder.path(), total), expected);
}

#[test]
fn without_a_usable_checkpoint_a_resume_is_refused_and_not_begun_again() {
    let (backbone, data, folder) = (backbone("llama"), data(), tempfile::tempdir().unwrap());
    setup(&*backbone, &data, folder.path()).run().unwrap();
    for (_, path) in list(folder.path()) {
        fs::write(path.join("manifest.json"), "{}").unwrap();
    }
    let before = list(folder.path());
    let mut resumed = setup(&*backbone, &data, folder.path());
    resumed.resume = true;
    let error = resumed.run().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, TrainError::NoCheckpoint { .. }), "{text}");
    for (step, _) in &before {
        assert!(text.contains(&format!("step-{step}")), "{text}");
    }
    assert!(resumed.events.is_empty());
    assert_eq!(list(folder.path()), before);
}

#[test]
fn the_limit_spares_the_best_and_the_newest() {
    let (backbone, data, folder) = (backbone("llama"), data(), tempfile::tempdir().unwrap());
    // Never better than the first evaluation, because nothing is learned at this rate.
    let mut setup = setup(&*backbone, &data, folder.path());
    setup.config = TrainConfig {
        lr: 1e-30,
        eval_steps: 2,
        save_total_limit: 2,
        ..config()
    };
    let total = setup.run().unwrap().step;
    let steps: Vec<u64> = list(folder.path())
        .into_iter()
        .map(|(step, _)| step)
        .collect();
    assert_eq!(steps, [2, total - 1, total]);
}

#[test]
fn the_best_checkpoint_is_restored_at_the_end() {
    let (backbone, data, folder) = (backbone("llama"), data(), tempfile::tempdir().unwrap());
    let mut setup = setup(&*backbone, &data, folder.path());
    let mut opposite = data.clone();
    for example in &mut opposite {
        let Target::Tokens(targets) = &mut example.labels else {
            unreachable!()
        };
        targets
            .iter_mut()
            .filter(|t| **t != IGNORE_INDEX)
            .for_each(|t| *t = 63 - *t);
    }
    setup.validation = Some(&opposite);
    setup.config = TrainConfig {
        eval_steps: 1,
        save_total_limit: 1,
        load_best_model_at_end: true,
        save_steps: 1000,
        ..config()
    };
    let outcome = setup.run().unwrap();
    let best = outcome.best.unwrap().step;
    assert!(outcome.restored_best && best < outcome.step);
    let bits = setup.bits();
    Checkpoint::open(&checkpoint(folder.path(), best))
        .unwrap()
        .load_parameters(setup.adapter.parameters_mut())
        .unwrap();
    assert_eq!(bits, setup.bits());
    // The newest checkpoint still has the last weights, for a resume with more epochs.
    Checkpoint::open(&checkpoint(folder.path(), outcome.step))
        .unwrap()
        .load_parameters(setup.adapter.parameters_mut())
        .unwrap();
    assert_ne!(bits, setup.bits());
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_checkpoint() {
    let (backbone, data, folder) = (backbone("llama"), data(), tempfile::tempdir().unwrap());
    let mut setup = setup(&*backbone, &data, folder.path());
    setup.adapter = Tripwire::boxed(lora(&*backbone, 0.2), 3, Trip::Poison);
    // Two micro-batches a step: pass 3 is the second one of step 2.
    let rows: Vec<u32> = Batches::new(&data, &setup.config)
        .epoch(0)
        .step(1)
        .nth(1)
        .map_or_else(Vec::new, <[u32]>::to_vec);
    let error = setup.run().unwrap_err();
    let TrainError::NonFinite {
        step: 2,
        rows: named,
        checkpoint: Some(kept),
        ..
    } = &error
    else {
        panic!("{error}")
    };
    assert!(!rows.is_empty());
    assert_eq!((named, kept), (&rows, &checkpoint(folder.path(), 1)));
    let text = error.to_string();
    let examples = rows
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    assert!(
        text.contains("step 2")
            && text.contains("epoch 0.")
            && text.contains(&examples)
            && text.contains("step-1"),
        "{text}"
    );
    let bits = setup.bits();
    let found = latest(folder.path()).0.unwrap();
    assert_eq!(found.state.step, 1);
    found
        .load_parameters(setup.adapter.parameters_mut())
        .unwrap();
    assert_eq!(bits, setup.bits(), "the step that failed changed nothing");
}

#[test]
fn weights_that_are_not_finite_are_not_saved() {
    let (backbone, data, folder) = (backbone("llama"), data(), tempfile::tempdir().unwrap());
    let mut setup = setup(&*backbone, &data, folder.path());
    setup.validation = None;
    // The first steps of the warm-up are harmless, the next one overflows.
    (
        setup.config.lr,
        setup.config.warmup_steps,
        setup.config.weight_decay,
    ) = (1e300, 1, 0.0);
    let error = setup.run().unwrap_err();
    assert!(
        matches!(&error, TrainError::Diverged { step: 2, checkpoint: Some(kept), .. } if kept.ends_with("step-1")),
        "{error}"
    );
    assert_eq!(latest(folder.path()).0.unwrap().state.step, 1);
}

#[test]
fn a_resume_with_other_settings_or_data_is_refused() {
    let (backbone, data, folder) = (backbone("llama"), data(), tempfile::tempdir().unwrap());
    setup(&*backbone, &data, folder.path()).run().unwrap();
    let mut again = setup(&*backbone, &data, folder.path());
    assert!(matches!(again.run(), Err(TrainError::FolderInUse { .. })) && again.events.is_empty());

    let mut other = setup(&*backbone, &data[1..], folder.path());
    (other.resume, other.config.lr, other.config.logging_steps) = (true, 0.03, 7);
    let text = other.run().unwrap_err().to_string();
    assert!(
        text.contains("`lr` was 0.02, now 0.03") && text.contains("training data are not the same"),
        "{text}"
    );
    assert!(!text.contains("logging_steps"), "{text}");

    let mut wider = setup(&*backbone, &data, folder.path());
    wider.resume = true;
    wider.adapter = Box::new(
        Lora::new(
            LoraConfig {
                r: 4,
                ..LoraConfig::default()
            },
            &context(&*backbone),
        )
        .unwrap(),
    );
    let before = wider.bits();
    let text = wider.run().unwrap_err().to_string();
    assert!(
        text.contains("does not fit this adapter")
            && text.contains("expected [4, 32], the file has [8, 32]"),
        "{text}"
    );
    assert_eq!(wider.bits(), before);
}

#[test]
fn a_run_that_was_made_longer_at_a_resume_is_not_told_as_one_that_went_through() {
    let (backbone, data) = (backbone("llama"), data());
    let folder = tempfile::tempdir().unwrap();
    let run = |epochs, resume| {
        let mut setup = setup(&*backbone, &data, folder.path());
        (setup.config.epochs, setup.resume) = (epochs, resume);
        setup.config.lr_scheduler_type = Scheduler::Linear;
        (setup.config.warmup_ratio, setup.config.warmup_steps) = (0.0, 0);
        setup.run().unwrap()
    };
    assert!(run(1.0, false).changes.is_empty());
    assert!(run(1.0, true).changes.is_empty());
    let longer = run(2.0, true).changes;
    assert_eq!(longer.len(), 1);
    assert!(longer[0].contains("resumed at step"), "{longer:?}");
    // A later resume of the same length does not make it forgotten.
    assert_eq!(run(2.0, true).changes, longer);

    // Rates that do not depend on the length are those of a run that went through.
    let folder = tempfile::tempdir().unwrap();
    let constant = |epochs, resume| {
        let mut setup = setup(&*backbone, &data, folder.path());
        (setup.config.epochs, setup.resume) = (epochs, resume);
        setup.config.lr_scheduler_type = Scheduler::Constant;
        (setup.config.warmup_ratio, setup.config.warmup_steps) = (0.0, 0);
        setup.run().unwrap().changes
    };
    assert!(constant(1.0, false).is_empty());
    assert!(constant(2.0, true).is_empty());
}

#[test]
fn a_run_whose_folder_is_removed_ends_at_its_next_checkpoint() {
    let (backbone, data) = (backbone("llama"), data());
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut setup = setup(&*backbone, &data, &out);
    let trained = crate::train(TrainRun {
        backbone: setup.backbone,
        adapter: setup.adapter.as_mut(),
        head: None,
        train: setup.train,
        validation: setup.validation,
        config: &setup.config,
        folder: setup.folder,
        resume: false,
        stop: &setup.stop,
        observer: &mut |event: &Event| {
            if matches!(event, Event::Step { step: 2, .. }) {
                fs::remove_dir_all(&out).unwrap();
            }
        },
    });
    let told = format!("{:?}", trained.err());
    assert!(told.contains("the folder of the run is gone"), "{told}");
    assert!(!out.exists());
}

#[test]
fn more_epochs_continue_a_finished_run() {
    let (backbone, data, folder) = (backbone("llama"), data(), tempfile::tempdir().unwrap());
    let done = setup(&*backbone, &data, folder.path()).run().unwrap().step;
    let mut longer = setup(&*backbone, &data, folder.path());
    (longer.resume, longer.config.epochs) = (true, 4.0);
    let outcome = longer.run().unwrap();
    assert_eq!(longer.losses().len() as u64, outcome.step - done);
    assert_eq!((outcome.epoch, outcome.ending), (4.0, StopReason::Finished));
}

#[test]
fn a_resume_that_would_end_before_the_steps_done_is_refused() {
    let (backbone, data, folder) = (backbone("llama"), data(), tempfile::tempdir().unwrap());
    let done = setup(&*backbone, &data, folder.path()).run().unwrap().step;
    let resumed = |max_steps, epochs| {
        let mut again = setup(&*backbone, &data, folder.path());
        again.resume = true;
        (again.config.max_steps, again.config.epochs) = (max_steps, epochs);
        let outcome = again.run();
        // Nobody was told that the run goes on, so nothing of it is written anew.
        (
            outcome.map(|o| o.step).map_err(|e| e.to_string()),
            again.events.is_empty(),
        )
    };
    let (refused, silent) = resumed(done - 1, 2.5);
    let told = format!(
        "`max_steps` can be raised, not lowered below the {done} steps done: as it is now, the run has {}",
        done - 1
    );
    assert!(
        silent && refused.as_ref().is_err_and(|e| e.ends_with(&told)),
        "{refused:?}"
    );
    let (refused, silent) = resumed(0, 1.0);
    assert!(
        silent
            && refused
                .as_ref()
                .is_err_and(|e| e.contains("`epochs` can be raised")),
        "{refused:?}"
    );
    assert_eq!(resumed(done, 2.5), (Ok(done), false));
}

#[test]
fn the_cost_of_a_resumed_run_adds_up() {
    let (backbone, data, folder) = (backbone("llama"), data(), tempfile::tempdir().unwrap());
    let mut whole = setup(&*backbone, &data, folder.path());
    let cost = whole.run().unwrap().cost;
    let saved = crate::latest(folder.path()).0.unwrap().cost;
    assert!(
        saved.seconds > 0.0 && saved.seconds <= cost.seconds,
        "{saved:?} {cost:?}"
    );
    // Nothing is left to do, which takes no time of its own.
    let mut again = setup(&*backbone, &data, folder.path());
    again.resume = true;
    let resumed = again.run().unwrap().cost;
    assert!(
        resumed.seconds >= saved.seconds && resumed.peak_memory_bytes >= saved.peak_memory_bytes,
        "{saved:?} {resumed:?}"
    );
    assert!(
        matches!(&again.events[1], Event::Resumed { seconds, .. } if *seconds == saved.seconds)
    );
}
