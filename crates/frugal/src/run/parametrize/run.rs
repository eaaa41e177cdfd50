//! From an index to a folder of parameters.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use frugal_core::lock::FolderLock;
use frugal_index::Document;
use frugal_retrieve::parametric::{
    AugmentedDocument, DocumentStore, EncodeOptions, FeedForward, Losses, ParametricConfig,
    ParametricError, Prompts, StoreDtype, StoredConfig, Translator, TranslatorConfig,
    TranslatorExample, TranslatorInit, TranslatorStep, TranslatorTraining, document_embedding,
    encode_document, sequences, train_translator,
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

/// What is made of an index.
pub struct ParametrizeRequest<'a> {
    /// Folder of the parameters. Documents that it has already are not trained again.
    pub out: PathBuf,
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
    /// Files of documents that are no longer in the index, which were removed.
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
/// on them if one is wanted.
///
/// # Errors
/// Questions about documents that are not in the index, a model without feed-forward layers of the
/// usual kind, a folder of other parameters or in use, whatever goes wrong while training;
/// [`RunError::Interrupted`] where it was asked to stop.
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
    let ids = collection
        .index()
        .document_ids()
        .map_err(RetrieveError::from)?;
    if let ItemSource::Given(given) = &request.items
        && let Some(unknown) = given.keys().find(|id| !ids.contains(id))
    {
        return Err(RunError::Invalid(format!(
            "there is a question about document `{unknown}`, which is not in the index"
        )));
    }
    let backbone = opened.backbone.as_ref();
    let places = FeedForward::of(backbone.info(), backbone.sites())?;
    if let Some(translator) = &request.translator {
        translator.training.validate()?;
    }
    let _lock = FolderLock::acquire(&request.out)?;
    let config = StoredConfig {
        model: opened.files.name().to_owned(),
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
            all.push((document.id.clone(), document.title_and_text()));
            match one(opened, &store, document, request, &mut report)? {
                Some(document) => made.push(document),
                None => report.without_items.push(id.clone()),
            }
        }
        observe(ParametrizeStep::Document {
            done: done + 1,
            of: ids.len(),
            id: id.clone(),
        });
    }
    report.documents = made.len();
    let kept = all.iter().map(|(id, text)| (id.as_str(), text.as_str()));
    report.removed = store.keep_only(kept)?;
    let bytes = made
        .iter()
        .filter_map(|document| store.bytes(&document.id, &document.text()));
    report.bytes = bytes.sum();
    if let Some(wanted) = &request.translator {
        let losses = translator(opened, &store, &made, wanted, request, observe)?;
        report.translator = TranslatorLosses::mean(&losses);
    }
    Ok(report)
}

/// A document with its questions, trained if it was not; `None` where there are none.
fn one(
    opened: &Opened,
    store: &DocumentStore,
    document: Document,
    request: &ParametrizeRequest<'_>,
    report: &mut ParametrizeReport,
) -> Result<Option<AugmentedDocument>, RunError> {
    let text = document.title_and_text();
    let is_trained = store.contains(&document.id, &text);
    let needs_items = !is_trained || request.translator.is_some();
    let found: Option<DocumentItems> = match &request.items {
        ItemSource::Given(given) => given.get(&document.id).cloned(),
        // A document that has parameters had questions, which are written again only for the
        // translator: the same ones, as they follow from the seed and the text.
        ItemSource::Model { .. } if !needs_items => Some(DocumentItems::default()),
        ItemSource::Model { seed } => write_items(opened, &text, *seed)?,
    };
    let Some(found) = found.filter(|found| !needs_items || !found.items.is_empty()) else {
        return Ok(None);
    };
    let augmented = AugmentedDocument {
        id: document.id,
        title: document.title,
        passage: document.text,
        rewrite: found.rewrite,
        items: found.items,
    };
    if !is_trained {
        let config = store.config();
        let prompts = Prompts::new(opened.files.tokenizer()?);
        let sequences = sequences(&augmented, prompts, &config.encode)?;
        let trained = encode_document(
            opened.backbone.as_ref(),
            store.places(),
            store.start(),
            &config.parameters,
            &config.encode,
            &sequences,
            &mut || !is_stopped(request),
        );
        let trained = trained.map_err(interrupted)?;
        store.put(&augmented.id, &text, &trained.weights)?;
        report.trained += 1;
    }
    Ok(Some(augmented))
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
            "no document has parameters: there is nothing to train a translator on".into(),
        ));
    }
    let backbone = opened.backbone.as_ref();
    let tokenizer = opened.files.tokenizer()?;
    let config = TranslatorConfig {
        parameters: ParametricConfig {
            scale_in_delta: wanted.scale_in_delta,
            ..store.config().parameters
        },
        width: wanted.width,
        init: wanted.init,
    };
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
            embedding: document_embedding(backbone, &ids)?,
            trained,
            sequences: sequences(document, Prompts::new(tokenizer), &store.config().encode)?,
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
