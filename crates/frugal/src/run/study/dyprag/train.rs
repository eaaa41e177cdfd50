//! What is trained before the arms are measured: parameters of each document, the translator.

use std::time::Instant;

use frugal_nn::Mode;
use frugal_retrieve::parametric::{
    AugmentedDocument, DocumentStore, DocumentWeights, EncodeOptions, FeedForward, Merge,
    ParametricConfig, ParametricError, Prompts, Sequence, StoreDtype, StoredConfig, Translator,
    TranslatorConfig, TranslatorExample, TranslatorTraining, digest, document_embedding,
    encode_document, merge, sequences, train_translator,
};

use super::super::{Outcome, StudyError, StudyEvent, StudyRequest};
use super::data::Data;
use super::setting::{self, MODEL, Size};
use crate::run::Opened;

/// Learning rate of stage B: the upper end of what the card of settings allows small models.
pub(super) const ENCODE_LR: f64 = 1e-3;
/// Arms that costs of training stand under.
pub(super) const PRAG: &str = "PRAG";
pub(super) const DYPRAG: &str = "DyPRAG";

/// Everything that was trained with one seed.
pub(super) struct Trained {
    pub store: DocumentStore,
    pub translator: Translator,
    /// The mean of the parameters of the documents that the translator saw.
    pub mean: DocumentWeights,
}

fn failed(error: ParametricError) -> StudyError {
    match error {
        ParametricError::Interrupted => StudyError::Stopped,
        error => StudyError::arm("training", error),
    }
}

/// What is trained with, and with which seed.
pub(super) struct Training<'a> {
    pub opened: &'a Opened,
    pub places: &'a FeedForward,
    pub data: &'a Data,
    pub size: Size,
    pub seed: u64,
    pub request: &'a StudyRequest<'a>,
}

impl Training<'_> {
    /// Trains, or takes up what an earlier call left in the folder of work.
    pub(super) fn run(
        &self,
        outcome: &mut Outcome,
        observe: &mut dyn FnMut(StudyEvent),
    ) -> Result<Trained, StudyError> {
        let (data, seed, request, opened) = (self.data, self.seed, self.request, self.opened);
        let config = StoredConfig {
            model: MODEL.to_owned(),
            base_sha256: opened.files.fingerprint(),
            parameters: ParametricConfig {
                seed,
                ..ParametricConfig::default()
            },
            encode: EncodeOptions {
                lr: ENCODE_LR,
                ..EncodeOptions::default()
            },
            dtype: StoreDtype::F16,
        };
        let (count, steps) = (data.documents.len(), self.size.encode_steps);
        let name = format!("{}-{count}-documents-{steps}-steps-seed{seed}", data.name);
        let device = opened.backbone.device();
        let store = DocumentStore::create(&request.work().join(name), config, self.places, device)
            .map_err(failed)?;
        let tokenizer = opened.files.tokenizer().map_err(setting::failed)?;
        let prompts = Prompts::new(tokenizer);
        let mut seconds = Vec::new();
        for document in &data.documents {
            request.check()?;
            let found = sequences(document, prompts, &store.config().encode).map_err(failed)?;
            let before = store.trained_on(&document.id, &document.text());
            if before.map_err(failed)? != Some(digest(&found)) {
                let begin = Instant::now();
                self.encode(&store, document, &found).map_err(failed)?;
                seconds.push(begin.elapsed().as_secs_f64());
            }
            observe(StudyEvent::Step {
                what: format!("{}: document `{}`, seed {seed}", data.name, document.id),
            });
        }
        if !seconds.is_empty() {
            let mean = seconds.iter().sum::<f64>() / seconds.len() as f64;
            outcome.add(&data.label(PRAG), "s/document trained", seed, mean);
        }

        let seen = &data.documents[data.held_out..];
        let mut examples = Vec::with_capacity(seen.len());
        for document in seen {
            let text = document.text();
            let ids = tokenizer.encode(&text, true).map_err(setting::failed)?;
            let trained = store.get(&document.id, &text).map_err(failed)?;
            let trained = trained.ok_or_else(|| StudyError::Data {
                path: request.work(),
                reason: format!("the parameters of `{}` are gone", document.id),
            })?;
            examples.push(TranslatorExample {
                embedding: document_embedding(opened.backbone.as_ref(), &ids).map_err(failed)?,
                trained,
                sequences: sequences(document, prompts, &store.config().encode).map_err(failed)?,
            });
        }
        let all: Vec<&DocumentWeights> = examples.iter().map(|e| &e.trained).collect();
        let mean = merge(&all, Merge::MeanFactors).map_err(failed)?;
        let translator = self.translator(&store, &examples, outcome)?;
        observe(StudyEvent::Step {
            what: format!("{}: translator, seed {seed}", data.name),
        });
        Ok(Trained {
            store,
            translator,
            mean,
        })
    }

    /// Trains a document for as many whole passes over its sequences as the steps need.
    fn encode(
        &self,
        store: &DocumentStore,
        document: &AugmentedDocument,
        found: &[Sequence],
    ) -> Result<(), ParametricError> {
        let config = store.config();
        let options = EncodeOptions {
            epochs: self.size.encode_steps.div_ceil(found.len()),
            ..config.encode
        };
        let trained = encode_document(
            self.opened.backbone.as_ref(),
            store.places(),
            store.start(),
            &config.parameters,
            &options,
            found,
            &mut || self.request.check().is_ok(),
        )?;
        store.put(
            &document.id,
            &document.text(),
            &trained.weights,
            &digest(found),
        )
    }

    fn translator(
        &self,
        store: &DocumentStore,
        examples: &[TranslatorExample],
        outcome: &mut Outcome,
    ) -> Result<Translator, StudyError> {
        let (seed, request) = (self.seed, self.request);
        let backbone = self.opened.backbone.as_ref();
        let folder = store.translator();
        if Translator::is_in(&folder) {
            return Translator::load(&folder, self.places, backbone.device()).map_err(failed);
        }
        let config = TranslatorConfig {
            parameters: store.config().parameters,
            ..TranslatorConfig::default()
        };
        let options = TranslatorTraining {
            epochs: self.size.translator_epochs,
            all_sequences: true,
            seed,
            ..TranslatorTraining::default()
        };
        let made = Translator::new(self.places, config, seed, backbone.device());
        let mut made = made.map_err(failed)?;
        let begin = Instant::now();
        let mut mse = Vec::new();
        train_translator(&mut made, backbone, examples, &options, &mut |step| {
            mse.push(step.losses.mse);
            request.check().is_ok()
        })
        .map_err(failed)?;
        let seconds = begin.elapsed().as_secs_f64() / mse.len().max(1) as f64;
        let arm = self.data.label(DYPRAG);
        outcome.add(&arm, "s/translator step", seed, seconds);
        // How much of the squared difference is left in the last pass.
        let pass = examples.len().min(mse.len());
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
        let left = mean(&mse[mse.len() - pass..]) / mean(&mse[..pass]).max(f64::MIN_POSITIVE);
        outcome.add(&arm, "MSE left of the first pass", seed, left);
        made.save(&folder, MODEL).map_err(failed)?;
        Ok(made)
    }
}

/// The translated parameters of a text.
pub(super) fn translated(
    opened: &Opened,
    translator: &Translator,
    text: &str,
) -> Result<DocumentWeights, StudyError> {
    let tokenizer = opened.files.tokenizer().map_err(setting::failed)?;
    let ids = tokenizer.encode(text, true).map_err(setting::failed)?;
    let embedding = document_embedding(opened.backbone.as_ref(), &ids).map_err(failed)?;
    translator.translate(&embedding, Mode::Eval).map_err(failed)
}
