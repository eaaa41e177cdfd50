//! ZeRO stage 3: the weights of a block are there while it computes, and then again while its gradients
//! are formed.

use burn::prelude::*;
use frugal_nn::{BlockState, no_grad};

use super::places::Reader;
use super::segments::{Segments, leaf, with_gradient};
use super::{Trainer, parameters_mut};
use crate::error::TrainError;
use crate::objective::StepError;

impl Trainer<'_, '_> {
    /// The gradient of one micro-batch, each parameter's on its owner. A process without rows of the
    /// micro-batch hands out its weights all the same. Returns this process's part of the loss.
    ///
    /// Blocks compute without a gradient graph first and keep their inputs; from the last to the first
    /// they then compute again, with their weights gathered again (activation checkpointing).
    pub(super) fn micro_batch_by_blocks(&mut self, of: &Segments<'_>) -> Result<f64, TrainError> {
        let layers = self.run.backbone.info().num_hidden_layers;
        let shared = |reader: Reader| !matches!(reader, Reader::Block(_));
        self.gather(shared)?;
        let mut inputs = Vec::new();
        let mut frame = match of.rows.is_empty() {
            true => None,
            false => Some(no_grad(|| of.stem(&self.run))?),
        };
        for layer in 0..layers {
            if let Some(state) = &frame {
                inputs.push(state.hidden_states.clone());
            }
            if layer + 1 == layers {
                break;
            }
            self.gather(|reader| reader == Reader::Block(layer))?;
            if let Some(state) = frame {
                frame = Some(no_grad(|| of.blocks(&self.run, layer..layer + 1, state))?);
            }
            self.release(|reader| reader == Reader::Block(layer));
        }
        let (mut loss, mut gradient) = (0.0, None);
        for layer in (0..layers).rev() {
            let is_of_block = |reader| reader == Reader::Block(layer);
            self.gather(is_of_block)?;
            if let (Some(frame), Some(input)) = (&frame, inputs.pop()) {
                let input = leaf(input);
                let state = BlockState {
                    hidden_states: input.clone(),
                    ..frame.clone()
                };
                let state = of.blocks(&self.run, layer..layer + 1, state)?;
                let (scalar, is_loss) = match gradient.take() {
                    Some(gradient) => (with_gradient(state.hidden_states, gradient), false),
                    None => (of.loss(&self.run, self.objective.as_ref(), state)?, true),
                };
                let (value, back) = self.backward(of, scalar, Some(&input))?;
                loss += if is_loss { value } else { 0.0 };
                gradient = back;
            }
            if let Some(group) = &mut self.group {
                group.note_memory();
            }
            self.release(is_of_block);
            self.reduce(is_of_block)?;
        }
        if let Some(gradient) = gradient {
            let state = of.stem(&self.run)?;
            self.backward(of, with_gradient(state.hidden_states, gradient), None)?;
        }
        self.release(shared);
        self.reduce(shared)?;
        Ok(loss)
    }

    /// Adds the gradients of a scalar, as [`Segments::backward`].
    pub(super) fn backward(
        &mut self,
        of: &Segments<'_>,
        scalar: Tensor<1>,
        input: Option<&Tensor<2>>,
    ) -> Result<(f64, Option<Tensor<2>>), TrainError> {
        let found = of.backward(&self.run, &mut self.gradients, scalar, input);
        found.map_err(|error| match error {
            StepError::NonFinite => self.non_finite("the loss".into(), of.rows),
            StepError::Forward(source) => TrainError::Forward {
                set: crate::error::Set::Train,
                rows: of.rows.to_vec(),
                source,
            },
        })
    }

    /// Gathers the parameters with these readers on all ranks.
    fn gather(&mut self, which: impl Fn(Reader) -> bool) -> Result<(), TrainError> {
        let readers = &self.readers;
        let mut parameters = parameters_mut(&mut *self.run.adapter, &mut self.run.head);
        parameters.retain(|p| readers.get(p.name()).is_some_and(|reader| which(*reader)));
        match &mut self.group {
            Some(group) => Ok(group.gather_everywhere(parameters)?),
            None => Ok(()),
        }
    }

    /// Lets go of those of them that others own.
    fn release(&mut self, which: impl Fn(Reader) -> bool) {
        let readers = &self.readers;
        let parameters = parameters_mut(&mut *self.run.adapter, &mut self.run.head);
        for parameter in parameters {
            let name = parameter.name();
            let is_kept = self.group.as_ref().is_none_or(|group| group.keeps(name));
            if !is_kept && readers.get(name).is_some_and(|reader| which(*reader)) {
                parameter.release();
            }
        }
    }

    /// Hands their gradients to those that own them.
    fn reduce(&mut self, which: impl Fn(Reader) -> bool) -> Result<(), TrainError> {
        let mut sizes = self.sizes();
        sizes.retain(|(name, _)| self.readers.get(name).is_some_and(|reader| which(*reader)));
        if let Some(group) = &mut self.group {
            group.reduce_gradients(0.0, &sizes, &mut self.gradients, &mut self.kept)?;
        }
        Ok(())
    }
}
