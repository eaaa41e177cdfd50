//! `frugal measure spectrum`: how much hidden states spread.

use anyhow::{Error, Result};
use frugal_core::human;
use frugal_core::metrics::mean;
use frugal_core::table::{Column, Table};
use frugal_eval::spectrum::{Spectrum, spectrum};
use serde_json::{Value, json};

use super::texts;
use crate::Outcome;
use crate::ui::{self, table};

const EXAMPLES: &str = "\
Examples:
  frugal measure spectrum --models smollm2-135m --texts book.txt
  frugal measure spectrum --models step1000,step2000 --texts book.txt --length 128 --exact --json

Values depend on the number of tokens and on the width of the model by construction: compare the
same --length, and models of one width. The last layer after the final norm is measured.";

/// Measure how much hidden states spread: matrix nuclear-norm and matrix entropy
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
    texts::each(
        &args.common,
        args.length,
        &mut |files, text, model, stretches| {
            let width = files.config().hidden_size;
            let mut all: Vec<Spectrum> = Vec::new();
            for stretch in stretches {
                let states = model
                    .hidden_states(&stretch.ids)
                    .map_err(Error::from_boxed)?;
                all.extend(spectrum(&states, width, args.exact));
            }
            let of = |value: &dyn Fn(&Spectrum) -> Option<f64>| {
                mean(&all.iter().filter_map(value).collect::<Vec<_>>())
            };
            let norm = of(&|s| Some(s.matrix_nuclear_norm));
            let (nuclear, entropy) = (of(&|s| s.nuclear_norm), of(&|s| s.matrix_entropy));
            let (seconds, entropy_seconds) = (of(&|s| Some(s.seconds)), of(&|s| s.entropy_seconds));
            let length = stretches[0].ids.len();
            values.push(json!({
            "model": files.name(), "text": text, "samples": all.len(), "tokens": length, "width": width,
            "matrix_nuclear_norm": norm, "nuclear_norm": nuclear, "matrix_entropy": entropy,
            "seconds": seconds, "entropy_seconds": entropy_seconds,
        }));
            let number = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.4}"));
            let time = |v: Option<f64>| {
                v.map_or("-".to_owned(), |v| {
                    format!("{} ms", human::significant(1e3 * v, 3))
                })
            };
            shown.row([
                files.name().to_owned(),
                text.to_owned(),
                length.to_string(),
                width.to_string(),
                number(norm),
                number(nuclear),
                number(entropy),
                time(seconds),
                time(entropy_seconds),
            ]);
            Ok(())
        },
    )?;
    if args.common.output.json {
        ui::print_json(&values)?;
    } else {
        table::print(&shown);
    }
    Ok(Outcome::Done)
}
