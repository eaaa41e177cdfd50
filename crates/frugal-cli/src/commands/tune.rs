//! `frugal tune`: the main job.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use frugal::adapt::peft;
use frugal::run::{TuneConfig, Tuned, tune};
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::report::Evaluation;
use serde_json::{Value, json};

use super::plan;
use crate::Outcome;
use crate::args::{Output, RunFlags};
use crate::ui::run::{RunProgress, number, ordered};
use crate::ui::{self, interrupt, table};

const EXAMPLES: &str = "\
Examples:
  frugal tune
  frugal tune --model smollm2-135m --data sst2.tsv --r 8 --out runs/sst2
  frugal tune --model smollm2-135m --data chats.jsonl --task causal-lm
  frugal tune --config run.toml --set train.lr=2e-4 --out runs/second
  frugal tune --resume runs/sst2

Without model, data, task, method and --config, the built-in model learns to recognise spam: a
demonstration with --lr 3e-3 --epochs 2 --pooling mean unless you say otherwise. With any of
them, the defaults above hold.

The run folder holds the adapter in the format of Hugging Face peft, the resolved
configuration, checkpoints, log, TensorBoard events and a report. Ctrl-C writes a checkpoint
and ends with status 130; --resume continues exactly where the run stopped.";

/// Adapt a model to data and show what it cost and gained
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    run: RunFlags,
    /// Run folder, new or empty [default: runs/DATA-METHOD]
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Continue the run in --out, or in this folder
    #[arg(long, value_name = "DIR", num_args = 0..=1, help_heading = "Output")]
    resume: Option<Option<PathBuf>>,
    /// Do not train, only show the plan
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

/// Resolves the configuration, trains, prints the comparison.
pub fn run(args: &Args) -> Result<Outcome> {
    let (flags, resumed) = resumed(args)?;
    let mut config = flags.resolve()?;
    if let Some(folder) = &resumed
        && config.out != *folder
    {
        let (run, out) = (folder.display(), config.out.display());
        bail!(
            "{run}: a run is continued in its own folder: leave out `{out}`, or begin there with `--config {run}/config.toml --out {out}`"
        );
    }
    if config.out.as_os_str().is_empty() {
        config.out = default_out(&config);
    }
    if args.dry_run {
        return plan::show(&config, &args.run.lookup(), args.output);
    }
    let command: Vec<String> = std::env::args().collect();
    let stop = interrupt::flag("stopping after this step; press Ctrl-C again to end at once");
    let tuned = {
        let mut progress = RunProgress::new(args.output);
        tune(
            &config,
            &command,
            &args.run.lookup(),
            resumed.is_some(),
            &stop,
            &mut |p| progress.on(p),
        )?
    };
    if args.output.json {
        ui::print_json(&describe(&tuned))?;
    } else if tuned.interrupted {
        ui::note(
            args.output,
            &format!(
                "continue with: frugal tune --resume {}",
                tuned.out.display()
            ),
        );
    } else {
        print(&tuned);
    }
    Ok(if tuned.interrupted {
        Outcome::Interrupted
    } else {
        Outcome::Done
    })
}

/// The flags with the run folder in them, and the folder of a run that is continued, which starts
/// from its own configuration.
fn resumed(args: &Args) -> Result<(RunFlags, Option<PathBuf>)> {
    let mut flags = args.run.clone();
    flags.out = args.out.clone();
    let Some(folder) = &args.resume else {
        return Ok((flags, None));
    };
    let Some(folder) = folder.as_ref().or(args.out.as_ref()) else {
        bail!("which run? Name its folder: `--resume DIR`");
    };
    if !folder.is_dir() {
        bail!(
            "{}: no such folder, so there is no run to continue",
            folder.display()
        );
    }
    let config = folder.join("config.toml");
    if flags.config.config.is_none() && config.is_file() {
        flags.config.config = Some(config);
    }
    // Another folder that was given is not the run's, which shows once everything is resolved.
    flags.out.get_or_insert_with(|| folder.clone());
    Ok((flags, Some(folder.clone())))
}

/// A folder in `runs` that is not in use, named after data and method.
fn default_out(config: &TuneConfig) -> PathBuf {
    let data = Path::new(&config.data.train)
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy();
    let name = format!("runs/{data}-{}", config.method.name);
    let free =
        |path: &Path| std::fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none());
    let numbered = (2..).map(|n| PathBuf::from(format!("{name}-{n}")));
    std::iter::once(PathBuf::from(&name))
        .chain(numbered)
        .find(|path| free(path))
        .unwrap_or_else(|| name.into())
}

fn describe(tuned: &Tuned) -> Value {
    let train = &tuned.record.train_info;
    json!({
        "interrupted": tuned.interrupted,
        "parts": tuned.parts,
        "costs": {
            "trainable_parameters": train.num_trainable_params,
            "total_parameters": train.num_total_params,
            "peak_memory_bytes": train.peak_memory,
            "train_seconds": train.train_time,
            "total_seconds": tuned.record.run_info.total_time,
            "train_tokens": train.train_tokens,
            "tokens_per_second": train.tokens_per_second(),
            "file_bytes": train.file_size,
        },
        "out": tuned.out,
        "adapter": tuned.adapter,
        "report": tuned.report,
        "record": tuned.out.join(frugal_eval::report::RECORD_FILE),
    })
}

fn print(tuned: &Tuned) {
    ui::print("");
    table::print(&comparison(&tuned.record.evaluation));
    let train = &tuned.record.train_info;
    let share = human::share(train.num_trainable_params, train.num_total_params);
    let speed = train.tokens_per_second().map_or_else(
        || "-".into(),
        |s| format!("{} tokens/s", human::count(s.round() as u64)),
    );
    let shown = |path: &Option<PathBuf>| {
        path.as_ref()
            .map(|p| p.display().to_string())
            .unwrap_or_default()
    };
    let mut rows = vec![
        (
            "trainable parameters",
            format!("{} ({share})", human::count(train.num_trainable_params)),
        ),
        (
            "peak memory",
            train.peak_memory.map_or_else(|| "-".into(), human::bytes),
        ),
        (
            "training",
            format!("{}, {speed}", human::duration(train.train_time)),
        ),
        (
            "everything",
            human::duration(tuned.record.run_info.total_time),
        ),
        ("file size", human::bytes(train.file_size)),
        ("adapter", shown(&tuned.adapter)),
        ("report", shown(&tuned.report)),
    ];
    rows.retain(|(_, value)| !value.is_empty());
    ui::print(&format!("\n{}", table::pairs(&rows)));
    if let Some(reason) = tuned.adapter.as_deref().and_then(peft::obstacle_of) {
        ui::print(&format!("Python does not read this adapter: {reason}."));
    }
}

/// Metrics of each part before and after.
fn comparison(parts: &[Evaluation]) -> Table {
    let [part, metric] = ["part", "metric"].map(Column::text);
    let mut table = Table::new(
        [part, metric]
            .into_iter()
            .chain(["base", "adapted", "change"].map(Column::number)),
    );
    for scores in parts {
        for (i, (name, adapted)) in ordered(&scores.adapted).into_iter().enumerate() {
            let base = scores.base.get(name);
            let part = if i == 0 {
                format!(
                    "{} ({})",
                    scores.split,
                    human::count(scores.examples as u64)
                )
            } else {
                String::new()
            };
            let change = base.map_or_else(|| "-".into(), |base| format!("{:+.4}", adapted - base));
            table.row([
                part,
                name.to_owned(),
                base.map_or_else(|| "-".into(), |b| number(*b)),
                number(adapted),
                change,
            ]);
        }
    }
    table
}
