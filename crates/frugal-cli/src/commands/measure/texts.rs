//! What measures of models on texts share: which models, which texts, how much of them.

use std::path::PathBuf;

use anyhow::{Context, Result};
use frugal::adapt::{AdapterSet, Choice};
use frugal::measure::language_model::{HarnessModel, Stretch};
use frugal::model::load::ModelFiles;

use crate::args::{Machine, Output};
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
    /// Text files, with commas between
    #[arg(
        long,
        short,
        value_name = "FILES",
        value_delimiter = ',',
        required = true,
        help_heading = "Data"
    )]
    pub texts: Vec<PathBuf>,
    /// Stretches of each text that are used; 0 for all
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Data")]
    pub samples: usize,
    #[command(flatten)]
    pub machine: Machine,
    #[command(flatten)]
    pub output: Output,
}

/// Calls `measure` with every model on every text: name of the model, name of the text, model,
/// stretches of the text.
pub fn each(
    flags: &Flags,
    length: usize,
    measure: &mut dyn FnMut(&ModelFiles, &str, &HarnessModel<'_>, &[Stretch]) -> Result<()>,
) -> Result<()> {
    let texts = flags
        .texts
        .iter()
        .map(|path| {
            let bytes = frugal_core::fs::read(path)?;
            let text = String::from_utf8(bytes).map_err(|e| {
                anyhow::anyhow!(
                    "{}: not UTF-8 text after byte {}",
                    path.display(),
                    e.utf8_error().valid_up_to()
                )
            })?;
            Ok((path.display().to_string(), text))
        })
        .collect::<Result<Vec<_>>>()?;
    let device = flags.machine.device()?;
    let adapters = AdapterSet::default();
    for name in &flags.models {
        let files = ModelFiles::open(name, &flags.machine.lookup())?;
        let _phase = Phase::new(flags.output, format!("measuring {name}"));
        let backbone = files.load(&device)?;
        let model = HarnessModel {
            backbone: backbone.as_ref(),
            adapters: &adapters,
            choice: Choice::Base,
            tokenizer: files.tokenizer()?,
            batch_tokens: 2048,
            fingerprint: name.clone(),
        };
        for (path, text) in &texts {
            let stretches = model
                .stretches(text, length, flags.samples)
                .map_err(anyhow::Error::from_boxed)?;
            let fits = stretches.first().filter(|s| s.ids.len() > 1);
            fits.with_context(|| format!("{path}: fewer than two tokens for {name}"))?;
            measure(&files, path, &model, &stretches)?;
        }
    }
    Ok(())
}
