//! The index in a folder as a store.

use std::path::Path;

use super::check;
use super::error::StoreError;
use super::{StoreEntry, StoreHit, StoreSettings, VectorStore};
use crate::document::Document;
use crate::error::IndexError;
use crate::filter::Filter;
use crate::index::{Index, Mode, Query, Settings};

/// A folder with an index that has vectors. Each call that changes it is one commit.
pub struct EmbeddedStore {
    index: Index,
    settings: StoreSettings,
}

impl EmbeddedStore {
    /// Opens the index of a folder, or makes one if the encoder is given.
    ///
    /// # Errors
    /// A folder that cannot be used, an index of another encoder or without vectors.
    pub fn open(folder: &Path, wanted: Option<&StoreSettings>) -> Result<Self, StoreError> {
        let index = match (Index::open(folder), wanted) {
            (Ok(index), Some(wanted)) => {
                index.check_encoder(&wanted.encoder)?;
                index
            }
            (Ok(index), None) => index,
            (Err(IndexError::NotAnIndex { .. }), Some(wanted)) => {
                let settings = Settings {
                    encoder: Some(wanted.encoder.clone()),
                    ..Settings::default()
                };
                Index::create(folder, settings)?
            }
            (Err(error), _) => return Err(error.into()),
        };
        let Some(encoder) = index.settings().encoder.clone() else {
            let problem = format!("{}: the index has no vectors", folder.display());
            return Err(IndexError::NeedsVector(problem).into());
        };
        let note = wanted.map_or(serde_json::Value::Null, |wanted| wanted.note.clone());
        Ok(Self {
            index,
            settings: StoreSettings { encoder, note },
        })
    }
}

impl VectorStore for EmbeddedStore {
    fn place(&self) -> String {
        self.index.folder().display().to_string()
    }

    fn settings(&self) -> &StoreSettings {
        &self.settings
    }

    fn count(&mut self) -> Result<usize, StoreError> {
        Ok(self.index.len())
    }

    fn ids(&mut self) -> Result<Vec<String>, StoreError> {
        Ok(self.index.document_ids()?)
    }

    fn documents(&mut self, ids: &[String]) -> Result<Vec<Option<Document>>, StoreError> {
        let found = ids.iter().map(|id| Ok(self.index.document(id)?));
        found.collect()
    }

    fn upsert(&mut self, entries: &[StoreEntry]) -> Result<(), StoreError> {
        check::entries(&self.settings, entries)?;
        let mut writer = self.index.writer()?;
        for entry in entries {
            writer.update(&entry.document, Some(&entry.vector))?;
        }
        writer.commit()?;
        drop(writer);
        self.index.reload()?;
        Ok(())
    }

    fn delete(&mut self, ids: &[String]) -> Result<(), StoreError> {
        let mut writer = self.index.writer()?;
        for id in ids {
            writer.delete(id)?;
        }
        writer.commit()?;
        drop(writer);
        self.index.reload()?;
        Ok(())
    }

    fn nearest(&mut self, vector: &[f32], k: usize) -> Result<Vec<StoreHit>, StoreError> {
        self.search(vector, k, &Filter::default())
    }

    fn search(
        &mut self,
        vector: &[f32],
        k: usize,
        filter: &Filter,
    ) -> Result<Vec<StoreHit>, StoreError> {
        check::vector(&self.settings, vector, "the query vector")?;
        let query = Query::vector(vector.to_vec()).mode(Mode::Dense);
        let found = self.index.search(&query.top_k(k).filter(filter.clone()))?;
        let mut hits = Vec::with_capacity(found.len());
        for found in found {
            if let Some(document) = self.index.document(&found.id)? {
                hits.push(StoreHit {
                    document,
                    score: found.score,
                });
            }
        }
        Ok(hits)
    }
}
