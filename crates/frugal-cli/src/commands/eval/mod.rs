//! `frugal eval`: measures a model on data or on tasks.

mod fingerprint;
mod flags;
mod retrieval;
mod stop;
mod tasks;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use frugal::model::load::ModelFiles;
use frugal::run::{DataConfig, EvaluateRequest, Evaluated, Template, data_settings_of, evaluate};
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::baselines::{CHANCE, MAJORITY, class_baselines};
use frugal_eval::measurement::{Cost, Kind, Measurement, Meter};
use frugal_eval::report::DatasetInfo;
use serde_json::json;

pub use self::flags::Args;
use self::stop::Stop;
use crate::measured::{Kept, cost_line, measurement, model_info, precision};
use crate::outcome::Outcome;
use crate::ui::run::{RunProgress, number, ordered};
use crate::ui::{self, table};

/// Measures and prints.
pub fn run(args: &Args) -> Result<Outcome> {
    let of_models = args.of_models();
    args.retrieval
        .check(&of_models, args.data.is_some(), &args.machine)?;
    if args.retrieval.task.is_some() {
        let data = args.data.as_deref().map(Path::new);
        return retrieval::run(&args.retrieval, data, &args.machine, args.output);
    }
    let Some(data) = &args.data else {
        return tasks::run(args);
    };
    if let Some(file) = args.dump_logits.as_ref().filter(|file| file.exists()) {
        bail!(
            "{}: exists already; choose another file for `--dump-logits`",
            file.display()
        );
    }
    let (model, adapter) = args.model.resolve()?;
    let files = ModelFiles::open(&model, &args.machine.lookup())?;
    if files.info().image.is_some()
        && let Some(flag) = args.of_text().next()
    {
        bail!(
            "`{flag}` has a part in models of text alone, and `{}` reads images: leave it out",
            files.name()
        );
    }
    let kept = Kept {
        out: args.tasks.out.clone(),
    };
    kept.claim(Kind::Evaluation)?;
    let meter = Meter::start();
    // An adapter is measured on data that is read as its run read it.
    let own = adapter.as_deref().map(data_settings_of).unwrap_or_default();
    let request = EvaluateRequest {
        model,
        adapter,
        data: DataConfig {
            train: data.clone(),
            columns: if args.columns.is_empty() {
                own.columns.clone()
            } else {
                crate::args::columns(&args.columns)?
            },
            max_eval_rows: args.max_rows,
            max_length: args.max_length,
            truncate: args.truncate,
            completion_only: own.completion_only && !args.whole_text,
            template: match args.template.as_deref() {
                None => own.template,
                Some("none") => Template::None,
                Some(_) => Template::Auto,
            },
            ..own
        },
        device: args.machine.device_name().into(),
        max_tokens: args.batch_tokens,
        dump_logits: args.dump_logits.clone(),
        quantize: args.quantize()?,
    };
    let stop = Stop::new();
    let found = {
        let mut progress = RunProgress::new(args.output);
        evaluate(&request, &args.machine.lookup(), stop.flag(), &mut |p| {
            progress.on(p)
        })?
    };
    let Some(found) = found else {
        return Ok(Outcome::Interrupted);
    };
    if !found.labels.is_empty() {
        for flag in args.of_language_models() {
            ui::warn(
                args.output,
                &format!("`{flag}` has no effect: a classifier reads the whole text as it is"),
            );
        }
    }
    let measured = record(args, &request, &found, meter.stop())?;
    kept.write_predictions(&found.predictions)?;
    kept.write("Evaluation", std::slice::from_ref(&measured), args.output)?;
    if args.output.json {
        let mut value = json!({
            "model": request.model, "adapter": request.adapter, "data": data, "measurement": measured,
        });
        if let (Some(all), serde_json::Value::Object(found)) = (value.as_object_mut(), json!(found))
        {
            all.extend(found);
        }
        ui::print_json(&value)?;
    } else {
        print(&found, &measured.cost);
    }
    Ok(Outcome::Done)
}

/// Model, data, machine and cost beside the metrics.
fn record(
    args: &Args,
    request: &EvaluateRequest,
    found: &Evaluated,
    cost: Cost,
) -> Result<Measurement> {
    let files = ModelFiles::open(&request.model, &args.machine.lookup())?;
    let mut kept = Measurement {
        model: model_info(&files),
        adapter: request.adapter.as_ref().map(|a| a.display().to_string()),
        precision: precision(&files, request.quantize),
        data: vec![DatasetInfo {
            split: "test".into(),
            source: request.data.train.clone(),
            examples: found.examples,
            sha256: found.sha256.clone(),
        }],
        values: found.metrics.clone(),
        ..measurement(Kind::Evaluation, args.machine.device_name(), cost)
    };
    // A classifier reads the whole text, and of preferences the answers alone count.
    let of_prompts = found.labels.is_empty() && found.objective.is_unset();
    // What of the data was read, and what of it counted.
    let data = &request.data;
    for (name, value) in [
        (
            "completion_only",
            json!(of_prompts.then_some(data.completion_only)),
        ),
        ("columns", json!(data.columns)),
        ("cut_to", json!(data.truncate.then_some(data.max_length))),
    ] {
        let plain = value.is_null() || value == json!({}) || value == json!([]);
        if !plain {
            kept.settings.insert(name.to_owned(), value);
        }
    }
    // Perplexities count tokens, which other tokenizers cut otherwise.
    if !found.objective.is_unset() {
        let objective = json!(found.objective);
        kept.settings.insert("objective".to_owned(), objective);
    }
    if found.metrics.contains_key("perplexity")
        && let Some(vocabulary) = &kept.model.vocabulary
    {
        let start: String = vocabulary.chars().take(8).collect();
        kept.settings.insert("vocabulary".into(), json!(start));
    }
    kept.details = json!({
        "labels": found.labels, "confusion": found.confusion, "tokens": found.tokens,
        "label_scores": found.label_scores,
        "baselines": baselines(found),
    });
    Ok(kept)
}

/// The commonest class and chance on the same examples; nothing for language models.
fn baselines(found: &Evaluated) -> BTreeMap<String, BTreeMap<String, f64>> {
    let gold: Vec<usize> = found.confusion.iter().map(|row| row.iter().sum()).collect();
    class_baselines(&vec![0; gold.len()], &gold)
}

fn print(found: &Evaluated, cost: &Cost) {
    let baselines = baselines(found);
    let known: Vec<&str> = [MAJORITY, CHANCE]
        .into_iter()
        .filter(|name| baselines.contains_key(*name))
        .collect();
    let headings = std::iter::once("value").chain(known.iter().copied());
    let mut table =
        Table::new(std::iter::once(Column::text("metric")).chain(headings.map(Column::number)));
    for (name, value) in ordered(&found.metrics) {
        let of = |baseline: &&str| {
            let value = baselines.get(*baseline).and_then(|m| m.get(name));
            value.map_or_else(|| "-".to_owned(), |v| number(*v))
        };
        let cells = [name.to_owned(), number(value)];
        table.row(cells.into_iter().chain(known.iter().map(of)));
    }
    table::print(&table);
    if (1..=SHOWN_CLASSES).contains(&found.label_scores.len()) {
        let headings = ["precision", "recall", "f1", "examples"].map(Column::number);
        let mut table = Table::new([Column::text("label")].into_iter().chain(headings));
        for scores in &found.label_scores {
            table.row([
                ui::without_control(&scores.label).into_owned(),
                number(scores.precision),
                number(scores.recall),
                number(scores.f1),
                human::count(scores.support as u64),
            ]);
        }
        ui::print("");
        table::print(&table);
    }
    if !found.confusion.is_empty() && (2..=SHOWN_CLASSES).contains(&found.labels.len()) {
        let headings = found
            .labels
            .iter()
            .map(|label| Column::number(format!("as {}", ui::without_control(label))));
        let mut table = Table::new([Column::text("examples of")].into_iter().chain(headings));
        for (label, row) in found.labels.iter().zip(&found.confusion) {
            table.row(
                [ui::without_control(label).into_owned()]
                    .into_iter()
                    .chain(row.iter().map(|n| human::count(*n as u64))),
            );
        }
        ui::print("");
        table::print(&table);
    }
    ui::print(&format!(
        "\n{} examples, {} tokens; {}",
        human::count(found.examples as u64),
        human::count(found.tokens as u64),
        cost_line(cost)
    ));
}

/// More classes than this make a table that nobody reads.
const SHOWN_CLASSES: usize = 10;
