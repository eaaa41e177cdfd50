//! `frugal measure runtime`: how long generation takes, from a few short runs.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use frugal::measure::runtime::{Footprint, Grid, footprint, profile};
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::endpoint::Endpoint;
use frugal_eval::runtime::{Rule, RuntimeFit, Summary, Timing, cells};
use serde_json::{Value, json};

use crate::Outcome;
use crate::args::{Machine, Model, Output, Storage};
use crate::loaded::Loaded;
use crate::ui::progress::Counter;
use crate::ui::{self, interrupt, table};

const EXAMPLES: &str = "\
Examples:
  frugal measure runtime --model smollm2-135m
  frugal measure runtime --model smollm2-135m --query 300:100 --dollars-per-hour 0.2 --watts 60
  frugal measure runtime --endpoint http://127.0.0.1:8080/v1 --served-model m --denoised
  frugal measure runtime --fit runtime.json --query 512:64

Generating o tokens after a prompt of p takes a(p) + b (o - 1) seconds. The fit uses the answers of
--outputs; those of --held-out are only predicted, and the error on them is reported.";

/// Measure how long generation takes and predict any query from that
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    storage: Storage,
    /// A service that speaks OpenAI's protocol over plain HTTP, instead of a model
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "adapter"], help_heading = "Model")]
    endpoint: Option<String>,
    /// What the service calls the model
    #[arg(
        long,
        value_name = "NAME",
        default_value = "default",
        help_heading = "Model"
    )]
    served_model: String,
    /// Read a fit that --save wrote instead of measuring
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "adapter", "endpoint"], help_heading = "Model")]
    fit: Option<PathBuf>,
    /// Prompt lengths
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [1, 16, 32, 64, 128, 256], help_heading = "Grid")]
    prompts: Vec<usize>,
    /// Answer lengths that the fit uses
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16], help_heading = "Grid")]
    outputs: Vec<usize>,
    /// Answer lengths that are only predicted
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [32, 64], help_heading = "Grid")]
    held_out: Vec<usize>,
    /// Runs that are thrown away first
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Grid")]
    warmup: usize,
    /// Runs that count
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Grid")]
    trials: usize,
    /// Take the fastest run instead of the middle one, and the prompt's time from all answers: for
    /// services
    #[arg(long, help_heading = "Grid")]
    denoised: bool,
    /// Predict prompts between measured lengths in proportion to the next longer one
    #[arg(long, help_heading = "Prediction")]
    proportional: bool,
    /// Predict a query of P prompt and O answer tokens; repeatable
    #[arg(long = "query", value_name = "P:O", value_parser = query, help_heading = "Prediction")]
    queries: Vec<(usize, usize)>,
    /// Devices that the model occupies
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        help_heading = "Prediction"
    )]
    devices: u32,
    /// Price of a device
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        help_heading = "Prediction"
    )]
    dollars_per_hour: f64,
    /// Power of a device
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        help_heading = "Prediction"
    )]
    watts: f64,
    /// Write the fit
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    save: Option<PathBuf>,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

fn query(text: &str) -> Result<(usize, usize), String> {
    let parsed = text
        .split_once(':')
        .and_then(|(p, o)| Some((p.parse().ok()?, o.parse().ok()?)));
    parsed
        .filter(|(_, o)| *o > 0)
        .ok_or_else(|| "write P:O with O at least 1, for example 300:100".to_owned())
}

/// Measures, fits, predicts, prints.
pub fn run(args: &Args) -> Result<Outcome> {
    let rule = if args.proportional {
        Rule::Proportional
    } else {
        Rule::Linear
    };
    let (fit, report) = match &args.fit {
        Some(path) => {
            let bytes = frugal_core::fs::read(path)?;
            let value: Value = serde_json::from_slice(&bytes)
                .with_context(|| format!("{}: not JSON", path.display()))?;
            let fit = value.get("fit").unwrap_or(&value).clone();
            (
                serde_json::from_value(fit)
                    .with_context(|| format!("{}: not a fit that --save wrote", path.display()))?,
                json!({}),
            )
        }
        None => {
            let Some((trials, footprint)) = measure(args)? else {
                return Ok(Outcome::Interrupted);
            };
            let summary = if args.denoised {
                Summary::Fastest
            } else {
                Summary::Median
            };
            let all = cells(&trials, summary);
            let (fitted, held): (Vec<Timing>, Vec<Timing>) = all
                .iter()
                .copied()
                .partition(|c| args.outputs.contains(&c.output));
            let fit = RuntimeFit::new(&fitted, args.denoised)
                .context("--outputs: a fit needs 1 and at least one longer answer (a service may have ended answers early)")?;
            let report = json!({
                "relative_error": fit.relative_error(&fitted, rule),
                "held_out_relative_error": fit.relative_error(&held, rule),
                "cells": all,
                "footprint": footprint,
            });
            (fit, report)
        }
    };
    let costs: Vec<_> = args
        .queries
        .iter()
        .map(|&(p, o)| {
            (
                p,
                o,
                fit.cost(p, o, rule, args.devices, args.dollars_per_hour, args.watts),
            )
        })
        .collect();
    let predictions: Vec<Value> = costs
        .iter()
        .map(|(p, o, c)| json!({ "prompt": p, "output": o, "cost": c }))
        .collect();
    let mut value =
        json!({ "fit": fit, "rule": rule, "devices": args.devices, "predictions": predictions });
    if let (Some(all), Value::Object(report)) = (value.as_object_mut(), report) {
        all.extend(report);
    }
    if let Some(path) = &args.save {
        frugal_core::fs::write_atomic(
            path,
            (serde_json::to_string_pretty(&value)? + "\n").as_bytes(),
        )?;
    }
    if args.output.json {
        ui::print_json(&value)?;
        return Ok(Outcome::Done);
    }
    let mut shown = Table::new([
        Column::number("prompt tokens"),
        Column::number("to the first token"),
    ]);
    for (prompt, seconds) in &fit.alpha {
        shown.row([prompt.to_string(), human::duration(*seconds)]);
    }
    table::print(&shown);
    let percent = |key: &str| {
        value[key]
            .as_f64()
            .map_or("-".to_owned(), |e| format!("{:.1} %", 100.0 * e))
    };
    ui::print("");
    let mut lines = vec![
        ("each further token", format!("{:.2} ms", 1000.0 * fit.beta)),
        ("tokens a second", human::significant(1.0 / fit.beta, 3)),
        ("R² of the fit", format!("{:.6}", fit.r_squared)),
    ];
    if args.fit.is_none() {
        lines.push(("error on fitted answers", percent("relative_error")));
        lines.push((
            "error on held-out answers",
            percent("held_out_relative_error"),
        ));
        let bytes = |key: &str| value["footprint"][key].as_u64().map(human::bytes);
        lines.extend(bytes("weight_bytes").map(|b| ("weights", b)));
        lines.extend(bytes("cache_bytes_per_token").map(|b| ("keys and values of a token", b)));
    }
    ui::print(&table::pairs(&lines));
    if !costs.is_empty() {
        let headings = ["prompt", "answer", "time", "dollars", "joules"].map(Column::number);
        let mut shown = Table::new(headings);
        for (p, o, cost) in &costs {
            let (dollars, joules) = (
                human::significant(cost.dollars, 3),
                human::significant(cost.joules, 3),
            );
            shown.row([
                p.to_string(),
                o.to_string(),
                human::duration(cost.seconds),
                dollars,
                joules,
            ]);
        }
        ui::print("");
        table::print(&shown);
    }
    Ok(Outcome::Done)
}

/// All runs of the grid, and what the model holds where that can be known; `None` if it was
/// interrupted.
fn measure(args: &Args) -> Result<Option<(Vec<Timing>, Option<Footprint>)>> {
    let outputs: Vec<usize> = args.outputs.iter().chain(&args.held_out).copied().collect();
    if args.trials == 0
        || args.prompts.is_empty()
        || args.prompts.contains(&0)
        || outputs.contains(&0)
    {
        bail!("the grid needs prompts and answers of at least one token and at least one trial");
    }
    let stop = interrupt::flag("stopping after this run; press Ctrl-C again to end at once");
    let runs = args.prompts.len() * (args.warmup + args.trials);
    let mut timings = Vec::new();
    if let Some(url) = &args.endpoint {
        let endpoint = Endpoint::new(url, &args.served_model)?;
        let mut counter = Counter::new(args.output, "requests", (runs * outputs.len()) as u64, 0);
        for &prompt in &args.prompts {
            for run in 0..args.warmup + args.trials {
                for &output in &outputs {
                    let done = endpoint.complete(prompt, output)?;
                    // Short answers would be taken for fast ones.
                    if run >= args.warmup && done.completion_tokens == output {
                        timings.push(Timing {
                            prompt: done.prompt_tokens,
                            output,
                            seconds: done.seconds,
                        });
                    }
                    counter.step();
                    if interrupt::asked(&stop) {
                        return Ok(None);
                    }
                }
            }
        }
        return Ok(Some((timings, None)));
    }
    let loaded = Loaded::read_for_text(
        &args.model,
        &args.machine,
        args.storage.quantize,
        args.output,
    )?;
    let grid = Grid {
        prompts: args.prompts.clone(),
        outputs,
        warmup: args.warmup,
        trials: args.trials,
    };
    let mut counter = Counter::new(args.output, "runs", runs as u64, 0);
    timings = profile(
        loaded.backbone.as_ref(),
        &loaded.adapters,
        &loaded.choice,
        &grid,
        &mut || {
            counter.step();
            !interrupt::asked(&stop)
        },
    )?;
    if interrupt::asked(&stop) {
        return Ok(None);
    }
    Ok(Some((timings, Some(footprint(loaded.backbone.as_ref())?))))
}
