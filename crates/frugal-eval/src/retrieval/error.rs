//! What can be wrong with judgements, runs and measures.

use std::path::{Path, PathBuf};

use frugal_core::data::DataError;
use frugal_core::fs::FileError;
use thiserror::Error;

/// Judgements, a run or a measure that nothing can be computed from.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RetrievalError {
    /// A file that cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file that cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line that is not what was expected.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What was found and what was expected.
        problem: String,
    },
    /// A file without a judgement or a ranked document.
    #[error("{}: no {what} in it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The same document twice for one query.
    #[error("the document `{document}` appears twice for the query `{query}`")]
    Duplicate {
        /// The query.
        query: String,
        /// The document.
        document: String,
    },
    /// A score that documents cannot be ordered by.
    #[error(
        "the score of the document `{document}` for the query `{query}` is {score}, not a finite number"
    )]
    Score {
        /// The query.
        query: String,
        /// The document.
        document: String,
        /// The score.
        score: f64,
    },
    /// An identifier that TREC's files cannot hold.
    #[error(
        "the identifier `{id}` is empty or contains white space, which separates the columns of a TREC file"
    )]
    Identifier {
        /// The identifier.
        id: String,
    },
    /// A name that no measure has.
    #[error("`{name}` is not a measure: {problem}")]
    Measure {
        /// The name.
        name: String,
        /// What is wrong and which there are.
        problem: String,
    },
    /// No query has both judgements and a ranking.
    #[error(
        "none of the {run} queries of the run is among the {qrels} queries with judgements; are both of the same data set and split? (run: `{run_example}`, judgements: `{qrels_example}`)"
    )]
    NoCommonQuery {
        /// Queries of the run.
        run: usize,
        /// Queries with judgements.
        qrels: usize,
        /// One query of the run.
        run_example: String,
        /// One query with judgements.
        qrels_example: String,
    },
    /// Evaluations that cannot be compared.
    #[error("`{first}` and `{second}` cannot be compared: {problem}")]
    Compare {
        /// Name of one.
        first: String,
        /// Name of the other.
        second: String,
        /// How they differ.
        problem: String,
    },
}

impl RetrievalError {
    pub(super) fn line(path: &Path, line: usize, problem: impl Into<String>) -> Self {
        Self::Line {
            path: path.into(),
            line,
            problem: problem.into(),
        }
    }
}
