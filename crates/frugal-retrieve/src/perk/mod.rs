//! PERK: a long context is written into a low-rank adapter by a few gradient steps, and questions are
//! answered from the adapter without the context.
//!
//! A context is cut into segments, which form one batch. Each step makes the weighted cross-entropy
//! of the segments smaller; where the adapter begins, how fast each of its tensors learns in each
//! step and how much each token counts are learnt beforehand, so that few steps suffice
//! ([`meta_train`]). Gradients go through the last steps only, by an adjoint of the optimiser with
//! central differences of first-order gradients ([`unroll`]).
//!
//! Where it departs from the official code: no dropout on the adapter; ragged batches in place of
//! packed ones, with the mean over the positions that padding would give; one distance of the
//! differences for many steps, found anew from time to time.
//!
//! Chen, Romanou, Weiss, Bosselut: PERK: Long-Context Reasoning as Parameter-Efficient Test-Time
//! Learning, 2025, arXiv 2507.06415 (eric11eca/perk).

mod config;
mod error;
mod fast;
pub mod files;
mod losses;
mod meta;
mod state;
mod text;
pub mod unroll;
mod weights;

#[cfg(test)]
mod outcome_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod unroll_tests;

pub use config::{MetaTrainConfig, PerkConfig};
pub use error::PerkError;
pub use fast::{FastWeights, Place, Sizes};
pub use losses::{ContextLoss, answer_gradient, answer_loss};
pub use meta::{
    Adam, Episode, EpisodeGradient, MetaStep, MetaTrainer, episode_gradient, meta_train,
};
pub use state::{PerkState, Written};
pub use text::{Batch, Question, Task, Texts};
pub use weights::TokenWeights;
