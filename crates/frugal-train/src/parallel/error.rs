//! What can go wrong between processes.

use thiserror::Error;

/// What can go wrong between the processes of a run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ParallelError {
    /// Another process of the run is gone or does not answer.
    #[error("rank {rank} was lost while {doing}: {reason}")]
    Lost {
        /// Whose process it is.
        rank: usize,
        /// What was being done.
        doing: &'static str,
        /// What was seen of it.
        reason: String,
    },
    /// Another process of the run failed and said why.
    #[error("rank {rank} ended the run: {reason}")]
    Aborted {
        /// Who said so.
        rank: usize,
        /// Why.
        reason: String,
    },
    /// Something else arrived than what was agreed.
    #[error("rank {rank} sent {found} while {doing}, expected {expected}")]
    Protocol {
        /// Who sent it.
        rank: usize,
        /// What was being done.
        doing: &'static str,
        /// What was agreed.
        expected: String,
        /// What arrived.
        found: String,
    },
    /// The processes of a run did not find each other.
    #[error("the processes of the run did not come together: {reason}")]
    Join {
        /// Why.
        reason: String,
    },
    /// The run was asked to stop while others were waited for.
    #[error("the run was asked to stop before all its processes had come together")]
    Stopped,
    /// Processes that would not train the same model on the same data.
    #[error(
        "rank {rank} differs from rank 0 in {what}: all processes need the same files and settings"
    )]
    Differs {
        /// Who differs.
        rank: usize,
        /// In what.
        what: &'static str,
    },
}
