//! How values follow gradients: one file for each optimizer, one line in the registry.
//!
//! An optimizer works on the device where a parameter is; nothing that has the size of a parameter
//! travels to the host in a step. What it remembers of a parameter is saved and restored under
//! names, as tensors.

mod adafactor;
mod adam_mini;
mod adamw;
mod adamw_8bit;
mod apollo;
mod fira;
mod galore;
mod golore;
mod groups;
mod lion;
mod loro;
mod muon;
mod projected;
mod registry;
mod remembered;
mod sgd;
mod spam;
mod stable_spam;
mod state;
mod step;

use frugal_nn::{Gradient, Parameter};

pub use adamw::AdamW;
pub use adamw_8bit::AdamW8bit;
pub use groups::ParamGroup;
pub use lion::{Lion, LionConfig};
pub use registry::{OPTIMIZERS, OptimizerEntry, find, made};
pub use sgd::{Sgd, SgdConfig};
pub use state::{Moment, SavedTensor, StateTensor};
pub(crate) use step::{OptimizerError, OptimizerStep, squares};

/// The numbers of one update of one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Factor on the gradient, for clipping; 1 for none.
    pub grad_scale: f32,
}

/// A parameter whose update is due.
pub struct Pending<'a> {
    /// It.
    pub parameter: &'a mut Parameter,
    /// Its gradient.
    pub gradient: &'a Gradient,
    /// The numbers of its update.
    pub update: Update,
}

/// An optimizer: what it remembers of each parameter, and how it updates it.
pub trait Optimizer: Send {
    /// Its name in the registry.
    fn name(&self) -> &'static str;

    /// Updates one parameter. What is remembered of a parameter that has another size by now is
    /// forgotten.
    fn update(&mut self, parameter: &mut Parameter, gradient: &Gradient, update: &Update);

    /// Updates all parameters of a step: one after the other, unless some belong together.
    fn update_all(&mut self, pending: Vec<Pending<'_>>) {
        for Pending {
            parameter,
            gradient,
            update,
        } in pending
        {
            self.update(parameter, gradient, &update);
        }
    }

    /// Bytes of the tensors that it keeps of a parameter of this name and shape once it has been
    /// updated. Counts of updates are no tensors.
    fn state_bytes(&self, name: &str, shape: &[usize]) -> u64;

    /// That it has something to do with these parameters, beside what AdamW would do.
    ///
    /// # Errors
    /// Why it does not.
    fn check(&self, parameters: &[&Parameter]) -> Result<(), String> {
        let _ = parameters;
        Ok(())
    }

    /// What it remembers, as tensors with names.
    fn state(&self) -> Vec<(String, StateTensor<'_>)>;

    /// Takes back what [`Optimizer::state`] gave; an empty state makes it begin anew.
    ///
    /// # Errors
    /// What is missing or of another kind.
    fn restore(&mut self, state: SavedState) -> Result<(), String>;
}

/// The tensors of an optimizer's state by name.
pub type SavedState = std::collections::BTreeMap<String, SavedTensor>;

/// Elements of a tensor of this shape.
fn numel(shape: &[usize]) -> u64 {
    shape.iter().map(|&side| side as u64).product()
}

/// Bytes of so many numbers of single precision.
fn bytes_of(numbers: u64) -> u64 {
    4 * numbers
}
