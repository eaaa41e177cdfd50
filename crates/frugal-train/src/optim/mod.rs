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
mod muon;
mod projected;
mod registry;
mod remembered;
mod sgd;
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
pub(crate) use step::{OptimizerError, OptimizerStep};

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

/// An optimizer: what it remembers of each parameter, and how it updates it.
pub trait Optimizer: Send {
    /// Its name in the registry.
    fn name(&self) -> &'static str;

    /// Updates one parameter. What is remembered of a parameter that has another size by now is
    /// forgotten.
    fn update(&mut self, parameter: &mut Parameter, gradient: &Gradient, update: &Update);

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

    /// Takes back what [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// What is missing or of another kind.
    fn restore(&mut self, state: SavedState) -> Result<(), String>;
}

/// The tensors of an optimizer's state by name.
pub type SavedState = std::collections::BTreeMap<String, SavedTensor>;
