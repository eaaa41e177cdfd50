//! What can be wrong with scores and options.

use thiserror::Error;

/// Scores that cannot be decomposed, or options that do not fit them.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AnncurError {
    /// The scorer failed.
    #[error("scoring query {query}: {source}")]
    Scorer {
        /// The query.
        query: usize,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A scorer that gives another number of scores than it was asked for.
    #[error("scoring query {query}: {asked} items were asked for, but {given} scores came back")]
    Count {
        /// The query.
        query: usize,
        /// Items asked for.
        asked: usize,
        /// Scores given.
        given: usize,
    },
    /// A score that nothing can be compared with.
    #[error("the score of query {query} and item {item} is {value}, which is not finite")]
    NotFinite {
        /// The query.
        query: usize,
        /// The item.
        item: usize,
        /// The score.
        value: f64,
    },
    /// A table whose rows are not all of one length.
    #[error("a table of {rows} rows and {columns} columns has {} values, not {found}", rows * columns)]
    Shape {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
        /// Values there are.
        found: usize,
    },
    /// Another number of anchor scores than there are anchors.
    #[error("{found} scores for {expected} anchors; give one for each, in their order")]
    AnchorScores {
        /// Scores given.
        found: usize,
        /// Anchors.
        expected: usize,
    },
    /// An option outside its range.
    #[error("{0}")]
    Option(String),
    /// A decomposition that does not converge.
    #[error("the singular value decomposition of the anchor scores does not converge")]
    Decomposition,
}
