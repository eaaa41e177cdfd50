//! A model computed in parts, each with a gradient graph of its own: what goes from part to part is cut
//! out of the graph, and its gradient handed back by hand.

use burn::prelude::*;
use frugal_kernels::SavePolicy;
use frugal_nn::{Backbone, BlockState, GradientSum, ModelError, NoAdapter, Pass};

use super::run::TrainRun;
use crate::Tokenized;
use crate::error::{Set, TrainError};
use crate::objective::{Forward, MicroBatch, MicroStep, ModelParts, Objective, StepError};

/// The examples of a micro-batch and what their passes need.
pub(super) struct Segments<'a> {
    pub(super) rows: &'a [u32],
    pub(super) examples: &'a [&'a Tokenized],
    pub(super) seed: u64,
    /// Targets of the whole step.
    pub(super) targets: f64,
}

/// Cuts hidden states out of the gradient graph and makes them a leaf of a new one.
pub(super) fn leaf(hidden_states: Tensor<2>) -> Tensor<2> {
    hidden_states.inner().autodiff().require_grad()
}

/// A scalar whose gradient with respect to `output` is `gradient`.
pub(super) fn with_gradient(output: Tensor<2>, gradient: Tensor<2>) -> Tensor<1> {
    (output * gradient).sum()
}

/// Why a part could not be computed: of the model, or of what is not divided.
#[derive(Debug)]
enum PartError {
    Model(ModelError),
    Undivided(&'static str),
}

impl From<ModelError> for PartError {
    fn from(error: ModelError) -> Self {
        Self::Model(error)
    }
}

impl Segments<'_> {
    fn step<'s>(&'s self, run: &'s TrainRun<'_>, gradients: &'s mut GradientSum) -> MicroStep<'s> {
        MicroStep {
            model: ModelParts::new(run.backbone, run.head.as_deref()),
            examples: self.examples,
            targets: self.targets,
            adapter: &*run.adapter,
            micro_batches: 1,
            seed: self.seed,
            memory: SavePolicy::from(run.config.memory),
            neftune_noise_alpha: run.config.neftune_noise_alpha,
            gradients,
        }
    }

    /// Computes a part. Whether it enters the gradient graph is the caller's affair (`no_grad`).
    fn part<T>(
        &self,
        run: &TrainRun<'_>,
        work: impl FnOnce(&mut Forward<'_>) -> Result<T, PartError>,
    ) -> Result<T, TrainError> {
        let mut none = GradientSum::default();
        let step = self.step(run, &mut none);
        let mode = step.mode();
        let mut pass = step.pass(mode);
        let mut forward = Forward {
            model: step.model,
            pass: pass.as_mut(),
            mode,
        };
        let done = step.memory.scope(|| work(&mut forward));
        let done = match (done, pass.take_error()) {
            (Ok(_), Some(source)) => Err(PartError::Model(source)),
            (done, _) => done,
        };
        let done = match pass.auxiliary_loss() {
            Some(_) => Err(PartError::Undivided("a loss of its own routers or layers")),
            None => done,
        };
        done.map_err(|error| match error {
            PartError::Model(source) => TrainError::Forward {
                set: Set::Train,
                rows: self.rows.to_vec(),
                source,
            },
            PartError::Undivided(what) => TrainError::Setup(format!(
                "`{}` models have {what}, which a model that is computed in parts has not: `data` with `zero` up to 2 runs",
                run.backbone.info().model_type
            )),
        })
    }

    /// What the first block reads.
    pub(super) fn stem(&self, run: &TrainRun<'_>) -> Result<BlockState, TrainError> {
        let batch = MicroBatch::new(self.examples);
        self.part(run, |forward| {
            Ok(forward.model.backbone.stem(&batch.input(), forward.pass)?)
        })
    }

    /// What goes with the hidden states from block to block, where those come from another process: the
    /// token table is not read.
    pub(super) fn frame(&self, backbone: &dyn Backbone) -> Result<BlockState, TrainError> {
        let batch = MicroBatch::new(self.examples);
        let found = backbone.stem(&batch.input(), &mut NoAdapter as &mut dyn Pass);
        found.map_err(|source| TrainError::Forward {
            set: Set::Train,
            rows: self.rows.to_vec(),
            source,
        })
    }

    /// Through these blocks.
    pub(super) fn blocks(
        &self,
        run: &TrainRun<'_>,
        blocks: std::ops::Range<usize>,
        state: BlockState,
    ) -> Result<BlockState, TrainError> {
        self.part(run, |forward| {
            let backbone = forward.model.backbone;
            let state = backbone.blocks(blocks, state, forward.pass, None)?;
            let routing = &state.routing;
            if routing.hidden.is_some() || routing.cell.is_some() || routing.scores.is_some() {
                return Err(PartError::Undivided("routers that remember earlier ones"));
            }
            Ok(state)
        })
    }

    /// The share of the step's loss, `[1]`.
    pub(super) fn loss(
        &self,
        run: &TrainRun<'_>,
        objective: &dyn Objective,
        state: BlockState,
    ) -> Result<Tensor<1>, TrainError> {
        self.part(run, |forward| {
            let hidden_states = forward.model.backbone.readout(state, forward.pass);
            let loss = objective.loss_of_hidden(self.examples, hidden_states, forward);
            let undivided = "an objective that computes the model itself";
            Ok(loss.ok_or(PartError::Undivided(undivided))? / self.targets)
        })
    }

    /// Adds the gradients of a scalar; returns its value, and the gradient with respect to `input`.
    pub(super) fn backward(
        &self,
        run: &TrainRun<'_>,
        gradients: &mut GradientSum,
        scalar: Tensor<1>,
        input: Option<&Tensor<2>>,
    ) -> Result<(f64, Option<Tensor<2>>), StepError> {
        self.step(run, gradients).add_through(scalar, input)
    }
}
