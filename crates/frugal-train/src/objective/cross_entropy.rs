//! Cross-entropy of logits that are there as a whole.

use burn::prelude::*;
use burn::tensor::activation::log_softmax;

/// Cross-entropy of logits `[rows, classes]`, summed over the rows; `[1]`.
pub(super) fn cross_entropy(logits: Tensor<2>, targets: &[i32], label_smoothing: f64) -> Tensor<1> {
    let device = logits.device().inner();
    let classes = logits.dims()[1];
    let targets = Tensor::<2, Int>::from_data(
        TensorData::new(targets.to_vec(), [targets.len(), 1]),
        &device,
    );
    let log_probs = log_softmax(logits, 1);
    let loss = log_probs.clone().gather(1, targets).sum() * (label_smoothing - 1.0);
    if label_smoothing == 0.0 {
        loss
    } else {
        loss - log_probs.sum() * (label_smoothing / classes as f64)
    }
}

/// The same with a weight for each class, as `torch.nn.CrossEntropyLoss(weight, label_smoothing)`
/// sums it; the mean there is over the weights of the targets.
pub(super) fn weighted_cross_entropy(
    logits: Tensor<2>,
    targets: &[usize],
    weights: &[f32],
    label_smoothing: f64,
) -> Tensor<1> {
    let device = logits.device();
    let [rows, classes] = logits.dims();
    // Row by row the factor of each class in the loss.
    let mut factors = vec![0.0f32; rows * classes];
    for (row, &target) in factors.chunks_mut(classes).zip(targets) {
        let each = (label_smoothing / classes as f64) as f32;
        row.iter_mut()
            .zip(weights)
            .for_each(|(factor, weight)| *factor = each * weight);
        row[target] += (1.0 - label_smoothing) as f32 * weights[target];
    }
    let factors = Tensor::<2>::from_data(TensorData::new(factors, [rows, classes]), &device);
    -(log_softmax(logits, 1) * factors).sum()
}
