//! How far a student is from its teacher.

use burn::prelude::*;
use frugal_nn::Pass;

use crate::methods::compression::pela::config::FeatureLoss;

/// Collects the teacher's features.
#[derive(Default)]
pub(crate) struct Features(pub Vec<Tensor<2>>);

impl Pass for Features {
    fn after_block(&mut self, _layer: usize, hidden_states: &Tensor<2>) {
        self.0.push(hidden_states.clone());
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
