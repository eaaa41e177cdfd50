//! `frugal measure capacity`: bits saved for the compute of a token, and what the tokenizer does
//! for it.

use anyhow::{Context, Error, Result, bail};
use frugal::measure::runtime::shape;
use frugal::model::Quantize;
use frugal::model::load::ModelFiles;
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::capacity::{Shape, TextCost, fit_bias};
use frugal_eval::measurement::{Kind, Measurement, Meter};
use serde_json::{Value, json};

use super::texts;
use crate::measured::{measurement, model_info, precision};
use crate::outcome::Outcome;
use crate::ui::{self, table};

const EXAMPLES: &str = "\
Examples:
  frugal measure capacity --models smollm2-135m,builtin --texts news.txt,code.txt
  frugal measure capacity --models small,medium,large --texts book.txt --fit-bias --json

Text bits: bits of the text for each token; the more, the better the tokenizer spells it. Model bits: what \
the model needs to encode a token. Capacity: (text bits - model bits + bias) / log2(operations for each \
token). The bias belongs to the collection of texts: compare values with the same bias only.";

/// Information capacity: how much models compress texts for the compute of a token
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    common: texts::Flags,
    /// Tokens of a stretch, the first of which only serves as context
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1024,
        help_heading = "Measure"
    )]
    length: usize,
    /// Bias of the collection of texts
    #[arg(long, value_name = "B", default_value_t = -24.0, allow_negative_numbers = true, help_heading = "Measure")]
    bias: f64,
    /// Find the bias under which all models have the same capacity; for models of one family
    #[arg(long, conflicts_with = "bias", help_heading = "Measure")]
    fit_bias: bool,
}

struct Row {
    model: String,
    text: String,
    samples: usize,
    length: usize,
    cost: TextCost,
    flops: f64,
    reference_flops: f64,
    measurement: Measurement,
}

/// The operations of a model, which are not known for every kind; checked before anything is
/// measured.
fn operations(files: &ModelFiles) -> Result<Shape> {
    shape(files.config()).with_context(|| {
        format!(
            "{}: the operations of `{}` models are not counted: their blocks (sparse attention, a recurrence, learnt tokens) are not projections and attention to all earlier tokens, which the count is for",
            files.name(),
            files.config().model_type()
        )
    })
}

fn measure(args: &Args, read: texts::Read<'_>) -> Result<Row> {
    let shape = operations(read.files)?;
    let meter = Meter::start();
    let cost = read
        .model
        .text_cost(read.stretches)
        .map_err(Error::from_boxed)?;
    let flops = shape.flops_per_token(read.length as u64);
    let device = args.common.machine.device_name();
    let mut measurement = Measurement {
        model: model_info(read.files),
        precision: precision(read.files, Quantize::None),
        data: vec![read.data],
        ..measurement(Kind::Capacity, device, meter.stop())
    };
    measurement
        .settings
        .insert("length".into(), read.length.into());
    Ok(Row {
        model: read.files.name().into(),
        text: read.text.into(),
        samples: read.stretches.len(),
        length: texts::longest(read.stretches),
        cost,
        flops,
        reference_flops: shape.reference_flops_per_token(read.length as u64),
        measurement,
    })
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<Outcome> {
    args.common.kept.claim(Kind::Capacity)?;
    if !args.bias.is_finite() {
        bail!("`--bias {}`: give a finite number", args.bias);
    }
    for name in &args.common.models {
        let files = ModelFiles::open(name, &args.common.machine.lookup())?;
        if files.info().is_encoder {
            bail!("{name}: the model has no language-model head, so it predicts no text");
        }
        operations(&files)?;
    }
    let mut rows = Vec::new();
    texts::each(&args.common, args.length, &mut |read| {
        rows.push(measure(args, read)?);
        Ok(())
    })?;
    let bias = |text: &str| -> Result<f64> {
        if !args.fit_bias {
            return Ok(args.bias);
        }
        let models: Vec<(f64, f64)> = rows
            .iter()
            .filter(|r| r.text == text)
            .map(|r| (r.cost.gain(), r.flops))
            .collect();
        let fitted = fit_bias(&models).filter(|(bias, _)| bias.is_finite());
        fitted
            .map(|f| f.0)
            .ok_or_else(|| Error::msg("--fit-bias needs at least two models of different size"))
    };
    let mut values: Vec<Value> = Vec::new();
    let headings = [
        "tokens",
        "bytes/token",
        "text bits",
        "model bits",
        "bits/byte",
        "log2 flops",
        "capacity",
    ]
    .map(Column::number);
    let mut shown = Table::new(
        [Column::text("model"), Column::text("text")]
            .into_iter()
            .chain(headings),
    );
    let biases: Vec<f64> = rows
        .iter()
        .map(|row| bias(&row.text))
        .collect::<Result<_>>()?;
    for (row, bias) in rows.iter_mut().zip(biases) {
        let (cost, capacity) = (&row.cost, row.cost.information_capacity(row.flops, bias));
        row.measurement.settings.insert("bias".into(), json!(bias));
        row.measurement.values = [
            ("information_capacity", capacity),
            ("bits_per_byte", cost.bits_per_byte()),
            ("bits_per_token", cost.bits()),
            ("text_size", cost.text_size()),
            ("flops_per_token", row.flops),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        values.push(json!({
            "model": row.model, "text": row.text, "samples": row.samples, "length": row.length, "tokens": cost.tokens, "bytes": cost.bytes,
            "bytes_per_token": cost.text_size() / 8.0, "text_size": cost.text_size(), "bits_per_token": cost.bits(),
            "bits_per_byte": cost.bits_per_byte(), "gain": cost.gain(), "flops_per_token": row.flops,
            "reference_flops_per_token": row.reference_flops, "bias": bias, "information_capacity": capacity, "measurement": row.measurement,
        }));
        shown.row([
            row.model.clone(),
            row.text.clone(),
            human::count(cost.tokens),
            format!("{:.3}", cost.text_size() / 8.0),
            format!("{:.3}", cost.text_size()),
            format!("{:.3}", cost.bits()),
            format!("{:.4}", cost.bits_per_byte()),
            format!("{:.3}", row.flops.log2()),
            format!("{capacity:.4}"),
        ]);
    }
    let longest = rows.iter().map(|row| row.length).max().unwrap_or(0);
    let measurements: Vec<Measurement> = rows.into_iter().map(|row| row.measurement).collect();
    args.common
        .kept
        .write("Information capacity", &measurements, args.common.output)?;
    if args.common.output.json {
        ui::print_json(&values)?;
    } else {
        table::print(&shown);
        let biases = if args.fit_bias {
            "fitted to each text".to_owned()
        } else {
            args.bias.to_string()
        };
        ui::note(
            args.common.output,
            &format!("bias {biases}; stretches of {longest} tokens"),
        );
    }
    Ok(Outcome::Done)
}
