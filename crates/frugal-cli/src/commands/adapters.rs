//! `frugal adapters`: making adapters from adapters.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Subcommand;
use frugal::adapt::combine::{
    CombinationType, CombineOptions, Combined, Rank, combine, combine_heads, to_lora,
};
use frugal::adapt::{Adapter, BuildContext, Head, LoadedAdapter, Operation, peft};
use frugal::model::Backbone;
use frugal::run::adapter_name;
use frugal_core::human;
use frugal_core::stage::Stage;
use serde_json::json;

use super::export::free_folder;
use crate::args::{Machine, Model, Output};
use crate::loaded;
use crate::outcome::Outcome;
use crate::ui;
use crate::ui::progress::Phase;

const COMBINE_EXAMPLES: &str = "\
Examples:
  frugal adapters combine runs/a=0.7 runs/b=0.3 --out both
  frugal adapters combine runs/a runs/b --type ties --density 0.5 --out both
  frugal adapters combine runs/lora runs/dora --type svd --r 16 --out both

Types are those of Hugging Face peft. linear, cat, ties, dare_linear, dare_ties and \
magnitude_prune work on the factors of LoRA adapters; svd and those that end in _svd on \
whole weight changes, which every method has that can be merged. Classification heads for \
the same labels are added with the same weights, with linear, cat and svd.";

const TO_LORA_EXAMPLES: &str = "\
Examples:
  frugal adapters to-lora runs/lokr --r 16 --out as-lora
  frugal adapters to-lora runs/oft --energy 0.95 --out as-lora

The change of each weight is truncated by singular value decomposition. Programs that know \
only LoRA, such as llama.cpp after `frugal export --to gguf-lora`, can use the result.";

/// Combine adapters, or turn one into a LoRA
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Combine(CombineArgs),
    ToLora(ToLoraArgs),
}

/// One LoRA from several adapters of one model
#[derive(Debug, clap::Args)]
#[command(after_help = COMBINE_EXAMPLES)]
pub struct CombineArgs {
    /// Adapter folders, each with its weight if that is not 1
    #[arg(required = true, value_name = "DIR[=WEIGHT]", value_parser = weighted)]
    adapters: Vec<(PathBuf, f32)>,
    /// linear, cat, svd, ties, ties_svd, dare_linear, dare_linear_svd, dare_ties, dare_ties_svd,
    /// magnitude_prune, magnitude_prune_svd
    #[arg(long = "type", value_name = "TYPE", default_value = "linear", value_parser = combination_type)]
    combination_type: CombinationType,
    /// Share of elements that ties, dare and magnitude_prune keep
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    density: f64,
    /// Decides what dare drops
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    shared: Shared,
}

/// A LoRA that changes the weights as the adapter does
#[derive(Debug, clap::Args)]
#[command(after_help = TO_LORA_EXAMPLES)]
pub struct ToLoraArgs {
    /// Adapter folder
    #[arg(value_name = "DIR")]
    adapter: PathBuf,
    #[command(flatten)]
    shared: Shared,
}

#[derive(Debug, clap::Args)]
struct Shared {
    /// Model [default: the one that the first adapter was made for]
    #[arg(long, short, value_name = "MODEL")]
    model: Option<String>,
    /// Rank where the change is truncated [default: its own, at most 16]
    #[arg(long = "r", value_name = "RANK", conflicts_with = "energy")]
    rank: Option<usize>,
    /// Instead of a rank: the share of each change's squared norm to keep
    #[arg(long, value_name = "SHARE")]
    energy: Option<f64>,
    /// Folder to write, new or empty
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

/// Largest rank of a truncated change where none is given.
const USUAL_RANK: usize = 16;

impl Shared {
    fn rank(&self) -> Rank {
        match (self.energy, self.rank) {
            (Some(share), _) => Rank::Energy(share),
            (None, Some(rank)) => Rank::Fixed(rank),
            (None, None) => Rank::AtMost(USUAL_RANK),
        }
    }
}

fn weighted(text: &str) -> Result<(PathBuf, f32), String> {
    let Some((folder, weight)) = text.rsplit_once('=') else {
        return Ok((text.into(), 1.0));
    };
    let weight: f32 = weight.parse().map_err(|_| {
        format!("`{weight}` is not a number: write DIR=WEIGHT, for example runs/a=0.5")
    })?;
    if weight.is_finite() {
        Ok((folder.into(), weight))
    } else {
        Err("the weight must be finite".into())
    }
}

fn combination_type(text: &str) -> Result<CombinationType, String> {
    serde_json::from_value(json!(text.replace('-', "_"))).map_err(|error| error.to_string())
}

/// Runs what was asked for.
pub fn run(args: &Args) -> Result<Outcome> {
    match &args.what {
        What::Combine(args) => make(
            &args.adapters,
            &args.shared,
            args.combination_type,
            |parts, backbone, context| {
                let options = CombineOptions {
                    combination_type: args.combination_type,
                    density: args.density,
                    rank: args.shared.rank(),
                    seed: args.seed,
                };
                Ok(combine(parts, &options, backbone, context)?)
            },
        ),
        What::ToLora(args) => make(
            &[(args.adapter.clone(), 1.0)],
            &args.shared,
            CombinationType::Svd,
            |parts, backbone, context| {
                Ok(to_lora(parts[0].0, args.shared.rank(), backbone, context)?)
            },
        ),
    }
}

fn make(
    folders: &[(PathBuf, f32)],
    shared: &Shared,
    combination_type: CombinationType,
    combine: impl FnOnce(&[(&dyn Adapter, f32)], &dyn Backbone, &BuildContext<'_>) -> Result<Combined>,
) -> Result<Outcome> {
    free_folder(&shared.out)?;
    let (name, _) = Model {
        model: shared.model.clone(),
        adapter: Some(folders[0].0.clone()),
    }
    .resolve()?;
    for (folder, _) in folders {
        peft::allow(folder, Operation::Combine)?;
    }
    let paths: Vec<PathBuf> = folders.iter().map(|(folder, _)| folder.clone()).collect();
    let opened = loaded::read_several(&name, &paths, &shared.machine, shared.output)?;
    let (files, context) = (&opened.files, opened.context());
    let entries = paths
        .iter()
        .map(|folder| Ok(opened.adapters.get(&adapter_name(folder))?))
        .collect::<Result<Vec<&LoadedAdapter>>>()?;
    let head = head(&entries, folders, combination_type)?;
    let phase = Phase::new(shared.output, "combining");
    let parts: Vec<(&dyn Adapter, f32)> = entries
        .iter()
        .zip(folders)
        .map(|(entry, (_, weight))| (entry.adapter.as_ref(), *weight))
        .collect();
    let combined = combine(&parts, opened.backbone.as_ref(), &context)?;
    drop(phase);
    let lost = combined.relative_error.powi(2);
    let parameters: usize = frugal::adapt::Adapter::num_trainable(&combined.adapter);
    let (least, most) = combined
        .ranks
        .values()
        .fold((usize::MAX, 0), |(low, high), &r| (low.min(r), high.max(r)));
    let stage = Stage::begin(&shared.out)?;
    peft::save(
        stage.path(),
        &LoadedAdapter {
            adapter: Box::new(combined.adapter),
            head,
        },
        files.info(),
        files.name(),
    )?;
    stage.finish(peft::CONFIG_FILE)?;
    if shared.output.json {
        ui::print_json(&json!({
            "out": shared.out, "parameters": parameters, "ranks": combined.ranks, "relative_error": combined.relative_error,
        }))?;
    } else {
        let rows = [
            ("places", combined.ranks.len().to_string()),
            (
                "ranks",
                if least == most {
                    most.to_string()
                } else {
                    format!("{least} to {most}")
                },
            ),
            ("parameters", human::count(parameters as u64)),
            (
                "lost by truncation",
                format!(
                    "{} % of the change's squared norm",
                    human::significant(100.0 * lost, 3)
                ),
            ),
            ("adapter", shared.out.display().to_string()),
        ];
        ui::print(&crate::ui::table::pairs(&rows));
    }
    Ok(Outcome::Done)
}

/// The head of the result; that of a single adapter stays as it is.
fn head(
    entries: &[&LoadedAdapter],
    folders: &[(PathBuf, f32)],
    combination_type: CombinationType,
) -> Result<Option<Head>> {
    if let [entry] = entries {
        return Ok(entry.head.clone());
    }
    let mut heads = Vec::new();
    let mut without = None;
    for (entry, (folder, weight)) in entries.iter().zip(folders) {
        match &entry.head {
            Some(head) => heads.push((head, *weight)),
            None => without = Some(folder),
        }
    }
    match without {
        Some(_) if heads.is_empty() => Ok(None),
        Some(folder) => bail!(
            "{}: has no classification head, and others have one: combine adapters of one task",
            folder.display()
        ),
        None => Ok(Some(combine_heads(&heads, combination_type)?)),
    }
}
