//! What a recurrence remembers of a sequence.

use std::sync::Arc;

use burn::prelude::*;

/// What a recurrent layer remembers of one sequence: a few tensors whose size does not depend on how
/// many tokens there were. Clones share them, as each pass makes new ones.
#[derive(Clone, Debug, Default)]
pub struct RecurrentState(Option<Arc<Vec<Tensor<2>>>>);

impl RecurrentState {
    /// These tensors, in an order that the layer knows. They are copied, so that a part of a larger
    /// tensor does not keep all of it.
    pub fn of(parts: Vec<Tensor<2>>) -> Self {
        let own = |part: Tensor<2>| {
            let dims = part.dims();
            if dims.contains(&0) {
                return part;
            }
            let memory = Tensor::<2>::zeros(dims, &part.device());
            memory.slice_assign([0..dims[0], 0..dims[1]], part)
        };
        Self(Some(Arc::new(parts.into_iter().map(own).collect())))
    }

    /// The tensors; none of a sequence that has not begun.
    pub fn parts(&self) -> Option<&[Tensor<2>]> {
        self.0.as_ref().map(|parts| parts.as_slice())
    }

    /// Bytes of them.
    pub fn bytes(&self) -> usize {
        let elements = |part: &Tensor<2>| part.dims().iter().product::<usize>();
        let all = self.0.iter().flat_map(|parts| parts.iter());
        all.map(elements).sum::<usize>() * size_of::<f32>()
    }

    /// Tells states apart that share nothing.
    pub(super) fn id(&self) -> Option<usize> {
        self.0.as_ref().map(|parts| Arc::as_ptr(parts) as usize)
    }
}
