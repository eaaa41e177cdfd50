//! `frugal export`: models and adapters for other programs.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::ValueEnum;
use frugal::adapt::{Operation, merge};
use frugal::model::save::StoredType;
use frugal::run::{ExportFormat, Opened, export_adapter_gguf, export_gguf, merge_to_folder};
use frugal_core::human;
use frugal_core::stage::StageError;
use serde_json::json;

use crate::args::{Machine, Model, Output};
use crate::loaded;
use crate::outcome::Outcome;
use crate::ui;
use crate::ui::progress::Phase;

const EXAMPLES: &str = "\
Examples:
  frugal export --model merged --to gguf --type q4_k_m --out model-q4_k_m.gguf
  frugal export --model smollm2-135m --adapter runs/chat --to gguf --out chat-f16.gguf
  frugal export --adapter runs/chat --to gguf-lora --out chat-lora.gguf
  frugal export --model smollm2-135m --to hf --type bf16 --out smollm2

An adapter is merged first, except with gguf-lora, which holds the adapter alone for \
programs such as llama.cpp that apply it at run time.";

/// Write a model or an adapter in the format of another program
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: Model,
    /// gguf: model and tokenizer in one file; gguf-lora: the adapter alone; hf: a Hugging Face
    /// folder
    #[arg(long, value_name = "FORMAT", help_heading = "Output")]
    to: Target,
    /// Number format: f32, f16, q8_0, q6_k, q5_k_m, q4_k_m, q4_1, q4_0 for gguf; f32, f16, bf16 for
    /// hf [default: f16]
    #[arg(long = "type", value_name = "TYPE", help_heading = "Output")]
    number_type: Option<String>,
    /// File to write, or for hf a folder; must not exist
    #[arg(long, short, value_name = "PATH", help_heading = "Output")]
    out: PathBuf,
    /// Check everything, write nothing
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    Gguf,
    GgufLora,
    Hf,
}

/// What is written.
enum Job {
    Gguf(ExportFormat),
    GgufLora,
    Hf(StoredType),
}

/// Exports.
pub fn run(args: &Args) -> Result<Outcome> {
    let job = job(args)?;
    match job {
        Job::Hf(_) => free_folder(&args.out)?,
        _ if args.out.exists() => bail!(
            "{}: exists already; choose another `--out`",
            args.out.display()
        ),
        _ => {}
    }
    let loaded = loaded::read(&args.model, &args.machine, args.output)?;
    let phase = Phase::new(args.output, format!("writing {}", args.out.display()));
    let (files, backbone) = (&loaded.files, loaded.backbone.as_ref());
    let adapter = loaded.entry().map(|e| e.adapter.as_ref());
    if let (Job::GgufLora, Some(adapter)) = (&job, adapter) {
        adapter.allow(Operation::Export)?;
    }
    let mut complete = false;
    if args.dry_run {
        if !matches!(job, Job::GgufLora) {
            merge::weights(backbone, adapter)?;
        }
    } else {
        match (&job, adapter) {
            (Job::Gguf(format), _) => export_gguf(files, backbone, adapter, &args.out, *format)?,
            (Job::Hf(stored), _) => {
                complete = merge_to_folder(files, backbone, loaded.entry(), &args.out, *stored)?
            }
            (Job::GgufLora, Some(adapter)) => export_adapter_gguf(files, adapter, &args.out)?,
            (Job::GgufLora, None) => bail!("gguf-lora holds an adapter: give one with `--adapter`"),
        }
    }
    drop(phase);
    if matches!(job, Job::Gguf(_))
        && let Some(text) = files.ends_beyond_vocabulary()
    {
        ui::warn(args.output, &text);
    }
    if !complete {
        warn_about_head(&loaded, args.output);
    }
    finish(&args.out, args.dry_run, args.output)
}

/// Target and number format, which must go together.
fn job(args: &Args) -> Result<Job> {
    let given = args.number_type.as_deref();
    let wrong = |accepted: &str| {
        anyhow::anyhow!(
            "`--type {}`: --to {} takes {accepted}",
            given.unwrap_or_default(),
            name(args.to)
        )
    };
    Ok(match args.to {
        Target::Gguf => Job::Gguf(
            serde_json::from_value(json!(given.unwrap_or("f16")))
                .map_err(|_| wrong("f32, f16, q8_0, q6_k, q5_k_m, q4_k_m, q4_1 or q4_0"))?,
        ),
        Target::Hf => Job::Hf(
            serde_json::from_value(json!(given.unwrap_or("f16")))
                .map_err(|_| wrong("f32, f16 or bf16"))?,
        ),
        Target::GgufLora if given.is_some_and(|t| t != "f32") => return Err(wrong("f32 only")),
        Target::GgufLora if args.model.adapter.is_none() => {
            bail!("gguf-lora holds an adapter: give one with `--adapter`")
        }
        Target::GgufLora => Job::GgufLora,
    })
}

fn name(target: Target) -> String {
    target
        .to_possible_value()
        .map_or_else(String::new, |v| v.get_name().to_owned())
}

/// Refuses a folder that has something in it.
pub fn free_folder(path: &Path) -> Result<()> {
    if !frugal_core::stage::is_free(path) {
        return Err(StageError::Used {
            folder: path.into(),
        }
        .into());
    }
    Ok(())
}

/// Heads are no part of a language model's file.
pub fn warn_about_head(loaded: &Opened, output: Output) {
    if loaded.entry().is_some_and(|e| e.head.is_some()) {
        ui::warn(
            output,
            "the adapter's classification head has no place in this format and was left out",
        );
    }
}

/// Says what was written.
pub fn finish(out: &Path, dry_run: bool, output: Output) -> Result<Outcome> {
    let bytes = written(out);
    if output.json {
        ui::print_json(&json!({ "out": out, "bytes": bytes, "dry_run": dry_run }))?;
    } else if dry_run {
        ui::print(&format!("would write {}", out.display()));
    } else {
        ui::print(&format!(
            "written: {} ({})",
            out.display(),
            human::bytes(bytes)
        ));
    }
    Ok(Outcome::Done)
}

/// Size of the file, or of the files in the folder.
fn written(out: &Path) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
    match std::fs::read_dir(out) {
        Ok(entries) => entries.flatten().map(|e| size(&e.path())).sum(),
        Err(_) => size(out),
    }
}
