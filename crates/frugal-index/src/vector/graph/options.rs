//! How a graph is made, and within which limits.

use serde::{Deserialize, Serialize};

use super::super::error::VectorError;

/// How a graph is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HnswOptions {
    /// Links of a vector on each level, twice as many on the lowest. More find more and take more
    /// memory: 4 bytes each.
    pub m: usize,
    /// Candidates that are looked at to link a vector. More take longer and link better.
    pub ef_construction: usize,
    /// Files of fewer vectors get no graph: looking at all of them is as fast.
    pub min_rows: usize,
}

impl Default for HnswOptions {
    fn default() -> Self {
        Self {
            m: 16,
            ef_construction: 200,
            min_rows: 2048,
        }
    }
}

/// The most links of a vector.
pub(super) const MAX_M: usize = 256;
/// The most candidates.
pub(super) const MAX_EF: usize = 100_000;

impl HnswOptions {
    /// Refuses what no graph can be made with.
    pub(crate) fn check(&self) -> Result<(), VectorError> {
        let within = |name: &'static str, value: usize, least: usize, most: usize| match (least
            ..=most)
            .contains(&value)
        {
            true => Ok(()),
            false => Err(VectorError::Graph(format!(
                "{name} of a graph must be from {least} to {most}, not {value}"
            ))),
        };
        within("`m`", self.m, 2, MAX_M)?;
        within("`ef_construction`", self.ef_construction, 1, MAX_EF)
    }
}
