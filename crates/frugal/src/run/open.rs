//! A model with its adapters, read and ready to use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::Device;
use frugal_adapt::peft;
use frugal_adapt::peft_keys::unknown_keys;
use frugal_models::LoadOptions;
use frugal_models::load::{Lookup, ModelFiles};
use frugal_nn::{ActiveAdapters, AdapterSet, Backbone, BuildContext, LoadedAdapter};

use super::{Observe, Progress, RunError};

/// How [`open`] reads.
pub struct OpenOptions<'a> {
    /// Where models are found by name.
    pub lookup: &'a Lookup,
    /// Where the weights go.
    pub device: Device,
    /// How weights are held, unless an adapter goes with weights that are rounded in its own way.
    pub load: LoadOptions,
    /// Chat template in place of the adapter's or the model's.
    pub chat_template: Option<&'a str>,
    /// Whether there must be a tokenizer, which is found out before the weights are read.
    pub needs_tokenizer: bool,
}

impl<'a> OpenOptions<'a> {
    /// Weights in single precision, with or without a tokenizer.
    pub fn new(lookup: &'a Lookup, device: Device) -> Self {
        Self {
            lookup,
            device,
            load: LoadOptions::default(),
            chat_template: None,
            needs_tokenizer: false,
        }
    }
}

/// A model with adapters. An adapter bears the name of its folder.
pub struct Opened {
    /// The model's files.
    pub files: ModelFiles,
    /// The model.
    pub backbone: Arc<dyn Backbone>,
    /// The adapters.
    pub adapters: Arc<AdapterSet>,
    /// Whether an adapter was trained on other weights than the model's as they are now.
    pub base_changed: bool,
}

/// Finds and reads a model and the adapters in these folders, of which the first says how
/// conversations are written.
///
/// # Errors
/// Anything wrong with model or adapters; adapters that go with weights rounded in different ways.
pub fn open(
    model: &str,
    adapters: &[PathBuf],
    options: &OpenOptions<'_>,
    observe: Observe<'_>,
) -> Result<Opened, RunError> {
    let mut files = ModelFiles::open(model, options.lookup)?;
    if let Some(folder) = adapters.first() {
        files.use_text_settings_of(folder)?;
    }
    if let Some(given) = options.chat_template {
        files.set_chat_template(&frugal_core::template::source_of(given)?)?;
    }
    if options.needs_tokenizer {
        files.tokenizer()?;
    }
    let used: Vec<&Path> = adapters.iter().map(PathBuf::as_path).collect();
    for text in files.warnings(&used) {
        observe(&Progress::Warning { text });
    }
    for folder in adapters {
        let unknown = unknown_keys(folder)?;
        if !unknown.is_empty() {
            let text = format!(
                "{}: not read, as neither the method nor peft 0.21 has such keys: `{}`",
                folder.join(peft::CONFIG_FILE).display(),
                unknown.join("`, `")
            );
            observe(&Progress::Warning { text });
        }
    }
    observe(&Progress::Begin {
        what: format!("reading {model}"),
    });
    let mut base_changed = false;
    for folder in adapters {
        base_changed |= super::base::warn(folder, &files, observe);
    }
    let load = load_options(&files, adapters, &options.load)?;
    let backbone = files.load_with(&options.device, load)?;
    let mut set = AdapterSet::default();
    for folder in adapters {
        let entry = read_adapter(folder, &files, backbone.as_ref(), observe)?;
        set.insert(adapter_name(folder), entry);
    }
    Ok(Opened {
        files,
        backbone,
        adapters: Arc::new(set),
        base_changed,
    })
}

/// What the adapter in a folder is called.
pub fn adapter_name(folder: &Path) -> String {
    folder.display().to_string()
}

/// How the weights are held, on which all adapters must agree.
fn load_options(
    files: &ModelFiles,
    adapters: &[PathBuf],
    wanted: &LoadOptions,
) -> Result<LoadOptions, RunError> {
    let sites = files.sites();
    let mut agreed = None;
    for folder in adapters {
        let own = peft::load_options(Some(folder), &sites, wanted.clone());
        let own = peft::made_for(folder, files.name(), own)?;
        if agreed.get_or_insert_with(|| own.clone()) != &own {
            return Err(RunError::Invalid(format!(
                "{}: the adapters go with weights that are rounded in different ways: use each by itself",
                folder.display()
            )));
        }
    }
    Ok(agreed.unwrap_or_else(|| wanted.clone()))
}

fn read_adapter(
    folder: &Path,
    files: &ModelFiles,
    backbone: &dyn Backbone,
    observe: Observe<'_>,
) -> Result<LoadedAdapter, RunError> {
    let context = context(backbone);
    let (entry, report) =
        peft::made_for(folder, files.name(), peft::load(folder, &context, false))?;
    if let Some(first) = report.rounded.first() {
        let text = format!(
            "{}: `{first}` and the like ({} in all) are copies of the model's own weights in lower precision; the \
             model's are used",
            folder.display(),
            report.rounded.len()
        );
        observe(&Progress::Warning { text });
    }
    Ok(entry)
}

fn context(backbone: &dyn Backbone) -> BuildContext<'_> {
    BuildContext {
        info: backbone.info(),
        sites: backbone.sites(),
        backbone: Some(backbone),
        device: backbone.device().clone(),
        seed: 0,
        tokenize: None,
    }
}

impl Opened {
    /// The first adapter, if there is one.
    pub fn entry(&self) -> Option<&LoadedAdapter> {
        self.adapters.get(self.adapters.names().first()?).ok()
    }

    /// The first adapter, or else the model as it is.
    pub fn choice(&self) -> ActiveAdapters {
        let names = self.adapters.names();
        names.first().map_or(ActiveAdapters::Base, |name| {
            ActiveAdapters::One((*name).to_owned())
        })
    }

    /// What making a further adapter of this model needs.
    pub fn context(&self) -> BuildContext<'_> {
        context(self.backbone.as_ref())
    }

    /// Refuses adapters that were trained to classify: they cannot write text.
    ///
    /// # Errors
    /// [`RunError::Invalid`] that names the adapter.
    pub fn refuse_classifiers(&self) -> Result<(), RunError> {
        for name in self.adapters.names() {
            if self.adapters.get(name)?.head.is_some() {
                return Err(RunError::Invalid(format!(
                    "{name}: the adapter is a classifier and writes no text: use `frugal predict --adapter {name}`"
                )));
            }
        }
        Ok(())
    }
}
