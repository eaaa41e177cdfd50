//! The small form of files: of each piece the vectors that it is mixed of, and their weights.
//!
//! As `peft` has it: indices `[.., k]`, the heaviest first, and all weights but the last, which add
//! up to 1 with it.

use burn::prelude::*;
use frugal_nn::{Mode, Parameter};

use super::logits::{Logits, factors_of, highest};
use crate::support::per_linear::{LinearAdapter, LinearSite, PerLinear};

/// The small form of an adapter. It is not trained.
pub(super) fn of(adapter: &PerLinear<Logits>) -> PerLinear<TopK> {
    adapter.frozen_as(|_, logits| TopK {
        a: Mixtures::of(&logits.a, logits.topk),
        b: Mixtures::of(&logits.b, logits.topk),
    })
}

/// The pieces of one layer.
pub(super) struct TopK {
    a: Mixtures,
    b: Mixtures,
}

struct Mixtures {
    /// `[x, y, k]`.
    indices: Parameter,
    /// `[x, y, k - 1]`.
    weights: Parameter,
}

impl Mixtures {
    fn of(logits: &Parameter, k: usize) -> Self {
        let (name, shape, device) = (logits.name(), logits.shape(), logits.device());
        let (x, y, n) = (shape[0], shape[1], shape[2]);
        let (mut indices, mut weights) = (Vec::new(), Vec::new());
        for row in logits.to_vec().chunks_exact(n) {
            let chosen = highest(row, k);
            let largest = chosen.first().map_or(0.0, |&i| row[i]);
            let exp: Vec<f32> = chosen.iter().map(|&i| (row[i] - largest).exp()).collect();
            let sum: f32 = exp.iter().sum();
            indices.extend(chosen.iter().map(|&i| i as f32));
            weights.extend(exp[..k - 1].iter().map(|e| e / sum));
        }
        Self {
            indices: Parameter::frozen(
                format!("{name}_topk_indices"),
                &[x, y, k],
                indices,
                &device,
            )
            .as_indices_below(n),
            weights: Parameter::frozen(
                format!("{name}_topk_weights"),
                &[x, y, k - 1],
                weights,
                &device,
            ),
        }
    }

    /// The mixtures of the bank, `[x, y, length]`.
    fn mixed(&self, at: &LinearSite<'_>) -> Tensor<3> {
        let bank = at.shared[0].get::<2>(Mode::Eval);
        let (shape, length, device) = (self.indices.shape(), bank.dims()[1], bank.device());
        let (x, y, k) = (shape[0], shape[1], shape[2]);
        let given = self.weights.to_vec();
        let weights: Vec<f32> = (0..x * y)
            .flat_map(|piece| {
                let given = &given[piece * (k - 1)..(piece + 1) * (k - 1)];
                let last = 1.0 - given.iter().sum::<f32>();
                given.iter().copied().chain([last])
            })
            .collect();
        let rows: Vec<i64> = self.indices.to_vec().iter().map(|&i| i as i64).collect();
        let rows = Tensor::<1, Int>::from_data(TensorData::from(rows.as_slice()), &device);
        let weights = Tensor::<3>::from_data(TensorData::new(weights, [x * y, 1, k]), &device);
        weights
            .matmul(bank.select(0, rows).reshape([x * y, k, length]))
            .reshape([x, y, length])
    }
}

impl TopK {
    fn factors(&self, at: &LinearSite<'_>) -> (Tensor<2>, Tensor<2>) {
        factors_of(self.a.mixed(at), self.b.mixed(at))
    }
}

impl LinearAdapter for TopK {
    fn parameters(&self) -> Vec<&Parameter> {
        let parts = [&self.a, &self.b];
        parts
            .into_iter()
            .flat_map(|m| [&m.indices, &m.weights])
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let parts = [&mut self.a, &mut self.b];
        parts
            .into_iter()
            .flat_map(|m| [&mut m.indices, &mut m.weights])
            .collect()
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let (a, b) = self.factors(at);
        b.matmul(a)
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let (a, b) = at.keep(|| self.factors(at));
        at.base.forward_low_rank(x, a, b, 1.0)
    }
}
