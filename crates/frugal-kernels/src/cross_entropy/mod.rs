//! The language-model head and its loss in one operation.

mod spec;

use std::sync::Arc;

use burn::tensor::Tensor;

pub use frugal_core::encode::IGNORE_INDEX;
pub use spec::CrossEntropyOptions;

use crate::flex;
use crate::packed::Packed;

/// The language-model head and its loss in one operation: cross-entropy of `softmax(hidden ·
/// weightᵀ + bias)`, summed (not averaged) over the counted tokens, as
/// `torch.nn.functional.cross_entropy` with `reduction="sum"`. The caller divides by the count it
/// wants.
///
/// The logits of a few tokens exist at a time, as in Hsu et al., *Liger Kernel*, arXiv 2410.10989.
/// The z-loss is that of Chowdhery et al., *PaLM*, arXiv 2204.02311, section 5.
///
/// # Shapes
/// hidden: `[tokens, d] -> [1]`; weight: `[vocab, d]`; bias: `[vocab]`; targets: `[tokens]`, with
/// [`IGNORE_INDEX`] where a token is not counted
///
/// # Panics
/// When the shapes do not fit together or a target is outside the vocabulary.
pub fn linear_cross_entropy(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    targets: &[i32],
    opts: &CrossEntropyOptions,
) -> Tensor<1> {
    check(&hidden, weight.dims(), bias.as_ref(), targets);
    flex::linear_cross_entropy(
        &hidden,
        &flex::Weight::Dense(&weight),
        bias.as_ref(),
        targets,
        opts,
    )
    .unwrap_or_else(|| portable::linear_cross_entropy(hidden, weight, bias, targets, opts))
}

/// [`linear_cross_entropy`] with a packed weight, for which no gradient is formed.
///
/// # Shapes
/// hidden: `[tokens, d] -> [1]`; weight: `[vocab, d]`; bias: `[vocab]`; targets: `[tokens]`, with
/// [`IGNORE_INDEX`] where a token is not counted
///
/// # Panics
/// When the shapes do not fit together or a target is outside the vocabulary.
pub fn quantized_cross_entropy(
    hidden: Tensor<2>,
    weight: &Arc<Packed>,
    bias: Option<Tensor<1>>,
    targets: &[i32],
    opts: &CrossEntropyOptions,
) -> Tensor<1> {
    check(&hidden, weight.dims(), bias.as_ref(), targets);
    let fused = flex::linear_cross_entropy(
        &hidden,
        &flex::Weight::Packed(weight),
        bias.as_ref(),
        targets,
        opts,
    );
    fused.unwrap_or_else(|| {
        let weight = weight.dense(&hidden.device().inner());
        portable::linear_cross_entropy(hidden, weight, bias, targets, opts)
    })
}

/// The log-probability of each target under `softmax(hidden · weightᵀ + bias)`, 0 where the target
/// is [`IGNORE_INDEX`]. No gradient; logits are formed for a few tokens at a time.
///
/// # Shapes
/// hidden: `[tokens, d] -> [tokens]`; weight: `[vocab, d]`; bias: `[vocab]`; targets: `[tokens]`
///
/// # Panics
/// When the shapes do not fit together or a target is outside the vocabulary.
pub fn token_log_probs(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    targets: &[i32],
) -> Vec<f32> {
    check(&hidden, weight.dims(), bias.as_ref(), targets);
    flex::token_log_probs(
        &hidden,
        &flex::Weight::Dense(&weight),
        bias.as_ref(),
        targets,
    )
    .unwrap_or_else(|| portable::token_log_probs(hidden, weight, bias, targets))
}

fn check(
    hidden: &Tensor<2>,
    [vocab, weight_d]: [usize; 2],
    bias: Option<&Tensor<1>>,
    targets: &[i32],
) {
    let [tokens, d] = hidden.dims();
    assert!(
        d == weight_d && targets.len() == tokens,
        "cross entropy: hidden [{tokens}, {d}], weight [{vocab}, {weight_d}] and {} targets do not fit",
        targets.len()
    );
    assert!(
        bias.is_none_or(|b| b.dims() == [vocab]),
        "cross entropy: the bias must have {vocab} entries, one per row of the weight"
    );
    for &target in targets {
        assert!(
            target == IGNORE_INDEX || (0..vocab as i64).contains(&i64::from(target)),
            "cross entropy: target {target} is outside the vocabulary of {vocab}; use {IGNORE_INDEX} to skip a token"
        );
    }
}

pub(crate) mod portable {
    use super::{CrossEntropyOptions, IGNORE_INDEX};
    use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax};

    /// The rows that count and their targets, as index tensors on the plain device.
    fn counted(targets: &[i32], rows: std::ops::Range<usize>) -> (Vec<i32>, Vec<i32>) {
        rows.filter(|&i| targets[i] != IGNORE_INDEX)
            .map(|i| (i as i32, targets[i]))
            .unzip()
    }

    fn logits(
        hidden: Tensor<2>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        softcap: Option<f32>,
    ) -> Tensor<2> {
        let mut logits = crate::linear::portable::linear(hidden, weight, bias);
        if let Some(cap) = softcap {
            logits = (logits / cap).tanh() * cap;
        }
        logits
    }

    /// [`linear_cross_entropy`](crate::linear_cross_entropy) as a composition of Burn operations;
    /// holds the logits of every counted token.
    pub fn linear_cross_entropy(
        hidden: Tensor<2>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        targets: &[i32],
        opts: &CrossEntropyOptions,
    ) -> Tensor<1> {
        let (rows, labels) = counted(targets, 0..targets.len());
        if rows.is_empty() {
            return hidden.sum() * 0.0;
        }
        let device = hidden.device();
        let count = rows.len();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [count]), &device);
        let labels = Tensor::<2, Int>::from_data(TensorData::new(labels, [count, 1]), &device);
        let logits = logits(hidden.select(0, rows), weight, bias, opts.logit_softcap);
        let vocab = logits.dims()[1];
        let log_probs = log_softmax(logits.clone(), 1);
        let picked = log_probs.clone().gather(1, labels.clone());
        let smoothing = opts.label_smoothing;
        let mut loss = picked.sum() * (smoothing - 1.0);
        if smoothing != 0.0 {
            loss = loss - log_probs.clone().sum() * (smoothing / vocab as f32);
        }
        if opts.z_loss != 0.0 {
            // logit - log_prob is the log of the sum of exponentials, whichever column is taken.
            let lse = logits.gather(1, labels.clone()) - log_probs.gather(1, labels);
            loss = loss + (lse.clone() * lse).sum() * opts.z_loss;
        }
        loss
    }

    /// [`token_log_probs`](crate::token_log_probs) as a composition of Burn operations.
    pub fn token_log_probs(
        hidden: Tensor<2>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        targets: &[i32],
    ) -> Vec<f32> {
        const CHUNK: usize = 64;
        let (hidden, weight) = (hidden.inner(), weight.inner());
        let bias = bias.map(Tensor::inner);
        let device = hidden.device();
        let mut out = vec![0.0; targets.len()];
        for start in (0..targets.len()).step_by(CHUNK) {
            let (rows, labels) = counted(targets, start..(start + CHUNK).min(targets.len()));
            if rows.is_empty() {
                continue;
            }
            let count = rows.len();
            let index =
                Tensor::<1, Int>::from_data(TensorData::new(rows.clone(), [count]), &device);
            let labels = Tensor::<2, Int>::from_data(TensorData::new(labels, [count, 1]), &device);
            let selected = hidden.clone().select(0, index);
            let log_probs = log_softmax(logits(selected, weight.clone(), bias.clone(), None), 1);
            let values = log_probs.gather(1, labels).into_data();
            for (row, value) in rows.into_iter().zip(values.iter::<f32>()) {
                out[row as usize] = value;
            }
        }
        out
    }
}
