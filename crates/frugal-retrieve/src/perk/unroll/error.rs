//! What goes wrong with inner steps.

use thiserror::Error;

/// Why steps could not be taken or differentiated.
#[derive(Debug, Error)]
pub enum UnrollError<E> {
    /// What the inner loss says.
    #[error(transparent)]
    Loss(E),
    /// A loss or a gradient that is infinite or not a number.
    #[error("the inner loss of step {step} or its gradient is not finite")]
    NotFinite {
        /// The step, from 1.
        step: usize,
    },
    /// Tensors that do not fit together.
    #[error("{0}")]
    Shapes(String),
}
