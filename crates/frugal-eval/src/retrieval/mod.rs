//! How good a ranking is: TREC's files, trec_eval's measures and the significance of differences.
//!
//! A [`Run`] says which documents a system found for each query, [`Qrels`] which are relevant;
//! [`evaluate`] computes [`Measure`]s of them per query and on average, with the values of
//! trec_eval to the last digit that it prints.
//!
//! ```
//! use frugal_eval::retrieval::{Measure, Options, Qrels, Run, evaluate};
//!
//! let mut qrels = Qrels::default();
//! qrels.insert("q1", "d1", 2)?;
//! qrels.insert("q1", "d3", 1)?;
//! let mut run = Run::new("bm25");
//! run.insert("q1", "d2", 3.0)?;
//! run.insert("q1", "d1", 2.0)?;
//! let measures = [Measure::Ndcg(Some(10)), "recall@1".parse()?];
//! let found = evaluate(&qrels, &run, &measures, &Options::default())?;
//! assert!((found.means[0] - 0.479_625).abs() < 1e-6);
//! # Ok::<(), frugal_eval::retrieval::RetrievalError>(())
//! ```

mod beir;
mod compare;
mod error;
mod evaluate;
mod line;
mod measure;
mod qrels;
mod run;
mod significance;

pub use beir::{beir_measures, beir_options};
pub use compare::{Comparison, compare};
pub use error::RetrievalError;
pub use evaluate::{Evaluation, Options, QueryScores, evaluate};
pub use measure::Measure;
pub use qrels::Qrels;
pub use run::{Hit, Run};
pub use significance::{PairedTest, holm, paired_permutation};

#[cfg(test)]
mod tests;
