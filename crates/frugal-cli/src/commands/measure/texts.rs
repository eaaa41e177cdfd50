//! What measures of models on texts share: which models, which texts, how much of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Error, Result, bail};
use frugal::adapt::{ActiveAdapters, AdapterSet};
use frugal::measure::language_model::{HarnessModel, Stretch};
use frugal::model::load::ModelFiles;
use frugal_eval::report::DatasetInfo;
use serde_json::{Map, Value};

use crate::args::{Machine, Output};
use crate::measured::{Kept, dataset};
use crate::ui::progress::Phase;

/// Which models and texts.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Models, with commas between: names, folders, GGUF files
    #[arg(
        long,
        short,
        value_name = "MODELS",
        value_delimiter = ',',
        default_value = "builtin",
        help_heading = "Model"
    )]
    pub models: Vec<String>,
    /// Text files, with commas between; lines of JSONL files are samples of their own, read from
    /// the field `text`
    #[arg(
        long,
        short,
        value_name = "FILES",
        value_delimiter = ',',
        required = true,
        help_heading = "Data"
    )]
    pub texts: Vec<PathBuf>,
    /// Stretches or samples of each text that are used; 0 for all
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Data")]
    pub samples: usize,
    #[command(flatten)]
    pub kept: Kept,
    #[command(flatten)]
    pub machine: Machine,
    #[command(flatten)]
    pub output: Output,
}

/// A text, or samples of their own.
enum Text {
    Whole(String),
    Samples(Vec<String>),
}

/// A text as one model reads it.
pub struct Read<'a> {
    pub files: &'a ModelFiles,
    pub model: &'a HarnessModel<'a>,
    pub stretches: &'a [Stretch],
    /// Name of the text.
    pub text: &'a str,
    /// Tokens of context that operations are counted for: the length that was asked for, or of one
    /// text that is shorter, its own.
    pub length: usize,
    pub data: DatasetInfo,
}

/// Calls `measure` with every model on every text. Lines of JSONL files are samples of their own;
/// other texts are cut into stretches.
pub fn each(
    flags: &Flags,
    length: usize,
    measure: &mut dyn FnMut(Read<'_>) -> Result<()>,
) -> Result<()> {
    let texts = flags
        .texts
        .iter()
        .map(|path| Ok((path, read(path)?)))
        .collect::<Result<Vec<_>>>()?;
    check(flags, length)?;
    let device = flags.machine.device()?;
    let adapters = Arc::new(AdapterSet::default());
    for name in &flags.models {
        let files = ModelFiles::open(name, &flags.machine.lookup())?;
        let _phase = Phase::new(flags.output, format!("measuring {name}"));
        let backbone = files.load(&device)?;
        let model = HarnessModel {
            backbone,
            adapters: adapters.clone(),
            choice: ActiveAdapters::Base,
            tokenizer: files.tokenizer()?,
            batch_tokens: 2048,
            fingerprint: name.clone(),
        };
        for (path, (text, bytes)) in &texts {
            let shown = path.display().to_string();
            let stretches = stretches(&model, text, length, flags.samples)?;
            let fits = stretches.first().filter(|s| s.ids.len() > 1);
            fits.with_context(|| format!("{shown}: fewer than two tokens for {name}"))?;
            measure(Read {
                files: &files,
                model: &model,
                stretches: &stretches,
                text: &shown,
                length: match text {
                    Text::Samples(_) => length,
                    Text::Whole(_) => longest(&stretches).min(length),
                },
                data: dataset(path, bytes, stretches.len()),
            })?;
        }
    }
    Ok(())
}

/// Refuses what some model could not measure, before any of them has.
fn check(flags: &Flags, length: usize) -> Result<()> {
    if length < 2 {
        bail!("`--length {length}`: give at least 2, the first token only serves as context");
    }
    for name in &flags.models {
        let files = ModelFiles::open(name, &flags.machine.lookup())?;
        files.tokenizer()?;
        let positions = files.config().max_sequence();
        if length > positions {
            bail!(
                "`--length {length}`: {name} has {positions} positions, and says nothing beyond them; give at most that many"
            );
        }
    }
    Ok(())
}

/// Tokens of the longest stretch.
pub fn longest(stretches: &[Stretch]) -> usize {
    let lengths = stretches.iter().map(|stretch| stretch.ids.len());
    lengths.max().unwrap_or(0)
}

fn read(path: &Path) -> Result<(Text, Vec<u8>)> {
    let bytes = frugal_core::fs::read_data(path)?;
    let name = path.to_string_lossy();
    if name.ends_with(".jsonl") || name.ends_with(".jsonl.gz") {
        let text = |(i, item): (usize, Map<String, Value>)| match item.get("text") {
            Some(Value::String(text)) => Ok(text.clone()),
            _ => {
                let fields: Vec<&str> = item.keys().map(String::as_str).collect();
                bail!(
                    "{name}: record {} has no text in the field `text`; it has {}",
                    i + 1,
                    fields.join(", ")
                )
            }
        };
        let objects = frugal_core::data::objects(path, &bytes)?;
        let samples = objects
            .into_iter()
            .enumerate()
            .map(text)
            .collect::<Result<_>>()?;
        return Ok((Text::Samples(samples), bytes));
    }
    let text = String::from_utf8(bytes.clone()).map_err(|e| {
        anyhow::anyhow!(
            "{name}: not UTF-8 text after byte {}",
            e.utf8_error().valid_up_to()
        )
    })?;
    Ok((Text::Whole(text), bytes))
}

fn stretches(
    model: &HarnessModel<'_>,
    text: &Text,
    length: usize,
    most: usize,
) -> Result<Vec<Stretch>> {
    match text {
        Text::Whole(text) => model
            .stretches(text, length, most)
            .map_err(Error::from_boxed),
        Text::Samples(samples) => {
            let most = if most == 0 { samples.len() } else { most };
            let mut found = Vec::new();
            for sample in samples.iter().take(most) {
                found.extend(model.sample(sample, length).map_err(Error::from_boxed)?);
            }
            Ok(found)
        }
    }
}
