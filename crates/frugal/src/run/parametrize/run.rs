//! From an index to a folder of parameters.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use frugal_core::lock::FolderLock;
use frugal_index::Document;
use frugal_retrieve::parametric::{
    AugmentedDocument, DocumentStore, EncodeOptions, FeedForward, Losses, ParametricConfig,
    ParametricError, Prompts, StoreDtype, StoredConfig, Translator, TranslatorConfig,
    TranslatorExample, TranslatorInit, TranslatorStep, TranslatorTraining, check_length, digest,
    document_embedding, encode_document, sequences, train_translator,
};
use frugal_retrieve::{Collection, RetrieveError};
use serde::Serialize;

use super::items::{DocumentItems, ItemSource};
use super::written::write_items;
use crate::run::{Opened, RunError};

/// The translator that is trained on the documents.
#[derive(Clone, Copy, Debug)]
pub struct TranslatorRequest {
    /// Width of its hidden layers.
    pub width: usize,
    /// Where its weights begin.
    pub init: TranslatorInit,
    /// Whether α/r holds in its training and use too; see [`ParametricConfig`].
    pub scale_in_delta: bool,
    /// How it is trained.
    pub training: TranslatorTraining,
}

impl TranslatorRequest {
    /// What the translator of these parameters is.
    fn config(&self, parameters: ParametricConfig) -> TranslatorConfig {
        TranslatorConfig {
            parameters: ParametricConfig {
                scale_in_delta: self.scale_in_delta,
                ..parameters
            },
            width: self.width,
            init: self.init,
        }
    }
}

/// What is made of an index.
pub struct ParametrizeRequest<'a> {
    /// Folder of the parameters. Documents that it has already are not trained again, unless they
    /// were trained on something else.
    pub out: PathBuf,
    /// Whether files of documents that are not in the index, or had another text, are removed.
    pub prune: bool,
    /// What the parameters are.
    pub parameters: ParametricConfig,
    /// How they are trained.
    pub encode: EncodeOptions,
    /// Number format of their files.
    pub dtype: StoreDtype,
    /// Where questions about documents come from.
    pub items: ItemSource,
    /// The translator, if one is wanted.
    pub translator: Option<TranslatorRequest>,
    /// Says that the job should stop; what is done is kept.
    pub stop: &'a AtomicBool,
}

/// What the job says while it runs.
#[derive(Clone, Debug)]
pub enum ParametrizeStep {
    /// A document is done.
    Document {
        /// Documents done.
        done: usize,
        /// All of them.
        of: usize,
        /// Its identifier.
        id: String,
    },
    /// A step of the translator's training is done.
    Translator {
        /// Steps done.
        step: usize,
        /// All of them.
        of: usize,
    },
}

/// What was made.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ParametrizeReport {
    /// Documents that have parameters now.
    pub documents: usize,
    /// How many of them were trained in this call.
    pub trained: usize,
    /// Documents without parameters, since there is no question about them.
    pub without_items: Vec<String>,
    /// Documents that there is no question about now, which keep the parameters that they had.
    pub kept: Vec<String>,
    /// Files of documents that are not in the index, or of earlier texts, which stay.
    pub others: usize,
    /// Such files that were removed.
    pub removed: usize,
    /// Bytes of the documents' files.
    pub bytes: u64,
    /// Mean losses of the translator's last pass over the documents.
    pub translator: Option<TranslatorLosses>,
}

/// Losses of a translator.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TranslatorLosses {
    /// Cross-entropy of the first sequence of a document.
    pub lm: f64,
    /// Divergence from the model with trained parameters.
    pub kl: f64,
    /// Squared difference from these.
    pub mse: f64,
}

impl TranslatorLosses {
    fn mean(losses: &[Losses]) -> Option<Self> {
        let count = losses.len() as f64;
        let mean = |of: fn(&Losses) -> f64| losses.iter().map(of).sum::<f64>() / count;
        (!losses.is_empty()).then(|| Self {
            lm: mean(|l| l.lm),
            kl: mean(|l| l.kl),
            mse: mean(|l| l.mse),
        })
    }
}

fn is_stopped(request: &ParametrizeRequest<'_>) -> bool {
    request.stop.load(Ordering::Relaxed)
}

/// Trains parameters for every document of an index that there are questions about, and a translator
/// on them if one is wanted. Whatever can be refused is refused before the first document is trained.
///
/// # Errors
/// Questions about documents that are not in the index, documents that are too long for the model, a
/// model without feed-forward layers of the usual kind, a folder of other parameters or in use,
/// whatever goes wrong while training; [`RunError::Interrupted`] where it was asked to stop.
pub fn parametrize(
    opened: &Opened,
    collection: &Collection,
    request: &ParametrizeRequest<'_>,
    observe: &mut (dyn FnMut(ParametrizeStep) + Send),
) -> Result<ParametrizeReport, RunError> {
    if let Some(name) = opened.adapters.names().first() {
        return Err(RunError::Invalid(format!(
            "{name}: documents' parameters are trained for the model as it is: leave out the adapter, or merge it into the model \
             first (`frugal merge`)"
        )));
    }
    let backbone = opened.backbone.as_ref();
    let places = FeedForward::of(backbone.info(), backbone.sites())?;
    request.parameters.validate()?;
    request.encode.validate()?;
    if let Some(wanted) = &request.translator {
        wanted.training.validate()?;
        Translator::check(&places, &wanted.config(request.parameters))?;
    }
    let _lock = FolderLock::acquire(&request.out)?;
    let ids = collection
        .index()
        .document_ids()
        .map_err(RetrieveError::from)?;
    check_documents(opened, collection, &ids, request)?;
    let config = StoredConfig {
        model: opened.files.name().to_owned(),
        base_sha256: opened.files.fingerprint(),
        parameters: request.parameters,
        encode: request.encode,
        dtype: request.dtype,
    };
    let store = DocumentStore::create(&request.out, config, &places, backbone.device())?;
    let mut report = ParametrizeReport::default();
    let mut made: Vec<AugmentedDocument> = Vec::new();
    let mut all: Vec<(String, String)> = Vec::new();
    for (done, id) in ids.iter().enumerate() {
        if is_stopped(request) {
            return Err(RunError::Interrupted);
        }
        if let Some(document) = collection.document(id)? {
            let text = document.title_and_text();
            match one(opened, &store, document, request, &mut report)? {
                Parametrized::With(document) => made.extend(document),
                Parametrized::Kept => report.kept.push(id.clone()),
                Parametrized::Without => report.without_items.push(id.clone()),
            }
            report.bytes += store.bytes(id, &text).unwrap_or(0);
            report.documents += usize::from(store.contains(id, &text));
            all.push((id.clone(), text));
        }
        observe(ParametrizeStep::Document {
            done: done + 1,
            of: ids.len(),
            id: id.clone(),
        });
    }
    let known = all.iter().map(|(id, text)| (id.as_str(), text.as_str()));
    match request.prune {
        true => report.removed = store.keep_only(known)?,
        false => report.others = store.others(known)?.len(),
    }
    if let Some(wanted) = &request.translator {
        let losses = translator(opened, &store, &made, wanted, request, observe)?;
        report.translator = TranslatorLosses::mean(&losses);
    }
    Ok(report)
}

/// Prompts of the model, which refuse what it has no room for.
fn prompts(opened: &Opened) -> Result<Prompts<'_>, RunError> {
    let positions = opened.backbone.info().max_sequence;
    Ok(Prompts::new(opened.files.tokenizer()?).within(positions))
}

fn augmented(document: &Document, found: DocumentItems) -> AugmentedDocument {
    AugmentedDocument {
        id: document.id.clone(),
        title: document.title.clone(),
        passage: document.text.clone(),
        rewrite: found.rewrite,
        items: found.items,
    }
}

/// Refuses documents that cannot be trained on, before any of them is.
fn check_documents(
    opened: &Opened,
    collection: &Collection,
    ids: &[String],
    request: &ParametrizeRequest<'_>,
) -> Result<(), RunError> {
    if let ItemSource::Given(given) = &request.items
        && let known = ids.iter().collect::<HashSet<_>>()
        && let Some(unknown) = given.keys().find(|id| !known.contains(id))
    {
        return Err(RunError::Invalid(format!(
            "there is a question about document `{unknown}`, which is not in the index"
        )));
    }
    let prompts = prompts(opened)?;
    let positions = opened.backbone.info().max_sequence;
    for id in ids {
        let given = match &request.items {
            ItemSource::Given(given) => match given.get(id).filter(|of| !of.items.is_empty()) {
                None => continue,
                found => found.cloned(),
            },
            ItemSource::Model { .. } => None,
        };
        let Some(document) = collection.document(id)? else {
            continue;
        };
        let is_written = given.is_none();
        let document = augmented(&document, given.unwrap_or_default());
        match is_written {
            true => prompts.passage(&document).map(|_| ())?,
            false => sequences(&document, prompts, &request.encode).map(|_| ())?,
        }
        if request.translator.is_some() {
            let ids = opened.files.tokenizer()?.encode(&document.text(), true)?;
            check_length(&ids, positions).map_err(|error| error.of_document(id))?;
        }
    }
    Ok(())
}

/// What became of a document.
enum Parametrized {
    /// It has parameters, and its questions where the translator needs them.
    With(Option<AugmentedDocument>),
    /// It has those of an earlier call, and there is no question about it now.
    Kept,
    /// It has none.
    Without,
}

/// Trains a document if it was not, or was trained on something else.
fn one(
    opened: &Opened,
    store: &DocumentStore,
    document: Document,
    request: &ParametrizeRequest<'_>,
    report: &mut ParametrizeReport,
) -> Result<Parametrized, RunError> {
    let text = document.title_and_text();
    let before = store.trained_on(&document.id, &text)?;
    let without = || match before {
        Some(_) => Parametrized::Kept,
        None => Parametrized::Without,
    };
    let prompts = prompts(opened)?;
    let encode = &store.config().encode;
    let (augmented, sequences, trained_on) = match &request.items {
        ItemSource::Given(given) => {
            let found = given.get(&document.id).filter(|of| !of.items.is_empty());
            let Some(found) = found else {
                return Ok(without());
            };
            let augmented = augmented(&document, found.clone());
            let sequences = sequences(&augmented, prompts, encode)?;
            let trained_on = digest(&sequences);
            (augmented, sequences, trained_on)
        }
        ItemSource::Model { seed } => {
            // What the model writes follows from the seed and what it reads.
            let bare = augmented(&document, DocumentItems::default());
            let read = digest(&[prompts.passage(&bare)?]);
            let trained_on = format!("written by the model, seed {seed}: {read}");
            if request.translator.is_none() && before.as_ref() == Some(&trained_on) {
                return Ok(Parametrized::With(None));
            }
            let Some(found) = write_items(opened, &text, *seed)? else {
                return Ok(without());
            };
            let augmented = augmented(&document, found);
            let sequences = sequences(&augmented, prompts, encode)?;
            (augmented, sequences, trained_on)
        }
    };
    if before.as_ref() != Some(&trained_on) {
        let config = store.config();
        let trained = encode_document(
            opened.backbone.as_ref(),
            store.places(),
            store.start(),
            &config.parameters,
            &config.encode,
            &sequences,
            &mut || !is_stopped(request),
        );
        let trained = trained.map_err(|error| interrupted(error.of_document(&augmented.id)))?;
        store.put(&augmented.id, &text, &trained.weights, &trained_on)?;
        report.trained += 1;
    }
    Ok(Parametrized::With(Some(augmented)))
}

fn interrupted(error: ParametricError) -> RunError {
    match error {
        ParametricError::Interrupted => RunError::Interrupted,
        error => error.into(),
    }
}

/// Trains the translator and writes it; the losses of its last pass.
fn translator(
    opened: &Opened,
    store: &DocumentStore,
    documents: &[AugmentedDocument],
    wanted: &TranslatorRequest,
    request: &ParametrizeRequest<'_>,
    observe: &mut (dyn FnMut(ParametrizeStep) + Send),
) -> Result<Vec<Losses>, RunError> {
    if documents.is_empty() {
        return Err(RunError::Invalid(
            "there is no question about any document: a translator has nothing to learn from"
                .into(),
        ));
    }
    let backbone = opened.backbone.as_ref();
    let tokenizer = opened.files.tokenizer()?;
    let config = wanted.config(store.config().parameters);
    let seed = wanted.training.seed;
    let mut made = Translator::new(store.places(), config, seed, backbone.device())?;
    let mut examples = Vec::with_capacity(documents.len());
    for document in documents {
        if is_stopped(request) {
            return Err(RunError::Interrupted);
        }
        let text = document.text();
        let trained = store.get(&document.id, &text)?;
        let trained = trained.ok_or_else(|| {
            RunError::Invalid(format!("the parameters of `{}` are gone", document.id))
        })?;
        let ids = tokenizer.encode(&text, true)?;
        examples.push(TranslatorExample {
            embedding: document_embedding(backbone, &ids)
                .map_err(|error| error.of_document(&document.id))?,
            trained,
            sequences: sequences(document, prompts(opened)?, &store.config().encode)?,
        });
    }
    let mut losses = Vec::new();
    let mut on_step = |step: TranslatorStep| {
        losses.push(step.losses);
        let (step, of) = (step.step, step.of);
        observe(ParametrizeStep::Translator { step, of });
        !is_stopped(request)
    };
    train_translator(
        &mut made,
        backbone,
        &examples,
        &wanted.training,
        &mut on_step,
    )
    .map_err(interrupted)?;
    made.save(&store.translator(), opened.files.name())?;
    let last = losses.len().saturating_sub(examples.len());
    Ok(losses.split_off(last))
}
