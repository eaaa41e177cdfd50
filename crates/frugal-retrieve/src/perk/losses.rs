//! The loss of a context and that of answers, with their first-order gradients.

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use frugal_core::encode::IGNORE_INDEX;
use frugal_kernels::on_pool;
use frugal_nn::{Backbone, Input, ModelError, Pass, Rows, select_rows, to_vec};

use super::fast::FastWeights;
use super::text::Batch;
use super::unroll::{InnerGradient, InnerLoss, Tensors};
use super::weights::{TokenWeights, WeightPass};

/// The rows before the tokens that count, the rows of these tokens, and the tokens.
fn rows(batch: &Batch) -> (Vec<usize>, Vec<usize>, Vec<i64>) {
    let (mut before, mut own, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    for (row, &label) in batch.labels.iter().enumerate() {
        if label != IGNORE_INDEX && row > 0 {
            before.push(row - 1);
            own.push(row);
            targets.push(i64::from(label));
        }
    }
    (before, own, targets)
}

/// Cross-entropy of the tokens that count, each times its weight, summed; `[1]`.
fn weighted_sum(
    backbone: &dyn Backbone,
    pass: &mut dyn Pass,
    batch: &Batch,
    weights: Option<&WeightPass>,
) -> Result<Tensor<1>, ModelError> {
    let input = Input::new(&batch.ids, &batch.lengths);
    let hidden = backbone.forward(&input, pass, None)?;
    let (before, own, targets) = rows(batch);
    let count = targets.len();
    let logits = backbone
        .logits(select_rows(hidden.clone(), &before), Rows::Chosen, pass)
        .ok_or_else(|| ModelError::Attention {
            reason: backbone.info().why_no_head(),
        })?;
    let device = backbone.device().clone();
    let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [count, 1]), &device);
    let losses = -log_softmax(logits, 1)
        .gather(1, targets)
        .squeeze_dim::<1>(1);
    Ok(match weights {
        Some(net) => (losses * net.weights(select_rows(hidden, &own))).sum(),
        None => losses.sum(),
    })
}

fn value(loss: &Tensor<1>) -> f64 {
    let value = to_vec(loss.clone().inner()).first().copied();
    f64::from(value.unwrap_or(f32::NAN))
}

/// The loss of a context: the weighted cross-entropy of the tokens that count, over all positions of
/// the batch as it would be padded, whether they count or not. Without weights the plain
/// cross-entropy.
pub struct ContextLoss<'a> {
    backbone: &'a dyn Backbone,
    fast: &'a FastWeights,
    weights: Option<&'a TokenWeights>,
    /// What is computed at a time.
    groups: Vec<Batch>,
    positions: f64,
}

impl<'a> ContextLoss<'a> {
    /// Of segments, computed in `groups` parts whose gradients are added. `fast` says where the
    /// weights act; its values are not used.
    pub fn new(
        backbone: &'a dyn Backbone,
        fast: &'a FastWeights,
        weights: Option<&'a TokenWeights>,
        segments: &Batch,
        groups: usize,
    ) -> Self {
        Self {
            backbone,
            fast,
            weights,
            groups: segments.groups(groups),
            positions: segments.positions().max(1) as f64,
        }
    }
}

impl InnerLoss<f32> for ContextLoss<'_> {
    type Error = ModelError;

    fn gradient(&mut self, fast: &[Vec<f32>]) -> Result<InnerGradient<f32>, ModelError> {
        let device = self.backbone.device();
        let mut sum: Option<InnerGradient<f32>> = None;
        for group in &self.groups {
            let found = on_pool(|| -> Result<InnerGradient<f32>, ModelError> {
                let mut pass = self.fast.pass(fast, device, true);
                let weights = self.weights.map(|net| net.leaves(device, true));
                let loss = weighted_sum(self.backbone, &mut pass, group, weights.as_ref())?;
                let loss = loss / self.positions;
                let value = value(&loss);
                let mut found = loss.backward();
                Ok(InnerGradient {
                    loss: value,
                    fast: pass.gradients(&mut found),
                    other: weights.map_or_else(Vec::new, |net| net.gradients(&mut found)),
                })
            })?;
            match &mut sum {
                None => sum = Some(found),
                Some(sum) => {
                    sum.loss += found.loss;
                    add(&mut sum.fast, &found.fast);
                    add(&mut sum.other, &found.other);
                }
            }
        }
        Ok(sum.unwrap_or_else(|| InnerGradient {
            loss: 0.0,
            fast: Vec::new(),
            other: Vec::new(),
        }))
    }
}

fn add(sum: &mut [Vec<f32>], more: &[Vec<f32>]) {
    let pairs = sum.iter_mut().flatten().zip(more.iter().flatten());
    pairs.for_each(|(sum, more)| *sum += more);
}

/// The mean cross-entropy of the tokens of answers, and its gradient by the fast weights.
///
/// # Errors
/// What the model refuses.
pub fn answer_gradient(
    backbone: &dyn Backbone,
    fast: &FastWeights,
    values: &[Vec<f32>],
    questions: &Batch,
) -> Result<(f64, Tensors<f32>), ModelError> {
    on_pool(|| {
        let mut pass = fast.pass(values, backbone.device(), true);
        let sum = weighted_sum(backbone, &mut pass, questions, None)?;
        let loss = sum / questions.targets().max(1) as f64;
        let value = value(&loss);
        let mut found = loss.backward();
        Ok((value, pass.gradients(&mut found)))
    })
}

/// The mean cross-entropy of the tokens of answers.
///
/// # Errors
/// What the model refuses.
pub fn answer_loss(
    backbone: &dyn Backbone,
    fast: &FastWeights,
    values: &[Vec<f32>],
    questions: &Batch,
) -> Result<f64, ModelError> {
    on_pool(|| {
        let mut pass = fast.pass(values, backbone.device(), false);
        let sum = weighted_sum(backbone, &mut pass, questions, None)?;
        let sum = to_vec(sum).first().copied().unwrap_or(f32::NAN);
        Ok(f64::from(sum) / questions.targets().max(1) as f64)
    })
}
