//! Where vectors live: in a folder here, or in a database.
//!
//! | place | store | feature |
//! |---|---|---|
//! | `FOLDER` | the index of this crate ([`EmbeddedStore`]) | |
//! | `postgres://USER@HOST/DATABASE#TABLE` | PostgreSQL with the extension pgvector | `pgvector` |
//! | `chroma+http://HOST:PORT#COLLECTION` | Chroma, API version 2 | `chroma` |
//! | `qdrant+http://HOST:PORT#COLLECTION` | Qdrant 1.16 or newer | `qdrant` |
//!
//! A store keeps documents with their vectors, and which encoder made them: vectors of another one
//! are refused. Every call ends within a time, and failures that may pass are tried again a few times.
//! All calls can be repeated without harm.

mod check;
#[cfg(feature = "chroma")]
mod chroma;
mod embedded;
mod entry;
mod error;
#[cfg(any(feature = "chroma", feature = "qdrant"))]
mod http;
mod open;
mod options;
#[cfg(feature = "pgvector")]
mod postgres;
#[cfg(feature = "qdrant")]
mod qdrant;
mod settings;
mod target;

use crate::document::Document;
use crate::filter::Filter;
use crate::index::Encoder;

pub use embedded::EmbeddedStore;
pub use entry::{StoreEntry, StoreHit};
pub use error::StoreError;
pub use open::open_store;
pub use options::StoreOptions;
pub use settings::StoreSettings;
pub use target::{StoreKind, StoreTarget};

/// Documents with vectors, wherever they are kept.
pub trait VectorStore: Send {
    /// Where it is, without passwords.
    fn place(&self) -> String;

    /// Whose vectors it holds.
    fn settings(&self) -> &StoreSettings;

    /// Refuses vectors of another encoder.
    ///
    /// # Errors
    /// Another encoder than that of the store.
    fn check_encoder(&self, asked: &Encoder) -> Result<(), StoreError> {
        let made = &self.settings().encoder;
        match made.agrees(asked) {
            true => Ok(()),
            false => Err(StoreError::OtherEncoder {
                place: self.place(),
                made: made.to_string(),
                asked: asked.to_string(),
            }),
        }
    }

    /// Number of documents.
    ///
    /// # Errors
    /// A store that does not answer.
    fn count(&mut self) -> Result<usize, StoreError>;

    /// Identifiers of all documents.
    ///
    /// # Errors
    /// A store that does not answer.
    fn ids(&mut self) -> Result<Vec<String>, StoreError>;

    /// The documents of some identifiers, in their order.
    ///
    /// # Errors
    /// A store that does not answer.
    fn documents(&mut self, ids: &[String]) -> Result<Vec<Option<Document>>, StoreError>;

    /// Adds documents, or puts them in the place of those with their identifiers.
    ///
    /// # Errors
    /// Documents without identifier or text, an identifier twice, vectors of another length or that
    /// cannot be compared: nothing is stored then. A store that does not answer.
    fn upsert(&mut self, entries: &[StoreEntry]) -> Result<(), StoreError>;

    /// Removes the documents of some identifiers, where they are.
    ///
    /// # Errors
    /// A store that does not answer.
    fn delete(&mut self, ids: &[String]) -> Result<(), StoreError>;

    /// The `k` nearest documents, the nearest first.
    ///
    /// # Errors
    /// A vector of another length or that cannot be compared; a store that does not answer.
    fn nearest(&mut self, vector: &[f32], k: usize) -> Result<Vec<StoreHit>, StoreError>;

    /// The `k` nearest documents that fulfil a filter. Filters mean the same in every store because
    /// they are evaluated here: more documents are fetched until enough fulfil it.
    ///
    /// # Errors
    /// As [`VectorStore::nearest`]; a field that no document has.
    fn search(
        &mut self,
        vector: &[f32],
        k: usize,
        filter: &Filter,
    ) -> Result<Vec<StoreHit>, StoreError> {
        if filter.conditions.is_empty() {
            return self.nearest(vector, k);
        }
        let all = self.count()?;
        let mut wanted = k.saturating_mul(4).max(64);
        loop {
            let found = self.nearest(vector, wanted.min(all))?;
            let seen = found.len();
            let exhausted = wanted >= all;
            if exhausted {
                check::fields(filter, found.iter().map(|hit| &hit.document.metadata))?;
            }
            let fitting = found.into_iter();
            let fitting = fitting.filter(|hit| filter.fits(&hit.document.metadata));
            let hits: Vec<StoreHit> = fitting.take(k).collect();
            if hits.len() == k || exhausted || seen == 0 {
                return Ok(hits);
            }
            wanted = wanted.saturating_mul(4);
        }
    }
}
