//! Adapts the built-in model to the built-in data from a program: what `frugal tune` does, with the
//! scores as values.
//!
//! `cargo run --release --example adapt`

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::sync::atomic::AtomicBool;

use frugal::model::load::Lookup;
use frugal::run::{MemoryCheck, Progress, TuneConfig, TuneRequest, tune};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    // Every setting of the configuration file is a field; the rest keep their defaults.
    let mut config = TuneConfig {
        model: "builtin".into(),
        out: folder.path().join("run"),
        ..TuneConfig::default()
    };
    config.data.train = "sms-spam".into();
    config.data.max_train_rows = 320;
    config.data.max_eval_rows = 100;
    config.method.settings.insert("r".into(), 4.into());
    config.resolve();

    // Setting this from another thread ends the run with a checkpoint.
    let stop = AtomicBool::new(false);
    let mut observe = |progress: &Progress| {
        if let Progress::Scores { who, part, metrics } = progress {
            println!("{who} on {part}: accuracy {:.3}", metrics["accuracy"]);
        }
    };
    let request = TuneRequest {
        config: &config,
        command: &[],
        lookup: &Lookup::default(),
        resume: false,
        memory: MemoryCheck::default(),
        stop: &stop,
    };
    let tuned = tune(&request, &mut observe)?;

    let costs = &tuned.record.train_info;
    println!(
        "{} of {} parameters trained in {:.1} s",
        costs.num_trainable_params, costs.num_total_params, costs.train_time
    );
    println!(
        "the adapter is in {}",
        tuned.adapter.ok_or("the run was interrupted")?.display()
    );
    Ok(())
}
