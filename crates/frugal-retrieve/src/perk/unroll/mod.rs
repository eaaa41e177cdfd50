//! Optimiser steps that can be differentiated: a few steps on an inner loss, and the gradient of what
//! comes of them by where they began, by their learning rates and by what else the inner loss
//! depends on.
//!
//! With `n` counted from 1, `m` and `v` zero at the start, `g` the gradient of the inner loss and `α`
//! the rate of a tensor in a step, AdamW is
//!
//! ```text
//! m ← β1 m + (1 − β1) g        v ← β2 v + (1 − β2) g²
//! D = √v / √(1 − β2ⁿ) + ε      u = m / (1 − β1ⁿ) / D      φ ← φ (1 − α wd) − α u
//! ```
//!
//! Backwards from `λφ`, the gradient by the last `φ`, with `λm = λv = 0`, for each step from the last:
//!
//! ```text
//! ∂α  = ⟨λφ, −wd φ − u⟩
//! λm += −α λφ / ((1 − β1ⁿ) D)
//! λv += α λφ u / (2 D √v √(1 − β2ⁿ))               0 where v is 0
//! λg  = (1 − β1) λm + 2 (1 − β2) g λv
//! λφ  = λφ (1 − α wd) + H λg                       λm = β1 λm, λv = β2 λv
//! ```
//!
//! `H λg`, and beside it the mixed derivative by the other parameters, is a central difference of two
//! first-order gradients, so that no engine has to differentiate a backward pass, and one step is in
//! memory at a time. It is formed for the last `retained` steps only: in those before them the
//! *gradient* counts as a constant, not `φ`, whose decay and rates keep their part.
//!
//! Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, 2017, arXiv 1703.03400; the truncation follows
//! eric11eca/perk.

mod differences;
mod error;
mod inner;
mod steps;

pub use differences::{Differences, stable_difference};
pub use error::UnrollError;
pub use inner::{Element, InnerGradient, InnerLoss, InnerOptimizer, Tensors, norm};
pub use steps::{MetaGradient, Tape, Unroll};
