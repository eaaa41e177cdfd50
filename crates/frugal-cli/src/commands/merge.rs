//! `frugal merge`: a model with its adapter built in.

use std::path::PathBuf;

use anyhow::Result;
use frugal::adapt::merge;
use frugal::model::save::StoredType;
use frugal::run::merge_to_folder_as;
use serde_json::json;

use super::export::{finish, free_folder, warn_about_head};
use crate::args::{Machine, Model, Output};
use crate::loaded;
use crate::outcome::Outcome;
use crate::ui::progress::Phase;

const EXAMPLES: &str = "\
Examples:
  frugal merge --adapter runs/chat --out merged
  frugal merge --model smollm2-135m --adapter runs/chat --out merged --type bf16
  frugal merge --adapter runs/pela --out small --factored

The result is a Hugging Face folder: config.json, model.safetensors, and every file that \
lies beside the weights of the model. It needs no adapter, costs nothing extra to run, and \
other programs load it. `frugal export` turns it into GGUF.";

/// Merge an adapter into its model and write a Hugging Face folder
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name, folder, GGUF file, or org/name on the hub [default: the model that the adapter was
    /// made for]
    #[arg(long, short, value_name = "MODEL", help_heading = "Model")]
    model: Option<String>,
    /// Adapter folder or run folder
    #[arg(long, short, value_name = "DIR", help_heading = "Model")]
    adapter: PathBuf,
    /// Folder to write, new or empty
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    /// Number format of the weights
    #[arg(long = "type", value_name = "TYPE", default_value = "f32", value_parser = ["f32", "f16", "bf16"], help_heading = "Output")]
    stored_type: String,
    /// Keep layers that are held as two thin matrices (`pela`) so: a smaller model, which Frugal
    /// alone reads
    #[arg(long, help_heading = "Output")]
    factored: bool,
    /// Check everything, write nothing
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

/// Merges and writes.
pub fn run(args: &Args) -> Result<Outcome> {
    free_folder(&args.out)?;
    let stored: StoredType = serde_json::from_value(json!(args.stored_type))?;
    let model = Model {
        model: args.model.clone(),
        adapter: Some(args.adapter.clone()),
    };
    let loaded = loaded::read(&model, &args.machine, args.output)?;
    let phase = Phase::new(args.output, "merging");
    let form = match args.factored {
        true => merge::Form::Factored,
        false => merge::Form::Whole,
    };
    let adapter = loaded.entry().map(|e| e.adapter.as_ref());
    if args.dry_run {
        merge::weights_as(form, loaded.backbone.as_ref(), adapter)?;
    } else {
        let complete = merge_to_folder_as(
            form,
            &loaded.files,
            loaded.backbone.as_ref(),
            loaded.entry(),
            &args.out,
            stored,
        )?;
        if !complete {
            warn_about_head(&loaded, args.output);
        }
    }
    drop(phase);
    finish(&args.out, args.dry_run, args.output)
}
