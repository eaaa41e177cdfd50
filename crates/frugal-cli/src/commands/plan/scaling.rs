//! `frugal plan scaling`: size and tokens for a budget by a law that is fitted to runs of one's own.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use frugal_core::human;
use frugal_eval::scaling_law::{batch_tokens, fit, read_points};
use serde_json::json;

use crate::args::{Output, quantity};
use crate::outcome::Outcome;
use crate::ui::{self, table};

const EXAMPLES: &str = "\
Examples:
  frugal plan scaling --runs decays.csv --compute 1e18
  frugal plan scaling --loss 2.5

Fits L(N, D) = C_N N^-a + C_D D^-b + L_0 by least squares to a CSV with the columns parameters (outside \
the vocabulary), tokens and loss, of which decays forked from one stable run of each size \
(`frugal pretrain --fork`) give many for little more than the longest; then the size and the tokens \
of the lowest loss with 6 N D = --compute. --loss gives the batch of MiniCPM's law, whose losses are in \
nats for each token of its own tokenizer on C4.";

/// Fit a scaling law to finished runs and divide a budget by it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Finished runs: a CSV with the columns parameters, tokens and loss
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "loss",
        help_heading = "Law"
    )]
    runs: Option<PathBuf>,
    /// Budget in floating-point operations
    #[arg(long, value_name = "C", value_parser = quantity, requires = "runs", help_heading = "Law")]
    compute: Option<f64>,
    /// Show the batch for a run that is expected to reach this loss
    #[arg(long, value_name = "L", help_heading = "Batch")]
    loss: Option<f64>,
    #[command(flatten)]
    output: Output,
}

/// Fits and prints.
pub fn run(args: &Args) -> Result<Outcome> {
    if args
        .loss
        .is_some_and(|loss| !(loss.is_finite() && loss > 0.0))
    {
        bail!("--loss must be above 0");
    }
    let fitted = args.runs.as_ref().map(|path| {
        let points = read_points(path, &frugal_core::fs::read_data(path)?)?;
        fit(&points).with_context(|| {
            format!(
                "{}: the {} runs do not decide the law: it needs at least six, of three sizes and three numbers of tokens, with losses that fall with both",
                path.display(),
                points.len()
            )
        })
    });
    let fitted = fitted.transpose()?;
    let optimum = fitted.zip(args.compute).map(|(fit, c)| fit.law.optimum(c));
    let batch = args.loss.map(batch_tokens);
    if args.output.json {
        ui::print_json(&json!({
            "fit": fitted, "compute": args.compute, "optimum": optimum, "loss": args.loss, "batch_tokens": batch,
        }))?;
        return Ok(Outcome::Done);
    }
    let whole = |v: f64| human::count(v.round() as u64);
    let mut lines: Vec<(&str, String)> = Vec::new();
    if let Some(fit) = fitted {
        let law = fit.law;
        lines.push((
            "law",
            format!(
                "{} N^-{} + {} D^-{} + {}",
                human::significant(law.c_n, 4),
                human::significant(law.a, 4),
                human::significant(law.c_d, 4),
                human::significant(law.b, 4),
                human::significant(law.l_0, 4)
            ),
        ));
        lines.push((
            "fit",
            format!(
                "{} runs, root mean square difference {}",
                fit.runs,
                human::significant(fit.deviation, 3)
            ),
        ));
    }
    if let Some(best) = optimum {
        lines.push(("parameters", whole(best.parameters)));
        lines.push((
            "tokens",
            format!(
                "{} ({} for each parameter)",
                whole(best.tokens),
                human::significant(best.tokens / best.parameters, 3)
            ),
        ));
        lines.push(("loss", human::significant(best.loss, 4)));
    }
    if let Some(batch) = batch {
        lines.push(("batch", format!("{} tokens", whole(batch))));
    }
    ui::print(&table::pairs(&lines));
    Ok(Outcome::Done)
}
