//! Adapters: what is trained beside a frozen backbone.

use std::collections::BTreeMap;

use burn::prelude::*;
use serde_json::Value;

use super::derived_cache::DerivedCache;
use super::error::AdaptError;
use super::gradients::GradientSum;
use super::hooks::Pass;
use super::parameter::{Mode, Parameter};
use crate::backbone::{Backbone, BackboneInfo};
use crate::layers::{Conv, Embedding, Linear, Norm, Param};
use crate::site::SiteTable;

/// A linear layer with an adapter merged into it.
#[derive(Clone, Debug)]
pub struct MergedLinear {
    /// `[d_out, d_in]`.
    pub weight: Tensor<2>,
    /// `[d_out]`.
    pub bias: Option<Tensor<1>>,
}

/// What a method needs to build an adapter; known before any weight is read.
pub struct BuildContext<'a> {
    /// What adapters may know of the backbone.
    pub info: &'a BackboneInfo,
    /// Its sites.
    pub sites: &'a SiteTable,
    /// The backbone itself, for methods that start from its weights; absent when planning.
    pub backbone: Option<&'a dyn Backbone>,
    /// Device of the parameters.
    pub device: Device,
    /// Decides the initial values.
    pub seed: u64,
    /// Token ids of the text that a prompt starts from.
    pub tokenize: Option<&'a dyn Fn(&str) -> Vec<u32>>,
}

/// `scale · B A`, added to the weight at `path`.
pub struct LowRank<'a> {
    /// Path of the layer.
    pub path: &'a str,
    /// `[r, d_in]`.
    pub a: &'a Parameter,
    /// `[d_out, r]`.
    pub b: &'a Parameter,
    /// Factor.
    pub scale: f32,
}

/// What may be done with a trained adapter beside training and running it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Merging it into the weights.
    Merge,
    /// Combining it with others, or converting it to LoRA.
    Combine,
    /// Writing it in a form for other programs.
    Export,
}

impl Operation {
    /// What an adapter that refuses it cannot do, for messages.
    pub fn action(self) -> &'static str {
        match self {
            Self::Merge => "be merged",
            Self::Combine => "be combined or converted",
            Self::Export => "be written for other programs",
        }
    }
}

/// The trainer's position, for methods that follow the schedule.
#[derive(Clone, Copy, Debug)]
pub struct StepContext {
    /// Optimiser steps done.
    pub step: u64,
    /// Optimiser steps of the run.
    pub total_steps: u64,
    /// Decides the randomness of this step.
    pub seed: u64,
    /// Share of the peak learning rate that the schedule gives the step.
    pub lr_factor: f64,
}

/// An adapter: named parameters, a forward pass over a backbone, and its file form.
///
/// Everything else (optimiser, checkpoints, resume, merge, several adapters at once) works on this
/// trait alone.
pub trait Adapter: Send + Sync {
    /// Registered name of the method.
    fn method(&self) -> &'static str;

    /// All parameters in a fixed order.
    fn parameters(&self) -> Vec<&Parameter>;

    /// The same, to update.
    fn parameters_mut(&mut self) -> Vec<&mut Parameter>;

    /// Tensors whose gradient a method wants to see in [`Adapter::before_step`] without training or
    /// storing them; it takes these gradients out there.
    fn probes(&self) -> Vec<&Parameter> {
        Vec::new()
    }

    /// Whether the step that comes must show the gradient of every example by itself, in
    /// [`Adapter::after_example`].
    fn wants_examples(&self) -> bool {
        false
    }

    /// Before the optimiser's step, after each example of a step for which
    /// [`Adapter::wants_examples`]: the gradients so far are of the mean over the `targets` of the
    /// step. What is taken out is not added to those of the next example.
    fn after_example(&mut self, _targets: usize, _gradients: &mut GradientSum) {}

    /// Whether it is the model's own weights that are trained, each in its place, and nothing looks at
    /// more of them at once: processes may then keep a part of the gradients or of the weights each.
    fn replaces_weights(&self) -> bool {
        false
    }

    /// Hooks for one forward pass.
    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_>;

    /// Hooks for one of several passes without gradients, between which the parameters stay as they
    /// are: what a method forms of them may be kept.
    fn cached_pass<'a>(&'a self, _kept: &'a DerivedCache) -> Box<dyn Pass + 'a> {
        self.pass(Mode::Eval)
    }

    /// Fields of `adapter_config.json` except those that every method has.
    fn peft_config(&self) -> serde_json::Map<String, Value>;

    /// What the adapter adds to a linear layer's weight `[d_out, d_in]`; `None` where it leaves the
    /// map alone.
    ///
    /// # Errors
    /// [`AdaptError::Unsupported`] for methods that no weight can express.
    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError>;

    /// The thin matrices `[l, r]` of a layer that the adapter holds as `R L`, `l [rank, d_in]` and
    /// `r [d_out, rank]`, for models that are saved small; `None` where its merged weight is whole.
    fn merged_factors(&self, _base: &Linear) -> Option<[Tensor<2>; 2]> {
        None
    }

    /// A linear layer with the adapter merged into it; `None` where the adapter leaves it alone.
    ///
    /// # Errors
    /// [`AdaptError::Unsupported`] for methods that no weight can express.
    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let delta = self.weight_delta(base)?;
        Ok(delta.map(|delta| MergedLinear {
            weight: base.weight.dense() + delta,
            bias: base.bias.clone(),
        }))
    }

    /// Whether [`Pass::linear`] forms a whole weight for this layer, so that several passes without
    /// gradients do better to form [`Adapter::merged_linear`] once. Only where that leaves the bias
    /// as it is.
    fn materializes_weight(&self, _base: &Linear) -> bool {
        false
    }

    /// The same of [`Pass::embedding`] and [`Adapter::merged_embedding`].
    fn materializes_embedding(&self, _base: &Embedding) -> bool {
        false
    }

    /// Takes the adapter out of a layer that [`Adapter::merged_linear`] gave; `None` where it leaves
    /// the layer alone.
    ///
    /// # Errors
    /// [`AdaptError::Unsupported`] for methods whose merge loses the base.
    fn unmerged_linear(&self, merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let delta = self.weight_delta(merged)?;
        Ok(delta.map(|delta| MergedLinear {
            weight: merged.weight.dense() - delta,
            bias: merged.bias.clone(),
        }))
    }

    /// A table with the adapter merged into it.
    fn merged_embedding(&self, _base: &Embedding) -> Option<Tensor<2>> {
        None
    }

    /// Gain and bias of a norm with the adapter merged into it.
    fn merged_norm(&self, _base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        None
    }

    /// Weight and bias of a convolution with the adapter merged into it.
    fn merged_conv(&self, _base: &Conv) -> Option<(Tensor<2>, Option<Tensor<1>>)> {
        None
    }

    /// A bare parameter with the adapter merged into it.
    fn merged_param(&self, _base: &Param) -> Option<Tensor<2>> {
        None
    }

    /// The adapter as low-rank factors of linear layers, where it is no more than that; for export to
    /// other formats.
    fn low_rank_factors(&self) -> Option<Vec<LowRank<'_>>> {
        None
    }

    /// Before the optimiser's step: a method may read the gradients (importance), mask or rescale
    /// them.
    fn before_step(&mut self, _context: &StepContext, _gradients: &mut GradientSum) {}

    /// After the optimiser's step.
    fn after_step(&mut self, _context: &StepContext) {}

    /// What a resumed run needs besides the parameters: running statistics, masks. Empty for most
    /// methods.
    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        BTreeMap::new()
    }

    /// Takes back what [`Adapter::state`] gave; called before the parameters' values are set.
    ///
    /// # Errors
    /// What is missing or has another size.
    fn restore(&mut self, _state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        Ok(())
    }

    /// The adapter as files keep it, where that is less than what is trained: a prompt without the
    /// network that made it, the ranks that are left, the entries that changed.
    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        None
    }

    /// Whether the method has reached the form that it promises (its final sparsity, its whole
    /// budget); until then no evaluation counts as the best one.
    fn is_complete(&self) -> bool {
        true
    }

    /// Whether training takes more than gradients: hooks around the optimiser's step, terms of the
    /// loss, rates of its own. Such an adapter is trained by the trainer only.
    fn needs_trainer(&self) -> bool {
        !self.is_complete()
            || !self.probes().is_empty()
            || self.parameters().iter().any(|p| p.lr_scale() != 1.0)
    }

    /// Why these settings do not allow an operation that the method has; `None` where they do.
    fn refuses(&self, _operation: Operation) -> Option<String> {
        None
    }

    /// Refuses what [`Adapter::refuses`] names.
    ///
    /// # Errors
    /// [`AdaptError::Unsupported`] with its reason.
    fn allow(&self, operation: Operation) -> Result<(), AdaptError> {
        match self.refuses(operation) {
            None => Ok(()),
            Some(reason) => Err(AdaptError::Unsupported {
                method: self.method(),
                action: operation.action(),
                reason,
            }),
        }
    }

    /// Whether rows of a batch may use this adapter while others use another.
    fn supports_mixed_batch(&self) -> bool;

    /// Whether it leaves every token alone until a text in the sequence turns it on, so that what the
    /// model remembers of the tokens before is the base's own.
    fn waits_for_invocation(&self) -> bool {
        false
    }

    /// What a text of these tokens lacks for the adapter to have a part in it, with a way out; such
    /// a text teaches it nothing. `None` where it lacks nothing.
    fn lacks(&self, _ids: &[u32]) -> Option<String> {
        None
    }

    /// Number of trainable elements.
    fn num_trainable(&self) -> usize {
        self.parameters()
            .iter()
            .filter(|p| p.is_trainable())
            .map(|p| p.len())
            .sum()
    }
}
