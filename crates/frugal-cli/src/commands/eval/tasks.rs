//! `frugal eval --tasks`: the evaluation harness.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::ValueEnum;
use frugal::measure::language_model::HarnessModel;
use frugal::model::Quantize;
use frugal_core::fs::write_atomic;
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::measurement::{self, Cost, Kind, MEASUREMENTS_FILE, Measurement, Meter};
use frugal_eval::report::DatasetInfo;
use frugal_eval::tasks::{Context, EvalEvent, EvalResults, LanguageModel, Task, run as run_task};
use serde_json::{Map, json};

use super::Args;
use crate::Outcome;
use crate::commands::generate::needs_chat_template;
use crate::commands::sandbox;
use crate::folder::{RESULTS_FILE, claim};
use crate::loaded::Loaded;
use crate::measured::{cost_line, measurement, model_info, precision};
use crate::ui::progress::Counter;
use crate::ui::{self, interrupt, table};

/// What is asked and how.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Tasks")]
pub struct Flags {
    /// Tasks, with commas between: names or task files (TOML, or YAML of lm-evaluation-harness),
    /// each with :FILE for data of your own; `list` shows the names
    #[arg(long, short, value_name = "TASKS", value_delimiter = ',')]
    tasks: Vec<String>,
    /// Only the first N records of each task; 0 for all
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        conflicts_with = "data"
    )]
    limit: usize,
    /// Examples in front of each question [default: the task's]
    #[arg(long, value_name = "K", conflicts_with = "data")]
    num_fewshot: Option<usize>,
    /// Which records become examples
    #[arg(long, value_name = "HOW", value_enum, default_value_t = FewshotOrder::Random, conflicts_with = "data")]
    fewshot_order: FewshotOrder,
    /// Write prompts by the model's chat template
    #[arg(long, conflicts_with = "data")]
    apply_chat_template: bool,
    /// Examples as turns of the conversation; needs --apply-chat-template
    #[arg(long, requires = "apply_chat_template", conflicts_with = "data")]
    fewshot_as_multiturn: bool,
    /// Instruction in front of everything
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        conflicts_with = "data"
    )]
    system_instruction: String,
    /// Decides which examples are drawn
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "data")]
    seed: u64,
    /// How weights are held: none (single precision), stored, int8, nf4, nf4_double, q8_0, q4_0,
    /// q4_1, sparse [default: as in the run of the adapter, or none]
    #[arg(long, value_name = "NAME")]
    pub(super) quantize: Option<Quantize>,
    /// Run programs that the model writes, in a sandbox; humaneval needs it
    #[arg(long, conflicts_with = "data")]
    allow_code_execution: bool,
    /// Run them even where the kernel cannot keep them from your files and network
    #[arg(long, requires = "allow_code_execution", conflicts_with = "data")]
    no_isolation: bool,
    /// Folder with the tasks' data sets [default: $FRUGAL_DATA]
    #[arg(long, value_name = "DIR", conflicts_with = "data")]
    data_dir: Option<PathBuf>,
    /// Keep answers, samples, results and what they cost in this folder; the same command goes on
    /// where it was stopped
    #[arg(long, short, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
}

/// Which records become examples.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FewshotOrder {
    /// Drawn by the seed, for each question anew
    Random,
    /// The first ones
    First,
}

/// Asks all tasks.
pub(super) fn run(args: &Args) -> Result<Outcome> {
    let flags = &args.tasks;
    if flags.tasks.iter().any(|t| t == "list") {
        return list(args);
    }
    let tasks = flags
        .tasks
        .iter()
        .map(|t| Task::find(t))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(twice) = tasks.iter().enumerate().find_map(|(i, (t, _))| {
        tasks[..i]
            .iter()
            .any(|(o, _)| o.name == t.name)
            .then_some(t)
    }) {
        bail!(
            "the task `{}` is named twice: results have one entry for each name",
            twice.name
        );
    }
    let claimed = |out| claim(out, "results", |name| name.starts_with("answers_"));
    let _lock = flags.out.as_deref().map(claimed).transpose()?;
    let meter = Meter::start();
    let loaded =
        Loaded::read_for_scoring(&args.model, &args.machine, args.quantize()?, args.output)?;
    let fingerprint = fingerprint(&loaded, args)?;
    let mut model = HarnessModel {
        backbone: loaded.backbone.as_ref(),
        adapters: &loaded.adapters,
        choice: loaded.choice.clone(),
        tokenizer: loaded.files.tokenizer()?,
        batch_tokens: args.batch_tokens,
        fingerprint,
    };
    let stop = interrupt::flag("stopping after this batch; press Ctrl-C again to end at once");
    let (begin, date) = (
        Instant::now(),
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs()),
    );
    let mut results = EvalResults {
        config: config(args, &loaded, model.fingerprint())?,
        date,
        ..EvalResults::default()
    };
    if flags.apply_chat_template {
        needs_chat_template(
            model.tokenizer,
            loaded.files.name(),
            "Leave out `--apply-chat-template`",
        )?;
        results.chat_template = model
            .tokenizer
            .chat_template()
            .map(|t| t.source().to_owned());
    }
    let sandbox = flags
        .allow_code_execution
        .then(|| sandbox::open(None, flags.no_isolation, args.output))
        .transpose()?;
    for (task, folder) in tasks {
        let context = Context {
            sandbox: sandbox.clone(),
            ..context(flags, folder)
        };
        let mut counter = None;
        let found = run_task(&task, &context, &mut model, &mut |event| {
            match event {
                EvalEvent::Task {
                    name,
                    answers,
                    answered,
                } => {
                    if answered > 0 {
                        ui::note(
                            args.output,
                            &format!("{name}: {answered} of {answers} answers are there already"),
                        );
                    }
                    counter = Some(Counter::new(
                        args.output,
                        name,
                        answers as u64,
                        answered as u64,
                    ));
                }
                EvalEvent::Answered => counter.iter_mut().for_each(Counter::step),
            }
            !interrupt::asked(&stop)
        })?;
        drop(counter);
        let Some(found) = found else {
            return Ok(Outcome::Interrupted);
        };
        results.tasks.push(found);
        results.seconds = begin.elapsed().as_secs_f64();
        if let Some(out) = &flags.out {
            let json = serde_json::to_string_pretty(&results.to_json())? + "\n";
            write_atomic(&out.join(RESULTS_FILE), json.as_bytes())?;
            write_atomic(&out.join("results.md"), results.to_markdown().as_bytes())?;
        }
    }
    let kept = record(args, &loaded, &results, meter.stop())?;
    if let Some(out) = &flags.out {
        measurement::write(&out.join(MEASUREMENTS_FILE), std::slice::from_ref(&kept))?;
    }
    if args.output.json {
        let mut json = results.to_json();
        json["measurement"] = json!(kept);
        ui::print_json(&json)?;
    } else {
        ui::write(&results.to_markdown());
        let samples: usize = results.tasks.iter().map(|t| t.effective).sum();
        ui::note(
            args.output,
            &format!(
                "{} samples in {}",
                human::count(samples as u64),
                cost_line(&kept.cost)
            ),
        );
    }
    Ok(Outcome::Done)
}

/// Model, machine and cost beside the scores, so that quality and cost meet in one table.
fn record(args: &Args, loaded: &Loaded, results: &EvalResults, cost: Cost) -> Result<Measurement> {
    let quantize = args.quantize()?;
    let mut kept = Measurement {
        model: model_info(&loaded.files),
        adapter: args.model.adapter.as_ref().map(|a| a.display().to_string()),
        precision: precision(&loaded.files, quantize),
        ..measurement(Kind::Tasks, args.machine.device_name(), cost)
    };
    let resumed: usize = results.tasks.iter().map(|t| t.resumed).sum();
    if resumed > 0 {
        // Their time was spent by an earlier process.
        kept.details = json!({ "resumed_answers": resumed });
    }
    for task in &results.tasks {
        kept.data.push(DatasetInfo {
            split: task.task.name.clone(),
            source: task.task.name.clone(),
            examples: task.effective,
            sha256: task.data_sha256.clone(),
        });
        for score in &task.measured {
            let filter = match score.filter.as_str() {
                "none" => String::new(),
                filter => format!(" ({filter})"),
            };
            let name = format!("{}: {}{filter}", task.task.name, score.metric);
            kept.values.insert(name, score.value);
        }
    }
    Ok(kept)
}

fn context(flags: &Flags, task_folder: Option<PathBuf>) -> Context {
    Context {
        data: flags
            .data_dir
            .clone()
            .or_else(|| std::env::var_os("FRUGAL_DATA").map(PathBuf::from)),
        task_folder,
        limit: flags.limit,
        num_fewshot: flags.num_fewshot,
        first_shots: matches!(flags.fewshot_order, FewshotOrder::First),
        seed: flags.seed,
        chat_template: flags.apply_chat_template,
        fewshot_as_multiturn: flags.fewshot_as_multiturn,
        system: flags.system_instruction.clone(),
        out: flags.out.clone(),
        sandbox: None,
    }
}

fn config(
    args: &Args,
    loaded: &Loaded,
    fingerprint: &str,
) -> Result<Map<String, serde_json::Value>> {
    let flags = &args.tasks;
    let model = json!({
        "model": "frugal",
        "model_args": { "pretrained": loaded.files.name(), "peft": args.model.adapter },
        "model_fingerprint": fingerprint,
        "quantize": args.quantize()?,
        "batch_tokens": args.batch_tokens,
        "device": args.machine.device_name(),
        "limit": (flags.limit > 0).then_some(flags.limit),
        "num_fewshot": flags.num_fewshot,
        "fewshot_as_multiturn": flags.fewshot_as_multiturn,
        "system_instruction": flags.system_instruction,
        "random_seed": flags.seed,
        "frugal_version": env!("CARGO_PKG_VERSION"),
    });
    Ok(if let serde_json::Value::Object(map) = model {
        map
    } else {
        Map::new()
    })
}

/// Files of model and adapter by name, size and time: another one of these is another model, whose
/// answers are asked anew.
fn fingerprint(loaded: &Loaded, args: &Args) -> Result<String> {
    let mut parts = vec![
        loaded.files.name().to_owned(),
        format!("{:?}", args.quantize()?),
        env!("CARGO_PKG_VERSION").to_owned(),
    ];
    let model = loaded.files.path();
    for place in [Some(model), args.model.adapter.as_deref()]
        .into_iter()
        .flatten()
    {
        let mut files = if place.is_dir() {
            std::fs::read_dir(place)?
                .flatten()
                .map(|e| e.path())
                .filter(|p| is_weights(p))
                .collect()
        } else if place.is_file() {
            vec![place.to_owned()]
        } else {
            Vec::new()
        };
        files.sort();
        for file in files {
            let about = file.metadata()?;
            let time = about
                .modified()?
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_nanos());
            parts.push(format!("{} {} {time}", file.display(), about.len()));
        }
    }
    Ok(parts.join("; "))
}

fn is_weights(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e == "safetensors" || e == "gguf")
        || path.file_name().is_some_and(|n| n == "tokenizer.json")
}

fn list(args: &Args) -> Result<Outcome> {
    let tasks = Task::names()
        .filter_map(Task::builtin)
        .collect::<Result<Vec<_>, _>>()?;
    if args.output.json {
        ui::print_json(&tasks)?;
    } else {
        let mut shown = Table::new([Column::text("task"), Column::text("what it asks")]);
        for task in &tasks {
            shown.row([task.name.clone(), task.description.clone()]);
        }
        table::print(&shown);
    }
    Ok(Outcome::Done)
}
