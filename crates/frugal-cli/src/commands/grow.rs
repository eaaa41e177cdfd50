//! `frugal grow`: a TokenFormer with more parameter tokens.

use std::path::PathBuf;

use anyhow::Result;
use frugal::model::grow::{Growth, NewKeys, Scale, TokenCounts};
use frugal::run::{GrowRequest, grow};
use frugal_core::human;

use super::export::free_folder;
use crate::args::{Machine, Output};
use crate::outcome::Outcome;
use crate::ui::progress::Phase;
use crate::ui::{self, table};

const EXAMPLES: &str = "\
Examples:
  frugal grow --model models/mine --tokens 2x --out models/larger
  frugal grow --model models/mine --tokens 384,384,1536 --out models/larger
  frugal pretrain --from models/larger --data text.txt --out models/trained

Every layer gets more pairs of key and value tokens; width and depth stay. New keys are zeros and \
scales stay those of the old numbers, so that the outputs are the same but for rounding; training \
moves them from there. `--keys normal --scale renew` grows as the paper's own runs do, which then \
begin at another loss.";

/// Give a TokenFormer more parameter tokens without changing what it computes
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name, folder, or org/name on the hub
    #[arg(long, short, value_name = "MODEL", help_heading = "Model")]
    model: String,
    /// A factor (2x), the number of queries, keys and values with the others in proportion (96), or
    /// of these, of attention's output and of the feed-forward layer (96,96,384)
    #[arg(long, value_name = "N", help_heading = "Growth")]
    tokens: TokenCounts,
    /// What new keys are: zero keeps the outputs, normal draws them as in a new model
    #[arg(long, value_name = "KIND", default_value = "zero", value_parser = ["zero", "normal"], help_heading = "Growth")]
    keys: String,
    /// What scales are made for: keep leaves the outputs, renew takes the new numbers
    #[arg(long, value_name = "KIND", default_value = "keep", value_parser = ["keep", "renew"], help_heading = "Growth")]
    scale: String,
    /// Decides what is drawn
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Growth")]
    seed: u64,
    /// Folder to write, new or empty
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    /// Number format of the weights: f32, f16 or bf16 [default: the model's]
    #[arg(long = "type", value_name = "TYPE", value_parser = ["f32", "f16", "bf16"], help_heading = "Output")]
    stored_type: Option<String>,
    /// Check everything, write nothing
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

/// Grows and writes.
pub fn run(args: &Args) -> Result<Outcome> {
    free_folder(&args.out)?;
    let dtype = args.stored_type.clone().map(serde_json::Value::from);
    let request = GrowRequest {
        model: args.model.clone(),
        out: args.out.clone(),
        growth: Growth {
            tokens: args.tokens,
            keys: match args.keys.as_str() {
                "normal" => NewKeys::Normal,
                _ => NewKeys::Zero,
            },
            scale: match args.scale.as_str() {
                "renew" => Scale::Renew,
                _ => Scale::Keep,
            },
            seed: args.seed,
        },
        dtype: dtype.map(serde_json::from_value).transpose()?,
        dry_run: args.dry_run,
    };
    let phase = Phase::new(args.output, "growing");
    let grown = grow(&request, &args.machine.lookup(), &args.machine.device()?)?;
    drop(phase);
    if args.output.json {
        ui::print_json(&grown)?;
        return Ok(Outcome::Done);
    }
    let counts = |[qkv, proj, ffn]: [usize; 3]| format!("{qkv}, {proj}, {ffn}");
    let parameters = |n: usize| human::count(n as u64);
    let outputs = match grown.keeps_outputs {
        true => "as before",
        false => "changed",
    };
    let out = match args.dry_run {
        true => format!("would be {}", grown.out.display()),
        false => grown.out.display().to_string(),
    };
    ui::print(&table::pairs(&[
        (
            "tokens of qkv, proj, ffn",
            format!(
                "{} to {}",
                counts(grown.tokens_before),
                counts(grown.tokens)
            ),
        ),
        (
            "parameters",
            format!(
                "{} to {}",
                parameters(grown.parameters_before),
                parameters(grown.parameters)
            ),
        ),
        ("outputs", outputs.to_owned()),
        ("model", out),
    ]));
    Ok(Outcome::Done)
}
