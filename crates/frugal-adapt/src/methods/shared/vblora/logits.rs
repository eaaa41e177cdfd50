//! The logits of one layer, which choose the vectors of its pieces and weigh them.

use burn::prelude::*;
use burn::tensor::activation::softmax;
use frugal_nn::{Mode, Parameter, to_vec};

use crate::support::dropout::dropout;
use crate::support::per_linear::{LinearAdapter, LinearSite};

/// The places of the `k` largest of these, the largest first.
pub(super) fn highest(row: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&i, &j| row[j].total_cmp(&row[i]).then(i.cmp(&j)));
    order.truncate(k);
    order
}

/// The logits of one layer.
pub(super) struct Logits {
    /// `[r, d_in / length, num_vectors]`.
    pub(super) a: Parameter,
    /// `[d_out / length, r, num_vectors]`.
    pub(super) b: Parameter,
    pub(super) topk: usize,
    pub(super) dropout: f64,
}

impl Logits {
    /// Mixtures of the bank for these logits: `[x, y, length]`.
    fn mixtures(&self, logits: &Parameter, at: &LinearSite<'_>) -> Tensor<3> {
        let (logits, bank) = (logits.get::<3>(at.mode), at.shared[0].get::<2>(at.mode));
        let [x, y, n] = logits.dims();
        let (length, k) = (bank.dims()[1], self.topk);
        // Which ones are highest is decided outside the gradient graph.
        let values = to_vec(logits.clone().inner());
        let highest = values.chunks_exact(n).flat_map(|row| highest(row, k));
        let chosen: Vec<i64> = highest.map(|i| i as i64).collect();
        let device = logits.device().inner();
        let places =
            Tensor::<3, Int>::from_data(TensorData::new(chosen.clone(), [x, y, k]), &device);
        let weights = softmax(logits.gather(2, places), 2).reshape([x * y, 1, k]);
        let rows = Tensor::<1, Int>::from_data(TensorData::from(chosen.as_slice()), &device);
        weights
            .matmul(bank.select(0, rows).reshape([x * y, k, length]))
            .reshape([x, y, length])
    }

    /// `A [r, d_in]` and `B [d_out, r]`.
    fn factors(&self, at: &LinearSite<'_>) -> (Tensor<2>, Tensor<2>) {
        factors_of(self.mixtures(&self.a, at), self.mixtures(&self.b, at))
    }
}

/// `A [r, d_in]` and `B [d_out, r]` of pieces `[r, d_in / length, length]` and
/// `[d_out / length, r, length]`.
pub(super) fn factors_of(a: Tensor<3>, b: Tensor<3>) -> (Tensor<2>, Tensor<2>) {
    let ([r, pieces, length], [rows, _, _]) = (a.dims(), b.dims());
    (
        a.reshape([r, pieces * length]),
        b.swap_dims(1, 2).reshape([rows * length, r]),
    )
}

impl LinearAdapter for Logits {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.a, &self.b]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.a, &mut self.b]
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
        match at.mode {
            Mode::Train { seed } if self.dropout > 0.0 => {
                let dropped = dropout(x.clone(), self.dropout, seed, at.path);
                at.base.forward(x)
                    + frugal_kernels::linear(frugal_kernels::linear(dropped, a, None), b, None)
            }
            _ => at.base.forward_low_rank(x, a, b, 1.0),
        }
    }
}
