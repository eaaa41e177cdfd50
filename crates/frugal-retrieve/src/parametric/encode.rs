//! Stage B: the parameters of one document, by a few steps of AdamW from the common start.

use burn::prelude::*;
use frugal_kernels::on_pool;
use frugal_nn::{Backbone, GradientSum, Input, Mode, NoAdapter, Parameter, select_rows, to_vec};
use frugal_train::objective::Forward;
use frugal_train::optim::{AdamW, Optimizer, Update};
use frugal_train::{CausalLm, ModelParts, Objective, Target, Tokenized, TrainConfig};

use super::config::{EncodeOptions, ParametricConfig};
use super::error::ParametricError;
use super::fast_weights::FastWeights;
use super::feed_forward::FeedForward;
use super::prompt::{Sequence, too_long};
use super::weights::{DocumentWeights, Factors};

/// What training a document gave.
#[derive(Clone, Debug)]
pub struct EncodeReport {
    /// Its parameters.
    pub weights: DocumentWeights,
    /// Mean loss of each step before its update.
    pub losses: Vec<f64>,
}

/// Parameters that are trained: A and B of every matrix.
struct Trained {
    pairs: Vec<[Parameter; 2]>,
    rank: usize,
}

impl Trained {
    fn new(places: &FeedForward, start: &DocumentWeights, device: &Device) -> Self {
        let pairs = places.places().iter().zip(&start.factors);
        let pairs = pairs.map(|(place, pair)| {
            let parameter = |name: &str, tensor: &Tensor<2>| {
                let shape = tensor.dims();
                let values = to_vec(tensor.clone());
                Parameter::new(format!("{}.{name}", place.path), &shape, values, device)
            };
            [parameter("lora_A", &pair.a), parameter("lora_B", &pair.b)]
        });
        Self {
            pairs: pairs.collect(),
            rank: start.rank,
        }
    }

    fn weights(&self, mode: Mode) -> DocumentWeights {
        let factors = self.pairs.iter().map(|[a, b]| Factors {
            a: a.get(mode),
            b: b.get(mode),
        });
        DocumentWeights {
            rank: self.rank,
            factors: factors.collect(),
        }
    }
}

/// AdamW with PyTorch's moments at a constant rate, over parameters given one by one.
pub(super) struct Steps {
    optimizer: AdamW,
    update: Update,
}

impl Steps {
    pub(super) fn new(lr: f64, weight_decay: f64) -> Self {
        Self {
            optimizer: AdamW::new(&TrainConfig::default()),
            update: Update {
                lr,
                weight_decay,
                grad_scale: 1.0,
            },
        }
    }

    /// Updates every parameter that a backward pass found a gradient of.
    pub(super) fn step<'p>(
        &mut self,
        parameters: impl Iterator<Item = &'p mut Parameter>,
        gradients: &GradientSum,
    ) {
        for parameter in parameters {
            if let Some(gradient) = gradients.gradient(parameter.name()) {
                self.optimizer.update(parameter, gradient, &self.update);
            }
        }
    }
}

/// Trains the parameters of a document on its sequences, a step for each, from the common start.
///
/// The loss of a step is the mean cross-entropy of the sequence's targets. `go_on` is asked before
/// each step.
///
/// # Errors
/// Settings out of range, a start that does not fit the model, sequences that are too long for it,
/// losses or parameters that are no numbers, a `false` of `go_on`.
pub fn encode_document(
    backbone: &dyn Backbone,
    places: &FeedForward,
    start: &DocumentWeights,
    config: &ParametricConfig,
    options: &EncodeOptions,
    sequences: &[Sequence],
    go_on: &mut (dyn FnMut() -> bool + Send),
) -> Result<EncodeReport, ParametricError> {
    config.validate()?;
    options.validate()?;
    start.check(places)?;
    on_pool(|| {
        let mut trained = Trained::new(places, start, backbone.device());
        let mut steps = Steps::new(options.lr, options.weight_decay);
        let mut losses = Vec::new();
        let objective = CausalLm::default();
        objective
            .check_model(ModelParts::from(backbone))
            .map_err(|reason| ParametricError::Model {
                model_type: backbone.info().model_type,
                reason,
            })?;
        let mode = Mode::Train { seed: config.seed };
        for _ in 0..options.epochs {
            for sequence in sequences {
                if !go_on() {
                    return Err(ParametricError::Interrupted);
                }
                let example = Tokenized {
                    input_ids: sequence.ids.clone(),
                    token_type_ids: Vec::new(),
                    labels: Target::Tokens(sequence.targets.clone()),
                };
                sequence.check(backbone.info())?;
                let count = sequence.trained();
                let weights = trained.weights(mode);
                let change = FastWeights::new(places, &weights, config.scale())?;
                let mut pass = change.hooks();
                let mut forward = Forward {
                    model: ModelParts::from(backbone),
                    pass: &mut pass,
                    mode,
                };
                let loss = objective.loss(&[&example], &mut forward)? / count as f64;
                let value = f64::from(to_vec(loss.clone().inner())[0]);
                losses.push(value);
                if !value.is_finite() {
                    return Err(ParametricError::NotFinite {
                        what: "the loss",
                        step: losses.len(),
                    });
                }
                let mut found = loss.backward();
                let mut gradients = GradientSum::default();
                gradients.add(trained.pairs.iter().flatten(), &mut found);
                steps.step(trained.pairs.iter_mut().flatten(), &gradients);
            }
        }
        let weights = trained.weights(Mode::Eval);
        if !weights.is_finite() {
            return Err(ParametricError::NotFinite {
                what: "a parameter",
                step: losses.len(),
            });
        }
        Ok(EncodeReport { weights, losses })
    })
}

/// Refuses the tokens of a document that a model with so many positions cannot read at once.
///
/// # Errors
/// [`ParametricError::Sequence`] with both lengths and the way out.
pub fn check_length(ids: &[u32], positions: usize) -> Result<(), ParametricError> {
    match too_long("a document", ids.len(), positions) {
        Some(reason) => Err(ParametricError::Sequence(reason)),
        None => Ok(()),
    }
}

/// What the translator reads of a document: the hidden state of its last token behind the final norm,
/// `[hidden_size]`.
///
/// # Errors
/// A text without tokens or with more of them than the model has positions, outputs that are no
/// numbers.
pub fn document_embedding(
    backbone: &dyn Backbone,
    ids: &[u32],
) -> Result<Vec<f32>, ParametricError> {
    if ids.is_empty() {
        return Err(ParametricError::Sequence("a document has no tokens".into()));
    }
    check_length(ids, backbone.info().max_sequence)?;
    let values = on_pool(|| {
        let input = Input::new(ids, &[ids.len()]);
        let hidden = backbone.forward(&input, &mut NoAdapter, None)?;
        Ok::<_, ParametricError>(to_vec(select_rows(hidden, &[ids.len() - 1])))
    })?;
    backbone.info().check_finite("hidden states", &values)?;
    Ok(values)
}
