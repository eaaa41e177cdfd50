//! `frugal bench`: many runs under one budget, compared.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use frugal::run::TuneConfig;
use frugal_core::config;
use frugal_core::events::{LOG_FILE, read_jsonl};
use frugal_core::fs::write_atomic;
use frugal_core::human;
use frugal_core::measure::efficiency::Efficiency;
use frugal_core::report::{Comparison, RECORD_FILE, Run, RunRecord, Status};
use frugal_core::suite::{Job, Suite};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::json;

use super::report::table;
use crate::Outcome;
use crate::args::Output;
use crate::ui::progress::style;
use crate::ui::{self, interrupt};

const EXAMPLES: &str = "\
Examples:
  frugal bench adapt --list
  frugal bench adapt --suite text-encoder --data-dir data --out runs/text-encoder
  frugal bench adapt --suite my-suite.toml --only lora,dora --seeds 0

A suite is a TOML file: settings that all runs share, the runs, the seeds. Each run is a
process of its own, so that its peak memory is its own and a crash loses no other. Called
again with the same folder, finished runs are kept and the one that was stopped goes on.";

/// Run a suite of methods under one budget and compare them
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Adapt(AdaptArgs),
}

/// Compare ways to adapt a model
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct AdaptArgs {
    /// Name of a built-in suite, or a TOML file
    #[arg(long, value_name = "NAME", required_unless_present = "list")]
    suite: Option<String>,
    /// List the built-in suites
    #[arg(long)]
    list: bool,
    /// Where the suite's data files are
    #[arg(long, value_name = "DIR", default_value = ".")]
    data_dir: PathBuf,
    /// Folder of all runs and of the comparison [default: runs/bench-SUITE]
    #[arg(long, short, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only the runs of these names
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these of the suite's seeds
    #[arg(long, value_name = "SEEDS", value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Change a setting of every run, for example train.max_steps=10
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Only show what would be run
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

/// Suites that are compiled in.
const SUITES: [(&str, &str); 2] = [
    ("text-decoder", include_str!("../../../../benchmarks/suites/text-decoder.toml")),
    ("text-encoder", include_str!("../../../../benchmarks/suites/text-encoder.toml")),
];

/// Runs what was asked for.
pub fn run(args: &Args) -> Result<Outcome> {
    match &args.what {
        What::Adapt(args) => adapt(args),
    }
}

/// A run with its settings resolved.
struct Resolved {
    job: Job,
    config: TuneConfig,
}

fn adapt(args: &AdaptArgs) -> Result<Outcome> {
    let Some(name) = args.suite.as_ref().filter(|_| !args.list) else { return list(args.output) };
    let suite = open(name)?;
    let title = Path::new(name).file_stem().map_or_else(|| name.clone(), |s| s.to_string_lossy().into_owned());
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("runs/bench-{title}")));
    let jobs = resolve(&suite, args, &out)?;
    if args.dry_run {
        for Resolved { job, config } in &jobs {
            ui::print(&format!("{}: {} on {}, lr {:e}", job.folder(), config.method.name, config.model, config.train.lr));
        }
        return Ok(Outcome::Done);
    }
    let stop = interrupt::flag("stopping this run with a checkpoint; press Ctrl-C again to end at once");
    let bar = progress_bar(jobs.len() as u64, args.output);
    let (started, mut done, mut kept) = (Instant::now(), 0u32, 0u64);
    let mut stopped = false;
    for resolved in &jobs {
        let folder = out.join(resolved.job.folder());
        if finished(&folder, &resolved.config)? {
            kept += 1;
        } else {
            bar.set_message(format!("{} · ", resolved.job.folder()));
            let line = one(resolved, &folder)?;
            if interrupt::asked(&stop) {
                stopped = true;
                break;
            }
            done += 1;
            let left = started.elapsed().as_secs_f64() / f64::from(done) * (jobs.len() as f64 - kept as f64 - f64::from(done));
            report_line(&bar, args.output, &format!("{}: {line} · about {} left", resolved.job.folder(), human::duration(left)));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let comparison = compare(&title, &suite, &jobs, &out)?;
    if args.output.json {
        ui::print_json(&json!({ "suite": title, "metric": comparison.metric, "runs": comparison.rows(), "out": out }))?;
    } else {
        crate::ui::table::print(&table(&comparison));
        ui::print(&format!("\n{}", out.join("report.html").display()));
    }
    let failed = comparison.rows().iter().any(|row| !row.errors.is_empty());
    Ok(if stopped {
        Outcome::Interrupted
    } else if failed {
        Outcome::Negative
    } else {
        Outcome::Done
    })
}

fn list(output: Output) -> Result<Outcome> {
    let suites: Vec<(&str, Suite)> =
        SUITES.iter().map(|(name, text)| Ok((*name, Suite::parse(Path::new(name), text)?))).collect::<Result<_>>()?;
    if output.json {
        let entry =
            |(name, s): &(&str, Suite)| json!({ "name": name, "description": s.description, "runs": s.runs.len(), "seeds": s.seeds });
        ui::print_json(&suites.iter().map(entry).collect::<Vec<_>>())?;
    } else {
        for (name, s) in &suites {
            ui::print(&format!("{name}: {} ({} runs with {} seeds)", s.description, s.runs.len(), s.seeds.len()));
        }
    }
    Ok(Outcome::Done)
}

fn open(name: &str) -> Result<Suite> {
    if let Some((name, text)) = SUITES.iter().find(|(known, _)| *known == name) {
        return Ok(Suite::parse(Path::new(name), text)?);
    }
    let path = Path::new(name);
    if !path.exists() {
        let known = SUITES.map(|(name, _)| name).join(", ");
        bail!("`{name}` is neither a file nor a built-in suite; built in: {known}");
    }
    Ok(Suite::read(path)?)
}

/// Every run's configuration, checked before the first of them starts.
fn resolve(suite: &Suite, args: &AdaptArgs, out: &Path) -> Result<Vec<Resolved>> {
    let jobs = suite.jobs(&args.data_dir);
    if let Some(unknown) = args.only.iter().find(|name| jobs.iter().all(|job| job.name != **name)) {
        let mut names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
        names.dedup();
        bail!("the suite has no run `{unknown}`; it has: {}", names.join(", "));
    }
    let wanted =
        |job: &Job| (args.only.is_empty() || args.only.contains(&job.name)) && (args.seeds.is_empty() || args.seeds.contains(&job.seed));
    let jobs: Vec<Job> = jobs.into_iter().filter(wanted).collect();
    if jobs.is_empty() {
        bail!("no run is left: the suite's seeds are {:?}", suite.seeds);
    }
    let each = |job: Job| {
        let load = config::load_with::<TuneConfig>(None, &job.settings, &args.overrides, TuneConfig::problems);
        let mut config = load.with_context(|| format!("run `{}`", job.name))?;
        config.resolve();
        for file in [Some(&config.data.train), config.data.validation.as_ref(), config.data.test.as_ref()].into_iter().flatten() {
            if !Path::new(file).exists() && frugal_core::data::builtin(file).is_err() {
                bail!("{file}: no such file in {}: say where the suite's data are with `--data-dir`", args.data_dir.display());
            }
        }
        config.out = out.join(job.folder());
        Ok(Resolved { job, config })
    };
    jobs.into_iter().map(each).collect()
}

/// Whether a run is done; one with other settings is not to be mixed in.
fn finished(folder: &Path, config: &TuneConfig) -> Result<bool> {
    let Ok(record) = RunRecord::read(&folder.join(RECORD_FILE)) else { return Ok(false) };
    if record.train_info.status != Status::Success {
        return Ok(false);
    }
    let plain = |mut value: serde_json::Value| {
        if let Some(map) = value.as_object_mut() {
            map.remove("out");
        }
        value
    };
    if plain(record.run_info.train_config) != plain(serde_json::to_value(config)?) {
        bail!("{}: this run was made with other settings: give another `--out`, or remove the folder", folder.display());
    }
    Ok(true)
}

/// Does one run in a process of its own; returns what is said about it.
fn one(resolved: &Resolved, folder: &Path) -> Result<String> {
    let settings = folder.with_extension("toml");
    write_atomic(&settings, config::to_toml(&resolved.config)?.as_bytes())?;
    let mut command = Command::new(std::env::current_exe().context("this program's own file cannot be found")?);
    command.arg("tune").arg("--config").arg(&settings).args(["--quiet", "--json", "--out"]).arg(folder);
    if folder.exists() {
        // A failed attempt has nothing to go on from but its checkpoints.
        let record = folder.join(RECORD_FILE);
        if record.exists() {
            std::fs::remove_file(&record).with_context(|| record.display().to_string())?;
        }
        command.arg("--resume").arg(folder);
    }
    let output = command.stdin(Stdio::null()).output().context("the run cannot be started")?;
    if output.status.success() {
        let record = RunRecord::read(&folder.join(RECORD_FILE))?;
        let scores = record.evaluation.last().map(|e| crate::ui::run::scores(&e.adapted)).unwrap_or_default();
        return Ok(format!("{scores} · {}", human::duration(record.run_info.total_time)));
    }
    if output.status.code() == Some(130) {
        return Ok("interrupted".into());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let reason = text.trim().trim_start_matches("error: ").to_owned();
    let reason = if reason.is_empty() { format!("ended with {}", output.status) } else { reason };
    let mut record = RunRecord::default();
    record.run_info.experiment_name = resolved.job.folder();
    record.run_info.train_config = serde_json::to_value(&resolved.config)?;
    record.run_info.error_msg.clone_from(&reason);
    record.train_info.status = Status::Failed;
    record.write(&folder.join(RECORD_FILE))?;
    Ok(format!("failed: {reason}"))
}

/// The comparison of all runs that there are, written beside them.
fn compare(title: &str, suite: &Suite, jobs: &[Resolved], out: &Path) -> Result<Comparison> {
    let run = |resolved: &Resolved| -> Option<Run> {
        let folder = out.join(resolved.job.folder());
        let record = RunRecord::read(&folder.join(RECORD_FILE)).ok()?;
        Some(Run {
            name: resolved.job.name.clone(),
            record,
            log: read_jsonl(&folder.join(LOG_FILE)).unwrap_or_default(),
            efficiency: Efficiency::read(&folder),
        })
    };
    let runs: Vec<Run> = jobs.iter().filter_map(run).collect();
    let comparison = Comparison::new(title, suite.description.clone(), Some(&suite.metric), runs);
    write_atomic(&out.join("report.html"), comparison.to_html()?.as_bytes())?;
    write_atomic(&out.join("results.md"), comparison.to_markdown().as_bytes())?;
    let rows = serde_json::to_string_pretty(&json!({ "metric": comparison.metric, "runs": comparison.rows() }))?;
    write_atomic(&out.join("results.json"), (rows + "\n").as_bytes())?;
    Ok(comparison)
}

fn progress_bar(length: u64, output: Output) -> ProgressBar {
    if output.quiet || !ui::stderr_is_terminal() {
        return ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::hidden());
    }
    let template = "{pos}/{len} {wide_bar:.cyan} {msg}{elapsed}";
    ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr()).with_style(style(template))
}

fn report_line(bar: &ProgressBar, output: Output, text: &str) {
    if !output.quiet {
        bar.suspend(|| eprintln!("{text}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_suites_can_be_run() {
        for (name, text) in SUITES {
            let suite = Suite::parse(Path::new(name), text).unwrap();
            for job in suite.jobs(Path::new("nowhere")) {
                let config = config::load_with::<TuneConfig>(None, &job.settings, &[], TuneConfig::problems);
                config.unwrap_or_else(|e| panic!("{name}: {}: {e}", job.name));
            }
        }
    }
}
