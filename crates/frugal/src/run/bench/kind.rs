//! The comparisons that a suite can be run for.

use frugal_eval::suite::Work;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchKind {
    /// Ways to adapt a model, by quality and cost.
    Adapt,
    /// Runs of all kinds, by the six measures of what they cost.
    Efficiency,
    /// A grid of pre-training runs.
    Pretrain,
}

impl BenchKind {
    /// What its runs may do.
    pub fn allowed(self) -> &'static [Work] {
        match self {
            Self::Adapt => &[Work::Tune],
            Self::Efficiency => &Work::ALL,
            Self::Pretrain => &[Work::Pretrain],
        }
    }

    /// The key of its results that those of the others lack.
    pub(super) fn results_key(self) -> &'static str {
        match self {
            Self::Adapt => "runs",
            Self::Efficiency => "groups",
            Self::Pretrain => "study",
        }
    }
}
