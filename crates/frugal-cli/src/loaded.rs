//! A model with its adapters, as flags name them.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use frugal::model::{LoadOptions, Quantize};
use frugal::run::{OpenOptions, Opened, Progress, PromptedMode, PromptedReranker, Reranker, open};

use crate::args::{Machine, Model, Output};
use crate::ui;
use crate::ui::progress::Phase;

/// Finds and reads model and adapter.
pub fn read(model: &Model, machine: &Machine, output: Output) -> Result<Opened> {
    let adapters = adapters_of(model);
    read_as(
        model,
        &adapters,
        machine,
        output,
        LoadOptions::default(),
        false,
    )
}

/// The same for generation: the model must have a tokenizer, which is found out before the weights
/// are read.
pub fn read_for_text(
    model: &Model,
    machine: &Machine,
    quantize: Quantize,
    output: Output,
) -> Result<Opened> {
    read_several_for_text(model, &adapters_of(model), machine, quantize, output)
}

/// The same for timing, where any model will do.
pub fn read_for_timing(
    model: &Model,
    machine: &Machine,
    quantize: Quantize,
    output: Output,
) -> Result<Opened> {
    let options = LoadOptions {
        quantize,
        ..LoadOptions::for_generation()
    };
    let adapters = adapters_of(model);
    read_as(model, &adapters, machine, output, options, false)
}

/// The same with these adapters in place of the one of `model`.
pub fn read_several_for_text(
    model: &Model,
    adapters: &[PathBuf],
    machine: &Machine,
    quantize: Quantize,
    output: Output,
) -> Result<Opened> {
    let options = LoadOptions {
        quantize,
        ..LoadOptions::for_generation()
    };
    let opened = read_as(model, adapters, machine, output, options, true)?;
    if let Some(text) = opened.files.generation_warning() {
        ui::warn(output, &text);
    }
    Ok(opened)
}

/// The same for measuring: products are exact whatever the weights are held in.
pub fn read_for_scoring(
    model: &Model,
    machine: &Machine,
    quantize: Quantize,
    output: Output,
) -> Result<Opened> {
    let options = LoadOptions {
        quantize,
        ..LoadOptions::default()
    };
    read_as(model, &adapters_of(model), machine, output, options, true)
}

/// The same with several adapters, as files have the weights or in single precision.
pub fn read_several(
    name: &str,
    adapters: &[PathBuf],
    machine: &Machine,
    output: Output,
) -> Result<Opened> {
    let lookup = machine.lookup();
    open_shown(
        name,
        adapters,
        &OpenOptions::new(&lookup, machine.device()?),
        output,
    )
}

fn read_as(
    model: &Model,
    folders: &[PathBuf],
    machine: &Machine,
    output: Output,
    load: LoadOptions,
    needs_tokenizer: bool,
) -> Result<Opened> {
    let (device, lookup) = (machine.device()?, machine.lookup());
    let name = model_name(model, folders)?;
    let options = OpenOptions {
        load,
        needs_tokenizer,
        ..OpenOptions::new(&lookup, device)
    };
    open_shown(&name, folders, &options, output)
}

/// A cross-encoder; what there is to say of it is shown.
pub fn reranker(model: &str, machine: &Machine, output: Output) -> Result<Reranker> {
    let (mut phase, mut warnings) = (None, Vec::new());
    let opened = Reranker::open(
        model,
        None,
        machine.device_name(),
        &machine.lookup(),
        &mut |progress| match progress {
            Progress::Begin { what } => phase = Some(Phase::new(output, what.clone())),
            Progress::Warning { text } => warnings.push(text.clone()),
            _ => {}
        },
    );
    drop(phase);
    warnings.iter().for_each(|text| ui::warn(output, text));
    Ok(opened?)
}

/// A language model that ranks; its products are exact.
pub fn prompted_reranker(
    model: &Model,
    mode: PromptedMode,
    machine: &Machine,
    output: Output,
) -> Result<PromptedReranker> {
    let opened = read_for_scoring(model, machine, Quantize::None, output)?;
    Ok(PromptedReranker::new(opened, mode)?)
}

/// Opens, and shows what there is to say of it.
fn open_shown(
    name: &str,
    folders: &[PathBuf],
    options: &OpenOptions<'_>,
    output: Output,
) -> Result<Opened> {
    let (mut phase, mut warnings) = (None, Vec::new());
    let opened = open(name, folders, options, &mut |progress| match progress {
        Progress::Begin { what } => phase = Some(Phase::new(output, what.clone())),
        Progress::Warning { text } => warnings.push(text.clone()),
        _ => {}
    });
    drop(phase);
    warnings.iter().for_each(|text| ui::warn(output, text));
    Ok(opened?)
}

fn adapters_of(model: &Model) -> Vec<PathBuf> {
    model.adapter.iter().cloned().collect()
}

/// The model that is named, or else the one that all adapters were made for; each folder must be an
/// adapter's.
fn model_name(model: &Model, folders: &[PathBuf]) -> Result<String> {
    let mut found: Option<(String, &Path)> = None;
    for folder in folders {
        let (name, _) = Model {
            model: model.model.clone(),
            adapter: Some(folder.clone()),
        }
        .resolve()?;
        match &found {
            Some((first, other)) if *first != name => {
                let (other, folder) = (other.display(), folder.display());
                bail!(
                    "{other} was made for `{first}` and {folder} for `{name}`: if they are the same model, name it with `--model`"
                );
            }
            _ => found = Some((name, folder)),
        }
    }
    match found {
        Some((name, _)) => Ok(name),
        None => Ok(Model {
            model: model.model.clone(),
            adapter: None,
        }
        .resolve()?
        .0),
    }
}
