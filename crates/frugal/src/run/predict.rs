//! Using a classifier: texts in, probabilities of each label out, a few at a time.

use std::path::{Path, PathBuf};

use frugal_core::data::{Documents, Example, LoadOptions, TextRecord};
use frugal_core::encode::{self, EncodeError, EncodeOptions};
use frugal_models::load::{Lookup, ModelFiles};
use frugal_models::{LoadOptions as WeightOptions, Quantize};
use frugal_nn::{Adapter, Head, HeadConfig, ProblemType};
use frugal_train::{Tokenized, head_logits};

use serde_json::Value;

use super::open::{OpenOptions, Opened, open};
use super::predictions::Tags;
use super::{DataConfig, Observe, RunError, images};

/// A classifier, read and ready.
pub struct Predictor {
    opened: Opened,
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
    pub fn open(
        request: &PredictRequest,
        lookup: &Lookup,
        observe: Observe<'_>,
    ) -> Result<Self, RunError> {
        let device = crate::device::device(&request.device)?;
        let options = OpenOptions {
            load: WeightOptions {
                quantize: request.quantize,
                ..WeightOptions::default()
            },
            ..OpenOptions::new(lookup, device.clone())
        };
        let opened = open(
            &request.model,
            request.adapter.as_slice(),
            &options,
            observe,
        )?;
        // An adapter without a head of its own leaves that of the model in place.
        let own_head = match opened.entry() {
            Some(entry) if entry.head.is_some() => None,
            _ => opened.files.head(&device)?,
        };
        let found = Self {
            opened,
            own_head,
            data: request.data.clone(),
        };
        if found.head().is_none() {
            let what = match &request.adapter {
                Some(folder) => format!("{}: the adapter", folder.display()),
                None => format!("`{}`: the model", request.model),
            };
            return Err(RunError::Invalid(format!(
                "{what} has no classification head: {}",
                without_head(&found.opened.files)
            )));
        }
        if !found.reads_images() {
            found.opened.files.tokenizer()?;
        }
        Ok(found)
    }

    /// Whether it reads images: then what stands for a text is the path of an image.
    pub fn reads_images(&self) -> bool {
        self.opened.files.info().image.is_some()
    }

    /// The files of the model.
    pub(super) fn files(&self) -> &ModelFiles {
        &self.opened.files
    }

    fn head(&self) -> Option<&Head> {
        let adapted = self.opened.entry().and_then(|entry| entry.head.as_ref());
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
        if self.reads_images() {
            for (i, image) in images::listed(file)?.into_iter().enumerate() {
                take(TextRecord {
                    line: i + 1,
                    text: image.content.place(),
                    text_pair: None,
                    tokens: Vec::new(),
                    label: image.label.map(Value::from),
                })?;
            }
            return Ok(());
        }
        let options = LoadOptions {
            format: None,
            columns: self.data.columns.clone(),
            header: self.data.header,
            // Each line is a text of its own, as it comes.
            documents: self.data.documents.or(Some(Documents::Lines)),
            labels: super::prepare::labels_for(self.head().map(Head::config)),
            label_separator: self.data.label_separator.clone(),
            label_names: self.data.label_names.clone(),
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
        if self.reads_images() {
            return images::encode_place(text, &self.opened.files);
        }
        self.encoded(&Example::Classification {
            text: text.to_owned(),
            text_pair: text_pair.map(str::to_owned),
            // Any label: it is not looked at.
            label: self.labels().first().cloned().unwrap_or_default(),
        })
    }

    /// The ids of words that are to be labelled.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_words(&self, words: &[String]) -> Result<Tokenized, RunError> {
        self.encoded(&Example::Tagged {
            tokens: words.to_vec(),
            tags: vec![None; words.len()],
        })
    }

    fn encoded(&self, example: &Example) -> Result<Tokenized, RunError> {
        let limit = self.opened.files.config().max_sequence();
        let max_length = match self.data.max_length {
            0 => limit,
            length => length.min(limit),
        };
        let options = EncodeOptions {
            truncate: self.data.truncate,
            ..EncodeOptions::new(max_length)
        };
        let tokenizer = self.opened.files.tokenizer()?;
        let encoded = encode::encode_text(example, tokenizer, self.labels(), &options);
        encoded.map_err(|error| match error {
            // Where the text stands is known to the caller alone.
            EncodeError::Row { problem, .. } => RunError::Invalid(problem.to_string()),
            error => error.into(),
        })
    }

    /// What the head answers.
    pub fn problem(&self) -> ProblemType {
        self.head()
            .map_or_else(ProblemType::default, |head| head.config().problem_type)
    }

    /// Whether every word has a label, and not the text.
    pub fn labels_tokens(&self) -> bool {
        let config = self.head().map(Head::config);
        config.is_some_and(HeadConfig::labels_tokens)
    }

    /// What is said of the words of each text, of which it has so many.
    ///
    /// # Errors
    /// As [`Self::predict`].
    pub fn tag(&self, texts: &[(Tokenized, usize)]) -> Result<Vec<Tags>, RunError> {
        let ids = texts.iter().map(|(ids, _)| ids);
        let ids: Vec<Tokenized> = ids.filter(|ids| !ids.is_empty()).cloned().collect();
        let mut logits = self.logits(&ids)?.into_iter();
        let of = |(ids, words): &(Tokenized, usize)| {
            // A text without words has no tokens where the tokenizer adds none.
            let own = match ids.is_empty() {
                true => Vec::new(),
                false => logits.next().unwrap_or_default(),
            };
            Tags::new(self.labels(), *words, ids, &own)
        };
        Ok(texts.iter().map(of).collect())
    }

    /// Checks what a file says of the words of a text, or of the text as a whole, before it is
    /// repeated: every tag must be one of the model's, by name or by number.
    ///
    /// # Errors
    /// Names the first tag that is none of them.
    pub fn check_tags(&self, gold: &Value) -> Result<(), RunError> {
        check_tags(self.labels(), gold)
    }

    /// For each text a value for every label: a probability, or with regression the score itself.
    ///
    /// # Errors
    /// Texts that do not fit the model, and numbers that are not finite.
    pub fn predict(&self, texts: &[Tokenized]) -> Result<Vec<Vec<f32>>, RunError> {
        let mut found = self.logits(texts)?;
        found
            .iter_mut()
            .for_each(|logits| self.problem().activate(logits));
        Ok(found)
    }

    /// The same before it is made a probability.
    pub(super) fn logits(&self, texts: &[Tokenized]) -> Result<Vec<Vec<f32>>, RunError> {
        let Some(head) = self.head() else {
            return Ok(Vec::new());
        };
        let adapter: Option<&dyn Adapter> = self.opened.entry().map(|e| e.adapter.as_ref());
        let backbone = self.opened.backbone.as_ref();
        Ok(head_logits(backbone, adapter, head, texts)?)
    }
}

/// What can be done with a model that tells no classes apart.
pub(super) fn without_head(files: &ModelFiles) -> String {
    if files.info().is_encoder {
        return "train one with `frugal tune`, or give an adapter with a head by `--adapter`"
            .into();
    }
    match files.config().is_headless() {
        true => files.info().why_no_head(),
        false => "text is written with `frugal generate`".into(),
    }
}

/// Refuses a tag that none of `labels` is.
fn check_tags(labels: &[String], gold: &Value) -> Result<(), RunError> {
    let is_known = |tag: &&Value| match tag {
        Value::Null => true,
        Value::String(tag) => labels.contains(tag),
        other => other
            .as_u64()
            .is_some_and(|class| class < labels.len() as u64),
    };
    let tags = match gold {
        Value::Array(tags) => tags.as_slice(),
        one => std::slice::from_ref(one),
    };
    match tags.iter().find(|tag| !is_known(tag)) {
        None => Ok(()),
        Some(tag) => Err(RunError::Invalid(format!(
            "label {tag} is not one of {}: leave the tags out, or take those that the model knows",
            labels.join(", ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_unknown_label_of_a_whole_text_is_not_repeated_by_a_model_of_tags() {
        let labels = ["O", "B-PER"].map(str::to_owned);
        for known in [
            json!(["O", "B-PER", null]),
            json!("O"),
            json!([0, 1]),
            json!([]),
            Value::Null,
        ] {
            check_tags(&labels, &known).unwrap();
        }
        for (unknown, said) in [
            (json!("spam"), "\"spam\""),
            (json!(["O", "B-LOC"]), "\"B-LOC\""),
            (json!([0, 2]), "2"),
            (json!(-1), "-1"),
            (json!({"label": "O"}), "label"),
        ] {
            let error = check_tags(&labels, &unknown).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("B-PER"), "{error}");
        }
    }
}
