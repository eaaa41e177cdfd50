//! From an address to a store.

use super::VectorStore;
use super::embedded::EmbeddedStore;
use super::error::StoreError;
use super::options::StoreOptions;
use super::settings::StoreSettings;
use super::target::{StoreKind, StoreTarget};

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
