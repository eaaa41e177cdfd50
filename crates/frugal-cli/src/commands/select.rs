//! `frugal select`: chooses items with a bound on the share of wrong ones among them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use frugal_core::data;
use frugal_core::table::{Column, Table};
use frugal_eval::optcs::{self, Pruning, Ridge, Selection};
use serde_json::{Map, Value, json};

use crate::Outcome;
use crate::args::Output;
use crate::ui::{self, table};

const EXAMPLES: &str = "\
Examples:
  frugal select --calibration known.csv --test new.csv --label right --scores confidence --fdr 0.1
  frugal select --calibration known.csv --test new.csv --label right --scores logprob,agreement,entropy
  frugal select --calibration known.jsonl --test new.jsonl --label rating --above 3 --features length,similarity

Items of --calibration have an outcome in the column --label; those that exceed --above are good.
Test items are chosen so that the expected share of items that are not good among the chosen is at
most --fdr, whatever the scores are worth. Both files must hold items of the same kind.

With one column in --scores (more is better) this is conformal selection; with several, the best one
is chosen for each item without losing the bound. With --features a ridge regression is trained on
the calibration items themselves, one for each of --penalties.";

/// Choose items with a bound on the share of wrong ones among the chosen
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Items whose outcome is known: CSV, TSV with column names, JSON or JSONL
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    calibration: PathBuf,
    /// Items to choose from
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    test: PathBuf,
    /// Column with the outcome: numbers, or true and false
    #[arg(long, value_name = "COLUMN", help_heading = "Data")]
    label: String,
    /// Outcomes above this are good; true counts 1, false 0
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Data"
    )]
    above: f64,
    /// Columns with scores, of models that have not seen the calibration items
    #[arg(
        long,
        value_name = "COLUMNS",
        value_delimiter = ',',
        required_unless_present = "features",
        help_heading = "Data"
    )]
    scores: Vec<String>,
    /// Columns to train on instead
    #[arg(
        long,
        value_name = "COLUMNS",
        value_delimiter = ',',
        conflicts_with = "scores",
        help_heading = "Data"
    )]
    features: Vec<String>,
    /// Column that names an item in the output [default: its number from 1]
    #[arg(long, value_name = "COLUMN", help_heading = "Data")]
    id: Option<String>,
    /// Largest expected share of items that are not good among the chosen
    #[arg(
        long,
        value_name = "Q",
        default_value_t = 0.1,
        help_heading = "Selection"
    )]
    fdr: f64,
    /// How candidates are thinned out where a score is chosen for each item
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Thinning::Homo, help_heading = "Selection")]
    pruning: Thinning,
    /// Penalties of the regressions on --features; of several, the best is chosen for each item
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [1.0], help_heading = "Selection")]
    penalties: Vec<f64>,
    /// Decides the numbers that thin out; choose it before you look at results
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        help_heading = "Selection"
    )]
    seed: u64,
    #[command(flatten)]
    output: Output,
}

/// How candidates are thinned out.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Thinning {
    /// One random number for all
    Homo,
    /// A random number for each
    Hete,
    /// Not at random; may choose nothing
    Dtm,
}

/// Selects and prints.
pub fn run(args: &Args) -> Result<Outcome> {
    let (known, new) = (read(&args.calibration)?, read(&args.test)?);
    let good = column(&known, &args.label, &args.calibration)?
        .iter()
        .map(|y| *y > args.above)
        .collect::<Vec<_>>();
    let pruning = match args.pruning {
        Thinning::Homo => Pruning::Homo,
        Thinning::Hete => Pruning::Hete,
        Thinning::Dtm => Pruning::Dtm,
    };
    if let Some(bad) = args
        .penalties
        .iter()
        .find(|p| !(p.is_finite() && **p > 0.0))
    {
        bail!("--penalties: {bad} must be above 0");
    }
    let columns =
        |names: &[String], items: &[Map<String, Value>], path: &Path| -> Result<Vec<Vec<f64>>> {
            names.iter().map(|name| column(items, name, path)).collect()
        };
    let (procedure, models, found) = if args.features.is_empty() {
        let (calibration, test) = (
            columns(&args.scores, &known, &args.calibration)?,
            columns(&args.scores, &new, &args.test)?,
        );
        let (procedure, found) = match (calibration.as_slice(), test.as_slice()) {
            ([calibration], [test]) => (
                "conformal selection",
                optcs::conformal_selection(calibration, &good, test, args.fdr)?,
            ),
            _ => (
                "OptCS-MSel",
                optcs::model_selection(&calibration, &good, &test, args.fdr, pruning, args.seed)?,
            ),
        };
        (procedure, args.scores.clone(), found)
    } else {
        let (calibration, test) = (
            columns(&args.features, &known, &args.calibration)?,
            columns(&args.features, &new, &args.test)?,
        );
        let (calibration, test) = (transposed(&calibration), transposed(&test));
        let learners: Vec<Ridge> = args
            .penalties
            .iter()
            .map(|&penalty| Ridge {
                penalty,
                ..Ridge::default()
            })
            .collect();
        let (procedure, found) = match learners.as_slice() {
            [only] => (
                "OptCS-Full",
                optcs::full(&calibration, &good, &test, only, args.fdr)?,
            ),
            _ => (
                "OptCS-Full-MSel",
                optcs::full_model_selection(
                    &calibration,
                    &good,
                    &test,
                    &learners,
                    args.fdr,
                    pruning,
                    args.seed,
                )?,
            ),
        };
        (
            procedure,
            args.penalties
                .iter()
                .map(|p| format!("penalty {p}"))
                .collect(),
            found,
        )
    };
    let name = |j: usize| match &args.id {
        None => Ok((j + 1).to_string()),
        Some(id) => match new[j].get(id) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Ok(other.to_string()),
            None => bail!(
                "{}: item {} has no column `{id}`",
                args.test.display(),
                j + 1
            ),
        },
    };
    let names = (0..new.len()).map(name).collect::<Result<Vec<_>>>()?;
    print(args, procedure, &models, &names, &good, &found)?;
    Ok(Outcome::Done)
}

fn print(
    args: &Args,
    procedure: &str,
    models: &[String],
    names: &[String],
    good: &[bool],
    found: &Selection,
) -> Result<()> {
    if args.output.json {
        let item = |&j: &usize| json!({ "item": names[j], "row": j + 1, "p_value": found.p_values[j], "score": models[found.models[j]] });
        return ui::print_json(&json!({
            "procedure": procedure,
            "fdr": args.fdr,
            "seed": args.seed,
            "calibration_items": good.len(),
            "good_calibration_items": good.iter().filter(|g| **g).count(),
            "test_items": names.len(),
            "candidates": found.candidates.len(),
            "selected": found.selected.iter().map(item).collect::<Vec<_>>(),
            "p_values": found.p_values,
        }));
    }
    if !found.selected.is_empty() {
        let mut shown = Table::new([
            Column::text("item"),
            Column::number("p-value"),
            Column::text("score"),
        ]);
        for &j in &found.selected {
            shown.row([
                names[j].clone(),
                format!("{:.4}", found.p_values[j]),
                models[found.models[j]].clone(),
            ]);
        }
        table::print(&shown);
    }
    let of = format!(
        "{} of {} items selected at FDR {} by {procedure}",
        found.selected.len(),
        names.len(),
        args.fdr
    );
    ui::note(
        args.output,
        &format!(
            "{of}; {} calibration items, the smallest p-value they allow is {:.4}",
            good.len(),
            1.0 / (good.len() + 1) as f64
        ),
    );
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Map<String, Value>>> {
    Ok(data::objects(path, &frugal_core::fs::read(path)?)?)
}

/// A column as numbers.
fn column(items: &[Map<String, Value>], name: &str, path: &Path) -> Result<Vec<f64>> {
    let number = |value: &Value| match value {
        Value::Number(n) => n.as_f64(),
        Value::Bool(b) => Some(f64::from(u8::from(*b))),
        Value::String(text) => match text.trim() {
            "true" | "True" => Some(1.0),
            "false" | "False" => Some(0.0),
            text => text.parse().ok(),
        },
        _ => None,
    };
    let of = |(i, item): (usize, &Map<String, Value>)| {
        let value = item.get(name).with_context(|| {
            let columns = item
                .keys()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            format!(
                "{}: item {} has no column `{name}`; it has {columns}",
                path.display(),
                i + 1
            )
        })?;
        number(value).with_context(|| {
            format!(
                "{}: item {}: `{name}` is {value}, which is no number",
                path.display(),
                i + 1
            )
        })
    };
    items.iter().enumerate().map(of).collect()
}

/// Columns to rows.
fn transposed(columns: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let items = columns.first().map_or(0, Vec::len);
    (0..items)
        .map(|i| columns.iter().map(|c| c[i]).collect())
        .collect()
}
