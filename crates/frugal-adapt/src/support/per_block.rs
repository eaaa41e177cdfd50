//! Numbers that blocks may have of their own.

use serde::{Deserialize, Serialize};

/// A number for every block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "must be a number or a list of numbers")]
pub enum PerBlock {
    /// The same for all.
    All(usize),
    /// One entry per equal share of the blocks, from the lowest up.
    Shares(Vec<usize>),
}

impl PerBlock {
    /// All entries.
    pub fn entries(&self) -> &[usize] {
        match self {
            Self::All(number) => std::slice::from_ref(number),
            Self::Shares(entries) => entries,
        }
    }

    /// Whether there is an entry and none is zero.
    pub fn is_positive(&self) -> bool {
        !self.entries().is_empty() && !self.entries().contains(&0)
    }

    /// The number of block `layer` of `blocks`: entry `⌊length · layer / blocks⌋`; outside the
    /// blocks the last.
    pub fn at(&self, layer: Option<usize>, blocks: usize) -> usize {
        let entries = self.entries();
        let last = entries.len().saturating_sub(1);
        let entry = layer.map_or(last, |layer| entries.len() * layer / blocks.max(1));
        entries.get(entry.min(last)).copied().unwrap_or(1)
    }
}
