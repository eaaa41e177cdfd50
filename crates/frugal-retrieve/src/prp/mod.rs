//! Pairwise ranking prompting (PRP): a language model says which of two passages answers a query
//! better, and a ranking is made of its answers.
//!
//! Qin et al.: *Large Language Models are Effective Text Rankers with Pairwise Ranking Prompting*,
//! Findings of NAACL 2024, arXiv 2306.17563; prompt of its appendix E. Each pair is asked in both
//! orders, and answers that contradict each other are a tie. [`rank`] has the three algorithms,
//! [`PrpModel`] asks a model of the library, [`NoisyComparator`] answers with known errors.

mod algorithm;
mod judge;
mod model;
mod noisy;
mod options;
mod parse;
mod prompt;
#[cfg(test)]
mod tests;
mod train;

pub use algorithm::{PrpRanking, rank};
pub use judge::{Answer, Comparator, Judge, Preference};
pub use model::{PrpModel, PrpQuery};
pub use noisy::NoisyComparator;
pub use options::{PrpAlgorithm, PrpMode, PrpOptions};
pub use prompt::PrpPrompt;
