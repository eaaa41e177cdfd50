//! Input that no selection can be made from.

use thiserror::Error;

/// Input that no selection can be made from.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum SelectError {
    /// The level.
    #[error("the level {0} must be above 0 and below 1")]
    Level(f64),
    /// A list of the wrong length.
    #[error("{what}: {found} values, but {expected} are needed")]
    Length {
        /// Which list.
        what: String,
        /// Its length.
        found: usize,
        /// What it should be.
        expected: usize,
    },
    /// Nothing to calibrate with or to select from.
    #[error("no {0}")]
    Empty(&'static str),
    /// Not a number.
    #[error("{what}: value {index} is not a finite number")]
    NotFinite {
        /// Which list.
        what: String,
        /// Position, from 0.
        index: usize,
    },
    /// A model that cannot be trained.
    #[error("the ridge regression with penalty {0} has no solution: raise the penalty")]
    Singular(f64),
}
