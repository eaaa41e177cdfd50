//! How long a store is waited for.

use std::time::Duration;

/// How long a store is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// For one call.
    pub timeout: Duration,
    /// How often a call is tried that meets a failure which may pass.
    pub attempts: u32,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            attempts: 3,
        }
    }
}

impl StoreOptions {
    /// How long is waited after an attempt, numbered from 1.
    #[cfg(any(feature = "chroma", feature = "qdrant", feature = "pgvector"))]
    pub(super) fn pause(attempt: u32) -> Duration {
        Duration::from_millis(200 << attempt.min(5))
    }
}
