//! Parametric retrieval-augmented generation: documents that stand in the weights of a model in place
//! of its prompt.
//!
//! *Parametric RAG* (PRAG; 2025, arXiv 2501.15915; official code github.com/oneal2000/PRAG) trains one
//! small LoRA on the feed-forward layers for each document, offline, and adds those of the documents
//! that a question retrieves. *DyPRAG* (2025, arXiv 2503.23895; official code
//! github.com/Trae1ounG/DyPRAG, Apache-2.0) replaces training and storage by a hypernetwork, the
//! parameter translator: from the hidden state of a document's last token to the LoRA.
//!
//! - [`FeedForward`]: the matrices that are changed, of every block;
//! - [`sequences`]: what a document is trained on (stage B), [`encode_document`]: its training;
//! - [`Translator`], [`train_translator`]: stage C; [`document_embedding`]: what it reads;
//! - [`merge()`]: several documents as one change; [`FastWeights`]: a change that comes with a request;
//! - [`DocumentStore`], [`Translator::save`]: their files.
//!
//! Departures from the official code, each of which [`ParametricConfig`], [`Merge`],
//! [`TranslatorInit`] and [`TranslatorTraining`] can take back: the scale α/r holds wherever a change
//! acts (there only where LoRAs are trained, not where the translator's are injected); changes are
//! summed (there DyPRAG averages A and B apart); the translator starts as no change at all, with
//! weights that gradients can move (there all are normal with deviation 1e-7); the divergence from the
//! trained LoRA's model is a mean over tokens (there a sum, padding included). Answers are short
//! (`The answer is ...`); chains of thought are not written.

mod config;
mod encode;
mod error;
mod fast_weights;
mod feed_forward;
#[cfg(test)]
mod file_tests;
mod files;
#[cfg(test)]
mod golden;
mod loss;
mod merge;
mod prompt;
mod store;
#[cfg(test)]
mod tests;
mod train;
#[cfg(test)]
mod training_tests;
mod translator;
mod weights;

pub use config::{
    EncodeOptions, KlReduction, ParametricConfig, TranslatorConfig, TranslatorInit,
    TranslatorTraining,
};
pub use encode::{EncodeReport, check_length, document_embedding, encode_document};
pub use error::ParametricError;
pub use fast_weights::FastWeights;
pub use feed_forward::{FeedForward, Place};
pub use loss::{Losses, TranslatorLoss, translator_loss};
pub use merge::{Merge, merge};
pub use prompt::{
    ANSWER_START, AugmentedDocument, Item, Prompts, Sequence, WITH_PASSAGES, WITHOUT_PASSAGES,
    digest, num_sequences, sequences, short_answer,
};
pub use store::{DocumentStore, StoreDtype, StoredConfig};
pub use train::{TranslatorExample, TranslatorStep, train_translator};
pub use translator::{Translator, num_translator_parameters};
pub use weights::{DocumentWeights, Factors};
