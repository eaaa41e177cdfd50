//! A model with its adapters, read and ready to use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use frugal::adapt::{ActiveAdapters, AdapterSet, BuildContext, LoadedAdapter, peft};
use frugal::model::load::ModelFiles;
use frugal::model::{Backbone, LoadOptions, Quantize};
use frugal::run::base_warning;

use crate::args::{Machine, Model, Output};
use crate::ui;
use crate::ui::progress::Phase;

/// What `--model` and `--adapter` name. An adapter bears the name of its folder.
pub struct Loaded {
    pub files: ModelFiles,
    pub backbone: Arc<dyn Backbone>,
    pub adapters: AdapterSet,
    pub choice: ActiveAdapters,
}

impl Loaded {
    /// Finds and reads model and adapter.
    pub fn read(model: &Model, machine: &Machine, output: Output) -> Result<Self> {
        Self::read_checked(
            model,
            &adapters_of(model),
            machine,
            output,
            LoadOptions::default(),
            |_| Ok(()),
        )
    }

    /// The same for generation: the model must have a tokenizer, which is found out before the
    /// weights are read.
    pub fn read_for_text(
        model: &Model,
        machine: &Machine,
        quantize: Quantize,
        output: Output,
    ) -> Result<Self> {
        Self::read_several_for_text(model, &adapters_of(model), machine, quantize, output)
    }

    /// The same for timing, where any model will do.
    pub fn read_for_timing(
        model: &Model,
        machine: &Machine,
        quantize: Quantize,
        output: Output,
    ) -> Result<Self> {
        let options = LoadOptions {
            quantize,
            ..LoadOptions::for_generation()
        };
        let adapters = adapters_of(model);
        Self::read_checked(model, &adapters, machine, output, options, |_| Ok(()))
    }

    /// The same with these adapters in place of the one of `model`.
    pub fn read_several_for_text(
        model: &Model,
        adapters: &[PathBuf],
        machine: &Machine,
        quantize: Quantize,
        output: Output,
    ) -> Result<Self> {
        let options = LoadOptions {
            quantize,
            ..LoadOptions::for_generation()
        };
        Self::read_checked(model, adapters, machine, output, options, |files| {
            Ok(files.tokenizer().map(|_| ())?)
        })
    }

    /// The same for measuring: products are exact whatever the weights are held in.
    pub fn read_for_scoring(
        model: &Model,
        machine: &Machine,
        quantize: Quantize,
        output: Output,
    ) -> Result<Self> {
        let options = LoadOptions {
            quantize,
            ..LoadOptions::default()
        };
        Self::read_checked(
            model,
            &adapters_of(model),
            machine,
            output,
            options,
            |files| Ok(files.tokenizer().map(|_| ())?),
        )
    }

    fn read_checked(
        model: &Model,
        folders: &[PathBuf],
        machine: &Machine,
        output: Output,
        options: LoadOptions,
        check: impl Fn(&ModelFiles) -> Result<()>,
    ) -> Result<Self> {
        let device = machine.device()?;
        let name = model_name(model, folders)?;
        let mut files = ModelFiles::open(&name, &machine.lookup())?;
        // Adapters that are used together were made for one way of writing a conversation.
        if let Some(folder) = folders.first() {
            files.use_text_settings_of(folder)?;
        }
        check(&files)?;
        let used: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
        for text in files.warnings(&used) {
            ui::warn(output, &text);
        }
        let phase = Phase::new(output, format!("reading {name}"));
        let warnings: Vec<String> = folders
            .iter()
            .filter_map(|folder| base_warning(folder, &files))
            .collect();
        let sites = files.sites();
        let mut held = None;
        for folder in folders {
            let options = peft::made_for(
                folder,
                files.name(),
                peft::load_options(Some(folder), &sites, options.clone()),
            )?;
            if held.get_or_insert_with(|| options.clone()) != &options {
                bail!(
                    "{}: the adapters go with weights that are rounded in different ways: use each by itself",
                    folder.display()
                );
            }
        }
        let backbone = files.load_with(&device, held.unwrap_or(options))?;
        let context = BuildContext {
            info: files.info(),
            sites: &sites,
            backbone: Some(backbone.as_ref()),
            device,
            seed: 0,
            tokenize: None,
        };
        let mut adapters = AdapterSet::default();
        for folder in folders {
            let (entry, report) =
                peft::made_for(folder, files.name(), peft::load(folder, &context, false))?;
            if let Some(first) = report.rounded.first() {
                let text = format!(
                    "{}: `{first}` and the like ({} in all) are copies of the model's own weights in lower precision; the \
                     model's are used",
                    folder.display(),
                    report.rounded.len()
                );
                ui::warn(output, &text);
            }
            adapters.insert(adapter_name(folder), entry);
        }
        drop(phase);
        warnings.iter().for_each(|text| ui::warn(output, text));
        let choice = folders.first().map_or(ActiveAdapters::Base, |folder| {
            ActiveAdapters::One(adapter_name(folder))
        });
        Ok(Self {
            files,
            backbone,
            adapters,
            choice,
        })
    }

    /// Refuses adapters that were trained to classify: they cannot write text.
    pub fn refuse_classifiers(&self) -> Result<()> {
        for name in self.adapters.names() {
            if self.adapters.get(name)?.head.is_some() {
                bail!(
                    "{name}: the adapter is a classifier and writes no text: use `frugal predict --adapter {name}`"
                );
            }
        }
        Ok(())
    }

    /// The adapter, if there is one.
    pub fn entry(&self) -> Option<&LoadedAdapter> {
        self.adapters.get(self.adapters.names().first()?).ok()
    }
}

/// What the adapter in a folder is called.
pub fn adapter_name(folder: &Path) -> String {
    folder.display().to_string()
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
