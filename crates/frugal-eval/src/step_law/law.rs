//! The law, and the runs that one is fitted to.

use serde::{Deserialize, Serialize};

/// Two power laws: `rate = scale · N^parameters · D^tokens`, `batch = scale · D^tokens` in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Law {
    /// Factor of the rate.
    pub rate_scale: f64,
    /// Exponent of the parameters in the rate.
    pub rate_parameters: f64,
    /// Exponent of the tokens in the rate.
    pub rate_tokens: f64,
    /// Factor of the batch.
    pub batch_scale: f64,
    /// Exponent of the tokens in the batch.
    pub batch_tokens: f64,
}

/// The published law.
pub const STEP_LAW: Law = Law {
    rate_scale: 1.79,
    rate_parameters: -0.713,
    rate_tokens: 0.307,
    batch_scale: 0.58,
    batch_tokens: 0.571,
};

/// Parameters outside the vocabulary of the dense runs that the authors released, least and most.
pub const COVERED_PARAMETERS: (f64, f64) = (2.1e8, 1.1e9);
/// Tokens of training of these runs, least and most.
pub const COVERED_TOKENS: (f64, f64) = (4e9, 1e11);

/// Whether a run's size lies within those of the released dense runs.
pub fn covered(parameters: f64, tokens: f64) -> bool {
    (COVERED_PARAMETERS.0..=COVERED_PARAMETERS.1).contains(&parameters)
        && (COVERED_TOKENS.0..=COVERED_TOKENS.1).contains(&tokens)
}

impl Law {
    /// Peak learning rate for `parameters` outside the vocabulary and `tokens` of training.
    pub fn rate(&self, parameters: f64, tokens: f64) -> f64 {
        self.rate_scale * parameters.powf(self.rate_parameters) * tokens.powf(self.rate_tokens)
    }

    /// Tokens for each optimiser step.
    pub fn batch(&self, tokens: f64) -> f64 {
        self.batch_scale * tokens.powf(self.batch_tokens)
    }
}

/// A finished run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Parameters outside the vocabulary.
    pub parameters: f64,
    /// Tokens of training.
    pub tokens: f64,
    /// Peak learning rate.
    pub rate: f64,
    /// Tokens for each step.
    pub batch: f64,
    /// Smoothed loss at the end.
    pub loss: f64,
}
