//! `frugal grow`: a TokenFormer with more parameter tokens, or a dense model as a mixture of experts.

use std::path::PathBuf;

use anyhow::Result;
use frugal::model::grow::{Growth, NewKeys, Scale, TokenCounts};
use frugal::model::save::StoredType;
use frugal::model::upcycle::Upcycling;
use frugal::run::{GrowRequest, UpcycleRequest, grow, upcycle};
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
  frugal grow --model models/dense --experts 8 --out models/mixture
  frugal pretrain --from models/larger --data text.txt --out models/trained

With --tokens every layer gets more pairs of key and value tokens; width and depth stay. New keys are zeros and \
scales stay those of the old numbers, so that the outputs are the same but for rounding; training \
moves them from there. `--keys normal --scale renew` grows as the paper's own runs do, which then \
begin at another loss.

With --experts each feed-forward layer of a minicpm, llama or mistral model becomes a mixture of copies \
of itself (sparse upcycling), of the type minicpm or mixtral: the outputs are the same but for \
rounding, and training moves the copies apart.";

/// Give a trained model more parameters without changing what it computes
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name, folder, or org/name on the hub
    #[arg(long, short, value_name = "MODEL", help_heading = "Model")]
    model: String,
    /// A factor (2x), the number of queries, keys and values with the others in proportion (96), or
    /// of these, of attention's output and of the feed-forward layer (96,96,384)
    #[arg(
        long,
        value_name = "N",
        required_unless_present = "experts",
        help_heading = "Growth"
    )]
    tokens: Option<TokenCounts>,
    /// Copies of each feed-forward layer of a dense model
    #[arg(long, value_name = "N", conflicts_with_all = ["tokens", "keys", "scale"], help_heading = "Growth")]
    experts: Option<usize>,
    /// Copies that a token goes through
    #[arg(
        long,
        value_name = "K",
        default_value_t = 2,
        requires = "experts",
        help_heading = "Growth"
    )]
    experts_per_token: usize,
    /// Standard deviation of the new routers
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.1,
        requires = "experts",
        help_heading = "Growth"
    )]
    router_std: f64,
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
    let Some(tokens) = args.tokens else {
        return to_experts(args, dtype.map(serde_json::from_value).transpose()?);
    };
    let request = GrowRequest {
        model: args.model.clone(),
        out: args.out.clone(),
        growth: Growth {
            tokens,
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

/// Copies the feed-forward layers and writes.
fn to_experts(args: &Args, dtype: Option<StoredType>) -> Result<Outcome> {
    let request = UpcycleRequest {
        model: args.model.clone(),
        out: args.out.clone(),
        upcycling: Upcycling {
            experts: args.experts.unwrap_or_default(),
            experts_per_token: args.experts_per_token,
            router_std: args.router_std,
            seed: args.seed,
            ..Upcycling::default()
        },
        dtype,
        dry_run: args.dry_run,
    };
    let phase = Phase::new(args.output, "copying feed-forward layers");
    let upcycled = upcycle(&request, &args.machine.lookup(), &args.machine.device()?)?;
    drop(phase);
    if args.output.json {
        ui::print_json(&upcycled)?;
        return Ok(Outcome::Done);
    }
    let out = upcycled.out.display();
    ui::print(&table::pairs(&[
        (
            "experts",
            format!(
                "{}, of which a token goes through {}",
                upcycled.experts, upcycled.experts_per_token
            ),
        ),
        (
            "parameters",
            format!(
                "{} to {}",
                human::count(upcycled.parameters_before as u64),
                human::count(upcycled.parameters as u64)
            ),
        ),
        ("outputs", "as before".to_owned()),
        (
            "model",
            match args.dry_run {
                true => format!("would be {out}, {}", upcycled.model_type),
                false => format!("{out}, {}", upcycled.model_type),
            },
        ),
    ]));
    Ok(Outcome::Done)
}
