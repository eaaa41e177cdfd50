//! What a run tells while it goes on.

use std::collections::BTreeMap;

use frugal_train::Event;
use serde::Serialize;

/// Metrics by name.
pub type Metrics = BTreeMap<String, f64>;

/// What a run tells while it goes on.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Progress {
    /// A part of the work begins.
    Begin {
        /// What, for example `reading smollm2-135m`.
        what: String,
    },
    /// The data is ready.
    Data {
        /// Name, examples, tokens and longest example of each part.
        parts: Vec<(String, usize, usize, usize)>,
        /// Examples that were cut to the allowed length.
        truncated: usize,
        /// One training example with what is trained marked.
        example: String,
    },
    /// The part of the work that began is so far.
    Counted {
        /// Examples done.
        done: usize,
        /// Examples in all.
        of: usize,
    },
    /// Something that may be a mistake.
    Warning {
        /// What.
        text: String,
    },
    /// Settings were changed so that the run fits the memory.
    Fitted {
        /// Predicted peak before, in bytes.
        needed: u64,
        /// What the process can have, in bytes.
        available: u64,
        /// The changes, as flags.
        flags: Vec<String>,
    },
    /// A part was evaluated.
    Scores {
        /// `base` or `adapted`.
        who: String,
        /// Part of the data.
        part: String,
        /// Metrics.
        metrics: Metrics,
    },
    /// Training.
    Train(Event),
}

/// Receives [`Progress`].
pub type Observe<'a> = &'a mut dyn FnMut(&Progress);
