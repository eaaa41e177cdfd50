//! Documents on their way to a store and back.

use crate::document::Document;

/// A document with its vector.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreEntry {
    /// The document.
    pub document: Document,
    /// Its vector.
    pub vector: Vec<f32>,
}

/// A document that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreHit {
    /// The document.
    pub document: Document,
    /// Its score by the metric of the encoder; higher is better.
    pub score: f64,
}
