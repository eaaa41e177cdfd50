//! `frugal select`: chooses items with a bound on the share of wrong ones among them.

mod samples;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use frugal_core::data;
use frugal_core::table::{Column, Table};
use frugal_eval::measurement::{Kind, Measurement, Meter};
use frugal_eval::optcs::{self, Kernel, Learner, Pruning, Ridge, Selection};
use serde_json::{Map, Value, json};

use crate::args::Output;
use crate::measured::{Kept, dataset, measurement};
use crate::outcome::Outcome;
use crate::ui::{self, table};

const EXAMPLES: &str = "\
Examples:
  frugal select --calibration known.csv --test new.csv --label right --scores confidence --fdr 0.1
  frugal select --calibration known.csv --test new.csv --label right --scores logprob,agreement,entropy
  frugal select --calibration known.jsonl --test new.jsonl --label rating --above 3 --features length,similarity
  frugal select --calibration a/samples_sst2.jsonl --test b/samples_sst2.jsonl --label acc --scores confidence,margin

Items of --calibration have an outcome in the column --label; those that exceed --above are good. \
Test items are chosen so that the expected share of items that are not good among the chosen is at \
most --fdr, whatever the scores are worth. Both files must hold items of the same kind.

With one column in --scores (more is better) this is conformal selection; with several, the best one \
is chosen for each item without losing the bound. With --features a ridge regression is trained on \
the calibration items themselves, one for each of --penalties.

For samples_TASK.jsonl of `frugal eval --tasks` there are columns of the answers, more being surer:
  logprob     log-likelihood of the likeliest choice
  confidence  its share of the likelihoods of all choices
  margin      its log-likelihood above that of the next choice
  certainty   1 - entropy of the choices, as a share of the largest possible
  agreement   share of repeated answers that equal the commonest one
  brevity     minus the characters of the answer";

/// Choose items with a bound on the share of wrong ones among them (OptCS, conformal selection)
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
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [1.0], conflicts_with = "scores", help_heading = "Selection")]
    penalties: Vec<f64>,
    /// What is trained on --features
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Trained::Ridge, conflicts_with = "scores", help_heading = "Selection")]
    learner: Trained,
    /// Width of the kernel of --learner kernel [default: 1 / number of features]
    #[arg(
        long,
        value_name = "X",
        conflicts_with = "scores",
        help_heading = "Selection"
    )]
    gamma: Option<f64>,
    /// Train a model for each test item, on it and the calibration items, with e-values; slower, but
    /// what is chosen depends less on the other test items
    #[arg(
        long,
        requires = "features",
        conflicts_with = "scores",
        help_heading = "Selection"
    )]
    per_item: bool,
    /// Filter of the samples of an evaluation, where they have several
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    filter: Option<String>,
    /// Decides the numbers that thin out; choose it before you look at results
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        help_heading = "Selection"
    )]
    seed: u64,
    #[command(flatten)]
    kept: Kept,
    #[command(flatten)]
    output: Output,
}

/// What is trained on features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Trained {
    /// A linear ridge regression
    Ridge,
    /// A ridge regression with a Gaussian kernel, which finds what is not linear
    Kernel,
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

/// A selection and how it came about.
struct Selected {
    procedure: &'static str,
    /// What each item was scored by, in the order of [`Selection::models`].
    models: Vec<String>,
    found: Selection,
}

/// Selects and prints.
pub fn run(args: &Args) -> Result<Outcome> {
    args.kept.claim(Kind::Selection)?;
    let meter = Meter::start();
    let (known_bytes, new_bytes) = (
        frugal_core::fs::read_data(&args.calibration)?,
        frugal_core::fs::read_data(&args.test)?,
    );
    let read = |path: &Path, bytes: &[u8]| {
        samples::prepared(data::objects(path, bytes)?, args.filter.as_deref(), path)
    };
    let known = read(&args.calibration, &known_bytes)?;
    let new = read(&args.test, &new_bytes)?;
    samples::disjoint(&known, &new, &args.test)?;
    let good = column(&known, &args.label, &args.calibration)?
        .iter()
        .map(|y| *y > args.above)
        .collect::<Vec<_>>();
    let selected = if args.features.is_empty() {
        by_scores(args, &known, &new, &good)?
    } else {
        by_features(args, &known, &new, &good)?
    };
    let mut kept = Measurement {
        data: vec![
            dataset(&args.test, &new_bytes, new.len()),
            dataset(&args.calibration, &known_bytes, known.len()),
        ],
        ..measurement(Kind::Selection, "cpu", meter.stop())
    };
    describe(args, &selected, &good, new.len(), &mut kept);
    args.kept.write(
        "Conformal selection",
        std::slice::from_ref(&kept),
        args.output,
    )?;
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
    let Selected {
        procedure,
        models,
        found,
    } = &selected;
    print(args, procedure, models, &names, &good, found, &kept)?;
    Ok(Outcome::Done)
}

fn pruning(args: &Args) -> Pruning {
    match args.pruning {
        Thinning::Homo => Pruning::Homo,
        Thinning::Hete => Pruning::Hete,
        Thinning::Dtm => Pruning::Dtm,
    }
}

fn columns(names: &[String], items: &[Map<String, Value>], path: &Path) -> Result<Vec<Vec<f64>>> {
    names.iter().map(|name| column(items, name, path)).collect()
}

/// By scores of models that have not seen the items.
fn by_scores(
    args: &Args,
    known: &[Map<String, Value>],
    new: &[Map<String, Value>],
    good: &[bool],
) -> Result<Selected> {
    let (calibration, test) = (
        columns(&args.scores, known, &args.calibration)?,
        columns(&args.scores, new, &args.test)?,
    );
    let (procedure, found) = match (calibration.as_slice(), test.as_slice()) {
        ([calibration], [test]) => (
            "conformal selection",
            optcs::conformal_selection(calibration, good, test, args.fdr)?,
        ),
        _ => {
            let (q, how) = (args.fdr, pruning(args));
            (
                "OptCS-MSel",
                optcs::model_selection(&calibration, good, &test, q, how, args.seed)?,
            )
        }
    };
    Ok(Selected {
        procedure,
        models: args.scores.clone(),
        found,
    })
}

/// By models that are trained on the items themselves.
fn by_features(
    args: &Args,
    known: &[Map<String, Value>],
    new: &[Map<String, Value>],
    good: &[bool],
) -> Result<Selected> {
    for (flag, values) in [
        ("--penalties", args.penalties.as_slice()),
        ("--gamma", args.gamma.as_slice()),
    ] {
        if let Some(bad) = values.iter().find(|p| !(p.is_finite() && **p > 0.0)) {
            bail!("{flag}: {bad} must be above 0");
        }
    }
    if args.gamma.is_some() && args.learner != Trained::Kernel {
        bail!("--gamma is the width of a kernel: it needs `--learner kernel`");
    }
    let (calibration, test) = (
        transposed(&columns(&args.features, known, &args.calibration)?),
        transposed(&columns(&args.features, new, &args.test)?),
    );
    let learners: Vec<Box<dyn Learner>> = args
        .penalties
        .iter()
        .map(|&penalty| -> Box<dyn Learner> {
            match args.learner {
                Trained::Ridge => Box::new(Ridge {
                    penalty,
                    ..Ridge::default()
                }),
                Trained::Kernel => Box::new(Kernel {
                    penalty,
                    gamma: args.gamma,
                    ..Kernel::default()
                }),
            }
        })
        .collect();
    let (q, how, seed) = (args.fdr, pruning(args), args.seed);
    let (procedure, found) = match learners.as_slice() {
        [only] if args.per_item => (
            "OptCS-Full for each item, with e-values",
            optcs::full_per_item(&calibration, good, &test, only, q, how, seed)?,
        ),
        _ if args.per_item => bail!("--per-item trains one model: give one of --penalties"),
        [only] => (
            "OptCS-Full",
            optcs::full(&calibration, good, &test, only, q)?,
        ),
        all => (
            "OptCS-Full-MSel",
            optcs::full_model_selection(&calibration, good, &test, all, q, how, seed)?,
        ),
    };
    Ok(Selected {
        procedure,
        models: args
            .penalties
            .iter()
            .map(|p| format!("penalty {p}"))
            .collect(),
        found,
    })
}

/// Fills in what was selected.
fn describe(args: &Args, selected: &Selected, good: &[bool], items: usize, kept: &mut Measurement) {
    let found = &selected.found;
    for (name, value) in [
        ("fdr", json!(args.fdr)),
        ("label", json!(args.label)),
        ("above", json!(args.above)),
        ("seed", json!(args.seed)),
    ] {
        kept.settings.insert(name.to_owned(), value);
    }
    let right = good.iter().filter(|g| **g).count();
    kept.values = [
        ("selected", found.selected.len() as f64),
        ("candidates", found.candidates.len() as f64),
        ("test_items", items as f64),
        ("calibration_items", good.len() as f64),
        (
            "good_share_of_calibration",
            right as f64 / good.len().max(1) as f64,
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let columns = if args.features.is_empty() {
        &args.scores
    } else {
        &args.features
    };
    kept.precision = "f64".into();
    kept.details = json!({
        "procedure": selected.procedure, "columns": columns, "fdr": args.fdr,
        "selected": found.selected.iter().map(|j| j + 1).collect::<Vec<_>>(),
        "p_values": found.p_values,
    });
}

fn print(
    args: &Args,
    procedure: &str,
    models: &[String],
    names: &[String],
    good: &[bool],
    found: &Selection,
    kept: &Measurement,
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
            "measurement": kept,
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
