//! Qdrant by its REST API, version 1.16 or newer, which keeps metadata of collections.
//!
//! Qdrant knows points by numbers or UUIDs: the point of a document has the first 16 bytes of the
//! SHA-256 of its identifier. Its payload holds identifier and document. Searches go along Qdrant's
//! graph, so they are not exact. Written after the documented protocol: the tests replay it, and no
//! server of it is started.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::error::StoreError;
use super::http::Http;
use super::settings::{agreed, kept, text_of};
use super::target::StoreTarget;
use super::{StoreEntry, StoreHit, StoreOptions, StoreSettings, VectorStore, check};
use crate::document::Document;
use crate::vector::Metric;

/// Metadata key of a collection: whose vectors they are.
const SETTINGS: &str = "frugal_settings";
/// Points of one request.
const BATCH: usize = 500;
/// Variable with the key of a server that wants one.
const KEY: &str = "QDRANT_API_KEY";

pub(super) struct QdrantStore {
    http: Http,
    path: String,
    settings: StoreSettings,
}

impl QdrantStore {
    pub(super) fn open(
        target: &StoreTarget,
        server: &str,
        wanted: Option<&StoreSettings>,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let key = std::env::var(KEY).ok().map(|key| ("api-key", key));
        let http = Http::new(target.to_string(), server, options, key);
        let path = format!("/collections/{}", target.collection);
        let there = http.call("GET", &path, None)?;
        if there.status != 404 {
            let pointer = format!("/result/config/metadata/{SETTINGS}");
            let text = there.body.pointer(&pointer).and_then(Value::as_str);
            let settings = agreed(http.place(), kept(http.place(), text)?, wanted)?;
            return Ok(Self {
                http,
                path,
                settings,
            });
        }
        let Some(wanted) = wanted else {
            let place = http.place().to_owned();
            return Err(StoreError::Absent { place });
        };
        let distance = match wanted.encoder.metric {
            Metric::Cosine => "Cosine",
            Metric::Ip => "Dot",
            Metric::L2 => "Euclid",
        };
        let body = json!({
            "vectors": { "size": wanted.encoder.dimension, "distance": distance },
            "metadata": { SETTINGS: text_of(http.place(), wanted)? },
        });
        http.get("PUT", &path, Some(&body))?;
        Ok(Self {
            http,
            path,
            settings: wanted.clone(),
        })
    }

    fn call(&self, method: &str, what: &str, body: &Value) -> Result<Value, StoreError> {
        self.http
            .get(method, &format!("{}/points{what}", self.path), Some(body))
    }

    fn document(&self, point: &Value) -> Result<Document, StoreError> {
        let text = point.pointer("/payload/document").and_then(Value::as_str);
        let text = text.ok_or_else(|| self.http.answer("a point of another program"))?;
        serde_json::from_str(text).map_err(|e| self.http.answer(e))
    }
}

/// The UUID of a point.
fn uuid(id: &str) -> String {
    let digest = Sha256::digest(id.as_bytes());
    let hex: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
    // Version 8: made by a scheme of one's own.
    format!(
        "{}-{}-8{}-8{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[13..16],
        &hex[17..20],
        &hex[20..]
    )
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

impl VectorStore for QdrantStore {
    fn place(&self) -> String {
        self.http.place().to_owned()
    }

    fn settings(&self) -> &StoreSettings {
        &self.settings
    }

    fn count(&mut self) -> Result<usize, StoreError> {
        let found = self.call("POST", "/count", &json!({ "exact": true }))?;
        let count = found.pointer("/result/count").and_then(Value::as_u64);
        let count = count.and_then(|n| usize::try_from(n).ok());
        count.ok_or_else(|| self.http.answer("`count` is no number"))
    }

    fn ids(&mut self) -> Result<Vec<String>, StoreError> {
        let mut all = Vec::new();
        let mut offset = Value::Null;
        loop {
            let mut body = json!({ "limit": BATCH, "with_payload": ["id"] });
            if !offset.is_null() {
                body["offset"] = offset;
            }
            let found = self.call("POST", "/scroll", &body)?;
            for point in list(&found, "/result/points") {
                let id = point.pointer("/payload/id").and_then(Value::as_str);
                let id = id.ok_or_else(|| self.http.answer("a point of another program"))?;
                all.push(id.to_owned());
            }
            offset = found["result"]["next_page_offset"].clone();
            if offset.is_null() {
                return Ok(all);
            }
        }
    }

    fn documents(&mut self, ids: &[String]) -> Result<Vec<Option<Document>>, StoreError> {
        let mut known = std::collections::HashMap::new();
        for batch in ids.chunks(BATCH) {
            let uuids: Vec<String> = batch.iter().map(|id| uuid(id)).collect();
            let body = json!({ "ids": uuids, "with_payload": true });
            let found = self.call("POST", "", &body)?;
            for point in list(&found, "/result") {
                let document = self.document(point)?;
                known.insert(document.id.clone(), document);
            }
        }
        Ok(ids.iter().map(|id| known.get(id).cloned()).collect())
    }

    fn upsert(&mut self, entries: &[StoreEntry]) -> Result<(), StoreError> {
        check::entries(&self.settings, entries)?;
        for batch in entries.chunks(BATCH) {
            let mut points = Vec::with_capacity(batch.len());
            for StoreEntry { document, vector } in batch {
                let text = serde_json::to_string(document).map_err(|e| self.http.answer(e))?;
                points.push(json!({
                    "id": uuid(&document.id),
                    "vector": vector,
                    "payload": {
                        "id": document.id,
                        "document": text,
                        "metadata": document.metadata,
                    },
                }));
            }
            self.call("PUT", "?wait=true", &json!({ "points": points }))?;
        }
        Ok(())
    }

    fn delete(&mut self, ids: &[String]) -> Result<(), StoreError> {
        for batch in ids.chunks(BATCH) {
            let uuids: Vec<String> = batch.iter().map(|id| uuid(id)).collect();
            self.call("POST", "/delete?wait=true", &json!({ "points": uuids }))?;
        }
        Ok(())
    }

    fn nearest(&mut self, vector: &[f32], k: usize) -> Result<Vec<StoreHit>, StoreError> {
        check::vector(&self.settings, vector, "the query vector")?;
        if k == 0 {
            return Ok(Vec::new());
        }
        let body = json!({ "query": vector, "limit": k, "with_payload": ["document"] });
        let found = self.call("POST", "/query", &body)?;
        let mut hits = Vec::new();
        for point in list(&found, "/result/points") {
            let score = point.get("score").and_then(Value::as_f64);
            let score = score.ok_or_else(|| self.http.answer("a score is no number"))?;
            hits.push(StoreHit {
                document: self.document(point)?,
                score: match self.settings.encoder.metric {
                    Metric::Cosine | Metric::Ip => score,
                    Metric::L2 => -score * score,
                },
            });
        }
        Ok(hits)
    }
}
