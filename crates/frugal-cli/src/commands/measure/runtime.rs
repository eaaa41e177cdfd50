//! `frugal measure runtime`: how long generation takes, from a few short runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use frugal::measure::runtime::{Footprint, Grid, footprint, profile};
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::endpoint::{Call, Endpoint};
use frugal_eval::measurement::{Cost, Kind, Measurement, Meter};
use frugal_eval::report::ModelInfo;
use frugal_eval::runtime::{Rule, RuntimeFit, Spread, Summary, Timing, cells, spread};
use serde_json::{Value, json};

use crate::args::{Machine, Model, Output, Storage, api_key};
use crate::loaded;
use crate::measured::{Kept, check_writable, measurement, model_info, precision};
use crate::outcome::Outcome;
use crate::ui::progress::Counter;
use crate::ui::{self, interrupt, table};

const EXAMPLES: &str = "\
Examples:
  frugal measure runtime --model smollm2-135m
  frugal measure runtime --model smollm2-135m --query 300:100 --dollars-per-hour 0.2 --watts 60
  frugal measure runtime --endpoint http://127.0.0.1:8080/v1 --served-model m --denoised
  frugal measure runtime --endpoint https://api.example.org/v1 --served-model m --api-key-env MY_KEY --denoised
  frugal measure runtime --fit runtime.json --query 512:64

Generating o tokens after a prompt of p takes a(p) + b (o - 1) seconds. The fit uses the answers of \
--outputs; those of --held-out are only predicted, and the error on them is reported.";

/// Idealized runtime: measure how long generation takes and predict any query from that
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    storage: Storage,
    /// A service that speaks OpenAI's protocol over HTTP or HTTPS, instead of a model
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "adapter"], help_heading = "Model")]
    endpoint: Option<String>,
    /// What the service calls the model
    #[arg(
        long,
        value_name = "NAME",
        default_value = "default",
        requires = "endpoint",
        conflicts_with_all = ["model", "adapter", "fit"],
        help_heading = "Model"
    )]
    served_model: String,
    /// Environment variable that holds the service's API key
    #[arg(
        long,
        value_name = "NAME",
        requires = "endpoint",
        conflicts_with_all = ["model", "adapter", "fit"],
        help_heading = "Model"
    )]
    api_key_env: Option<String>,
    /// Ask the service by /chat/completions, for services that know nothing else
    #[arg(long, requires = "endpoint", conflicts_with_all = ["model", "adapter", "fit"], help_heading = "Model")]
    chat: bool,
    /// Read a fit that --save wrote instead of measuring
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "adapter", "endpoint", "quantize", "cache_type", "device", "prompts", "outputs", "held_out", "warmup", "trials", "denoised"], help_heading = "Model")]
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
    kept: Kept,
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

/// Resampled fits behind the spread of the parameters.
const DRAWS: usize = 500;

/// A fit with what is known of it.
struct Fitted {
    fit: RuntimeFit,
    spread: Option<Spread>,
    /// Whether the model only reads.
    reads_only: bool,
    report: Value,
    measurement: Option<Measurement>,
}

/// Measures, fits, predicts, prints.
pub fn run(args: &Args) -> Result<Outcome> {
    let rule = if args.proportional {
        Rule::Proportional
    } else {
        Rule::Linear
    };
    args.kept.claim(Kind::Runtime)?;
    args.save.as_deref().map_or(Ok(()), check_writable)?;
    let fitted = match &args.fit {
        Some(path) => Some(read(path)?),
        None => fitted(args, rule)?,
    };
    let Some(mut fitted) = fitted else {
        return Ok(Outcome::Interrupted);
    };
    let costs: Vec<_> = args
        .queries
        .iter()
        .map(|&(p, o)| {
            let devices = args.devices;
            let (dollars, watts) = (args.dollars_per_hour, args.watts);
            (p, o, fitted.fit.cost(p, o, rule, devices, dollars, watts))
        })
        .collect();
    let predictions: Vec<Value> = costs
        .iter()
        .map(|(p, o, c)| json!({ "prompt": p, "output": o, "cost": c }))
        .collect();
    let mut value = json!({
        "fit": fitted.fit, "spread": fitted.spread, "rule": rule, "devices": args.devices,
        "predictions": predictions,
    });
    if let (Some(all), Value::Object(report)) = (value.as_object_mut(), fitted.report.take()) {
        all.extend(report);
    }
    // The same form as all measurements have, so that `frugal report` reads a saved fit.
    value["measurements"] = json!(fitted.measurement.iter().collect::<Vec<_>>());
    if let Some(path) = &args.save {
        frugal_core::fs::write_atomic(
            path,
            (serde_json::to_string_pretty(&value)? + "\n").as_bytes(),
        )?;
    }
    if let Some(measurement) = &fitted.measurement {
        let all = std::slice::from_ref(measurement);
        args.kept.write("Idealized runtime", all, args.output)?;
    }
    if args.output.json {
        ui::print_json(&value)?;
        return Ok(Outcome::Done);
    }
    print(args, &fitted, &value, &costs);
    Ok(Outcome::Done)
}

/// A fit that `--save` wrote.
fn read(path: &Path) -> Result<Fitted> {
    let bytes = frugal_core::fs::read_data(path)?;
    let value: Value =
        serde_json::from_slice(&bytes).with_context(|| format!("{}: not JSON", path.display()))?;
    let fit = value.get("fit").unwrap_or(&value).clone();
    let fit: RuntimeFit = serde_json::from_value(fit)
        .with_context(|| format!("{}: not a fit that --save wrote", path.display()))?;
    let measurement: Option<Measurement> = value
        .get("measurements")
        .and_then(|all| serde_json::from_value(all.get(0)?.clone()).ok());
    Ok(Fitted {
        spread: value
            .get("spread")
            .and_then(|spread| serde_json::from_value(spread.clone()).ok()),
        reads_only: fit.beta == 0.0,
        fit,
        report: json!({}),
        measurement,
    })
}

/// Measures and fits; `None` if it was interrupted.
fn fitted(args: &Args, rule: Rule) -> Result<Option<Fitted>> {
    let meter = Meter::start();
    let Some(measured) = measure(args)? else {
        return Ok(None);
    };
    let cost = meter.stop();
    let summary = if args.denoised {
        Summary::Fastest
    } else {
        Summary::Median
    };
    let all = cells(&measured.trials, summary);
    let (used, held): (Vec<Timing>, Vec<Timing>) = all
        .iter()
        .copied()
        .partition(|c| args.outputs.contains(&c.output));
    let fit = if measured.reads_only {
        RuntimeFit::reading_only(&used).context("--prompts: nothing was timed")?
    } else {
        RuntimeFit::new(&used, args.denoised)
            .context("--outputs: a fit needs 1 and at least one longer answer (a service may have ended answers early)")?
    };
    let fitting: Vec<Timing> = measured
        .trials
        .iter()
        .copied()
        .filter(|t| args.outputs.contains(&t.output))
        .collect();
    let spread = spread(&fitting, summary, args.denoised, DRAWS, 0);
    let report = json!({
        "relative_error": fit.relative_error(&used, rule),
        "held_out_relative_error": fit.relative_error(&held, rule),
        "cells": all,
        "footprint": measured.footprint,
    });
    let measurement = record(args, &measured, &fit, spread.as_ref(), &report, cost);
    Ok(Some(Fitted {
        fit,
        spread,
        reads_only: measured.reads_only,
        report,
        measurement: Some(measurement),
    }))
}

/// Model, machine, version and grid beside the parameters: a fit is worth nothing without them.
fn record(
    args: &Args,
    measured: &Measured,
    fit: &RuntimeFit,
    spread: Option<&Spread>,
    report: &Value,
    cost: Cost,
) -> Measurement {
    let mut found = Measurement {
        model: measured.model.clone(),
        adapter: args.model.adapter.as_ref().map(|a| a.display().to_string()),
        precision: measured.precision.clone(),
        ..measurement(Kind::Runtime, args.machine.device_name(), cost)
    };
    let system = &found.system;
    // Times of other machines and grids say nothing beside each other.
    let machine = match &args.endpoint {
        Some(url) => url.clone(),
        None => format!(
            "{}, {} threads, {}",
            system.processor.as_deref().unwrap_or(&system.machine),
            found.threads,
            system.accelerator
        ),
    };
    for (name, value) in [
        ("machine", json!(machine)),
        ("prompts", json!(args.prompts)),
        ("outputs", json!(args.outputs)),
        ("trials", json!(args.trials)),
        ("warmup", json!(args.warmup)),
        ("denoised", json!(args.denoised)),
    ] {
        found.settings.insert(name.to_owned(), value);
    }
    let first = fit.alpha.first().map(|(_, seconds)| *seconds);
    let deviation = spread.map(|s| s.beta).filter(|_| !measured.reads_only);
    let last = fit.alpha.last().map(|(_, seconds)| *seconds);
    found.values = [
        ("seconds_to_first_token", first),
        ("seconds_to_first_token_of_longest_prompt", last),
        (
            "seconds_per_token",
            Some(fit.beta).filter(|_| !measured.reads_only),
        ),
        ("seconds_per_token_deviation", deviation),
        (
            "r_squared",
            Some(fit.r_squared).filter(|_| !measured.reads_only),
        ),
        (
            "held_out_relative_error",
            report["held_out_relative_error"].as_f64(),
        ),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect();
    found.details = json!({
        "fit": fit, "spread": spread, "cells": report["cells"], "footprint": report["footprint"],
    });
    found
}

fn print(
    args: &Args,
    fitted: &Fitted,
    value: &Value,
    costs: &[(usize, usize, frugal_eval::runtime::Cost)],
) {
    let fit = &fitted.fit;
    let time = if fitted.reads_only {
        "to read"
    } else {
        "to the first token"
    };
    let mut shown = Table::new(["prompt tokens", time, "±"].map(Column::number));
    for (prompt, seconds) in &fit.alpha {
        let deviation = fitted
            .spread
            .as_ref()
            .and_then(|s| s.alpha.iter().find(|(p, _)| p == prompt));
        shown.row([
            prompt.to_string(),
            human::duration(*seconds),
            deviation.map_or_else(|| "-".into(), |(_, d)| human::duration(*d)),
        ]);
    }
    table::print(&shown);
    let percent = |key: &str| {
        value[key]
            .as_f64()
            .map_or("-".to_owned(), |e| format!("{:.1} %", 100.0 * e))
    };
    ui::print("");
    let mut lines = Vec::new();
    if !fitted.reads_only {
        let deviation = fitted.spread.as_ref().map_or_else(String::new, |s| {
            format!(" ± {:.2} ms over {} trials", 1000.0 * s.beta, s.trials)
        });
        lines.extend([
            (
                "each further token",
                format!("{:.2} ms{deviation}", 1000.0 * fit.beta),
            ),
            ("tokens a second", human::significant(1.0 / fit.beta, 3)),
            ("R² of the fit", format!("{:.6}", fit.r_squared)),
        ]);
    }
    if let Some(m) = &fitted.measurement {
        let machine = m.settings.get("machine").and_then(Value::as_str);
        lines.push(("model", format!("{}, {}", m.name(), m.precision)));
        lines.extend(machine.map(|machine| ("machine", machine.to_owned())));
        if args.fit.is_some() {
            lines.push((
                "measured",
                format!("{}, version {}", m.created_at, m.version),
            ));
        }
    }
    if args.fit.is_none() && !fitted.reads_only {
        lines.push(("error on fitted answers", percent("relative_error")));
        lines.push((
            "error on held-out answers",
            percent("held_out_relative_error"),
        ));
    }
    let bytes = |key: &str| {
        let bytes = value["footprint"][key].as_u64();
        bytes.filter(|b| *b > 0).map(human::bytes)
    };
    lines.extend(bytes("weight_bytes").map(|b| ("weights", b)));
    lines.extend(bytes("cache_bytes_per_token").map(|b| ("keys and values of a token", b)));
    ui::print(&table::pairs(&lines));
    if costs.is_empty() {
        return;
    }
    let headings = ["prompt", "answer", "time", "dollars", "joules"].map(Column::number);
    let mut shown = Table::new(headings);
    for (p, o, cost) in costs {
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

/// All runs of the grid, and what the model holds where that can be known.
struct Measured {
    trials: Vec<Timing>,
    footprint: Option<Footprint>,
    model: ModelInfo,
    precision: String,
    reads_only: bool,
}

/// Measures; `None` if it was interrupted.
fn measure(args: &Args) -> Result<Option<Measured>> {
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
    if let Some(url) = &args.endpoint {
        return measure_service(args, url, &outputs, &|| interrupt::asked(&stop));
    }
    let loaded = loaded::read_for_timing(
        &args.model,
        &args.machine,
        args.storage.quantize(),
        args.output,
    )?;
    let grid = Grid {
        prompts: args.prompts.clone(),
        outputs,
        warmup: args.warmup,
        trials: args.trials,
    };
    let mut counter = Counter::new(args.output, "runs", runs as u64, 0);
    let trials = profile(
        &loaded.backbone,
        &loaded.adapters,
        &loaded.choice(),
        &grid,
        &mut || {
            counter.step();
            !interrupt::asked(&stop)
        },
    )?;
    if interrupt::asked(&stop) {
        return Ok(None);
    }
    Ok(Some(Measured {
        trials,
        footprint: Some(footprint(loaded.backbone.as_ref())?),
        model: model_info(&loaded.files),
        precision: precision(&loaded.files, args.storage.quantize()),
        reads_only: loaded.files.config().family.is_encoder,
    }))
}

fn measure_service(
    args: &Args,
    url: &str,
    outputs: &[usize],
    stopped: &dyn Fn() -> bool,
) -> Result<Option<Measured>> {
    let key = args.api_key_env.as_deref().map(api_key).transpose()?;
    let call = if args.chat {
        Call::Chat
    } else {
        Call::Completions
    };
    let endpoint = Endpoint::new(url, &args.served_model, call, key.as_deref())?;
    let rounds = args.warmup + args.trials;
    let requests = args.prompts.len() * rounds * outputs.len();
    let mut counter = Counter::new(args.output, "requests", requests as u64, 0);
    let (mut trials, mut short) = (Vec::new(), 0);
    for &prompt in &args.prompts {
        for run in 0..rounds {
            for &output in outputs {
                let done = endpoint.complete(prompt, output)?;
                // Short answers would be taken for fast ones.
                if run >= args.warmup && done.completion_tokens == output {
                    trials.push(Timing {
                        prompt: done.prompt_tokens,
                        output,
                        seconds: done.seconds,
                    });
                } else if run >= args.warmup {
                    short += 1;
                }
                counter.step();
                if stopped() {
                    return Ok(None);
                }
            }
        }
    }
    if short > 0 {
        ui::warn(
            args.output,
            &format!("{short} answers of another length than was asked for are left out"),
        );
    }
    Ok(Some(Measured {
        trials,
        footprint: None,
        model: ModelInfo {
            name: args.served_model.clone(),
            ..ModelInfo::default()
        },
        precision: "as served".into(),
        reads_only: false,
    }))
}
