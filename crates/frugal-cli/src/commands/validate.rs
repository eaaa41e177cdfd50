//! `frugal validate`: checks a configuration and its data without training.

use std::path::PathBuf;

use anyhow::Result;
use frugal::run::plan;
use frugal_core::config::ConfigErrors;
use serde_json::{Value, json};

use crate::args::{Output, RunFlags};
use crate::outcome::Outcome;
use crate::ui::progress::Phase;
use crate::ui::run::parts_lines;
use crate::{failure, ui};

const EXAMPLES: &str = "\
Examples:
  frugal validate run.toml
  frugal validate run.toml --set data.max_length=128
  frugal validate --model smollm2-135m --data chats.jsonl --task causal-lm

Reports every mistake of the configuration together, then looks for the model, reads all of \
the data and fits the method to the model. Exit status: 0 if the run could start, 1 if not.";

/// Check a configuration, its model and every record of its data
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    /// Configuration file, the same as --config
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    #[command(flatten)]
    run: RunFlags,
    #[command(flatten)]
    output: Output,
}

/// Checks and says what was found.
pub fn run(args: &Args) -> Result<Outcome> {
    let mut flags = args.run.clone();
    flags.config.config = args.file.clone().or(flags.config.config);
    let checked = check(&flags, args.output);
    if args.output.json {
        let (valid, problems) = match &checked {
            Ok(_) => (true, Vec::new()),
            Err(error) => (false, problems(error)),
        };
        ui::print_json(&json!({ "valid": valid, "problems": problems }))?;
        return Ok(if valid {
            Outcome::Done
        } else {
            Outcome::Negative
        });
    }
    match checked {
        Ok(found) => {
            ui::print(&found);
            ui::print("valid: the run can start");
            Ok(Outcome::Done)
        }
        Err(error) => {
            failure::report(&error);
            Ok(Outcome::Negative)
        }
    }
}

fn check(flags: &RunFlags, output: Output) -> Result<String> {
    let config = flags.resolve()?;
    flags.warn_of_idle(&config, output);
    let _phase = Phase::new(output, format!("reading {}", config.data.train_names()));
    // With the method made for the model, as far as that needs no weights.
    let plan = plan(&config, &flags.lookup())?;
    for text in &plan.warnings {
        ui::warn(output, text);
    }
    Ok(parts_lines(&plan.parts, plan.truncated))
}

fn problems(error: &anyhow::Error) -> Vec<Value> {
    match error.downcast_ref::<ConfigErrors>() {
        Some(ConfigErrors(mistakes)) => mistakes
            .iter()
            .map(|m| json!({ "key": m.key, "message": m.to_string() }))
            .collect(),
        None => vec![json!({ "key": null, "message": error.to_string() })],
    }
}
