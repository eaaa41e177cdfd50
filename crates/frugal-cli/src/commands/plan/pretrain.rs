//! `frugal plan pretrain`: learning rate, batch and schedule of a pre-training run from its size.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use frugal::model::load::ModelFiles;
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::step_law::{
    COMPARED, Covariance, Edges, Fit, Law, Recipe, STEP_LAW, STEP_LAW_COVARIANCE, covered, fit,
    optimal_size, read_runs, tokens_for_compute,
};
use serde_json::{Value, json};

use crate::args::{Output, lookup, quantity};
use crate::outcome::Outcome;
use crate::ui::{self, table};

const EXAMPLES: &str = "\
Examples:
  frugal plan pretrain --parameters 1B --tokens 100B
  frugal plan pretrain --parameters 135M --compute 1e18
  frugal plan pretrain --compute 1e20 --json
  frugal plan pretrain --model smollm2-135m --tokens 2.7B --sequence-length 1024
  frugal plan pretrain --parameters 10M --tokens 200M --runs my-runs.csv

Parameters are those outside the vocabulary. With --compute and no size, both are chosen, with \
--tokens-per-parameter tokens for each parameter; with a size, the tokens that it buys.

With --runs the law is fitted to finished runs of one's own: a CSV with the columns parameters, tokens, \
rate, batch (tokens) or bs (sequences of --sequence-length), and loss.";

/// Show learning rate, batch size and schedule for a pre-training run of a given size
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    /// Parameters outside the vocabulary
    #[arg(long, value_name = "N", value_parser = quantity, help_heading = "Size")]
    parameters: Option<f64>,
    /// Take the parameters of this model
    #[arg(
        long,
        short,
        value_name = "MODEL",
        conflicts_with = "parameters",
        help_heading = "Size"
    )]
    model: Option<String>,
    /// Tokens of training
    #[arg(long, value_name = "D", value_parser = quantity, required_unless_present = "compute", help_heading = "Size")]
    tokens: Option<f64>,
    /// Budget in floating-point operations, instead of tokens
    #[arg(long, value_name = "C", value_parser = quantity, conflicts_with = "tokens", help_heading = "Size")]
    compute: Option<f64>,
    /// Tokens for each parameter where a budget leaves the choice
    #[arg(long, value_name = "R", default_value_t = 20.0, help_heading = "Size")]
    tokens_per_parameter: f64,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 2048, help_heading = "Size")]
    sequence_length: u64,
    /// Fit the law to these finished runs instead of taking the published one
    #[arg(long, value_name = "FILE", help_heading = "Law")]
    runs: Option<PathBuf>,
    /// Share above the best loss of a size within which runs count
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0025,
        requires = "runs",
        help_heading = "Law"
    )]
    excess: f64,
    /// Never use the network; also set by HF_HUB_OFFLINE=1
    #[arg(long, help_heading = "Machine")]
    offline: bool,
    #[command(flatten)]
    output: Output,
}

/// Reckons and prints.
pub fn run(args: &Args) -> Result<Outcome> {
    if args.sequence_length == 0
        || !(args.tokens_per_parameter.is_finite() && args.tokens_per_parameter > 0.0)
    {
        bail!("--sequence-length and --tokens-per-parameter must be above 0");
    }
    let parameters = match (&args.model, args.parameters) {
        (Some(model), _) => Some(non_embedding(model, args.offline)?),
        (None, given) => given,
    };
    let (parameters, tokens) = match (parameters, args.tokens, args.compute) {
        (Some(n), Some(d), _) => (n, d),
        (Some(n), None, Some(c)) => (n, tokens_for_compute(c, n)),
        (None, None, Some(c)) => optimal_size(c, args.tokens_per_parameter),
        _ => bail!(
            "the size of the model is missing: give `--parameters` or `--model`, or `--compute` without tokens"
        ),
    };
    if tokens < args.sequence_length as f64 {
        bail!(
            "{} tokens are less than one sequence of {}",
            human::significant(tokens, 3),
            args.sequence_length
        );
    }
    let Chosen {
        name: law_name,
        law,
        covariance,
        fit,
        notes,
    } = chosen(args)?;
    let recipe = Recipe::new(&law, parameters, tokens, args.sequence_length);
    let band = covariance.band(&law, parameters, tokens);
    let others = COMPARED.map(|(name, law)| (name, law(parameters, tokens)));
    let inside = fit.is_some() || covered(parameters, tokens);
    if args.output.json {
        let others: Vec<Value> =
            others.iter().map(|(name, (rate, batch))| json!({ "law": name, "peak_rate": rate, "batch_tokens": batch })).collect();
        ui::print_json(&json!({
            "law": law_name, "recipe": recipe, "band": band, "fit": fit, "inside_fitted_range": inside,
            "notes": notes, "compared": others,
        }))?;
        return Ok(Outcome::Done);
    }
    let whole = |v: f64| human::count(v.round() as u64);
    ui::print(&table::pairs(&[
        (
            "parameters",
            format!("{} outside the vocabulary", whole(parameters)),
        ),
        (
            "tokens",
            format!(
                "{} ({} for each parameter)",
                whole(tokens),
                human::significant(tokens / parameters, 3)
            ),
        ),
        ("compute", format!("{:.2e} operations", recipe.compute)),
        (
            "learning rate",
            format!(
                "{:.3e} at the peak ({:.2e} to {:.2e} within one deviation), {:.1e} at the end",
                recipe.peak_rate, band.rate.0, band.rate.1, recipe.final_rate
            ),
        ),
        (
            "batch",
            format!(
                "{} tokens ({} to {}): {} sequences of {}",
                whole(recipe.batch_tokens),
                whole(band.batch.0),
                whole(band.batch.1),
                human::count(recipe.sequences),
                recipe.sequence_length
            ),
        ),
        (
            "steps",
            format!(
                "{}, of which {} warm up, then cosine",
                human::count(recipe.steps),
                human::count(recipe.warmup_steps)
            ),
        ),
    ]));
    let mut shown = Table::new([
        Column::text("law"),
        Column::number("peak rate"),
        Column::number("batch tokens"),
    ]);
    shown.row([
        law_name,
        format!("{:.3e}", recipe.peak_rate),
        whole(recipe.batch_tokens),
    ]);
    if fit.is_some() {
        shown.row([
            "published step law".to_owned(),
            format!("{:.3e}", STEP_LAW.rate(parameters, tokens)),
            whole(STEP_LAW.batch(tokens)),
        ]);
    }
    for (name, (rate, batch)) in others {
        shown.row([
            name.to_owned(),
            format!("{rate:.3e}"),
            batch.map_or("-".to_owned(), whole),
        ]);
    }
    ui::print("");
    table::print(&shown);
    for note in &notes {
        ui::warn(args.output, note);
    }
    if !inside {
        ui::note(
            args.output,
            "this is outside of the published runs (0.21 to 1.1 billion parameters, 4 to 100 billion tokens), where the band \
             says nothing: a first guess, to be varied by factors of two",
        );
    }
    Ok(Outcome::Done)
}

/// The law that is taken.
struct Chosen {
    name: String,
    law: Law,
    covariance: Covariance,
    fit: Option<Fit>,
    /// What its user should know.
    notes: Vec<String>,
}

/// Bootstrap samples of a fit.
const BOOTSTRAPS: usize = 1000;

fn chosen(args: &Args) -> Result<Chosen> {
    let Some(path) = &args.runs else {
        return Ok(Chosen {
            name: "step law".into(),
            law: STEP_LAW,
            covariance: STEP_LAW_COVARIANCE,
            fit: None,
            notes: Vec::new(),
        });
    };
    let bytes = frugal_core::fs::read_data(path)?;
    let (runs, loss) = read_runs(path, &bytes, args.sequence_length)?;
    let fit = fit(&runs, args.excess, BOOTSTRAPS, 0).with_context(|| {
        format!(
            "{}: the {} runs do not tell the exponents apart: they need at least three sizes that differ in parameters and in tokens",
            path.display(),
            runs.len()
        )
    })?;
    let mut notes: Vec<String> = Edges::of(&runs).warning().into_iter().collect();
    if loss.to_lowercase() != "loss" {
        notes.push(format!("the loss is that of the column `{loss}`"));
    }
    Ok(Chosen {
        name: format!("fitted to {} runs of {}", fit.kept, path.display()),
        law: fit.law,
        covariance: fit.covariance,
        fit: Some(fit),
        notes,
    })
}

/// Parameters of the linear layers within the blocks.
fn non_embedding(model: &str, offline: bool) -> Result<f64> {
    let files = ModelFiles::open(model, &lookup(offline))?;
    let sites = files.sites();
    let inner = sites
        .iter()
        .filter(|(_, s)| s.kind.is_inner_linear() && s.layer.is_some());
    Ok(inner.map(|(_, s)| (s.d_in * s.d_out) as f64).sum())
}
