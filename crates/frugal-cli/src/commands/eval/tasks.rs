//! `frugal eval --tasks`: the evaluation harness.

use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use frugal::measure::language_model::HarnessModel;
use frugal_core::fs::write_atomic;
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::endpoint::Call;
use frugal_eval::endpoint_model::EndpointModel;
use frugal_eval::measurement::{self, Cost, MEASUREMENTS_FILE, Measurement, Meter};
use frugal_eval::report::{DatasetInfo, ModelInfo};
use frugal_eval::tasks::{
    Context, EvalEvent, EvalResults, Kind, LanguageModel, Plan, Task, override_generation,
    run as run_task,
};
use serde_json::{Map, json};

use super::fingerprint::fingerprint;
use super::flags::{Args, FewshotOrder, TaskFlags};
use super::stop::Stop;
use crate::args::api_key;
use crate::commands::generate::needs_chat_template;
use crate::commands::sandbox;
use crate::folder::{RESULTS_FILE, claim};
use crate::loaded;
use crate::measured::{cost_line, measurement, model_info, precision};
use crate::outcome::Outcome;
use crate::ui::progress::Counter;
use crate::ui::{self, table};

/// Asks all tasks.
pub(super) fn run(args: &Args) -> Result<Outcome> {
    let flags = &args.tasks;
    if flags.tasks.iter().any(|t| t == "list") {
        return list(args);
    }
    let mut plan = Plan::new(&flags.tasks)?;
    if let Some(kwargs) = &flags.gen_kwargs {
        change_generation(&mut plan, kwargs)?;
    }
    let claimed = |out| claim(out, "results", |name| name.starts_with("answers_"));
    let _lock = flags.out.as_deref().map(claimed).transpose()?;
    let meter = Meter::start();
    let stop = Stop::new();
    if let Some(url) = &flags.endpoint {
        return served(args, plan, url, meter, &stop);
    }
    let loaded =
        loaded::read_for_scoring(&args.model, &args.machine, args.quantize()?, args.output)?;
    let quantize = args.quantize()?;
    let mut model = HarnessModel {
        backbone: loaded.backbone.clone(),
        adapters: loaded.adapters.clone(),
        choice: loaded.choice(),
        tokenizer: loaded.files.tokenizer()?,
        batch_tokens: args.batch_tokens,
        fingerprint: fingerprint(
            loaded.files.path(),
            args.model.adapter.as_deref(),
            &[loaded.files.name(), &format!("{quantize:?}")],
        )?,
    };
    let mut results = EvalResults {
        config: config(
            args,
            &json!({ "pretrained": loaded.files.name(), "peft": args.model.adapter }),
            model.fingerprint(),
        )?,
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
    let subject = Subject {
        model: model_info(&loaded.files),
        precision: precision(&loaded.files, quantize),
    };
    ask(args, plan, &mut model, &subject, results, meter, &stop)
}

/// Which model the results are of.
struct Subject {
    model: ModelInfo,
    precision: String,
}

/// The same of a service.
fn served(args: &Args, plan: Plan, url: &str, meter: Meter, stop: &Stop) -> Result<Outcome> {
    let flags = &args.tasks;
    if let Some((task, _)) = plan
        .tasks
        .iter()
        .find(|(t, _)| t.kind != Kind::GenerateUntil)
    {
        bail!(
            "the task `{}` needs log-likelihoods of given texts, which a service does not give: `--endpoint` is for tasks that write text",
            task.name
        );
    }
    let call = if flags.apply_chat_template {
        Call::Chat
    } else {
        Call::Completions
    };
    let key = flags.api_key_env.as_deref().map(api_key).transpose()?;
    let mut model = EndpointModel::new(url, &flags.served_model, call, key.as_deref())?;
    let results = EvalResults {
        config: config(
            args,
            &json!({ "endpoint": url, "model": flags.served_model }),
            model.fingerprint(),
        )?,
        ..EvalResults::default()
    };
    let subject = Subject {
        model: ModelInfo {
            name: flags.served_model.clone(),
            ..ModelInfo::default()
        },
        precision: "as served".into(),
    };
    ask(args, plan, &mut model, &subject, results, meter, stop)
}

fn change_generation(plan: &mut Plan, kwargs: &str) -> Result<()> {
    if !plan
        .tasks
        .iter()
        .any(|(task, _)| task.kind == Kind::GenerateUntil)
    {
        bail!("`--gen-kwargs` has no effect: none of the tasks writes text");
    }
    for (task, _) in &mut plan.tasks {
        override_generation(task, kwargs)?;
    }
    Ok(())
}

/// Asks all tasks of a model.
fn ask(
    args: &Args,
    plan: Plan,
    model: &mut dyn LanguageModel,
    subject: &Subject,
    mut results: EvalResults,
    meter: Meter,
    stop: &Stop,
) -> Result<Outcome> {
    let flags = &args.tasks;
    let begin = Instant::now();
    results.date = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let sandbox = flags
        .allow_code_execution
        .then(|| sandbox::open(None, flags.no_isolation, args.output))
        .transpose()?;
    results.groups = plan.groups;
    for (task, folder) in plan.tasks {
        if task.zero_shot && flags.num_fewshot.is_some_and(|k| k > 0) {
            let text = format!(
                "{}: says itself that it has no examples, so `--num-fewshot` leaves it as it is",
                task.name
            );
            ui::note(args.output, &text);
        }
        if task.kind == Kind::LoglikelihoodRolling && flags.num_fewshot.is_some_and(|k| k > 0) {
            let text = format!(
                "{}: `--num-fewshot` has no effect: texts are measured as they are, without examples",
                task.name
            );
            ui::warn(args.output, &text);
        }
        let context = Context {
            sandbox: sandbox.clone(),
            ..context(flags, folder)
        };
        let mut counter = None;
        let found = run_task(&task, &context, model, &mut |event| {
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
                EvalEvent::Scoring { name, samples } => {
                    let what = format!("{name}: scoring");
                    counter = Some(Counter::new(args.output, what, samples as u64, 0));
                }
                EvalEvent::Answered | EvalEvent::Scored => {
                    counter.iter_mut().for_each(Counter::step);
                }
            }
            !stop.asked()
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
    let kept = record(args, subject, &results, meter.stop());
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
fn record(args: &Args, subject: &Subject, results: &EvalResults, cost: Cost) -> Measurement {
    let mut kept = Measurement {
        model: subject.model.clone(),
        adapter: args.model.adapter.as_ref().map(|a| a.display().to_string()),
        precision: subject.precision.clone(),
        ..measurement(measurement::Kind::Tasks, args.machine.device_name(), cost)
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
    kept
}

fn context(flags: &TaskFlags, task_folder: Option<PathBuf>) -> Context {
    Context {
        data: flags
            .data_dir
            .clone()
            .or_else(|| std::env::var_os("FRUGAL_DATA").map(PathBuf::from)),
        task_folder,
        limit: flags.limit,
        num_fewshot: flags.num_fewshot,
        first_shots: matches!(flags.fewshot_order, Some(FewshotOrder::First)),
        random_shots: matches!(flags.fewshot_order, Some(FewshotOrder::Random)),
        seed: flags.seed,
        chat_template: flags.apply_chat_template,
        fewshot_as_multiturn: flags.multiturn(),
        system: flags.system_instruction.clone(),
        out: flags.out.clone(),
        sandbox: None,
    }
}

fn config(
    args: &Args,
    model: &serde_json::Value,
    fingerprint: &str,
) -> Result<Map<String, serde_json::Value>> {
    let flags = &args.tasks;
    let model = json!({
        "model": "frugal",
        "model_args": model,
        "model_fingerprint": fingerprint,
        "quantize": flags.endpoint.is_none().then(|| args.quantize()).transpose()?,
        "batch_tokens": args.batch_tokens,
        "device": args.machine.device_name(),
        "limit": (flags.limit > 0).then_some(flags.limit),
        "num_fewshot": flags.num_fewshot,
        "fewshot_order": flags.fewshot_order.map(|order| match order {
            FewshotOrder::Random => "random",
            FewshotOrder::First => "first",
        }),
        "gen_kwargs": flags.gen_kwargs,
        "fewshot_as_multiturn": flags.multiturn(),
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
