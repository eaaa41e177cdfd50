//! `frugal measure efficiency`: what any command costs while it runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use frugal::measure::machine;
use frugal_core::human;
use frugal_eval::efficiency::{
    EFFICIENCY_FILE, Efficiency, PowerModel, compression, throughput_per_parameter, watch,
};
use frugal_eval::report::{RECORD_FILE, RunRecord};
use serde_json::json;

use crate::args::Output;
use crate::outcome::Outcome;
use crate::ui::{self, interrupt, table};

const EXAMPLES: &str = "\
Examples:
  frugal measure efficiency --run runs/a -- frugal tune --data train.tsv --out runs/a
  frugal measure efficiency -- python train.py
  frugal measure efficiency --compare 270M:0.91,98M:0.89 -- frugal eval --data dev.tsv

Runs the command and samples memory and processor time of all its processes 20 times a second. \
With --run, the record of that run gives latency and throughput, and the result is kept beside it, \
where `frugal report` finds it. Power is measured where the kernel lets its counter be read; \
elsewhere it is modelled from --idle-watts and --processor-watts.";

/// Memory, utilisation, latency, throughput and power of a command (EfficientLLM)
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Run folder that the command writes
    #[arg(long, value_name = "DIR", help_heading = "Measure")]
    run: Option<PathBuf>,
    /// Sizes and scores before and after compression, SIZE:SCORE,SIZE:SCORE; more must be better
    #[arg(long, value_name = "BEFORE,AFTER", value_delimiter = ',', value_parser = size_and_score, help_heading = "Measure")]
    compare: Vec<(f64, f64)>,
    /// Power of the idle machine
    #[arg(
        long,
        value_name = "X",
        default_value_t = 10.0,
        help_heading = "Measure"
    )]
    idle_watts: f64,
    /// Power that a busy processor adds
    #[arg(
        long,
        value_name = "X",
        default_value_t = 15.0,
        help_heading = "Measure"
    )]
    processor_watts: f64,
    /// Operations that the machine can do at most, 10⁹ a second, for the FLOP utilisation of --run [default:
    /// measured by matrix products]
    #[arg(long, value_name = "X", help_heading = "Measure")]
    peak_gflops: Option<f64>,
    /// Command with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    output: Output,
}

fn size_and_score(text: &str) -> Result<(f64, f64), String> {
    let (size, score) = text
        .split_once(':')
        .ok_or("write SIZE:SCORE, for example 98M:0.89")?;
    let score: f64 = score.parse().map_err(|_| format!("{score} is no number"))?;
    if !(score.is_finite() && score > 0.0) {
        return Err("the score must be above 0".into());
    }
    Ok((crate::args::quantity(size)?, score))
}

/// Runs the command and prints what it cost.
pub fn run(args: &Args) -> Result<Outcome> {
    let compared = match args.compare.as_slice() {
        [] => None,
        [before, after] => Some(compression(before.0, after.0, before.1, after.1)),
        _ => bail!("--compare: give two, before and after, with a comma between"),
    };
    // Ctrl-C goes to the command, which decides what it means.
    let _stop = interrupt::flag("");
    let (program, words) = args
        .command
        .split_first()
        .context("give a command after --")?;
    let mut command = Command::new(program);
    command.args(words);
    if args.output.json {
        // Standard output is for the one JSON value.
        command.stdout(std::io::stderr());
    }
    let record_file = args.run.as_ref().map(|folder| folder.join(RECORD_FILE));
    let before = record_file
        .as_ref()
        .and_then(|file| std::fs::read(file).ok());
    let mut child = command
        .spawn()
        .with_context(|| format!("{program}: cannot be started"))?;
    let (status, samples) = watch(&mut child)?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let model = PowerModel {
        idle: args.idle_watts,
        processor: args.processor_watts,
    };
    let found = Efficiency::new(&samples, processors, model)
        .context("the command was over too soon to be sampled, or this system has no /proc")?;
    let record = record_file
        .as_ref()
        .and_then(|file| written(file, before.as_deref(), args.output));
    let found = match record.as_ref().filter(|_| status.success()) {
        Some(record) => machine::with_flops(found, record, args.peak_gflops),
        None => found,
    };
    if let (Some(folder), true, true) = (&args.run, record.is_some(), status.success()) {
        let text = serde_json::to_string_pretty(&found)? + "\n";
        frugal_core::fs::write_atomic(&folder.join(EFFICIENCY_FILE), text.as_bytes())?;
    }
    let train = record
        .as_ref()
        .map(|r| &r.train_info)
        .filter(|t| t.train_time > 0.0);
    let steps = record
        .as_ref()
        .and_then(|r| r.train_info.metrics.iter().map(|m| m.step).max())
        .filter(|s| *s > 0);
    let latency = train
        .zip(steps)
        .map(|(t, steps)| t.train_time / steps as f64);
    let throughput = train.map(|t| {
        throughput_per_parameter(
            t.train_tokens as f64,
            t.num_total_params.max(1) as f64,
            t.train_time,
        )
    });
    let tokens = train.and_then(|t| t.tokens_per_second());
    if args.output.json {
        ui::print_json(&json!({
            "exit_status": status.code(),
            "efficiency": found,
            "latency_seconds_per_step": latency,
            "tokens_per_parameter_second": throughput,
            "tokens_per_second": tokens,
            "joules_per_token": train.filter(|t| t.train_tokens > 0).map(|t| found.energy / t.train_tokens as f64),
            "model_compression_rate": compared,
        }))?;
    } else {
        let how = if found.power_is_modelled {
            "modelled"
        } else {
            "measured"
        };
        let mut lines = Vec::new();
        if !status.success() {
            lines.push(("ended with", status.to_string()));
        }
        lines.extend([
            ("time", human::duration(found.seconds)),
            (
                "memory on average",
                human::bytes(found.average_memory as u64),
            ),
            ("memory at most", human::bytes(found.peak_memory as u64)),
            (
                "utilisation",
                format!(
                    "{:.1} % of {processors} processors",
                    100.0 * found.utilisation
                ),
            ),
            (
                "power on average",
                format!("{} W ({how})", human::significant(found.average_power, 3)),
            ),
            (
                "energy",
                format!("{} J", human::significant(found.energy, 4)),
            ),
        ]);
        lines.extend(
            found
                .flop_utilisation
                .zip(found.peak_gflops)
                .map(|(share, peak)| {
                    let peak = human::significant(peak, 3);
                    (
                        "FLOP utilisation",
                        format!("{:.1} % of {peak} GFLOP/s", 100.0 * share),
                    )
                }),
        );
        lines.extend(latency.map(|l| ("latency of a step", human::duration(l))));
        lines.extend(tokens.map(|t| ("tokens a second", human::significant(t, 4))));
        lines.extend(
            throughput.map(|t| ("tokens for each parameter and second", format!("{t:.3e}"))),
        );
        lines.extend(compared.map(|c| ("compression with score", human::significant(c, 4))));
        ui::print("");
        ui::print(&table::pairs(&lines));
    }
    Ok(if status.success() {
        Outcome::Done
    } else {
        Outcome::Negative
    })
}

/// The record of a run, if the command wrote it; what is wrong with it is said, since the command
/// has run already.
fn written(file: &Path, before: Option<&[u8]>, output: Output) -> Option<RunRecord> {
    let left_out = |why: &str| {
        ui::warn(
            output,
            &format!("{why}: latency and throughput are left out"),
        );
        None
    };
    if before.is_some() && std::fs::read(file).ok().as_deref() == before {
        return left_out(&format!("{}: the command did not write it", file.display()));
    }
    RunRecord::read(file).map_or_else(|e| left_out(&e.to_string()), Some)
}
