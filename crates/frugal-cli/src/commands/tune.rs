//! `frugal tune`: the main job.

use std::path::PathBuf;

use anyhow::{Result, bail};
use frugal::adapt::peft;
use frugal::run::{MemoryCheck, TuneRequest, Tuned, tune};
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::baselines::MAJORITY;
use frugal_eval::report::Evaluation;
use serde_json::{Value, json};

use super::plan;
use crate::args::{Output, RunFlags, command_line};
use crate::outcome::Outcome;
use crate::ui::run::{RunProgress, number, ordered};
use crate::ui::{self, interrupt, table};

const EXAMPLES: &str = "\
Examples:
  frugal tune
  frugal tune --model smollm2-135m --data sst2.tsv --r 8 --out runs/sst2
  frugal tune --model smollm2-135m --data chats.jsonl --task causal-lm
  frugal tune --config run.toml --set train.lr=2e-4 --out runs/second
  frugal tune --resume runs/sst2
  frugal tune --adapter runs/sst2 --data more.tsv --out runs/sst2-more
  frugal tune --qlora --model org/name --data chats.jsonl --task causal-lm --fit

Without model, data, task, method and --config, the built-in model learns to recognise spam: a \
demonstration with --lr 3e-3 --epochs 2 --pooling mean unless you say otherwise. With any of \
them, the defaults above hold.

The run folder holds the adapter in the format of Hugging Face peft, the resolved \
configuration, checkpoints, log, TensorBoard events and a report. Ctrl-C writes a checkpoint \
and ends with status 130; --resume continues exactly where the run stopped.";

/// Adapt a model to data and show what it cost and gained
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    run: RunFlags,
    /// Run folder, new or empty [default: runs/DATA-METHOD]
    #[arg(long, short, value_name = "DIR", value_parser = crate::args::folder, help_heading = "Output")]
    out: Option<PathBuf>,
    /// Continue the run in --out, or in this folder
    #[arg(long, value_name = "DIR", num_args = 0..=1, help_heading = "Output")]
    resume: Option<Option<PathBuf>>,
    /// Do not train, only show the plan
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    /// Change --memory, batches and --quantize, in this order, until the run fits the memory
    #[arg(long, help_heading = "Machine", conflicts_with = "no_memory_check")]
    fit: bool,
    /// Begin even a run that needs more memory than there is
    #[arg(long, help_heading = "Machine")]
    no_memory_check: bool,
    #[command(flatten)]
    output: Output,
}

/// Resolves the configuration, trains, prints the comparison.
pub fn run(args: &Args) -> Result<Outcome> {
    let (flags, resumed) = resumed(args)?;
    let config = flags.resolve()?;
    flags.warn_of_idle(&config, args.output);
    if let Some(folder) = &resumed
        && config.out != *folder
    {
        let (run, out) = (folder.display(), config.out.display());
        bail!(
            "{run}: a run is continued in its own folder: leave out `{out}`, or begin there with `--config {run}/config.toml --out {out}`"
        );
    }
    if args.dry_run {
        return plan::show(&config, &args.run.lookup(), args.output);
    }
    let stop = interrupt::flag("stopping after this step; press Ctrl-C again to end at once");
    let request = TuneRequest {
        config: &config,
        command: &command_line(),
        lookup: &args.run.lookup(),
        resume: resumed.is_some(),
        memory: args.memory_check(),
        stop: &stop,
    };
    interrupt::reading();
    let tuned = {
        let mut progress = RunProgress::new(args.output);
        tune(&request, &mut |p| progress.on(p))?
    };
    let resume = format!("frugal tune --resume {}", tuned.out.display());
    report(&tuned, args.output, &resume)
}

/// Prints what came of a run; `resume` says how one that was interrupted is continued.
pub(super) fn report(tuned: &Tuned, output: Output, resume: &str) -> Result<Outcome> {
    if output.json {
        ui::print_json(&describe(tuned))?;
    } else if tuned.interrupted {
        ui::note(output, &format!("continue with: {resume}"));
    } else {
        print(tuned);
    }
    Ok(if tuned.interrupted {
        Outcome::Interrupted
    } else {
        Outcome::Done
    })
}

impl Args {
    fn memory_check(&self) -> MemoryCheck {
        match (self.fit, self.no_memory_check) {
            (true, _) => MemoryCheck::Fit,
            (_, true) => MemoryCheck::Ignore,
            _ => MemoryCheck::Refuse,
        }
    }
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

fn describe(tuned: &Tuned) -> Value {
    let train = &tuned.record.train_info;
    json!({
        "interrupted": tuned.interrupted,
        "kept_step": tuned.kept_step,
        "best": tuned.best.as_ref().map(|best| json!({ "step": best.step, "metric": best.metric, "value": best.value })),
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
    if tuned.record.evaluation.is_empty() {
        ui::print("nothing was measured: there is neither validation nor test data");
    } else {
        table::print(&comparison(&tuned.record.evaluation));
    }
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
        ("weights kept", kept(tuned)),
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

/// Which step's weights were kept, and why.
fn kept(tuned: &Tuned) -> String {
    let step = tuned.kept_step;
    match &tuned.best {
        Some(best) if best.step == step => format!(
            "of step {step}, the best by validation {} ({})",
            best.metric,
            number(best.value)
        ),
        Some(best) => format!("of the last step, {step}; step {} was the best", best.step),
        None => format!("of the last step, {step}"),
    }
}

/// Metrics of each part before and after, with the commonest class beside them for classification:
/// an untrained head is no measure of what was gained.
fn comparison(parts: &[Evaluation]) -> Table {
    // The commonest class for classes, the mean of the training data for numbers.
    let known = || parts.iter().flat_map(|scores| scores.baselines.keys());
    let reference = known()
        .find(|name| *name == MAJORITY)
        .or_else(|| known().next())
        .map(String::as_str);
    let of_reference = |scores: &Evaluation, name: &str| {
        let metrics = scores.baselines.get(reference?)?;
        metrics.get(name).copied()
    };
    let classes = reference.is_some();
    let [part, metric] = ["part", "metric"].map(Column::text);
    let untrained = if classes { "untrained" } else { "base" };
    let numbers = reference
        .into_iter()
        .chain([untrained, "adapted", "change"]);
    let mut table = Table::new(
        [part, metric]
            .into_iter()
            .chain(numbers.map(Column::number)),
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
            let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
            let mut cells = vec![part, name.to_owned()];
            cells.extend(classes.then(|| shown(of_reference(scores, name))));
            cells.extend([shown(base.copied()), number(adapted), change]);
            table.row(cells);
        }
    }
    table
}
