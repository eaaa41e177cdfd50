//! How long to generate, and why it ended.

use frugal_kernels::CacheType;
use serde::Serialize;

use crate::SamplerConfig;

/// How long to generate and how to choose tokens.
#[derive(Clone, Debug)]
pub struct GenerateConfig {
    /// Most tokens to add to each prompt.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampler: SamplerConfig,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
    /// Decides the choices.
    pub seed: u64,
    /// How keys and values of earlier tokens are held.
    pub cache_type: CacheType,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it.
    Stop,
    /// `max_tokens` or the model's positions are used up.
    Length,
}
