//! From hidden states to vectors, for computing and for training alike.

use burn::prelude::*;
use burn::tensor::activation::{gelu, relu, sigmoid};
use frugal_nn::SequenceLayout;
use frugal_train::objective::Readout;

use crate::modules::{Activation, DenseModule, Modules};

impl Modules {
    /// Vectors `[sequences, dimension]` of hidden states `[tokens, d_model]`, before they are given
    /// length 1. `skipped` tokens at the start of each sequence are those of a prompt that does not
    /// count.
    pub(crate) fn pooled(
        &self,
        hidden_states: Tensor<2>,
        layout: &SequenceLayout,
        skipped: &[usize],
    ) -> Tensor<2> {
        let pooled = self.pooling.pool(hidden_states, layout, skipped);
        let layers = self.dense.iter();
        layers.fold(pooled, |vectors, dense| dense.forward(vectors))
    }
}

impl Readout for Modules {
    fn vectors(&self, hidden_states: Tensor<2>, layout: &SequenceLayout) -> Tensor<2> {
        let skipped = vec![0; layout.sequences()];
        let vectors = self.pooled(hidden_states, layout, &skipped);
        if !self.normalize {
            return vectors;
        }
        let squares = vectors.clone() * vectors.clone();
        vectors / squares.sum_dim(1).clamp_min(1e-24).sqrt()
    }

    fn dimension(&self, hidden_size: usize) -> usize {
        Self::dimension(self, hidden_size)
    }
}

impl DenseModule {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let device = x.device();
        let data = TensorData::new(self.weight.clone(), [self.out_features, self.in_features]);
        let weight = Tensor::<2>::from_data(data, &device);
        let bias = self.bias.clone().map(|bias| {
            Tensor::<1>::from_data(TensorData::new(bias, [self.out_features]), &device)
        });
        let y = frugal_kernels::linear(x, weight, bias);
        match self.activation {
            Activation::Identity => y,
            Activation::Tanh => y.tanh(),
            Activation::Relu => relu(y),
            Activation::Sigmoid => sigmoid(y),
            Activation::Gelu => gelu(y),
        }
    }
}
