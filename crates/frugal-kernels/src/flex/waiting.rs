//! Gradients that wait for the rest of their sum.
//!
//! An output that is used more than once gets a gradient from each use. Burn adds them up one by
//! one, each in a pass of its own over memory and on one thread. A kernel can take what has come so
//! far and add its own to it as it writes. Burn keeps the gradients and does not tell whether there
//! is one already; this table does, for the outputs of the operations here.
//!
//! The table is global because nothing narrower is shared by the step that writes a gradient and the
//! one that takes it. Burn hands a step its parents as nodes, `Gradients::get` and `remove` want the
//! tensor, and a step that held on to a tensor would hold its memory. Nodes have numbers of their own
//! in the whole process, so passes on several threads do not meet; an entry goes with its step.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use burn::backend::autodiff::NodeId;

/// Whether a gradient has come, for every output whose backward step has still to run.
static HAS_COME: Mutex<BTreeMap<NodeId, bool>> = Mutex::new(BTreeMap::new());

fn table() -> MutexGuard<'static, BTreeMap<NodeId, bool>> {
    HAS_COME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An output's place in the table, which goes with the output's backward step.
#[derive(Debug, Default)]
pub(super) struct Place(OnceLock<NodeId>);

impl Place {
    /// The place is that of this output.
    pub(super) fn is_of(&self, output: NodeId) {
        if self.0.set(output).is_ok() {
            table().insert(output, false);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(output) = self.0.get() {
            table().remove(output);
        }
    }
}

/// A gradient has come for this output, if it has a place.
pub(super) fn came(output: NodeId) {
    if let Some(has_come) = table().get_mut(&output) {
        *has_come = true;
    }
}

/// Whether a gradient has come for this output; the caller takes it.
pub(super) fn take(output: NodeId) -> bool {
    table().get_mut(&output).is_some_and(std::mem::take)
}
