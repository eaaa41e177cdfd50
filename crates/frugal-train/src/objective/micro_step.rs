//! The gradient of one micro-batch.

use burn::prelude::*;
use frugal_kernels::SavePolicy;
use frugal_nn::{Adapter, GradientSum, Mode, ModelError, Pass, to_vec};

use super::batch::{Forward, ModelParts};
use crate::Tokenized;
use crate::neftune::NoisyPass;

/// Why the gradient of a micro-batch could not be had.
#[derive(Debug)]
pub enum StepError {
    /// The loss is infinite or not a number.
    NonFinite,
    /// The backbone refused the batch.
    Forward(ModelError),
}

impl From<ModelError> for StepError {
    fn from(error: ModelError) -> Self {
        Self::Forward(error)
    }
}

/// What an objective has to add the gradient of one micro-batch with. Most need one forward pass
/// and one backward pass; an objective may take as many as it likes.
pub struct MicroStep<'a> {
    /// The model.
    pub model: ModelParts<'a>,
    /// The examples of the micro-batch.
    pub examples: &'a [&'a Tokenized],
    /// Targets of all micro-batches of the step: each counts by its share of them, so that the
    /// split does not matter.
    pub targets: f64,
    pub(crate) adapter: &'a dyn Adapter,
    pub(crate) micro_batches: usize,
    pub(crate) seed: u64,
    pub(crate) memory: SavePolicy,
    pub(crate) neftune_noise_alpha: f64,
    pub(crate) gradients: &'a mut GradientSum,
}

impl<'a> MicroStep<'a> {
    /// The mode of the passes: training, with the seed of this micro-batch. Two passes with the
    /// same seed have the same dropout.
    pub fn mode(&self) -> Mode {
        Mode::Train { seed: self.seed }
    }

    /// Hooks for one forward pass in this mode.
    pub fn pass(&self, mode: Mode) -> Box<dyn Pass + 'a> {
        let inner = self.adapter.pass(mode);
        match mode {
            Mode::Train { seed } if self.neftune_noise_alpha > 0.0 => Box::new(NoisyPass {
                inner,
                alpha: self.neftune_noise_alpha,
                seed,
            }),
            _ => inner,
        }
    }

    /// Computes a loss, keeping as much for the backward pass as the settings say.
    ///
    /// # Errors
    /// What `work` answers.
    pub fn forward<T>(
        &self,
        pass: &mut dyn Pass,
        mode: Mode,
        work: impl FnOnce(&mut Forward<'_>) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        let model = self.model;
        self.memory
            .scope(|| work(&mut Forward { model, pass, mode }))
    }

    /// Adds the gradient of a loss that is summed over the targets, with the auxiliary loss of its
    /// pass; returns what it adds to the step's loss.
    ///
    /// # Errors
    /// A loss that is not finite.
    pub fn backward(
        &mut self,
        sum: Tensor<1>,
        mut pass: Box<dyn Pass + 'a>,
    ) -> Result<f64, StepError> {
        let mut loss = sum / self.targets;
        if let Some(source) = pass.take_error() {
            return Err(StepError::Forward(source));
        }
        if let Some(auxiliary) = pass.auxiliary_loss() {
            loss = loss + auxiliary / self.micro_batches as f64;
        }
        drop(pass);
        self.add(loss)
    }

    /// Adds the gradient of one of `parts` passes that a micro-batch is divided into: of `scalar` as
    /// it is, and of the pass's share of the auxiliary loss, whose value is returned.
    ///
    /// # Errors
    /// A scalar that is not finite.
    pub fn backward_part(
        &mut self,
        scalar: Tensor<1>,
        mut pass: Box<dyn Pass + 'a>,
        parts: usize,
    ) -> Result<f64, StepError> {
        if let Some(source) = pass.take_error() {
            return Err(StepError::Forward(source));
        }
        let auxiliary = pass
            .auxiliary_loss()
            .map(|loss| loss / (self.micro_batches * parts) as f64);
        drop(pass);
        let Some(auxiliary) = auxiliary else {
            self.add(scalar)?;
            return Ok(0.0);
        };
        let value = to_vec(auxiliary.clone().inner())[0];
        self.add(scalar + auxiliary)?;
        Ok(f64::from(value))
    }

    /// Adds the gradient of a scalar `[1]` as it is; returns its value.
    ///
    /// # Errors
    /// A scalar that is not finite.
    pub fn add(&mut self, loss: Tensor<1>) -> Result<f64, StepError> {
        self.add_through(loss, None).map(|(value, _)| value)
    }

    /// [`MicroStep::add`], with the gradient of the scalar with respect to a leaf of its graph: what a
    /// part of the model read, whose gradient the part before needs.
    ///
    /// # Errors
    /// A scalar that is not finite.
    pub(crate) fn add_through(
        &mut self,
        loss: Tensor<1>,
        input: Option<&Tensor<2>>,
    ) -> Result<(f64, Option<Tensor<2>>), StepError> {
        let value = to_vec(loss.clone().inner())[0];
        if !value.is_finite() {
            return Err(StepError::NonFinite);
        }
        // A batch that nothing trained has a part in (an adapter that still looks at data, or waits
        // for a text) has no graph.
        if !loss.is_tracked() {
            return Ok((f64::from(value), None));
        }
        let mut found = loss.backward();
        drop(loss);
        let gradient = input.and_then(|input| input.grad_remove(&mut found));
        let parameters = self.adapter.parameters();
        let head = self.model.head.into_iter().flat_map(|h| h.parameters());
        let probes = self.adapter.probes();
        self.gradients
            .add(parameters.into_iter().chain(head).chain(probes), &mut found);
        Ok((f64::from(value), gradient))
    }
}
