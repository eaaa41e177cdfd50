//! What holds for a whole index.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::analyzer::Analyzer;
use crate::vector::{Encoding, HnswOptions, Metric};

/// How an index is made; fixed when it is created.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How texts become terms.
    pub analyzer: Analyzer,
    /// Where vectors come from; without it there are none, and texts are searched by their words.
    pub encoder: Option<Encoder>,
    /// Graphs over the vectors; without them every vector is looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hnsw: Option<HnswOptions>,
}

/// The model whose vectors are in an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// Its name or folder, to be shown.
    pub model: String,
    /// What tells it from every other model, for example a hash of its files.
    pub fingerprint: String,
    /// Numbers of a vector.
    pub dimension: usize,
    /// How vectors are compared.
    pub metric: Metric,
    /// How they are stored.
    pub encoding: Encoding,
}

impl Encoder {
    /// Whether vectors of the other can be compared with vectors of this one.
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
            && self.dimension == other.dimension
            && self.metric == other.metric
    }
}

impl fmt::Display for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short: String = self.fingerprint.chars().take(12).collect();
        let (model, dimension, metric) = (&self.model, self.dimension, self.metric);
        write!(f, "`{model}` ({short}, {dimension} numbers, {metric})")
    }
}
