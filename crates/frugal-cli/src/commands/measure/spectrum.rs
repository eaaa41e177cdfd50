//! `frugal measure spectrum`: how much hidden states spread.

use anyhow::{Error, Result};
use frugal::model::Quantize;
use frugal_core::human;
use frugal_core::metrics::mean;
use frugal_core::table::{Column, Table};
use frugal_eval::measurement::{Cost, Kind, Measurement, Meter};
use frugal_eval::spectrum::{Spectrum, spectrum};
use serde_json::{Value, json};

use super::texts;
use crate::measured::{measurement, model_info, precision};
use crate::outcome::Outcome;
use crate::ui::{self, table};

const EXAMPLES: &str = "\
Examples:
  frugal measure spectrum --models smollm2-135m --texts book.txt
  frugal measure spectrum --models step1000,step2000 --texts book.txt --length 128 --exact --json

Values depend on the number of tokens and on the width of the model by construction: compare the \
same --length, and models of one width. The last layer after the final norm is measured.";

/// Matrix nuclear-norm and matrix entropy: how much hidden states spread
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    common: texts::Flags,
    /// Tokens of a stretch
    #[arg(
        long,
        value_name = "N",
        default_value_t = 256,
        help_heading = "Measure"
    )]
    length: usize,
    /// Also compute the exact nuclear norm and the matrix entropy, which need eigenvalues
    #[arg(long, help_heading = "Measure")]
    exact: bool,
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<Outcome> {
    let mut values: Vec<Value> = Vec::new();
    let headings = [
        "tokens",
        "width",
        "MNN/N",
        "nuclear norm/N",
        "matrix entropy",
        "MNN time",
        "entropy time",
    ]
    .map(Column::number);
    let mut shown = Table::new(
        [Column::text("model"), Column::text("text")]
            .into_iter()
            .chain(headings),
    );
    let mut measurements: Vec<Measurement> = Vec::new();
    args.common.kept.claim(Kind::Spectrum)?;
    texts::each(&args.common, args.length, &mut |read| {
        let width = read.files.config().hidden_size;
        let meter = Meter::start();
        let mut all: Vec<Spectrum> = Vec::new();
        for stretch in read.stretches {
            let states = read
                .model
                .hidden_states(&stretch.ids)
                .map_err(Error::from_boxed)?;
            all.extend(spectrum(&states, width, args.exact));
        }
        let length = texts::longest(read.stretches);
        let mean = Mean::of(&all);
        let measured = record(args, &read, &mean, width, meter.stop());
        values.push(json!({
            "model": read.files.name(), "text": read.text, "samples": all.len(), "tokens": length, "width": width,
            "matrix_nuclear_norm": mean.norm, "nuclear_norm": mean.nuclear, "matrix_entropy": mean.entropy,
            "seconds": mean.seconds, "entropy_seconds": mean.entropy_seconds, "measurement": measured,
        }));
        measurements.push(measured);
        let number = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.4}"));
        let time = |v: Option<f64>| {
            v.map_or("-".to_owned(), |v| {
                format!("{} ms", human::significant(1e3 * v, 3))
            })
        };
        shown.row([
            read.files.name().to_owned(),
            read.text.to_owned(),
            length.to_string(),
            width.to_string(),
            number(mean.norm),
            number(mean.nuclear),
            number(mean.entropy),
            time(mean.seconds),
            time(mean.entropy_seconds),
        ]);
        Ok(())
    })?;
    args.common
        .kept
        .write("Matrix nuclear-norm", &measurements, args.common.output)?;
    if args.common.output.json {
        ui::print_json(&values)?;
    } else {
        table::print(&shown);
    }
    Ok(Outcome::Done)
}

/// Means over the samples of a text.
struct Mean {
    norm: Option<f64>,
    nuclear: Option<f64>,
    entropy: Option<f64>,
    seconds: Option<f64>,
    entropy_seconds: Option<f64>,
}

impl Mean {
    fn of(all: &[Spectrum]) -> Self {
        let of = |value: &dyn Fn(&Spectrum) -> Option<f64>| {
            mean(&all.iter().filter_map(value).collect::<Vec<_>>())
        };
        Self {
            norm: of(&|s| Some(s.matrix_nuclear_norm)),
            nuclear: of(&|s| s.nuclear_norm),
            entropy: of(&|s| s.matrix_entropy),
            seconds: of(&|s| Some(s.seconds)),
            entropy_seconds: of(&|s| s.entropy_seconds),
        }
    }
}

fn record(
    args: &Args,
    read: &texts::Read<'_>,
    mean: &Mean,
    width: usize,
    cost: Cost,
) -> Measurement {
    let mut found = Measurement {
        model: model_info(read.files),
        precision: precision(read.files, Quantize::None),
        data: vec![read.data.clone()],
        ..measurement(Kind::Spectrum, args.common.machine.device_name(), cost)
    };
    // Values of other lengths and widths say nothing beside each other.
    found.settings.insert("length".into(), args.length.into());
    found.settings.insert("width".into(), width.into());
    found.values = [
        ("matrix_nuclear_norm", mean.norm),
        ("nuclear_norm", mean.nuclear),
        ("matrix_entropy", mean.entropy),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect();
    found
}
