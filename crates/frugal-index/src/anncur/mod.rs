//! Nearest neighbors under a cross-encoder from few of its scores: ANNCUR and its adaptive rounds.
//!
//! A cross-encoder scores a query and an item together, so its best items are found exactly only by
//! scoring them all. Here the table of scores is approximated by a CUR decomposition. Offline each
//! *anchor query* is scored with every item: `R`, of `k_q` rows and one column for each item. Online
//! a query is scored with `k_i` *anchor items* only: `c`. With `W` the columns of `R` that belong to
//! the anchor items, all scores of the query are estimated as `c W⁺ R`; the best estimates are then
//! scored exactly. Nothing is trained.
//!
//! Plain pseudo-inverses fail where `W` is nearly square, because its smallest singular values are
//! noise; see [`Regularization`].
//!
//! Sources: Yadav, Monath, Angell, Zaheer, McCallum, "Efficient Nearest Neighbor Search for
//! Cross-Encoder Models using Matrix Factorization", EMNLP 2022, arXiv 2210.12579 (official
//! repository `iesl/anncur`); adaptive rounds: "Adaptive Retrieval and Scalable Indexing for k-NN
//! Search with Cross-Encoders", arXiv 2305.02996.
//!
//! Departures: scores that were paid for are never paid for twice, and every item that was scored,
//! anchors included, may be an answer; the pseudo-inverse is regularized; rounds after the first take
//! the best estimates as anchors.

mod cur;
mod error;
mod pseudo_inverse;
mod recall;
mod scores;
mod search;

pub use cur::CurIndex;
pub use error::AnncurError;
pub use pseudo_inverse::Regularization;
pub use recall::{best, low_rank, recall, singular_values};
pub use scores::{Counted, PairScorer, ScoreTable};
pub use search::{AnchorChoice, Anncur, Answer, Depth, Options, rerank};

#[cfg(test)]
mod tests;
