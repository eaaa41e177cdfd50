//! Stores against real servers, which the tests start, and against servers that misbehave.
//!
//! PostgreSQL with pgvector comes from the Python package `pgserver` 0.1.4, Chroma from `chromadb`
//! 1.5; `FRUGAL_STORES_PYTHON` names an interpreter that has them. Without it these tests say that
//! they are skipped.

#![cfg(all(feature = "pgvector", feature = "chroma", feature = "qdrant"))]

mod broken;
mod qdrant;
mod real;
mod servers;

use frugal_index::store::{StoreEntry, StoreSettings};
use frugal_index::{Document, Encoder, Encoding, Metric};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DIMENSION: usize = 12;

fn settings(metric: Metric) -> StoreSettings {
    StoreSettings {
        encoder: Encoder {
            model: "test".into(),
            fingerprint: "abc".into(),
            dimension: DIMENSION,
            metric,
            encoding: Encoding::F32,
        },
        note: serde_json::json!({ "prompt": "it's \\ \"quoted\"" }),
    }
}

fn vector(seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..DIMENSION)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect()
}

fn entry(i: u64) -> StoreEntry {
    let mut document = Document::new(format!("d-{i} \"ü\""), format!("wing {i}"));
    document.title = "It's a 'title' \\ $1".into();
    document.metadata.insert("year".into(), (1950 + i).into());
    document
        .metadata
        .insert("zip".into(), format!("00{}", i % 3).into());
    document.metadata.insert(
        "tags".into(),
        serde_json::json!(["a", format!("t{}", i % 4)]),
    );
    document.metadata.insert(
        "nested".into(),
        serde_json::json!({ "part": i.is_multiple_of(2) }),
    );
    StoreEntry {
        document,
        vector: vector(i),
    }
}
