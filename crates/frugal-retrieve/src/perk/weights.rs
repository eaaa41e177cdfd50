//! How much each token of a context counts: a small network over the last hidden state.

use burn::prelude::*;
use burn::tensor::Gradients;
use frugal_nn::{named_rng, to_vec};
use rand::Rng;

use super::unroll::Tensors;

/// Width of its hidden layer.
pub const WIDTH: usize = 128;
/// `β` of softplus.
const SHARPNESS: f64 = 3.0;

/// `softplus_β(W2 gelu(W1 h + b1) + b2)` with `β = 3`: `W1 [128, d]`, `b1 [128]`, `W2 [1, 128]`,
/// `b2 [1]`. `W2` and `b2` begin at 0, so that every token has weight `ln 2 / 3`.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenWeights {
    hidden_size: usize,
    /// `W1`, `b1`, `W2`, `b2`, row by row.
    pub values: Tensors<f32>,
}

/// Keys of the tensors in files, in the order of [`TokenWeights::values`].
pub const NAMES: [&str; 4] = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"];

impl TokenWeights {
    /// Fresh ones for hidden states of this width; `W1` and `b1` are uniform within `±1/√d`, as
    /// PyTorch's `Linear` begins.
    pub fn new(hidden_size: usize, seed: u64) -> Self {
        let mut rng = named_rng(seed, "perk token weights");
        let bound = 1.0 / (hidden_size.max(1) as f32).sqrt();
        let mut uniform = |n: usize| (0..n).map(|_| rng.random_range(-bound..bound)).collect();
        let values = vec![
            uniform(WIDTH * hidden_size),
            uniform(WIDTH),
            vec![0.0; WIDTH],
            vec![0.0],
        ];
        Self {
            hidden_size,
            values,
        }
    }

    /// Those of these values, whose shapes were checked.
    pub(super) fn with_values(hidden_size: usize, values: Tensors<f32>) -> Self {
        Self {
            hidden_size,
            values,
        }
    }

    /// Shapes of the tensors.
    pub fn shapes(hidden_size: usize) -> [Vec<usize>; 4] {
        [
            vec![WIDTH, hidden_size],
            vec![WIDTH],
            vec![1, WIDTH],
            vec![1],
        ]
    }

    /// Number of values.
    pub fn num_parameters(&self) -> usize {
        self.values.iter().map(Vec::len).sum()
    }

    /// The values as leaves of a gradient graph, or outside of any.
    pub(super) fn leaves(&self, device: &Device, graph: bool) -> WeightPass {
        let device = device.clone().inner();
        let shapes = [[WIDTH, self.hidden_size], [1, WIDTH], [1, WIDTH], [1, 1]];
        let leaves = self.values.iter().zip(shapes).map(|(values, shape)| {
            let data = TensorData::new(values.clone(), shape);
            match graph {
                true => Tensor::<2>::from_data(data, &device.clone().autodiff()).require_grad(),
                false => Tensor::<2>::from_data(data, &device),
            }
        });
        WeightPass(leaves.collect())
    }
}

/// The network in one pass.
pub(super) struct WeightPass(Vec<Tensor<2>>);

impl WeightPass {
    /// Weights `[rows]` of hidden states `[rows, d]`.
    pub fn weights(&self, hidden_states: Tensor<2>) -> Tensor<1> {
        let [w1, b1, w2, b2] = [0, 1, 2, 3].map(|i| self.0[i].clone());
        let x = frugal_kernels::gelu(hidden_states.matmul(w1.transpose()) + b1);
        let x = (x * w2).sum_dim(1) + b2;
        // ln(1 + exp(β x)) / β, which is x above 30 / β, where the exponential could overflow.
        let scaled = x * SHARPNESS;
        let low = scaled.clone().clamp_max(30.0);
        let softplus = (low.exp() + 1.0).log() + (scaled - 30.0).clamp_min(0.0);
        (softplus / SHARPNESS).squeeze_dim::<1>(1)
    }

    /// The gradients of the values.
    pub fn gradients(&self, found: &mut Gradients) -> Tensors<f32> {
        let of = |leaf: &Tensor<2>| match leaf.grad_remove(found) {
            Some(gradient) => to_vec(gradient),
            None => vec![0.0; leaf.dims().iter().product()],
        };
        self.0.iter().map(of).collect()
    }
}
