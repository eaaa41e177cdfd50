//! Whose vectors a store holds, as it keeps that.

use serde::{Deserialize, Serialize};
use serde_json::Value;

#[cfg(any(feature = "chroma", feature = "qdrant", feature = "pgvector"))]
use super::error::StoreError;
use crate::index::Encoder;

/// What a store keeps of whom its vectors are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSettings {
    /// The encoder.
    pub encoder: Encoder,
    /// Whatever the caller needs to open it again.
    pub note: Value,
}

/// Refuses vectors of another encoder.
#[cfg(any(feature = "chroma", feature = "qdrant", feature = "pgvector"))]
pub(super) fn agreed(
    place: &str,
    kept: StoreSettings,
    wanted: Option<&StoreSettings>,
) -> Result<StoreSettings, StoreError> {
    match wanted {
        Some(wanted) if !kept.encoder.agrees(&wanted.encoder) => Err(StoreError::OtherEncoder {
            place: place.to_owned(),
            made: kept.encoder.to_string(),
            asked: wanted.encoder.to_string(),
        }),
        _ => Ok(kept),
    }
}

/// Settings as a store keeps them; those of another program are none.
#[cfg(any(feature = "chroma", feature = "qdrant", feature = "pgvector"))]
pub(super) fn kept(place: &str, text: Option<&str>) -> Result<StoreSettings, StoreError> {
    let foreign = || StoreError::Foreign {
        place: place.to_owned(),
    };
    serde_json::from_str(text.ok_or_else(foreign)?).map_err(|_| foreign())
}

/// Settings as text.
#[cfg(any(feature = "chroma", feature = "qdrant", feature = "pgvector"))]
pub(super) fn text_of(place: &str, settings: &StoreSettings) -> Result<String, StoreError> {
    serde_json::to_string(settings).map_err(|e| StoreError::Answer {
        place: place.to_owned(),
        problem: e.to_string(),
    })
}
