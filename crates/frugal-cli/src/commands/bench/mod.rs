//! `frugal bench`: many runs under one budget, compared.

mod adapt;
mod efficiency;
mod jobs;
mod pretrain;
mod score;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Subcommand;
use frugal_eval::suite::{Job, Suite};
use serde_json::json;

use self::jobs::Resolved;
use crate::args::Output;
use crate::folder::claim;
use crate::outcome::Outcome;
use crate::ui;

const ADAPT: &str = "\
Examples:
  frugal bench adapt --list
  frugal bench adapt --suite text-encoder --data-dir data --out runs/text-encoder
  frugal bench adapt --suite my-suite.toml --only lora,dora --seeds 0

A suite is a TOML file: settings that all runs share, the runs, the seeds. Each run is a
process of its own, so that its peak memory is its own and a crash loses no other. Called
again with the same folder, finished runs are kept and the one that was stopped goes on.";

const PRETRAIN: &str = "\
Examples:
  frugal bench pretrain --suite step-law --data-dir data --out runs/step-law
  frugal bench pretrain --suite step-law --data-dir data --out runs/step-law --only 'h32-*'

Trains small models on a grid of sizes, tokens, learning rates and batches, and fits the Step Law
to what it finds. With --only, the rest of the grid can be done in later calls: finished runs are
kept, and the fit is of all that is there.";

const EFFICIENCY: &str = "\
Examples:
  frugal bench efficiency --suite efficientllm --data-dir data --out runs/efficientllm
  frugal bench efficiency --suite mine.toml --only mha,mqa

Runs of `frugal pretrain`, `frugal tune` and evaluations of models as they are, in groups: memory,
utilisation, latency, throughput, power and compression of each, raw and on one scale. Runs are
sampled 20 times a second; an interrupted run begins anew.";

/// Run a suite under one budget and compare what comes of it
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Compare ways to adapt a model
    #[command(after_help = ADAPT)]
    Adapt(Flags),
    /// Compare what pre-training, adapting and running models costs, by six measures
    #[command(after_help = EFFICIENCY)]
    Efficiency(Flags),
    /// Find the best learning rate and batch of small models and the law that they follow
    #[command(after_help = PRETRAIN)]
    Pretrain(Flags),
}

/// Which runs, and where.
#[derive(Debug, clap::Args)]
struct Flags {
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
    /// Only the runs of these names, in which * stands for anything
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

/// A suite with its title and the folder of its runs.
struct Opened {
    suite: Suite,
    title: String,
    out: PathBuf,
}

/// Suites that are compiled in: the comparison that takes them, name, text.
const SUITES: [(&str, &str, &str); 5] = [
    (
        "efficiency",
        "efficientllm",
        include_str!("../../../../../benchmarks/efficientllm/suite.toml"),
    ),
    (
        "pretrain",
        "step-law",
        include_str!("../../../../../benchmarks/step-law/suite.toml"),
    ),
    (
        "adapt",
        "text-decoder",
        include_str!("../../../../../benchmarks/suites/text-decoder.toml"),
    ),
    (
        "adapt",
        "text-generation",
        include_str!("../../../../../benchmarks/suites/text-generation.toml"),
    ),
    (
        "adapt",
        "text-encoder",
        include_str!("../../../../../benchmarks/suites/text-encoder.toml"),
    ),
];

/// Runs what was asked for.
pub fn run(args: &Args) -> Result<Outcome> {
    // With the key of its results that those of the others lack.
    let (kind, key, flags): (&str, &str, &Flags) = match &args.what {
        What::Adapt(flags) => ("adapt", "runs", flags),
        What::Efficiency(flags) => ("efficiency", "groups", flags),
        What::Pretrain(flags) => ("pretrain", "study", flags),
    };
    let Some(name) = flags.suite.as_ref().filter(|_| !flags.list) else {
        return list(kind, flags.output);
    };
    let suite = open(name)?;
    let title = title(Path::new(name));
    let out = flags
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("runs/bench-{title}")));
    let mut lock = None;
    if !flags.dry_run {
        let runs: Vec<String> = suite
            .jobs(&flags.data_dir)
            .iter()
            .map(Job::folder)
            .collect();
        lock = Some(claim(&out, key, |name| {
            runs.iter()
                .any(|run| run == name.strip_suffix(".toml").unwrap_or(name))
        })?);
    }
    let opened = Opened { suite, title, out };
    let ended = match &args.what {
        What::Adapt(_) => adapt::run(flags, &opened),
        What::Efficiency(_) => efficiency::run(flags, &opened),
        What::Pretrain(_) => pretrain::run(flags, &opened),
    };
    drop(lock);
    ended
}

/// What a suite is called: its name or its file's, or that of the folder of a `suite.toml`.
fn title(path: &Path) -> String {
    let name = |path: &Path| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let own = name(path).unwrap_or_default();
    if own == "suite" {
        path.parent().and_then(name).unwrap_or(own)
    } else {
        own
    }
}

fn list(kind: &str, output: Output) -> Result<Outcome> {
    let of_kind = SUITES.iter().filter(|(takes, ..)| *takes == kind);
    let suites: Vec<(&str, Suite)> = of_kind
        .map(|(_, name, text)| Ok((*name, Suite::parse(Path::new(name), text)?)))
        .collect::<Result<_>>()?;
    let runs = |s: &Suite| s.jobs(Path::new(".")).len() / s.seeds.len();
    if output.json {
        let entry = |(name, s): &(&str, Suite)| json!({ "name": name, "description": s.description, "runs": runs(s), "seeds": s.seeds });
        ui::print_json(&suites.iter().map(entry).collect::<Vec<_>>())?;
    } else {
        for (name, s) in &suites {
            let seeds = if s.seeds.len() == 1 {
                "1 seed".to_owned()
            } else {
                format!("{} seeds", s.seeds.len())
            };
            ui::print(&format!(
                "{name}: {} ({} runs with {seeds})",
                s.description,
                runs(s)
            ));
        }
    }
    Ok(Outcome::Done)
}

fn open(name: &str) -> Result<Suite> {
    if let Some((_, name, text)) = SUITES.iter().find(|(_, known, _)| *known == name) {
        return Ok(Suite::parse(Path::new(name), text)?);
    }
    let path = Path::new(name);
    if !path.exists() {
        let known = SUITES.map(|(_, name, _)| name).join(", ");
        bail!("`{name}` is neither a file nor a built-in suite; built in: {known}");
    }
    Ok(Suite::read(path)?)
}

fn dry_run(jobs: &[Resolved]) -> Outcome {
    jobs.iter()
        .for_each(|r| ui::print(&format!("{}: {}", r.job.folder(), r.settings.summary())));
    Outcome::Done
}

fn end(stopped: bool, failed: bool) -> Outcome {
    match (stopped, failed) {
        (true, _) => Outcome::Interrupted,
        (false, true) => Outcome::Negative,
        (false, false) => Outcome::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_called_by_file_or_folder() {
        let titles = [
            "text-encoder",
            "a/mine.toml",
            "benchmarks/mos/suite.toml",
            "suite.toml",
        ]
        .map(|p| title(Path::new(p)));
        assert_eq!(titles, ["text-encoder", "mine", "mos", "suite"]);
    }

    #[test]
    fn built_in_suites_can_be_run() {
        for (_, name, text) in SUITES {
            let suite = Suite::parse(Path::new(name), text).unwrap();
            for job in suite.jobs(Path::new("nowhere")) {
                jobs::check(&job, &[]).unwrap_or_else(|e| panic!("{name}: {}: {e}", job.name));
            }
        }
    }
}
