//! One step over all parameters: clipping by the global norm, groups, and an update of each.
//!
//! Weight decay skips biases and vectors (norm gains, scales), as Hugging Face's trainer skips
//! biases and norms. A parameter without a gradient in a step is left alone, as in PyTorch.

use burn::prelude::*;
use frugal_kernels::grad_norm_sq;
use frugal_nn::{GradientSum, Parameter, to_vec};
use thiserror::Error;

use super::groups::Groups;
use super::{Optimizer, Pending, Update};
use crate::config::TrainConfig;

/// What an optimiser step refuses.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OptimizerError {
    /// A gradient has an infinite element or one that is not a number.
    #[error("the gradient of `{name}` is not finite")]
    NonFinite {
        /// The parameter.
        name: String,
    },
}

/// An optimizer and what holds for all of its steps.
pub(crate) struct OptimizerStep {
    optimizer: Box<dyn Optimizer>,
    max_grad_norm: f64,
    weight_decay: f64,
    groups: Groups,
}

impl OptimizerStep {
    /// With the clipping, the weight decay and the groups of a run.
    ///
    /// # Errors
    /// A pattern that is no regular expression.
    pub(crate) fn new(optimizer: Box<dyn Optimizer>, config: &TrainConfig) -> Result<Self, String> {
        Ok(Self {
            optimizer,
            max_grad_norm: config.max_grad_norm,
            weight_decay: config.weight_decay,
            groups: Groups::new(&config.param_groups)?,
        })
    }

    /// The pattern of a group to which no parameter belongs.
    pub(crate) fn unused_group(&self, parameters: &[&Parameter]) -> Option<&str> {
        self.groups.unused(parameters.iter().map(|p| p.name()))
    }

    pub(crate) fn optimizer(&self) -> &dyn Optimizer {
        self.optimizer.as_ref()
    }

    pub(crate) fn optimizer_mut(&mut self) -> &mut dyn Optimizer {
        self.optimizer.as_mut()
    }

    /// Updates every trainable parameter of these that has a gradient, clipped by the global norm:
    /// `squares` are the [`squares`] of all gradients, also of those that another process has. Returns
    /// the norm before clipping.
    ///
    /// # Errors
    /// A gradient that is not finite; nothing has changed then.
    pub(crate) fn step(
        &mut self,
        parameters: Vec<&mut Parameter>,
        gradients: &GradientSum,
        squares: &[(String, f64)],
        lr: f64,
    ) -> Result<f64, OptimizerError> {
        let norm = global_norm(squares)?;
        // The epsilon and the comparison are those of torch.nn.utils.clip_grad_norm_.
        let scale = if self.max_grad_norm > 0.0 {
            (self.max_grad_norm / (norm + 1e-6)).min(1.0)
        } else {
            1.0
        };
        let trained = parameters.into_iter().filter(|p| p.is_trainable());
        let pending = trained.filter_map(|parameter| {
            let gradient = gradients.gradient(parameter.name())?;
            let update = self.update_of(parameter, lr, scale as f32);
            Some(Pending {
                parameter,
                gradient,
                update,
            })
        });
        let pending = pending.collect();
        self.optimizer.update_all(pending);
        Ok(norm)
    }

    fn update_of(&self, parameter: &Parameter, lr: f64, grad_scale: f32) -> Update {
        let group = self.groups.of(parameter.name());
        let usual = if decays(parameter) {
            self.weight_decay
        } else {
            0.0
        };
        Update {
            lr: lr * parameter.lr_scale() * group.map_or(1.0, |group| group.lr_scale),
            weight_decay: group.and_then(|group| group.weight_decay).unwrap_or(usual),
            grad_scale,
        }
    }
}

/// What a recurrence decays by is left alone, as in the training of Mamba (`_no_weight_decay` in
/// `state-spaces/mamba`); its vectors are, as all are.
fn decays(parameter: &Parameter) -> bool {
    let name = parameter.name();
    parameter.shape().len() > 1 && !name.ends_with("bias") && !name.ends_with(".A_log")
}

/// The norm of all gradients together.
fn global_norm(squares: &[(String, f64)]) -> Result<f64, OptimizerError> {
    let mut sum = 0.0;
    for (name, square) in squares {
        if !square.is_finite() {
            return Err(OptimizerError::NonFinite { name: name.clone() });
        }
        sum += square;
    }
    Ok(sum.sqrt())
}

/// The square of the norm of each gradient, by name. Those of other devices are summed there and read at
/// once.
pub(crate) fn squares(gradients: &GradientSum) -> Vec<(String, f64)> {
    let on_device: Vec<Tensor<1>> = gradients
        .gradients()
        .filter(|(_, gradient)| gradient.host().is_none())
        .map(|(_, gradient)| {
            let tensor = gradient.tensor(&Device::flex());
            (tensor.clone() * tensor).sum()
        })
        .collect();
    let mut on_device = if on_device.is_empty() {
        Vec::new()
    } else {
        to_vec(Tensor::cat(on_device, 0))
    }
    .into_iter();
    let of = gradients.gradients().map(|(name, gradient)| {
        let square = match gradient.host() {
            Some(values) => grad_norm_sq(values),
            None => on_device.next().map_or(f64::NAN, f64::from),
        };
        (name.to_owned(), square)
    });
    of.collect()
}
