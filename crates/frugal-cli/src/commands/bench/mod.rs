//! `frugal bench`: many runs under one budget, compared.

mod adapt;
mod efficiency;
mod outcome;
mod pretrain;
mod process;
mod progress;
mod study;
mod sweep;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Subcommand;
use frugal::run::bench::{
    BenchKind, BenchRequest, BuiltinSuite, PlannedRun, Queue, open_suite, suite_title,
};
use frugal::run::study::{STUDIES, StudyKind};
use frugal_eval::suite::Suite;
use serde_json::json;

use self::process::Processes;
use self::progress::QueueProgress;
use crate::args::Output;
use crate::outcome::Outcome;
use crate::ui::{self, interrupt};

const ADAPT: &str = "\
Examples:
  frugal bench adapt --list
  frugal bench adapt --suite text-encoder --data-dir data --out runs/text-encoder
  frugal bench adapt --suite my-suite.toml --only lora,dora --seeds 0
  frugal bench adapt --suite my-suite.toml --sweep lr=3x5 --seeds 0,1,2 --baseline lora

A suite is a TOML file: settings that all runs share, the runs, the seeds. Each run is a \
process of its own, so that its peak memory is its own and a crash loses no other. Called \
again with the same folder, finished runs are kept and the one that was stopped goes on.

With --sweep every run gets the same number of trials; the best on the validation part is reported \
on the test part over three seeds or more, and compared with the baseline.";

const PRETRAIN: &str = "\
Examples:
  frugal bench pretrain --suite step-law --data-dir data --out runs/step-law
  frugal bench pretrain --suite step-law --data-dir data --out runs/step-law --only 'h32-*'
  frugal bench pretrain --suite low-memory --data-dir data --out runs/low-memory
  frugal bench pretrain --suite tokenformer --data-dir data --out runs/tokenformer
  frugal bench pretrain --suite birdie --data-dir data --out runs/birdie

Trains small models on a grid of sizes, tokens, learning rates and batches, and fits the Step Law \
to what it finds. With --only, the rest of the grid can be done in later calls: finished runs are \
kept, and the fit is of all that is there.

Experiments on published systems say which of their claims hold, and take --seeds and --smoke:
  birdie         mixtures of objectives and reading prompts in both directions, by what is found in a text
  low-memory     optimizers and reparameterisations, by perplexity and by the bytes of what is trained
  minicpm        decays of one run, rates carried over to larger models, data in the decay
  mor            Mixture-of-Recursions beside a Llama and a recursive transformer of equal operations
  rmoe, widenet  experts with a recurrent router, and shared by all blocks, beside plain ones
  tokenformer    growing a small model and training it on, beside new ones of the larger size";

const EFFICIENCY: &str = "\
Examples:
  frugal bench efficiency --suite efficientllm --data-dir data --out runs/efficientllm
  frugal bench efficiency --suite mine.toml --only mha,mqa

Runs of `frugal pretrain`, `frugal tune` and evaluations of models as they are, in groups: memory, \
utilisation, latency, throughput, power and compression of each, raw and on one scale. Runs are \
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
    Adapt(AdaptFlags),
    /// Compare what pre-training, adapting and running models costs, by six measures
    #[command(after_help = EFFICIENCY)]
    Efficiency(Flags),
    /// Find the best learning rate and batch of small models and the law that they follow
    #[command(after_help = PRETRAIN)]
    Pretrain(PretrainFlags),
    /// Experiments on published systems that find and rank
    Retrieve(study::Args),
    /// Experiments on published systems that answer from what was found
    Rag(study::Args),
}

/// Which runs, where, and how small.
#[derive(Debug, clap::Args)]
struct PretrainFlags {
    #[command(flatten)]
    flags: Flags,
    /// Of an experiment: the smallest size at which every arm runs; no claim is judged
    #[arg(long)]
    smoke: bool,
}

/// Which runs, where, and what is swept.
#[derive(Debug, clap::Args)]
struct AdaptFlags {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    sweep: sweep::Flags,
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

/// Runs what was asked for.
pub fn run(args: &Args) -> Result<Outcome> {
    let (kind, flags): (BenchKind, &Flags) = match &args.what {
        What::Adapt(adapt) => (BenchKind::Adapt, &adapt.flags),
        What::Efficiency(flags) => (BenchKind::Efficiency, flags),
        What::Pretrain(pretrain) => match experiment(pretrain)? {
            Some(args) => return study::run(StudyKind::Pretrain, &args),
            None => (BenchKind::Pretrain, &pretrain.flags),
        },
        What::Retrieve(args) => return study::run(StudyKind::Retrieve, args),
        What::Rag(args) => return study::run(StudyKind::Rag, args),
    };
    let Some(name) = flags.suite.as_ref().filter(|_| !flags.list) else {
        return list(kind, flags.output);
    };
    let request = request(kind, name, flags)?;
    let sweep = match &args.what {
        What::Adapt(adapt) => adapt.sweep.request(),
        _ => None,
    };
    if let (Some(sweep), true) = (&sweep, flags.dry_run) {
        return sweep::dry_run(&request, sweep);
    }
    if flags.dry_run {
        return Ok(dry_run(&request.plan()?));
    }
    let stop = interrupt::flag(process::STOPPING);
    let mut progress = QueueProgress::new(flags.output);
    let mut queue = Queue {
        runner: &mut Processes,
        stop: &stop,
        observe: &mut |event| progress.on(event),
    };
    if let Some(sweep) = sweep {
        return sweep::run(&request, &sweep, &mut queue, flags.output);
    }
    match kind {
        BenchKind::Adapt => adapt::run(&request, &mut queue, flags.output),
        BenchKind::Efficiency => efficiency::run(&request, &mut queue, flags.output),
        BenchKind::Pretrain => pretrain::run(&request, &mut queue, flags.output),
    }
}

/// The experiment that is meant, if it is one and no grid.
fn experiment(args: &PretrainFlags) -> Result<Option<study::Args>> {
    let flags = &args.flags;
    let of_kind = STUDIES.iter().filter(|s| s.kind == StudyKind::Pretrain);
    let names: Vec<&str> = of_kind.map(|study| study.name).collect();
    let is_study = |name: &String| names.contains(&name.as_str());
    let Some(name) = flags.suite.clone().filter(is_study) else {
        if args.smoke {
            bail!("--smoke is for experiments: `--suite` {}", names.join(", "));
        }
        return Ok(None);
    };
    if flags.list {
        return Ok(None);
    }
    for (flag, given) in [
        ("--only", !flags.only.is_empty()),
        ("--set", !flags.overrides.is_empty()),
        ("--dry-run", flags.dry_run),
    ] {
        if given {
            bail!("{flag} is not for `--suite {name}`, whose runs are fixed: leave it out");
        }
    }
    Ok(Some(study::Args {
        suite: Some(name),
        list: false,
        data_dir: flags.data_dir.clone(),
        out: flags.out.clone(),
        seeds: match flags.seeds.as_slice() {
            [] => vec![0, 1, 2],
            seeds => seeds.to_vec(),
        },
        smoke: args.smoke,
        output: flags.output,
    }))
}

fn request(kind: BenchKind, name: &str, flags: &Flags) -> Result<BenchRequest> {
    let title = suite_title(Path::new(name));
    let out = flags.out.clone();
    Ok(BenchRequest {
        kind,
        suite: open_suite(name)?,
        out: out.unwrap_or_else(|| PathBuf::from(format!("runs/bench-{title}"))),
        title,
        data_dir: flags.data_dir.clone(),
        only: flags.only.clone(),
        seeds: flags.seeds.clone(),
        overrides: flags.overrides.clone(),
    })
}

fn list(kind: BenchKind, output: Output) -> Result<Outcome> {
    let of_kind = BuiltinSuite::ALL.iter().filter(|suite| suite.kind == kind);
    let suites: Vec<(&str, Suite)> = of_kind
        .map(|builtin| Ok((builtin.name, builtin.open()?)))
        .collect::<Result<_>>()?;
    let runs = |s: &Suite| s.jobs(Path::new(".")).len() / s.seeds.len();
    let studies = STUDIES
        .iter()
        .filter(|study| kind == BenchKind::Pretrain && study.kind == StudyKind::Pretrain);
    if output.json {
        let entry = |(name, s): &(&str, Suite)| json!({ "name": name, "description": s.description, "runs": runs(s), "seeds": s.seeds });
        let studies =
            studies.map(|s| json!({ "name": s.name, "description": s.about, "source": s.source }));
        ui::print_json(&suites.iter().map(entry).chain(studies).collect::<Vec<_>>())?;
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
        for study in studies {
            ui::print(&format!(
                "{}: {} ({})",
                study.name, study.about, study.source
            ));
        }
    }
    Ok(Outcome::Done)
}

fn dry_run(runs: &[PlannedRun]) -> Outcome {
    for run in runs {
        ui::print(&format!("{}: {}", run.job.folder(), run.settings.summary()));
    }
    Outcome::Done
}
