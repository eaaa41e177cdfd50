//! What a forward pass saves for its backward pass, and what is recomputed.
//!
//! The policy in force is a value of the thread, set for the length of a closure. As an argument it
//! would go through every model, every adapter and every operation to the one line that reads it, and
//! Burn records the steps of a forward pass on the thread that calls. [`SavePolicy::scope`] restores
//! what was there before, also where the pass panics.

use std::cell::Cell;

thread_local! {
    static CURRENT: Cell<SavePolicy> = const { Cell::new(SavePolicy::Balanced) };
}

/// How much a forward pass saves for its backward pass: gradient checkpointing, operation by
/// operation. Gradients are the same bits whatever is chosen: what is not saved is recomputed by the
/// same kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SavePolicy {
    /// Save the residual stream and the outputs of attention; recompute linear layers, rotary
    /// embeddings, norms and activations.
    Low,
    /// Save the outputs of linear layers and of attention; recompute norms and activations.
    #[default]
    Balanced,
    /// Save everything.
    Fast,
}

impl SavePolicy {
    /// Runs a forward pass on this thread; what it records saves as much as `self` says.
    pub fn scope<T>(self, forward: impl FnOnce() -> T) -> T {
        struct Restore(SavePolicy);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _restore = Restore(CURRENT.replace(self));
        forward()
    }
}

/// What it costs to compute an operation's output a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    /// Element by element.
    Light,
    /// A matrix product, or an output whose input would have to be kept in its place.
    Heavy,
    /// More than keeping it is worth.
    Never,
}

impl Cost {
    /// Whether the output is to be computed again when the backward pass needs it.
    pub(crate) fn is_repeated(self) -> bool {
        match CURRENT.get() {
            SavePolicy::Low => self != Self::Never,
            SavePolicy::Balanced => self == Self::Light,
            SavePolicy::Fast => false,
        }
    }
}
