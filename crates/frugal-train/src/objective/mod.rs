//! What is minimised: one file for each objective, one line in the registry.
//!
//! An objective draws what it needs from a batch of examples (target tokens, a class, numbers,
//! several texts of each example at once) and gives a loss. It says what fits it, how a model is
//! measured, and which of the measures are better when they are smaller.

mod batch;
mod bce;
mod causal_lm;
mod check;
mod classification;
mod cosent;
mod cross_entropy;
mod dpo;
mod embedding;
mod embedding_meter;
mod image_classification;
mod info_nce;
mod kl_distill;
mod label_weights;
mod lambda_loss;
mod list_net;
mod margin_mse;
mod meter;
mod micro_step;
mod multi_label;
mod pairwise;
mod prefixed;
mod readout;
mod registry;
mod regression;
mod reranking;
mod text_sets;
mod token_classification;
mod triplet;
mod vector_loss;

use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::{Mode, ModelError};

use crate::Tokenized;

pub use batch::{Forward, MicroBatch, ModelParts};
pub use causal_lm::CausalLm;
pub use check::{check, check_tokens};
pub use classification::{Classification, ClassificationConfig};
pub use dpo::{Dpo, DpoConfig};
pub use embedding::{Embedding, EmbeddingConfig};
pub use image_classification::{ImageClassification, ImageClassificationConfig};
pub use label_weights::LabelWeights;
pub use meter::{Evaluation, Meter, Metric};
pub use micro_step::{MicroStep, StepError};
pub use multi_label::{MultiLabel, MultiLabelConfig};
pub use prefixed::PrefixedLm;
pub use readout::{MeanOfTokens, Readout};
pub use registry::{LearnsFrom, OBJECTIVES, ObjectiveEntry, canonical, find, for_model, made};
pub use regression::Regression;
pub use reranking::{ListLoss, Reranking};
pub use text_sets::{Similarity, TextSet, TextSets};
pub use token_classification::TokenClassification;
pub use vector_loss::{Kind, VectorLoss};

/// What is minimised, and what is measured.
pub trait Objective: Send + Sync {
    /// Its name in the registry.
    fn name(&self) -> &'static str;

    /// Whether the model fits it.
    ///
    /// # Errors
    /// What the model lacks.
    fn check_model(&self, model: ModelParts<'_>) -> Result<(), String>;

    /// Tells what stands behind the transformer, where vectors of texts are learnt.
    fn set_readout(&mut self, _readout: Arc<dyn Readout>) {}

    /// Whether an example teaches nothing unless others are in its micro-batch.
    fn needs_others(&self, _example: &Tokenized) -> bool {
        false
    }

    /// Whether an example fits it and the model. That its tokens fit the model was checked before.
    ///
    /// # Errors
    /// What is wrong with the example.
    fn check_example(&self, model: ModelParts<'_>, example: &Tokenized) -> Result<(), String>;

    /// Takes from the training data what it rests on, such as how frequent each class is; called
    /// once before training, after the checks.
    ///
    /// # Errors
    /// Settings that do not fit the data or the model.
    fn fit(&mut self, _model: ModelParts<'_>, _train: &[Tokenized]) -> Result<(), String> {
        Ok(())
    }

    /// What an example counts in the mean that is the loss of a step: its target tokens, 1 for a
    /// class, the class's weight.
    fn num_targets(&self, model: ModelParts<'_>, example: &Tokenized) -> f64;

    /// The loss `[1]` of some examples, summed over their targets. The examples of a micro-batch
    /// come together, so that one may serve another as a negative. Outside of training the loss is
    /// the plain one, without smoothing and weights.
    ///
    /// # Errors
    /// What the backbone refuses.
    fn loss(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Tensor<1>, ModelError>;

    /// The loss of what a model gave for some examples, where it rests on nothing else: vectors of
    /// texts `[texts, dimension]`, scores of a head `[texts, 1]`. `None` for objectives that compute
    /// the model themselves.
    fn loss_of_outputs(&self, _examples: &[&Tokenized], _outputs: Tensor<2>) -> Option<Tensor<1>> {
        None
    }

    /// The loss of the final hidden states `[tokens, d_model]` of some examples, where one forward pass
    /// is all that it needs: the model may then be computed in parts. `None` for objectives that need
    /// more.
    fn loss_of_hidden(
        &self,
        _examples: &[&Tokenized],
        _hidden_states: Tensor<2>,
        _forward: &mut Forward<'_>,
    ) -> Option<Tensor<1>> {
        None
    }

    /// Adds the gradient of a micro-batch; returns what it adds to the step's loss. One forward
    /// and one backward pass, unless the objective has something better.
    ///
    /// # Errors
    /// A loss that is not finite, what the backbone refuses.
    fn accumulate(&self, step: &mut MicroStep<'_>) -> Result<f64, StepError> {
        let mode: Mode = step.mode();
        let (mut pass, examples) = (step.pass(mode), step.examples);
        let sum = step.forward(pass.as_mut(), mode, |forward| self.loss(examples, forward))?;
        step.backward(sum, pass)
    }

    /// What an evaluation gives, `loss` among them.
    fn metrics(&self) -> &'static [Metric];

    /// An evaluation that has seen nothing yet.
    fn meter<'a>(&'a self, model: ModelParts<'a>) -> Box<dyn Meter + 'a>;
}
