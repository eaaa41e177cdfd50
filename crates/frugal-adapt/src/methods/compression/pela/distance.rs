//! How far a student is from its teacher.

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::Pass;

use crate::methods::compression::pela::config::FeatureLoss;

/// Collects the teacher's features, by block.
#[derive(Default)]
pub(crate) struct Features(pub BTreeMap<usize, Tensor<2>>);

impl Pass for Features {
    fn after_block(&mut self, layer: usize, hidden_states: &Tensor<2>) {
        self.0.insert(layer, hidden_states.clone());
    }

    /// The student may choose other tokens where routers do.
    fn needs_token_rows(&self) -> bool {
        true
    }
}

/// Mean over elements or tokens, `[1]`.
pub(crate) fn distance(kind: FeatureLoss, student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
    match kind {
        FeatureLoss::Mse => {
            let difference = student - teacher;
            (difference.clone() * difference).mean()
        }
        FeatureLoss::Cosine => {
            let norm = |x: &Tensor<2>| (x.clone() * x.clone()).sum_dim(1).sqrt();
            let norms = norm(&student) * norm(&teacher);
            let cosine = (student * teacher).sum_dim(1) / (norms + 1e-8);
            (cosine.neg() + 1.0).mean()
        }
    }
}

/// `(max |R Lᵀ − W| − eps)²`, `[1]`.
pub(crate) fn perturbation(student: Tensor<2>, base: Tensor<2>, eps: f64) -> Tensor<1> {
    let excess = (student - base).abs().max() - eps;
    excess.clone() * excess
}
