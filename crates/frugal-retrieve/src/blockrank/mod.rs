//! BlockRank: in-context ranking from the attention of one prompt with block-sparse attention.
//!
//! Gupta et al.: *Scalable In-context Ranking with Generative Models*, 2025, arXiv 2510.05396;
//! official code github.com/nilesh2797/BlockRank (MIT). The prompt holds an instruction with the
//! query, N documents, and a closing question. A document sees itself and the instruction, the
//! question sees all, so that attention costs in proportion to N; every document starts at the same
//! position, so that their order has no effect. The attention of two tokens at the end of the prompt
//! to each document, in one middle layer, ranks the documents: layers behind it are not computed.
//!
//! Blocks are ragged and nothing is padded; the paper pads every block to the same length, which
//! changes no number. The score is the mean over heads and signal tokens, as in the official code.

mod blocks;
#[cfg(test)]
mod golden;
mod model;
mod objective;
mod options;
mod score;
#[cfg(test)]
mod tests;

pub use blocks::{BlockPrompt, BlockPrompts, allowed_pairs, causal_pairs};
pub use model::BlockRank;
pub use objective::BlockRankObjective;
pub use options::BlockRankOptions;
pub use score::{contrastive_loss, document_scores};
