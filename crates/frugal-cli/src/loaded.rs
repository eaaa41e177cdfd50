//! A model with its adapter, read and ready to use.

use std::sync::Arc;

use anyhow::Result;
use frugal::adapt::{AdapterSet, BuildContext, Choice, Entry, peft};
use frugal::model::load::ModelFiles;
use frugal::model::{Backbone, LoadOptions, Quantize};

use crate::args::{Machine, Model, Output};
use crate::ui::progress::Phase;

/// What `--model` and `--adapter` name.
pub struct Loaded {
    pub files: ModelFiles,
    pub backbone: Arc<dyn Backbone>,
    pub adapters: AdapterSet,
    pub choice: Choice,
}

/// Name of the one adapter in the set.
const ADAPTER: &str = "adapter";

impl Loaded {
    /// Finds and reads model and adapter.
    pub fn read(model: &Model, machine: &Machine, output: Output) -> Result<Self> {
        Self::read_checked(model, machine, output, LoadOptions::default(), |_| Ok(()))
    }

    /// The same for generation: the model must have a tokenizer, which is found out before the weights are read.
    pub fn read_for_text(model: &Model, machine: &Machine, quantize: Quantize, output: Output) -> Result<Self> {
        let options = LoadOptions { quantize, ..LoadOptions::for_generation() };
        Self::read_checked(model, machine, output, options, |files| Ok(files.tokenizer().map(|_| ())?))
    }

    /// The same for measuring: products are exact whatever the weights are held in.
    pub fn read_for_scoring(model: &Model, machine: &Machine, quantize: Quantize, output: Output) -> Result<Self> {
        let options = LoadOptions { quantize, ..LoadOptions::default() };
        Self::read_checked(model, machine, output, options, |files| Ok(files.tokenizer().map(|_| ())?))
    }

    fn read_checked(
        model: &Model,
        machine: &Machine,
        output: Output,
        options: LoadOptions,
        check: impl Fn(&ModelFiles) -> Result<()>,
    ) -> Result<Self> {
        let device = machine.device()?;
        let (name, adapter) = model.resolve()?;
        let files = ModelFiles::open(&name, &machine.lookup())?;
        check(&files)?;
        let _phase = Phase::new(output, format!("reading {name}"));
        let options = match &adapter {
            Some(folder) => peft::made_for(folder, files.name(), peft::load_options(Some(folder.as_path()), &files.sites(), options))?,
            None => options,
        };
        let backbone = files.load_with(&device, options)?;
        let mut adapters = AdapterSet::default();
        let mut choice = Choice::Base;
        if let Some(folder) = adapter {
            let context = BuildContext {
                config: files.config(),
                sites: &files.sites(),
                backbone: Some(backbone.as_ref()),
                device,
                seed: 0,
                tokenize: None,
            };
            let (entry, _) = peft::made_for(&folder, files.name(), peft::load(&folder, &context, false))?;
            adapters.insert(ADAPTER, entry);
            choice = Choice::One(ADAPTER.into());
        }
        Ok(Self { files, backbone, adapters, choice })
    }

    /// The adapter, if there is one.
    pub fn entry(&self) -> Option<&Entry> {
        self.adapters.get(ADAPTER).ok()
    }
}
