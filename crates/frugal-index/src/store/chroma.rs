//! Chroma by its HTTP API of version 2.
//!
//! The document is kept as JSON under a key of its metadata, beside its own metadata, which other
//! programs can filter by. Searches go along Chroma's graph, so they are not exact.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::error::StoreError;
use super::http::Http;
use super::settings::{agreed, kept, text_of};
use super::target::StoreTarget;
use super::{StoreEntry, StoreHit, StoreOptions, StoreSettings, VectorStore, check};
use crate::document::Document;
use crate::vector::Metric;

const COLLECTIONS: &str = "/api/v2/tenants/default_tenant/databases/default_database/collections";
/// Metadata key of a collection: whose vectors they are.
const SETTINGS: &str = "frugal_settings";
/// Metadata key of an entry: the whole document.
const DOCUMENT: &str = "frugal_document";
/// Entries of one request.
const BATCH: usize = 500;
/// Variable with the token of a server that wants one.
const TOKEN: &str = "CHROMA_TOKEN";

pub(super) struct ChromaStore {
    http: Http,
    /// Path of the collection.
    path: String,
    settings: StoreSettings,
}

impl ChromaStore {
    pub(super) fn open(
        target: &StoreTarget,
        server: &str,
        wanted: Option<&StoreSettings>,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let token = std::env::var(TOKEN).ok();
        let header = token.map(|token| ("x-chroma-token", token));
        let http = Http::new(target.to_string(), server, options, header);
        let name = &target.collection;
        let there = http.call("GET", &format!("{COLLECTIONS}/{name}"), None)?;
        if there.status != 404 {
            let settings = agreed(http.place(), settings_of(&http, &there.body)?, wanted)?;
            return Self::of(http, &there.body, settings);
        }
        let Some(wanted) = wanted else {
            let place = http.place().to_owned();
            return Err(StoreError::Absent { place });
        };
        let space = match wanted.encoder.metric {
            Metric::Cosine => "cosine",
            Metric::Ip => "ip",
            Metric::L2 => "l2",
        };
        let body = json!({
            "name": name,
            "metadata": { SETTINGS: text_of(http.place(), wanted)? },
            "configuration": { "hnsw": { "space": space } },
            "get_or_create": true,
        });
        let made = http.get("POST", COLLECTIONS, Some(&body))?;
        // Somebody else may have been faster.
        let settings = agreed(http.place(), settings_of(&http, &made)?, Some(wanted))?;
        Self::of(http, &made, settings)
    }

    fn of(http: Http, collection: &Value, settings: StoreSettings) -> Result<Self, StoreError> {
        let id = collection.get("id").and_then(Value::as_str);
        let id = id.ok_or_else(|| http.answer("a collection without `id`"))?;
        let path = format!("{COLLECTIONS}/{id}");
        Ok(Self {
            http,
            path,
            settings,
        })
    }

    fn post(&self, what: &str, body: &Value) -> Result<Value, StoreError> {
        self.http
            .get("POST", &format!("{}/{what}", self.path), Some(body))
    }

    fn document(&self, metadata: &Value) -> Result<Document, StoreError> {
        let text = metadata.get(DOCUMENT).and_then(Value::as_str);
        let text = text.ok_or_else(|| self.http.answer("an entry of another program"))?;
        serde_json::from_str(text).map_err(|e| self.http.answer(e))
    }
}

fn settings_of(http: &Http, collection: &Value) -> Result<StoreSettings, StoreError> {
    let text = collection.pointer(&format!("/metadata/{SETTINGS}"));
    kept(http.place(), text.and_then(Value::as_str))
}

/// Plain values of a document's metadata, and the document.
fn metadata(document: &Document, text: String) -> Map<String, Value> {
    let plain = |value: &Value| value.is_string() || value.is_number() || value.is_boolean();
    let known = document.metadata.iter();
    // Names that Chroma keeps for itself.
    let known = known.filter(|(name, value)| plain(value) && !name.starts_with("chroma:"));
    let mut metadata: Map<String, Value> = known.map(|(n, v)| (n.clone(), v.clone())).collect();
    metadata.insert(DOCUMENT.into(), Value::String(text));
    metadata
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

impl VectorStore for ChromaStore {
    fn place(&self) -> String {
        self.http.place().to_owned()
    }

    fn settings(&self) -> &StoreSettings {
        &self.settings
    }

    fn count(&mut self) -> Result<usize, StoreError> {
        let found = self
            .http
            .get("GET", &format!("{}/count", self.path), None)?;
        let count = found.as_u64().and_then(|n| usize::try_from(n).ok());
        count.ok_or_else(|| self.http.answer("`count` is no number"))
    }

    fn ids(&mut self) -> Result<Vec<String>, StoreError> {
        let mut all = Vec::new();
        loop {
            let body = json!({ "limit": BATCH, "offset": all.len(), "include": [] });
            let found = self.post("get", &body)?;
            let ids = list(&found, "/ids");
            if ids.is_empty() {
                return Ok(all);
            }
            all.extend(ids.iter().filter_map(Value::as_str).map(str::to_owned));
        }
    }

    fn documents(&mut self, ids: &[String]) -> Result<Vec<Option<Document>>, StoreError> {
        let mut known = HashMap::new();
        for batch in ids.chunks(BATCH) {
            let body = json!({ "ids": batch, "include": ["metadatas"] });
            let found = self.post("get", &body)?;
            let pairs = list(&found, "/ids").iter().zip(list(&found, "/metadatas"));
            for (id, metadata) in pairs {
                let id = id.as_str().unwrap_or_default().to_owned();
                known.insert(id, self.document(metadata)?);
            }
        }
        Ok(ids.iter().map(|id| known.get(id).cloned()).collect())
    }

    fn upsert(&mut self, entries: &[StoreEntry]) -> Result<(), StoreError> {
        check::entries(&self.settings, entries)?;
        for batch in entries.chunks(BATCH) {
            let mut metadatas = Vec::with_capacity(batch.len());
            for entry in batch {
                let text = serde_json::to_string(&entry.document);
                let text = text.map_err(|e| self.http.answer(e))?;
                metadatas.push(metadata(&entry.document, text));
            }
            let of = |entry: &StoreEntry| entry.document.title_and_text();
            let body = json!({
                "ids": batch.iter().map(|e| &e.document.id).collect::<Vec<_>>(),
                "embeddings": batch.iter().map(|e| &e.vector).collect::<Vec<_>>(),
                "documents": batch.iter().map(of).collect::<Vec<_>>(),
                "metadatas": metadatas,
            });
            self.post("upsert", &body)?;
        }
        Ok(())
    }

    fn delete(&mut self, ids: &[String]) -> Result<(), StoreError> {
        for batch in ids.chunks(BATCH) {
            self.post("delete", &json!({ "ids": batch }))?;
        }
        Ok(())
    }

    fn nearest(&mut self, vector: &[f32], k: usize) -> Result<Vec<StoreHit>, StoreError> {
        check::vector(&self.settings, vector, "the query vector")?;
        let count = self.count()?;
        if count == 0 || k == 0 {
            return Ok(Vec::new());
        }
        let body = json!({
            "query_embeddings": [vector],
            "n_results": k.min(count),
            "include": ["metadatas", "distances"],
        });
        let found = self.post("query", &body)?;
        let metadatas = list(&found, "/metadatas/0").iter();
        let distances = list(&found, "/distances/0").iter();
        let mut hits = Vec::new();
        for (metadata, distance) in metadatas.zip(distances) {
            let distance = distance.as_f64();
            let distance = distance.ok_or_else(|| self.http.answer("a distance is no number"))?;
            hits.push(StoreHit {
                document: self.document(metadata)?,
                score: match self.settings.encoder.metric {
                    Metric::Cosine | Metric::Ip => 1.0 - distance,
                    Metric::L2 => -distance,
                },
            });
        }
        Ok(hits)
    }
}
