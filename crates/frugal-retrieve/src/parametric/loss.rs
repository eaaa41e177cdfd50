//! What the translator minimises: `L = L_LM + λ1 · KL(P* ‖ P) + λ2 · MSE`.

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use frugal_kernels::IGNORE_INDEX;
use frugal_nn::{Backbone, Input, Rows, to_vec};

use super::config::{KlReduction, TranslatorTraining};
use super::error::ParametricError;
use super::fast_weights::FastWeights;
use super::feed_forward::FeedForward;
use super::prompt::Sequence;
use super::weights::{DocumentWeights, Factors};

/// The loss of one document and its terms, each `[1]` and unweighted.
pub struct TranslatorLoss {
    /// `lm + kl_weight · kl + mse_weight · mse`.
    pub total: Tensor<1>,
    /// Mean cross-entropy of the sequence's targets with the translated parameters.
    pub lm: Tensor<1>,
    /// Divergence of the model with translated parameters from that with trained ones, over all
    /// positions.
    pub kl: Tensor<1>,
    /// Sum over all factors of the mean squared difference from the trained ones.
    pub mse: Tensor<1>,
}

/// The terms as numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// The weighted sum.
    pub total: f64,
    /// Cross-entropy.
    pub lm: f64,
    /// Divergence.
    pub kl: f64,
    /// Squared difference.
    pub mse: f64,
}

impl TranslatorLoss {
    /// The terms as numbers.
    pub fn numbers(&self) -> Losses {
        let number = |tensor: &Tensor<1>| f64::from(to_vec(tensor.clone().inner())[0]);
        Losses {
            total: number(&self.total),
            lm: number(&self.lm),
            kl: number(&self.kl),
            mse: number(&self.mse),
        }
    }
}

/// Log-probabilities `[tokens, vocab]` of a sequence under a change.
fn log_probabilities(
    backbone: &dyn Backbone,
    places: &FeedForward,
    weights: &DocumentWeights,
    scale: f32,
    ids: &[u32],
) -> Result<Tensor<2>, ParametricError> {
    let change = FastWeights::new(places, weights, scale)?;
    let mut pass = change.hooks();
    let hidden = backbone.forward(&Input::new(ids, &[ids.len()]), &mut pass, None)?;
    let logits = backbone
        .logits(hidden, Rows::Tokens, &mut pass)
        .ok_or_else(|| ParametricError::Model {
            model_type: backbone.info().model_type,
            reason: backbone.info().why_no_head(),
        })?;
    Ok(log_softmax(logits, 1))
}

fn squared_difference(one: &Tensor<2>, constant: &Tensor<2>) -> Tensor<1> {
    let difference = one.clone() - constant.clone().inner();
    (difference.clone() * difference).mean()
}

/// The loss of translated parameters against those that were trained for the same document, on one of
/// its sequences. Gradients flow to `translated` only. Both act with the same `scale`.
///
/// # Errors
/// Parameters that do not fit the model, what the model refuses.
pub fn translator_loss(
    backbone: &dyn Backbone,
    places: &FeedForward,
    [translated, trained]: [&DocumentWeights; 2],
    scale: f32,
    sequence: &Sequence,
    options: &TranslatorTraining,
) -> Result<TranslatorLoss, ParametricError> {
    trained.check(places)?;
    if translated.rank != trained.rank {
        return Err(ParametricError::Merge(format!(
            "translated ones have rank {}, trained ones {}",
            translated.rank, trained.rank
        )));
    }
    sequence.check(backbone.info())?;
    let teacher = log_probabilities(backbone, places, &trained.detached(), scale, &sequence.ids)?;
    let student = log_probabilities(backbone, places, translated, scale, &sequence.ids)?;

    let device = student.device().inner();
    let rows: Vec<usize> = (0..sequence.targets.len())
        .filter(|&i| sequence.targets[i] != IGNORE_INDEX)
        .collect();
    let targets: Vec<i64> = rows
        .iter()
        .map(|&i| i64::from(sequence.targets[i]))
        .collect();
    let targets = TensorData::new(targets, [rows.len(), 1]);
    let targets = Tensor::<2, Int>::from_data(targets, &device);
    let lm = frugal_nn::select_rows(student.clone(), &rows)
        .gather(1, targets)
        .mean()
        .neg();

    let tokens = sequence.ids.len() as f64;
    let kl = (teacher.clone().exp() * (teacher - student)).sum();
    let kl = match options.kl_reduction {
        KlReduction::Mean => kl / tokens,
        KlReduction::Sum => kl,
    };

    let pairs = translated.factors.iter().zip(&trained.factors);
    let terms = pairs.flat_map(|(Factors { a, b }, target)| {
        [
            squared_difference(a, &target.a),
            squared_difference(b, &target.b),
        ]
    });
    let mse = Tensor::cat(terms.collect(), 0).sum();
    Ok(TranslatorLoss {
        total: lm.clone() + kl.clone() * options.kl_weight + mse.clone() * options.mse_weight,
        lm,
        kl,
        mse,
    })
}
