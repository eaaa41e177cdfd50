//! How passages are written into an adapter.

use std::path::PathBuf;

/// A meta-learned state and how it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerkAsk {
    /// Folder of the state.
    pub state: PathBuf,
    /// Most tokens of a segment; passages are cut into such pieces.
    pub segment_tokens: usize,
    /// Parts in which the segments are computed: more of them need less memory.
    pub groups: usize,
}
