//! Using a classifier: texts in, probabilities of each label out, a few at a time.

use std::path::{Path, PathBuf};

use frugal_core::data::{Documents, Example, LoadOptions, TextRecord};
use frugal_core::encode::{self, EncodeOptions};

use super::{DataConfig, RunError};
use crate::adapt::{Adapter, BuildContext, Entry, Head, peft};
use crate::model::load::{Lookup, ModelFiles};
use crate::model::{Backbone, LoadOptions as WeightOptions, Quantize};
use crate::train::{Tokenized, probabilities};

/// A classifier, read and ready.
pub struct Predictor {
    files: ModelFiles,
    backbone: std::sync::Arc<dyn Backbone>,
    entry: Option<Entry>,
    own_head: Option<Head>,
    data: DataConfig,
}

/// What a classifier is made of.
#[derive(Clone, Debug)]
pub struct PredictRequest {
    /// Model.
    pub model: String,
    /// Adapter folder; without one the model must be a classifier itself.
    pub adapter: Option<PathBuf>,
    /// How texts are read; only `format`, `columns`, `header`, `documents`, `max_length` and
    /// `truncate` matter.
    pub data: DataConfig,
    /// Device.
    pub device: String,
    /// How weights are held.
    pub quantize: Quantize,
}

impl Predictor {
    /// Finds and reads model, adapter and head.
    ///
    /// # Errors
    /// Anything wrong with model or adapter, and what has no classification head.
    pub fn open(request: &PredictRequest, lookup: &Lookup) -> Result<Self, RunError> {
        let device = crate::device::device(&request.device)?;
        let files = ModelFiles::open(&request.model, lookup)?;
        files.tokenizer()?;
        let sites = files.sites();
        let mut options = WeightOptions {
            quantize: request.quantize,
            ..WeightOptions::default()
        };
        if let Some(folder) = &request.adapter {
            let adapted = peft::load_options(Some(folder), &sites, options);
            options = peft::made_for(folder, files.name(), adapted)?;
        }
        let backbone = files.load_with(&device, options)?;
        let context = BuildContext {
            config: files.config(),
            sites: &sites,
            backbone: Some(backbone.as_ref()),
            device: device.clone(),
            seed: 0,
            tokenize: None,
        };
        let load = |folder: &PathBuf| {
            peft::made_for(folder, files.name(), peft::load(folder, &context, false))
        };
        let entry = request.adapter.as_ref().map(load).transpose()?;
        let entry = entry.map(|(entry, _)| entry);
        let own_head = match &entry {
            Some(_) => None,
            None => files.head(&device)?,
        };
        let found = Self {
            files,
            backbone,
            entry,
            own_head,
            data: request.data.clone(),
        };
        if found.head().is_none() {
            let what = match &request.adapter {
                Some(folder) => format!("{}: the adapter", folder.display()),
                None => format!("`{}`: the model", request.model),
            };
            return Err(RunError::Invalid(format!(
                "{what} has no classification head: text is written with `frugal generate`"
            )));
        }
        Ok(found)
    }

    fn head(&self) -> Option<&Head> {
        let adapted = self.entry.as_ref().and_then(|entry| entry.head.as_ref());
        adapted.or(self.own_head.as_ref())
    }

    /// Names of the labels in the order of the probabilities.
    pub fn labels(&self) -> &[String] {
        self.head().map_or(&[], |head| &head.config().labels)
    }

    /// Hands every text of a file to `take`, one after another; labels need not be there.
    ///
    /// # Errors
    /// A file that cannot be read, and what `take` answers.
    pub fn read(
        &self,
        file: &Path,
        take: &mut dyn FnMut(TextRecord) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let options = LoadOptions {
            format: None,
            columns: self.data.columns.clone(),
            header: self.data.header,
            // Each line is a text of its own, as it comes.
            documents: self.data.documents.or(Some(Documents::Lines)),
        };
        let mut refused = None;
        let mut push = |record| match take(record) {
            Ok(()) => true,
            Err(error) => {
                refused = Some(error);
                false
            }
        };
        frugal_core::data::texts(file, &options, &mut push)?;
        refused.map_or(Ok(()), Err)
    }

    /// The ids of a text, or of two.
    ///
    /// # Errors
    /// A text that is too long, or that the tokenizer cannot spell.
    pub fn encode(&self, text: &str, text_pair: Option<&str>) -> Result<Tokenized, RunError> {
        let limit = self.files.config().max_sequence();
        let max_length = match self.data.max_length {
            0 => limit,
            length => length.min(limit),
        };
        let options = EncodeOptions {
            truncate: self.data.truncate,
            ..EncodeOptions::new(max_length)
        };
        let example = Example::Classification {
            text: text.to_owned(),
            text_pair: text_pair.map(str::to_owned),
            // Any label: it is not looked at.
            label: self.labels().first().cloned().unwrap_or_default(),
        };
        let tokenizer = self.files.tokenizer()?;
        Ok(encode::encode_text(
            &example,
            tokenizer,
            self.labels(),
            &options,
        )?)
    }

    /// For each text the probability of every label.
    ///
    /// # Errors
    /// Texts that do not fit the model, and numbers that are not finite.
    pub fn predict(&self, texts: &[Tokenized]) -> Result<Vec<Vec<f32>>, RunError> {
        let Some(head) = self.head() else {
            return Ok(Vec::new());
        };
        let adapter: Option<&dyn Adapter> = self.entry.as_ref().map(|e| e.adapter.as_ref());
        Ok(probabilities(self.backbone.as_ref(), adapter, head, texts)?)
    }
}
