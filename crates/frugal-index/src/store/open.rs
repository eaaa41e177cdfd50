//! From an address to a store.

use super::embedded::EmbeddedStore;
use super::error::StoreError;
use super::target::{StoreKind, StoreTarget};
use super::{StoreOptions, StoreSettings, VectorStore};

/// Opens a store. Where there is nothing of the name yet it is made if the encoder is given.
///
/// # Errors
/// A store that cannot be reached, vectors of another encoder, nothing of this name, something of
/// this name that is not ours; a store that this program was built without.
pub fn open_store(
    target: &StoreTarget,
    wanted: Option<&StoreSettings>,
    options: StoreOptions,
) -> Result<Box<dyn VectorStore>, StoreError> {
    #[cfg(not(any(feature = "chroma", feature = "qdrant", feature = "pgvector")))]
    let _ = options;
    match &target.kind {
        StoreKind::Embedded(folder) => Ok(Box::new(EmbeddedStore::open(folder, wanted)?)),
        #[cfg(feature = "pgvector")]
        StoreKind::Postgres(address) => Ok(Box::new(super::postgres::PostgresStore::open(
            target, address, wanted, options,
        )?)),
        #[cfg(not(feature = "pgvector"))]
        StoreKind::Postgres(_) => Err(not_built(target, "pgvector")),
        #[cfg(feature = "chroma")]
        StoreKind::Chroma(server) => Ok(Box::new(super::chroma::ChromaStore::open(
            target, server, wanted, options,
        )?)),
        #[cfg(not(feature = "chroma"))]
        StoreKind::Chroma(_) => Err(not_built(target, "chroma")),
        #[cfg(feature = "qdrant")]
        StoreKind::Qdrant(server) => Ok(Box::new(super::qdrant::QdrantStore::open(
            target, server, wanted, options,
        )?)),
        #[cfg(not(feature = "qdrant"))]
        StoreKind::Qdrant(_) => Err(not_built(target, "qdrant")),
    }
}

#[cfg(not(all(feature = "chroma", feature = "qdrant", feature = "pgvector")))]
fn not_built(target: &StoreTarget, feature: &'static str) -> StoreError {
    StoreError::NotBuilt {
        text: target.to_string(),
        feature,
    }
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
