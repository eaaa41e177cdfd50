//! `frugal plan`: what a run would cost, before any weight is read.

mod parallel;
mod pretrain;
mod scaling;

use anyhow::Result;
use frugal::model::load::Lookup;
use frugal::run::{Plan, TuneConfig, plan};
use frugal_core::human;

use crate::args::{Output, RunFlags};
use crate::outcome::Outcome;
use crate::ui::progress::Phase;
use crate::ui::run::{example_lines, parts_lines};
use crate::ui::{self, table};

const EXAMPLES: &str = "\
Examples:
  frugal plan
  frugal plan --model smollm2-135m --data sst2.tsv --r 8
  frugal plan --config run.toml --set train.batch_size=32 --json
  frugal plan pretrain --parameters 135M --tokens 2.7B
  frugal plan scaling --runs decays.csv --compute 1e18
  frugal plan parallel --model 175b --gpus 1024

Takes the flags of `frugal tune`. Reads the data and the model's configuration, but no weights.";

/// Show what a run will cost: parameters, memory by part, time
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true, allow_negative_numbers = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunFlags,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Pretrain(pretrain::Args),
    Scaling(scaling::Args),
    Parallel(Box<parallel::Args>),
}

/// Resolves the configuration and shows the plan.
pub fn run(args: &Args) -> Result<Outcome> {
    match &args.command {
        Some(Command::Pretrain(args)) => return pretrain::run(args),
        Some(Command::Scaling(args)) => return scaling::run(args),
        Some(Command::Parallel(args)) => return parallel::run(args),
        None => {}
    }
    let config = args.run.resolve()?;
    args.run.warn_of_idle(&config, args.output);
    show(&config, &args.run.lookup(), args.output)
}

/// Shows the plan of a configuration.
pub fn show(config: &TuneConfig, lookup: &Lookup, output: Output) -> Result<Outcome> {
    let plan = {
        let _phase = Phase::new(
            output,
            format!("planning with {}", config.data.train_names()),
        );
        plan(config, lookup)?
    };
    if output.json {
        ui::print_json(&plan)?;
    } else {
        print(&plan, config);
    }
    for text in plan.warnings.iter().cloned().chain(warning(&plan)) {
        ui::warn(output, &text);
    }
    Ok(Outcome::Done)
}

/// The predicted peak, and beside it what there is.
fn peak(plan: &Plan) -> String {
    let needed = human::bytes(plan.peak_memory_bytes);
    match plan.available_memory_bytes {
        Some(bytes) => format!("{needed}, {} available", human::bytes(bytes)),
        None => needed,
    }
}

/// What is to be said of a run that does not fit.
fn warning(plan: &Plan) -> Option<String> {
    plan.available_memory_bytes
        .filter(|available| plan.peak_memory_bytes > *available)?;
    let way_out = if plan.fitting_flags.is_empty() {
        "no setting of batches, --memory or --quantize makes it fit".into()
    } else {
        format!(
            "it fits with `{}`, which `frugal tune --fit` sets",
            plan.fitting_flags.join(" ")
        )
    };
    Some(format!(
        "the run needs more memory than is available: {way_out}"
    ))
}

fn print(plan: &Plan, config: &TuneConfig) {
    ui::print(&parts_lines(&plan.parts, plan.truncated));
    ui::print(&format!(
        "\nThe first example:\n{}\n",
        example_lines(&plan.example)
    ));
    // The model's own parameters and what the method adds to them.
    let share = human::share(
        plan.trainable_parameters,
        plan.model_parameters + plan.trainable_parameters,
    );
    let memory = &plan.memory;
    ui::print(&table::pairs(&[
        (
            "model",
            format!(
                "{}, {} parameters",
                config.model,
                human::count(plan.model_parameters)
            ),
        ),
        (
            "trainable parameters",
            format!("{} ({share})", human::count(plan.trainable_parameters)),
        ),
        (
            "training",
            format!(
                "{} steps, {} tokens",
                human::count(plan.total_steps),
                human::count(plan.train_tokens)
            ),
        ),
        (
            "largest batch",
            format!("{} tokens", human::count(plan.micro_batch_tokens)),
        ),
        ("peak memory", peak(plan)),
        ("  program and data", human::bytes(memory.process)),
        ("  frozen weights", human::bytes(memory.weights)),
        ("  what is trained", human::bytes(memory.trainable)),
        ("  activations", human::bytes(memory.activations)),
        ("  working space", human::bytes(memory.workspace)),
        (
            "time",
            format!(
                "about {} at half of {} GFLOP/s",
                human::duration(plan.train_seconds),
                human::significant(plan.gemm_gflops, 3)
            ),
        ),
    ]));
}
