//! The language-model head and its loss, a few tokens at a time.

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::gemm::MR;
use super::matrix::{Matrix, MatrixMut, Threads, zeros};
use super::record::{Op, Operand, present, record};
use super::tensor::{tensor_of, values};
use super::weight::{Base, Weight};
use crate::cross_entropy::{CrossEntropyOptions, IGNORE_INDEX};
use crate::save_policy::Cost;
use crate::simd::{Isa, TASK, exp, max, mul_add, multiversion, sum as sum_of, tanh, task_rows};

/// Logits held at a time: 64 MiB. The weight is gone through, and copied, for each part of the
/// tokens.
const MAX_LOGITS: usize = 1 << 24;
/// Elements between rows of logits, a line of the cache: rows that all start on the same lines
/// would be copied by products.
const PADDING: usize = 16;

/// [`linear_cross_entropy`](crate::linear_cross_entropy) on Flex.
///
/// The gradients are formed together with the loss, while the logits are at hand.
pub(crate) fn linear_cross_entropy(
    hidden: &Tensor<2>,
    weight: &Weight<'_>,
    bias: Option<&Tensor<1>>,
    targets: &[i32],
    opts: &CrossEntropyOptions,
) -> Option<Tensor<1>> {
    let (hidden, (weight, packed), bias) = (
        Operand::new(hidden)?,
        weight.split()?,
        Operand::optional(bias)?,
    );
    let (targets, opts) = (targets.to_vec(), *opts);
    let op = Op {
        cost: Cost::Never,
        reads: |_| [false; 3],
        forward: move |[hidden, weight, bias]: &[Option<FlexTensor>; 3], wanted| {
            let mut head = Head::new(
                present(hidden),
                Base::new(weight.as_ref(), packed.as_ref()),
                bias.as_ref(),
                &targets,
            );
            let loss: f64 = head.run(&opts, wanted).iter().sum();
            (tensor_of(vec![loss as f32], [1]), head.into_gradients())
        },
        backward: |_, gradients: [Option<FlexTensor>; 3], grad, _, _| {
            let factor = values(&grad)[0];
            gradients.map(|gradient| gradient.map(|gradient| scaled(gradient, factor)))
        },
    };
    Some(record([Some(&hidden), weight.as_ref(), bias.as_ref()], op))
}

/// [`token_log_probs`](crate::token_log_probs) on Flex.
pub(crate) fn token_log_probs(
    hidden: &Tensor<2>,
    weight: &Weight<'_>,
    bias: Option<&Tensor<1>>,
    targets: &[i32],
) -> Option<Vec<f32>> {
    let (hidden, (weight, packed), bias) = (
        Operand::new(hidden)?,
        weight.split()?,
        Operand::optional(bias)?,
    );
    let weight = weight.as_ref().map(|weight| &weight.tensor);
    let mut head = Head::new(
        &hidden.tensor,
        Base::new(weight, packed.as_ref()),
        bias.as_ref().map(|bias| &bias.tensor),
        targets,
    );
    let losses = head.run(&CrossEntropyOptions::default(), [false; 3]);
    let mut log_probs = vec![0.0; targets.len()];
    for (row, loss) in head.rows.iter().zip(losses) {
        log_probs[*row] = -loss as f32;
    }
    Some(log_probs)
}

fn scaled(mut tensor: FlexTensor, factor: f32) -> FlexTensor {
    if factor != 1.0 {
        tensor
            .storage_mut::<f32>()
            .par_chunks_mut(TASK)
            .for_each(|chunk| chunk.iter_mut().for_each(|v| *v *= factor));
    }
    tensor
}

/// The counted tokens, the head they meet, and the gradients formed so far.
struct Head<'a> {
    tokens: usize,
    /// Which tokens count.
    rows: Vec<usize>,
    labels: Vec<usize>,
    /// The hidden states of the counted tokens.
    hidden: FlexTensor,
    weight: Base<'a>,
    bias: Option<&'a [f32]>,
    hidden_grad: Option<Vec<f32>>,
    weight_grad: Option<Vec<f32>>,
    bias_grad: Option<Vec<f32>>,
}

impl<'a> Head<'a> {
    fn new(
        hidden: &FlexTensor,
        weight: Base<'a>,
        bias: Option<&'a FlexTensor>,
        targets: &[i32],
    ) -> Self {
        let counted = targets
            .iter()
            .enumerate()
            .filter(|(_, target)| **target != IGNORE_INDEX);
        let (rows, labels): (Vec<usize>, Vec<usize>) =
            counted.map(|(row, target)| (row, *target as usize)).unzip();
        let hidden = if rows.len() == targets.len() {
            hidden.clone()
        } else {
            gathered(hidden, &rows)
        };
        Self {
            tokens: targets.len(),
            rows,
            labels,
            hidden,
            weight,
            bias: bias.map(values),
            hidden_grad: None,
            weight_grad: None,
            bias_grad: None,
        }
    }

    /// The loss of each counted token; forms the wanted gradients on the way.
    fn run(&mut self, opts: &CrossEntropyOptions, wanted: [bool; 3]) -> Vec<f64> {
        let (count, [vocab, d]) = (self.rows.len(), self.weight.dims());
        let [for_hidden, for_weight, for_bias] = wanted;
        let mut hidden_grad = vec![0.0; if for_hidden { count * d } else { 0 }];
        let mut weight_grad = vec![0.0; if for_weight { vocab * d } else { 0 }];
        let mut bias_grad = vec![0.0; if for_bias { vocab } else { 0 }];
        let hidden = Matrix::of(&self.hidden);
        let mut losses = Vec::with_capacity(count);
        // Whole panels of rows, and parts of one size, since the weight is gone through for the
        // last one too.
        let most = (MAX_LOGITS / vocab.max(1))
            .clamp(16, 1024)
            .next_multiple_of(MR);
        let parts = count.div_ceil(most).max(1);
        let chunk = count
            .div_ceil(parts)
            .next_multiple_of(MR)
            .clamp(1, count.max(1));
        let stride = vocab + PADDING;
        let mut buffer = zeros(chunk * stride);
        for start in (0..count).step_by(chunk) {
            let len = chunk.min(count - start);
            let hidden = hidden.narrow_rows(start, len);
            let logits = &mut buffer[..len * stride];
            self.weight.product(
                &mut MatrixMut::new(logits, len, stride).narrow_cols(&(0..vocab)),
                hidden,
            );
            let rows_per_task = task_rows(vocab);
            let labels = &self.labels[start..start + len];
            let with_gradient = wanted.contains(&true);
            let chunk_losses: Vec<Vec<f64>> = logits
                .par_chunks_mut(rows_per_task * stride)
                .zip(labels.par_chunks(rows_per_task))
                .map(|(rows, labels)| {
                    let rows = rows.chunks_mut(stride).zip(labels);
                    rows.map(|(row, label)| {
                        token_loss(&mut row[..vocab], self.bias, *label, opts, with_gradient)
                    })
                    .collect()
                })
                .collect();
            losses.extend(chunk_losses.into_iter().flatten());
            // From here on `logits` holds the gradient of the logits.
            let gradient = Matrix::new(logits, len, stride).window(0, len, 0, vocab);
            if for_hidden {
                let target = &mut hidden_grad[start * d..][..len * d];
                self.weight
                    .transposed_product(&mut MatrixMut::new(target, len, d), gradient);
            }
            if for_weight {
                MatrixMut::new(&mut weight_grad, vocab, d).add(
                    gradient.t(),
                    hidden,
                    1.0,
                    Threads::All,
                );
            }
            if for_bias {
                gradient.add_column_sums(&mut bias_grad);
            }
        }
        self.hidden_grad = for_hidden.then_some(hidden_grad);
        self.weight_grad = for_weight.then_some(weight_grad);
        self.bias_grad = for_bias.then_some(bias_grad);
        losses
    }

    fn into_gradients(self) -> [Option<FlexTensor>; 3] {
        let [vocab, d] = self.weight.dims();
        let hidden = self.hidden_grad.map(|counted| {
            if self.rows.len() == self.tokens {
                return tensor_of(counted, [self.tokens, d]);
            }
            let mut grad = vec![0.0; self.tokens * d];
            for (row, values) in self.rows.iter().zip(counted.chunks(d.max(1))) {
                grad[row * d..][..d].copy_from_slice(values);
            }
            tensor_of(grad, [self.tokens, d])
        });
        [
            hidden,
            self.weight_grad.map(|grad| tensor_of(grad, [vocab, d])),
            self.bias_grad.map(|grad| tensor_of(grad, [vocab])),
        ]
    }
}

fn gathered(hidden: &FlexTensor, rows: &[usize]) -> FlexTensor {
    let dense = if Matrix::of(hidden).has_dense_rows() {
        hidden.clone()
    } else {
        hidden.to_contiguous()
    };
    let source = Matrix::of(&dense);
    let mut data = Vec::with_capacity(rows.len() * source.cols);
    rows.iter()
        .for_each(|row| data.extend_from_slice(source.row(*row)));
    tensor_of(data, [rows.len(), source.cols])
}

/// The loss of one token; turns its logits into their gradient when asked to.
fn token_loss(
    row: &mut [f32],
    bias: Option<&[f32]>,
    label: usize,
    opts: &CrossEntropyOptions,
    with_gradient: bool,
) -> f64 {
    if let Some(bias) = bias {
        row.iter_mut()
            .zip(bias)
            .for_each(|(logit, bias)| *logit += bias);
    }
    if let Some(cap) = opts.logit_softcap {
        cap_logits(row, cap);
    }
    let max = largest(row);
    let lse = f64::from(max) + exp_sum(row, max).ln();
    let (smoothing, z_loss) = (f64::from(opts.label_smoothing), f64::from(opts.z_loss));
    let target = f64::from(row[label]);
    let mut loss = lse - (1.0 - smoothing) * target + z_loss * lse * lse;
    let uniform = smoothing / row.len() as f64;
    if smoothing != 0.0 {
        loss -= uniform * sum(row);
    }
    if with_gradient {
        let slope = opts
            .logit_softcap
            .map_or(1.0, |cap| 1.0 - (target / f64::from(cap)).powi(2));
        let cap = opts.logit_softcap.unwrap_or(f32::INFINITY);
        to_gradient(
            row,
            lse as f32,
            (1.0 + 2.0 * z_loss * lse) as f32,
            uniform as f32,
            cap.recip(),
        );
        row[label] -= ((1.0 - smoothing) * slope) as f32;
    }
    loss
}

multiversion!(fn cap_logits(row: &mut [f32], cap: f32) = cap_logits_body);

#[inline(always)]
fn cap_logits_body<I: Isa>(row: &mut [f32], cap: f32) {
    let inverse = cap.recip();
    for logit in row {
        *logit = cap * tanh::<I>(*logit * inverse);
    }
}

multiversion!(fn largest(row: &[f32]) -> f32 = max);

/// Elements summed in single precision before they join the double-precision total.
const SUM_BLOCK: usize = 1024;

multiversion!(fn exp_sum(row: &[f32], max: f32) -> f64 = exp_sum_body);

/// The sum of `e^(x - max)`.
#[inline(always)]
fn exp_sum_body<I: Isa>(row: &[f32], max: f32) -> f64 {
    let mut total = 0.0;
    let mut terms = [0.0; SUM_BLOCK];
    for block in row.chunks(SUM_BLOCK) {
        let terms = &mut terms[..block.len()];
        for (term, value) in terms.iter_mut().zip(block) {
            *term = exp::<I>(*value - max);
        }
        total += f64::from(sum_of::<I>(terms));
    }
    total
}

fn sum(row: &[f32]) -> f64 {
    row.iter().map(|&value| f64::from(value)).sum()
}

multiversion!(fn to_gradient(row: &mut [f32], lse: f32, factor: f32, uniform: f32, inverse_cap: f32) = to_gradient_body);

/// `(factor * e^(x - lse) - uniform) * (1 - (x / cap)^2)`.
#[inline(always)]
fn to_gradient_body<I: Isa>(
    row: &mut [f32],
    lse: f32,
    factor: f32,
    uniform: f32,
    inverse_cap: f32,
) {
    for value in row {
        let u = *value * inverse_cap;
        *value = mul_add::<I>(factor, exp::<I>(*value - lse), -uniform) * (1.0 - u * u);
    }
}
