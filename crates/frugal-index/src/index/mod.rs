//! The index on disk: texts, vectors and metadata in one folder.
//!
//! | file | holds |
//! |---|---|
//! | `manifest.jsonl` | everything that says what is in the index: format, settings, vector files, the text index's own segments; its second line is a checksum. It is the one pointer to the current state, and is replaced by renaming |
//! | `vectors-N.vec` | vectors of one or more commits, each under the key of its document |
//! | `vectors-N.hnsw` | the graph over them, where the index has graphs and they are many |
//! | other files | segments of the text index, under names that are never used again |
//!
//! A writer writes new files, flushes them to disk, then replaces the manifest; what the new one does
//! not name is removed. A process that ends at any moment so leaves the state of the last commit, and
//! files that the next writer removes. Deleted documents are marked in the text index alone: a vector
//! counts while its document does.

mod damage;
mod directory;
mod manifest;
mod matching;
mod open;
mod schema;
mod search;
mod settings;
mod snapshot;
mod text;
mod writer;

pub use open::Index;
pub use search::{Effort, Found, Mode, Query};
pub use settings::{Encoder, Settings};
pub use writer::Writer;

#[cfg(test)]
mod tests;
