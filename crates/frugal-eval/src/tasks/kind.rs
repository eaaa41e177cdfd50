//! What the model is asked for.

use serde::{Deserialize, Serialize};

/// What the model is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The log-likelihood of each of several continuations.
    MultipleChoice,
    /// A text that it writes.
    GenerateUntil,
    /// The log-likelihood of the target.
    Loglikelihood,
    /// The log-likelihood of a whole text.
    LoglikelihoodRolling,
}
